"""The gradient check against gradients taken row by row in float64, and against a run without checks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shared.config import ModelConfig
from shared.dataset import Store
from shared.model import load_base_model
from shared.records import Selection
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig
from tests.small_models import loss_in_float64, with_lora
from tests.support import run_cli, write_config
from train_client import gradient_check
from train_client.gradient_check import GradientCheck
from train_client.heldout import heldout_loss

SELECTION = SelectionConfig(large_batch_size=10, sub_batch_size=4)
ALONE = SimpleNamespace(
    process_index=0,
    num_processes=1,
    device=torch.device("cpu"),
    is_main_process=True,
    unwrap_model=lambda model: model,
    reduce=lambda tensor, reduction: tensor,
)


@pytest.fixture
def store(world):
    return Store.open(world.store)


@pytest.fixture
def model(world):
    model = with_lora(load_base_model(ModelConfig(path=str(world.model)), torch.device("cpu")))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.train()


def drawn(store, step):
    return draw_large_batch(store.source_rows, SELECTION, seed=3, step=step)


def a_selection(store, step, weight, skipped=()):
    rows = drawn(store, step)
    index = np.setdiff1d(rows, skipped)[: len(weight)]
    zeros = np.zeros(len(index), dtype=np.float32)
    return Selection(
        run="run",
        step=step,
        weights_version=step,
        large_batch_size=10,
        index=index,
        source=store.sources_of(index),
        weight=np.array(weight, dtype=np.float32),
        gain=zeros,
        num_tokens=store.lengths(index),
        skipped=np.array(skipped, dtype=np.int64),
    )


def reference(model, store, rows, weight):
    """Σ weight · ∇L in float64, a row at a time."""
    total = 0.0
    double = model.double().eval()
    parameters = [p for p in double.parameters() if p.requires_grad]
    for row, w in zip(store.rows(rows), weight, strict=True):
        gradients = torch.autograd.grad(loss_in_float64(double, row), parameters)
        total = total + w * torch.cat([g.flatten() for g in gradients])
    model.float().train()
    return total


def test_errors_and_biases_are_those_of_gradients_taken_row_by_row(model, store, tmp_path):
    check = GradientCheck(ALONE, model, store, SELECTION, seed=3, every=2, output=tmp_path)
    errors, norms = [], []
    for step, weight in ((0, [4.0, 1.0, 0.5]), (1, [1.0, 1.0]), (2, [2.5, 2.5, 2.5, 2.5])):
        skipped = drawn(store, step)[[2]] if step == 2 else ()
        selection = a_selection(store, step, weight, skipped)
        check.before(selection)
        if step % 2:
            continue
        rows = np.setdiff1d(drawn(store, step), skipped)
        large = reference(model, store, rows, np.full(len(rows), 1 / len(rows)))
        sub = reference(model, store, selection.index, selection.weight.astype(float) / 10)
        errors.append(sub - large)
        norms.append(large.norm())
        line = json.loads((tmp_path / "gradient.jsonl").read_text().splitlines()[-1])
        assert line == pytest.approx(
            {
                "step": step,
                "error": float(errors[-1].norm() / large.norm()),
                "cosine": float(torch.nn.functional.cosine_similarity(large, sub, dim=0)),
                "bias": float(sum(errors).norm() / sum(norms)),
                "bias_floor": float(sum(e.square().sum() for e in errors).sqrt() / sum(norms)),
                "large_batch_norm": float(large.norm()),
            },
            rel=1e-3,
        )
    assert [json.loads(line)["step"] for line in (tmp_path / "gradient.jsonl").read_text().splitlines()] == [0, 2]


def test_ranks_add_up_to_one(model, store, tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_check, "_TOKENS_PER_FORWARD", 100)  # more groups than ranks
    parts = []
    selection = a_selection(store, 0, [4.0, 1.0, 0.5])
    for rank in (0, 1):
        collected = []
        accelerator = SimpleNamespace(**vars(ALONE) | {"process_index": rank, "num_processes": 2})
        accelerator.reduce = lambda tensor, reduction, kept=collected: kept.append(tensor.clone()) or tensor
        GradientCheck(accelerator, model, store, SELECTION, seed=3, every=1, output=tmp_path).before(selection)
        parts.append(collected)
    whole = []
    accelerator = SimpleNamespace(**vars(ALONE))
    accelerator.reduce = lambda tensor, reduction: whole.append(tensor.clone()) or tensor
    GradientCheck(accelerator, model, store, SELECTION, seed=3, every=1, output=tmp_path).before(selection)
    for left, right, both in zip(*parts, whole, strict=True):
        torch.testing.assert_close(left + right, both, rtol=1e-4, atol=1e-6)


def test_a_check_leaves_mode_gradients_and_random_numbers_as_they_were(model, store, tmp_path):
    before = torch.get_rng_state()
    GradientCheck(ALONE, model, store, SELECTION, seed=3, every=1, output=tmp_path).before(a_selection(store, 0, [1.0]))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.get_rng_state().equal(before)


@pytest.mark.slow
def test_a_run_trains_the_same_with_and_without_checks(world, tmp_path):
    weights = []
    for every in (0, 1):
        folder = tmp_path / str(every)
        config = write_config(
            folder,
            world,
            run={"num_steps": 4, "staleness": 0},
            train={"gradient_check_every": every, "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
        )
        done = run_cli("train_client", "train", "--config", config, "--client.selector", "inline")
        assert done.returncode == 0, done.stderr
        weights.append(load_file(folder / "train" / "model" / "adapter_model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    lines = [json.loads(line) for line in (tmp_path / "1" / "train" / "gradient.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert not (tmp_path / "0" / "train" / "gradient.jsonl").exists()


def test_the_natural_loss_weighs_sources_by_their_rows(model, store, world):
    heldout = Store.open(world.heldout)
    found = heldout_loss(ALONE, model, heldout, store)
    rows = dict(zip(store.source_names, store.source_rows, strict=True))
    assert found.balanced == pytest.approx(np.mean(list(found.by_source.values())))
    weights = [rows[name] for name in found.by_source]
    assert found.natural == pytest.approx(np.average(list(found.by_source.values()), weights=weights))
