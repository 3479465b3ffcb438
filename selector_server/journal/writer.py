"""Writing one run's journal: an append-only file of records and a folder of weights, for the server's user alone.

A disk that is full is an error of its own, since it passes: whoever cleans the disk needn't restart anything.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from selector_server.journal import frames
from selector_server.journal.reader import FILE, JournalReader
from shared.errors import JournalError, StorageFullError
from shared.pb.v1 import journal_pb2 as pb

logger = logging.getLogger(__name__)

# No space, no quota, and a limit on the size of a file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
            StorageFullError: the disk is full.
            JournalError: the folder can't be written.
        """
        super().__init__(folder)
        self.keep_scores, self.retain_weights = keep_scores, retain_weights
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / "weights").mkdir(mode=0o700, exist_ok=True)
            self._file = open(folder / FILE, "ab", buffering=0, opener=_private)
            self._undo_to: int | None = None
            _fsync_folder(folder)
            _fsync_folder(folder.parent)
        except OSError as error:
            raise _refusal(f"journal {folder} can't be opened", folder, error) from error

    def records(self) -> Iterator[tuple[int, pb.JournalRecord]]:
        """As of `JournalReader`; then cuts off a torn tail, which the next record would be lost behind."""
        yield from super().records()
        if self.tail_bytes:
            logger.warning("journal %s: cutting off a torn record of %d bytes", self._path, self.tail_bytes)
            try:
                self._truncate(os.path.getsize(self._path) - self.tail_bytes)
            except OSError as error:
                raise _refusal(f"journal {self._path} can't be repaired", self.folder, error) from error
            self.tail_bytes = 0

    def append(self, record: pb.JournalRecord, attachment: bytes = b"") -> int:
        """Write one record and what belongs to it, durable on return, and give its offset.

        Raises:
            StorageFullError: the disk is full; the file is as it was before.
            JournalError: the disk is failing, somebody has put another file in the journal's place, or the record is
                too large; the file is as it was before.
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
                raise _refusal(f"journal {self._path} can't be written", self.folder, error) from error

    def require_room(self, num_bytes: int) -> None:
        """Refuse what the disk has no room for, before it is sent here.

        Raises:
            StorageFullError: fewer bytes are free.
        """
        if shutil.disk_usage(self.folder).free < num_bytes:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise _refusal(f"weights of {num_bytes} bytes can't be written to {self.folder}", self.folder, full)

    def write_weights(self, version: int, sha256: str, payload: bytes | bytearray) -> None:
        """Store one version of the weights, atomically and durably.

        Raises:
            StorageFullError: the disk is full; no file is left half-written.
            JournalError: the disk is failing; no file is left half-written.
        """
        path = self.weights_path(version, sha256)
        part = path.with_suffix(".part")
        try:
            with open(part, "wb", buffering=0, opener=_private) as file:
                _write_all(file.fileno(), payload)
                os.fsync(file.fileno())
            os.replace(part, path)
            _fsync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise _refusal(f"weights {path} can't be written", self.folder, error) from error

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
        os.ftruncate(self._file.fileno(), size)
        os.fsync(self._file.fileno())

    def _write(self, frame: bytes) -> int:
        self._undo()
        mine = os.fstat(self._file.fileno())
        if not os.path.samestat(mine, os.stat(self._path)):
            raise OSError(errno.ESTALE, "another file stands in its place since the server opened it")
        offset = self._undo_to = mine.st_size
        _write_all(self._file.fileno(), frame)
        os.fsync(self._file.fileno())
        self._undo_to = None
        return offset

    def _undo(self) -> None:
        """Take back what a failed write left in the file."""
        if self._undo_to is not None:
            self._truncate(self._undo_to)
            self._undo_to = None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write to the end; a disk takes what still fits before it says that it is full."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(what: str, folder: Path, error: OSError) -> JournalError:
    """What to tell of a write that failed."""
    if error.errno not in _FULL:
        return JournalError(f"{what}: {error}: mend the disk, then open the run again")
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free / 2**20
    return StorageFullError(
        f"{what}: {error.strerror}, {free:.2f} MiB free: make room there; nothing is lost, and the run then goes on by "
        "itself"
    )
