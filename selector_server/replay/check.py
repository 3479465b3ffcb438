"""One step of a journalled run, computed again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from selector_server.engine import SelectionEngine
from selector_server.kept import Kept, made_here
from selector_server.picker import Picker
from selector_server.replay.finding import EQUAL, Finding, StepReport, compare, scores, selections
from selector_server.run_state import RunState
from selector_server.scoring.scorer import Scores
from shared.dataset import Store
from shared.errors import FingerprintError, SubbatchError
from shared.fallback import fallback_selection
from shared.pb.v1 import selector_pb2 as pb
from shared.records import Selection
from shared.weights import decode_weights
from shared.wire import decode_selection

logger = logging.getLogger(__name__)

_NOT_ASKED = Finding("unchecked", "not rescored: ask with --rescore")


@dataclass(frozen=True, eq=False)
class _Scored:
    """What a step's pick is computed from: rows int64 [b] and their scores, and what else the probes bring."""

    rows: npt.NDArray[np.int64]
    scores: Scores | None
    probe_shape: tuple[int, ...] = ()


class Replayer:
    """Computes steps of one run again."""

    def __init__(
        self, run: RunState, store: Store, *, device: torch.device, engine: SelectionEngine | None = None
    ) -> None:
        """Take a run and what it drew from.

        Args:
            run: As its journal tells it.
            store: The rows it drew from.
            device: Where picks are computed; their last bits may depend on it.
            engine: The run's model, to score again; None compares with the scores that the journal keeps.

        Raises:
            FingerprintError: the run drew from another store.
        """
        if store.fingerprint != run.info.fingerprints.dataset:
            raise FingerprintError(
                f"run {run.info.name!r} drew from a store with fingerprint {run.info.fingerprints.dataset}, data.store "
                f"has {store.fingerprint}: give the store that the run was trained with"
            )
        self._run, self._store, self._engine, self._device = run, store, engine, device
        self._loaded: tuple[int, str] | None = None
        self._picker = Picker(store, run.info.selection, run.info.name, run.info.seed, device)

    def check(self, steps: range) -> Iterator[StepReport]:
        """Compute steps again, in order."""
        for step in steps:
            yield self.check_step(step) if self._run.has_selection(step) else _without(step)

    def check_step(self, step: int) -> StepReport:
        """Compute a step that has a selection again."""
        message = self._run.selection(step)
        batch = self._picker.draw(step)
        try:
            recorded = decode_selection(message.arrow)
        except SubbatchError as error:
            broken = Finding("differs", f"the selection is malformed: {error}")
            return StepReport(step, broken, broken, broken)
        if recorded.fallback:
            return self._check_fallback(recorded)
        kept, problem = None, ""
        try:
            payload = self._run.scores(step)
            kept = Kept.from_bytes(payload) if payload else None
        except SubbatchError as error:
            problem = str(error)
        _use_threads_of(kept)
        rescored, scored = self._rescored(message, batch, kept)
        scored = Finding("differs", problem) if problem else scored
        return StepReport(
            step, self._draw(batch, recorded, kept), scored, self._pick(message, recorded, kept, rescored)
        )

    def _check_fallback(self, recorded: Selection) -> StepReport:
        """A step that was trained without a server: its rows are a part of the draw, and nothing else is to check."""
        again = fallback_selection(self._run.info, self._store, recorded.step)
        unscored = Finding("unchecked", "nothing was scored: the server was away")
        found = compare(selections(recorded, again))
        return StepReport(recorded.step, found, unscored, found)

    def _draw(self, batch: npt.NDArray[np.int64], recorded: Selection, kept: Kept | None) -> Finding:
        if kept is not None:
            return compare({"drawn rows": (kept.rows, batch)})
        foreign = np.setdiff1d(np.concatenate([recorded.index, recorded.skipped]), batch)
        if foreign.size:
            return Finding("differs", f"row {foreign[0]} was picked, which was not drawn")
        if not self._run.info.selection.scores:
            return EQUAL  # the pick is computed from the draw alone, and is compared
        return Finding("unchecked", "the journal keeps picked rows alone, all of which were drawn")

    def _rescored(
        self, message: pb.SelectionMessage, batch: npt.NDArray[np.int64], kept: Kept | None
    ) -> tuple[_Scored | None, Finding]:
        """The batch scored again, if that is asked for and can be, and how it compares with what is kept."""
        if not self._run.info.selection.scores:
            return None, Finding("unchecked", "nothing is scored")
        engine = self._engine
        if engine is None:
            return None, _NOT_ASKED
        version, sha256, journal = message.weights_version, message.weights_sha256, self._run.journal
        if sha256 and not journal.has_weights(version, sha256):
            return None, Finding("unchecked", "weights are not kept: a server with server.retain_weights keeps them")
        try:
            if self._loaded != (version, sha256):
                # Without a hash it is the base model, which a new engine holds.
                payload = journal.read_weights(version, sha256) if sha256 else None
                engine.load(version, decode_weights(payload, self._run.info.trainable) if payload else {})
                self._loaded = version, sha256
            probes = self._picker.probes(message.step, engine.probe_shape)
            again = engine.score(batch, probes)
        except SubbatchError as error:
            return None, Finding("differs", str(error))
        found = _Scored(batch, again, probes.shape if probes else ())
        if kept is None:
            return found, Finding("unchecked", "the journal keeps no scores to compare with")
        return found, _blamed(compare(scores(kept.scores, again)), kept, self._device)

    def _pick(
        self, message: pb.SelectionMessage, recorded: Selection, kept: Kept | None, rescored: _Scored | None
    ) -> Finding:
        step, info = message.step, self._run.info
        source = _Scored(kept.rows, kept.scores, kept.probe_shape) if kept else rescored
        if source is None and info.selection.scores:
            return Finding("unchecked", "the journal keeps no scores (server.keep_scores), and none were made again")
        if source is None:
            source = _Scored(self._picker.draw(step), None)
        weight = None
        if info.selection.criterion != "grad" and info.selection.scores and info.selection.pick != "loss":
            if rescored is None or self._engine is None:
                return Finding("unchecked", f"criterion {info.selection.criterion!r} looks at weights: use --rescore")
            weight = self._engine.weight()
        if step > 0 and info.selection.keeps_history and not self._run.has_selection(step - 1):
            return Finding("unchecked", "it depends on the step before, which the journal doesn't have")
        try:
            again, after = self._picker.pick(
                source.rows,
                source.scores,
                step=step,
                weights_version=info.timing.weights_version(step),
                history=self._run.history(step),
                probes=self._picker.probes(step, source.probe_shape) if source.scores else None,
                weight=weight,
            )
        except SubbatchError as error:
            return Finding("differs", f"can't be computed again: {error}")
        what = selections(recorded, again) | {"history": (message.history, after)}
        return _blamed(compare(what), kept, self._device)


def _without(step: int) -> StepReport:
    missing = Finding("unchecked", "the journal has no selection of it")
    return StepReport(step, missing, missing, missing)


def _use_threads_of(kept: Kept | None) -> None:
    """Compute with as many threads as the server did: sums depend on it."""
    threads = kept.made_on.get("threads", "") if kept else ""
    if threads.isdigit() and 0 < int(threads) <= 1024 and int(threads) != torch.get_num_threads():
        logger.info("computing with %s threads, as the server did", threads)
        torch.set_num_threads(int(threads))


def _blamed(finding: Finding, kept: Kept | None, device: torch.device) -> Finding:
    """A difference, with what it may come from where the server's surroundings were others."""
    here = made_here(device)
    if finding.verdict != "differs" or kept is None or kept.made_on == here:
        return finding
    pairs = (f"{key} {kept.made_on.get(key)} there and {here[key]} here" for key in here)
    other = ", ".join(pair for key, pair in zip(here, pairs, strict=True) if kept.made_on.get(key) != here[key])
    return Finding("differs", f"{finding.why}; last bits may come from {other}")
