"""Reading one run's journal, whether or not a server is writing it: nothing here changes a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from selector_server.journal import frames
from shared.errors import JournalError
from shared.pb.v1 import journal_pb2 as pb
from shared.weights import content_hash

FILE = "journal.bin"


class JournalReader:
    """One run's journal file and weights folder.

    Attributes:
        folder: Of the run.
        tail_bytes: What `records` found at the end that is no whole record: one that a server is just writing, or
            that a crash left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tail_bytes = 0
        self._path = folder / FILE

    def records(self) -> Iterator[tuple[int, pb.JournalRecord]]:
        """Every record with its offset, oldest first, up to a torn tail.

        Attachments are read only where the file ends with one: they may be large, and no record depends on them.

        Raises:
            JournalError: damage, a format of another release, or a file that can't be read.
        """
        try:
            with open(self._path, "rb") as file:
                size, offset = os.path.getsize(self._path), 0
                if (other := frames.other_format(file)) is not None:
                    raise JournalError(
                        f"journal {self._path} is of format {other}, this release reads format {frames.FORMAT}: go on "
                        "with the release that wrote it, or start the run over under another run.name"
                    )
                while offset < size:
                    frame = frames.read_frame(file, offset, size)
                    is_last = frame is not None and frame.end == size
                    if frame is None or (is_last and frames.read_attachment(file, frame) is None):
                        if frames.judge(file, offset, size) == "damaged":
                            raise JournalError(
                                f"journal {self._path} is damaged at byte {offset} of {size}: restore the file from a "
                                "copy, or start the run over under another name"
                            )
                        self.tail_bytes = size - offset
                        return
                    yield offset, frame.record
                    offset = frame.end
        except OSError as error:
            raise JournalError(f"journal {self._path} can't be read: {error}") from error

    def read(self, offset: int) -> pb.JournalRecord:
        """The record at an offset that `records` or `append` gave.

        Raises:
            JournalError: no intact record there.
        """
        with open(self._path, "rb") as file:
            return self._frame(file, offset).record

    def read_attachment(self, offset: int) -> bytes:
        """What is attached to the record at an offset; empty where nothing is.

        Raises:
            JournalError: no intact record there, or a damaged attachment.
        """
        with open(self._path, "rb") as file:
            attachment = frames.read_attachment(file, self._frame(file, offset))
        if attachment is None:
            raise JournalError(f"journal {self._path}: what is attached to the record at byte {offset} is damaged")
        return attachment

    def read_weights(self, version: int, sha256: str) -> bytes:
        """The payload stored for a version.

        Raises:
            JournalError: the file is gone, or no longer what was stored.
        """
        path = self.weights_path(version, sha256)
        try:
            payload = path.read_bytes()
        except OSError as error:
            raise JournalError(f"weights {path} can't be read: {error}") from error
        if (found := content_hash(payload)) != sha256:
            raise JournalError(f"weights {path} are damaged: stored with hash {sha256}, read with {found}: remove them")
        return payload

    def has_weights(self, version: int, sha256: str) -> bool:
        """Whether the file of a version is there."""
        return self.weights_path(version, sha256).is_file()

    def weights_path(self, version: int, sha256: str) -> Path:
        """Where the weights of a version with this content are, or would be."""
        return self.folder / "weights" / f"v{version:010d}-{sha256[:16]}.safetensors"

    def _frame(self, file: BinaryIO, offset: int) -> frames.Frame:
        frame = frames.read_frame(file, offset, os.path.getsize(self._path))
        if frame is None:
            raise JournalError(f"journal {self._path} has no intact record at byte {offset}")
        return frame
