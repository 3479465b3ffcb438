"""Every way of picking, through the one function that the engine calls."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.picks.choose import pick_rows
from selector_server.picks.medoids import medoids
from selector_server.picks.record import Features, Picks
from shared.errors import SelectionError
from shared.selection_config import SelectionConfig

WAYS: list[dict[str, Any]] = [
    {"pick": "random"},
    {"pick": "random_stratified"},
    {"pick": "loss"},
    {"pick": "clusters"},
    *({"pick": pick, "inclusion": inclusion} for pick in ("local_pivotal", "cube") for inclusion in ("equal", "norm")),
    *(
        {"quotas": quotas, "keep_small_sources": keep, "weighting": weighting}
        for quotas in ("none", "proportional", "balanced")
        for keep in (False, True)
        for weighting in ("none", "gamma")
    ),
]
UNBIASED = [way for way in WAYS if way.get("pick") in ("random_stratified", "local_pivotal", "cube")]


def name(way: dict[str, Any]) -> str:
    return "-".join(str(value) for value in way.values())


def config(size: int, way: dict[str, Any]) -> SelectionConfig:
    return SelectionConfig.model_validate({"large_batch_size": 1_000, "sub_batch_size": size, **way})


def features_of(values: np.ndarray, metric: Any = "l1") -> Features:
    values = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    return Features(values, metric, np.abs(values).sum(axis=1))


def pick(
    size: int,
    way: dict[str, Any],
    values: np.ndarray,
    source: np.ndarray,
    source_rows: list[int],
    *,
    loss: np.ndarray | None = None,
    seed: int = 0,
    metric: str = "l1",
) -> Picks:
    return pick_rows(
        config(size, way),
        features_of(values, metric),
        source=source,
        source_rows=source_rows,
        loss=np.arange(len(source), dtype=np.float64) if loss is None else loss,
        generator=np.random.default_rng(seed),
        device="cpu",
    )


def sums_to_the_batch_exactly(way: dict[str, Any]) -> bool:
    return way.get("inclusion") != "norm"


@pytest.mark.parametrize("way", WAYS, ids=name)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), rows=st.integers(1, 14), metric=st.sampled_from(["l1", "l2"]), seed=st.integers(0, 2**32))
def test_odd_shapes_give_a_sub_batch_of_different_rows_whose_weights_sum_to_the_batch(
    way: dict[str, Any], data: st.DataObject, rows: int, metric: str, seed: int
) -> None:
    """b = r, r = 1, equal rows, rows without gradient, one source, sources of one row and sources that drew none."""
    size = data.draw(st.integers(1, rows))
    width = data.draw(st.integers(1, 3))
    point = st.lists(st.integers(0, 2), min_size=width, max_size=width)
    values = np.array(data.draw(st.lists(point, min_size=rows, max_size=rows)))
    source = np.array(data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)), dtype=np.int32)
    source_rows = [30, 1, 200, 14, 5]
    picks = pick(size, way, values, source, source_rows, seed=seed, metric=metric)
    assert picks.index.shape == picks.gain.shape == picks.weight.shape == (size,)
    assert picks.index.dtype == np.int64
    assert picks.weight.dtype == picks.gain.dtype == np.float64
    assert len(set(picks.index.tolist())) == size
    assert 0 <= picks.index.min() <= picks.index.max() < rows
    assert np.isfinite(picks.weight).all()
    assert (picks.weight > 0).all()
    if sums_to_the_batch_exactly(way):
        np.testing.assert_allclose(picks.weight.sum(), rows, rtol=1e-9)
    if size == rows:
        np.testing.assert_allclose(picks.weight, 1.0, rtol=1e-9)
    again = pick(size, way, values, source, source_rows, seed=seed, metric=metric)
    for left, right in ((again.index, picks.index), (again.weight, picks.weight), (again.gain, picks.gain)):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("way", UNBIASED, ids=name)
def test_weighted_totals_are_right_on_average(way: dict[str, Any]) -> None:
    generator = np.random.default_rng(3)
    values, source = generator.standard_normal((24, 2)), generator.integers(0, 3, 24)
    target = values[:, 0] ** 2 + source
    totals = []
    for seed in range(1_200):
        picks = pick(9, way, values, source, [10, 100, 1_000], seed=seed)
        totals.append((picks.weight * target[picks.index]).sum())
    assert abs(np.mean(totals) - target.sum()) < 5 * np.std(totals) / np.sqrt(len(totals))


def test_probabilities_by_norm_pick_large_gradients_more_often() -> None:
    values = np.array([1.0, 1.0, 1.0, 5.0])
    way = {"pick": "local_pivotal", "inclusion": "norm", "norm_share": 0.5}
    picks = [pick(1, way, values, np.zeros(4, dtype=np.int64), [9], seed=seed) for seed in range(2_000)]
    weights = {int(p.index[0]): float(p.weight[0]) for p in picks}
    # (1 - 0.5) · mean 2 + 0.5 · norm: masses 1.5, 1.5, 1.5, 3.5 of 8.
    np.testing.assert_allclose([weights[row] for row in range(4)], 8 / np.array([1.5, 1.5, 1.5, 3.5]))
    counts = np.bincount([int(p.index[0]) for p in picks], minlength=4)
    p = np.array([1.5, 1.5, 1.5, 3.5]) / 8
    assert (np.abs(counts - 2_000 * p) < 5 * np.sqrt(2_000 * p * (1 - p))).all()


def test_random_takes_the_first_rows_and_needs_no_scores() -> None:
    source = np.array([0, 1, 0, 1, 1])
    for way in ("random", "random_stratified"):
        picks = pick_rows(
            config(2, {"pick": way}),
            None,
            source=source,
            source_rows=[9, 9],
            loss=None,
            generator=np.random.default_rng(0),
            device="cpu",
        )
        assert sorted(source[picks.index]) == [0, 1]
        assert picks.weight.tolist() == [2.5, 2.5]
    assert pick(3, {"pick": "random"}, np.zeros(5), source, [9, 9]).index.tolist() == [0, 1, 2]


def test_loss_takes_the_largest_and_of_equal_ones_the_lowest_row() -> None:
    loss = np.array([1.0, 3.0, 0.5, 3.0, 2.0, 2.0])
    picks = pick(4, {"pick": "loss"}, np.zeros(6), np.zeros(6, dtype=np.int64), [9], loss=loss)
    assert picks.index.tolist() == [1, 3, 4, 5]
    assert picks.weight.tolist() == [1.5] * 4


def test_the_paper_picks_medoids_of_the_whole_batch_unweighted() -> None:
    values = np.random.default_rng(0).standard_normal((20, 3))
    source = np.arange(20) % 3
    picks, expected = pick(8, {}, values, source, [9, 9, 9]), medoids(values, budget=8, metric="l1", device="cpu")
    assert picks.index.tolist() == expected.index.tolist()
    np.testing.assert_array_equal(picks.gain, expected.gain)
    assert picks.weight.tolist() == [2.5] * 8


def rows_nearest(values: np.ndarray, rows: list[int], picked: list[int]) -> dict[int, int]:
    """How many of `rows` have each pick for the nearest, written out; no ties in the data."""
    counts = dict.fromkeys(picked, 0)
    for row in rows:
        counts[min(picked, key=lambda p: np.abs(values[row] - values[p]).sum())] += 1
    return counts


def test_gamma_weighs_a_pick_by_the_rows_nearest_to_it() -> None:
    values = np.random.default_rng(1).standard_normal((30, 2))
    picks = pick(7, {"weighting": "gamma"}, values, np.zeros(30, dtype=np.int64), [9])
    expected = rows_nearest(values, list(range(30)), picks.index.tolist())
    assert picks.weight.tolist() == list(expected.values())


SOURCE = np.array([2, 0, 3, 0, 3, 3, 1, 0, 3, 0, 1, 3, 3, 0, 3, 3])  # 5, 2, 1 and 8 rows
SOURCE_ROWS = [400, 40, 30, 500]  # 1 and 2 are small


@pytest.mark.parametrize(
    ("quotas", "keep", "expected"),
    [
        ("proportional", False, [3, 1, 0, 4]),  # shares 2.5, 1, 0.5, 4: equal remainders go to the lowest source
        ("balanced", False, [2, 2, 1, 3]),
        ("proportional", True, [2, 2, 1, 3]),  # shares of the five that are left: 1.92, 3.08
        ("balanced", True, [2, 2, 1, 3]),
    ],
)
def test_source_by_source_each_has_its_quota_and_its_own_medoids(quotas: str, keep: bool, expected: list[int]) -> None:
    values = np.random.default_rng(2).standard_normal((16, 3))
    way = {"quotas": quotas, "keep_small_sources": keep, "weighting": "gamma"}
    picks = pick(8, way, values, SOURCE, SOURCE_ROWS)
    assert np.bincount(SOURCE[picks.index], minlength=4).tolist() == expected
    weight = dict(zip(picks.index.tolist(), picks.weight.tolist(), strict=True))
    counted: dict[int, int] = dict.fromkeys(weight, 0)
    for number, quota in enumerate(expected):
        rows = np.flatnonzero(number == SOURCE)
        mine = [row for row in picks.index.tolist() if SOURCE[row] == number]
        if not mine:  # its rows go to the nearest pick of all
            mine = picks.index.tolist()
        elif not (keep and number in (1, 2)):
            best = medoids(values[rows], budget=quota, metric="l1", device="cpu")
            assert mine == rows[best.index].tolist()
        for row, count in rows_nearest(values, rows.tolist(), mine).items():
            counted[row] += count
    assert weight == counted


def test_kept_rows_stand_for_themselves_and_medoids_for_the_others() -> None:
    values = np.random.default_rng(3).standard_normal((16, 3))
    picks = pick(8, {"keep_small_sources": True, "weighting": "gamma"}, values, SOURCE, SOURCE_ROWS)
    assert picks.index[:3].tolist() == [0, 6, 10]
    assert picks.weight[:3].tolist() == [1.0, 1.0, 1.0]
    assert picks.gain[:3].tolist() == [0.0, 0.0, 0.0]
    others = np.flatnonzero((SOURCE == 0) | (SOURCE == 3))
    best = medoids(values[others], budget=5, metric="l1", device="cpu")
    assert picks.index[3:].tolist() == others[best.index].tolist()
    assert picks.weight[3:].tolist() == list(rows_nearest(values, others.tolist(), picks.index[3:].tolist()).values())


def test_small_sources_that_would_take_more_than_half_are_not_all_kept() -> None:
    source = np.array([0] * 3 + [1] * 4 + [2] * 3)
    picks = pick(8, {"keep_small_sources": True}, np.arange(10.0), source, [20, 10, 900])
    assert set(range(3, 7)) <= set(picks.index.tolist())  # source 1 whole: four rows leave four to the others
    np.testing.assert_allclose(picks.weight, 10 / 8)


def test_clusters_give_a_random_member_that_weighs_as_much_as_its_cluster() -> None:
    values = np.array([0.0, 0.1, 0.3, 5.0, 5.1, 9.0])
    draws, counts = 3_000, np.zeros(6)
    for seed in range(draws):
        picks = pick(3, {"pick": "clusters"}, values, np.zeros(6, dtype=np.int64), [9], seed=seed)
        by_row = sorted(zip(picks.index.tolist(), picks.weight.tolist(), strict=True))
        assert [weight for _, weight in by_row] == [3.0, 2.0, 1.0]
        counts[picks.index] += 1
    p = 1 / np.array([3, 3, 3, 2, 2, 1])
    assert (np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p))).all()


@pytest.mark.parametrize("way", [{"pick": "clusters"}, {"weighting": "gamma"}], ids=name)
def test_picks_that_equal_each_other_all_stand_for_something(way: dict[str, Any]) -> None:
    picks = pick(4, way, np.ones((9, 2)), np.zeros(9, dtype=np.int64), [9])
    assert sorted(picks.weight.tolist()) == [1.0, 1.0, 1.0, 6.0]


@pytest.mark.parametrize("way", WAYS, ids=name)
def test_fewer_rows_than_the_sub_batch_are_refused(way: dict[str, Any]) -> None:
    with pytest.raises(SelectionError, match="can't pick 4 of 3 rows"):
        pick(4, way, np.ones((3, 2)), np.zeros(3, dtype=np.int64), [9])


@pytest.mark.parametrize("way", [way for way in WAYS if not way.get("pick", "").startswith("random")], ids=name)
def test_rows_that_were_not_scored_are_refused_by_picks_that_read_scores(way: dict[str, Any]) -> None:
    with pytest.raises(SelectionError, match="score the rows first"):
        pick_rows(
            config(1, way),
            None,
            source=np.zeros(3, dtype=np.int64),
            source_rows=[9],
            loss=None,
            generator=np.random.default_rng(0),
            device="cpu",
        )


def test_every_pick_of_the_config_is_tried_here() -> None:
    tried = {way.get("pick", "facility_location") for way in WAYS}
    # Matching pursuit's weights sum to nothing in particular: tests/unit/test_pursuit.py.
    assert tried | {"matching_pursuit"} == set(get_args(SelectionConfig.model_fields["pick"].annotation))
