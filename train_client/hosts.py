"""What a training loop runs on, Accelerate or a DeepSpeed engine of its own, and what the plugin asks of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule

from shared.errors import ConfigError
from train_client.engine_guard import EngineGuard
from train_client.guard import Guard, LoopGuard
from train_client.random_state import random_state, set_random_state
from train_client.ranks import Ranks

_UNSHARDED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Host(Protocol):
    """The part of a framework that is about steps and their micro-batches.

    Attributes:
        ranks: This process and the others.
        device: Where this rank's micro-batches belong.
        divides_loss: Whether it divides a micro-batch's loss by their number in a step.
    """

    ranks: Ranks
    device: torch.device
    divides_loss: bool

    def bare(self, model: Any) -> Any:
        """The model without what the framework has wrapped around it."""

    def is_prepared(self, model: Any) -> bool:
        """Whether a backward pass through this model reaches every rank's gradients."""

    def accumulate(self, micro_batches: int, *, micro_batch_size: int) -> None:
        """Make a step of so many micro-batches, of so many rows at most."""

    def begin_step(self) -> None:
        """The next micro-batch is a step's first."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs that the framework doesn't save; every rank calls it."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""

    def guard(self, *, before_step: Callable[[], None], attempted: Callable[[], None]) -> Guard:
        """Watch the loop; see `Guard`.

        Raises:
            SubbatchError: what shall be watched isn't there yet, or can't be.
        """


class AccelerateHost:
    """Accelerate: one process, DDP, DeepSpeed or FSDP2."""

    def __init__(self, accelerator: Any, *, divided_by: Literal["accelerate", "loss"] = "accelerate") -> None:
        """Look at how the model is, or will be, distributed.

        Args:
            accelerator: Accelerate's.
            divided_by: See `SubbatchPlugin`.

        Raises:
            ConfigError: in a way that isn't supported.
        """
        kind = accelerator.distributed_type
        self._is_deepspeed, self._is_fsdp2 = kind == DistributedType.DEEPSPEED, bool(accelerator.is_fsdp2)
        if kind not in _UNSHARDED and not self._is_deepspeed and not self._is_fsdp2:
            raise ConfigError(
                f"distributed type {kind.value} isn't supported: use one process, DDP, DeepSpeed, or FSDP with "
                "fsdp_version = 2"
            )
        for asked, variable, this in (
            ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED", DistributedType.DEEPSPEED),
            ("FSDP", "ACCELERATE_USE_FSDP", DistributedType.FSDP),
        ):
            if os.environ.get(variable, "").lower() == "true" and kind != this:
                raise ConfigError(
                    f"{asked} is asked for, but Accelerate has ignored it and runs {kind.value}: without GPUs it never "
                    "shards by FSDP, and by DeepSpeed only where Accelerator isn't given cpu=True: make "
                    "PartialState(cpu=True) before it instead"
                )
        started = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if started != accelerator.num_processes:
            raise ConfigError(
                f"Accelerate counts {accelerator.num_processes} ranks, torch.distributed {started}: without GPUs say "
                "so, with Accelerator(cpu=True), ACCELERATE_USE_CPU=true or a Trainer's use_cpu=True"
            )
        parallelism = accelerator.parallelism_config
        if parallelism and parallelism.non_data_parallel_size > 1:
            raise ConfigError(
                f"Accelerate's parallelism_config lets {parallelism.non_data_parallel_size} ranks share their rows: "
                "tensor, context and sequence parallelism aren't supported, set their sizes to 1"
            )
        self._accelerator = accelerator
        self._given = _given_accumulation(accelerator) if divided_by == "accelerate" else {}
        self.ranks = Ranks(accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)
        self.device = accelerator.device
        self.divides_loss = divided_by == "accelerate"

    def bare(self, model: Any) -> Any:
        """See `Host`."""
        return self._accelerator.unwrap_model(model, keep_torch_compile=False)

    def is_prepared(self, model: Any) -> bool:
        """See `Host`."""
        if self._is_deepspeed:
            return self._engine is not None and model is self._engine
        bare = self.bare(model)
        return isinstance(bare, FSDPModule) if self._is_fsdp2 else self.ranks.world_size == 1 or model is not bare

    def accumulate(self, micro_batches: int, *, micro_batch_size: int) -> None:
        """See `Host`; DeepSpeed asks for both before `prepare`, which has no loader to learn them from."""
        for name, given in self._given.items():
            if given not in (1, "auto", None, micro_batches):
                raise ConfigError(
                    f"{name} is {given}, but a step of this run has {micro_batches} micro-batches of "
                    f"{micro_batch_size} rows at most on each of {self.ranks.world_size} ranks: leave it out, or "
                    "change train.micro_batch_size"
                )
        # DeepSpeed's count is Accelerate's, whoever divides; without it Accelerate divides by its own.
        counts = self.divides_loss or self._is_deepspeed
        self._accelerator.gradient_accumulation_steps = micro_batches if counts else 1
        # No loader of Accelerate's feeds the loop: one that has come to its end, an evaluation's say, ends no step.
        self._accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
        for scheduler in self._accelerator._schedulers:
            scheduler.split_batches = True  # as a step's rows are: it advances once a step on any number of ranks
        if not self._is_deepspeed:
            return
        if self._engine is not None:
            accumulate_on(self._engine, micro_batches)
            return
        self._accelerator.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": micro_batches,
            "train_batch_size": micro_batch_size * micro_batches * self.ranks.world_size,
        }

    def begin_step(self) -> None:
        """See `Host`."""
        # Accelerate counts micro-batches for itself; a checkpoint of another number of ranks would set it off by some.
        self._accelerator.step = 0

    def state(self) -> dict[str, Any]:
        """See `Host`; Accelerate saves everything."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Host`."""

    def guard(self, *, before_step: Callable[[], None], attempted: Callable[[], None]) -> Guard:
        """See `Host`."""
        if not self._is_deepspeed:
            return LoopGuard(self._accelerator, before_step=before_step, attempted=attempted)
        if self._engine is None:
            raise ConfigError("no model is prepared: call accelerator.prepare(model, optimizer) before the loop")
        return EngineGuard(self._engine, divides_loss=self.divides_loss, before_step=before_step, attempted=attempted)

    @property
    def _engine(self) -> Any:
        wrapped = self._accelerator.deepspeed_engine_wrapped
        return wrapped.engine if wrapped else None


