import json
from typing import get_args

import numpy as np
import pytest
import torch
from rich.console import Console

from selector_server.bench import gradient_match
from selector_server.bench.gradient_errors import Tally, over_points
from selector_server.bench.gradient_match import ARMS, Plan, arm_config
from selector_server.bench.row_gradients import population_gradient, require_memory, row_gradients
from selector_server.bench.shared_scores import SharedScores, SharingEngine
from selector_server.engine import SelectionEngine
from shared.config import Config, DataConfig, ModelConfig, TrainConfig
from shared.dataset import Store
from shared.errors import ConfigError
from shared.model import load_base_model
from shared.rowloss import collate, row_losses
from shared.selection_config import PRESETS, SelectionConfig
from shared.wire import same_selection


@pytest.fixture
def model(world):
    return load_base_model(ModelConfig(path=str(world.model)), torch.device("cpu")).requires_grad_()


@pytest.fixture
def store(world):
    return Store.open(world.store)


def test_errors_are_root_mean_squares_relative_to_what_is_compared_with():
    rng = np.random.default_rng(0)
    population, batches = rng.standard_normal(7), []
    tally = Tally(population)
    for _ in range(30):
        large, estimate = rng.standard_normal((2, 7)) + 1.0
        batches.append((large, estimate))
        tally.add(large, estimate)
    errors = tally.errors()
    larges, estimates = (np.array(column) for column in zip(*batches, strict=True))
    large_square = (larges**2).sum(axis=1).mean()
    expected = np.sqrt(((estimates - larges) ** 2).sum(axis=1).mean() / large_square)
    assert errors.error_large_batch == pytest.approx(expected)
    drift = (estimates - larges).mean(axis=0)
    assert errors.bias_large_batch == pytest.approx(np.sqrt((drift**2).sum() / large_square))
    to_population = ((estimates - population) ** 2).sum(axis=1).mean() / (population**2).sum()
    assert errors.error_population == pytest.approx(np.sqrt(to_population))


def test_the_floor_is_the_bias_that_an_unbiased_estimate_shows():
    rng, shown, floors = np.random.default_rng(1), [], []
    for _ in range(40):
        tally = Tally(np.ones(50))
        for _ in range(25):
            large = np.ones(50)
            tally.add(large, large + rng.standard_normal(50))
        shown.append(tally.errors().bias_large_batch)
        floors.append(tally.errors().bias_floor)
    assert np.mean(shown) == pytest.approx(np.mean(floors), rel=0.05)


def test_points_of_a_run_are_put_together_by_their_squares():
    first, second = (gradient_match.Errors(e, 2 * e, 3 * e, 4 * e, 0.1) for e in (0.3, 0.4))
    both = over_points([first, second])
    assert both.error_large_batch == pytest.approx(np.sqrt((0.09 + 0.16) / 2))
    assert both.stderr == pytest.approx(0.1 / np.sqrt(2))


def test_row_gradients_add_up_to_the_gradient_of_the_mean_loss(model, store):
    rows = np.array([3, 50, 120, 7])
    found = row_gradients(model.eval(), store, rows)
    batch = collate(store.rows(rows))
    row_losses(model(input_ids=batch["input_ids"]).logits, batch["labels"]).mean().backward()
    expected = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
    np.testing.assert_allclose(found.mean(axis=0), expected, atol=1e-5 * np.abs(expected).max())


def test_the_population_weighs_sources_equally_however_few_rows_they_have(model, store):
    found = population_gradient(model.eval(), store, 10**6)
    gradients, source = row_gradients(model, store, np.arange(len(store))), store.sources_of(np.arange(len(store)))
    expected = np.mean([gradients[source == s].mean(axis=0) for s in np.unique(source)], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_model_whose_gradients_do_not_fit_is_refused_with_both_sizes():
    with pytest.raises(ConfigError, match=r"128 rows over 168,000,000 trained weights need 195.3 GiB, there are"):
        require_memory(168_000_000, rows=128, arms=28)


def test_engines_that_share_scores_select_as_engines_that_do_not(model, store):
    shared = SharedScores()
    for preset in ("matched", "paper", "matched"):
        selection = SelectionConfig(preset=preset, large_batch_size=12, sub_batch_size=5)
        alone = SelectionEngine(model, store, selection, run="x", seed=4)
        sharing = SharingEngine(model, store, selection, run="x", seed=4, shared=shared)
        for step in (0, 1):
            assert same_selection(sharing.select(step, 0).selection, alone.select(step, 0).selection)
    # `matched` keeps a history, hence its probes; only its batches differ from step to step.
    assert len(shared) == 4


def test_every_way_to_pick_and_every_preset_is_an_arm():
    configs = [arm_config(changes, b=64, r=16) for changes in ARMS.values()]
    assert {c.pick for c in configs} == set(get_args(SelectionConfig.model_fields["pick"].annotation))
    assert set(PRESETS) <= set(ARMS)
    assert {c.estimator for c in configs} == {"central", "jvp", "exact"}
    assert {c.criterion for c in configs} == {"grad", "weight", "weight_grad"}
    assert {c.quotas for c in configs} == {"none", "proportional", "balanced"}


def test_the_benchmark_measures_a_users_model_and_writes_what_it_found(world, tmp_path, monkeypatch):
    arms = {name: ARMS[name] for name in ("random_r", "random_2r", "random_b", "paper", "matched")}
    plan = Plan(sub_batch_size=4, large_batches=3, population=40, points=[0, 2], rounds=1, arms=arms)
    monkeypatch.setattr(gradient_match, "QUICK", plan)
    config = Config(
        model=ModelConfig(path=str(world.model)),
        data=DataConfig(store=world.store),
        train=TrainConfig(lora={"rank": 4, "alpha": 8.0, "dropout": 0.0}, learning_rate=1e-2),
    )
    gradient_match.run(out=tmp_path, quick=True, console=Console(quiet=True), config=config)
    assert (tmp_path / "gradient-match.png").stat().st_size > 10_000
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(s["b"], s["r"]) for s in result["settings"]] == [(8, 4), (16, 4)]
    for setting in result["settings"]:
        assert list(setting["arms"]) == list(arms)
        found = setting["arms"]
        for arm in found.values():
            assert {"error_large_batch", "bias_large_batch", "error_population", "stderr", "cost"} < set(arm)
        assert found["random_b"]["error_large_batch"] < 1e-6
        assert found["random_r"]["error_large_batch"] > 0.1
        assert found["paper"]["cost"] == 1.0
        assert set(setting["points"]) == {"0", "2"}
    assert result["settings"][0]["arms"]["random_2r"]["error_large_batch"] < 1e-6
