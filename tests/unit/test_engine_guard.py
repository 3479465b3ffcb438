"""A loop on a DeepSpeed engine that would apply a wrong gradient gets an error before it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shared.errors import LoopError
from train_client.engine_guard import EngineGuard
from train_client.loader import SubBatch


class Engine:
    """What the guard sees of a real one; the boundary is kept as `DeepSpeedEngine` does."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.boundary = False

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.boundary = is_boundary

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.boundary

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool = True) -> None:
        self.calls.append("backward")

    def step(self) -> None:
        self.calls.append("step")


class Loop:
    """An engine under guard, and micro-batches of one step."""

    def __init__(self, *, divides_loss: bool = True) -> None:
        self.engine = Engine()
        calls = self.engine.calls
        self.guard = EngineGuard(
            self.engine,
            divides_loss=divides_loss,
            before_step=lambda: calls.append("before"),
            attempted=lambda: calls.append("attempted"),
        )

    def begin(self, number: int, *, is_last: bool) -> torch.Tensor:
        nothing = torch.zeros(1)
        self.guard.begin(SubBatch({}, nothing, nothing, step=3, number=number, is_last=is_last))
        return self.guard.made_loss(torch.ones(()))


def test_only_the_step_after_the_last_micro_batch_is_an_attempt() -> None:
    loop = Loop()
    for number in range(3):
        loss = loop.begin(number, is_last=number == 2)
        loop.engine.backward(loss)
        loop.engine.step()
    loop.guard.end()
    assert loop.engine.calls == ["backward", "step"] * 2 + ["backward", "before", "step", "attempted"]


def test_a_loop_that_steps_once_a_step_as_accelerate_does_is_right_too() -> None:
    loop = Loop()
    loop.engine.backward(loop.begin(0, is_last=False))
    loop.engine.backward(loop.begin(1, is_last=True))
    loop.engine.step()
    loop.guard.end()
    assert loop.engine.calls == ["backward", "backward", "before", "step", "attempted"]


def test_a_loss_that_is_divided_already_is_not_divided_by_the_engine() -> None:
    loop = Loop(divides_loss=False)
    loop.engine.backward(loop.begin(0, is_last=True), scale_wrt_gas=False)
    loop.engine.step()
    loop.guard.end()
    assert loop.engine.calls == ["backward", "before", "step", "attempted"]
    with pytest.raises(LoopError, match=r"twice: call backward\(loss\) with scale_wrt_gas=False"):
        loop.engine.backward(loop.begin(0, is_last=True))


def divided(loop: Loop) -> None:
    loop.engine.backward(loop.begin(0, is_last=True) / 2)


def undivided_by_the_engine(loop: Loop) -> None:
    loop.engine.backward(loop.begin(0, is_last=True), scale_wrt_gas=False)


def twice(loop: Loop) -> None:
    loss = loop.begin(0, is_last=True)
    loop.engine.backward(loss)
    loop.engine.backward(loss)


def at_another_boundary(loop: Loop) -> None:
    loss = loop.begin(0, is_last=False)
    loop.engine.set_gradient_accumulation_boundary(True)
    loop.engine.backward(loss)


def without_backward(loop: Loop) -> None:
    loop.begin(0, is_last=True)
    loop.engine.step()


def without_a_micro_batch(loop: Loop) -> None:
    loop.engine.step()


def without_a_step(loop: Loop) -> None:
    loop.engine.backward(loop.begin(0, is_last=True))
    loop.guard.end()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (divided, "SubbatchPlugin.loss did not make"),
        (undivided_by_the_engine, "without further arguments"),
        (twice, "called twice"),
        (at_another_boundary, "DeepSpeed would step after this micro-batch"),
        (without_backward, "backward was not called"),
        (without_a_micro_batch, "without a micro-batch"),
        (without_a_step, "no optimizer step"),
    ],
)
def test_a_wrong_loop_is_refused_before_the_weights_change(wrong: Callable[[Loop], None], message: str) -> None:
    loop = Loop()
    with pytest.raises(LoopError, match=message):
        wrong(loop)
    assert "attempted" not in loop.engine.calls
    assert "step" not in loop.engine.calls


def test_what_was_wrapped_is_as_before_when_the_loop_is_over() -> None:
    loop = Loop()
    loop.guard.remove()
    loop.engine.step()
    assert loop.engine.calls == ["step"]
