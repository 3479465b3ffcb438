"""Which runs a server lets in: every field of an opening is held against a limit before anything is spent on it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shared.adapter_settings import largest_rank, read_adapter_settings
from shared.convert import run_from_pb
from shared.errors import LimitError, WireError
from shared.limits_config import LimitsConfig
from shared.pb.v1 import selector_pb2 as pb

if TYPE_CHECKING:
    from shared.records import RunInfo

_MAX_JSON_BYTES = 1 << 18
_MAX_NAME_BYTES = 1024
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 1 << 48
_MAX_BASE_HASHES = 16
_MAX_ID_BYTES = 128


def admit(request: pb.OpenRunRequest, limits: LimitsConfig) -> None:
    """Let an opening through, or refuse it.

    Raises:
        LimitError: more than the server takes; the message names the key of `server.limits`.
        WireError: what no trainer of ours sends.
        ModelError: an adapter that can't be followed.
    """
    _require_small(request, limits)
    info = run_from_pb(request.run)
    timing, selection = info.timing, info.selection
    _at_most(info, "num_steps", timing.num_steps, limits.num_steps, "num_steps")
    _at_most(info, "world_size", info.world_size, limits.ranks, "ranks")
    for name in ("staleness", "push_every", "lookahead"):
        _at_most(info, name, getattr(timing, name), limits.steps_ahead, "steps_ahead")
    for name in ("large_batch_size", "score_tokens", "num_probes", "sketch_size"):
        key = "probes" if name == "num_probes" else name
        _at_most(info, f"selection.{name}", getattr(selection, name), getattr(limits, key), key)
    if info.adapter_json:
        rank = largest_rank(read_adapter_settings(info.adapter_json))
        _at_most(info, "the adapter's rank", rank, limits.adapter_rank, "adapter_rank")


def _require_small(request: pb.OpenRunRequest, limits: LimitsConfig) -> None:
    """Bound what is only bytes as yet, before any of it is parsed."""
    run = request.run
    if len(run.trainable) > limits.trained_tensors:
        raise LimitError(
            f"a run that trains {len(run.trainable)} tensors is refused, server.limits.trained_tensors is "
            f"{limits.trained_tensors}"
        )
    if len(request.trained) > limits.steps_ahead:
        raise LimitError(
            f"{len(request.trained)} steps that were trained without a selection are refused, "
            f"server.limits.steps_ahead is {limits.steps_ahead}"
        )
    prints = run.fingerprints
    sizes = {
        "a name": (_MAX_NAME_BYTES, (run.name, *(spec.name for spec in run.trainable))),
        "a config": (_MAX_JSON_BYTES, (run.selection_json, run.adapter_json)),
        "a hash or id": (
            _MAX_ID_BYTES,
            (
                request.open_id,
                prints.dataset,
                prints.tokenizer,
                *prints.base_model,
                *prints.base_model.values(),
                *(spec.dtype for spec in run.trainable),
            ),
        ),
    }
    for what, (most, texts) in sizes.items():
        if (longest := max(map(len, texts))) > most:
            raise LimitError(f"{what} of {longest} characters is refused, at most {most} are taken")
    if len(prints.base_model) > _MAX_BASE_HASHES:
        raise LimitError(f"{len(prints.base_model)} hashes of the base model are refused, {_MAX_BASE_HASHES} are taken")
    for spec in run.trainable:
        # Sizes are multiplied one by one: a product of 2^63's is a number of megabytes.
        if len(spec.shape) > _MAX_DIMENSIONS or any(not 0 <= size <= _MAX_ELEMENTS for size in spec.shape):
            raise WireError(
                f"trained tensor {spec.name!r} has shape {list(spec.shape[:_MAX_DIMENSIONS])}: no tensor has"
            )
        if math.prod(spec.shape) > _MAX_ELEMENTS:
            raise LimitError(f"trained tensor {spec.name!r} of shape {list(spec.shape)} is larger than any model")


def _at_most(info: RunInfo, what: str, value: int, limit: int, key: str) -> None:
    if value > limit:
        raise LimitError(
            f"run {info.name!r} asks for {what} {value}, server.limits.{key} is {limit}: ask for less, or raise the "
            "limit"
        )
