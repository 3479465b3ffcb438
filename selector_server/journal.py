"""The durable memory of one run: an append-only file of records, and a folder of weights.

A record is on disk (fsync) before anybody is told of it. Frames are magic, length, CRC-32 and payload; a frame that a
crash left incomplete at the end of the file is cut off at the next start; damage before an intact frame is an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from shared.errors import JournalError
from shared.pb.v1 import journal_pb2 as pb
from shared.weights import content_hash

logger = logging.getLogger(__name__)

_MAGIC = b"SBJ1"
_FRAME = struct.Struct("<4sII")
_MAX_RECORD_BYTES = 256 << 20


class Journal:
    """One run's journal file and weights folder. Appends may come from several threads."""

    def __init__(self, folder: Path) -> None:
        """Open or create the journal in `folder`, repairing a torn tail.

        Raises:
            JournalError: the folder can't be written.
        """
        self.folder = folder
        self._lock = threading.Lock()
        try:
            (folder / "weights").mkdir(parents=True, exist_ok=True)
            self._path = folder / "journal.bin"
            self._file = open(self._path, "a+b")
            self._undo_to: int | None = None
            _fsync_folder(folder)
            _fsync_folder(folder.parent)
        except OSError as error:
            raise JournalError(f"journal {folder} can't be opened: {error}") from error

    def records(self) -> Iterator[tuple[int, pb.JournalRecord]]:
        """Every record with its offset, oldest first; cuts off a torn tail at the end.

        Raises:
            JournalError: a damaged frame that isn't the file's last.
        """
        size = os.path.getsize(self._path)
        with open(self._path, "rb") as file:
            offset = 0
            while offset < size:
                record = _read_frame(file, offset, size)
                if record is None:
                    if _holds_frame_after(file, offset, size):
                        raise JournalError(
                            f"journal {self._path} is damaged at byte {offset} of {size}, before intact records: "
                            "restore the file from a copy, or start the run over under another name"
                        )
                    logger.warning("journal %s: cutting off a torn record of %d bytes", self._path, size - offset)
                    self._truncate(offset)
                    return
                yield offset, record
                offset = file.tell()

    def append(self, record: pb.JournalRecord) -> int:
        """Write one record, durable on return, and give its offset.

        Raises:
            JournalError: the disk is full or failing; the file is as it was before.
        """
        record.unix_ns = time.time_ns()
        payload = record.SerializeToString()
        frame = _FRAME.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload
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

    def read(self, offset: int) -> pb.JournalRecord:
        """The record at an offset that `append` or `records` gave.

        Raises:
            JournalError: no intact record there.
        """
        with open(self._path, "rb") as file:
            record = _read_frame(file, offset, os.path.getsize(self._path))
        if record is None:
            raise JournalError(f"journal {self._path} has no intact record at byte {offset}")
        return record

    def write_weights(self, version: int, sha256: str, payload: bytes) -> None:
        """Store one version of the weights, atomically and durably.

        Raises:
            JournalError: the disk is full or failing; no file is left half-written.
        """
        path = self._weights_path(version, sha256)
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

    def read_weights(self, version: int, sha256: str) -> bytes:
        """The payload stored for a version.

        Raises:
            JournalError: the file is gone, or no longer what was stored.
        """
        path = self._weights_path(version, sha256)
        try:
            payload = path.read_bytes()
        except OSError as error:
            raise JournalError(f"weights {path} can't be read: {error}") from error
        if (found := content_hash(payload)) != sha256:
            raise JournalError(f"weights {path} are damaged: stored with hash {sha256}, read with {found}: remove them")
        return payload

    def keep_weights(self, versions: dict[int, str]) -> None:
        """Remove every weights file but those of `versions` (version → sha256)."""
        keep = {self._weights_path(v, sha256).name for v, sha256 in versions.items()}
        for path in (self.folder / "weights").iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def has_weights(self, version: int, sha256: str) -> bool:
        """Whether the file of a version is there."""
        return self._weights_path(version, sha256).is_file()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _weights_path(self, version: int, sha256: str) -> Path:
        return self.folder / "weights" / f"v{version:010d}-{sha256[:16]}.safetensors"

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


def _read_frame(file: BinaryIO, offset: int, size: int) -> pb.JournalRecord | None:
    """The record of the frame at `offset`, or None where no intact frame is."""
    file.seek(offset)
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    magic, length, crc = _FRAME.unpack(head)
    # No record is empty; a header that a crash left half zero would pass for one, since the CRC-32 of nothing is 0.
    if magic != _MAGIC or not 0 < length <= min(_MAX_RECORD_BYTES, size - offset - _FRAME.size):
        return None
    payload = file.read(length)
    if zlib.crc32(payload) != crc:
        return None
    try:
        return pb.JournalRecord.FromString(payload)
    except DecodeError:
        return None


def _holds_frame_after(file: BinaryIO, offset: int, size: int) -> bool:
    """Whether an intact frame starts past a damaged one: then this is damage, not a torn tail."""
    file.seek(offset)
    rest = file.read()
    at = rest.find(_MAGIC, 1)
    while at >= 0:
        if _read_frame(file, offset + at, size) is not None:
            return True
        at = rest.find(_MAGIC, at + 1)
    return False


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