def _given_accumulation(accelerator: Any) -> dict[str, Any]:
    """What the user has said about the number of micro-batches in a step; 1 is what nobody has said anything gives."""
    given = {"gradient_accumulation_steps": accelerator.gradient_accumulation_steps}
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        settings = accelerator.deepspeed_plugin.deepspeed_config
        given["DeepSpeed's gradient_accumulation_steps"] = settings.get("gradient_accumulation_steps")
    return given


class EngineHost:
    """A DeepSpeed engine, as `deepspeed.initialize` gives it."""

    def __init__(self, engine: Any) -> None:
        """Take the engine's place among the ranks."""
        self._engine = engine
        self.ranks = Ranks(
            torch.distributed.get_rank(), torch.distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", "0"))
        )
        self.device = torch.device(engine.device)
        self.divides_loss = True

    def bare(self, model: Any) -> Any:
        """See `Host`."""
        return model.module if model is self._engine else model

    def is_prepared(self, model: Any) -> bool:
        """See `Host`."""
        return model is self._engine

    def accumulate(self, micro_batches: int, *, micro_batch_size: int) -> None:
        """See `Host`."""
        accumulate_on(self._engine, micro_batches)

    def begin_step(self) -> None:
        """The guard sets the engine's boundary for each micro-batch."""

    def state(self) -> dict[str, Any]:
        """See `Host`; rank 0 alone writes what an engine saves for its user, so it has that of all ranks."""
        return {"random": self.ranks.gather(random_state)}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Host`."""
        set_random_state(state["random"], self.ranks.rank, self.ranks.world_size)

    def guard(self, *, before_step: Callable[[], None], attempted: Callable[[], None]) -> Guard:
        """See `Host`."""
        return EngineGuard(self._engine, divides_loss=self.divides_loss, before_step=before_step, attempted=attempted)


def accumulate_on(engine: Any, micro_batches: int) -> None:
    """Tell a DeepSpeed engine how many micro-batches it divides a step's loss by.

    Raises:
        ConfigError: an engine whose ranks don't all have rows of their own, or that doesn't count micro-batches.
    """
    world_size = torch.distributed.get_world_size()
    if engine.dp_world_size != world_size or engine.pipeline_parallelism:
        raise ConfigError(
            f"DeepSpeed divides rows among {engine.dp_world_size} of {world_size} ranks: tensor, sequence and pipeline "
            "parallelism aren't supported, use ZeRO alone"
        )
    is_managed = getattr(engine, "managed_gradient_accumulation", None)  # which older releases always do
    if is_managed and not is_managed():
        raise ConfigError("DeepSpeed's managed_gradient_accumulation is false: leave it out of its configuration")
    engine.set_train_batch_size(engine.train_micro_batch_size_per_gpu() * micro_batches * world_size)
