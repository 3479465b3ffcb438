"""Facility location: the rows that best stand in for the whole large batch. Pure array functions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from selector_server.picks.record import FloatArray, IntArray, Picks
from shared.errors import SelectionError

# Gains that differ by less than this fraction of the largest are equal: in one dimension exact medians tie, and
# rounding, which depends on the order of a sum, must not decide between them.
TIE_TOLERANCE = 1e-9

_BLOCK_VALUES = 1 << 22


def facility_location(similarity: npt.NDArray[np.floating], *, budget: int) -> Picks:
    """Greedily pick the rows that best stand in for the whole large batch.

    The objective is Σ_i max_{s picked} similarity[i, s], zero for no picks. Ties go to the lowest row; gains within
    `TIE_TOLERANCE` of the largest are ties.

    Args:
        similarity: Pairwise similarity, symmetric [b, b], each >= 0.
        budget: Rows to pick, 1 <= budget <= b.

    Returns:
        The picks, each weighing b / budget: the paper leaves them unweighted (§4.3).

    Raises:
        SelectionError: budget outside [1, b]; similarity not square, not symmetric, negative or not finite.

    Cost: O(b² · budget) time at worst. A gain is summed anew only when the last pick changed it, which in one dimension
        brings the time down to about O(b² · log budget).
    Source: paper §4.1, Eq. (6).
    """
    similarity = _checked(np.asarray(similarity, dtype=np.float64), budget)
    num_rows = len(similarity)
    covered, left = np.zeros(num_rows), np.ones(num_rows, dtype=bool)
    gain = _gains(similarity, covered, np.arange(num_rows))
    index, gains = np.empty(budget, dtype=np.int64), np.empty(budget)
    for i in range(budget):
        best = int(np.argmax(gain >= gain.max() * (1.0 - TIE_TOLERANCE)))
        index[i], gains[i] = best, gain[best]
        gain[best], left[best] = -np.inf, False
        closer = np.flatnonzero(similarity[best] > covered)
        stale = np.flatnonzero(_can_raise(similarity, covered, closer) & left)
        covered[closer] = similarity[best, closer]
        gain[stale] = _gains(similarity, covered, stale)
    return Picks(index, gains, np.full(budget, num_rows / budget))


def _gains(similarity: FloatArray, covered: FloatArray, rows: IntArray) -> FloatArray:
    """How much picking each of `rows` would raise the objective, where row i has `covered[i]` already."""
    blocks = [np.maximum(similarity[block] - covered, 0.0).sum(axis=1) for block in _blocks(rows, len(covered))]
    return np.concatenate(blocks) if blocks else np.empty(0)


def _can_raise(similarity: FloatArray, covered: FloatArray, rows: IntArray) -> npt.NDArray[np.bool_]:
    """Which picks would raise what any of `rows` has: bool [b]."""
    raises = np.zeros(len(covered), dtype=bool)
    for block in _blocks(rows, len(covered)):
        raises |= (similarity[block] > covered[block, None]).any(axis=0)
    return raises


def _blocks(rows: IntArray, width: int) -> Iterator[IntArray]:
    """`rows` in pieces, so that a [piece, width] temporary stays small."""
    size = max(1, _BLOCK_VALUES // width)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _checked(similarity: FloatArray, budget: int) -> FloatArray:
    shape = similarity.shape
    if len(shape) != 2 or shape[0] != shape[1]:
        raise SelectionError(f"similarity has shape {list(shape)}, not [b, b]: compare every row with every row")
    if not 1 <= budget <= shape[0]:
        raise SelectionError(f"can't pick {budget} of {shape[0]} rows: give a budget from 1 to {shape[0]}")
    if not np.isfinite(similarity).all() or similarity.min() < 0:
        raise SelectionError(
            f"similarities reach from {similarity.min()} to {similarity.max()}: they must be finite and not negative, "
            "such as max(distance) - distance"
        )
    if not np.array_equal(similarity, similarity.T):
        raise SelectionError("similarity isn't symmetric: compare rows with a distance")
    return similarity
