import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server import sparsify
from selector_server.adam import AdamState
from selector_server.features import features_of, mean_distance
from selector_server.scoring.probes import Probes
from selector_server.sparsify import largest, sparsified
from shared.errors import SelectionError
from shared.random import Purpose, stream
from shared.selection_config import SelectionConfig
from tests.unit.test_adam import after, estimates, materialised

CRITERIA = ["grad", "weight", "weight_grad"]
blocks = pytest.mark.parametrize("block_values", [64, 1 << 22])


def distances_by_hand(rows, order=1):
    return np.array([[np.linalg.norm(left - right, order) for right in rows] for left in rows])


def kept_by_hand(rows, weight, *, k, criterion):
    """Which coordinates of whole estimates [b, coordinates] are kept, ascending."""
    magnitude = np.abs(rows).mean(axis=0)
    score = {"grad": magnitude, "weight": np.abs(weight), "weight_grad": np.abs(weight) * magnitude}[criterion]
    return sorted(sorted(range(len(score)), key=lambda p: (-score[p], p))[:k])


def example(n, *, b=9, shape=(20, 15), offset=0.0):
    numbers = np.random.default_rng(n)
    weight = numbers.standard_normal(shape).astype(np.float32)
    return numbers.standard_normal((b, n)) + offset, Probes(shape, seed=1, step=2, count=n), weight


def test_a_probe_is_its_stream_and_its_blocks_put_together():
    probes = Probes((13, 7), seed=5, step=3, count=3)
    expected = stream(5, Purpose.PROBE, step=3, index=2).standard_normal((13, 7), dtype=np.float32)
    np.testing.assert_array_equal(probes.draw(2), expected)
    for size in (1, 10, 90, 91, 1000):
        whole = np.concatenate(list(probes.blocks(size)), axis=1)
        np.testing.assert_array_equal(whole, [probes.draw(j).ravel() for j in range(3)])


def test_probes_differ_by_seed_step_and_index():
    draws = [Probes((50,), seed=s, step=t, count=2).draw(j) for s in (0, 1) for t in (0, 1) for j in (0, 1)]
    assert np.abs(np.corrcoef(draws) - np.eye(8)).max() < 0.5


# ---- sparsified


@blocks
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("k", [1, 17, 299, 300, 5000])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_distances_are_those_of_materialised_estimates_under_one_mask(monkeypatch, n, k, criterion, block_values):
    monkeypatch.setattr(sparsify, "_BLOCK_VALUES", block_values)
    c, probes, weight = example(n)
    whole = estimates(c, probes)
    kept = kept_by_hand(whole, weight.ravel(), k=k, criterion=criterion)
    found = sparsified(c, probes, SelectionConfig(sparsify_k=k, criterion=criterion), weight=weight)
    assert found.shape == (9, 1 if n == 1 else min(k, 300))
    np.testing.assert_allclose(distances_by_hand(found), distances_by_hand(whole[:, kept]), rtol=1e-10)


@blocks
@pytest.mark.parametrize("k", [1, 17, 300])
def test_one_probe_gives_the_distances_of_rows_that_are_sparsified_each_on_its_own(monkeypatch, k, block_values):
    monkeypatch.setattr(sparsify, "_BLOCK_VALUES", block_values)
    c, probes, _ = example(1)
    whole = estimates(c, probes)
    for row in whole:  # the paper's per-row mask
        row[np.argsort(-np.abs(row))[k:]] = 0.0
    found = sparsified(c, probes, SelectionConfig(sparsify_k=k))
    np.testing.assert_allclose(distances_by_hand(found), distances_by_hand(whole), rtol=1e-12)


