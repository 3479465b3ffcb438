"""How far apart rows are: all pairs at once, or a few rows against others, where all pairs are too many to hold.

Wide features are compared in float32. A distance of many terms then rounds by some 1e-7 of itself, less than the
estimates behind it are off by, and a gain of many distances by less still. Narrow ones are compared in float64,
where exact ties between rows are possible and cost little to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from selector_server.picks.record import FloatArray

Metric = Literal["l1", "l2"]

# Features of more columns than this are wide. They are compared so many columns at a time, which a processor's cache
# holds for thousands of rows, and the parts are added in float64.
_COLUMNS = 256

_POWERS = {"l1": 1, "l2": 2}
_BLOCK_ROWS = 256


@dataclass(frozen=True, eq=False)
class Points:
    """Rows made ready to be compared.

    Attributes:
        values: [m, f] on the device that compares them: the features, or, where they are wide, what is left of them
            less the columns' means, divided by `scale`, in float32.
        scale: What distances between `values` are multiplied by.
        power: 1 or 2.
    """

    values: Tensor
    scale: float
    power: int

    def at(self, rows: Tensor) -> Points:
        """Some of the rows, by number, int64 [k]."""
        return replace(self, values=self.values[rows])


def points(features: FloatArray, metric: Metric, *, device: torch.device | str = "cpu") -> Points:
    """Features [m, f], finite, as points to compare."""
    values = torch.as_tensor(features, dtype=torch.float64).to(device)
    scale = 1.0
    if values.shape[1] > _COLUMNS:
        values = values - values.mean(dim=0)
        # A power of two divides without rounding.
        scale = float(np.exp2(np.ceil(np.log2(values.abs().max().item() or 1.0))))
        values = (values / scale).to(torch.float32)
    return Points(values, scale, _POWERS[metric])


def pairwise_distances(features: FloatArray, metric: Metric, *, device: torch.device | str = "cpu") -> Tensor:
    """Distances between all rows, float64 [m, m] on the device, exactly symmetric.

    Args:
        features: [m, f], finite.
        metric: `l1` or `l2`. Neither is found from inner products, which cancel where rows are near each other.
        device: Where to compute.

    Cost: O(m² · f) time; half of the pairs are computed, which on a CPU also happens at several times `torch.cdist`'s
        pace (1,024 rows of 2,560 columns, one thread: 0.2 s against 1.4 s). Memory of at most 1.5 · m² float64.
    """
    return all_distances(points(features, metric, device=device))


def all_distances(rows: Points) -> Tensor:
    """As `pairwise_distances`, of points."""
    count = len(rows.values)
    half = _total((torch.nn.functional.pdist(part, p=float(rows.power)) for part in _columns(rows)), rows)
    square = half.new_zeros(count, count)
    for i, distances in enumerate(half.split(list(range(count - 1, 0, -1)))):
        square[i, i + 1 :] = distances
    for start in range(0, count, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, count)
        square[start:stop, :stop] = torch.maximum(square[start:stop, :stop], square[:stop, start:stop].T)
    return square


def distances_between(some: Points, others: Points) -> Tensor:
    """Distances of some rows to others of the same points, float64 [k, m]."""
    if some.values.shape[1] == 1:
        return (some.values - others.values.T).abs()
    parts = (
        torch.cdist(a, b, p=float(some.power), compute_mode="donot_use_mm_for_euclid_dist")
        for a, b in zip(_columns(some), _columns(others), strict=True)
    )
    return _total(parts, some)


def _columns(rows: Points) -> Iterator[Tensor]:
    """The values a few columns at a time."""
    return (part.contiguous() for part in rows.values.split(_COLUMNS, dim=1))


def _total(parts: Iterable[Tensor], rows: Points) -> Tensor:
    """The distances, from those that each part of the columns makes."""
    total = torch.zeros((), dtype=torch.float64, device=rows.values.device)
    for part in parts:
        part = part.to(torch.float64)
        total = total + (part if rows.power == 1 else part.square_())
    return (total if rows.power == 1 else total.sqrt_()).mul_(rows.scale)
