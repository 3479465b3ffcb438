"""Facility location: the rows that best stand in for the whole large batch. Pure array functions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from selector_server.picks.distances import Metric, Points, all_distances, distances_between, points
from selector_server.picks.line import line_greedy
from selector_server.picks.medoids_greedy import TIE_TOLERANCE, Distances, greedy
from selector_server.picks.record import FloatArray, IntArray, Picks
from shared.errors import SelectionError

__all__ = ["TIE_TOLERANCE", "facility_location", "medoids", "represented"]

# The largest matrix of distances that is held: 16,384 rows.
_MATRIX_BYTES = 1 << 31
_BLOCK_VALUES = 1 << 20


def medoids(features: FloatArray, *, budget: int, metric: Metric, device: torch.device | str = "cpu") -> Picks:
    """Greedily pick the rows whose features lie nearest to those of all rows.

    The objective is Σ_i max_{s picked} (C - D_is), where D are the distances and C is the largest of them; it is zero
    for no picks. Ties go to the lowest row; gains within `TIE_TOLERANCE` of the largest are ties.

    Args:
        features: float64 [m, f], finite, f >= 1.
        budget: Rows to pick, 1 <= budget <= m.
        metric: How distances are measured, `l1` (paper) or `l2`.
        device: Where distances are computed and compared; rows on a line (f = 1) are picked on the CPU.

    Returns:
        The picks, each weighing m / budget: the paper leaves them unweighted (§4.3).

    Raises:
        SelectionError: budget outside [1, m]; features that aren't finite or have no column.

    Cost: for f = 1, O(m) memory and about O(m · (log² m + budget)) time, see `line`. Else O(m² · f) time for distances,
        and for choosing what `greedy` says. The distances are held while they take at most 2 GiB (16,384 rows), 3 GiB
        with what making them takes. Beyond that they are computed whenever they are asked for, about ten times each,
        in blocks of 8 MiB: O(m · f) memory. The picks are the same either way, but for wide features' rounding.
    Source: paper §4.1, Eq. (6).
    """
    features = np.asarray(features, dtype=np.float64)
    _check_budget(budget, len(features))
    if features.ndim != 2 or not features.shape[1] or not np.isfinite(features).all():
        raise SelectionError(
            f"features of shape {list(features.shape)} can't be compared: they must be [m, f] with f >= 1, and finite; "
            "leave out rows whose loss isn't"
        )
    if features.shape[1] == 1:
        index, gain = line_greedy(features[:, 0], budget=budget)
    else:
        distances, largest = _distances(points(features, metric, device=device))
        index, gain = greedy(distances, reach=largest.expand(len(features)), budget=budget)
    return _unweighted(index, gain, len(features))


def facility_location(similarity: npt.NDArray[np.floating], *, budget: int) -> Picks:
    """Greedily pick the rows that best stand in for the whole large batch, whatever says how similar rows are.

    The objective is Σ_i max_{s picked} similarity[i, s], zero for no picks. Ties go to the lowest row; gains within
    `TIE_TOLERANCE` of the largest are ties.

    Args:
        similarity: Pairwise similarity, symmetric [b, b], each >= 0.
        budget: Rows to pick, 1 <= budget <= b.

    Returns:
        The picks, each weighing b / budget: the paper leaves them unweighted (§4.3).

    Raises:
        SelectionError: budget outside [1, b]; similarity not square, not symmetric, negative or not finite.

    Cost: as `greedy`; O(b²) memory.
    Source: paper §4.1, Eq. (6).
    """
    similarity = _checked(np.asarray(similarity, dtype=np.float64), budget)
    distances = torch.from_numpy(-similarity)
    index, gain = greedy(distances.__getitem__, reach=distances.new_zeros(len(similarity)), budget=budget)
    return _unweighted(index, gain, len(similarity))


def represented(features: FloatArray, index: IntArray, metric: Metric) -> tuple[IntArray, FloatArray]:
    """Which pick stands for each row, and for how many rows each pick stands.

    Args:
        features: float64 [m, f], finite.
        index: The picks' row numbers, [r].
        metric: How distances are measured, `l1` or `l2`.

    Returns:
        Of each row the number, from 0, of its nearest pick, int64 [m]: the earliest of those that are as near within
        `TIE_TOLERANCE`. Of each pick its rows, float64 [r]; they sum to m, and are the weights γ.

    Cost: O(m · r · f) time; 8 MiB of distances at a time.
    Source: paper §4.1, the weights γ.
    """
    rows = points(features, metric)
    picks = rows.at(torch.from_numpy(index))
    owner = np.empty(len(features), dtype=np.int64)
    for block in torch.arange(len(features)).split(_block_rows(len(index))):
        distance = distances_between(rows.at(block), picks).numpy()
        nearest = distance.min(axis=1, keepdims=True)
        owner[block.numpy()] = np.argmax(distance <= nearest * (1.0 + TIE_TOLERANCE), axis=1)
    return owner, np.bincount(owner, minlength=len(index)).astype(np.float64)


def _distances(rows: Points) -> tuple[Distances, torch.Tensor]:
    """Rows of the distances, held or computed when asked for, and the largest distance."""
    count = len(rows.values)
    if 8 * count**2 <= _MATRIX_BYTES:
        matrix = all_distances(rows)
        return matrix.__getitem__, matrix.max()

    def computed(numbers: torch.Tensor) -> torch.Tensor:
        return distances_between(rows.at(numbers), rows)

    largest = torch.zeros((), dtype=torch.float64, device=rows.values.device)
    for block in torch.arange(count, device=rows.values.device).split(_block_rows(count)):
        torch.maximum(largest, computed(block).max(), out=largest)
    return computed, largest


def _block_rows(width: int) -> int:
    """Rows of a block whose [rows, width] distances stay small."""
    return max(1, _BLOCK_VALUES // width)


def _unweighted(index: IntArray, gain: FloatArray, num_rows: int) -> Picks:
    return Picks(index, gain, np.full(len(index), num_rows / len(index)))


def _check_budget(budget: int, num_rows: int) -> None:
    if not 1 <= budget <= num_rows:
        raise SelectionError(f"can't pick {budget} of {num_rows} rows: give a budget from 1 to {num_rows}")


def _checked(similarity: FloatArray, budget: int) -> FloatArray:
    shape = similarity.shape
    if len(shape) != 2 or shape[0] != shape[1]:
        raise SelectionError(f"similarity has shape {list(shape)}, not [b, b]: compare every row with every row")
    _check_budget(budget, shape[0])
    if not np.isfinite(similarity).all() or similarity.min() < 0:
        raise SelectionError(
            f"similarities reach from {similarity.min()} to {similarity.max()}: they must be finite and not negative, "
            "such as max(distance) - distance"
        )
    if not np.array_equal(similarity, similarity.T):
        raise SelectionError("similarity isn't symmetric: compare rows with a distance")
    return similarity
