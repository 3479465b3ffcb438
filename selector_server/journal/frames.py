"""The frames of a journal file: how a record lies on disk, and what is a torn tail and what is damage.

A crash leaves the last frame incomplete, or at its full length with zeros where data never arrived. Anything else that
isn't an intact frame is damage, also in the last one: nobody may lose a record that was durable without being told.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Literal

from google.protobuf.message import DecodeError

from shared.pb.v1 import journal_pb2 as pb

FORMAT = 2
MAX_BYTES = 256 << 20

_NAME = b"SBJ"
_MAGIC = _NAME + b"%d" % FORMAT
# Magic, bytes of the record and of its attachment, and the CRC-32 of each; then that of these.
_FIELDS = struct.Struct("<4sIIII")
_CRC = struct.Struct("<I")
HEAD_BYTES = _FIELDS.size + _CRC.size

# Disks write whole sectors.
_SECTOR_BYTES = 512


@dataclass(frozen=True)
class Frame:
    """An intact frame: its record, and where it and its attachment end. The attachment isn't read with it."""

    record: pb.JournalRecord
    attachment_at: int
    attachment_bytes: int
    attachment_crc: int

    @property
    def end(self) -> int:
        """The byte after the frame."""
        return self.attachment_at + self.attachment_bytes


def encode(record: pb.JournalRecord, attachment: bytes) -> bytes:
    """A frame as it lies on disk."""
    payload = record.SerializeToString()
    fields = _FIELDS.pack(_MAGIC, len(payload), len(attachment), zlib.crc32(payload), zlib.crc32(attachment))
    return fields + _CRC.pack(zlib.crc32(fields)) + payload + attachment


def read_frame(file: BinaryIO, offset: int, size: int) -> Frame | None:
    """The frame at `offset` of a file of `size` bytes, or None where no intact one is; attachments aren't verified."""
    fields = _read_head(file, offset)
    if fields is None:
        return None
    length, attachment_bytes, crc, attachment_crc = fields
    attachment_at = offset + HEAD_BYTES + length
    if attachment_at + attachment_bytes > size:
        return None
    payload = file.read(length)
    if zlib.crc32(payload) != crc:
        return None
    try:
        record = pb.JournalRecord.FromString(payload)
    except DecodeError:
        return None
    return Frame(record, attachment_at, attachment_bytes, attachment_crc)


def read_attachment(file: BinaryIO, frame: Frame) -> bytes | None:
    """What is attached to a frame, or None where it is damaged."""
    file.seek(frame.attachment_at)
    attachment = file.read(frame.attachment_bytes)
    return attachment if zlib.crc32(attachment) == frame.attachment_crc else None


def judge(file: BinaryIO, offset: int, size: int) -> Literal["torn", "damaged"]:
    """What stands at an offset where no intact frame is, or one whose attachment isn't, though it is the last."""
    if size - offset < HEAD_BYTES:
        return "torn"
    fields = _read_head(file, offset)
    end = None if fields is None else offset + HEAD_BYTES + fields[0] + fields[1]
    if end is not None and end != size:
        return "torn" if end > size else "damaged"
    if size - offset > HEAD_BYTES + 2 * MAX_BYTES:
        return "damaged"  # more than one frame, and a crash leaves but the last one incomplete
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
        if end is None and _holds_frame(file, data, offset):
            return "damaged"
        return "torn" if _never_arrived(data, offset) else "damaged"


def other_format(file: BinaryIO) -> int | None:
    """The format of a journal file that another release wrote; None for ours, and for what is no journal at all."""
    file.seek(0)
    magic = file.read(len(_MAGIC))
    number = magic[len(_NAME) :]
    is_other = magic.startswith(_NAME) and number.isdigit() and magic != _MAGIC
    return int(number) if is_other else None


def _read_head(file: BinaryIO, offset: int) -> tuple[int, int, int, int] | None:
    file.seek(offset)
    head = file.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES or zlib.crc32(head[: _FIELDS.size]) != _CRC.unpack(head[_FIELDS.size :])[0]:
        return None
    magic, length, attachment_bytes, crc, attachment_crc = _FIELDS.unpack(head[: _FIELDS.size])
    if magic != _MAGIC or not 0 < length <= MAX_BYTES or attachment_bytes > MAX_BYTES:
        return None
    return length, attachment_bytes, crc, attachment_crc


def _holds_frame(file: BinaryIO, data: mmap.mmap, offset: int) -> bool:
    """Whether an intact frame starts past the byte at `offset`."""
    at = data.find(_MAGIC, offset + 1)
    while at >= 0:
        if read_frame(file, at, len(data)) is not None:
            return True
        at = data.find(_MAGIC, at + 1)
    return False


def _never_arrived(data: mmap.mmap, offset: int) -> bool:
    """Whether zeros stand at the end or in the place of a whole sector, as where data had not reached the disk."""
    if data[-1] == 0:
        return True
    first = offset + -offset % _SECTOR_BYTES
    zeros = bytes(_SECTOR_BYTES)
    return any(data[at : at + _SECTOR_BYTES] == zeros for at in range(first, len(data), _SECTOR_BYTES))
