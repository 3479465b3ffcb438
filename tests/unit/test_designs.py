"""Sampling designs: picked as often as asked, exactly as many, and with less variance than a random sample.

Statistics use fixed seeds, so they either hold or don't; bounds are five standard errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.picks.cube import MAX_DIRECTIONS, balancing_variables, cube
from selector_server.picks.pivotal import local_pivotal
from selector_server.picks.probabilities import by_norm, equal

Design = Callable[..., np.ndarray]


def distances(features: np.ndarray) -> np.ndarray:
    return np.abs(features[:, None] - features[None]).sum(axis=2)


def pivotal_rows(features, source, probability, generator):
    return local_pivotal(distances(features), probability, generator=generator)


def cube_rows(features, source, probability, generator):
    return cube(balancing_variables(features, source, probability), probability, generator=generator)


DESIGNS = pytest.mark.parametrize("design", [pivotal_rows, cube_rows], ids=["local_pivotal", "cube"])


def uneven(rows: int, size: int, generator: np.random.Generator) -> np.ndarray:
    return by_norm(np.exp(generator.standard_normal(rows)), size=size, norm_share=0.8)


@DESIGNS
@pytest.mark.parametrize("size", [1, 7, 19, 23])
def test_rows_are_picked_as_often_as_their_probabilities_say(design: Design, size: int) -> None:
    generator = np.random.default_rng(size)
    features, source = generator.standard_normal((23, 3)), generator.integers(0, 3, 23)
    probability, draws = uneven(23, size, generator), 2_500
    counts = np.zeros(23)
    for _ in range(draws):
        rows = design(features, source, probability, generator)
        assert len(rows) == size
        counts[rows] += 1
    error = np.sqrt(draws * probability * (1 - probability))
    assert (np.abs(counts - draws * probability) <= 5 * error + 1e-6).all()


@DESIGNS
def test_the_weighted_total_is_right_on_average(design: Design) -> None:
    generator = np.random.default_rng(5)
    features, source = generator.standard_normal((40, 4)), generator.integers(0, 4, 40)
    probability = uneven(40, 15, generator)
    target = np.exp(features[:, 0]) + generator.standard_normal(40) + source
    totals = [
        (target[rows] / probability[rows]).sum()
        for rows in (design(features, source, probability, generator) for _ in range(1_500))
    ]
    assert abs(np.mean(totals) - target.sum()) < 5 * np.std(totals) / np.sqrt(len(totals))


def variance_ratio(design: Design, target: Callable[[np.ndarray], np.ndarray], width: int, draws: int = 300) -> float:
    """Mean squared error of the design's estimate, relative to the textbook variance of a simple random sample."""
    generator = np.random.default_rng(9)
    features, source = generator.standard_normal((100, width)), np.zeros(100, dtype=np.int64)
    values, probability = target(features), equal(100, size=30)
    error = [values[design(features, source, probability, generator)].sum() / 0.3 - values.sum() for _ in range(draws)]
    simple = 100**2 * (1 - 0.3) / 30 * values.var(ddof=1)
    return float(np.square(error).mean() / simple)


@DESIGNS
def test_totals_that_are_linear_in_the_features_vary_far_less_than_in_a_random_sample(design: Design) -> None:
    assert variance_ratio(design, lambda x: x @ [3.0, -1.0], width=2) < 0.3


def test_totals_that_are_smooth_in_the_features_vary_far_less_under_the_local_pivotal_method() -> None:
    assert variance_ratio(pivotal_rows, lambda x: np.cos(2 * x[:, 0]) * np.exp(x[:, 1]), width=2) < 0.5


def test_balancing_on_many_features_leaves_little_of_a_linear_total() -> None:
    weights = np.random.default_rng(0).standard_normal(10)
    assert variance_ratio(cube_rows, lambda x: x @ weights, width=10) < 0.25


