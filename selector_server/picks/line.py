"""Greedy facility location of rows on a line: the picks of the dense greedy, without a distance between any two rows.

On a line a pick matters only to the rows between its two picked neighbours: a gap. How a gap will be divided, pick by
pick, depends on nothing outside it; only whose turn it is does. So gaps are divided ahead of their turn, all of one
generation together, and the picks are put in order at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selector_server.picks.medoids_greedy import TIE_TOLERANCE
from selector_server.picks.record import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class _Gaps:
    """The gaps of one generation, none of them empty; arrays with one entry for each.

    Attributes:
        start: Place on the line of the gap's first row, int64.
        stop: The place after its last row, int64.
        left: Where the pick before it is, float64; -inf where there is none.
        right: Where the pick after it is, float64; inf where there is none.
        slot: Where in the tree the gap's own pick belongs, int64.
    """

    start: IntArray
    stop: IntArray
    left: FloatArray
    right: FloatArray
    slot: IntArray


@dataclass(frozen=True, eq=False)
class _Tree:
    """Every pick that may get its turn: a gap's pick is followed by those of its two halves.

    Attributes:
        gain: What each row gains when its turn comes, float64 [m]; 0 for rows that aren't in the tree.
        follower: Rows whose gaps row i leaves behind, at 2i and 2i + 1, -1 for none; the first pick of all is the last
            entry; int64 [2m + 1].
    """

    gain: FloatArray
    follower: IntArray


def line_greedy(values: FloatArray, *, budget: int) -> tuple[IntArray, FloatArray]:
    """Pick rows one by one, each for the largest gain: Σ_i max(0, cover_i - |x_i - x_s|).

    A row's cover is its distance to the nearest pick, and while there is none the largest distance of all. Ties go to
    the lowest row; gains within `TIE_TOLERANCE` of the largest are ties.

    Args:
        values: Where the rows are, float64 [m], finite.
        budget: Rows to pick, 1 <= budget <= m.

    Returns:
        Row numbers in pick order, and their gains.

    Cost: O(m · log m) time for each generation of gaps, of which there are about log2(budget), and more where rows thin
        out; then O(m · budget) comparisons, which put the picks in order. O(m) memory.
    """
    tree = _divide(values, budget)
    index, gains = np.empty(budget, dtype=np.int64), np.empty(budget)
    first = tree.follower[-1]
    turn = np.zeros(len(values))
    turn[first] = tree.gain[first]
    for i in range(budget):
        best = int(np.argmax(turn >= turn.max() * (1.0 - TIE_TOLERANCE)))
        index[i], gains[i] = best, turn[best]
        turn[best] = -np.inf
        for row in tree.follower[2 * best : 2 * best + 2]:
            if row >= 0:
                turn[row] = tree.gain[row]
    return index, gains


def _divide(values: FloatArray, budget: int) -> _Tree:
    """Divide the line at its best row, the two gaps at theirs, and so on while that may matter to the picks."""
    count = len(values)
    order = np.argsort(values, kind="stable")
    x, place = values[order], np.argsort(order)
    tree = _Tree(gain=np.zeros(count), follower=np.full(2 * count + 1, -1))
    gaps = _Gaps(np.array([0]), np.array([count]), np.array([-np.inf]), np.array([np.inf]), np.array([2 * count]))
    found = np.empty(0)
    while len(gaps.start):
        gap, at = _rows_of(gaps)
        gain = _gains(x[at], gap, gaps) if len(found) else _first_gains(x)
        entry = np.searchsorted(gap, np.arange(len(gaps.start)))
        largest = np.maximum.reduceat(gain, entry)
        tied = gain >= largest[gap] * (1.0 - TIE_TOLERANCE)
        row = np.minimum.reduceat(np.where(tied, order[at], count), entry)
        tree.gain[row], tree.follower[gaps.slot] = largest, row
        # A gap's rows gain less than the gap's pick did: those below the budget's last pick never get a turn.
        found = np.concatenate([found, largest])
        least = np.partition(found, -budget)[-budget] if len(found) >= budget else 0.0
        matters = (largest > 0) & (largest >= least * (1.0 - 2 * TIE_TOLERANCE))
        gaps = _halves(gaps, row, place[row], x, matters)
    return tree


def _rows_of(gaps: _Gaps) -> tuple[IntArray, IntArray]:
    """Of every row that is in a gap, gap by gap: the gap's number and the row's place on the line."""
    length = gaps.stop - gaps.start
    gap = np.repeat(np.arange(len(length)), length)
    return gap, np.arange(len(gap)) + (gaps.start + length - np.cumsum(length))[gap]


def _halves(gaps: _Gaps, row: IntArray, place: IntArray, x: FloatArray, matters: npt.NDArray[np.bool_]) -> _Gaps:
    """What the gaps that matter leave before and after their picks."""
    start, stop = np.concatenate([gaps.start, place + 1]), np.concatenate([place, gaps.stop])
    keep = np.tile(matters, 2) & (start < stop)
    return _Gaps(
        start=start[keep],
        stop=stop[keep],
        left=np.concatenate([gaps.left, x[place]])[keep],
        right=np.concatenate([x[place], gaps.right])[keep],
        slot=np.concatenate([2 * row, 2 * row + 1])[keep],
    )


def _first_gains(x: FloatArray) -> FloatArray:
    """What each row of the whole line would gain as the first pick, [m]; x ascends."""
    count, y = len(x), x - x[0]
    rank, up_to = np.arange(1, count + 1), np.cumsum(y)
    gains: FloatArray = count * y[-1] - (y * (2 * rank - count) + up_to[-1] - 2 * up_to)
    return gains


def _gains(x: FloatArray, gap: IntArray, gaps: _Gaps) -> FloatArray:
    """What each row would gain as the next pick of its gap, which has a pick on one side at least, [n].

    A row stands nearer to the pick on its left or to the one on its right, and its cover is that distance. A candidate
    takes over every row between itself and the gap's middle, for as much as its own cover; and rows on its two sides
    that are farther from the picks than half of its own distance to them, each for twice the row's distance less the
    candidate's.

    Args:
        x: Where the rows are, gap by gap, ascending in each.
        gap: The number of each row's gap.
        gaps: The gaps.
    """
    left, right = x - gaps.left[gap], gaps.right[gap] - x
    # In units of the gap's largest cover, so that a wide gap's sums don't round away a narrow one's; powers of two
    # divide without rounding. Any distance past 3 units is as good as 3: no row is half as far from a pick.
    entry = np.searchsorted(gap, np.arange(len(gaps.start)))
    unit = np.frexp(np.maximum.reduceat(np.minimum(left, right), entry))[1][gap]
    left, right = np.minimum(np.ldexp(left, -unit), 3.0), np.minimum(np.ldexp(right, -unit), 3.0)
    is_left, cover = left <= right, np.minimum(left, right)
    middle = (entry + np.add.reduceat(is_left, entry, dtype=np.int64))[gap]
    key = 4.0 * gap + np.where(is_left, left, 3.0 - right)
    # Rows [low, stop_left) and [start_right, high) are reached, beside those up to the middle.
    row = np.arange(len(x))
    stop_left, start_right = np.minimum(row, middle), np.maximum(row + 1, middle)
    low = np.minimum(np.searchsorted(key, 4.0 * gap + left / 2, side="right"), stop_left)
    high = np.maximum(np.searchsorted(key, 4.0 * gap + (3.0 - right / 2), side="left"), start_right)
    total = np.concatenate([[0.0], np.cumsum(cover)])
    gain = 2 * (total[stop_left] - total[low]) - left * (stop_left - low)
    gain += cover * (start_right - stop_left)
    gain += 2 * (total[high] - total[start_right]) - right * (high - start_right)
    gains: FloatArray = np.ldexp(gain, unit)
    return gains
