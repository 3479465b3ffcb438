"""How likely a row is to be picked: against redistributing by hand, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.picks.probabilities import by_norm, equal
from shared.errors import SelectionError

norms = st.one_of(st.just(0.0), st.integers(0, 5).map(float), st.floats(1e-140, 1e140))


def redistributed(norm: list[float], size: int, share: float) -> list[Fraction]:
    """Share out in proportion; where that gives a row more than 1, give it 1 and share out again among the others."""
    exact = [Fraction(value) for value in norm]
    mean, part = sum(exact) / len(exact), Fraction(share)
    mass = [(1 - part) * mean + part * value for value in exact]
    certain: set[int] = set()
    while True:
        others = [row for row in range(len(mass)) if row not in certain]
        total, left = sum(mass[row] for row in others), size - len(certain)
        shares = {row: left * mass[row] / total if total else Fraction(left, len(others)) for row in others}
        beyond = {row for row in others if shares[row] > 1}
        if not beyond:
            return [shares.get(row, Fraction(1)) for row in range(len(mass))]
        certain |= beyond


@settings(deadline=None, max_examples=300)
@given(norm=st.lists(norms, min_size=1, max_size=12), data=st.data(), share=st.sampled_from([0.3, 0.8, 1.0]))
def test_probabilities_are_those_of_redistributing_the_surplus(
    norm: list[float], data: st.DataObject, share: float
) -> None:
    size = data.draw(st.integers(1, len(norm)))
    found = by_norm(np.array(norm), size=size, norm_share=share)
    np.testing.assert_allclose(found, [float(p) for p in redistributed(norm, size, share)], rtol=1e-9, atol=1e-12)
    assert found.max() <= 1.0
    assert abs(found.sum() - size) < 1e-9


def test_a_row_without_gradient_keeps_the_constant_part() -> None:
    np.testing.assert_allclose(by_norm(np.array([0.0, 4.0]), size=1, norm_share=0.8), [0.1, 0.9])


def test_a_long_tail_sums_to_the_size() -> None:
    norm = np.exp(3.0 * np.random.default_rng(0).standard_normal(4096))
    found = by_norm(norm, size=2048, norm_share=0.8)
    assert abs(found.sum() - 2048) < 1e-9
    assert (found == 1.0).sum() > 100


@pytest.mark.parametrize("norm", [np.zeros(6), np.full(6, 3.0), np.full(6, 5e-324)])
def test_rows_that_are_all_alike_are_equally_likely(norm: np.ndarray) -> None:
    np.testing.assert_allclose(by_norm(norm, size=4, norm_share=1.0), equal(6, size=4), rtol=1e-12)
    np.testing.assert_allclose(equal(6, size=4), 4 / 6)


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_a_norm_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(SelectionError, match="must be finite and not negative"):
        by_norm(np.array([1.0, wrong]), size=1, norm_share=0.8)
