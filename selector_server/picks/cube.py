"""The cube method: a random sample with given probabilities whose totals match the batch's. Pure array functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selector_server.picks.pivotal import DECIDED
from selector_server.picks.record import FloatArray, IntArray

# Directions that are balanced at most: the time of a step grows with their square.
MAX_DIRECTIONS = 256

# Coefficients, and spreads relative to the largest, below these are zero up to rounding.
_ZERO = 1e-9
_NO_SPREAD = 1e-6

_NO_ROW = -1


def balancing_variables(
    features: FloatArray, source: IntArray, probability: FloatArray, *, device: Any = "cpu"
) -> FloatArray:
    """What a sub-batch's weighted totals should match, the most important first.

    Args:
        features: Rows' features, [m, f].
        source: Each row's source, [m].
        probability: Inclusion probabilities, [m].
        device: Where the directions are computed.

    Returns:
        float64 [m, q]: the probability, which fixes the size; for every source but the last the probability of its own
        rows, which fixes its part of the size; a one, which fixes the sum of the weights; then the features' principal
        directions, at most half as many as rows are picked, so that there is room to balance them.

    Cost: O(m · f · min(m, f)) time.
    """
    _, group = np.unique(source, return_inverse=True)
    own = (group[:, None] == np.arange(group.max())) * probability[:, None]
    count = min(round(float(probability.sum())) // 2, MAX_DIRECTIONS)
    ones = np.ones((len(features), 1))
    return np.concatenate([probability[:, None], own, ones, _principal(features, count, device)], axis=1)


def _principal(features: FloatArray, count: int, device: Any) -> FloatArray:
    """Rows along the `count` directions of the largest spread, or along all where there are fewer, [m, <= count]."""
    rows = torch.from_numpy(features - features.mean(axis=0)).to(device)
    wide = rows.shape[1] > rows.shape[0]
    variance, direction = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    variance, direction = variance.flip(0), direction.flip(1)
    kept = int((variance[:count] > _NO_SPREAD**2 * variance[0]).sum())
    along = direction[:, :kept] if wide else rows @ direction[:, :kept] / variance[:kept].sqrt()
    return np.asarray(along.cpu().numpy(), dtype=np.float64)


def cube(variables: FloatArray, probability: FloatArray, *, generator: np.random.Generator) -> IntArray:
    """Move probabilities at random along directions that change no total, until every row is in or out.

    Flight: the rows come one by one. As long as their columns, variables / probability, are independent, they make a
    basis. A row that depends on the basis can move against it with every total unchanged: as far as it can, one way or
    the other, by chances that keep every probability on average. Then a row is in or out, and the newcomer takes its
    place. Landing: when all have come, at most q rows are undecided, and none can move. Then totals are given up, the
    last variable's first; each frees one direction, which decides one row.

    Args:
        variables: Balancing variables, [m, q], in order of importance; the first is the probability, never given up.
        probability: Inclusion probabilities, [m], with an integer for a sum.
        generator: Where the order of the rows and the ways they move come from.

    Returns:
        Row numbers, ascending, int64: exactly as many as the probabilities sum to.

    Cost: O(m · q²) time, O(m · q) memory.
    Source: Deville and Tillé (2004), "Efficient balanced sampling: the cube method"; Chauvet and Tillé (2006), "A fast
        algorithm for balanced sampling", which moves q + 1 rows at a time. Here both phases pivot one tableau.
    """
    undecided = np.flatnonzero((probability > DECIDED) & (probability < 1.0 - DECIDED))
    columns = variables[undecided] / probability[undecided, None]
    columns /= np.maximum(np.abs(columns).max(axis=0, initial=0.0), np.finfo(np.float64).tiny)
    flight = _Flight(probability[undecided], variables.shape[1], generator)
    for row in generator.permutation(len(undecided)).tolist():
        flight.enter(columns[row], row)
    for total in range(variables.shape[1] - 1, 0, -1):
        flight.give_up(total)
    picked = probability > 0.5
    picked[undecided] = flight.probability > 0.5
    return np.flatnonzero(picked)


class _Flight:
    """Probabilities on their way, and a basis of columns that tells in which directions they may move.

    Each place of the basis holds an undecided row; or a decided row or, at first, nothing, which are stuck; or a total
    that was given up, which sets no bound.
    """

    def __init__(self, probability: FloatArray, num_totals: int, generator: np.random.Generator) -> None:
        self.probability = probability.copy()
        self._generator = generator
        self._inverse = np.eye(num_totals)  # of the basis: gives a column's coefficients
        self._row = np.full(num_totals, _NO_ROW)
        self._stuck = np.ones(num_totals, dtype=bool)

    def enter(self, column: FloatArray, row: int) -> None:
        """Give a row a place in the basis, if need be by moving it against the basis, unless that decides it."""
        coefficients = self._coefficients(column)
        if not self._take_stuck_place(coefficients, row):
            self._move(coefficients, row)
            if not _decided(self.probability[row]):
                self._take_stuck_place(coefficients, row)

    def give_up(self, total: int) -> None:
        """Let one total change: decide a row that only this total held."""
        coefficients = self._coefficients(np.eye(len(self._row))[total])
        if not self._take_stuck_place(coefficients, _NO_ROW):
            self._move(coefficients, _NO_ROW)
            self._take_stuck_place(coefficients, _NO_ROW)

    def _coefficients(self, column: FloatArray) -> FloatArray:
        coefficients = self._inverse @ column
        coefficients[np.abs(coefficients) < _ZERO] = 0.0
        return coefficients

    def _take_stuck_place(self, coefficients: FloatArray, row: int) -> bool:
        """Put a column in a place that can't move with it, where it depends on one: one pivot of the tableau."""
        sizes = np.abs(coefficients) * self._stuck
        place = int(np.argmax(sizes))
        if sizes[place] == 0.0:
            return False
        pivot = self._inverse[place] / coefficients[place]
        self._inverse -= np.outer(coefficients, pivot)
        self._inverse[place] = pivot
        self._row[place], self._stuck[place] = row, False
        return True

    def _move(self, coefficients: FloatArray, row: int) -> None:
        """Move the basis' rows, and `row` against them, until one of them is decided."""
        places = np.flatnonzero((self._row != _NO_ROW) & ~self._stuck & (coefficients != 0.0))
        rows, speed = self._row[places], -coefficients[places]
        if row != _NO_ROW:
            rows, speed = np.append(rows, row), np.append(speed, 1.0)
        if not len(rows):
            return
        now = self.probability[rows]
        up, down = np.where(speed > 0, 1.0 - now, now), np.where(speed > 0, now, 1.0 - now)
        forward, backward = (up / np.abs(speed)).min(), (down / np.abs(speed)).min()
        went = forward if self._generator.random() * (forward + backward) < backward else -backward
        self.probability[rows] = np.clip(now + went * speed, 0.0, 1.0)
        self._stuck[places] = _decided(self.probability[self._row[places]])


def _decided(probability: FloatArray) -> npt.NDArray[np.bool_]:
    return (probability <= DECIDED) | (probability >= 1.0 - DECIDED)