@blocks
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("steps", [0, 1, 6])
@pytest.mark.parametrize("n", [3, 5])
def test_adam_features_of_several_probes_are_those_of_materialised_estimates(
    monkeypatch, n, steps, criterion, block_values
):
    monkeypatch.setattr(sparsify, "_BLOCK_VALUES", block_values)
    # With this ε even the first step's features, else all of size one, have a largest.
    selection = SelectionConfig(adam_features=True, adam_epsilon=0.05, sparsify_k=40, criterion=criterion)
    c, probes, weight = example(n)
    past = [example(n, b=b, offset=0.2)[0] for b in range(3, 3 + steps)]
    whole = materialised(past, c, probes, selection)
    kept = kept_by_hand(whole, weight.ravel(), k=40, criterion=criterion)
    state = after(past, selection) if past else AdamState.initial(n)
    found = sparsified(c, probes, selection, weight=weight, adam=state)
    np.testing.assert_allclose(found, whole[:, kept], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_adam_features_of_one_probe_are_one_column_with_the_distances_of_materialised_estimates(steps, criterion):
    selection = SelectionConfig(adam_features=True, sparsify_k=40, criterion=criterion)
    c, probes, weight = example(1, b=30)
    past = [example(1, b=b, offset=0.2)[0] for b in range(20, 20 + steps)]
    whole = materialised(past, c, probes, selection)
    kept = kept_by_hand(whole, weight.ravel(), k=40, criterion=criterion)
    state = after(past, selection) if past else AdamState.initial(1)
    found = sparsified(c, probes, selection, weight=weight, adam=state)
    assert found.shape == (30, 1)
    expected = distances_by_hand(whole[:, kept])
    np.testing.assert_allclose(distances_by_hand(found), expected, rtol=0, atol=2e-6 * expected.max())


@blocks
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("epsilon", [1e-3, 0.03, 3.0])
def test_adam_with_a_large_epsilon_takes_many_columns_just_where_rows_change_their_order(
    monkeypatch, epsilon, criterion, block_values
):
    monkeypatch.setattr(sparsify, "_BLOCK_VALUES", block_values)
    selection = SelectionConfig(adam_features=True, sparsify_k=40, criterion=criterion, adam_epsilon=epsilon)
    # Past some size of c its own square outgrows the history, and the update shrinks again: where, depends on ε.
    c, probes, weight = example(1, b=100)
    c, past = 20.0 * c, [example(1, b=20, offset=0.5)[0]] * 5
    whole = materialised(past, c, probes, selection)
    kept = kept_by_hand(whole, weight.ravel(), k=40, criterion=criterion)
    found = sparsified(c, probes, selection, weight=weight, adam=after(past, selection))
    along = whole[:, kept] * np.sign(probes.draw(0).ravel()[kept])
    orders = np.argsort(along, axis=0)
    assert found.shape == (100, 1 if (orders == orders[:, :1]).all() else 40)
    assert found.shape[1] == 40 or criterion == "grad" or epsilon == 3.0
    np.testing.assert_allclose(distances_by_hand(found), distances_by_hand(whole[:, kept]), rtol=1e-9, atol=1e-12)


def test_one_column_is_exact_whatever_epsilon_where_rows_keep_their_order():
    # Without history f(c) = c / (|c| + ε/|z|) grows with c at every coordinate: tiny and absent gradients too.
    selection = SelectionConfig(adam_features=True, sparsify_k=40, adam_epsilon=0.1)
    c = np.array([[0.0], [1e-6], [-1e-3], [0.1], [-0.1], [2.0], [50.0], [50.0]])
    probes = Probes((20, 15), seed=1, step=0, count=1)
    found = sparsified(c, probes, selection, adam=AdamState.initial(1))
    assert found.shape == (8, 1)
    whole = materialised([], c, probes, selection)
    kept = kept_by_hand(whole, np.ones(300), k=40, criterion="grad")
    np.testing.assert_allclose(distances_by_hand(found), distances_by_hand(whole[:, kept]), rtol=1e-9)


def greedy(similarity, r):
    """Facility location by brute force; of picks that raise the objective most, up to rounding, the first."""
    picks, objective = [], 0.0
    for _ in range(r):
        totals = np.array([similarity[:, [*picks, row]].max(axis=1).sum() for row in range(len(similarity))])
        gains = np.where(np.isin(np.arange(len(similarity)), picks), -1.0, totals - objective)
        picks.append(int(np.argmax(gains >= gains.max() * (1 - 1e-9))))
        objective = totals[picks[-1]]
    return picks


@pytest.mark.parametrize("n", [1, 4])
def test_with_adam_features_picks_cover_the_batch_as_well_as_those_of_materialised_estimates(n):
    selection = SelectionConfig(adam_features=True, sparsify_k=50)
    past = []
    for step in range(5):
        c = np.random.default_rng(step).standard_t(3, (40, n))
        probes = Probes((30, 20), seed=4, step=0, count=n)
        whole = materialised(past, c, probes, selection)
        kept = kept_by_hand(whole, np.ones(600), k=50, criterion="grad")
        truth = distances_by_hand(whole[:, kept])
        truth = truth.max() - truth
        state = after(past, selection) if past else AdamState.initial(n)
        ours = distances_by_hand(sparsified(c, probes, selection, adam=state))
        objective, best = (truth[:, greedy(s, 20)].max(axis=1).sum() for s in (ours.max() - ours, truth))
        assert abs(objective / best - 1) < 1e-4
        past.append(c)


@settings(deadline=None, max_examples=60)
@given(
    b=st.integers(1, 9),
    n=st.integers(1, 4),
    size=st.integers(1, 40),
    k=st.integers(1, 50),
    seed=st.integers(0, 99),
    criterion=st.sampled_from(CRITERIA),
    adam=st.booleans(),
)
def test_odd_shapes_and_equal_rows_agree_with_the_materialised_estimate(b, n, size, k, seed, criterion, adam):
    numbers = np.random.default_rng(seed)
    probes, weight = Probes((size,), seed=seed, step=0, count=n), numbers.standard_normal(size).astype(np.float32)
    c = np.repeat(numbers.standard_normal((1, n)), b, axis=0)
    c[: b // 2] *= -3.0
    selection = SelectionConfig(criterion=criterion, sparsify_k=k, adam_features=adam, adam_epsilon=0.1)
    past = [numbers.standard_normal((4, n)) for _ in range(2)]
    whole = materialised(past, c, probes, selection) if adam else estimates(c, probes)
    kept = kept_by_hand(whole, weight, k=k, criterion=criterion)
    state = after(past, selection) if adam else None
    distances = distances_by_hand(sparsified(c, probes, selection, weight=weight, adam=state))
    expected = distances_by_hand(whole[:, kept])
    np.testing.assert_allclose(distances, expected, rtol=1e-9, atol=1e-6 * expected.max() if adam else 1e-12)
    assert (distances == distances.T).all()


@given(scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, np.inf]), min_size=1, max_size=30), k=st.integers(1, 35))
def test_of_equal_scores_the_first_are_the_largest(scores, k):
    expected = sorted(sorted(range(len(scores)), key=lambda p: (-scores[p], p))[:k])
    assert largest(np.array(scores), k).tolist() == expected


