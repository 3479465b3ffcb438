"""Rows → projected gradients, by forward passes alone (zeroth-order estimates of the last layer's gradient)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selector_server.probes import Probes
from selector_server.split import Split
from shared.partition import by_token_budget
from shared.records import Row
from shared.rowloss import collate, find_answers, row_losses_at_answers
from shared.selection_config import SelectionConfig

# Logits are made for so many answer tokens at a time that they hold about this many values (64 MiB in float32).
_LOGITS_VALUES = 1 << 24


FloatArray = npt.NDArray[np.float64]


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

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Which rows could be scored, bool [b]."""
        return np.isfinite(self.loss)


class Scorer:
    """Scores rows with the weights that a model holds.

    Attributes:
        name: The perturbed parameter's name in the model.
        shape: Shape of what is perturbed of it, which the probes must have.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device | str,
        *,
        gradient_of: Literal["v_projection", "last_blocks"] = "v_projection",
        num_blocks: int = 1,
    ) -> None:
        """Take a model apart; see `Split` for which models and for the errors."""
        self._split = Split(model)
        self._device = device
        self._chunk_tokens = max(1, _LOGITS_VALUES // self._split.vocab_size)
        self.name, self.shape = self._split.name, self._split.shape

    def refresh(self) -> None:
        """Score with the model's weights of now; call it after they changed."""
        self._split.refresh()

    def weight(self) -> npt.NDArray[np.float32]:
        """What is perturbed, as of the last `refresh`, in the shape of a probe."""
        return np.array(self._split.tail.weight.cpu().numpy(), dtype=np.float32)

    def score(self, rows: Sequence[Row], probes: Probes | None, selection: SelectionConfig) -> Scores:
        """Loss and projected gradients, or a sketch, of each row. The model is left as it was.

        Rows are sorted by length and padded together; everything shares one trunk pass.

        Args:
            rows: At least one row.
            probes: Of shape `self.shape`; None where losses are all that is wanted.
            selection: How to score: `estimator`, `epsilon`, `score_tokens`, `soft_labels`.

        Returns:
            The same bits for the same rows, weights and number of threads; another `score_tokens` changes rounding.
        """
        if probes is None or selection.estimator != "central" or selection.soft_labels:
            raise NotImplementedError
        return self.projected_gradients(rows, probes, epsilon=selection.epsilon, score_tokens=selection.score_tokens)

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
        bad = ~(np.isfinite(loss) & np.isfinite(c).all(axis=1))
        loss[bad], c[bad] = np.nan, np.nan
        return Scores(loss, c)

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
