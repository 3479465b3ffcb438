"""Matching pursuit: the rows, and their weights, whose features add up to the whole batch's. Pure array functions."""

from __future__ import annotations

import numpy as np
import torch

from selector_server.picks.record import FloatArray, IntArray, Picks
from shared.errors import SelectionError


def matching_pursuit(values: FloatArray, target: FloatArray, *, budget: int, ridge: float) -> Picks:
    """Greedily pick the row that points most at what the picks so far leave of the target, and weigh them anew.

    The weights w >= 0 minimise |target - Σ w_s x_s|² + λ |w|², λ = ridge × the rows' mean squared norm. Without the
    ridge they would also fit what is in the features by chance.

    Args:
        values: The rows' features, [m, f], whose inner products are those of the gradients.
        target: What the weighted picks should add up to, [f].
        budget: Rows to pick, 1 <= budget <= m.
        ridge: Relative to the rows' mean squared norm, > 0.

    Returns:
        Rows in pick order; what each took off the objective when it was picked; weights, not normalised. Ties go to the
        lowest row. Rows without a gradient, or a target of zero, get weight zero.

    Raises:
        SelectionError: budget outside [1, m].

    Cost: O(m² · f + m · budget²) time, O(m²) memory.
    Source: Pati et al. (1993), orthogonal matching pursuit; Killamsetty et al. (2021), GRAD-MATCH, for gradients.
    """
    num_rows = len(values)
    if not 1 <= budget <= num_rows:
        raise SelectionError(f"can't pick {budget} of {num_rows} rows: give a budget from 1 to {num_rows}")
    scale = float(np.sqrt(np.square(values).sum(axis=1).mean())) or 1.0
    values, target = values / scale, target / scale
    gram, wanted = values @ values.T, values @ target
    length = np.sqrt(np.diag(gram) + ridge)
    index, gain = np.empty(budget, dtype=np.int64), np.empty(budget)
    factor, left, unmet = _Factor(budget, num_rows), np.ones(num_rows, dtype=bool), wanted
    picked_gram = np.empty((budget, num_rows))
    for picked in range(budget):
        # Rounding of what is left must not choose between rows that point nowhere.
        score = np.where(left, np.round(unmet / length, 12), -np.inf)
        row = int(np.argmax(score))
        index[picked], gain[picked], left[row] = row, max(score[row], 0.0) ** 2 * scale**2, False
        picked_gram[picked] = gram[row]
        weight = np.maximum(factor.add(gram[row], row, ridge, wanted[row]), 0.0)
        unmet = wanted - weight @ picked_gram[: picked + 1]
    return Picks(index, gain, _non_negative(gram[np.ix_(index, index)], wanted[index], ridge))


class _Factor:
    """The Cholesky factor of the picks' regularised Gram matrix, a row at a time, and the weights it gives."""

    def __init__(self, budget: int, num_rows: int) -> None:
        # Columns for all rows: L⁻¹ G, of which the picks' own columns are the factor's rows.
        self._solved = np.zeros((budget, num_rows))
        self._lower = np.zeros((budget, budget))
        self._right = np.zeros(budget)
        self._rows: list[int] = []

    def add(self, gram_row: FloatArray, row: int, ridge: float, wanted: float) -> FloatArray:
        """Take in one more pick: the weights without a sign constraint, in pick order."""
        n = len(self._rows)
        across = self._solved[:n, row].copy()
        pivot = np.sqrt(max(gram_row[row] + ridge - across @ across, ridge))
        self._solved[n] = (gram_row - across @ self._solved[:n]) / pivot
        self._lower[n, :n], self._lower[n, n] = across, pivot
        self._right[n] = (wanted - across @ self._right[:n]) / pivot
        self._rows.append(row)
        return _solve_upper(self._lower[: n + 1, : n + 1], self._right[: n + 1])


def _solve_upper(lower: FloatArray, right: FloatArray) -> FloatArray:
    """W of Lᵀ w = right."""
    solved = torch.linalg.solve_triangular(
        torch.from_numpy(np.ascontiguousarray(lower.T)), torch.from_numpy(right[:, None]), upper=True
    )
    return np.asarray(solved[:, 0].numpy(), dtype=np.float64)


def _non_negative(gram: FloatArray, wanted: FloatArray, ridge: float) -> FloatArray:
    """Ridge weights of the picks with the negative ones held at zero."""
    weight, free = np.zeros(len(gram)), np.ones(len(gram), dtype=bool)
    while free.any():
        rows: IntArray = np.flatnonzero(free)
        found = np.linalg.solve(gram[np.ix_(rows, rows)] + ridge * np.eye(len(rows)), wanted[rows])
        if (found >= 0).all():
            weight[rows] = found
            break
        free[rows[found < 0]] = False
    return weight
