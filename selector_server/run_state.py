"""One run as its journal tells it, read only: selections, weights, incarnation, and the chain that proves them whole.

A server's own `Run` is this and what may be done to it; `journal` and `replay` read one beside a running server.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from selector_server.journal import JournalReader
from selector_server.journal.chain import chain_link, chain_root
from shared.convert import run_from_pb
from shared.errors import JournalError
from shared.pb.v1 import journal_pb2, selector_pb2
from shared.records import RunInfo


@dataclass(frozen=True)
class StoredWeights:
    """A version that was accepted: its content hash, and the incarnation that pushed it."""

    sha256: str
    incarnation: int


class RunState:
    """The state of one run. `info` exists from the first opening on.

    Attributes:
        incarnation: How often the run has been opened.
        closed: Whether its trainer is done.
        completed: How many steps each rank has completed, by rank.
        num_set_aside: Selections that a rewind or a restart took back.
    """

    info: RunInfo

    def __init__(self, journal: JournalReader) -> None:
        """Replay a journal.

        Raises:
            JournalError: the journal is damaged, or its chain of selections is broken.
        """
        self.journal = journal
        self.incarnation = 0
        self.closed = False
        self.num_set_aside = 0
        self.completed: dict[int, int] = {}
        self._open_id = ""
        self._past_open_ids: set[str] = set()
        # By incarnation, the newest version of what came before that it went on from.
        self._branch_ends: dict[int, int] = {}
        self._cursor = 0
        self._next_step = 0
        self._selections: dict[int, int] = {}
        # Steps that were trained without a selection: what stands instead needs no weights, and is never taken back.
        self._trained: set[int] = set()
        self._chains: dict[int, bytes] = {}
        self._chain_root = b""
        self._weights: dict[int, StoredWeights] = {}
        for offset, record in journal.records():
            self._apply(record, offset)

    @property
    def next_step(self) -> int:
        """The first step at or past the cursor that has no selection."""
        return self._next_step

    @property
    def num_fallback(self) -> int:
        """How many steps were, or are to be, trained without a selection while the server was away."""
        return len(self._trained)

    def has_selection(self, step: int) -> bool:
        """Whether a step has been selected."""
        return step in self._selections

    def selection(self, step: int) -> selector_pb2.SelectionMessage:
        """The journalled selection of a step.

        Raises:
            JournalError: the journal no longer holds what it held.
        """
        return self.selection_at(step, self.selection_offset(step))

    def selection_offset(self, step: int) -> int:
        """Where in the journal the selection of a step is, which never holds another one."""
        return self._selections[step]

    def selection_at(self, step: int, offset: int) -> selector_pb2.SelectionMessage:
        """The selection of a step that the journal holds at an offset, also where a rewind has set it aside since.

        Raises:
            JournalError: the journal no longer holds what it held.
        """
        record = self.journal.read(offset)
        message = record.trained.selection if record.HasField("trained") else record.selection
        if record.WhichOneof("kind") not in ("selection", "trained") or message.step != step:
            raise JournalError(f"journal {self.journal.folder} doesn't hold the selection of step {step} where it was")
        return message

    def history(self, step: int) -> bytes:
        """What the selection of `step` needs of the steps before it; empty where it needs nothing.

        Raises:
            JournalError: the journal no longer holds what it held.
        """
        if step == 0 or not self.info.selection.keeps_history:
            return b""
        return self.selection(step - 1).history

    def scores(self, step: int) -> bytes:
        """What the selection of a step was picked from; empty where the journal doesn't keep it.

        Raises:
            JournalError: it is damaged, or not what belongs to the selection.
        """
        message = self.selection(step)
        scores = self.journal.read_attachment(self._selections[step])
        found = hashlib.sha256(scores).digest() if scores else b""
        if found != message.scores_sha256:
            raise JournalError(
                f"journal {self.journal.folder}: the scores of step {step} have hash {found.hex() or 'none'}, the "
                f"selection was picked from those with {message.scores_sha256.hex() or 'none'}: they were changed"
            )
        return scores

    def stored_weights(self, version: int) -> StoredWeights | None:
        """What is known of a version that stands; None for the base model itself."""
        return self._weights.get(version)

    def weights(self, version: int) -> bytes | None:
        """The payload of a stored version; None for the base model itself."""
        stored = self._weights.get(version)
        return None if stored is None else self.journal.read_weights(version, stored.sha256)

    # ---- the journal's records, live and at replay

    def _apply(self, record: journal_pb2.JournalRecord, offset: int) -> None:
        match record.WhichOneof("kind"):
            case "opened":
                self._apply_opened(record.opened)
            case "selection":
                self._apply_selection(record.selection, offset)
            case "trained":
                self._apply_trained(record.trained.selection, offset)
            case "weights":
                self._weights[record.weights.version] = StoredWeights(record.weights.sha256, record.weights.incarnation)
            case "closed":
                self.closed = True
            case kind:
                raise JournalError(f"journal {self.journal.folder} holds a record of kind {kind}, which is not known")

    def _apply_selection(self, message: selector_pb2.SelectionMessage, offset: int) -> None:
        stored = self._weights.get(message.weights_version)
        fits = message.weights_sha256 == (stored.sha256 if stored else "") and message.step not in self._selections
        self._place(message, offset, fits=fits)

    def _apply_trained(self, message: selector_pb2.SelectionMessage, offset: int) -> None:
        self.num_set_aside += message.step in self._selections
        self._trained.add(message.step)
        self._place(message, offset, fits=not message.weights_sha256)

    def _place(self, message: selector_pb2.SelectionMessage, offset: int, *, fits: bool) -> None:
        """Let a selection stand, and chain those that stand after it to it."""
        if message.chain != self._link(message) or not fits:
            raise JournalError(
                f"journal {self.journal.folder}, byte {offset}: the chain of selections is broken at step "
                f"{message.step}: it has hash {message.chain.hex() or 'none'}, what is recorded up to there has "
                f"{self._link(message).hex()}: a record was changed, left out or repeated; restore the file from a "
                "copy, or start the run over under another name"
            )
        self._selections[message.step], self._chains[message.step] = offset, message.chain
        self._chain_again(message.step + 1)
        self._advance()

    def _chain_again(self, first: int) -> None:
        """Chain what stands from a step on, without a gap, to what now stands before it."""
        while first in self._selections:
            self._chains[first] = self._link(self.selection(first))
            first += 1

    def _link(self, message: selector_pb2.SelectionMessage) -> bytes:
        """The hash that chains a selection to the one before it."""
        before = self._chains[message.step - 1] if message.step - 1 in self._selections else self._chain_root
        return chain_link(before, message)

    def _apply_opened(self, opened: journal_pb2.Opened) -> None:
        self.info, self._chain_root = run_from_pb(opened.run), chain_root(opened.run)
        before = len(self._selections)
        if self._open_id:
            self._past_open_ids.add(self._open_id)
        self.incarnation, self._open_id, self._cursor = opened.incarnation, opened.open_id, opened.cursor
        self.closed = False
        self.completed = dict.fromkeys(range(self.info.world_size), opened.cursor)
        if opened.restarted:
            self._selections, self._weights, self._trained = {}, {}, set()
        kept, timing = opened.kept_version, self.info.timing
        self._branch_ends[opened.incarnation] = -1 if opened.restarted else kept
        standing = self._selections
        self._selections = {
            t: at for t, at in standing.items() if t in self._trained or timing.weights_version(t) <= kept
        }
        self._chains = {t: self._chains[t] for t in self._selections}
        if dropped := standing.keys() - self._selections.keys():
            for step in sorted(step for step in self._trained if step > min(dropped)):
                self._chains[step] = self._link(self.selection(step))
        self.num_set_aside += before - len(self._selections)
        self._weights = {v: stored for v, stored in self._weights.items() if v <= kept}
        self._next_step = opened.cursor
        self._advance()

    def _advance(self) -> None:
        while self._next_step in self._selections:
            self._next_step += 1


def is_base(info: RunInfo, version: int) -> bool:
    """Whether a version is the base model itself, which nobody needs to push."""
    return version == 0 and not info.adapter_json
