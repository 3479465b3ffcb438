"""What every way of picking returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Picks:
    """The picked rows, all arrays [r] in pick order.

    Attributes:
        index: Row numbers in the large batch, int64.
        gain: How much each pick raised the objective when it was picked, float64.
        weight: Loss weights in rows represented, float64; they sum to b.
    """

    index: npt.NDArray[np.int64]
    gain: FloatArray
    weight: FloatArray
