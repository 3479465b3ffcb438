"""How likely each row of a large batch is to be picked by a sampling design. Pure array functions."""

from __future__ import annotations

import numpy as np

from selector_server.picks.record import FloatArray
from shared.errors import SelectionError


def equal(rows: int, *, size: int) -> FloatArray:
    """All rows alike: size / rows each, float64 [rows]."""
    return np.full(rows, size / rows)


def by_norm(norm: FloatArray, *, size: int, norm_share: float) -> FloatArray:
    """Rows with large gradients more often: the choice of least variance, kept away from zero by a constant part.

    In proportion to (1 - norm_share) · mean(norm) + norm_share · norm, as far as that leaves no row above 1; rows that
    it would are certain, and the others share what is left in the same proportion.

    Args:
        norm: Estimated norms of the rows' gradients, [m], each >= 0. Where all that is left to share among have none,
            they share equally.
        size: Rows to pick, 1 <= size <= m.
        norm_share: Between 0, all rows alike, and 1, in proportion to the norm.

    Returns:
        Inclusion probabilities in [0, 1], float64 [m]; they sum to `size` up to rounding. Zero is possible only with
        norm_share 1 and a row without gradient, which takes nothing from the estimate.

    Raises:
        SelectionError: a norm is negative or not finite.
    """
    if not np.isfinite(norm).all() or norm.min() < 0:
        raise SelectionError(
            f"gradient norms reach from {norm.min()} to {norm.max()}: they must be finite and not negative; leave out "
            "rows whose loss isn't finite"
        )
    scaled = norm / max(float(norm.max()), np.finfo(np.float64).tiny)  # sums of the largest floats overflow
    mass = (1.0 - norm_share) * scaled.mean() + norm_share * scaled
    order = np.argsort(-mass, kind="stable")
    descending = mass[order]
    rest = np.cumsum(descending[::-1])[::-1]  # what row k and all after it have together
    left = size - np.arange(len(mass))  # rows still to pick once the first k are certain
    certain = int(np.argmax(left * descending <= rest))
    probability = np.ones(len(mass))
    if rest[certain] > 0:
        probability[order[certain:]] = left[certain] * descending[certain:] / rest[certain]
    else:
        probability[order[certain:]] = left[certain] / (len(mass) - certain)
    return np.minimum(probability, 1.0)
