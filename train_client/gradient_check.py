"""How well sub-batches stand in for their large batches while a run trains: the exact gradients of both, now and then.

Costs a forward and a backward of the large batch and of the sub-batch per check, and changes nothing of the run.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.dataset import Store
from shared.partition import by_token_budget
from shared.records import Selection
from shared.rowloss import collate, row_losses
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig
from train_client.gradient_match import GradientMatch
from train_client.heldout import evaluating
from train_client.progress import keep_steps_before

logger = logging.getLogger(__name__)

_TOKENS_PER_FORWARD = 4096
_PIECE = 1 << 22


class GradientCheck:
    """Compares gradients over all trained parameters, at the weights that a step is about to change.

    Each check adds a line to `gradient.jsonl`: `error` = |g_S - g_M| / |g_M| and `cosine` of the sub-batch's gradient
    g_S = Σ w_i ∇L_i / b and the large batch's mean gradient g_M; `bias` = |Σ (g_S - g_M)| / Σ |g_M| over the checks so
    far, and `bias_floor` = √(Σ |g_S - g_M|²) / Σ |g_M|, which errors without a bias, independent of each other, would
    show. The sums begin anew where a run is resumed. Dropout is off. Where a gradient isn't finite, or the large
    batch's is zero, a warning says so and no line is written.
    """

    def __init__(
        self,
        accelerator: Any,
        model: Any,
        store: Store,
        selection: SelectionConfig,
        *,
        seed: int,
        every: int,
        output: Path,
    ) -> None:
        """Prepare.

        Args:
            accelerator: Accelerate's.
            model: As prepared.
            store: The rows.
            selection: How large batches are drawn.
            seed: The run's.
            every: Steps from check to check, the first of them step 0; 0: no checks.
            output: The folder for `gradient.jsonl`.
        """
        self._accelerator, self._store, self._selection = accelerator, store, selection
        self._model = accelerator.unwrap_model(model)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._seed, self._every, self._output = seed, every, output
        self._sum: Tensor | None = None  # of errors, on rank 0
        self._sum_of_squares = self._sum_of_norms = 0.0

    def before(self, selection: Selection) -> GradientMatch | None:
        """Check the selection that is about to be trained, if its turn has come. Every rank takes part.

        Returns:
            What was found, on rank 0.

        Cost: memory for four gradients, of which rank 0 keeps one from check to check.
        """
        if not self._every or selection.step % self._every:
            return None
        drawn = draw_large_batch(self._store.source_rows, self._selection, seed=self._seed, step=selection.step)
        rows = np.setdiff1d(drawn, selection.skipped)
        with evaluating(self._model):
            large = self._gradient(rows, np.full(len(rows), 1 / len(rows)))
            sub = self._gradient(selection.index, selection.weight / selection.large_batch_size)
        return self._note(selection.step, large, sub) if self._accelerator.is_main_process else None

    def _gradient(self, rows: npt.NDArray[np.int64], weight: npt.NDArray[np.floating[Any]]) -> Tensor:
        """Σ weight · ∇L over all ranks, flat."""
        rank, ranks = self._accelerator.process_index, self._accelerator.num_processes
        sizes = [p.numel() for p in self._parameters]
        total = torch.zeros(sum(sizes), device=self._accelerator.device)
        # In float16 small gradients would vanish on their way back, so they are scaled as they are in training.
        scaler = self._accelerator.scaler
        scale = scaler.get_scale() if scaler else 1.0
        for group in by_token_budget(self._store.lengths(rows), budget=_TOKENS_PER_FORWARD)[rank::ranks]:
            batch = collate(self._store.rows(rows[group]), device=self._accelerator.device)
            with torch.enable_grad():
                output = self._model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                )
                losses = row_losses(output.logits, batch["labels"])
                loss = losses @ torch.as_tensor(weight[group], dtype=losses.dtype, device=losses.device)
                gradients = torch.autograd.grad(
                    loss * scale, self._parameters, allow_unused=True, materialize_grads=True
                )
            for part, gradient in zip(total.split(sizes), gradients, strict=True):
                part.add_(gradient.flatten(), alpha=1 / scale)
        summed: Tensor = self._accelerator.reduce(total, reduction="sum")
        return summed

    def _note(self, step: int, large: Tensor, sub: Tensor) -> GradientMatch | None:
        large_square, sub_square = _square(large), _square(sub)
        error = sub.sub_(large)
        error_square, norm = _square(error), math.sqrt(large_square)
        if not (math.isfinite(error_square) and norm > 0):
            logger.warning(
                "step %d: no gradient check, the norms are %g of the large batch's gradient, %g of the sub-batch's",
                step, norm, math.sqrt(sub_square),
            )  # fmt: skip
            return None
        self._sum = error if self._sum is None else self._sum.add_(error)
        self._sum_of_squares += error_square
        self._sum_of_norms += norm
        # By the law of cosines, from norms in float64: a float32 dot product of equal vectors gives more than 1.
        product = (large_square + sub_square - error_square) / 2
        line = {
            "step": step,
            "error": math.sqrt(error_square) / norm,
            "cosine": product / (norm * math.sqrt(sub_square)) if sub_square else 0.0,
            "bias": math.sqrt(_square(self._sum)) / self._sum_of_norms,
            "bias_floor": math.sqrt(self._sum_of_squares) / self._sum_of_norms,
            "large_batch_norm": norm,
        }
        path = self._output / "gradient.jsonl"
        keep_steps_before(path, step)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return GradientMatch(line["error"], line["cosine"], line["bias"])


def _square(vector: Tensor) -> float:
    """The squared norm in float64, a piece at a time: no second copy of the vector."""
    return sum(float(piece.double().square().sum()) for piece in vector.split(_PIECE))
