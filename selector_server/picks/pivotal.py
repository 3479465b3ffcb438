"""The local pivotal method: a random sample with given probabilities, spread over the rows. Pure array functions."""

from __future__ import annotations

import numpy as np

from selector_server.picks.record import FloatArray, IntArray

# A probability this close to 0 or 1 differs from it by rounding.
DECIDED = 1e-9


def local_pivotal(distances: FloatArray, probability: FloatArray, *, generator: np.random.Generator) -> IntArray:
    """Let neighbours fight for a place until every row is in or out.

    A random undecided row meets its nearest undecided neighbour; they put their probabilities together, and one of them
    leaves with 0, or with 1 where there is more than that. Each keeps its probability on average, so a row is picked as
    often as `probability` says whatever the distances; but where one is in, those near it are out, so the sample has
    rows of every kind, and totals over it vary less the more they depend on what the distances see.

    Args:
        distances: Pairwise, [m, m]; of equal ones the lowest row is nearest, no preference since draw order is random.
        probability: Inclusion probabilities, [m], with an integer for a sum.
        generator: Where the fights' outcomes come from.

    Returns:
        Row numbers, ascending, int64: exactly as many as the probabilities sum to.

    Cost: O(m²) time beside the distances, whose m² values set the memory: 128 MiB for 4,096 rows.
    Source: Grafström, Lundström and Schelin (2012), "Spatially balanced sampling through the pivotal method", LPM 2. In
        LPM 1 only mutual neighbours fight: twice the time, for a variance within 3 % of this one's on wide features.
    """
    probability = probability.copy()
    undecided = np.flatnonzero((probability > DECIDED) & (probability < 1.0 - DECIDED)).tolist()
    place = {row: at for at, row in enumerate(undecided)}
    away = np.full(len(probability), np.inf)  # added to distances, so that no decided row is the nearest
    away[undecided] = 0.0
    while len(undecided) > 1:
        row = undecided[generator.integers(len(undecided))]
        away[row] = np.inf
        rival = int(np.argmin(distances[row] + away))
        away[row] = 0.0
        probability[row], probability[rival] = _fight(probability[row], probability[rival], generator.random())
        for fighter in (row, rival):
            if not DECIDED < probability[fighter] < 1.0 - DECIDED:
                away[fighter] = np.inf
                last, at = undecided.pop(), place.pop(fighter)
                if last != fighter:
                    undecided[at], place[last] = last, at
    return np.flatnonzero(probability > 0.5)


def _fight(left: float, right: float, chance: float) -> tuple[float, float]:
    """New probabilities of two rows, one of them 0 or 1; both keep theirs on average over chance ~ U[0, 1)."""
    both = left + right
    if both < 1.0:
        return (0.0, both) if chance * both < right else (both, 0.0)
    return (1.0, both - 1.0) if chance * (2.0 - both) < 1.0 - right else (both - 1.0, 1.0)
