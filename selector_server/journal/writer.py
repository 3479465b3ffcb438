"""Writing one run's journal: an append-only file of records, and a folder of weights."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from selector_server.journal import frames
from selector_server.journal.reader import FILE, JournalReader
from shared.errors import JournalError
from shared.pb.v1 import journal_pb2 as pb

logger = logging.getLogger(__name__)


class Journal(JournalReader):
    """One run's journal file and weights folder, for the one server that writes them.

    Appends may come from several threads.

    Attributes:
        keep_scores: Whether a run is to attach to its selections what they were picked from.
        retain_weights: Of the versions that no step needs any more, how many of the newest a run is to keep.
    """

    def __init__(self, folder: Path, *, keep_scores: bool = True, retain_weights: int = 0) -> None:
        """Open or create the journal in `folder`.

        Raises:
            JournalError: the folder can't be written.
        """
        super().__init__(folder)
        self.keep_scores, self.retain_weights = keep_scores, retain_weights
        self._lock = threading.Lock()
        try:
            (folder / "weights").mkdir(parents=True, exist_ok=True)
            self._file = open(folder / FILE, "a+b")
            self._undo_to: int | None = None
            _fsync_folder(folder)
            _fsync_folder(folder.parent)
        except OSError as error:
            raise JournalError(f"journal {folder} can't be opened: {error}") from error

    def records(self) -> Iterator[tuple[int, pb.JournalRecord]]:
        """As of `JournalReader`; then cuts off a torn tail, which the next record would be lost behind."""
        yield from super().records()
        if self.tail_bytes:
            logger.warning("journal %s: cutting off a torn record of %d bytes", self._path, self.tail_bytes)
            self._truncate(os.path.getsize(self._path) - self.tail_bytes)
            self.tail_bytes = 0

    def append(self, record: pb.JournalRecord, attachment: bytes = b"") -> int:
        """Write one record and what belongs to it, durable on return, and give its offset.

        Raises:
            JournalError: the disk is full or failing, or it is too large; the file is as it was before.
        """
        record.unix_ns = time.time_ns()
        if max(record.ByteSize(), len(attachment)) > frames.MAX_BYTES:
            raise JournalError(
                f"journal {self._path}: a record of {record.ByteSize()} bytes with {len(attachment)} attached is "
                f"larger than {frames.MAX_BYTES}: lower selection.large_batch_size, or set server.keep_scores to false"
            )
        frame = frames.encode(record, attachment)
        with self._lock:
            try:
                return self._write(frame)
            except OSError as error:
                # A disk that refuses even this is asked again by the next append, before it writes.
                with contextlib.suppress(OSError):
                    self._undo()
                raise JournalError(
                    f"journal {self._path} can't be written: {error}: free space there and open the run again"
                ) from error

    def write_weights(self, version: int, sha256: str, payload: bytes) -> None:
        """Store one version of the weights, atomically and durably.

        Raises:
            JournalError: the disk is full or failing; no file is left half-written.
        """
        path = self.weights_path(version, sha256)
        part = path.with_suffix(".part")
        try:
            with open(part, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _fsync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise JournalError(f"weights {path} can't be written: {error}: free space there and push again") from error

    def keep_weights(self, versions: dict[int, str]) -> None:
        """Remove every weights file but those of `versions` (version → sha256)."""
        keep = {self.weights_path(v, sha256).name for v, sha256 in versions.items()}
        for path in (self.folder / "weights").iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _truncate(self, size: int) -> None:
        self._file.truncate(size)
        os.fsync(self._file.fileno())

    def _write(self, frame: bytes) -> int:
        self._undo()
        offset = self._undo_to = os.path.getsize(self._path)
        self._file.write(frame)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._undo_to = None
        return offset

    def _undo(self) -> None:
        """Forget what a failed write left in the buffer and in the file."""
        if self._undo_to is None:
            return
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = open(self._path, "a+b")
        self._truncate(self._undo_to)
        self._undo_to = None


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
