"""The engine of one run on a server: built on the shared base, given the weights of w(step), asked for a step.

Runs share the frozen base. A run with an adapter has modules of its own around the base's tensors; one that trains
every weight has a full copy.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from selector_server.counted import Counted
from selector_server.engine import SelectionEngine
from selector_server.run import Run
from shared.convert import times_to_pb
from shared.dataset import Store
from shared.errors import ModelError
from shared.model import add_adapter, trainable_tensors
from shared.pb.v1 import selector_pb2 as pb
from shared.quantised import share_quantised
from shared.records import RunInfo
from shared.weights import decode_weights, tensor_specs
from shared.wire import encode_selection

if TYPE_CHECKING:
    from torch import Tensor

# What makes the engine of a run; raises ModelError where the run doesn't fit the server's model.
BuildEngine = Callable[[RunInfo], SelectionEngine]


@dataclass(frozen=True)
class Pushed:
    """Weights that have just been checked and made durable; they needn't be read, hashed and checked again.

    Attributes:
        version: Of the weights.
        sha256: Of their payload.
        tensors: As of `decode_weights`.
    """

    version: int
    sha256: str
    tensors: dict[str, Tensor]


def build_engine(base: Any, store: Store, info: RunInfo) -> SelectionEngine:
    """An engine of the run's own.

    Args:
        base: The server's model; it isn't changed.
        store: The rows.
        info: The run.

    Raises:
        ModelError: the run trains other tensors than the base with its adapter has, or can't be scored.

    Cost: of memory, the adapter, or with full fine-tuning the whole model; and the float32 tail where the base isn't
        float32.
    """
    gc.collect()  # an engine that was let go of frees its float32 tail only then
    return SelectionEngine(model_of(base, info), store, info.selection, run=info.name, seed=info.seed)


def model_of(base: Any, info: RunInfo) -> Any:
    """The run's model in eval mode, its adapter at initial values; the base itself where nothing is scored.

    Raises:
        ModelError: the run trains other tensors than the base with its adapter has.
    """
    if not info.selection.scores:
        return base
    shared_tensors = [*base.parameters(), *base.buffers()] if info.adapter_json else []
    frozen = [*shared_tensors, *share_quantised(base)] if shared_tensors else []
    model = copy.deepcopy(base, {id(each): each for each in frozen})
    trained = {spec.name for spec in info.trainable}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not info.adapter_json and name in trained)
    if info.adapter_json:
        model = add_adapter(model, info.adapter_json)
        _own_what_is_trained(model, shared_tensors)
    model.eval()
    mine = {spec.name: spec.shape for spec in tensor_specs(trainable_tensors(model))}
    theirs = {spec.name: spec.shape for spec in info.trainable}
    if mine != theirs:
        differing = sorted(set(mine.items()) ^ set(theirs.items()))[:3]
        raise ModelError(
            f"run {info.name!r} trains {len(theirs)} tensors, the server's model with the same adapter has "
            f"{len(mine)}; differing: {differing}: load the same model and adapter on both sides"
        )
    return model


def _own_what_is_trained(model: Any, shared_tensors: Iterable[Tensor]) -> None:
    """Give a run its own copy of what it trains of the base, such as biases: other runs have the base's."""
    is_shared = {id(tensor) for tensor in shared_tensors}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) in is_shared:
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
                parameter.requires_grad_(False)


@dataclass(frozen=True, eq=False)
class SelectedStep:
    """A step's selection before it is durable.

    Attributes:
        engine: That found it.
        message: The selection.
        scores: What it was picked from where the journal keeps that; else empty.
        counted: Rows and tokens drawn and picked.
    """

    engine: SelectionEngine
    message: pb.SelectionMessage
    scores: bytes
    counted: Counted


def select_step(
    run: Run, engine: SelectionEngine | None, step: int, *, build: BuildEngine, pushed: Pushed | None = None
) -> SelectedStep:
    """Load the weights of w(step), from the disk where they aren't those just pushed, and select.

    Args:
        run: The run.
        engine: Its engine; a new one is built where there is none.
        step: The step.
        build: Builds one.
        pushed: Weights of the run, of whatever version and branch.

    Raises:
        SubbatchError: scoring or picking failed, or the journal no longer holds what it held.
    """
    clock = time.perf_counter()
    engine = engine or build(run.info)
    version = run.info.timing.weights_version(step)
    if run.info.selection.scores and engine.weights_version != version:
        engine.load(version, _tensors(run, version, pushed))
    loaded = time.perf_counter()
    selected = engine.select(step, version, run.history(step))
    times = dataclasses.replace(
        selected.times,
        started_unix_ns=selected.times.started_unix_ns - int((loaded - clock) * 1e9),
        load_seconds=loaded - clock,
    )
    message = pb.SelectionMessage(
        step=step,
        weights_version=version,
        arrow=encode_selection(selected.selection),
        times=times_to_pb(times),
        history=selected.history,
    )
    kept = selected.kept if run.journal.keep_scores else None
    return SelectedStep(engine, message, kept.to_bytes() if kept else b"", selected.counted)


def _tensors(run: Run, version: int, pushed: Pushed | None) -> dict[str, Tensor]:
    stored = run.stored_weights(version)
    if pushed and stored and (pushed.version, pushed.sha256) == (version, stored.sha256):
        return pushed.tensors
    payload = run.weights(version)
    # Version 0 of full fine-tuning is what a new engine holds already.
    return {} if payload is None else decode_weights(payload, run.info.trainable)
