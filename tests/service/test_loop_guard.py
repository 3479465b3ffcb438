"""A training loop that would apply a wrong gradient gets an error before it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from shared.config import load_config
from shared.errors import LoopError, SubbatchError
from shared.model import trainable_tensors
from tests.support import World, write_config
from train_client import SubbatchPlugin
from train_client.train import make_model


class Setup:
    """A model, its optimizer and the plugin, prepared and ready to loop."""

    def __init__(self, config_path: Path) -> None:
        config = load_config(config_path)
        self.accelerator = Accelerator(cpu=True)
        bare = make_model(config, self.accelerator.device)
        optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], lr=0.1)
        self.model, self.optimizer = self.accelerator.prepare(bare, optimizer)
        self.subbatch = SubbatchPlugin(self.accelerator, self.model, config)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: t.clone() for name, t in trainable_tensors(self.model).items()}


@pytest.fixture
def setup(world: World, tmp_path: Path) -> Iterator[Setup]:
    client = {"selector": "inline"}
    yield Setup(write_config(tmp_path, world, run={"num_steps": 2}, client=client, train={"micro_batch_size": 3}))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def correct(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        s.accelerator.backward(s.subbatch.loss(s.model, batch))
        s.optimizer.step()
        s.optimizer.zero_grad()


def own_loss(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        s.accelerator.backward(s.model(**batch, labels=batch["input_ids"]).loss)
        s.optimizer.step()


def divided_loss(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        s.accelerator.backward(s.subbatch.loss(s.model, batch) / 2)
        s.optimizer.step()


def loss_divided_in_place(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        loss = s.subbatch.loss(s.model, batch)
        loss /= 2
        s.accelerator.backward(loss)
        s.optimizer.step()


def zeroed_before_backward(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        s.model.zero_grad()
        s.accelerator.backward(s.subbatch.loss(s.model, batch))
        s.optimizer.step()


def another_model(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        s.accelerator.backward(s.subbatch.loss(s.model.base_model, batch))
        s.optimizer.step()


def backward_of_torch(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        s.subbatch.loss(s.model, batch).backward()
        s.optimizer.step()


def backward_twice(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        loss = s.subbatch.loss(s.model, batch)
        s.accelerator.backward(loss, retain_graph=True)
        s.accelerator.backward(loss)
        s.optimizer.step()


def without_accumulate(s: Setup, batch: Any) -> None:
    s.accelerator.backward(s.subbatch.loss(s.model, batch))
    s.optimizer.step()


def skipped_micro_batch(s: Setup, batch: Any) -> None:
    if batch.number:
        correct(s, batch)


def never_zeroed(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        s.accelerator.backward(s.subbatch.loss(s.model, batch))
        s.optimizer.step()


def forgotten_step(s: Setup, batch: Any) -> None:
    with s.accelerator.accumulate(s.model):
        s.accelerator.backward(s.subbatch.loss(s.model, batch))


def test_gradients_that_are_never_zeroed_are_noticed_before_the_second_step(setup: Setup) -> None:
    with pytest.raises(LoopError, match=r"step 1.*zero_grad"):
        run(setup, never_zeroed)


def run(s: Setup, body: Callable[[Setup, Any], None]) -> None:
    for batch in s.subbatch:
        body(s, batch)


@pytest.mark.parametrize(
    "body",
    [
        own_loss,
        divided_loss,
        loss_divided_in_place,
        zeroed_before_backward,
        another_model,
        backward_of_torch,
        backward_twice,
        without_accumulate,
        skipped_micro_batch,
        forgotten_step,
    ],
)
def test_a_wrong_loop_is_stopped_before_it_changes_a_weight(setup: Setup, body: Callable[[Setup, Any], None]) -> None:
    before = setup.weights()
    with pytest.raises(LoopError):
        run(setup, body)
    assert all(before[name].equal(after) for name, after in setup.weights().items())


def test_a_correct_loop_runs_and_an_iteration_after_its_end_is_empty(setup: Setup) -> None:
    before = setup.weights()
    run(setup, correct)
    assert setup.subbatch.cursor == 2
    assert any(not before[name].equal(after) for name, after in setup.weights().items())
    assert list(setup.subbatch) == []


def test_a_loop_without_a_prepared_optimizer_is_refused(world: World, tmp_path: Path, setup: Setup) -> None:
    setup.accelerator._optimizers.clear()
    with pytest.raises(LoopError, match=r"accelerator\.prepare"):
        next(iter(setup.subbatch))


def test_a_store_that_is_missing_is_refused_by_name(world: World, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, world, data={"store": tmp_path / "nowhere"}))
    accelerator = Accelerator(cpu=True)
    model = make_model(config, accelerator.device)
    with pytest.raises(SubbatchError, match="nowhere"):
        SubbatchPlugin(accelerator, model, config)