def test_what_features_do_not_see_varies_as_in_a_random_sample() -> None:
    """The measure above finds no gain where there is none."""
    noise = np.random.default_rng(77).standard_normal(100)
    for design in (pivotal_rows, cube_rows):
        assert 0.7 < variance_ratio(design, lambda x: noise, width=2, draws=500) < 1.4


def distribution_of_fights(gap: np.ndarray, probability: np.ndarray) -> Counter[tuple[int, ...]]:
    """How likely the local pivotal method picks each sample: every choice of row and every outcome, one by one."""
    undecided = [row for row, p in enumerate(probability) if 1e-9 < p < 1 - 1e-9]
    if len(undecided) <= 1:
        return Counter({tuple(np.flatnonzero(np.round(probability)).tolist()): 1.0})
    found: Counter[tuple[int, ...]] = Counter()
    for row in undecided:
        rival = min((other for other in undecided if other != row), key=lambda other: gap[row, other])
        p, q = probability[row], probability[rival]
        if p + q < 1:
            outcomes = [(0.0, p + q, q / (p + q)), (p + q, 0.0, p / (p + q))]
        else:
            outcomes = [(1.0, p + q - 1, (1 - q) / (2 - p - q)), (p + q - 1, 1.0, (1 - p) / (2 - p - q))]
        for mine, theirs, chance in outcomes:
            after = probability.copy()
            after[[row, rival]] = mine, theirs
            for sample, likely in distribution_of_fights(gap, after).items():
                found[sample] += chance * likely / len(undecided)
    return found


def test_samples_of_the_local_pivotal_method_are_as_likely_as_enumerating_all_fights_says() -> None:
    generator = np.random.default_rng(4)
    gap = distances(generator.standard_normal((6, 2)))
    probability = np.array([0.2, 0.5, 0.9, 0.35, 0.65, 0.4])
    expected, draws = distribution_of_fights(gap, probability), 20_000
    found = Counter(tuple(local_pivotal(gap, probability, generator=generator).tolist()) for _ in range(draws))
    assert set(found) <= set(expected)
    for sample, p in expected.items():
        assert abs(found[sample] - draws * p) < 5 * np.sqrt(draws * p * (1 - p)) + 1, sample


