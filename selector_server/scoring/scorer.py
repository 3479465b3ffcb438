"""Rows → losses and what is known of their gradients, with the weights that a model holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from selector_server.scoring.estimators import ESTIMATORS, Found, MicroBatch, PlacedProbes, flows, losses
from selector_server.scoring.probes import Probes
from selector_server.scoring.sketch import add_gradients, signs, sketch_width
from selector_server.scoring.split import Split
from shared.errors import ModelError
from shared.partition import by_token_budget
from shared.records import Row
from shared.rowloss import collate, find_answers
from shared.selection_config import SelectionConfig

FloatArray = npt.NDArray[np.float64]

# A CPU is fastest when a forward's activations stay in its cache: at 1,024 tokens rather than at 8,192.
CPU_TOKENS = 1024


@dataclass(frozen=True, eq=False)
class Scores:
    """What scoring found, rows in the caller's order. A row with anything that isn't finite is nan in all arrays.

    Attributes:
        loss: Losses, float64 [b].
        c: Projected gradients, float64 [b, n]; None where no probes were given or a sketch was made.
        sketch: Sketches of the rows' gradients, float64 [b, s], whose inner products estimate those of the gradients;
            None unless the gradient of the last blocks is taken.
        prompt: Mean hidden states of the prompts on their way into the last layer, float64 [b, d]; None without soft
            labels.
    """

    loss: FloatArray
    c: FloatArray | None = None
    sketch: FloatArray | None = None
    prompt: FloatArray | None = None

    def of(self, rows: npt.NDArray[np.int64]) -> Scores:
        """The scores of some rows."""
        c, sketch, prompt = (None if part is None else part[rows] for part in (self.c, self.sketch, self.prompt))
        return Scores(self.loss[rows], c, sketch, prompt)

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Which rows could be scored, bool [b]."""
        return np.isfinite(self.loss)