@pytest.mark.parametrize("n", [1, 2])
def test_coordinates_of_equal_weight_are_kept_from_the_first_on(monkeypatch, n):
    monkeypatch.setattr(sparsify, "_BLOCK_VALUES", 64)
    c, probes, _ = example(n)
    # LoRA's B before its first step is all zeros.
    for criterion in ("weight", "weight_grad"):
        selection = SelectionConfig(criterion=criterion, sparsify_k=7)
        found = sparsified(c, probes, selection, weight=np.zeros((20, 15), dtype=np.float32))
        np.testing.assert_allclose(
            distances_by_hand(found), distances_by_hand(estimates(c, probes)[:, :7]), rtol=1e-10, err_msg=criterion
        )


def test_rows_that_all_have_no_gradient_are_all_alike():
    for n in (1, 2):
        probes, c = Probes((30,), seed=0, step=0, count=n), np.zeros((4, n))
        for adam in (None, AdamState.initial(n)):
            assert not distances_by_hand(sparsified(c, probes, SelectionConfig(sparsify_k=7), adam=adam)).any()


def test_what_does_not_fit_is_refused_with_both_values():
    c, probes, weight = example(3)
    for arguments, message in [
        ((c[:, :2], probes, SelectionConfig()), r"shape \[9, 2\] don't belong to 3 probes"),
        ((c[:, 0], probes, SelectionConfig()), r"shape \[9\] don't belong"),
        ((c, probes, SelectionConfig(criterion="weight")), "'weight' needs .* 300 coordinates .* given none"),
        ((c, probes, SelectionConfig(criterion="weight_grad"), weight[:2]), "given one of 30 coordinates"),
        ((c, probes, SelectionConfig(), None, AdamState.initial(2)), "of 2 probes, the rows were scored with 3"),
    ]:
        with pytest.raises(SelectionError, match=message):
            sparsified(*arguments[:3], **dict(zip(("weight", "adam"), arguments[3:], strict=False)))


