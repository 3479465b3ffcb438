"""One run as its journal tells it: cursor, incarnation, selections, weights, ranks.

Every change is a journal record that is durable before it is applied, and a restarted server applies the same records
in the same order, so what the server remembers is what is on disk. Nothing here waits, and nothing here knows gRPC or a
model: `host.py` calls it from one thread at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

from selector_server.agreement import require_same
from selector_server.journal import Journal
from selector_server.run_state import RunState, is_base
from shared.convert import run_to_pb
from shared.errors import (
    ConfigError,
    CursorError,
    JournalError,
    NotOwnerError,
    RunExistsError,
    RunNotFoundError,
    StaleIncarnationError,
    StorageFullError,
    SubbatchError,
    WeightsError,
    WireError,
)
from shared.pb.v1 import journal_pb2, selector_pb2
from shared.records import RunInfo

_NO_END = 2**62


class Waiting(NamedTuple):
    """What a run waits for: one of the states that metrics know, and in words."""

    cause: str
    words: str


class Run(RunState):
    """The state of one run, and what may be done to it.

    Attributes:
        failure: Why nothing is selected until the run is opened again.
        held: The full disk that keeps the next selection from being made durable, for now.
    """

    journal: Journal

    def __init__(self, journal: Journal) -> None:
        """Replay a journal.

        Raises:
            JournalError: the journal is damaged, or its chain of selections is broken.
        """
        super().__init__(journal)
        self.failure: SubbatchError | None = None
        self.held: StorageFullError | None = None
        self._delta_base: int | None = None

    # ---- opening

    def open(
        self,
        info: RunInfo,
        *,
        cursor: int,
        restart: bool,
        open_id: str,
        checkpoint_incarnation: int = 0,
        trained: Sequence[selector_pb2.SelectionMessage] = (),
    ) -> list[int]:
        """Begin a new incarnation at `cursor`, rewinding where the run is past it.

        Selections that used weights newer than the cursor are set aside, and so are those weights. Where an incarnation
        after the checkpoint's has gone back to an earlier step, whatever it made past that step is set aside too: it
        belongs to other weights than the checkpoint's. Steps that were trained without a selection stay as they were.

        Args:
            info: The run.
            cursor: How many steps the trainer has attempted.
            restart: Whether to start over under a name that is taken.
            open_id: Of this opening, however often it is repeated.
            checkpoint_incarnation: That saved the trainer's checkpoint; 0 where there is none.
            trained: What the checkpoint's trainer trained, or is to train, without a selection: see `add_trained`.

        Returns:
            The versions that steps at or past the cursor need and the run lacks; only the cursor's own can be among
            them, which the trainer then pushes.

        Raises:
            RunExistsError: a new trainer under a name that is taken.
            ConfigError, FingerprintError: the run was first opened with other settings.
            CursorError: the cursor is past the end, or older weights than the trainer still has are missing.
            StaleIncarnationError: a late repetition of an opening that a newer one has replaced.
        """
        exists = self.incarnation > 0
        if exists and self.info.owner not in ("", info.owner):  # opened by another a moment ago
            raise NotOwnerError(f"run {info.name!r} belongs to another token: choose another run.name")
        if open_id and open_id == self._open_id and cursor == self._cursor:
            self.add_trained(trained)
            return self._missing(cursor, kept=cursor)
        if open_id in self._past_open_ids:
            raise StaleIncarnationError(
                f"run {info.name!r} is at incarnation {self.incarnation}: another job has opened it since this opening "
                "was first asked for; stop one of the two"
            )
        if not 0 <= cursor <= info.timing.num_steps:
            raise CursorError(f"run {info.name!r} has {info.timing.num_steps} steps, the trainer is at step {cursor}")
        restart = restart and cursor == 0
        if exists and cursor == 0 and not restart:
            raise RunExistsError(
                f"run {info.name!r} exists, with the selections of {self._next_step} steps: resume its trainer from a "
                "checkpoint, choose another run.name, or set run.restart to start it over"
            )
        if exists and not restart:
            require_same(self.info, info)
        kept = min(cursor, self._branch_end(checkpoint_incarnation))
        given = {message.step for message in trained}
        _require_no_history(info, given)
        if not exists or restart:
            behind = (v for v in info.timing.versions_needed(cursor) if v < cursor and not is_base(info, v))
            lost = [v for v in behind if any(t >= cursor and t not in given for t in info.timing.steps_using(v))]
        else:
            lost = [v for v in self._missing(cursor, kept=kept, given=given) if v < cursor]
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
        self.failure = self.held = self._delta_base = None
        self.add_trained(trained)
        self.drop_unneeded_weights()
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
            self._delta_base = None
            self.drop_unneeded_weights()

    # ---- selections

    def selectable_step(self, *, gone: Collection[int] = ()) -> int | None:
        """The step to select now, or None where the run is closed, done, failed, far enough ahead or lacks weights."""
        return None if self.waits(gone=gone) else self._next_step

    def waits_for(self, *, gone: Collection[int] = ()) -> str:
        """What keeps the next selection from being computed, in words; empty where nothing does.

        Args:
            gone: Ranks that hold nobody back, never all of them.
        """
        waits = self.waits(gone=gone)
        return waits.words if waits else ""

    def waits(self, *, gone: Collection[int] = ()) -> Waiting | None:
        """What keeps the next selection from being computed; None where nothing does.

        Args:
            gone: Ranks that hold nobody back, never all of them.
        """
        step = self._next_step
        if not self.incarnation:
            return Waiting("done", "being opened")
        if self.closed:
            return Waiting("done", "nothing: closed")
        if self.failure:
            return Waiting("failed", f"being opened again after an error: {self.failure}")
        if self.held:
            return Waiting("disk", f"room on the server's disk: {self.held}")
        if step >= self.info.timing.num_steps:
            return Waiting("done", "nothing: every step is selected")
        slowest = min((rank for rank in self.completed if rank not in gone), key=self.completed.__getitem__)
        if step > self.completed[slowest] + self.info.timing.lookahead:
            return Waiting("rank", f"rank {slowest}, which has completed {self.completed[slowest]} steps")
        version = self.info.timing.weights_version(step)
        if not self._has(version):
            return Waiting("weights", f"weights version {version} from the trainer, for step {step}")
        return None

    def add_selection(self, message: selector_pb2.SelectionMessage, scores: bytes = b"") -> None:
        """Make the selection of the next step durable, chained to that before it; it never changes afterwards.

        Weights that it was the last to need stay until `drop_unneeded_weights`: nobody shall wait for their removal.

        Args:
            message: The selection.
            scores: What it was picked from, where that is to be kept.
        """
        if message.step != self._next_step:
            raise WireError(f"run {self.info.name!r} expects step {self._next_step}, got {message.step}")
        message.scores_sha256 = hashlib.sha256(scores).digest() if scores else b""
        stored = self.stored_weights(message.weights_version)
        message.weights_sha256 = stored.sha256 if stored else ""
        message.chain = self._link(message)
        self._commit(journal_pb2.JournalRecord(selection=message), scores)

    def add_trained(self, messages: Sequence[selector_pb2.SelectionMessage]) -> None:
        """Make durable that steps were trained without a selection; known ones change nothing.

        What was selected for such a step is set aside; nobody has trained on it.

        Args:
            messages: Fallback selections of these steps, ascending, as the server's own draw gives them.

        Raises:
            ConfigError: a run whose selections depend on those before them.
            CursorError: steps past the run's end, or past one that the trainer must have had a selection for and that
                has none here.
        """
        _require_no_history(self.info, {message.step for message in messages})
        for message in (message for message in messages if message.step not in self._trained):
            step = message.step
            if step > self._next_step or step >= self.info.timing.num_steps:
                raise CursorError(
                    f"run {self.info.name!r} expects step {self._next_step} of {self.info.timing.num_steps}, the "
                    f"trainer trained step {step} while the server was away: the journal has lost its end; restore "
                    f"{self.journal.folder}, or resume the trainer from a checkpoint before step {self._next_step}"
                )
            message.chain = self._link(message)
            trained = journal_pb2.Trained(incarnation=self.incarnation, selection=message)
            self._commit(journal_pb2.JournalRecord(trained=trained))
        self.drop_unneeded_weights()

    # ---- weights

    @property
    def weights_versions(self) -> list[int]:
        """The versions whose weights are still stored."""
        return sorted(self._needed_weights())

    def is_known(self, version: int, sha256: str) -> bool:
        """Whether these very weights were accepted already, so that a re-send is harmless; or nobody will need them.

        Nobody does where the steps that would have used them were trained without a selection.

        Raises:
            WeightsError: the version is refused: not one this run uses, out of order, or accepted with other content.
        """
        stored = self._weights.get(version)
        if stored and stored.sha256 == sha256 and not self._is_lost(version):
            return True
        name, timing = self.info.name, self.info.timing
        if stored and stored.sha256 != sha256 and stored.incarnation == self.incarnation:
            raise WeightsError(f"run {name!r} has weights version {version} already, with other content: push the next")
        if self._trained.intersection(timing.steps_using(version)) and self._is_passed(version):
            return True
        if not timing.steps_using(version) or self._next_step >= timing.num_steps:
            raise WeightsError(
                f"run {name!r} uses no weights version {version}: versions are the multiples of push_every "
                f"{timing.push_every} that a step below {timing.num_steps} without a selection uses"
            )
        expected = self._expected_version()
        if version != expected:
            raise WeightsError(f"run {name!r} expects weights version {expected}, got {version}: push them in order")
        return False

    def add_weights(
        self, version: int, sha256: str, payload: bytes | bytearray, *, next_is_delta: bool = False
    ) -> None:
        """Make checked weights durable.

        Args:
            version: Of the weights.
            sha256: Of the payload.
            payload: Their safetensors.
            next_is_delta: Whether they stay, needed or not, until the next come, which will be rebuilt from them.
        """
        self.journal.write_weights(version, sha256, payload)
        stored = journal_pb2.WeightsStored(
            version=version, incarnation=self.incarnation, sha256=sha256, num_bytes=len(payload)
        )
        self._commit(journal_pb2.JournalRecord(weights=stored))
        self._delta_base = version if next_is_delta else None

    def delta_base(self, version: int, sha256: str) -> bytes | None:
        """The payload of a version that a push is a delta to; None where these weights aren't stored, or not whole.

        A restarted server may have removed them.
        """
        stored = self._weights.get(version)
        if stored is None or stored.sha256 != sha256:
            return None
        try:
            return self.journal.read_weights(version, sha256)
        except JournalError:
            return None

    def drop_unneeded_weights(self) -> None:
        """Remove the files of versions that no step needs any more, but the newest that the journal is to retain."""
        needed = self._needed_weights()
        if self._delta_base is not None:
            needed[self._delta_base] = self._weights[self._delta_base].sha256
        past = sorted(version for version in self._weights if version not in needed)
        retained = past[max(0, len(past) - self.journal.retain_weights) :]
        self.journal.keep_weights(needed | {version: self._weights[version].sha256 for version in retained})

    # ---- ranks

    def require_rank(self, rank: int) -> None:
        """Refuse a rank that the run doesn't have.

        Raises:
            WireError: no such rank.
        """
        if rank not in self.completed:
            raise WireError(f"run {self.info.name!r} has ranks 0 to {len(self.completed) - 1}, got rank {rank}")

    def report_progress(self, rank: int, completed: int) -> None:
        """Note how many steps a rank has completed; an older report that arrives late changes nothing.

        Raises:
            WireError: no such rank, or more steps than the run has.
        """
        self.require_rank(rank)
        if completed > self.info.timing.num_steps:
            raise WireError(f"run {self.info.name!r} has {self.info.timing.num_steps} steps, got {completed} completed")
        self.completed[rank] = max(self.completed[rank], completed)

    def _commit(self, record: journal_pb2.JournalRecord, attachment: bytes = b"") -> None:
        self._apply(record, self.journal.append(record, attachment))

    # ---- which weights matter

    def _has(self, version: int) -> bool:
        return not self.info.timing.scores or is_base(self.info, version) or version in self._weights

    def _missing(self, cursor: int, *, kept: int, given: Collection[int] = ()) -> list[int]:
        """Versions that a step at or past `cursor` still needs, `given` ones apart, and that aren't here, or kept."""
        return [
            version
            for version in self.info.timing.versions_needed(cursor)
            if (version > kept or not self._has_payload(version))
            and any(
                t >= cursor
                and t not in given
                and t not in self._trained
                and (version > kept or t not in self._selections)
                for t in self.info.timing.steps_using(version)
            )
        ]

    def _branch_end(self, checkpoint_incarnation: int) -> int:
        """The newest version that a checkpoint's incarnation and every later one have in common."""
        later = [end for number, end in self._branch_ends.items() if number > checkpoint_incarnation > 0]
        return min(later, default=_NO_END)

    def _has_payload(self, version: int) -> bool:
        stored = self._weights.get(version)
        return is_base(self.info, version) or (stored is not None and self.journal.has_weights(version, stored.sha256))

    def _keeps_selection(self, step: int, *, kept: int) -> bool:
        """Whether the selection of a step is here and used no weights newer than `kept`."""
        return step in self._selections and self.info.timing.weights_version(step) <= kept

    def _is_lost(self, version: int) -> bool:
        """Whether weights that were accepted, and that a step may still use, are gone from the disk."""
        return version in self._needed_weights() and not self._has_payload(version)

    def _expected_version(self) -> int:
        version = self.info.timing.weights_version(self._next_step)
        while (
            is_base(self.info, version)
            or (version in self._weights and not self._is_lost(version))
            or self._is_passed(version)
        ):
            version += self.info.timing.push_every
        return version

    def _is_passed(self, version: int) -> bool:
        """Whether the run uses a version and every step that does is selected, or behind its trainer."""
        steps = self.info.timing.steps_using(version)
        return bool(steps) and all(step < self._next_step or step in self._selections for step in steps)

    def _needed_weights(self) -> dict[int, str]:
        """Stored versions that a step without a selection may still use; all of these a rewind may need too."""
        oldest = self.info.timing.weights_version(self._next_step)
        if self._next_step >= self.info.timing.num_steps:
            return {}
        stored = range(oldest, max(self._weights, default=-1) + 1, self.info.timing.push_every)
        return {v: self._weights[v].sha256 for v in stored if v in self._weights}


def _require_no_history(info: RunInfo, trained: Collection[int]) -> None:
    if trained and info.selection.keeps_history:
        raise ConfigError(
            f"run {info.name!r} trained step {min(trained)} without a selection, but its selections depend on those "
            "before them: set client.on_unavailable to wait"
        )
