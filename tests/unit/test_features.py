import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server import features
from selector_server.features import kept_coordinates, l1_distances, l1_features
from selector_server.probes import Probes
from shared.random import Purpose, stream


def materialised(c, probes):
    """Every row's whole estimate ĝ_i, [b, coordinates]: what the product never forms."""
    z = np.stack([probes.draw(j).ravel() for j in range(probes.count)]).astype(np.float64)
    return c @ z / probes.count


def distances_by_hand(rows):
    return np.array([[np.abs(left - right).sum() for right in rows] for left in rows])


def test_a_probe_is_its_stream_and_its_blocks_put_together(monkeypatch):
    probes = Probes((13, 7), seed=5, step=3, count=3)
    expected = stream(5, Purpose.PROBE, step=3, index=2).standard_normal((13, 7), dtype=np.float32)
    np.testing.assert_array_equal(probes.draw(2), expected)
    for size in (1, 10, 90, 91, 1000):
        whole = np.concatenate(list(probes.blocks(size)), axis=1)
        np.testing.assert_array_equal(whole, [probes.draw(j).ravel() for j in range(3)])


def test_probes_differ_by_seed_step_and_index():
    draws = [Probes((50,), seed=s, step=t, count=2).draw(j) for s in (0, 1) for t in (0, 1) for j in (0, 1)]
    assert np.abs(np.corrcoef(draws) - np.eye(8)).max() < 0.5


@pytest.mark.parametrize("block_values", [64, 1 << 22])
@pytest.mark.parametrize("k", [1, 17, 300])
def test_one_probe_gives_the_distances_of_rows_that_are_sparsified_each_on_its_own(monkeypatch, k, block_values):
    monkeypatch.setattr(features, "_BLOCK_VALUES", block_values)
    probes, c = Probes((20, 15), seed=1, step=2, count=1), np.random.default_rng(0).standard_normal((9, 1))
    estimate = materialised(c, probes)
    for row in estimate:  # the paper's per-row mask
        row[np.argsort(-np.abs(row))[k:]] = 0.0
    found = l1_features(c, probes, k=k)
    assert found.shape == (9, 1)
    np.testing.assert_allclose(l1_distances(found), distances_by_hand(estimate), rtol=1e-12)


@pytest.mark.parametrize("block_values", [64, 1 << 22])
@pytest.mark.parametrize("k", [1, 17, 299, 300, 5000])
def test_several_probes_give_the_distances_of_the_materialised_estimate_under_one_mask(monkeypatch, k, block_values):
    monkeypatch.setattr(features, "_BLOCK_VALUES", block_values)
    probes, c = Probes((20, 15), seed=1, step=2, count=5), np.random.default_rng(0).standard_normal((9, 5))
    estimate = materialised(c, probes)
    kept = np.argsort(-np.abs(estimate).mean(axis=0))[:k]
    found = l1_features(c, probes, k=k)
    assert found.shape == (9, min(k, 300))
    np.testing.assert_allclose(l1_distances(found), distances_by_hand(estimate[:, kept]), rtol=1e-10)


@settings(deadline=None, max_examples=40)
@given(b=st.integers(1, 9), n=st.integers(1, 4), size=st.integers(1, 40), k=st.integers(1, 50), seed=st.integers(0, 99))
def test_odd_shapes_and_equal_rows_agree_with_the_materialised_estimate(b, n, size, k, seed):
    probes = Probes((size,), seed=seed, step=0, count=n)
    c = np.repeat(np.random.default_rng(seed).standard_normal((1, n)), b, axis=0)
    c[: b // 2] *= -3.0
    estimate = materialised(c, probes)
    kept = np.argsort(-np.abs(estimate).mean(axis=0))[:k]
    distances = l1_distances(l1_features(c, probes, k=k))
    np.testing.assert_allclose(distances, distances_by_hand(estimate[:, kept]), rtol=1e-10, atol=1e-12)
    assert (distances == distances.T).all()


def test_rows_that_all_have_no_gradient_are_all_alike():
    probes = Probes((30,), seed=0, step=0, count=2)
    assert not l1_distances(l1_features(np.zeros((4, 2)), probes, k=7)).any()
    assert kept_coordinates(np.zeros((4, 2)), probes, k=7).shape == (2, 7)
