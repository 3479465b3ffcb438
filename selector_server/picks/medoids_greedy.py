"""The greedy choice itself: pick after pick, whichever row raises what the picks cover the most.

It reads distances through a function, so that it works alike on a matrix that is there and on rows that are found when
they are asked for. It needs nothing of them but symmetry: minus a similarity is a distance too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from selector_server.picks.record import FloatArray, IntArray

# Gains that differ by less than this fraction of the largest are equal: in one dimension exact medians tie, and
# rounding, which depends on the order of a sum, must not decide between them.
TIE_TOLERANCE = 1e-9

# A gain is the last sum of its terms less what picks have taken since, and rounds like that sum. Below this fraction of
# it the gain is summed anew, which keeps its relative error orders of magnitude below TIE_TOLERANCE.
_STALE_BELOW = 1 / 64

_BLOCK_VALUES = 1 << 19

# Rows' numbers, int64 [k] → their distances to all rows, float64 [k, m].
Distances = Callable[[Tensor], Tensor]


def greedy(distances: Distances, *, reach: Tensor, budget: int) -> tuple[IntArray, FloatArray]:
    """Pick rows one by one, each for the largest gain: Σ_i max(0, cover_i - distance_is).

    A row's cover is its distance to the nearest pick. Ties go to the lowest row; gains within `TIE_TOLERANCE` of the
    largest are ties.

    Args:
        distances: Symmetric distances between m rows.
        reach: What the cover of each row counts as while there is no pick, float64 [m], on the distances' device.
        budget: Rows to pick, 1 <= budget <= m.

    Returns:
        Row numbers in pick order, and their gains.

    Cost: O(m) for each row whose cover a pick changes. A row's cover changes about log(budget) times where picks spread
        over the rows, which makes O(m² · log budget); O(m² · budget) at worst.
    """
    cover = reach.clone()
    gain = _gains(distances, cover, torch.arange(len(cover), device=cover.device))
    summed = gain.clone()
    index, gains = np.empty(budget, dtype=np.int64), np.empty(budget)
    for i in range(budget):
        best = torch.nonzero(gain >= gain.max() * (1.0 - TIE_TOLERANCE))[0]
        index[i], gains[i] = best.item(), gain[best].item()
        gain[best] = -torch.inf
        distance = distances(best)[0]
        closer = torch.nonzero(distance < cover).flatten()
        if 2 * len(closer) < len(cover):
            gain -= _lost(distances, closer, cover[closer], distance[closer], width=len(cover))
            stale = gain < summed * _STALE_BELOW
        else:
            stale = torch.ones_like(gain, dtype=torch.bool)
        cover = torch.minimum(cover, distance)
        again = torch.nonzero(stale & (gain > -torch.inf)).flatten()
        gain[again] = summed[again] = _gains(distances, cover, again)
    return index, gains


def _gains(distances: Distances, cover: Tensor, rows: Tensor) -> Tensor:
    """What picking each of `rows` would gain, [k]."""
    size = _block_rows(len(cover))
    # Into memory that is there: small results that outlive a block would keep the allocator from reusing its room.
    gains = cover.new_empty(len(rows))
    for block, part in zip(rows.split(size), gains.split(size), strict=True):
        torch.sum(torch.clamp_min(cover - distances(block), 0.0), dim=1, out=part)
    return gains


def _lost(distances: Distances, rows: Tensor, before: Tensor, after: Tensor, *, width: int) -> Tensor:
    """By how much every row's gain falls when the cover of `rows` falls from `before` to `after`, [width]."""
    lost = before.new_zeros(width)
    size = _block_rows(width)
    for block, high, low in zip(rows.split(size), before.split(size), after.split(size), strict=True):
        high, low = high[:, None], low[:, None]
        lost += (high - torch.clamp(distances(block), low, high)).sum(dim=0)
    return lost


def _block_rows(width: int) -> int:
    """Rows of a block whose [rows, width] temporaries stay small."""
    return max(1, _BLOCK_VALUES // width)
