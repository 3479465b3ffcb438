"""What every way of picking returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        weight: Loss weights in rows represented, float64; as a rule they sum to b, if only on average.
    """

    index: npt.NDArray[np.int64]
    gain: FloatArray
    weight: FloatArray


@dataclass(frozen=True, eq=False)
class Features:
    """How alike rows' gradients are, and how large.

    Attributes:
        values: float64 [m, f]; rows are as far apart as their gradients, in `metric`.
        metric: `l1` for zeroth-order estimates (paper), `l2` for sketches.
        norm: Estimated norms of the rows' gradients, float64 [m], each >= 0.
    """

    values: FloatArray
    metric: Literal["l1", "l2"]
    norm: FloatArray
