"""Records ↔ protobuf messages, for the wire and the journal alike."""

from __future__ import annotations

import dataclasses

from pydantic import TypeAdapter, ValidationError

from shared.config import RunName
from shared.errors import WireError
from shared.pb.v1 import selector_pb2 as pb
from shared.records import Fingerprints, PhaseTimes, RunInfo, TensorSpec
from shared.selection_config import SelectionConfig
from shared.timing import Timing

# A run's name becomes a folder's name on the server.
_RUN_NAME = TypeAdapter(RunName)
_MAX_WORLD_SIZE = 1 << 16
_TRAINABLE_DTYPES = ("float64", "float32", "bfloat16", "float16")


def run_to_pb(info: RunInfo) -> pb.RunInfo:
    """The message of a run."""
    return pb.RunInfo(
        name=info.name,
        seed=info.seed,
        num_steps=info.timing.num_steps,
        staleness=info.timing.staleness,
        push_every=info.timing.push_every,
        lookahead=info.timing.lookahead,
        world_size=info.world_size,
        selection_json=info.selection.model_dump_json(),
        adapter_json=info.adapter_json,
        trainable=[pb.TensorSpec(name=s.name, shape=s.shape, dtype=s.dtype) for s in info.trainable],
        fingerprints=fingerprints_to_pb(info.fingerprints),
        owner=info.owner,
    )


def run_from_pb(message: pb.RunInfo) -> RunInfo:
    """The run in a message.

    Raises:
        WireError: settings that no configuration could have given.
    """
    try:
        name = _RUN_NAME.validate_python(message.name)
        selection = SelectionConfig.model_validate_json(message.selection_json)
    except ValidationError as error:
        raise WireError(f"run {message.name!r} has an unusable name or selection config: {error}") from None
    if message.num_steps < 1 or message.staleness < 0 or message.push_every < 1 or message.world_size < 1:
        raise WireError(
            f"run {message.name!r} needs num_steps, push_every and world_size of at least 1 and staleness of at least "
            f"0, got {message.num_steps}, {message.push_every}, {message.world_size} and {message.staleness}"
        )
    if message.seed < 0 or message.world_size > _MAX_WORLD_SIZE:
        raise WireError(
            f"run {message.name!r} needs a seed of at least 0 and a world_size of at most {_MAX_WORLD_SIZE}, got "
            f"{message.seed} and {message.world_size}"
        )
    for spec in message.trainable:
        if spec.dtype not in _TRAINABLE_DTYPES or any(size < 0 for size in spec.shape):
            raise WireError(
                f"run {message.name!r} trains {spec.name} of dtype {spec.dtype} and shape {list(spec.shape)}: a "
                f"trained tensor is {', '.join(_TRAINABLE_DTYPES)}, and no size is negative"
            )
    if message.lookahead < message.staleness:
        raise WireError(f"run {message.name!r} has lookahead {message.lookahead} below staleness {message.staleness}")
    return RunInfo(
        name=name,
        seed=message.seed,
        timing=Timing(
            num_steps=message.num_steps,
            staleness=message.staleness,
            push_every=message.push_every,
            lookahead=message.lookahead,
            scores=selection.scores,
        ),
        world_size=message.world_size,
        selection=selection,
        adapter_json=message.adapter_json,
        trainable=tuple(TensorSpec(s.name, tuple(s.shape), s.dtype) for s in message.trainable),
        fingerprints=fingerprints_from_pb(message.fingerprints),
        owner=message.owner,
    )


def fingerprints_to_pb(fingerprints: Fingerprints) -> pb.Fingerprints:
    """The message of what both sides must share."""
    return pb.Fingerprints(**dataclasses.asdict(fingerprints))


def fingerprints_from_pb(message: pb.Fingerprints) -> Fingerprints:
    """What both sides must share, in a message."""
    return Fingerprints(dataset=message.dataset, tokenizer=message.tokenizer, base_model=dict(message.base_model))


def times_to_pb(times: PhaseTimes) -> pb.PhaseTimes:
    """The message of a selection's phase times."""
    return pb.PhaseTimes(**dataclasses.asdict(times))


def times_from_pb(message: pb.PhaseTimes) -> PhaseTimes:
    """The phase times in a message."""
    return PhaseTimes(**{f.name: getattr(message, f.name) for f in dataclasses.fields(PhaseTimes)})
