"""Watches a loop on a DeepSpeed engine, native or behind Accelerate: both change weights in `engine.step` alone.

Accelerate calls it inside `accelerator.backward`, and its optimizer's `step` and `zero_grad` do nothing; a native loop
calls it after every micro-batch. The engine clears gradients itself, so there is nothing of an earlier step to find.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from shared.errors import LoopError
from train_client.guard import Guard
from train_client.loader import SubBatch


class EngineGuard(Guard):
    """Wraps an engine's `backward` and `step`, and tells when a step was attempted."""

    def __init__(
        self, engine: Any, *, divides_loss: bool, before_step: Callable[[], None], attempted: Callable[[], None]
    ) -> None:
        """Wrap the engine's methods; it must have been told how many micro-batches a step has.

        Args:
            engine: What `deepspeed.initialize` or `accelerator.prepare` gave.
            divides_loss: Whether the engine is to divide a micro-batch's loss by their number in a step, or the plugin
                has done so already.
            before_step: See `Guard`.
            attempted: See `Guard`.
        """
        super().__init__(before_step=before_step, attempted=attempted)
        self._engine, self._divides_loss = engine, divides_loss
        self._backward, self._step = engine.backward, engine.step
        engine.backward, engine.step = self._checked_backward, self._checked_step

    def remove(self) -> None:
        """Take the wrappers off again, when the loop is over."""
        for name in ("backward", "step"):
            vars(self._engine).pop(name, None)

    def begin(self, batch: SubBatch) -> None:
        """A micro-batch is handed to the loop; the engine's own count may be that of another number of ranks."""
        super().begin(batch)
        self._engine.set_gradient_accumulation_boundary(batch.is_last)

    def _checked_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        batch = self._batch
        if batch is None:
            raise LoopError("backward was called without a micro-batch of a step: iterate over the plugin")
        self._require_own_loss(loss)
        if args or kwargs.get("scale_wrt_gas", True) != self._divides_loss:
            how = "without further arguments" if self._divides_loss else "with scale_wrt_gas=False, as Trainers do"
            raise LoopError(
                f"{self._where()}: the loss would be divided by the number of micro-batches "
                f"{'by nobody' if self._divides_loss else 'twice'}: call backward(loss) {how}"
            )
        if self._engine.is_gradient_accumulation_boundary() != batch.is_last:
            raise LoopError(
                f"{self._where()}: DeepSpeed would {'not ' if batch.is_last else ''}step after this micro-batch: with "
                "Accelerate put the loop's body into `with accelerator.accumulate(model):`, and leave the number of "
                "accumulation steps and their boundary to the plugin"
            )
        result = self._backward(loss, **kwargs)
        self._is_backward_done = True
        return result

    def _checked_step(self, *args: Any, **kwargs: Any) -> Any:
        batch = self._batch
        if batch is None:
            raise LoopError("engine.step() was called without a micro-batch of a step: call it once after backward")
        self._require_backward()
        if not batch.is_last:
            return self._step(*args, **kwargs)
        self._before_step()
        result = self._step(*args, **kwargs)
        self._finish_step()
        return result
