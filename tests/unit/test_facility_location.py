import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import selector_server.picks.medoids as medoids_module
from selector_server.picks import medoids_greedy
from selector_server.picks.distances import distances_between, pairwise_distances, points
from selector_server.picks.medoids import TIE_TOLERANCE, facility_location, medoids, represented
from shared.errors import SelectionError

fixed = settings(deadline=None, derandomize=True)


def distances_of(rows, metric="l1"):
    """Distances, written out."""
    rows = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
    differences = np.abs(rows[:, None] - rows[None])
    return differences.sum(axis=2) if metric == "l1" else np.sqrt((differences**2).sum(axis=2))


def similarity_of(rows, metric="l1"):
    """max(D) - D."""
    distances = distances_of(rows, metric)
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
    monkeypatch.setattr(medoids_greedy, "_BLOCK_VALUES", block_values)
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


METRICS = pytest.mark.parametrize("metric", ["l1", "l2"])
# The memory that distances may take: all of them are held, or none.
HOLDING = pytest.mark.parametrize("matrix_bytes", [1 << 31, 0])


def vectorised_greedy(distances, budget):
    """The definition with distances, which late gains don't drown in."""
    cover, picked = np.full(len(distances), distances.max()), []
    for _ in range(budget):
        gain = np.maximum(cover - distances, 0.0).sum(axis=1)
        gain[picked] = -1.0
        picked.append(int(np.argmax(gain >= gain.max() * (1 - TIE_TOLERANCE))))
        cover = np.minimum(cover, distances[picked[-1]])
    return picked


# One column goes another way than several; with small integers distances and gains tie.
@fixed
@given(data=st.data(), width=st.integers(1, 3), rows=st.integers(1, 9), metric=st.sampled_from(["l1", "l2"]))
def test_rows_are_picked_by_their_features_as_by_brute_force(data, width, rows, metric):
    row = st.lists(st.integers(0, 4), min_size=width, max_size=width)
    features = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)), dtype=np.float64)
    budget = data.draw(st.integers(1, rows))
    picks = medoids(features, budget=budget, metric=metric)
    similarity = similarity_of(features, metric)
    expected, gains = greedy_by_brute_force(similarity, budget)
    assert picks.index.tolist() == expected
    np.testing.assert_allclose(picks.gain, gains, atol=1e-9 * similarity.sum())
    assert picks.weight.tolist() == [rows / budget] * budget


@METRICS
@HOLDING
@pytest.mark.parametrize("width", [2, 40])
@pytest.mark.parametrize("budget", [1, 2, 60, 200])
def test_held_or_not_distances_make_the_same_picks(monkeypatch, metric, matrix_bytes, width, budget):
    monkeypatch.setattr(medoids_module, "_MATRIX_BYTES", matrix_bytes)
    monkeypatch.setattr(medoids_module, "_BLOCK_VALUES", 1 << 12)
    features = np.random.default_rng(width).standard_normal((200, width))
    picks = medoids(features, budget=budget, metric=metric)
    assert picks.index.tolist() == vectorised_greedy(distances_of(features, metric), budget)


@HOLDING
def test_a_column_that_says_nothing_changes_no_pick(monkeypatch, matrix_bytes):
    monkeypatch.setattr(medoids_module, "_MATRIX_BYTES", matrix_bytes)
    for seed in range(5):
        line = np.round(np.random.default_rng(seed).standard_normal((300, 1)), 2)  # with equal rows and ties
        plane = np.hstack([line, np.ones_like(line)])
        on_the_line, in_the_plane = (medoids(rows, budget=300, metric="l1") for rows in (line, plane))
        assert on_the_line.index.tolist() == in_the_plane.index.tolist()
        np.testing.assert_allclose(on_the_line.gain, in_the_plane.gain, rtol=1e-9, atol=1e-12)


@HOLDING
def test_clusters_narrower_than_the_rounding_of_a_similarity_are_still_told_apart(monkeypatch, matrix_bytes):
    monkeypatch.setattr(medoids_module, "_MATRIX_BYTES", matrix_bytes)
    random = np.random.default_rng(4)
    features = random.standard_normal((60, 2)) * 1e-9 + np.where(np.arange(60) % 2, 0.0, 1e6)[:, None] * [1, 0]
    features[::2, 1] *= 1e3
    picks = medoids(features, budget=60, metric="l1")
    assert picks.index.tolist() == vectorised_greedy(distances_of(features), 60)


def test_wide_features_lose_less_than_a_millionth_of_the_objective():
    random = np.random.default_rng(5)
    features = random.standard_normal((150, 8)) @ random.standard_normal((8, 700)) * 1e-12 + 1e-9
    similarity = similarity_of(features)
    picks = medoids(features, budget=75, metric="l1")
    best = objective(similarity, vectorised_greedy(distances_of(features), 75))
    assert objective(similarity, picks.index.tolist()) >= best * (1 - 1e-6)
    assert picks.gain.sum() == pytest.approx(objective(similarity, picks.index.tolist()), rel=1e-6)


