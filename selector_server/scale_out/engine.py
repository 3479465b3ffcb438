"""A run's engine whose large batches are scored by all processes: each its share, put together on rank 0."""

from __future__ import annotations

import base64
import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selector_server.agreement import require_same_fingerprints
from selector_server.engine import SelectionEngine
from selector_server.run_engine import build_engine, model_of
from selector_server.scale_out.deal import deal
from selector_server.scale_out.team import Team
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import FloatArray, Scores, assemble
from shared.convert import run_to_pb
from shared.dataset import Store
from shared.errors import SelectionError
from shared.records import Fingerprints, RunInfo


class ShareEngine(SelectionEngine):
    """An engine that can score one process's share of a large batch: what ranks from 1 on have."""

    def micro_batches(
        self, rows: npt.NDArray[np.int64], *, num_shares: int
    ) -> tuple[list[npt.NDArray[np.int64]], list[list[int]]]:
        """A large batch's micro-batches, those of one process, and for each share the numbers of its own."""
        assert self._scorer is not None
        lengths = self._store.lengths(rows)
        batches = self._scorer.micro_batches(lengths.tolist(), self._selection)
        return batches, deal([len(batch) * int(lengths[batch].max()) for batch in batches], num_shares=num_shares)

    def probes_at(self, address: int | None) -> Probes | None:
        """The probes that are drawn at a step number; None without one."""
        assert self._scorer is not None
        if address is None:
            return None
        return Probes(self._scorer.shape, seed=self._seed, step=address, count=self._selection.num_probes)

    def score_batches(
        self, batches: Sequence[npt.NDArray[np.int64]], probes: Probes | None
    ) -> Iterator[dict[str, FloatArray]]:
        """Score micro-batches of the store's rows with the weights the model holds now, one by one."""
        assert self._scorer is not None
        self._scorer.refresh()
        yield from self._scorer.score_batches((self._store.rows(rows) for rows in batches), probes, self._selection)


class TeamEngine(ShareEngine):
    """Rank 0's engine: the others have one of the same number, and do their part of what it does."""

    def __init__(self, model: Any, store: Store, info: RunInfo, team: Team, number: int) -> None:
        """Prepare as `SelectionEngine` does."""
        super().__init__(model, store, info.selection, run=info.name, seed=info.seed)
        self._team, self._number = team, number

    def load(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put one version of the weights into every process's model."""
        command = {"do": "load", "engine": self._number, "version": version, "base": not tensors}
        load = super().load
        self._team.call(command, lambda: load(version, tensors), tensors=list(tensors.values()))

    def score(self, rows: npt.NDArray[np.int64], probes: Probes | None) -> Scores:
        """Score rows of the store with the weights of now, all processes together.

        Raises:
            SelectionError: a process couldn't score its share.
        """
        batches, shares = self.micro_batches(rows, num_shares=self._team.size)
        command = {
            "do": "score",
            "engine": self._number,
            "version": self.weights_version,
            "rows": rows.tolist(),
            "probes": None if probes is None else probes.step,
        }
        mine = [rows[batches[number]] for number in shares[0]]
        found, answers = self._team.call(command, lambda: list(self.score_batches(mine, probes)))
        parts = dict(zip(shares[0], found, strict=True))
        for rank, answer in enumerate(answers, start=1):
            sizes = [len(batches[number]) for number in shares[rank]]
            theirs = _cut(answer.arrays, sizes, like=found[0], name=self._team.name(rank))
            parts |= zip(shares[rank], theirs, strict=True)
        return assemble(batches, [parts[number] for number in range(len(batches))])


class TeamEngines:
    """Makes the engines of runs, on every process."""

    def __init__(self, team: Team, base: Any, store: Store) -> None:
        """Take the team, and rank 0's model and rows."""
        self._team, self._base, self._store = team, base, store
        self._last = 0
        self._gone: list[int] = []

    def build(self, info: RunInfo) -> SelectionEngine:
        """An engine of the run's own; where nothing is scored, rank 0 alone has it.

        Raises:
            ModelError: as `build_engine`.
            SelectionError: a process couldn't build its own.
        """
        if not info.selection.scores:
            return build_engine(self._base, self._store, info)
        gc.collect()  # an engine that was let go of is known as gone only then
        self._last += 1
        number = self._last
        run = base64.b64encode(run_to_pb(info).SerializeToString()).decode()
        gone, self._gone = self._gone, []
        command = {"do": "open", "engine": number, "run": run, "gone": gone}
        try:
            engine, _ = self._team.call(
                command, lambda: TeamEngine(model_of(self._base, info), self._store, info, self._team, number)
            )
        except Exception:
            self._forget(number)  # some processes may have built theirs
            raise
        weakref.finalize(engine, self._forget, number).atexit = False
        return engine

    def _forget(self, number: int) -> None:
        """The other processes let go of theirs when the next run is opened, which is when memory is needed."""
        self._gone.append(number)


def require_same_everywhere(team: Team, fingerprints: Fingerprints) -> None:
    """Compare what rank 0 has loaded with what the others have.

    Raises:
        FingerprintError: they differ.
    """
    _, answers = team.call({"do": "compare"}, lambda: None)
    for rank, answer in enumerate(answers, start=1):
        require_same_fingerprints(fingerprints, Fingerprints(**answer.values), left="rank 0", right=team.name(rank))


def _cut(
    arrays: Mapping[str, FloatArray], sizes: Sequence[int], *, like: Mapping[str, FloatArray], name: str
) -> list[dict[str, FloatArray]]:
    """What a process found, by micro-batch."""
    expected = {key: (sum(sizes), *values.shape[1:]) for key, values in like.items()} if sizes else {}
    got = {key: values.shape for key, values in arrays.items()}
    if got != expected:
        raise SelectionError(f"{name} found {got}, rank 0 expects {expected}: start all from the same installation")
    ends = np.cumsum(sizes)[:-1]
    pieces = {key: np.split(values, ends) for key, values in arrays.items()}
    return [{key: pieces[key][number] for key in pieces} for number in range(len(sizes))]