# ---- features_of


def test_each_pick_compares_rows_in_its_own_metric():
    c, probes, weight = example(4)
    for pick in ("facility_location", "clusters"):
        found = features_of(SelectionConfig(pick=pick, sparsify_k=11), c=c, probes=probes)
        assert (found.metric, found.values.shape) == ("l1", (9, 11))
    for pick in ("local_pivotal", "cube", "matching_pursuit"):
        found = features_of(SelectionConfig(pick=pick), c=c, probes=probes)
        assert (found.metric, found.values.shape) == ("l2", (9, 4))
    for pick in ("local_pivotal", "cube"):
        # Coordinates that were asked for aren't silently left out.
        for choice in ({"criterion": "weight"}, {"adam_features": True}):
            selection = SelectionConfig(pick=pick, sparsify_k=11, **choice)
            found = features_of(selection, c=c, probes=probes, weight=weight, adam=AdamState.initial(4))
            assert (found.metric, found.values.shape) == ("l1", (9, 11))
    for pick in ("facility_location", "local_pivotal"):
        sketch = np.random.default_rng(0).standard_normal((9, 6))
        found = features_of(SelectionConfig(pick=pick), sketch=sketch)
        assert found.metric == "l2"
        np.testing.assert_array_equal(found.values, sketch)
        np.testing.assert_allclose(found.norm, [np.sqrt((row**2).sum()) for row in sketch])


def test_norms_and_the_distances_of_a_spread_sample_are_those_of_the_gradients():
    gradients = np.random.default_rng(0).standard_normal((5, 200)) * np.array([[0.0], [1], [2], [3], [4]])
    probes = Probes((200,), seed=0, step=0, count=4000)
    c = gradients @ np.stack([probes.draw(j) for j in range(4000)]).T
    found = features_of(SelectionConfig(pick="local_pivotal"), c=c, probes=probes)
    # A chi-square of 4,000 degrees of freedom: its root is off by 1.1 % at one standard deviation.
    np.testing.assert_allclose(found.norm, np.linalg.norm(gradients, axis=1), rtol=0.05)
    np.testing.assert_allclose(distances_by_hand(found.values, 2), distances_by_hand(gradients, 2), rtol=0.05)


def test_without_adam_features_the_moments_are_left_out():
    c, probes, _ = example(3)
    expected = features_of(SelectionConfig(), c=c, probes=probes).values
    found = features_of(SelectionConfig(), c=c, probes=probes, adam=after([c])).values
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(SelectionError, match="adam_features needs the run's moments"):
        features_of(SelectionConfig(adam_features=True), c=c, probes=probes)


def test_rows_that_were_not_scored_are_refused():
    for given_ in ({}, {"c": np.zeros((2, 1))}, {"prompt": np.zeros((2, 3))}):
        with pytest.raises(SelectionError, match="score them first"):
            features_of(SelectionConfig(), **given_)


