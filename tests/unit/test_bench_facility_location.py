"""The benchmark at sizes that take no time: what it writes, with peers and without."""

import json
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

from selector_server.bench import facility_location as bench
from shared.errors import ConfigError

ROW_KEYS = {"b", "r", "features", "seconds", "objective", "peer", "peer_seconds", "peer_objective"}


@pytest.fixture
def console():
    return Console(record=True, width=160)


@pytest.fixture
def small(monkeypatch):
    """Sizes for a test, and a peer of ten rows' worth that is a module like any other."""
    monkeypatch.setattr(bench, "_KEPT", 40)
    settings = (
        bench.Setting(b=30, r=15, probes=1, peers=("first-rows",), rounds=2),
        bench.Setting(b=20, r=5, probes=3, peers=("first-rows",), rounds=2),
        bench.Setting(b=50, r=25, probes=1, peers=(), rounds=1),
    )
    monkeypatch.setattr(bench, "QUICK", settings)
    monkeypatch.setattr(bench, "PEERS", {"first-rows": ("json", lambda _, budget: np.arange(budget))})


def objective_written_out(features, index):
    distances = np.abs(features[:, None] - features[None]).sum(axis=2)
    return sum(max(distances.max() - distances[i, s] for s in index) for i in range(len(features)))


@pytest.mark.parametrize("width", [1, 7, 300])
def test_objective_is_the_one_written_out(width):
    features = np.random.default_rng(width).standard_normal((40, width))
    index = np.array([3, 17, 39])
    assert bench.objective(features, index) == pytest.approx(objective_written_out(features, index), rel=1e-6)


def test_result_compares_each_size_with_its_peers_by_their_objectives(small, console, tmp_path):
    threads = torch.get_num_threads()
    result = bench.run(out=tmp_path / "out", quick=True, console=console)
    assert torch.get_num_threads() == threads
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert [set(row) for row in result["rows"]] == [ROW_KEYS] * 3
    assert [(row["b"], row["r"], row["features"]) for row in result["rows"]] == [(30, 15, 1), (20, 5, 40), (50, 25, 1)]
    for row, setting in zip(result["rows"][:2], bench.QUICK, strict=False):
        features = bench._features(setting)
        assert row["peer"] == "first-rows"
        assert row["peer_objective"] == pytest.approx(objective_written_out(features, range(row["r"])), rel=1e-6)
        assert row["objective"] > row["peer_objective"]
    assert result["rows"][2]["peer"] is None
    assert "25 of 50 rows, 1 column: too large for first-rows here" in console.export_text()
    assert (tmp_path / "out" / "facility-location.png").read_bytes().startswith(b"\x89PNG")


def test_without_any_peer_it_says_so_and_times_our_own(small, monkeypatch, console, tmp_path):
    monkeypatch.setattr(bench, "PEERS", {"absent": ("a_module_that_is_not_there", bench.submodlib_picks)})
    result = bench.run(out=tmp_path, quick=True, console=console)
    assert [row["peer"] for row in result["rows"]] == [None] * 3
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert "absent isn't compared: it can't be imported" in console.export_text()


def test_peers_get_the_similarity_of_l1_distances_and_a_lazy_greedy(monkeypatch):
    features = np.random.default_rng(0).standard_normal((12, 3))
    distances = np.abs(features[:, None] - features[None]).sum(axis=2)
    given = []

    class Peer:
        """Stands in for both libraries' modules and selections."""

        ranking = (4, 2)

        def FacilityLocationFunction(self, n, **options):
            given.append((n, options["mode"], options["sijs"]))
            return self

        def maximize(self, budget, optimizer, show_progress):
            given.append((budget, optimizer))
            return [(4, 1.0), (2, 0.5)]

        def FacilityLocationSelection(self, budget, **options):
            given.append((budget, options["optimizer"]))
            return self

        def fit(self, similarity):
            given.append((len(similarity), "dense", similarity))
            return self

    monkeypatch.setitem(sys.modules, "submodlib", Peer())
    monkeypatch.setitem(sys.modules, "apricot", Peer())
    assert bench.submodlib_picks(features, 2).tolist() == [4, 2]
    assert bench.apricot_picks(features, 2).tolist() == [4, 2]
    (submodlib, lazy_greedy, lazy, apricot) = given
    assert (lazy_greedy, lazy) == ((2, "LazyGreedy"), (2, "lazy"))
    for size, mode, similarity in (submodlib, apricot):
        assert (size, mode) == (12, "dense")
        np.testing.assert_allclose(similarity, distances.max() - distances, rtol=1e-5, atol=1e-5)


def test_a_folder_that_cannot_be_written_is_refused(small, console, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another folder"):
        bench.run(out=tmp_path / "file" / "out", quick=True, console=console)
