"""One run as its journal tells it: cursor, incarnation, selections, weights, ranks.

Every change is a journal record that is durable before it is applied, and a restarted server applies the same records
in the same order, so what the server remembers is what is on disk. Nothing here waits, and nothing here knows gRPC or a
model: `host.py` calls it from one thread at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from selector_server.agreement import require_same
from selector_server.journal import Journal
from shared.convert import run_from_pb, run_to_pb
from shared.errors import (
    CursorError,
    JournalError,
    RunExistsError,
    RunNotFoundError,
    StaleIncarnationError,
    SubbatchError,
    WeightsError,
    WireError,
)
from shared.pb.v1 import journal_pb2, selector_pb2
from shared.records import RunInfo

_NO_END = 2**62


@dataclass(frozen=True)
class StoredWeights:
    """A version that was accepted: its content hash, and the incarnation that pushed it."""

    sha256: str
    incarnation: int


class Run:
    """The state of one run. `info` and `incarnation` exist from the first opening on."""

    info: RunInfo

    def __init__(self, journal: Journal) -> None:
        """Replay a journal.

        Raises:
            JournalError: the journal is damaged.
        """
        self.journal = journal
        self.incarnation = 0
        self.closed = False
        self.failure: SubbatchError | None = None
        self.completed: dict[int, int] = {}
        self._open_id = ""
        self._past_open_ids: set[str] = set()
        # By incarnation, the newest version of what came before that it went on from.
        self._branch_ends: dict[int, int] = {}
        self._cursor = 0
        self._next_step = 0
        self._selections: dict[int, int] = {}
        self._weights: dict[int, StoredWeights] = {}
        for offset, record in journal.records():
            self._apply(record, offset)

    # ---- opening

    def open(
        self, info: RunInfo, *, cursor: int, restart: bool, open_id: str, checkpoint_incarnation: int = 0
    ) -> list[int]:
        """Begin a new incarnation at `cursor`, rewinding where the run is past it.

        Selections that used weights newer than the cursor are set aside, and so are those weights. Where an incarnation
        after the checkpoint's has gone back to an earlier step, whatever it made past that step is set aside too: it
        belongs to other weights than the checkpoint's.

        Returns:
            The versions that steps at or past the cursor need and the run lacks; only the cursor's own can be among
            them, which the trainer then pushes.

        Raises:
            RunExistsError: a new trainer under a name that is taken.
            ConfigError, FingerprintError: the run was first opened with other settings.
            CursorError: the cursor is past the end, or older weights than the trainer still has are missing.
            StaleIncarnationError: a late repetition of an opening that a newer one has replaced.
        """
        if open_id and open_id == self._open_id and cursor == self._cursor:
            return self._missing(cursor, kept=cursor)
        if open_id in self._past_open_ids:
            raise StaleIncarnationError(
                f"run {info.name!r} is at incarnation {self.incarnation}: another job has opened it since this opening "
                "was first asked for; stop one of the two"
            )
        if not 0 <= cursor <= info.timing.num_steps:
            raise CursorError(f"run {info.name!r} has {info.timing.num_steps} steps, the trainer is at step {cursor}")
        exists = self.incarnation > 0
        restart = restart and cursor == 0
        if exists and cursor == 0 and not restart:
            raise RunExistsError(
                f"run {info.name!r} exists, with the selections of {self._next_step} steps: resume its trainer from a "
                "checkpoint, choose another run.name, or set run.restart to start it over"
            )
        if exists and not restart:
            require_same(self.info, info)
        kept = min(cursor, self._branch_end(checkpoint_incarnation))
        if not exists or restart:
            lost = [v for v in info.timing.versions_needed(cursor) if v < cursor and not _is_base(info, v)]
        else:
            lost = [v for v in self._missing(cursor, kept=kept) if v < cursor]
        if info.selection.keeps_history and cursor > 0 and not self._keeps_selection(cursor - 1, kept=kept):
            raise CursorError(
                f"run {info.name!r} can't continue at step {cursor}: its selections depend on those before, and the "
                f"server doesn't have that of step {cursor - 1}: restore the server's journal folder "
                f"{self.journal.folder}, or start over at step 0 under another run.name"
            )
        if lost:
            branch = f" (a later job went back to step {kept} and trained another branch)" if kept < cursor else ""
            raise CursorError(
                f"run {info.name!r} can't continue at step {cursor}: the server lacks weights version "
                f"{', '.join(map(str, lost))}{branch}, which the trainer no longer has: restore the server's journal "
                f"folder {self.journal.folder}, or start over at step 0 under another run.name"
            )
        opened = journal_pb2.Opened(
            run=run_to_pb(info),
            incarnation=self.incarnation + 1,
            cursor=cursor,
            restarted=exists and restart,
            open_id=open_id,
            kept_version=kept,
        )
        self._commit(journal_pb2.JournalRecord(opened=opened))
        self.failure = None
        self._drop_unneeded_weights()
        return self._missing(cursor, kept=cursor)

    def require_incarnation(self, incarnation: int) -> None:
        """Refuse the calls of a job that has been replaced.

        Raises:
            RunNotFoundError: nobody has opened the run yet.
            StaleIncarnationError: `incarnation` isn't the current one.
        """
        if not self.incarnation:
            raise RunNotFoundError(f"run {self.journal.folder.name!r} was never opened here: open it first")
        if incarnation != self.incarnation:
            raise StaleIncarnationError(
                f"run {self.info.name!r} is at incarnation {self.incarnation}, this call belongs to {incarnation}: "
                "another job has opened the run since; stop one of the two"
            )

    def close(self) -> None:
        """Note that the trainer is done; a later opening at a checkpoint continues the run."""
        if not self.closed:
            self._commit(journal_pb2.JournalRecord(closed=journal_pb2.Closed(incarnation=self.incarnation)))
            self._drop_unneeded_weights()

    # ---- selections

    @property
    def next_step(self) -> int:
        """The first step at or past the cursor that has no selection."""
        return self._next_step

    def selectable_step(self) -> int | None:
        """The step to select now, or None where the run is closed, done, failed, far enough ahead or lacks weights."""
        return None if self.waits_for() else self._next_step

    def waits_for(self) -> str:
        """What keeps the next selection from being computed, in words; empty where nothing does."""
        step = self._next_step
        if not self.incarnation:
            return "being opened"
        if self.closed:
            return "nothing: closed"
        if self.failure:
            return f"being opened again after an error: {self.failure}"
        if step >= self.info.timing.num_steps:
            return "nothing: every step is selected"
        slowest = min(self.completed, key=lambda rank: self.completed[rank])
        if step > self.completed[slowest] + self.info.timing.lookahead:
            return f"rank {slowest}, which has completed {self.completed[slowest]} steps"
        version = self.info.timing.weights_version(step)
        if not self._has(version):
            return f"weights version {version} from the trainer, for step {step}"
        return ""

    def has_selection(self, step: int) -> bool:
        """Whether a step has been selected."""
        return step in self._selections

    def selection(self, step: int) -> selector_pb2.SelectionMessage:
        """The journalled selection of a step.

        Raises:
            JournalError: the journal no longer holds what it held.
        """
        record = self.journal.read(self._selections[step])
        if record.WhichOneof("kind") != "selection" or record.selection.step != step:
            raise JournalError(f"journal {self.journal.folder} doesn't hold the selection of step {step} where it was")
        return record.selection

    def history(self, step: int) -> bytes:
        """What the selection of `step` needs of the steps before it; empty where it needs nothing.

        Raises:
            JournalError: the journal no longer holds what it held.
        """
        if step == 0 or not self.info.selection.keeps_history:
            return b""
        return self.selection(step - 1).history

    def add_selection(self, message: selector_pb2.SelectionMessage) -> None:
        """Make the selection of the next step durable; it never changes afterwards."""
        if message.step != self._next_step:
            raise WireError(f"run {self.info.name!r} expects step {self._next_step}, got {message.step}")
        self._commit(journal_pb2.JournalRecord(selection=message))
        self._drop_unneeded_weights()

    # ---- weights

    @property
    def weights_versions(self) -> list[int]:
        """The versions whose weights are still stored."""
        return sorted(self._needed_weights())

    def weights(self, version: int) -> bytes | None:
        """The payload of a stored version; None for the base model itself."""
        stored = self._weights.get(version)
        return None if stored is None else self.journal.read_weights(version, stored.sha256)

    def is_known(self, version: int, sha256: str) -> bool:
        """Whether these very weights were accepted already, so that a re-send is harmless.

        Raises:
            WeightsError: the version is refused: not one this run uses, out of order, or accepted with other content.
        """
        stored = self._weights.get(version)
        if stored and stored.sha256 == sha256 and not self._is_lost(version):
            return True
        name, timing = self.info.name, self.info.timing
        if stored and stored.sha256 != sha256 and stored.incarnation == self.incarnation:
            raise WeightsError(f"run {name!r} has weights version {version} already, with other content: push the next")
        if not timing.steps_using(version) or self._next_step >= timing.num_steps:
            raise WeightsError(
                f"run {name!r} uses no weights version {version}: versions are the multiples of push_every "
                f"{timing.push_every} that a step below {timing.num_steps} without a selection uses"
            )
        expected = self._expected_version()
        if version != expected:
            raise WeightsError(f"run {name!r} expects weights version {expected}, got {version}: push them in order")
        return False

    def add_weights(self, version: int, sha256: str, payload: bytes) -> None:
        """Make checked weights durable."""
        self.journal.write_weights(version, sha256, payload)
        stored = journal_pb2.WeightsStored(
            version=version, incarnation=self.incarnation, sha256=sha256, num_bytes=len(payload)
        )
        self._commit(journal_pb2.JournalRecord(weights=stored))

    # ---- ranks

    def report_progress(self, rank: int, completed: int) -> None:
        """Note how many steps a rank has completed; an older report that arrives late changes nothing.

        Raises:
            WireError: no such rank, or more steps than the run has.
        """
        if rank not in self.completed:
            raise WireError(f"run {self.info.name!r} has ranks 0 to {len(self.completed) - 1}, got rank {rank}")
        if completed > self.info.timing.num_steps:
            raise WireError(f"run {self.info.name!r} has {self.info.timing.num_steps} steps, got {completed} completed")
        self.completed[rank] = max(self.completed[rank], completed)

    # ---- the journal's records, live and at replay

    def _commit(self, record: journal_pb2.JournalRecord) -> None:
        self._apply(record, self.journal.append(record))

    def _apply(self, record: journal_pb2.JournalRecord, offset: int) -> None:
        match record.WhichOneof("kind"):
            case "opened":
                self._apply_opened(record.opened)
            case "selection":
                self._selections[record.selection.step] = offset
                self._advance()
            case "weights":
                self._weights[record.weights.version] = StoredWeights(record.weights.sha256, record.weights.incarnation)
            case "closed":
                self.closed = True
            case kind:
                raise JournalError(f"journal {self.journal.folder} holds a record of kind {kind}, which is not known")

    def _apply_opened(self, opened: journal_pb2.Opened) -> None:
        self.info = run_from_pb(opened.run)
        if self._open_id:
            self._past_open_ids.add(self._open_id)
        self.incarnation, self._open_id, self._cursor = opened.incarnation, opened.open_id, opened.cursor
        self.closed = False
        self.completed = dict.fromkeys(range(self.info.world_size), opened.cursor)
        if opened.restarted:
            self._selections, self._weights = {}, {}
        kept, timing = opened.kept_version, self.info.timing
        self._branch_ends[opened.incarnation] = -1 if opened.restarted else kept
        self._selections = {t: at for t, at in self._selections.items() if timing.weights_version(t) <= kept}
        self._weights = {v: stored for v, stored in self._weights.items() if v <= kept}
        self._next_step = opened.cursor
        self._advance()

    def _advance(self) -> None:
        while self._next_step in self._selections:
            self._next_step += 1

    # ---- which weights matter

    def _has(self, version: int) -> bool:
        return not self.info.timing.scores or _is_base(self.info, version) or version in self._weights

    def _missing(self, cursor: int, *, kept: int) -> list[int]:
        """Versions that a step at or past `cursor` still needs and that aren't here, or aren't kept."""
        return [
            version
            for version in self.info.timing.versions_needed(cursor)
            if (version > kept or not self._has_payload(version))
            and any(
                t >= cursor and (version > kept or t not in self._selections)
                for t in self.info.timing.steps_using(version)
            )
        ]

    def _branch_end(self, checkpoint_incarnation: int) -> int:
        """The newest version that a checkpoint's incarnation and every later one have in common."""
        later = [end for number, end in self._branch_ends.items() if number > checkpoint_incarnation > 0]
        return min(later, default=_NO_END)

    def _has_payload(self, version: int) -> bool:
        stored = self._weights.get(version)
        return _is_base(self.info, version) or (stored is not None and self.journal.has_weights(version, stored.sha256))

    def _keeps_selection(self, step: int, *, kept: int) -> bool:
        """Whether the selection of a step is here and used no weights newer than `kept`."""
        return step in self._selections and self.info.timing.weights_version(step) <= kept

    def _is_lost(self, version: int) -> bool:
        """Whether weights that were accepted, and that a step may still use, are gone from the disk."""
        return version in self._needed_weights() and not self._has_payload(version)

    def _expected_version(self) -> int:
        version = self.info.timing.weights_version(self._next_step)
        while _is_base(self.info, version) or (version in self._weights and not self._is_lost(version)):
            version += self.info.timing.push_every
        return version

    def _needed_weights(self) -> dict[int, str]:
        """Stored versions that a step without a selection may still use; all of these a rewind may need too."""
        oldest = self.info.timing.weights_version(self._next_step)
        if self._next_step >= self.info.timing.num_steps:
            return {}
        stored = range(oldest, max(self._weights, default=-1) + 1, self.info.timing.push_every)
        return {v: self._weights[v].sha256 for v in stored if v in self._weights}

    def _drop_unneeded_weights(self) -> None:
        self.journal.keep_weights(self._needed_weights())


def _is_base(info: RunInfo, version: int) -> bool:
    """Whether a version is the base model itself, which nobody needs to push."""
    return version == 0 and not info.adapter_json
