"""Rows → projected gradients, by forward passes alone (zeroth-order estimates of the last layer's gradient)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selector_server.probes import Probes
from selector_server.split import Split
from shared.errors import SelectionError
from shared.partition import by_token_budget
from shared.records import Row
from shared.rowloss import collate, find_answers, row_losses_at_answers

# Logits are made for so many answer tokens at a time that they hold about this many values (64 MiB in float32).
_LOGITS_VALUES = 1 << 24


@dataclass(frozen=True, eq=False)
class Scores:
    """What scoring found, rows in the caller's order.

    Attributes:
        c: Projected gradients, float64 [b, n].
        loss: Losses, the mean over all perturbed ones, float64 [b].
    """

    c: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]


class Scorer:
    """Scores rows with the weights that a model holds.

    Attributes:
        name: The perturbed parameter's name in the model.
        shape: Its shape, which the probes must have.
    """

    def __init__(self, model: Any, device: torch.device | str) -> None:
        """Take a model apart; see `Split` for which models and for the errors."""
        self._split = Split(model)
        self._device = device
        self._chunk_tokens = max(1, _LOGITS_VALUES // self._split.vocab_size)
        self.name, self.shape = self._split.name, self._split.shape

    def refresh(self) -> None:
        """Score with the model's weights of now; call it after they changed."""
        self._split.refresh()

    def projected_gradients(self, rows: Sequence[Row], probes: Probes, *, epsilon: float, score_tokens: int) -> Scores:
        """The central difference of each row's loss along each probe.

        c_ij = (L_i(θ + ε z_j) - L_i(θ - ε z_j)) / 2ε, where only the last layer's V projection is perturbed. Rows are
        sorted by length and padded together; all probes share one trunk pass. The model is left as it was.

        Args:
            rows: At least one row.
            probes: Of shape `self.shape`.
            epsilon: Scale ε of the perturbation.
            score_tokens: Padded tokens of one forward; a longer row is scored alone.

        Returns:
            The same bits for the same rows, weights and number of threads; another `score_tokens` changes rounding.

        Raises:
            SelectionError: a row whose perturbed losses aren't finite.

        Cost: per row one trunk pass and 2n passes of the tail, the head at answer tokens alone.
        Source: paper §4.2, Eq. (7) and (8), Algorithm 1.
        """
        c, loss = np.empty((len(rows), probes.count)), np.empty(len(rows))
        # The last offset is kept: with one probe, the usual case, it is made once for all micro-batches.
        offset = lru_cache(maxsize=1)(lambda j: epsilon * torch.from_numpy(probes.draw(j)).to(self._device))
        with self._split.quiet():
            for positions in by_token_budget([len(row.input_ids) for row in rows], budget=score_tokens):
                micro_batch = [rows[position] for position in positions]
                plus, minus = self._perturbed_losses(micro_batch, offset, probes.count)
                c[positions] = (plus - minus) / (2 * epsilon)
                loss[positions] = (plus + minus).mean(axis=1) / 2
        _require_finite(loss)
        return Scores(c, loss)

    def _perturbed_losses(
        self, rows: Sequence[Row], offset: Callable[[int], Tensor], count: int
    ) -> npt.NDArray[np.float64]:
        """Losses of one micro-batch with each offset added to the weight, and with it taken away, float64 [2, m, n]."""
        batch, tail = collate(rows, device=self._device), self._split.tail
        answers, penultimate = find_answers(batch["labels"]), self._split.trunk(batch["input_ids"])
        losses = torch.empty(2, len(rows), count, dtype=torch.float64, device=self._device)
        for j in range(count):
            for side, weight in enumerate((tail.weight + offset(j), tail.weight - offset(j))):
                hidden = tail.hidden(penultimate, answers.predicting, weight)
                losses[side, :, j] = row_losses_at_answers(
                    hidden, tail.logits, answers, chunk_tokens=self._chunk_tokens
                )
        return np.asarray(losses.cpu().numpy(), dtype=np.float64)


def _require_finite(loss: npt.NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(loss))
    if bad.size:
        shown = ", ".join(f"{row} ({loss[row]})" for row in bad[:8]) + (", …" if bad.size > 8 else "")
        raise SelectionError(
            f"{bad.size} of {len(loss)} rows have a loss that isn't finite, at positions {shown}: the weights have "
            "diverged or overflow their dtype; go back to a checkpoint, lower the learning rate, or use bfloat16"
        )
