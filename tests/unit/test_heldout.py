"""Held-out losses against losses taken row by row in float64."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shared.config import ModelConfig
from shared.dataset import Store
from shared.model import load_base_model
from tests.small_models import loss_in_float64, with_lora
from tests.support import run_cli, write_config
from train_client.heldout import heldout_loss

ALONE = SimpleNamespace(
    process_index=0,
    num_processes=1,
    device=torch.device("cpu"),
    unwrap_model=lambda model: model,
    reduce=lambda tensor, reduction: tensor,
)


@pytest.fixture
def model(world):
    return with_lora(load_base_model(ModelConfig(path=str(world.model)), torch.device("cpu"))).train()


@pytest.fixture
def heldout(world):
    return Store.open(world.heldout)


@pytest.fixture
def by_source(model, heldout):
    """The mean loss of each source, a row at a time."""
    index = np.arange(len(heldout))
    double = model.double().eval()
    with torch.no_grad():
        losses = np.array([float(loss_in_float64(double, row)) for row in heldout.rows(index)])
    model.float().train()
    sources = heldout.sources_of(index)
    return {name: losses[sources == i].mean() for i, name in enumerate(heldout.source_names)}


def training_store(rows):
    """Sources and their rows, all that a held-out loss asks of the training store."""
    return SimpleNamespace(source_names=tuple(rows), source_rows=tuple(rows.values()))


def test_balanced_is_the_mean_over_sources_and_natural_weighs_them_by_training_rows(world, model, heldout, by_source):
    store = Store.open(world.store)
    found = heldout_loss(ALONE, model, heldout, store)
    assert found.by_source == pytest.approx(by_source, rel=1e-5)
    assert found.balanced == pytest.approx(np.mean(list(by_source.values())), rel=1e-5)
    rows = [json.loads(line)["source"] for line in world.rows.read_text().splitlines()]
    assert found.natural == pytest.approx(np.mean([by_source[source] for source in rows]), rel=1e-5)


def test_a_source_that_is_not_trained_on_counts_in_balanced_alone(model, heldout, by_source):
    first, second, *_ = by_source
    found = heldout_loss(ALONE, model, heldout, training_store({second: 30, "elsewhere": 500, first: 10}))
    assert found.balanced == pytest.approx(np.mean(list(by_source.values())), rel=1e-5)
    assert found.natural == pytest.approx((10 * by_source[first] + 30 * by_source[second]) / 40, rel=1e-5)


def test_there_is_no_natural_loss_where_no_held_out_source_is_trained_on(model, heldout):
    assert heldout_loss(ALONE, model, heldout, training_store({"elsewhere": 5})).natural is None


def test_every_module_keeps_its_mode(world, model, heldout):
    model.base_model.model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    heldout_loss(ALONE, model, heldout, Store.open(world.store))
    assert [module.training for module in model.modules()] == modes
    assert {True, False} == set(modes)


@pytest.mark.slow
def test_a_run_reports_held_out_losses_at_its_start_as_often_as_asked_and_at_its_end(world, tmp_path):
    config = write_config(
        tmp_path,
        world,
        data={"heldout_store": world.heldout},
        run={"num_steps": 4},
        train={"eval_every": 3},
        client={"selector": "inline"},
    )
    done = run_cli("train_client", "train", "--config", config)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "train" / "heldout.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 3, 4]
    assert all(row.keys() == {"step", "balanced", "natural", "by_source"} for row in rows)
