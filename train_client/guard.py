"""Watches a training loop that runs on Accelerate, so that a wrong gradient becomes an error before it is applied.

A row's weight is lost when a loop computes its own loss, and a step is torn when it doesn't accumulate. Both train
without complaint, to worse models. So each micro-batch must go through the plugin's loss and `accelerator.backward`,
and the optimizer must step after the last one of a step and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from shared.errors import LoopError
from train_client.loader import SubBatch

_HOW = "see `python -c 'import train_client; help(train_client)'` for the five lines of a correct loop"


class Guard:
    """Where a loop stands within a step, and what may come next; subclasses see its calls of backward and step."""

    def __init__(self, *, before_step: Callable[[], None], attempted: Callable[[], None]) -> None:
        """Wait for the first micro-batch.

        Args:
            before_step: Called when the last micro-batch's gradient is there and the optimizer is about to step.
            attempted: Called after every attempted step, whether or not a loss scaler skipped it.
        """
        self._before_step, self._attempted = before_step, attempted
        self._batch: SubBatch | None = None
        self._loss: Tensor | None = None
        self._loss_version = 0
        self._is_backward_done = False

    def remove(self) -> None:
        """Take the wrappers off again, when the loop is over."""
        raise NotImplementedError

    def begin(self, batch: SubBatch) -> None:
        """A micro-batch is handed to the loop."""
        self._require_backward()
        self._batch, self._loss, self._is_backward_done = batch, None, False

    def end(self) -> None:
        """The loop asks for more after a step's last micro-batch.

        Raises:
            LoopError: the step wasn't finished.
        """
        self._require_backward()
        if self._batch is not None:
            raise LoopError(f"{self._where()}: no optimizer step was taken after the last micro-batch; {_HOW}")

    def made_loss(self, loss: Tensor) -> Tensor:
        """The plugin computed the loss of the micro-batch at hand."""
        self._loss, self._loss_version = loss, loss._version
        return loss

    def require_current(self, batch: SubBatch) -> None:
        """Refuse the loss of a micro-batch that isn't the one at hand."""
        if batch is not self._batch:
            raise LoopError(f"{self._where()}: the loss is asked for another micro-batch than this one; {_HOW}")

    def _require_own_loss(self, loss: Tensor) -> None:
        """Backward is about to be called with `loss`."""
        if self._loss is None or loss is not self._loss or loss._version != self._loss_version:
            raise LoopError(
                f"{self._where()}: backward got a loss that SubbatchPlugin.loss did not make, so the rows' weights "
                f"would be lost: use loss = subbatch.loss(model, batch) as it is, undivided; {_HOW}"
            )
        if self._is_backward_done:
            raise LoopError(f"{self._where()}: backward was called twice; {_HOW}")

    def _require_backward(self) -> None:
        if self._batch is not None and not self._is_backward_done:
            raise LoopError(f"{self._where()}: backward was not called with subbatch.loss(model, batch); {_HOW}")

    def _finish_step(self) -> None:
        self._batch = self._loss = None
        self._attempted()

    def _where(self) -> str:
        return f"step {self._batch.step}, micro-batch {self._batch.number}" if self._batch else "between two steps"


class LoopGuard(Guard):
    """Wraps `accelerator.backward` and the prepared optimizers' `step`, and tells when a step was attempted."""

    def __init__(self, accelerator: Any, *, before_step: Callable[[], None], attempted: Callable[[], None]) -> None:
        """Wrap the accelerator's methods.

        Args:
            accelerator: Accelerate's, after `prepare`.
            before_step: See `Guard`.
            attempted: See `Guard`.

        Raises:
            LoopError: no optimizer has been prepared.
        """
        super().__init__(before_step=before_step, attempted=attempted)
        self._accelerator = accelerator
        self._expects_gradients = False
        if not accelerator._optimizers:
            raise LoopError("no optimizer is prepared: call accelerator.prepare(model, optimizer) before the loop")
        self._optimizers = list(accelerator._optimizers)
        # A learning rate scheduler that was made before may have wrapped a step itself.
        self._unwrapped = [(o, name, vars(o).get(name)) for o, name in self._places()]
        self._backward = accelerator.backward
        accelerator.backward = self._checked_backward
        # With several optimizers the step is attempted when the last of them has stepped.
        for optimizer in self._optimizers:
            optimizer.step = self._checked_step(optimizer.step, is_final=optimizer is self._optimizers[-1])

    def remove(self) -> None:
        """Take the wrappers off again, when the loop is over."""
        for wrapped, name, before in self._unwrapped:
            vars(wrapped).pop(name, None)
            if before is not None:
                setattr(wrapped, name, before)

    def _places(self) -> list[tuple[Any, str]]:
        return [(self._accelerator, "backward"), *((optimizer, "step") for optimizer in self._optimizers)]

    def _checked_backward(self, loss: Tensor, **kwargs: Any) -> None:
        self._require_own_loss(loss)
        self._require_gradients_of_this_step_alone()
        self._backward(loss, **kwargs)
        self._is_backward_done = True
        self._expects_gradients |= bool(self._batch and self._batch.scale.any())

    def _require_gradients_of_this_step_alone(self) -> None:
        # Of earlier micro-batches FSDP2 keeps what it hasn't reduced yet where only it can see it.
        assert self._batch is not None
        if self._batch.number > 0:
            if self._expects_gradients and not self._accelerator.is_fsdp2 and not self._has_gradients():
                raise LoopError(
                    f"{self._where()}: the gradients of the step's earlier micro-batches are gone: call "
                    f"optimizer.zero_grad() after optimizer.step() only; {_HOW}"
                )
            return
        self._expects_gradients = False
        if self._has_gradients():
            raise LoopError(
                f"{self._where()}: the gradients of the step before are still there: call optimizer.zero_grad() after "
                f"optimizer.step(); {_HOW}"
            )

    def _checked_step(self, step: Callable[..., Any], *, is_final: bool) -> Callable[..., Any]:
        @wraps(step)
        def checked(*args: Any, **kwargs: Any) -> Any:
            batch = self._batch
            if batch is None:
                raise LoopError(f"optimizer.step() was called without a micro-batch of a step; {_HOW}")
            self._require_backward()
            if self._accelerator.sync_gradients != batch.is_last:
                raise LoopError(
                    f"{self._where()}: Accelerate would {'' if self._accelerator.sync_gradients else 'not '}step after "
                    "this micro-batch: put the loop's body into `with accelerator.accumulate(model):`, and leave "
                    f"gradient_accumulation_steps to the plugin; {_HOW}"
                )
            if batch.is_last:
                self._before_step()
            result = step(*args, **kwargs)
            if batch.is_last and is_final:
                self._finish_step()
            return result

        return checked

    def _has_gradients(self) -> bool:
        gradients = (p.grad for o in self._optimizers for group in o.param_groups for p in group["params"])
        return any(gradient is not None and bool(_own_part(gradient).any()) for gradient in gradients)


def _own_part(gradient: Tensor) -> Tensor:
    """What this rank holds of it: looking at more would be a collective, which other ranks may not come to."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
