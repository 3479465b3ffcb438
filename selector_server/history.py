"""What a run's selections remember from step to step: Adam's moments, or what earlier picks left unmatched.

A history is a pure function of the steps before, written to the journal beside each selection, so that resuming and
rewinding restore it by reading it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selector_server.adam import AdamState
from selector_server.picks.record import Features, FloatArray, Picks
from shared.errors import SelectionError, WireError
from shared.selection_config import SelectionConfig


@dataclass(frozen=True, eq=False)
class History:
    """The history before a step.

    Attributes:
        selection: The run's.
        adam: Moments of the estimates, where features are normalised with them.
        left_over: Sum over the earlier steps of what their large batches' features had and their weighted picks had
            not, decayed, float64 [f]; empty before the first step, None without feedback.
    """

    selection: SelectionConfig
    adam: AdamState | None
    left_over: FloatArray | None

    @classmethod
    def read(cls, stored: bytes, selection: SelectionConfig) -> History:
        """The history that `to_bytes` wrote after the step before; from nothing, that of a first step.

        Raises:
            WireError: not a history of such a run.
        """
        adam = left_over = None
        if selection.adam_features:
            n = selection.num_probes
            adam = AdamState.from_bytes(stored, num_probes=n) if stored else AdamState.initial(n)
        elif selection.feeds_back:
            left_over = _from_float32(stored)
        return cls(selection, adam, left_over)

    def target(self, features: Features) -> FloatArray:
        """What the weighted features of this step's picks should add up to, [f].

        Error feedback, as in compressed communication: what was left out comes back, so that over many steps the picks
        lean nowhere.

        Raises:
            SelectionError: the history is of features of another width.

        Source: Seide et al. (2014), 1-bit SGD; Karimireddy et al. (2019) for why it converges.
        """
        total: FloatArray = features.values.sum(axis=0)
        if self.left_over is None or not self.left_over.size:
            return total
        if len(self.left_over) != len(total):
            raise SelectionError(
                f"the run's history is of features of {len(self.left_over)} values, this step's have {len(total)}: "
                "the model's tail has changed; start the run over"
            )
        return total + self.selection.feedback * self.left_over

    def after(self, features: Features, picks: Picks, *, c: FloatArray | None, counts: npt.NDArray[np.bool_]) -> bytes:
        """The history after this step, as bytes.

        Args:
            features: Of the rows that could be picked.
            picks: Of this step.
            c: Their projected gradients, [m, n], where there are any.
            counts: Rows that the moments learn from, bool [m].
        """
        if self.adam is not None and c is not None:
            return self.adam.updated(c[counts], self.selection).to_bytes()
        if self.left_over is None:
            return b""
        missed = features.values.sum(axis=0) - picks.weight @ features.values[picks.index]
        before = self.selection.feedback_decay * self.left_over if self.left_over.size else 0.0
        return np.asarray(before + missed, dtype="<f4").tobytes()


def _from_float32(stored: bytes) -> FloatArray:
    values = np.frombuffer(stored, dtype="<f4").astype(np.float64) if len(stored) % 4 == 0 else np.array([np.nan])
    if not np.isfinite(values).all():
        raise WireError(
            f"a feedback history of {len(stored)} bytes isn't one of finite float32 values: it is damaged; resume from "
            "another checkpoint"
        )
    return values
