"""The Trainer's arguments beside a run: what follows from it, and what can't work with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from shared.config import Config
from shared.errors import ConfigError

_LENGTH = "a run's length is run.num_steps: leave it out"
_ROWS = "every step trains its selection: leave it out"
_LOSS = "a row's loss is the mean over its answer tokens, weighted as the selection says: leave it out"

_NOT_TAKEN = {
    "train_dataset": "rows come from data.store, which `selector-server prepare` makes from a data set: leave it out",
    "compute_loss_func": _LOSS,
    "model_init": "a run trains one model, whose base is compared with the server's: give the model itself",
}
# These work at their defaults only. Names that a release of transformers or TRL doesn't have are passed over.
_DEFAULT_ONLY = {
    "num_train_epochs": _LENGTH,
    "auto_find_batch_size": "micro-batches can't change within a run: set per_device_train_batch_size",
    "group_by_length": "rows of similar length share micro-batches anyway: leave it out",
    "train_sampling_strategy": "draws are those of the run, and rows of similar length share micro-batches anyway: "
    "leave it out",
    "packing": _ROWS,
    "padding_free": _ROWS,
    "assistant_only_loss": _LOSS,
    "label_smoothing_factor": _LOSS,
    "loss_type": _LOSS,
    "parallelism_config": "ranks can't share rows: leave it out, and shard with deepspeed or fsdp",
}


def refuse_keywords(given: Mapping[str, Any]) -> None:
    """Refuse what the Trainer's constructor takes and a run can't.

    Raises:
        ConfigError: with the name and what to do.
    """
    for name, remedy in _NOT_TAKEN.items():
        if given.get(name) is not None:
            raise ConfigError(f"{name} is given to a Trainer of sub-batches, but {remedy}")


def require_usable(args: Any) -> None:
    """Refuse arguments that can't work, before anything is sent.

    Raises:
        ConfigError: with the argument, both values, and what to do.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name, remedy in _DEFAULT_ONLY.items():
        if name in defaults and (value := getattr(args, name)) != defaults[name]:
            raise ConfigError(f"{name} is {value!r} instead of {defaults[name]!r}, but {remedy}")
    if getattr(args, "completion_only_loss", None) is False:
        raise ConfigError(f"completion_only_loss is False, but {_LOSS}")
    if args.n_gpu > 1:
        raise ConfigError(
            f"one process sees {args.n_gpu} GPUs, over which the Trainer would spread every micro-batch: start one "
            "process for each with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES to one of them"
        )


def with_micro_batch_size(config: Config, args: Any) -> Config:
    """The configuration with as many rows in a micro-batch as the Trainer's arguments say.

    Raises:
        ConfigError: train.micro_batch_size is set, too, and says otherwise.
    """
    size, train = args.per_device_train_batch_size, config.train
    if "micro_batch_size" in train.model_fields_set and train.micro_batch_size != size:
        raise ConfigError(
            f"per_device_train_batch_size is {size}, train.micro_batch_size {train.micro_batch_size}, and both are how "
            "many rows one forward pass holds: leave train.micro_batch_size out"
        )
    return config.model_copy(update={"train": train.model_copy(update={"micro_batch_size": size})})


def adopt_run(args: Any, *, num_steps: int, micro_batches: int) -> None:
    """Give the arguments what follows from the run.

    Args:
        args: The Trainer's, which are changed.
        num_steps: The run's.
        micro_batches: Of a step, on every rank.

    Raises:
        ConfigError: they say otherwise.
    """
    if args.max_steps not in (num_steps, _default(args, "max_steps")):
        raise ConfigError(f"max_steps is {args.max_steps}, run.num_steps {num_steps}: leave max_steps out")
    if args.gradient_accumulation_steps not in (micro_batches, _default(args, "gradient_accumulation_steps")):
        raise ConfigError(
            f"gradient_accumulation_steps is {args.gradient_accumulation_steps}, but a step of this run has "
            f"{micro_batches} micro-batches of {args.per_device_train_batch_size} rows at most on every rank: leave it "
            "out, or change per_device_train_batch_size"
        )
    args.max_steps, args.gradient_accumulation_steps = num_steps, micro_batches
    # The Trainer would ask for batches that were trained before the checkpoint, to throw them away.
    args.ignore_data_skip = True


def _default(args: Any, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(args) if field.name == name)
