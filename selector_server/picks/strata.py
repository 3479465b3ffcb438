"""Random samples by strata: each source's share of the rows, or one row of each cluster. Pure array functions."""

from __future__ import annotations

import numpy as np

from selector_server.picks.record import IntArray


def share_of_each(stratum: IntArray, *, size: int, generator: np.random.Generator) -> IntArray:
    """A random sample with each stratum's share of the rows, rounded down or up: systematic sampling.

    Rows stand side by side, stratum by stratum, in random order, each `size` marks wide; a ruler with a tooth every m
    marks is laid down at random, and the rows it touches are taken. In integers, so every row's chance is size / m.

    Args:
        stratum: Each row's stratum, [m].
        size: Rows to pick, 1 <= size <= m.
        generator: Where the order and the ruler's place come from.

    Returns:
        Row numbers, ascending, int64 [size].
    """
    rows = len(stratum)
    _, group = np.unique(stratum, return_inverse=True)
    order = generator.permutation(rows)
    rank = generator.permutation(group.max() + 1)
    in_line = order[np.argsort(rank[group[order]], kind="stable")]
    touched = (generator.integers(rows) + np.arange(size) * rows) // size
    return np.sort(in_line[touched])


def one_of_each(stratum: IntArray, *, generator: np.random.Generator) -> IntArray:
    """A row of every stratum, all of its rows alike.

    Args:
        stratum: Each row's stratum, [m].
        generator: Where the choice comes from.

    Returns:
        Row numbers by ascending stratum, int64 [different strata].
    """
    order = generator.permutation(len(stratum))
    _, first = np.unique(stratum[order], return_index=True)
    return order[first]
