"""The plugin among what people do with Accelerate: environment, accumulation, precision, schedulers and trackers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker, on_main_process
from accelerate.utils import GradientAccumulationPlugin
from torch.utils.data import DataLoader

from shared.config import load_config
from shared.errors import ConfigError
from shared.model import trainable_tensors
from tests.support import World, write_config
from train_client import StepReport, SubbatchPlugin
from train_client.figures import of_step
from train_client.train import make_model

STEPS, RATE = 4, 0.1


class Notes(GeneralTracker):
    """A user's tracker."""

    name, requires_logging_directory, main_process_only = "notes", False, True

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> Any:
        return self.rows

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.rows.append((step, values))


@pytest.fixture(autouse=True)
def _forget_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def config(world: World, tmp_path: Path) -> Path:
    """Six rows in three micro-batches a step."""
    return write_config(
        tmp_path,
        world,
        run={"num_steps": STEPS},
        client={"selector": "inline"},
        train={"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0}},
    )


class Loop:
    """A user's loop; `rates` are the learning rates that its steps were taken with."""

    def __init__(self, config: Path | None, **accelerator: Any) -> None:
        self.accelerator = Accelerator(cpu=True, **accelerator)
        torch.manual_seed(0)
        bare = make_model(load_config(config), self.accelerator.device)
        optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], lr=RATE)
        linear = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(bare, optimizer, linear)
        self.subbatch = SubbatchPlugin(self.accelerator, self.model, config)
        self.reports: list[StepReport] = []
        self.rates: list[float] = []

    def run(self, *, log_every: int = 1, before: Any = lambda: None) -> dict[str, torch.Tensor]:
        for batch in self.subbatch:
            before()
            with self.accelerator.accumulate(self.model):
                rate = self.scheduler.get_last_lr()[0]
                loss = self.subbatch.loss(self.model, batch)
                assert loss.dtype == torch.float32
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            if batch.is_last:
                self.rates.append(rate)
                assert self.subbatch.last_step is not None
                self.reports.append(self.subbatch.last_step)
                if self.subbatch.cursor % log_every == 0:
                    self.accelerator.log(self.subbatch.figures(), step=batch.step)
        return {name: t.clone() for name, t in trainable_tensors(self.accelerator.unwrap_model(self.model)).items()}


def test_without_a_configuration_the_environment_makes_one(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBBATCH_CONFIG", str(config))
    monkeypatch.setenv("SUBBATCH_RUN__NAME", "named-outside")
    loop = Loop(None)
    assert loop.subbatch.info.name == "named-outside"
    assert loop.subbatch.info.timing.num_steps == STEPS
    loop.run()
    assert len(loop.reports) == STEPS


def test_without_any_configuration_it_is_said_where_one_may_be(config: Path) -> None:
    accelerator = Accelerator(cpu=True)
    with pytest.raises(ConfigError, match=r"data\.store.*SUBBATCH_CONFIG.*SUBBATCH_DATA__STORE"):
        SubbatchPlugin(accelerator, make_model(load_config(config), accelerator.device))


@pytest.mark.parametrize(
    "given", [{"gradient_accumulation_steps": 4}, {"gradient_accumulation_plugin": GradientAccumulationPlugin(4)}]
)
def test_another_number_of_micro_batches_than_the_runs_is_refused(config: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps is 4, .* 3 micro-batches of 2 rows"):
        Loop(config, **given)


@pytest.mark.parametrize(
    "options",
    [{"sync_each_batch": True}, {"adjust_scheduler": False}, {"sync_with_dataloader": False}, {"num_steps": 3}],
    ids=lambda options: next(iter(options)),
)
def test_accumulation_of_the_users_own_changes_nothing_that_is_learnt(config: Path, options: dict[str, Any]) -> None:
    plain = Loop(config)
    expected = plain.run()
    _reset()
    own = Loop(config, gradient_accumulation_plugin=GradientAccumulationPlugin(**{"num_steps": 1} | options))
    learnt = own.run()
    assert all(learnt[name].equal(expected[name]) for name in expected)
    assert own.rates == plain.rates == pytest.approx([RATE * (1 - step / STEPS) for step in range(STEPS)])


def test_a_loader_that_was_left_at_its_last_batch_ends_no_step(config: Path) -> None:
    loop = Loop(config)
    evaluation = loop.accelerator.prepare(DataLoader(torch.zeros(4, 1), batch_size=2))

    def evaluate() -> None:
        for number, _ in enumerate(evaluation):
            if number == 1:
                break

    loop.run(before=evaluate)
    assert loop.subbatch.cursor == STEPS


def test_bf16_keeps_losses_and_weights_in_float32_and_learns_nearly_the_same(config: Path) -> None:
    full = Loop(config)
    full.run()
    _reset()
    half = Loop(config, mixed_precision="bf16")
    learnt = half.run()
    assert {tensor.dtype for tensor in learnt.values()} == {torch.float32}
    for one, other in zip(full.reports[:2], half.reports[:2], strict=True):  # selected with the weights of version 0
        assert one.rows == other.rows
        assert other.loss == pytest.approx(one.loss, rel=5e-3)
        assert other.loss != one.loss  # or autocast would not have been on


def test_a_users_tracker_gets_the_means_of_all_steps_since_the_last_log(config: Path) -> None:
    notes = Notes()
    loop = Loop(config, log_with=[notes])
    loop.accelerator.init_trackers("project")
    assert loop.subbatch.figures() == {}
    loop.run(log_every=2)
    assert [step for step, _ in notes.rows] == [1, 3]
    for number, (_, values) in enumerate(notes.rows):
        reports = loop.reports[2 * number : 2 * number + 2]
        steps = [of_step(report) for report in reports]
        assert values.keys() == {*steps[0], "weights_version"}
        for name in steps[0]:
            assert values[name] == pytest.approx((steps[0][name] + steps[1][name]) / 2), name
        assert values["weights_version"] == reports[1].selection.weights_version
        assert values["loss"] == pytest.approx((reports[0].loss + reports[1].loss) / 2)
        seconds = (values[f"seconds/{part}"] for part in ("wait", "prepare", "train", "optimizer", "push"))
        assert values["seconds/step"] == pytest.approx(sum(seconds))


def _reset() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
