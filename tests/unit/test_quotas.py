"""How many rows each source gets: against handing them out one by one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.picks.quotas import balanced, proportional, small_sources

counts = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)


def largest_remainder(rows: list[int], budget: int) -> list[int]:
    shares = [Fraction(budget * n, sum(rows)) for n in rows]
    quota = [int(share) for share in shares]
    by_remainder = sorted(range(len(rows)), key=lambda s: (quota[s] - shares[s], s))
    for source in by_remainder[: budget - sum(quota)]:
        quota[source] += 1
    return quota


def one_row_at_a_time(rows: list[int], budget: int) -> list[int]:
    """Each goes to the source that has the fewest so far and can take one; of several, to that with the most rows."""
    quota = [0] * len(rows)
    for _ in range(budget):
        takers = [s for s in range(len(rows)) if quota[s] < rows[s]]
        quota[min(takers, key=lambda s: (quota[s], -rows[s], s))] += 1
    return quota


@settings(deadline=None, max_examples=200)
@given(rows=counts, data=st.data())
def test_proportional_quotas_are_those_of_the_largest_remainder(rows: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, sum(rows)))
    quota = proportional(np.array(rows), budget=budget)
    assert quota.tolist() == largest_remainder(rows, budget)
    assert (quota <= rows).all()


@settings(deadline=None, max_examples=200)
@given(rows=counts, data=st.data())
def test_balanced_quotas_are_those_of_handing_out_one_row_at_a_time(rows: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, sum(rows)))
    assert balanced(np.array(rows), budget=budget).tolist() == one_row_at_a_time(rows, budget)


def test_quotas_of_four_sources_by_hand() -> None:
    rows = np.array([1, 20, 9, 70])
    assert proportional(rows, budget=50).tolist() == [1, 10, 4, 35]  # shares 0.5, 10, 4.5, 35: equal remainders
    assert balanced(rows, budget=50).tolist() == [1, 20, 9, 20]
    assert balanced(rows, budget=32).tolist() == [1, 11, 9, 11]
    assert balanced(rows, budget=33).tolist() == [1, 11, 9, 12]


@pytest.mark.parametrize(
    ("drawn", "size", "small"),
    [
        ([9, 9, 9, 9], 20, [1]),  # the mean is 275 rows: sources 1, 0 and 3 are small, 18 rows are too many to keep two
        ([9, 9, 9, 9], 36, [1, 0]),
        ([9, 0, 9, 9], 18, [1, 0]),
        ([0, 0, 20, 0], 8, [1, 0, 3]),  # nothing was drawn of them, so nothing is kept
        ([5, 4, 0, 0], 17, [1]),
        ([5, 4, 0, 0], 18, [1, 0, 3]),
    ],
)
def test_small_sources_are_kept_smallest_first_up_to_half_of_the_sub_batch(
    drawn: list[int], size: int, small: list[int]
) -> None:
    assert small_sources(np.array(drawn), [30, 10, 1_000, 60], size=size).tolist() == small


def test_a_smaller_source_is_not_skipped_for_one_that_fits() -> None:
    assert small_sources(np.array([9, 1, 5]), [3, 5, 100], size=8).tolist() == []


@pytest.mark.parametrize("source_rows", [[7], [5, 5, 5]])
def test_sources_of_one_size_are_not_small(source_rows: list[int]) -> None:
    assert small_sources(np.ones(len(source_rows), dtype=np.int64), source_rows, size=9).size == 0
