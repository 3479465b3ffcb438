"""The engine of one run on a server: built on the shared base, given the weights of w(step), asked for a step.

Runs share the frozen base. A run with an adapter has modules of its own around the base's tensors; one that trains
every weight has a full copy.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

from selector_server.engine import SelectionEngine
from selector_server.run import Run
from shared.convert import times_to_pb
from shared.dataset import Store
from shared.errors import ModelError
from shared.model import add_adapter, trainable_tensors
from shared.pb.v1 import selector_pb2 as pb
from shared.records import RunInfo
from shared.weights import decode_weights, tensor_specs
from shared.wire import encode_selection

# What makes the engine of a run; raises ModelError where the run doesn't fit the server's model.
BuildEngine = Callable[[RunInfo], SelectionEngine]


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
    model = copy.deepcopy(base, {id(tensor): tensor for tensor in shared_tensors})
    trained = {spec.name for spec in info.trainable}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not info.adapter_json and name in trained)
    if info.adapter_json:
        model = add_adapter(model, info.adapter_json)
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


def select_step(
    run: Run, engine: SelectionEngine | None, step: int, *, build: BuildEngine
) -> tuple[SelectionEngine, pb.SelectionMessage, bytes]:
    """Load the weights of w(step) and select, with a new engine where there is none.

    Returns:
        The engine, the selection, and what it was picked from where the journal keeps that; else empty.

    Raises:
        SubbatchError: scoring or picking failed, or the journal no longer holds what it held.
    """
    clock = time.perf_counter()
    engine = engine or build(run.info)
    version = run.info.timing.weights_version(step)
    if run.info.selection.scores and engine.weights_version != version:
        payload = run.weights(version)
        # Version 0 of full fine-tuning is what a new engine holds already.
        tensors = {} if payload is None else decode_weights(payload, run.info.trainable)
        engine.load(version, tensors)
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
    return engine, message, kept.to_bytes() if kept else b""
