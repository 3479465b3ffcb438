"""The gradient check against gradients taken row by row in float64, and against a run without checks."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shared.config import ModelConfig, load_config
from shared.dataset import Store
from shared.model import load_base_model
from shared.records import Selection
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig
from tests.small_models import loss_in_float64, with_lora
from tests.support import Trainer, write_config
from train_client import gradient_check
from train_client.gradient_check import GradientCheck

SELECTION = SelectionConfig(large_batch_size=10, sub_batch_size=4)
ALONE = SimpleNamespace(
    process_index=0,
    num_processes=1,
    device=torch.device("cpu"),
    is_main_process=True,
    scaler=None,
    unwrap_model=lambda model: model,
    reduce=lambda tensor, reduction: tensor,
)


@pytest.fixture
def store(world):
    return Store.open(world.store)


@pytest.fixture(params=["lora", "full"])
def model(world, request):
    model = load_base_model(ModelConfig(path=str(world.model)), torch.device("cpu"))
    if request.param == "full":
        return model.requires_grad_().train()
    model = with_lora(model)
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


def lines(folder):
    """What was written, as strict JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "gradient.jsonl").read_text().splitlines()]


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
        assert lines(tmp_path)[-1] == pytest.approx(
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
    assert [line["step"] for line in lines(tmp_path)] == [0, 2]


@pytest.mark.parametrize("left_out", [0, 2])
def test_a_sub_batch_that_is_all_of_the_large_batch_has_no_error(model, store, tmp_path, left_out):
    check = GradientCheck(ALONE, model, store, SELECTION, seed=3, every=1, output=tmp_path)
    for step in (0, 1):
        kept = 10 - left_out
        check.before(a_selection(store, step, [10 / kept] * kept, drawn(store, step)[:left_out]))
    for line in lines(tmp_path):
        assert line["error"] < 1e-6
        assert line["bias"] < 1e-6
        assert line["cosine"] == pytest.approx(1, abs=1e-9)


def test_the_sums_begin_anew_where_a_run_is_resumed(model, store, tmp_path):
    before = GradientCheck(ALONE, model, store, SELECTION, seed=3, every=1, output=tmp_path)
    for step in (0, 1, 2):
        before.before(a_selection(store, step, [4.0, 1.0]))
    first, second, third = lines(tmp_path)
    assert second["bias_floor"] < 0.9 * second["error"]
    resumed = GradientCheck(ALONE, model, store, SELECTION, seed=3, every=1, output=tmp_path)
    resumed.before(a_selection(store, 1, [4.0, 1.0]))
    again = lines(tmp_path)
    assert again[0] == first
    assert again[1:] == [second | dict.fromkeys(("bias", "bias_floor"), pytest.approx(second["error"]))]
    resumed.before(a_selection(store, 2, [4.0, 1.0]))
    assert lines(tmp_path)[2]["error"] == third["error"]


def test_gradients_that_are_not_finite_leave_a_warning_and_later_checks_whole(model, store, tmp_path, caplog):
    check = GradientCheck(ALONE, model, store, SELECTION, seed=3, every=1, output=tmp_path)
    parameter = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        right = parameter.clone()
        parameter.fill_(math.inf)
        check.before(a_selection(store, 0, [4.0, 1.0]))
        parameter.copy_(right)
    assert "step 0: no gradient check" in caplog.text
    check.before(a_selection(store, 1, [4.0, 1.0]))
    (line,) = lines(tmp_path)
    assert line["step"] == 1
    assert line["bias"] == pytest.approx(line["error"])


def test_a_loss_scale_keeps_small_gradients_and_changes_nothing_else(model, store, tmp_path):
    for name, scaler in (("bare", None), ("scaled", SimpleNamespace(get_scale=lambda: 1024.0))):
        (tmp_path / name).mkdir()
        accelerator = SimpleNamespace(**vars(ALONE) | {"scaler": scaler})
        check = GradientCheck(accelerator, model, store, SELECTION, seed=3, every=1, output=tmp_path / name)
        check.before(a_selection(store, 0, [4.0, 1.0, 0.5]))
    assert lines(tmp_path / "scaled")[0] == pytest.approx(lines(tmp_path / "bare")[0], rel=1e-4)


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


def test_a_check_leaves_modes_gradients_and_random_numbers_as_they_were(model, store, tmp_path):
    frozen = next(module for name, module in model.named_modules() if name.endswith("layers.0"))
    frozen.eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    GradientCheck(ALONE, model, store, SELECTION, seed=3, every=1, output=tmp_path).before(a_selection(store, 0, [1.0]))
    assert [module.training for module in model.modules()] == modes
    assert model.training
    assert not frozen.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.get_rng_state().equal(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "lora"), [(1, {"rank": 4, "alpha": 8, "dropout": 0.2}), (2, False)], ids=["lora", "full, two ranks"]
)
def test_a_run_trains_the_same_with_and_without_checks(world, store, tmp_path, ranks, lora):
    weights = []
    for every in (0, 1):
        config = write_config(
            tmp_path / str(every),
            world,
            run={"num_steps": 5, "staleness": 0},
            client={"selector": "inline"},
            train={"gradient_check_every": every, "lora": lora},
        )
        with Trainer(config, ranks=ranks) as trainer:
            trainer.finish()
        (saved,) = (tmp_path / str(every) / "train" / "model").glob("*.safetensors")
        weights.append(load_file(saved))
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert not (tmp_path / "0" / "train" / "gradient.jsonl").exists()
    found = lines(tmp_path / "1" / "train")
    assert [line["step"] for line in found] == [0, 1, 2, 3, 4]
    if lora:
        return  # a new adapter's weights are the run's own; what follows needs the weights of step 0
    settings = load_config(config)
    steps = [json.loads(path.open().readline()) for path in config.parent.glob("train/steps-rank*.jsonl")]
    index = np.concatenate([step["rows"] for step in steps])
    weight = np.concatenate([step["weights"] for step in steps])
    drawn = draw_large_batch(store.source_rows, settings.selection, seed=settings.run.seed, step=0)
    base = load_base_model(settings.model, torch.device("cpu")).requires_grad_()
    large = reference(base, store, drawn, np.full(len(drawn), 1 / len(drawn)))
    sub = reference(base, store, index, weight / len(drawn))
    assert found[0]["error"] == pytest.approx(float((sub - large).norm() / large.norm()), rel=1e-3)
