"""What every scoring process but rank 0 does: it loads the same model and rows, and does its part of each command."""

from __future__ import annotations

import base64
import dataclasses
import gc
import logging
import signal
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from selector_server.run_engine import model_of
from selector_server.scale_out.engine import ShareEngine
from selector_server.scale_out.team import Answer, Member
from shared.convert import run_from_pb
from shared.dataset import Store
from shared.errors import ModelError
from shared.pb.v1 import selector_pb2 as pb
from shared.records import Fingerprints, RunInfo

logger = logging.getLogger(__name__)


class Worker:
    """Engines of this process, by rank 0's numbers."""

    def __init__(self, member: Member, base: Any, store: Store, fingerprints: Fingerprints) -> None:
        """Take what is shared by all runs."""
        self._member, self._base, self._store, self._fingerprints = member, base, store, fingerprints
        self._engines: dict[int, tuple[ShareEngine, RunInfo]] = {}

    def work(self) -> None:
        """Do what rank 0 says until it says `stop`; an error of this process is its answer."""
        commands: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
            "compare": self._compare,
            "open": self._open,
            "load": self._load,
            "score": self._score,
        }
        # A launcher's SIGTERM is for rank 0, which ends the others when it is done.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        while (command := self._member.receive())["do"] != "stop":
            try:
                with self._member.working():
                    answer = commands[command["do"]](command)
            except Exception as error:
                logger.exception("scoring process %d couldn't %s", self._member.rank, command["do"])
                answer = Answer(error=str(error) or repr(error))
            self._member.answer(answer)
        self._member.close()

    def _compare(self, _command: Mapping[str, Any]) -> Answer:
        return Answer(values=dataclasses.asdict(self._fingerprints))

    def _open(self, command: Mapping[str, Any]) -> Answer:
        for number in command["gone"]:
            self._engines.pop(number, None)
        gc.collect()
        info = run_from_pb(pb.RunInfo.FromString(base64.b64decode(command["run"])))
        model = model_of(self._base, info)
        engine = ShareEngine(model, self._store, info.selection, run=info.name, seed=info.seed)
        self._engines[command["engine"]] = engine, info
        return Answer()

    def _load(self, command: Mapping[str, Any]) -> Answer:
        engine, info = self._engines[command["engine"]]
        specs = () if command["base"] else info.trainable
        # All are received before anything can go wrong: rank 0 sends all.
        tensors = {spec.name: self._member.receive_tensor(spec.shape, getattr(torch, spec.dtype)) for spec in specs}
        engine.load(command["version"], tensors)
        return Answer()

    def _score(self, command: Mapping[str, Any]) -> Answer:
        engine, info = self._engines[command["engine"]]
        if engine.weights_version != command["version"]:
            raise ModelError(
                f"run {info.name!r} has weights version {engine.weights_version} here, rank 0 has {command['version']}"
            )
        rows = np.asarray(command["rows"], dtype=np.int64)
        batches, shares = engine.micro_batches(rows, num_shares=self._member.size)
        mine = [rows[batches[number]] for number in shares[self._member.rank]]
        found = []
        for part in engine.score_batches(mine, engine.probes_at(command["probes"])):
            found.append(part)
            self._member.advance()
        names = found[0] if found else {}
        return Answer(arrays={name: np.concatenate([part[name] for part in found]) for name in names})
