"""Where a trainer's selections come from: a server, seen from all ranks of a job.

Every method is called by every rank at the same point of the loop; rank 0 does what only one may do.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from shared.config import ClientConfig
from shared.errors import UnavailableError
from shared.model import trainable_tensors
from shared.records import RunInfo
from train_client.client import Received, SelectorClient
from train_client.push import Pusher
from train_client.ranks import Ranks

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

    def __init__(self, client: ClientConfig, model: Any, ranks: Ranks, *, run: str) -> None:
        self._model, self._ranks = model, ranks
        self._client = SelectorClient(client, run=run, rank=ranks.rank)
        self._pusher = Pusher(self._client.push, run=run) if ranks.is_first else None
        self._info: RunInfo | None = None
        self._incarnation = 0
        self._completed = 0

    def open(self, info: RunInfo, *, cursor: int, restart: bool) -> None:
        """Open the run on rank 0, push the weights that the server lacks, and subscribe every rank.

        Raises:
            SubbatchError: the same on every rank.
        """
        self._info, self._completed = info, cursor

        def opening() -> tuple[int, list[int]]:
            return self._client.open_run(info, cursor=cursor, restart=restart, checkpoint_incarnation=self._incarnation)

        self._incarnation, missing = self._ranks.on_first(opening)
        self._client.attach(self._incarnation, from_step=cursor, num_steps=info.timing.num_steps)
        if cursor in missing:
            self._push(cursor)

    def selection(self, step: int) -> Received:
        """Wait for the selection of a step; patience begins when the step before has been trained."""
        return self._client.selection(step, is_due=lambda: self._completed >= step)

    def before_step(self) -> None:
        """Let a snapshot that is still being copied have the old weights."""
        if self._pusher:
            self._pusher.before_overwriting()

    def attempted(self, completed: int) -> None:
        """Report progress, and push the weights where a later step uses them."""
        assert self._info is not None
        self._completed = completed
        if self._info.timing.steps_using(completed):
            self._push(completed)
        self._client.report(completed)

    def state(self) -> dict[str, Any]:
        """Wait until every weights version behind the cursor is durable, so that the checkpoint is complete."""
        if self._pusher:
            self._pusher.wait_durable()
        return {"incarnation": self._incarnation}

    def load_state(self, state: dict[str, Any]) -> None:
        """Remember which incarnation made the checkpoint; everything else is with the server."""
        self._incarnation = int(state.get("incarnation", 0))

    def finish(self) -> None:
        """Close the run; training is done, so a server that has gone away is no reason to fail."""
        if self._pusher:
            try:
                self._client.close_run()
            except UnavailableError as error:
                logger.warning("%s; the run stays open on the server", error)

    def close(self) -> None:
        """Stop pushing and receiving."""
        if self._pusher:
            self._pusher.close()
        self._client.close()

    def _push(self, version: int) -> None:
        if self._pusher:
            self._pusher.push(version, trainable_tensors(self._model))