@pytest.mark.parametrize("scale", [0.25, 1.0])
@pytest.mark.parametrize("kind", ["one probe", "several probes", "spread", "sketch"])
def test_prompts_add_their_scaled_distance_to_the_gradients(kind, scale):
    numbers = np.random.default_rng(5)
    prompt = 1000.0 + numbers.standard_normal((9, 12))
    choices = {"soft_labels": True, "soft_label_scale": scale, "sparsify_k": 20}
    if kind == "spread":
        choices["pick"] = "local_pivotal"
    c, probes, _ = example(1 if kind == "one probe" else 4)
    scored = {"sketch": numbers.standard_normal((9, 6))} if kind == "sketch" else {"c": c, "probes": probes}
    bare = features_of(SelectionConfig(**choices), **scored)
    found = features_of(SelectionConfig(**choices), **scored, prompt=prompt)
    assert found.metric == bare.metric == ("l1" if "probe" in kind else "l2")
    assert found.values.shape == (9, bare.values.shape[1] + 12)
    np.testing.assert_array_equal(found.norm, bare.norm)
    power = 1 if found.metric == "l1" else 2
    gradients, prompts, both = (distances_by_hand(rows, power) ** power for rows in (bare.values, prompt, found.values))
    factor = scale**power * gradients.mean() / prompts.mean()
    np.testing.assert_allclose(both, gradients + factor * prompts, rtol=1e-9)


def test_prompts_add_nothing_where_either_part_tells_no_rows_apart():
    probes = Probes((5,), seed=0, step=0, count=2)
    c, same = np.random.default_rng(0).standard_normal((3, 2)), np.full((3, 2), 0.1)
    for pick in ("local_pivotal", "facility_location"):
        selection = SelectionConfig(soft_labels=True, pick=pick)
        bare = features_of(selection, c=c, probes=probes).values
        found = features_of(selection, c=c, probes=probes, prompt=same).values
        np.testing.assert_array_equal(found, np.concatenate([bare, np.zeros((3, 2))], axis=1))
        found = features_of(selection, c=same[:1].repeat(3, axis=0), probes=probes, prompt=c).values
        assert np.ptp(found, axis=0).max() < 1e-12
        found = features_of(selection, c=c[:1], probes=probes, prompt=same[:1]).values
        assert found.shape == (1, bare.shape[1] + 2)


@given(b=st.integers(1, 12), f=st.integers(1, 4), seed=st.integers(0, 999), ties=st.booleans())
def test_the_mean_distance_is_that_of_all_pairs(b, f, seed, ties):
    numbers = np.random.default_rng(seed)
    rows = numbers.integers(0, 3, (b, f)).astype(float) if ties else numbers.standard_normal((b, f))
    pairs = [(i, j) for i in range(b) for j in range(i)]
    by_hand = [[np.linalg.norm(rows[i] - rows[j], order) for i, j in pairs] or [0.0] for order in (1, 2)]
    np.testing.assert_allclose(mean_distance(rows, "l1"), np.mean(by_hand[0]), rtol=1e-12)
    np.testing.assert_allclose(mean_distance(rows, "l2"), np.sqrt(np.mean(np.square(by_hand[1]))), rtol=1e-12)


def test_the_same_input_gives_the_same_bits():
    for n in (1, 5):
        c, probes, weight = example(n, b=40)
        for choices in ({}, {"adam_features": True}, {"criterion": "weight_grad"}, {"pick": "cube"}):
            selection = SelectionConfig(sparsify_k=33, **choices)
            prompt = np.random.default_rng(0).standard_normal((40, 8))
            first, again = (
                features_of(selection, c=c.copy(), probes=probes, prompt=prompt, weight=weight, adam=after([c]))
                for _ in range(2)
            )
            assert first.values.tobytes() == again.values.tobytes()
            assert first.norm.tobytes() == again.norm.tobytes()