def test_a_close_pair_with_even_chances_is_never_picked_together() -> None:
    features = np.array([[0.0], [0.1], [5.0], [5.2], [9.0], [9.4]])
    generator = np.random.default_rng(0)
    for _ in range(200):
        rows = local_pivotal(distances(features), equal(6, size=3), generator=generator)
        assert (rows // 2).tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["equal", "uneven"])
def test_the_cube_method_gives_every_source_its_share_rounded_down_or_up(kind: str) -> None:
    generator = np.random.default_rng(6)
    for _ in range(100):
        source = np.append(generator.integers(0, 6, 59), 6)  # and a source with one row
        probability = equal(60, size=25) if kind == "equal" else uneven(60, 25, generator)
        rows = cube_rows(generator.standard_normal((60, 20)), source, probability, generator)
        share = np.bincount(source, weights=probability)
        picked = np.bincount(source[rows], minlength=7)
        assert (picked >= np.floor(share - 1e-9)).all()
        assert (picked <= np.ceil(share + 1e-9)).all()


def test_totals_of_the_cube_method_miss_by_no_more_than_the_landing_may() -> None:
    """At most q rows are undecided when the flight ends: a total is off by q of its largest terms (Deville, Tillé)."""
    generator = np.random.default_rng(8)
    variables = generator.standard_normal((3_000, 4))
    probability = uneven(3_000, 1_000, generator)
    columns = np.concatenate([probability[:, None], variables], axis=1)
    terms = variables / probability[:, None]
    bound = 5 * np.abs(terms[probability < 1]).max(axis=0)
    rows = cube(columns, probability, generator=generator)
    assert len(rows) == 1_000
    assert (np.abs(terms[rows].sum(axis=0) - variables.sum(axis=0)) < bound).all()
    misses = [
        np.abs(terms[generator.random(3_000) < probability].sum(axis=0) - variables.sum(axis=0)) for _ in range(9)
    ]
    assert (np.median(misses, axis=0) > bound / 4).any()


def test_totals_that_can_all_be_met_are_met() -> None:
    """Rows of a two-way table, with whole numbers to pick of each of its rows and columns: no landing is needed."""
    across, down = np.divmod(np.arange(48), 8)
    probability = equal(48, size=24)
    table = np.concatenate([(across[:, None] == range(6)), (down[:, None] == range(8))], axis=1) * 0.5
    generator, seen = np.random.default_rng(1), set()
    for _ in range(50):
        rows = cube(np.concatenate([probability[:, None], table], axis=1), probability, generator=generator)
        assert np.bincount(across[rows]).tolist() == [4] * 6
        assert np.bincount(down[rows]).tolist() == [3] * 8
        seen.add(tuple(rows.tolist()))
    assert len(seen) == 50


def test_balancing_variables_span_sizes_sources_weights_and_the_widest_directions() -> None:
    generator = np.random.default_rng(3)
    features = generator.standard_normal((30, 50)) * np.geomspace(10, 0.01, 50) + 100.0
    source, probability = generator.integers(0, 3, 30), uneven(30, 12, generator)
    variables = balancing_variables(features, source, probability)
    assert variables.shape == (30, 3 + 1 + 6)
    left, _, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    wanted = [probability, *(probability * (source == s) for s in range(3)), np.ones(30), *left.T[:6]]
    solution = np.linalg.lstsq(variables, np.stack(wanted, axis=1), rcond=None)[0]
    np.testing.assert_allclose(variables @ solution, np.stack(wanted, axis=1), atol=1e-8)


def test_directions_without_spread_are_left_out() -> None:
    features = np.outer(np.random.default_rng(0).standard_normal(40), np.ones(3)) + 7.0
    assert balancing_variables(features, np.zeros(40, dtype=np.int64), equal(40, size=20)).shape == (40, 3)
    assert balancing_variables(np.ones((40, 9)), np.zeros(40, dtype=np.int64), equal(40, size=20)).shape == (40, 2)


def test_thousands_of_rows_and_wide_features_keep_size_and_balance() -> None:
    generator = np.random.default_rng(2)
    features, source = generator.standard_normal((2_000, 300)), generator.integers(0, 14, 2_000)
    probability = uneven(2_000, 1_000, generator)
    variables = balancing_variables(features, source, probability)
    assert variables.shape[1] == 14 + 1 + MAX_DIRECTIONS
    rows = cube(variables, probability, generator=generator)
    assert len(rows) == 1_000
    share = np.bincount(source, weights=probability)
    assert (np.abs(np.bincount(source[rows]) - share) < 1).all()


@settings(deadline=None, max_examples=150)
@given(data=st.data(), rows=st.integers(1, 14), width=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_odd_shapes_give_as_many_different_rows_as_were_asked_for(
    data: st.DataObject, rows: int, width: int, seed: int
) -> None:
    """b = r, r = 1, equal rows, one source, sources of one row, norms of zero, rows that are certain or impossible."""
    size = data.draw(st.integers(1, rows))
    integers = st.integers(0, 2)
    features = np.array(
        data.draw(st.lists(st.lists(integers, min_size=width, max_size=width), min_size=rows, max_size=rows)),
        dtype=float,
    )
    source = np.array(data.draw(st.lists(integers, min_size=rows, max_size=rows)))
    norm = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, 50.0]), min_size=rows, max_size=rows)))
    probability = by_norm(norm, size=size, norm_share=1.0)
    before = probability.copy()
    for design in (pivotal_rows, cube_rows):
        picked = design(features, source, probability, np.random.default_rng(seed))
        again = design(features, source, probability, np.random.default_rng(seed))
        assert picked.tolist() == sorted(set(picked.tolist())) == again.tolist()
        assert len(picked) == size
        assert set(np.flatnonzero(probability == 1.0)) <= set(picked.tolist())
        assert not set(np.flatnonzero(probability == 0.0)) & set(picked.tolist())
        np.testing.assert_array_equal(probability, before)
