"""What a folder of journals holds and whether it is whole; read only, beside a running server or without one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from rich.table import Table

from selector_server.journal.reader import FILE, JournalReader
from selector_server.run_state import RunState
from shared.errors import JournalError, RunNotFoundError, SubbatchError
from shared.wire import decode_selection

_COLUMNS = (
    "run", "opened", "selected", "fallback", "set aside", "with scores", "weights", "MiB", "last record", "state"
)  # fmt: skip


@dataclass
class Survey:
    """One run's journal.

    Attributes:
        run: Its name, which is its folder's.
        num_bytes: Of the journal file and the weights.
        state: The run; None where the journal can't be read.
        num_records: Records in the file.
        last_unix_ns: When the last of them was written.
        num_scores: Selections with what they were picked from.
        num_weights: Versions of weights on disk.
        notes: What is no fault, such as a record that is just being written.
        faults: What is wrong.
    """

    run: str
    num_bytes: int
    state: RunState | None = None
    num_records: int = 0
    last_unix_ns: int = 0
    num_scores: int = 0
    num_weights: int = 0
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def open_run(folder: Path, name: str) -> RunState:
    """A run as its journal tells it; frames and the chain of selections are verified on the way.

    Raises:
        RunNotFoundError: no such run in the folder.
        JournalError: the journal is damaged, its chain is broken, or nobody has opened the run.
    """
    if name not in (known := run_names(folder)):
        raise RunNotFoundError(f"journal folder {folder} holds no run {name!r} (runs: {', '.join(known) or 'none'})")
    state = RunState(JournalReader(folder / name))
    if not state.incarnation:
        raise JournalError(f"run {name!r} was never opened: its journal holds no record")
    return state


def run_names(folder: Path) -> list[str]:
    """The runs in a journal folder.

    Raises:
        JournalError: no such folder.
    """
    if not folder.is_dir():
        raise JournalError(f"there is no journal folder {folder}: set server.journal to the server's")
    return sorted(path.parent.name for path in folder.glob(f"*/{FILE}"))


def survey(folder: Path, name: str, *, thorough: bool) -> Survey:
    """Read one run's journal.

    Args:
        folder: Of all journals.
        name: The run.
        thorough: Whether to read and hash all scores and weights, too.
    """
    path = folder / name
    files = [file for file in (path / "weights").glob("*.safetensors")]
    found = Survey(name, (path / FILE).stat().st_size + sum(map(_size, files)), num_weights=len(files))
    try:
        found.state = RunState(reader := JournalReader(path))
        if reader.tail_bytes:
            found.notes.append(
                f"{reader.tail_bytes} bytes at the end are no whole record: one that is being written, or that a crash "
                "left, which the server cuts off when it starts"
            )
        for offset, record in reader.records():
            found.num_records, found.last_unix_ns = found.num_records + 1, record.unix_ns
            if record.HasField("selection"):
                found.num_scores += bool(record.selection.scores_sha256)
                if thorough:
                    found.faults += _selection_faults(reader, offset)
        if thorough:
            found.faults += _weights_faults(reader, files)
    except SubbatchError as error:
        found.faults.append(str(error))
    return found


def _size(path: Path) -> int:
    """Bytes of a file; none where a running server has just removed it."""
    return path.stat().st_size if path.exists() else 0


def _selection_faults(reader: JournalReader, offset: int) -> Iterator[str]:
    message = reader.read(offset).selection
    try:
        decode_selection(message.arrow)
        scores = reader.read_attachment(offset)
    except SubbatchError as error:
        yield f"step {message.step}: {error}"
        return
    if (hashlib.sha256(scores).digest() if scores else b"") != message.scores_sha256:
        yield f"step {message.step}: the scores beside the selection aren't those that it was picked from"


def _weights_faults(reader: JournalReader, files: Sequence[Path]) -> Iterator[str]:
    """Weights files that no record tells of, or whose content isn't what was recorded."""
    stored = {
        reader.weights_path(record.weights.version, record.weights.sha256).name: record.weights
        for _, record in reader.records()
        if record.HasField("weights")
    }
    for file in files:
        if not file.exists():
            continue
        if file.name not in stored:
            yield f"weights {file} are told of by no record"
            continue
        try:
            reader.read_weights(stored[file.name].version, stored[file.name].sha256)
        except JournalError as error:
            if file.exists():
                yield str(error)


def survey_table(folder: Path, surveys: Sequence[Survey], *, thorough: bool) -> Table:
    """One row per run."""
    table = Table(title=f"journals in {folder}" + (", verified" if thorough else ""))
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for found in surveys:
        state = found.state
        opened = state is not None and state.incarnation > 0
        last = datetime.fromtimestamp(found.last_unix_ns / 1e9, timezone.utc) if found.last_unix_ns else None
        table.add_row(
            found.run,
            f"{state.incarnation} ×" if state else "?",
            f"{state.next_step}/{state.info.timing.num_steps}" if state and opened else "?",
            str(state.num_fallback) if state else "?",
            str(state.num_set_aside) if state else "?",
            str(found.num_scores),
            str(found.num_weights),
            f"{found.num_bytes / 2**20:.1f}",
            f"{last:%Y-%m-%d %H:%M:%S} UTC" if last else "–",
            "\n".join(found.faults + found.notes) or ("closed" if state and state.closed else "whole"),
        )
    return table
