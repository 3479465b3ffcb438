"""Where a trainer's selections come from: a server, seen from all ranks of a job.

Every method is called by every rank at the same point of the loop; rank 0 does what only one may do.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

from shared.config import ClientConfig, RunConfig
from shared.errors import UnavailableError
from shared.records import RunInfo
from train_client.assembling import WantedRows
from train_client.calls import LOG_EVERY_S
from train_client.client import SelectorClient
from train_client.fallback import Fallback, end_without
from train_client.push import MAX_UNDER_WAY, Pusher
from train_client.ranks import Ranks
from train_client.received import Received
from train_client.stream import Look
from train_client.traffic import Connection
from train_client.trained import TrainedTensors
from train_client.training_data import TrainingData
from train_client.waiting import Wait

logger = logging.getLogger(__name__)


class SelectionSource(Protocol):
    """What the loader needs of a server, or of selection in the training process.

    Attributes:
        reads_ahead: Whether the selection of a step may be asked for, in another thread, while the step before trains.
    """

    reads_ahead: bool

    def open(self, info: RunInfo, *, cursor: int, restart: bool) -> None:
        """Begin at `cursor`, with the model at weights version `cursor`."""

    def selection(self, step: int) -> Received:
        """The selection of a step; steps are asked for in order."""

    def instead(self, step: int) -> Received | None:
        """What every rank trains a step on though it has no selection; None where it has one, or one is waited for."""

    def before_step(self) -> None:
        """The optimizer is about to change the weights."""

    def attempted(self, completed: int) -> None:
        """The model now has weights version `completed`."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the cursor; returns once the checkpoint can be resumed from."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave, before `open`."""

    def finish(self) -> None:
        """Every step has been trained."""

    def close(self) -> None:
        """Let go of threads and connections."""


class ServerSource:
    """Selections from a selector server; rank 0 opens the run and pushes the weights, each rank has its own stream."""

    reads_ahead = True

    def __init__(self, client: ClientConfig, model: Any, data: TrainingData, ranks: Ranks, *, run: RunConfig) -> None:
        self._trained, self._ranks = TrainedTensors(model), ranks
        wanted = WantedRows(ranks.rank, ranks.world_size, data.max_token_id) if data.store is None else None
        self._client = SelectorClient(client, run=run.name, rank=ranks.rank, wanted=wanted)
        self._samples = client.on_unavailable == "sample"
        # No step may wait for a server that is away: what its selection needs is under way, and one upload at hand.
        most = run.staleness // run.push_every + 3 if self._samples else MAX_UNDER_WAY
        self._pusher = None
        if ranks.is_first:
            fail = self._client.fail_selections
            self._pusher = Pusher(
                self._client.push,
                run=run.name,
                max_under_way=most,
                keeps_last=client.push_deltas,
                dtype=run.pushed_dtype,
                on_failed=fail,
            )
        self._fallback = Fallback(data.store)
        self._loaded: dict[int, bytes] = {}
        self._next_log = 0.0
        self._info: RunInfo | None = None
        self._name, self._incarnation = run.name, 0
        self._completed = 0

    def open(self, info: RunInfo, *, cursor: int, restart: bool) -> None:
        """Open the run on rank 0, push the weights that the server lacks, and subscribe every rank.

        Of several ranks, which may be on hosts of their own, each makes sure first that it reaches the server: else a
        run would be open and wait for a rank that never comes.

        Raises:
            SubbatchError: the same on every rank.
        """
        self._fallback.open(info, cursor=cursor, is_allowed=self._samples)
        self._info, self._completed = info, cursor

        def opening() -> tuple[int, list[int]]:
            return self._client.open_run(
                info,
                cursor=cursor,
                restart=restart,
                checkpoint_incarnation=self._incarnation,
                trained=self._loaded,
            )

        if self._ranks.world_size > 1:
            self._ranks.require_all(self._client.reach)
        self._incarnation, missing = self._ranks.on_first(opening)
        self._client.attach(self._incarnation, from_step=cursor, num_steps=info.timing.num_steps)
        self._client.skip_to(self._fallback.end)
        if cursor in missing:
            self._push(cursor)

    def selection(self, step: int) -> Received:
        """Wait for the selection of a step; patience begins when the step before has been trained."""
        # Where training may go on without it, `instead` waits for it, on the thread on which ranks can agree.
        is_due = lambda: self._completed >= step and not self._samples  # noqa: E731
        received = self._client.selection_unless_skipped(step, is_due=is_due)
        return self._fallback.received(step) if received is None else received

    def instead(self, step: int) -> Received | None:
        """The first rows of a step's draw, where all ranks agree that the server is away.

        Raises:
            SubbatchError: the same on every rank.
        """
        if not self._fallback.covers(step):
            if not self._samples:
                return None
            wait = self._client.wait_for_selection(step)
            looks: list[tuple[Look, int]] = []
            while not any(look == "away" for look, _ in looks):
                looks = self._ranks.gather(lambda: self._look(step, wait))
                if all(look == "here" for look, _ in looks):
                    return None
            self._fall_back(step, looks[0][1])
        return self._fallback.received(step)

    def _look(self, step: int, wait: Wait) -> tuple[Look, int]:
        """How it stands on this rank; and which step would be the next with one, if some rank is away."""
        look = self._client.look(step, wait)
        given_up = self._pusher.not_durable[:-1] if self._pusher else []
        assert self._info is not None
        return look, max(step + 1, end_without(self._info.timing, given_up))

    def _fall_back(self, step: int, end: int) -> None:
        steps = self._fallback.extend(step, end)
        self._client.skip_to(end)
        if not self._pusher:
            return
        self._pusher.keep_newest()
        self._client.report_trained(steps)
        if time.monotonic() >= self._next_log:
            self._next_log = time.monotonic() + LOG_EVERY_S
            logger.warning(
                "run %s: step %d: the server is away: training on the first %d rows of the step's draw, unweighted",
                self._name, step, len(self._fallback.received(step).selection.index),
            )  # fmt: skip

    def before_step(self) -> None:
        """Let a snapshot that is still being copied have the old weights."""
        if self._pusher:
            self._pusher.before_overwriting()

    def attempted(self, completed: int) -> None:
        """Report progress, and push the weights where a later step uses them."""
        assert self._info is not None
        self._completed = completed
        steps = self._info.timing.steps_using(completed)
        if steps and steps.stop > self._fallback.end:
            self._push(completed)
        self._client.report(completed)

    def state(self) -> dict[str, Any]:
        """Wait until every weights version behind the cursor is durable, so that the checkpoint is complete.

        Where training goes on without a server that is away, every rank calls this: the steps whose weights it lacks
        are given up by all, also by this job if it goes on, so that both continue alike.
        """
        if self._samples and self._info:
            (end, *_) = self._ranks.gather(self._end_of_what_is_lost)
            if end > self._completed:
                self._fall_back(self._completed, end)
        elif self._pusher:
            self._pusher.wait_durable(self._client.wait_for_push(self._completed).is_away)
        return {
            "incarnation": self._incarnation,
            "trained": self._client.untold_trained,
            "fallback_end": self._fallback.end,
        }

    def _end_of_what_is_lost(self) -> int:
        """Before which step a trainer that resumes here couldn't have a selection; 0 where it can have all."""
        assert self._info is not None
        if not self._pusher or self._pusher.wait_durable(self._client.wait_for_push(self._completed).is_away):
            return 0
        lost = [version for version in self._pusher.not_durable if version < self._completed]
        return end_without(self._info.timing, lost)

    def load_state(self, state: dict[str, Any]) -> None:
        """Remember which incarnation made the checkpoint, and what it couldn't tell the server."""
        self._incarnation = int(state.get("incarnation", 0))
        self._loaded = state.get("trained", {})
        self._fallback.end = int(state.get("fallback_end", 0))

    def connection(self) -> Connection:
        """How this rank stands with its server now; for metrics, from any thread."""
        return self._client.connection(pushes_under_way=len(self._pusher.not_durable) if self._pusher else 0)

    def finish(self) -> None:
        """Close the run; training is done, so a server that has gone away is no reason to fail."""
        if self._pusher:
            try:
                self._client.close_run()
            except UnavailableError as error:
                untold = len(self._client.untold_trained)
                logger.warning("%s; the run stays open on the server", error)
                if untold:
                    logger.warning(
                        "run %s: the server doesn't know of %d steps that were trained without it, and would select "
                        "them for a job that goes back past them", self._name, untold,
                    )  # fmt: skip

    def close(self) -> None:
        """Stop pushing and receiving."""
        if self._pusher:
            self._pusher.close()
        self._client.close()
        if self._pusher:
            self._pusher.join()

    def _push(self, version: int) -> None:
        # What is sharded is gathered on every rank, at the same step, and uploaded by the first alone.
        tensors = self._trained.now() if self._pusher or self._trained.is_sharded else {}
        if self._pusher:
            self._pusher.push(version, tensors)
