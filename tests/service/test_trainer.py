"""Sub-batches in Hugging Face's Trainer: the loop is its own, and what it trains is what the reference loop trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from shared.config import load_config
from shared.dataset import Store
from shared.errors import ConfigError, CursorError, LoopError
from shared.model import load_base_model, new_adapter, trainable_tensors
from shared.records import PhaseTimes, Selection
from tests.support import World, write_config
from train_client import SubbatchMixin
from train_client.received import Received
from train_client.train import train
from train_client.trainer_state import STATE_FILE, load_state, save_state

STEPS, RATE, SEED = 6, 5e-3, 11
ROWS = {"large_batch_size": 12, "sub_batch_size": 7}
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}


class SubbatchTrainer(SubbatchMixin, Trainer):
    """As a user writes it."""


@pytest.fixture(autouse=True)
def _forget_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def a_config(folder: Path, world: World, **branches: Any) -> Path:
    tree: dict[str, Any] = {
        "selection": ROWS,
        "run": {"num_steps": STEPS, "seed": SEED},
        "client": {"selector": "inline"},
        "train": {"lora": LORA, "micro_batch_size": 3, "learning_rate": RATE},
    }
    for branch, keys in branches.items():
        tree[branch] = tree.get(branch, {}) | keys
    return write_config(folder, world, **tree)


def a_trainer(config: Path, *, full: bool = False, **changes: Any) -> SubbatchTrainer:
    tree = load_config(config)
    torch.manual_seed(SEED)
    model = load_base_model(tree.model, torch.device("cpu"))
    model = model.requires_grad_() if full else new_adapter(model, tree.train.lora)
    given = {name: changes.pop(name) for name in ("callbacks", "optimizers", "eval_dataset") if name in changes}
    arguments = {
        "output_dir": str(config.parent / "trainer"),
        "learning_rate": RATE,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(tree.train.warmup_ratio * STEPS),
        "per_device_train_batch_size": 3,
        "use_cpu": True,
        "seed": SEED,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
    }
    return SubbatchTrainer(model=model, args=TrainingArguments(**arguments | changes), subbatch=config, **given)


def weights(trainer: SubbatchTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainable_tensors(trainer.model).items()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)


class Rows(TrainerCallback):
    """Notes the rows of every step."""

    def __init__(self) -> None:
        self.trainer: SubbatchTrainer | None = None
        self.rows: dict[int, list[int]] = {}
        self.epochs: dict[int, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        report = self.trainer.subbatch.last_step
        if report is not None:
            self.rows[report.selection.step] = report.rows
            self.epochs[state.global_step] = state.epoch


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_it_trains_the_rows_and_reaches_the_weights_of_the_reference_loop(world: World, tmp_path: Path) -> None:
    config = a_config(tmp_path, world)
    train(load_config(config))
    AcceleratorState._reset_state(reset_partial_state=True)
    reference = [json.loads(row) for row in (tmp_path / "train" / "steps-rank0.jsonl").read_text().splitlines()]

    noted = Rows()
    trainer = a_trainer(config, callbacks=[noted])
    noted.trainer = trainer
    result = trainer.train()

    assert result.global_step == STEPS
    assert noted.rows == {row["step"]: row["rows"] for row in reference}
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["loss"] for row in logged] == pytest.approx([row["loss"] for row in reference], rel=1e-5)
    assert [row["learning_rate"] for row in logged] == pytest.approx([row["learning_rate"] for row in reference])
    trainer.model.save_pretrained(tmp_path / "model")
    adapter = "adapter_model.safetensors"
    assert_equal(load_file(tmp_path / "model" / adapter), load_file(tmp_path / "train" / "model" / adapter))


@pytest.mark.parametrize("preset", ["paper", "matched"])
def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_happened(world: World, tmp_path: Path, preset: str) -> None:
    selection = ROWS | {"preset": preset}
    lora = {"lora": LORA | {"dropout": 0.3}}
    undisturbed = Rows()
    whole = a_trainer(a_config(tmp_path / "a", world, selection=selection, train=lora), callbacks=[undisturbed])
    undisturbed.trainer = whole
    whole.train()

    config = a_config(tmp_path / "b", world, selection=selection, train=lora)
    saving = {"save_strategy": "steps", "save_steps": 2}
    first = a_trainer(config, callbacks=[StopAfter(5)], **saving)
    first.train()
    # What a job leaves behind that is killed while it saves.
    (torn := tmp_path / "b" / "trainer" / "checkpoint-5").mkdir(exist_ok=True)
    (torn / STATE_FILE).unlink(missing_ok=True)

    noted = Rows()
    second = a_trainer(config, callbacks=[noted], **saving)
    noted.trainer = second
    second.train(resume_from_checkpoint=True)
    assert sorted(noted.rows) == [4, 5]
    assert all(noted.rows[step] == undisturbed.rows[step] for step in noted.rows)
    assert noted.epochs == {step: undisturbed.epochs[step] for step in noted.epochs}
    assert_equal(weights(second), weights(whole))


def test_full_fine_tuning_resumes_though_the_base_has_changed(world: World, tmp_path: Path) -> None:
    whole = a_trainer(a_config(tmp_path / "a", world, train={"lora": False}), full=True)
    whole.train()
    config = a_config(tmp_path / "b", world, train={"lora": False})
    saving = {"save_strategy": "steps", "save_steps": 3}
    a_trainer(config, full=True, callbacks=[StopAfter(3)], **saving).train()
    second = a_trainer(config, full=True, **saving)
    second.train(resume_from_checkpoint=str(tmp_path / "b" / "trainer" / "checkpoint-3"))
    assert_equal(weights(second), weights(whole))


class MadeUpSource:
    """One selection of uneven weights."""

    reads_ahead = False

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def selection(self, step: int) -> Received:
        return Received(self._selection, PhaseTimes(), 0, 0)

    def open(self, *_: object, **__: object) -> None: ...
    def instead(self, step: int) -> None: ...
    def before_step(self) -> None: ...
    def attempted(self, completed: int) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def reference_update(world: World, selection: Selection) -> dict[str, torch.Tensor]:
    """Σ w_i ∇L_i / b in float64, a row at a time, with the loss written out."""
    model = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float64).eval().requires_grad_()
    store = Store.open(world.store)
    for number, weight in zip(selection.index, selection.weight, strict=True):
        row = store.row(int(number))
        ids = torch.tensor(row.input_ids.tolist())[None]
        predicted = model(input_ids=ids).logits[0, row.num_prompt_tokens - 1 : -1]
        loss = nn.functional.cross_entropy(predicted, ids[0, row.num_prompt_tokens :])
        (float(weight) * loss / selection.large_batch_size).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_the_update_is_the_weighted_sum_over_the_large_batch_in_float64(world: World, tmp_path: Path) -> None:
    store, generator = Store.open(world.store), np.random.default_rng(5)
    index = generator.choice(len(store), ROWS["sub_batch_size"], replace=False).astype(np.int64)
    selection = Selection(
        run="run",
        step=0,
        weights_version=0,
        large_batch_size=ROWS["large_batch_size"],
        index=index,
        source=store.sources_of(index),
        weight=generator.uniform(0.0, 8.0, len(index)).astype(np.float32),
        gain=np.zeros(len(index), dtype=np.float32),
        num_tokens=store.lengths(index),
    )
    config = a_config(tmp_path, world, train={"lora": False}, run={"num_steps": 1})
    trainer = a_trainer(
        config, full=True, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0
    )
    trainer.subbatch._source = trainer.subbatch._loader._source = MadeUpSource(selection)
    before = weights(trainer)
    trainer.train()
    after, reference = weights(trainer), reference_update(world, selection)
    update = torch.cat([(before[name] - after[name]).double().flatten() for name in reference])
    expected = torch.cat([gradient.flatten() for gradient in reference.values()])
    assert (update - expected).norm() / expected.norm() < 1e-5


def test_the_trainers_arguments_alone_say_how_many_rows_a_forward_pass_holds(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = a_config(tmp_path, world)
    config.write_text("".join(row for row in config.open() if not row.startswith("micro_batch_size")))
    assert a_trainer(config, per_device_train_batch_size=5).subbatch.micro_batches_per_step == 2
    monkeypatch.setenv("SUBBATCH_CONFIG", str(config))
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, use_cpu=True, report_to=[])
    trainer = SubbatchTrainer(model=load_base_model(load_config(config).model, torch.device("cpu")), args=arguments)
    assert trainer.subbatch.micro_batches_per_step == 4


def test_what_selection_costs_is_logged_with_the_loss(world: World, tmp_path: Path) -> None:
    trainer = a_trainer(a_config(tmp_path, world), logging_steps=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == STEPS / 2
    for row in rows:
        assert row["seconds/step"] >= row["seconds/train"] > 0
        assert row["selector/score_seconds"] > 0
        assert row["seconds/wait"] >= 0
    assert [row["weights_version"] for row in rows] == [0, 2, 4]


def test_an_evaluation_has_the_loss_that_a_plain_trainer_gives(world: World, tmp_path: Path) -> None:
    rows = [{"input_ids": torch.arange(5, 15), "labels": torch.arange(5, 15)}]
    trainer = a_trainer(a_config(tmp_path, world), eval_dataset=rows, eval_strategy="steps", eval_steps=3)
    trainer.train()
    seen = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(seen) == 2
    plain = Trainer(model=trainer.model, args=trainer.args, eval_dataset=rows)
    assert seen[-1] == plain.evaluate()["eval_loss"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_steps": 9}, r"max_steps is 9, run\.num_steps 6"),
        ({"num_train_epochs": 2}, r"num_train_epochs is 2.*run\.num_steps"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2, .*3 micro-batches of 3 rows"),
        ({"per_device_train_batch_size": 2}, r"per_device_train_batch_size is 2, train\.micro_batch_size 3"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor is 0\.1"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is True"),
    ],
)
def test_arguments_that_cannot_work_are_refused_with_both_values(
    world: World, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        a_trainer(a_config(tmp_path, world), **changes)


def test_sorting_by_length_is_refused_under_either_of_its_names(world: World, tmp_path: Path) -> None:
    old = "group_by_length" in TrainingArguments.__dataclass_fields__
    changes = {"group_by_length": True} if old else {"train_sampling_strategy": "group_by_length"}
    with pytest.raises(ConfigError, match="rows of similar length share micro-batches anyway"):
        a_trainer(a_config(tmp_path, world), **changes)


def test_a_training_set_beside_the_store_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_dataset is given .*data\.store"):
        SubbatchTrainer(model=None, subbatch=a_config(tmp_path, world), train_dataset=[{"input_ids": [1]}])


def test_bases_in_the_wrong_order_are_refused_by_python() -> None:
    with pytest.raises(TypeError, match="MRO"):
        type("Wrong", (Trainer, SubbatchMixin), {})


def test_a_checkpoint_that_does_not_hold_the_run_is_refused(world: World, tmp_path: Path) -> None:
    config = a_config(tmp_path, world)
    a_trainer(config, save_strategy="steps", save_steps=2, callbacks=[StopAfter(2)]).train()
    checkpoint = tmp_path / "trainer" / "checkpoint-2"
    save_state(checkpoint, load_state(checkpoint) | {"cursor": 1})
    with pytest.raises(CursorError, match="the Trainer stands at step 2, the run at 1"):
        a_trainer(config).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / STATE_FILE).write_text('{"cursor": 2')
    with pytest.raises(CursorError, match=f"{STATE_FILE} can't be read"):
        a_trainer(config).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(CursorError, match=f"has no {STATE_FILE}"):
        a_trainer(config).train(resume_from_checkpoint=str(checkpoint))


def test_a_subclass_that_computes_its_own_loss_is_stopped_before_it_changes_a_weight(
    world: World, tmp_path: Path
) -> None:
    class OwnLoss(SubbatchTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(**inputs, labels=inputs["input_ids"]).loss

    config = a_config(tmp_path, world)
    trainer = a_trainer(config)
    trainer.__class__ = OwnLoss
    before = weights(trainer)
    with pytest.raises(LoopError, match=r"SubbatchPlugin\.loss did not make"):
        trainer.train()
    assert_equal(before, weights(trainer))


def test_training_a_second_time_is_refused(world: World, tmp_path: Path) -> None:
    trainer = a_trainer(a_config(tmp_path, world), callbacks=[StopAfter(2)])
    trainer.train()
    with pytest.raises(CursorError, match="stands at step 0, the run at 2: a Trainer trains its run once"):
        trainer.train()
