import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.picks import medoids
from selector_server.picks.medoids import TIE_TOLERANCE, facility_location
from shared.errors import SelectionError


def similarity_of(points):
    """max(D) - D of L1 distances, written out."""
    points = np.asarray(points, dtype=np.float64).reshape(len(points), -1)
    distances = np.abs(points[:, None] - points[None]).sum(axis=2)
    return distances.max() - distances


def objective(similarity, rows):
    return sum(max(similarity[i, s] for s in rows) for i in range(len(similarity))) if rows else 0.0


def greedy_by_brute_force(similarity, budget):
    """Evaluate the objective for every candidate at every step."""
    picked, gains = [], []
    for _ in range(budget):
        before = objective(similarity, picked)
        gain = {s: objective(similarity, [*picked, s]) - before for s in range(len(similarity)) if s not in picked}
        best = max(gain.values())
        slack = TIE_TOLERANCE * best + 1e-12 * similarity.sum()  # a difference of objectives rounds more than a gain
        picked.append(min(s for s in gain if gain[s] >= best - slack))
        gains.append(gain[picked[-1]])
    return picked, gains


@pytest.mark.parametrize("width", [1, 2, 12])
@pytest.mark.parametrize("budget", [1, 4, 9, 12])
@pytest.mark.parametrize("block_values", [16, 1 << 22])
def test_greedy_equals_brute_force(monkeypatch, width, budget, block_values):
    monkeypatch.setattr(medoids, "_BLOCK_VALUES", block_values)
    similarity = similarity_of(np.random.default_rng(width).standard_normal((12, width)))
    picks = facility_location(similarity, budget=budget)
    expected, gains = greedy_by_brute_force(similarity, budget)
    assert picks.index.tolist() == expected
    np.testing.assert_allclose(picks.gain, gains, atol=1e-9 * similarity.sum())
    assert picks.weight.tolist() == [12 / budget] * budget


# Small integers: many rows and many gains are equal, and sums are exact, so that ties really are ties.
@settings(deadline=None, max_examples=150)
@given(data=st.data(), width=st.integers(1, 3), rows=st.integers(1, 9))
def test_equal_rows_and_ties_go_to_the_lowest_row(data, width, rows):
    point = st.lists(st.integers(0, 3), min_size=width, max_size=width)
    points = data.draw(st.lists(point, min_size=rows, max_size=rows))
    budget = data.draw(st.integers(1, rows))
    similarity = similarity_of(points)
    picks = facility_location(similarity, budget=budget)
    expected, gains = greedy_by_brute_force(similarity, budget)
    assert picks.index.tolist() == expected
    assert picks.gain.tolist() == gains
    assert picks.gain.sum() == objective(similarity, expected)


def test_rounding_does_not_decide_between_two_medians():
    for seed in range(50):
        points = np.random.default_rng(seed).standard_normal(20)
        lower, upper = np.argsort(points)[9:11]  # between these two the sum of distances is constant
        assert facility_location(similarity_of(points), budget=1).index.tolist() == [min(lower, upper)]


def test_gains_far_below_the_first_one_are_still_compared():
    similarity = similarity_of([0.0, 1e-5, 1e6, 1e6 + 3e-5])
    assert facility_location(similarity, budget=3).index[2] in (2, 3)


def test_budget_of_all_rows_picks_each_once():
    similarity = similarity_of(np.random.default_rng(0).standard_normal((40, 2)))
    assert sorted(facility_location(similarity, budget=40).index.tolist()) == list(range(40))


def test_rows_that_are_all_alike_are_picked_in_order():
    picks = facility_location(np.zeros((5, 5)), budget=3)
    assert picks.index.tolist() == [0, 1, 2]
    assert picks.gain.tolist() == [0.0, 0.0, 0.0]


def test_larger_batches_agree_with_a_plain_vectorised_greedy():
    similarity = similarity_of(np.random.default_rng(3).standard_normal((150, 3)))
    covered, expected = np.zeros(150), []
    for _ in range(75):
        gain = np.maximum(similarity - covered[:, None], 0.0).sum(axis=0)
        gain[expected] = -1.0
        expected.append(int(np.argmax(gain >= gain.max() * (1 - TIE_TOLERANCE))))
        covered = np.maximum(covered, similarity[:, expected[-1]])
    assert facility_location(similarity, budget=75).index.tolist() == expected


def test_the_input_is_left_alone_and_float32_is_taken():
    similarity = similarity_of([1.0, 2.0, 4.0]).astype(np.float32)
    before = similarity.copy()
    assert facility_location(similarity, budget=2).gain.dtype == np.float64
    np.testing.assert_array_equal(similarity, before)


@pytest.mark.parametrize("budget", [0, 4, -1])
def test_a_budget_outside_the_batch_is_refused(budget):
    with pytest.raises(SelectionError, match=f"can't pick {budget} of 3 rows: give a budget from 1 to 3"):
        facility_location(np.zeros((3, 3)), budget=budget)


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        ([[1.0, np.nan], [np.nan, 1.0]], "finite"),
        ([[1.0, np.inf], [np.inf, 1.0]], "finite"),
        ([[1.0, -0.1], [-0.1, 1.0]], "not negative"),
        ([[1.0, 0.2], [0.3, 1.0]], "isn't symmetric"),
        ([[1.0, 0.2]], r"shape \[1, 2\]"),
    ],
)
def test_a_similarity_that_makes_no_sense_is_refused(similarity, message):
    with pytest.raises(SelectionError, match=message):
        facility_location(np.array(similarity), budget=1)
