"""How many rows of each source a sub-batch gets, and which sources are kept whole. Pure functions on counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selector_server.picks.record import IntArray


def proportional(rows: IntArray, *, budget: int) -> IntArray:
    """Each source's share of the rows, rounded by the largest remainder; equal remainders go to the lowest source.

    Args:
        rows: Rows each source has to pick from, [s], not all zero.
        budget: Rows to pick, 0 <= budget <= sum of rows.

    Returns:
        Rows to pick of each source, int64 [s], never more than it has; they sum to `budget`.
    """
    quota: IntArray = rows * budget // rows.sum()
    remainder: IntArray = rows * budget % rows.sum()
    quota[np.argsort(-remainder, kind="stable")[: budget - quota.sum()]] += 1
    return quota


def balanced(rows: IntArray, *, budget: int) -> IntArray:
    """Equal parts; what a source hasn't rows for goes to the others, what doesn't divide to those with the most rows.

    Args and returns as for `proportional`.
    """
    quota = np.zeros_like(rows)
    while left := budget - int(quota.sum()):
        unfilled = np.flatnonzero(quota < rows)
        if left < len(unfilled):
            quota[unfilled[np.argsort(-rows[unfilled], kind="stable")[:left]]] += 1
        else:
            quota[unfilled] += np.minimum(left // len(unfilled), (rows - quota)[unfilled])
    return quota


def small_sources(drawn: IntArray, source_rows: Sequence[int], *, size: int) -> IntArray:
    """The sources whose drawn rows are all kept, int64, ascending by size.

    A source is small when it holds less of the data than an average source. The smallest come first, as long as what
    is kept leaves at least half of the sub-batch to the others: source-weighted draws make small sources most of the
    large batch (CoLM draws uniformly, where they are few), and keeping all of them would leave nothing to pick.

    Args:
        drawn: Rows of each source in the large batch, [s].
        source_rows: Rows of each source in the whole data set, [s].
        size: Rows of the sub-batch.

    Source: CoLM (arXiv 2407.19580) §4.1, which keeps the examples of all small sources.
    """
    total = np.asarray(source_rows)
    ascending = np.argsort(total, kind="stable")
    small: IntArray = ascending[total[ascending] < total.mean()]
    return small[np.cumsum(drawn[small]) <= size // 2]
