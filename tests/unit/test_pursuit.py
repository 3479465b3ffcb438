import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.picks.pursuit import matching_pursuit
from shared.errors import SelectionError

RIDGE = 0.05


def pursuit_by_hand(values, target, budget, ridge):
    """The same greedy choice with a least-squares problem solved anew at every step, rows stacked on the ridge."""
    scale = np.sqrt((values**2).sum(axis=1).mean())
    values, target = values / scale, target / scale
    picked, weight = [], np.empty(0)
    for _ in range(budget):
        left_over = target - (weight @ values[picked] if picked else 0.0)
        score = values @ left_over / np.sqrt((values**2).sum(axis=1) + ridge)
        score[picked] = -np.inf
        picked.append(int(np.argmax(score)))
        stacked = np.vstack([values[picked].T, np.sqrt(ridge) * np.eye(len(picked))])
        wanted = np.concatenate([target, np.zeros(len(picked))])
        weight = np.maximum(np.linalg.lstsq(stacked, wanted, rcond=None)[0], 0.0)
    return picked, weight


def objective(values, target, index, weight, ridge):
    mean_square = (values**2).sum(axis=1).mean()
    return ((target - weight @ values[index]) ** 2).sum() + ridge * mean_square * (weight**2).sum()


@pytest.mark.parametrize("shape", [(12, 30), (12, 5), (40, 100)])
def test_picks_and_weights_are_those_of_least_squares_solved_anew_at_every_step(shape):
    values = np.random.default_rng(3).standard_normal(shape) + 0.4
    picks = matching_pursuit(values, values.sum(axis=0), budget=shape[0] // 2, ridge=RIDGE)
    expected, weight = pursuit_by_hand(values, values.sum(axis=0), shape[0] // 2, RIDGE)
    assert picks.index.tolist() == expected
    if (weight > 0).all():
        np.testing.assert_allclose(picks.weight, weight, rtol=1e-9)


def test_weights_are_the_best_non_negative_ones_for_the_picks():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = rng.standard_normal((16, 6))
        target = values.sum(axis=0)
        picks = matching_pursuit(values, target, budget=8, ridge=RIDGE)
        best = objective(values, target, picks.index, picks.weight, RIDGE)
        for _ in range(200):
            other = np.maximum(picks.weight + 0.05 * rng.standard_normal(8), 0.0)
            assert best <= objective(values, target, picks.index, other, RIDGE) * (1 + 1e-12)


def test_two_copies_of_every_row_are_matched_by_one_of_each():
    half = np.random.default_rng(0).standard_normal((8, 64))
    values = np.concatenate([half, half])
    picks = matching_pursuit(values, values.sum(axis=0), budget=8, ridge=1e-9)
    assert sorted(picks.index % 8) == list(range(8))
    np.testing.assert_allclose(picks.weight, 2.0, rtol=1e-6)


def test_weights_do_not_depend_on_the_unit_of_gradients():
    values = np.random.default_rng(1).standard_normal((20, 40)) + 0.3
    small, large = (matching_pursuit(s * values, s * values.sum(axis=0), budget=10, ridge=RIDGE) for s in (1e-6, 1e5))
    assert small.index.tolist() == large.index.tolist()
    np.testing.assert_allclose(small.weight, large.weight, rtol=1e-8)


def test_the_estimate_misses_less_than_that_of_a_random_half():
    rng = np.random.default_rng(2)
    missed = {"picked": 0.0, "random": 0.0}
    for _ in range(20):
        centres = rng.standard_normal((4, 200))
        values = centres[rng.integers(4, size=32)] + 0.5 * rng.standard_normal((32, 200))
        total = values.sum(axis=0)
        picks = matching_pursuit(values, total, budget=16, ridge=RIDGE)
        missed["picked"] += ((total - picks.weight @ values[picks.index]) ** 2).sum()
        missed["random"] += ((total - 2.0 * values[rng.permutation(32)[:16]].sum(axis=0)) ** 2).sum()
    assert missed["picked"] < 0.4 * missed["random"]


@settings(deadline=None, max_examples=100)
@given(data=st.data(), rows=st.integers(1, 9), width=st.integers(1, 4))
def test_odd_batches_give_distinct_rows_and_finite_non_negative_weights(data, rows, width):
    row = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    values = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)), dtype=np.float64)
    budget = data.draw(st.integers(1, rows))
    target = data.draw(st.sampled_from([1.0, 0.0, -1.0])) * values.sum(axis=0)
    picks = matching_pursuit(values, target, budget=budget, ridge=0.03)
    assert len(set(picks.index.tolist())) == budget
    assert ((picks.index >= 0) & (picks.index < rows)).all()
    assert np.isfinite(picks.weight).all()
    assert (picks.weight >= 0).all()
    assert (picks.gain >= 0).all()


def test_equal_rows_are_picked_in_order_and_share_the_weight():
    picks = matching_pursuit(np.ones((6, 3)), 6.0 * np.ones(3), budget=3, ridge=1e-6)
    assert picks.index.tolist() == [0, 1, 2]
    np.testing.assert_allclose(picks.weight, 2.0, rtol=1e-4)


@pytest.mark.parametrize("budget", [0, 5])
def test_a_budget_outside_the_batch_is_refused(budget):
    with pytest.raises(SelectionError, match=f"can't pick {budget} of 4 rows: give a budget from 1 to 4"):
        matching_pursuit(np.ones((4, 2)), np.ones(2), budget=budget, ridge=RIDGE)
