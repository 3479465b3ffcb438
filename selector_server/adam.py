"""What Adam would make of gradient estimates, with its moments held in probe coordinates.

CoLM compares rows by the update that Adam would take on each alone: the estimate joins the run's running moments and
is divided by the root of the second. All steps of such a run share their probes z_j, so the moments are never as large
as the weight: the first is Σ_j a_j z_j, the second at coordinate p is z_pᵀ A z_p, with z_p the n probes' numbers there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import WireError
from shared.selection_config import SelectionConfig

FloatArray = npt.NDArray[np.float64]

# A second moment's smallest eigenvalue may be this far below zero, relative to the largest, by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class AdamState:
    """The moments of a run's estimates, before bias correction.

    Attributes:
        steps: How many updates they have seen.
        first: The first moment's coordinates a, float64 [n].
        second: The second moment's matrix A, symmetric float64 [n, n].
    """

    steps: int
    first: FloatArray
    second: FloatArray

    @classmethod
    def initial(cls, num_probes: int) -> AdamState:
        """The state before a run's first step."""
        return cls(0, np.zeros(num_probes), np.zeros((num_probes, num_probes)))

    def updated(self, c: FloatArray, selection: SelectionConfig) -> AdamState:
        """The state after a step: the mean over rows of what each alone would make of the moments.

        Args:
            c: Projected gradients of the rows that count, [b, n]: CoLM's are those of large sources. With no rows there
                is nothing to learn and the state stays as it is.
            selection: adam_beta1 and adam_beta2 are used.

        Source: CoLM (arXiv 2407.19580) §4.2; as in its code, the second moment takes the mean of the rows' squares, not
            the square of their mean.
        """
        if not len(c):
            return self
        beta1, beta2 = selection.adam_beta1, selection.adam_beta2
        estimates = c / len(self.first)
        squares = estimates.T @ estimates / len(c)
        return AdamState(
            self.steps + 1,
            beta1 * self.first + (1.0 - beta1) * estimates.mean(axis=0),
            # A product's two halves may differ in their last bits, and only one of them is stored.
            beta2 * self.second + (1.0 - beta2) * (squares + squares.T) / 2.0,
        )

    def normalised(self, c: FloatArray, z: npt.NDArray[np.floating], selection: SelectionConfig) -> FloatArray:
        """The rows' normalised estimates at some coordinates: m̂_i / (√v̂_i + ε), moments of this step included.

        Args:
            c: Projected gradients, [b, n].
            z: The probes at these coordinates, [n, w].
            selection: adam_beta1, adam_beta2 and adam_epsilon are used.

        Returns:
            float64 [b, w].

        Source: CoLM (arXiv 2407.19580) §4.2; Kingma and Ba (2015), Algorithm 1, for the bias correction.
        """
        beta1, beta2, step = selection.adam_beta1, selection.adam_beta2, self.steps + 1
        estimates = c / len(self.first)
        moment = (beta1 * self.first + (1.0 - beta1) * estimates) / (1.0 - beta1**step)
        # Zero in truth where a coordinate's history is all zeros, less than that by rounding.
        history = np.maximum((z * (self.second @ z)).sum(axis=0), 0.0)
        square = (beta2 * history + (1.0 - beta2) * (estimates @ z) ** 2) / (1.0 - beta2**step)
        return np.asarray(moment @ z / (np.sqrt(square) + selection.adam_epsilon), dtype=np.float64)

    def to_bytes(self) -> bytes:
        """The state bit for bit: steps, first, and the upper triangle of second, as little-endian float64."""
        triangle = self.second[np.triu_indices(len(self.first))]
        return np.concatenate([[float(self.steps)], self.first, triangle]).astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, *, num_probes: int) -> AdamState:
        """The state that `to_bytes` wrote.

        Raises:
            WireError: not the state of so many probes, or not one that any estimates could have made.
        """
        expected = 8 * (1 + num_probes + num_probes * (num_probes + 1) // 2)
        if len(data) != expected:
            raise WireError(
                f"an Adam history of {len(data)} bytes isn't one of {num_probes} probes, which takes {expected}: "
                "resume with the num_probes that the run was started with"
            )
        numbers = np.frombuffer(data, dtype="<f8").astype(np.float64)
        steps, first, triangle = numbers[0], numbers[1 : 1 + num_probes], numbers[1 + num_probes :]
        second = np.zeros((num_probes, num_probes))
        second[np.triu_indices(num_probes)] = triangle
        second = np.triu(second) + np.triu(second, 1).T
        if not np.isfinite(numbers).all() or steps < 0 or steps != np.floor(steps):
            raise WireError(
                f"an Adam history says {steps} steps and holds numbers from {numbers.min()} to {numbers.max()}: it is "
                "damaged; resume from another checkpoint"
            )
        eigenvalues = np.linalg.eigvalsh(second)
        if eigenvalues[0] < -_ROUNDING * abs(eigenvalues[-1]) or (steps == 0 and numbers.any()):
            raise WireError(
                f"an Adam history of {steps:.0f} steps holds a second moment with eigenvalues from {eigenvalues[0]} to "
                f"{eigenvalues[-1]}, which no gradients make: it is damaged; resume from another checkpoint"
            )
        return cls(int(steps), first, second)
