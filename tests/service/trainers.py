"""A trainer that is all arithmetic: its weights after a step are a function of the rows of every step so far.

So a row that is trained once too often, in another order or instead of another shows in everything that comes after it;
and what a run must select is computed here a second time, by draws and an engine alone, without server or journal.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from selector_server.run_engine import build_engine
from shared.config import ClientConfig, RunConfig
from shared.model import trainable_tensors
from shared.records import RunInfo, Selection
from shared.sampler import draw_large_batch
from tests.service.harness import Job, LiveServer
from train_client.ranks import Ranks
from train_client.source import ServerSource
from train_client.training_data import of_store


def settings(info: RunInfo) -> RunConfig:
    timing = info.timing
    return RunConfig(
        name=info.name, num_steps=timing.num_steps, staleness=timing.staleness, push_every=timing.push_every
    )


def weights_after(job: Job, lineage: bytes) -> dict[str, torch.Tensor]:
    return job.weights(int.from_bytes(hashlib.sha256(lineage).digest()[:4], "little"))


def trained_on(lineage: bytes, selection: Selection) -> bytes:
    return lineage + selection.index.tobytes() + selection.weight.tobytes()


class ArithmeticTrainer:
    """One rank's loop over a ServerSource, without a model that learns. `state` and `load` are its checkpoints."""

    def __init__(self, server: LiveServer, job: Job, info: RunInfo, ranks: Ranks | None = None, **client: Any) -> None:
        self.info, self.job, self.server = info, job, server
        options = {"selector": server.address, "away_after_s": 0.2, "connect_timeout_s": 30.0, **client}
        self.model = copy.deepcopy(job.model)
        config = ClientConfig.model_validate(options)
        data = of_store(server.store.path)
        self.source = ServerSource(config, self.model, data, ranks or Ranks(0, 1), run=settings(info))
        self.cursor, self.lineage = 0, b""
        self.selections: dict[int, Selection] = {}
        self._put_weights()

    def _put_weights(self) -> None:
        weights = weights_after(self.job, self.lineage)
        with torch.no_grad():
            for name, tensor in trainable_tensors(self.model).items():
                tensor.copy_(weights[name])

    def state(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "lineage": self.lineage, "source": self.source.state()}

    def load(self, state: dict[str, Any]) -> None:
        self.cursor, self.lineage = state["cursor"], state["lineage"]
        self.source.load_state(state["source"])
        self._put_weights()

    def open(self) -> None:
        self.source.open(self.info, cursor=self.cursor, restart=False)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            step = self.cursor
            instead = self.source.instead(step)
            selection = (instead or self.source.selection(step)).selection
            self.selections[step] = selection
            self.source.before_step()
            self.lineage = trained_on(self.lineage, selection)
            self._put_weights()
            self.cursor += 1
            self.source.attempted(self.cursor)

    def train_into_an_outage(self, steps: int) -> None:
        """Train until a step has no selection, and on to `steps` of these."""
        while steps:
            self.train()
            steps -= self.selections[self.cursor - 1].fallback

    def wait_until_back(self) -> None:
        """Until the server answers this trainer."""
        liveness = self.source._client._liveness
        liveness.ask(self.cursor)
        while liveness.away_s:
            liveness.ask(self.cursor)

    def __enter__(self) -> ArithmeticTrainer:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()


class ThreadRanks(Ranks):
    """Ranks that are threads of this process."""

    def meet(self, barrier: threading.Barrier, results: dict[int, Any]) -> ThreadRanks:
        object.__setattr__(self, "_meeting", (barrier, results))
        return self

    def gather(self, action: Any) -> list[Any]:
        barrier, results = self._meeting  # type: ignore[attr-defined]
        results[self.rank] = action()
        barrier.wait(60)
        everything = [results[rank] for rank in range(self.world_size)]
        barrier.wait(60)
        return everything

    def on_first(self, action: Any) -> Any:
        return self.gather(lambda: action() if self.is_first else None)[0]


def computed(server: LiveServer, job: Job, info: RunInfo, without: Collection[int]) -> dict[int, Selection]:
    """What a run selects whose server is away at the steps `without`, step by step with the engine alone."""
    engine = build_engine(server.model, server.store, info)
    lineage, selections = [b""], {}
    for step in range(info.timing.num_steps):
        if step in without:
            index = draw_large_batch(server.store.source_rows, info.selection, seed=info.seed, step=step)
            r, b = info.selection.sub_batch_size, info.selection.large_batch_size
            selection = Selection(
                run=info.name,
                step=step,
                weights_version=0,
                large_batch_size=b,
                index=index[:r],
                source=server.store.sources_of(index[:r]),
                weight=np.array([b / r] * r, dtype=np.float32),
                gain=np.array([0.0] * r, dtype=np.float32),
                num_tokens=server.store.lengths(index[:r]),
                fallback=True,
            )
        else:
            version = max(0, step - info.timing.staleness) // info.timing.push_every * info.timing.push_every
            engine.load(version, weights_after(job, lineage[version]))
            selection = engine.select(step, version).selection
        selections[step] = selection
        lineage.append(trained_on(lineage[-1], selection))
    return selections
