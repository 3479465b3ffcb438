"""Which rows a pick stands for, and a sub-batch that takes one of them at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from selector_server.picks.medoids import medoids, represented
from selector_server.picks.record import Features, FloatArray, IntArray, Picks
from selector_server.picks.strata import one_of_each


def clusters(values: FloatArray, index: IntArray, metric: Any) -> IntArray:
    """The pick nearest to each row, a pick itself even where another one equals it: no cluster is empty.

    Args:
        values: Rows' features, [m, f].
        index: The picks' row numbers, all different, [r].
        metric: How distances are measured, `l1` or `l2`.

    Returns:
        Of each row the number, from 0, of its pick, int64 [m].
    """
    owner, _ = represented(values, index, metric)
    owner[index] = np.arange(len(index))
    return owner


def pick_from_clusters(features: Features, *, size: int, generator: np.random.Generator, device: Any) -> Picks:
    """A random row of every medoid's cluster, which weighs as many rows as the cluster has.

    Unlike the medoids themselves it is unbiased: given the clusters, each row is picked 1 / weight of the time.

    Args:
        features: Of the m rows of the large batch.
        size: Clusters to make, 1 <= size <= m.
        generator: Where the choice comes from.
        device: Where distances are computed.
    """
    centres = medoids(features.values, budget=size, metric=features.metric, device=device).index
    owner = clusters(features.values, centres, features.metric)
    weight = np.bincount(owner).astype(np.float64)
    return Picks(one_of_each(owner, generator=generator), np.zeros(size), weight)
