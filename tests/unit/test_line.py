"""Picks on a line, against greedy picks in exact fractions and against the dense greedy."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.picks.distances import pairwise_distances
from selector_server.picks.line import line_greedy
from selector_server.picks.medoids import medoids
from selector_server.picks.medoids_greedy import TIE_TOLERANCE, greedy

fixed = settings(deadline=None, derandomize=True)


def greedy_in_fractions(values, budget):
    """The definition, with no rounding at all."""
    x = [Fraction(float(value)) for value in values]
    cover, picked, gains = [max(x) - min(x)] * len(x), [], []
    for _ in range(budget):
        gain = {
            s: sum((max(c - abs(a - x[s]), 0) for a, c in zip(x, cover, strict=True)), Fraction(0))
            for s in range(len(x))
            if s not in picked
        }
        enough = max(gain.values()) * (1 - Fraction(TIE_TOLERANCE))
        picked.append(min(s for s in gain if gain[s] >= enough))
        gains.append(float(gain[picked[-1]]))
        cover = [min(c, abs(a - x[picked[-1]])) for a, c in zip(x, cover, strict=True)]
    return picked, gains


def dense_greedy(values, budget):
    distances = pairwise_distances(np.asarray(values, dtype=np.float64)[:, None], "l1")
    index, _ = greedy(distances.__getitem__, reach=distances.max().expand(len(values)), budget=budget)
    return index.tolist()


LINES = {
    "normal": lambda random, m: random.standard_normal(m),
    "far outliers": lambda random, m: random.standard_cauchy(m),
    "a grid, where most gains tie": lambda random, m: random.permutation(m).astype(np.float64),
    "few values, most rows equal": lambda random, m: random.integers(0, 5, m).astype(np.float64),
    "two narrow clusters far apart": lambda random, m: (
        np.concatenate([np.zeros(m // 2), np.full(m - m // 2, 1e6)]) + random.standard_normal(m) * 1e-5
    ),
    "scales from 1e-130 to 1e130": lambda random, m: np.exp(random.uniform(-300, 300, m)),
    "each row twice as far as the one before": lambda _, m: 2.0 ** np.arange(m),
}


@fixed
@given(data=st.data(), rows=st.integers(1, 14))
def test_picks_and_their_order_are_those_of_greedy_in_fractions(data, rows):
    numbers = st.one_of(st.integers(-4, 4), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1e-9, 1e6, 1e6 + 1e-9]))
    values = np.array(data.draw(st.lists(numbers, min_size=rows, max_size=rows)), dtype=np.float64)
    budget = data.draw(st.integers(1, rows))
    index, gains = line_greedy(values, budget=budget)
    expected, expected_gains = greedy_in_fractions(values, budget)
    assert index.tolist() == expected
    np.testing.assert_allclose(gains, expected_gains, rtol=1e-9)


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("rows", [30, 41])
def test_lines_of_every_kind_are_picked_as_in_fractions(kind, rows):
    values = LINES[kind](np.random.default_rng(rows), rows)
    expected, gains = greedy_in_fractions(values, rows)
    index, found = line_greedy(values, budget=rows)
    assert index.tolist() == expected
    np.testing.assert_allclose(found, gains, rtol=1e-9)


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("budget", [1, 7, 350, 700])
def test_long_lines_are_picked_as_the_dense_greedy_picks_them(kind, budget):
    values = LINES[kind](np.random.default_rng(budget), 700)
    assert line_greedy(values, budget=budget)[0].tolist() == dense_greedy(values, budget)


def test_a_smaller_budget_picks_the_first_of_a_larger_ones_rows():
    values = np.random.default_rng(0).standard_normal(3000)
    index, gains = line_greedy(values, budget=3000)
    assert sorted(index.tolist()) == list(range(3000))
    assert (np.diff(gains) <= 1e-9 * gains[:-1]).all()
    for budget in (1, 2, 10, 999, 2500):
        assert line_greedy(values, budget=budget)[0].tolist() == index[:budget].tolist()


def test_rows_that_are_all_alike_are_picked_in_order():
    index, gains = line_greedy(np.full(6, 3.5), budget=6)
    assert (index.tolist(), gains.tolist()) == ([0, 1, 2, 3, 4, 5], [0.0] * 6)


def test_greedy_on_the_line_needs_no_distances(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("distances between all rows")

    monkeypatch.setattr(torch.nn.functional, "pdist", refuse)
    monkeypatch.setattr(torch, "cdist", refuse)
    values = np.random.default_rng(0).standard_normal((20_000, 1))
    picks = medoids(values, budget=100, metric="l1")
    assert picks.index[0] in np.argsort(values[:, 0])[9_999:10_001]