class Scorer:
    """Scores rows with the weights that a model holds.

    Attributes:
        name: The perturbed parameter's name in the model; empty where the gradient of the last blocks is taken.
        shape: Shape of what is perturbed of it, which the probes must have: V's rows; empty where nothing is.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device | str,
        *,
        gradient_of: Literal["v_projection", "last_blocks"] = "v_projection",
        num_blocks: int = 1,
    ) -> None:
        """Take a model apart.

        Args:
            model: A Hugging Face causal language model, bare or in a PeftModel with LoRA; see `Split`.
            device: Where it is.
            gradient_of: What is perturbed or differentiated.
            num_blocks: Of `last_blocks`.

        Raises:
            ModelError: a model that `Split` can't take apart; last blocks without a trained linear module.
        """
        blocks = gradient_of == "last_blocks"
        self._split = Split(model, num_layers=num_blocks if blocks else 1, perturb=not blocks)
        self._trained = self._find_trained() if blocks else []
        self._device = device
        self.name, self.shape = self._split.name, self._split.shape

    def refresh(self) -> None:
        """Score with the model's weights of now; call it after they changed."""
        self._split.refresh()

    def rehearse(self, selection: SelectionConfig) -> None:
        """Score a made-up row in the way that a run will, so that what can't be done is known before it trains.

        Raises:
            ModelError: this model can't be scored in that way.
        """
        ids = np.arange(6, dtype=np.int32) % self._split.vocab_size
        try:
            self.score([Row(ids, 3)], Probes(self.shape, seed=0, step=0, count=1), selection)
        except (RuntimeError, NotImplementedError) as error:
            raise ModelError(
                f"estimator {selection.estimator!r} can't be used with this model: {error}: use 'central', which needs "
                "forward passes alone"
            ) from error

    def weight(self) -> npt.NDArray[np.float32]:
        """What is perturbed, as of the last `refresh`, in the shape of a probe."""
        return np.array(self._split.tail.weight.cpu().numpy(), dtype=np.float32)

    def score(self, rows: Sequence[Row], probes: Probes | None, selection: SelectionConfig) -> Scores:
        """Loss and projected gradients, or a sketch, of each row. The model is left as it was.

        Rows are sorted by length and padded together, up to `score_tokens`, on a CPU up to 1,024; everything shares one
        trunk pass.

        Args:
            rows: At least one row.
            probes: Of shape `self.shape`; where the gradient of the last blocks is taken, only their seed and step are
                used. None where losses are all that is wanted.
            selection: How to score: `estimator`, `epsilon`, `sketch_size`, `score_tokens`, `soft_labels`.

        Returns:
            The same bits for the same rows, weights and number of threads; another `score_tokens` changes rounding.

        Raises:
            ModelError: with `exact`, a trained linear module that isn't called once with all rows.

        Cost: per row one trunk pass, and of the tail what the estimator says; the head at answer tokens alone.
        """
        batches = self.micro_batches([len(row.input_ids) for row in rows], selection)
        found = self.score_batches([[rows[position] for position in batch] for batch in batches], probes, selection)
        return assemble(batches, found)

    def micro_batches(self, num_tokens: Sequence[int], selection: SelectionConfig) -> list[npt.NDArray[np.int64]]:
        """Which rows are scored together: positions of each micro-batch, from the lengths of all rows."""
        on_cpu = torch.device(self._device).type == "cpu"
        budget = min(selection.score_tokens, CPU_TOKENS) if on_cpu else selection.score_tokens
        return by_token_budget(num_tokens, budget=budget)

    def score_batches(
        self, batches: Iterable[Sequence[Row]], probes: Probes | None, selection: SelectionConfig
    ) -> Iterator[dict[str, FloatArray]]:
        """What is found of micro-batches, one by one: float64 [m, ...] by the names of `Scores`' fields; else `score`.

        What is found of a micro-batch doesn't depend on the others.
        """
        placed = None if probes is None else PlacedProbes(probes, self._device)
        for rows in batches:
            with self._split.quiet():
                part = self._score(rows, placed, selection)
            yield {name: values.cpu().numpy().astype(np.float64) for name, values in part.items()}

    def _score(self, rows: Sequence[Row], probes: PlacedProbes | None, selection: SelectionConfig) -> Found:
        data, tail = collate(rows, device=self._device), self._split.tail
        answers = find_answers(data["labels"])
        where = answers.predicting.flatten().nonzero().squeeze(1)
        batch = MicroBatch(self._split.trunk(data["input_ids"], where=where), answers)
        if probes is None:
            found = {"loss": losses(tail, batch)}
        elif self._trained:
            found = self._sketch(batch, probes.probes, selection.sketch_size)
        else:
            found = ESTIMATORS[selection.estimator](tail, batch, probes, epsilon=selection.epsilon)
        if selection.soft_labels:
            found["prompt"] = _prompt_means(batch.penultimate.hidden, rows)
        return found

    def _sketch(self, batch: MicroBatch, probes: Probes, size: int) -> Found:
        loss, module_flows = flows(self._split.tail, batch, self._trained)
        width = sketch_width(size, (flow[0][1].shape[1] for flow in module_flows))
        sketches = torch.zeros(len(loss), width, device=self._device)
        first = 0
        for number, flow in enumerate(module_flows):
            delta, x = flow[0]
            sizes = (delta.shape[1], x.shape[1])
            add_gradients(sketches, flow, *signs(probes, number, sizes, self._device), first=first)
            first += prod(sizes)
        return {"loss": loss, "sketch": sketches}

    def _find_trained(self) -> list[nn.Module]:
        """The tail's copies of the linear modules whose weights are trained."""
        pairs = zip(self._split.layers, self._split.tail.layers, strict=True)
        trained = [
            twin.get_submodule(name)
            for layer, twin in pairs
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and module.weight.requires_grad
        ]
        if not trained:
            raise ModelError(
                f"no linear module of the last {len(self._split.layers)} layers is trained: add some of them to LoRA's "
                "target_modules, leave layers_to_transform unset, or use gradient_of 'v_projection'"
            )
        return trained


def assemble(batches: Sequence[npt.NDArray[np.int64]], found: Iterable[Mapping[str, FloatArray]]) -> Scores:
    """The scores of a large batch from what was found of its micro-batches, in their order.

    Args:
        batches: Positions of each micro-batch; together every row once.
        found: As `Scorer.score_batches` gives it.
    """
    b = sum(map(len, batches))
    arrays: dict[str, FloatArray] = {}
    for positions, part in zip(batches, found, strict=True):
        for name, values in part.items():
            arrays.setdefault(name, np.empty((b, *values.shape[1:])))[positions] = values
    finite = np.all([np.isfinite(array.reshape(b, -1)).all(axis=1) for array in arrays.values()], axis=0)
    for array in arrays.values():
        array[~finite] = np.nan
    return Scores(**arrays)


def _prompt_means(hidden: Tensor, rows: Sequence[Row]) -> Tensor:
    """Mean hidden state of each prompt, [m, d], from [m, T, d]; of a row without a prompt its first token."""
    lengths = torch.tensor([max(row.num_prompt_tokens, 1) for row in rows], device=hidden.device)
    inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return torch.einsum("mtd,mt->md", hidden.double(), inside.double()) / lengths[:, None]