def test_rows_past_the_memory_bound_are_compared_in_small_blocks(monkeypatch):
    asked = []

    def watch(some, others):
        asked.append(len(some.values) * len(others.values))
        return distances_between(some, others)

    monkeypatch.setattr(medoids_module, "_MATRIX_BYTES", 0)
    monkeypatch.setattr(medoids_module, "_BLOCK_VALUES", 5_000)
    monkeypatch.setattr(medoids_greedy, "_BLOCK_VALUES", 5_000)
    monkeypatch.setattr(medoids_module, "distances_between", watch)
    monkeypatch.setattr(medoids_module, "all_distances", None)
    medoids(np.random.default_rng(0).standard_normal((400, 3)), budget=200, metric="l1")
    assert max(asked) <= 5_000


# In a process of its own, whose peak no other test has raised.
PEAK_OF_MEDOIDS = """
import resource
import numpy as np
import torch
import selector_server.picks.medoids as module
torch.set_num_threads(1)
module._MATRIX_BYTES = 0
features = np.random.default_rng(0).standard_normal((12_000, 2))
module.medoids(features[:50], budget=5, metric="l1")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
module.medoids(features, budget=1, metric="l1")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / before)
"""


def test_rows_past_the_memory_bound_take_far_less_memory_than_their_distances_would():
    found = subprocess.run([sys.executable, "-c", PEAK_OF_MEDOIDS], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 2  # 1.2 GB of distances would make it several times as much


@METRICS
@pytest.mark.parametrize("width", [1, 2, 50, 600])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_distances_are_those_written_out(metric, width, offset):
    features = np.random.default_rng(width).standard_normal((300, width)) + offset
    features[7] = features[3]
    features[8] = features[3] + 1e-2  # near rows, where a difference of inner products would cancel
    found, expected = pairwise_distances(features, metric), distances_of(features, metric)
    tolerance = 1e-12 if width <= 256 else 1e-6
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    assert found[3, 7] == 0
    assert (found.diagonal() == 0).all()
    rows = points(features, metric)
    some = distances_between(rows.at(torch.tensor([5, 8, 3])), rows)
    np.testing.assert_allclose(some, expected[[5, 8, 3]], rtol=tolerance)


@METRICS
@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_wide_features_of_any_size_fit_float32(metric, scale):
    features = np.random.default_rng(1).standard_normal((20, 300))
    found = pairwise_distances(features * scale, metric).numpy() / scale
    np.testing.assert_allclose(found, distances_of(features, metric), rtol=1e-6)


def test_distances_of_one_row_and_of_equal_wide_rows():
    assert pairwise_distances(np.ones((1, 3)), "l1").tolist() == [[0.0]]
    assert pairwise_distances(np.ones((2, 300)), "l2").tolist() == [[0.0, 0.0], [0.0, 0.0]]


@fixed
@given(data=st.data(), width=st.integers(1, 3), rows=st.integers(1, 12), metric=st.sampled_from(["l1", "l2"]))
def test_every_row_is_represented_by_its_nearest_pick_the_earliest_of_equals(data, width, rows, metric):
    row = st.lists(st.integers(0, 3), min_size=width, max_size=width)
    features = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)), dtype=np.float64)
    index = np.array(data.draw(st.permutations(range(rows)))[: data.draw(st.integers(1, rows))])
    owner, counts = represented(features, index, metric)
    distances = distances_of(features, metric)
    expected = [min(range(len(index)), key=lambda k: (round(distances[i, index[k]], 9), k)) for i in range(rows)]
    assert owner.tolist() == expected
    assert counts.tolist() == [expected.count(k) for k in range(len(index))]
    assert counts.sum() == rows


def test_represented_rows_in_blocks_are_those_at_once(monkeypatch):
    features = np.random.default_rng(2).standard_normal((97, 4))
    index = np.arange(0, 97, 5)
    expected = distances_of(features)[:, index].argmin(axis=1)
    monkeypatch.setattr(medoids_module, "_BLOCK_VALUES", 64)
    assert represented(features, index, "l1")[0].tolist() == expected.tolist()


@pytest.mark.parametrize("budget", [0, 4])
def test_a_budget_outside_the_rows_is_refused(budget):
    with pytest.raises(SelectionError, match=f"can't pick {budget} of 3 rows: give a budget from 1 to 3"):
        medoids(np.zeros((3, 2)), budget=budget, metric="l1")


@pytest.mark.parametrize("features", [np.zeros(3), np.zeros((3, 0)), np.full((3, 1), np.nan), np.full((3, 2), np.inf)])
def test_features_that_cannot_be_compared_are_refused(features):
    with pytest.raises(SelectionError, match=r"must be \[m, f\] with f >= 1, and finite"):
        medoids(features, budget=1, metric="l1")


def test_rounding_does_not_decide_between_two_picks_that_are_as_near():
    features = np.array([[0.3], [0.1], [0.2]])
    assert abs(0.2 - 0.1) > abs(0.3 - 0.2)  # by one rounding
    owner, counts = represented(features, np.array([1, 0]), "l1")
    assert owner.tolist() == [1, 0, 0]
    assert counts.tolist() == [2.0, 1.0]
