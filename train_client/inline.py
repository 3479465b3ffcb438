"""Selection inside the training process: for one device, and as the truth that the server is compared with.

The only file that loads the selector, by its entry point. Selections use the live model, so each is made while the
model has the weights version that the step's timing asks for; with staleness they wait here until their step comes.
"""

from __future__ import annotations

import time
from importlib.metadata import entry_points
from typing import Any

from shared.dataset import Store
from shared.errors import CursorError
from shared.records import PhaseTimes, RunInfo
from shared.wire import decode_selection, encode_selection
from train_client.ranks import Ranks
from train_client.received import Received

_GROUP, _NAME = "subbatch.selectors", "inline"


class InlineSource:
    """Selections made by rank 0's own model, between two steps, and sent to the other ranks."""

    reads_ahead = False  # the model is at the weights of a selection between two steps only

    def __init__(self, model: Any, store: Store, ranks: Ranks) -> None:
        self._model, self._store, self._ranks = model, store, ranks
        self._pending: dict[int, tuple[bytes, PhaseTimes]] = {}
        self._engine: Any = None
        self._info: RunInfo | None = None
        self._version = 0
        self._history, self._loaded = b"", ""

    def open(self, info: RunInfo, *, cursor: int, restart: bool) -> None:
        """Build the engine on the live model and select what these weights are for.

        Raises:
            SubbatchError: the model can't be scored, the same on every rank.
        """
        self._info, self._version = info, cursor

        def build() -> None:
            self._require_history(cursor)
            (entry,) = entry_points(group=_GROUP, name=_NAME)
            self._engine = entry.load()(self._model, self._store, info.selection, run=info.name, seed=info.seed)
            self._select_ahead(cursor)

        self._ranks.on_first(build)

    def selection(self, step: int) -> Received:
        """The selection of a step.

        Raises:
            CursorError: it needed weights that are gone, since the checkpoint wasn't made by an inline run.
            SelectionError: scoring failed.
        """

        def take() -> tuple[bytes, PhaseTimes]:
            if step not in self._pending:
                self._select(step)
            return self._pending.pop(step)

        encoded, times = self._ranks.on_first(take)
        return Received(decode_selection(encoded), times, len(encoded), time.time_ns())

    def instead(self, step: int) -> Received | None:
        """Every step has its selection."""
        return None

    def before_step(self) -> None:
        """What these weights are for has been selected."""

    def attempted(self, completed: int) -> None:
        """Select, now, every step that uses exactly these weights."""
        self._version = completed
        self._ranks.on_first(lambda: self._select_ahead(completed))

    def state(self) -> dict[str, Any]:
        """Selections that were made with weights older than the checkpoint's, and what the next one needs of them."""
        pending = {step: encoded for step, (encoded, _) in self._pending.items()}
        return {
            "pending": pending,
            "history": self._history,
            "history_of": self._history_of() if self._info else self._loaded,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._history, self._loaded = state.get("history", b""), state.get("history_of", "")
        self._pending = {step: (encoded, PhaseTimes()) for step, encoded in state.get("pending", {}).items()}

    def finish(self) -> None:
        """Nothing to tell anybody."""

    def close(self) -> None:
        """Nothing to let go of."""

    def _history_of(self) -> str:
        """What a history means something to: the run's seed and how it selects."""
        assert self._info is not None
        return f"seed {self._info.seed}, {self._info.selection.model_dump_json()}"

    def _require_history(self, cursor: int) -> None:
        """Refuse to go on from a checkpoint that doesn't have this run's history.

        Raises:
            CursorError: an inline run of other settings made it, or no inline run.
        """
        assert self._info is not None
        mine = self._history_of()
        if cursor == 0 or not self._info.selection.keeps_history or self._loaded == mine:
            return
        raise CursorError(
            f"run {self._info.name!r}: selections depend on those before step {cursor}, made with {mine}; the "
            f"checkpoint has those of {self._loaded or 'no inline run'}: resume with the settings and the "
            "client.selector that made it, or start over at step 0"
        )

    def _select_ahead(self, version: int) -> None:
        assert self._info is not None
        for step in self._info.timing.steps_using(version):
            if step >= self._version and step not in self._pending:
                self._select(step)

    def _select(self, step: int) -> None:
        assert self._info is not None
        timing = self._info.timing
        version = timing.weights_version(step)
        if timing.scores and version != self._version:
            raise CursorError(
                f"run {self._info.name!r}: the selection of step {step} needs weights version {version}, the model is "
                f"at {self._version}: resume from a checkpoint that an inline run made"
            )
        selected = self._engine.select(step, version, self._history)
        self._history = selected.history
        self._pending[step] = (encode_selection(selected.selection), selected.times)
