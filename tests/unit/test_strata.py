"""Samples by strata: exact chances, by trying every place of the ruler or by counting."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.picks.strata import one_of_each, share_of_each


@settings(deadline=None, max_examples=200)
@given(stratum=st.lists(st.integers(0, 5), min_size=1, max_size=40), data=st.data(), seed=st.integers(0, 2**32))
def test_every_stratum_gets_its_share_rounded_down_or_up(stratum: list[int], data: st.DataObject, seed: int) -> None:
    size = data.draw(st.integers(1, len(stratum)))
    rows = share_of_each(np.array(stratum), size=size, generator=np.random.default_rng(seed))
    assert len(set(rows.tolist())) == len(rows) == size
    for number in set(stratum):
        share = stratum.count(number) * size
        picked = sum(stratum[row] == number for row in rows)
        assert share // len(stratum) <= picked <= -(-share // len(stratum))


def test_every_row_is_as_likely_as_any_other() -> None:
    stratum, draws = np.array([3, 0, 0, 3, 3, 1, 3, 3, 0, 3, 3]), 20_000
    generator = np.random.default_rng(1)
    counts = np.zeros(11)
    for _ in range(draws):
        counts[share_of_each(stratum, size=4, generator=generator)] += 1
    p = 4 / 11
    assert np.abs(counts - draws * p).max() < 5 * np.sqrt(draws * p * (1 - p))


def test_rows_of_one_stratum_are_picked_independently_of_their_order() -> None:
    """Plain systematic sampling never takes two neighbours; here all pairs of a stratum are alike."""
    generator, together = np.random.default_rng(2), np.zeros((6, 6))
    for _ in range(15_000):
        rows = share_of_each(np.zeros(6, dtype=np.int64), size=3, generator=generator)
        together[np.ix_(rows, rows)] += 1
    pairs = together[~np.eye(6, dtype=bool)]
    p = 3 * 2 / (6 * 5)
    assert np.abs(pairs - 15_000 * p).max() < 5 * np.sqrt(15_000 * p * (1 - p))


def test_one_row_of_each_stratum_all_of_them_alike() -> None:
    stratum, draws = np.array([7, 2, 2, 7, 4, 7, 7, 2]), 12_000
    generator, counts = np.random.default_rng(3), np.zeros(8)
    for _ in range(draws):
        rows = one_of_each(stratum, generator=generator)
        assert stratum[rows].tolist() == [2, 4, 7]
        counts[rows] += 1
    p = 1 / np.array([4, 3, 3, 4, 1, 4, 4, 3])
    assert (np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p))).all()
