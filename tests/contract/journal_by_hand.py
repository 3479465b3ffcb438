"""A journal file read and written as proto/shared/pb/v1/journal.proto describes it, by code of its own."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.pb.v1 import journal_pb2 as pb

HEAD = 24  # "SBJ2", two lengths, two CRC-32, and that of these


@dataclass
class Entry:
    """A frame's record and attachment."""

    record: pb.JournalRecord
    attachment: bytes = b""


def frames_of(data: bytes) -> list[Entry]:
    """Every frame of a file, each checked."""
    entries = []
    while data:
        magic, length, attached, crc, attached_crc, head_crc = struct.unpack("<4sIIIII", data[:HEAD])
        payload, attachment = data[HEAD : HEAD + length], data[HEAD + length : HEAD + length + attached]
        assert magic == b"SBJ2"
        assert zlib.crc32(data[:20]) == head_crc
        assert (len(payload), len(attachment)) == (length, attached)
        assert (zlib.crc32(payload), zlib.crc32(attachment)) == (crc, attached_crc)
        entries.append(Entry(pb.JournalRecord.FromString(payload), attachment))
        data = data[HEAD + length + attached :]
    return entries


def file_of(entries: list[Entry]) -> bytes:
    """The file that holds these, with right checksums."""
    data = b""
    for entry in entries:
        payload = entry.record.SerializeToString()
        sizes = (len(payload), len(entry.attachment), zlib.crc32(payload), zlib.crc32(entry.attachment))
        head = struct.pack("<4sIIII", b"SBJ2", *sizes)
        data += head + struct.pack("<I", zlib.crc32(head)) + payload + entry.attachment
    return data


def digest(*parts: bytes | str | int) -> bytes:
    """H(parts) of the contract."""
    whole = b""
    for part in parts:
        if isinstance(part, int):
            part = struct.pack("<Q", part)
        elif isinstance(part, str):
            part = part.encode()
        whole += struct.pack("<Q", len(part)) + part
    return hashlib.sha256(whole).digest()


def chains(entries: list[Entry]) -> dict[int, bytes]:
    """The chain that each selection among entries must have, by its place, from the records themselves."""
    found: dict[int, bytes] = {}
    standing: dict[int, tuple[bool, pb.SelectionMessage]] = {}  # step → whether it is a Trained record's, selection
    linked: dict[int, bytes] = {}
    root = b""

    def link(t: int) -> bytes:
        s = standing[t][1]
        before = linked[t - 1] if t - 1 in standing else root
        return digest(
            "subbatch chain 1, selection", before, s.step, s.weights_version, s.weights_sha256, s.arrow, s.history,
            s.scores_sha256,
        )  # fmt: skip

    for place, entry in enumerate(entries):
        if entry.record.HasField("opened"):
            opened, run = entry.record.opened, entry.record.opened.run
            root = digest(
                "subbatch chain 1, run", run.name, run.seed, run.num_steps, run.staleness, run.push_every,
                run.selection_json, run.adapter_json, run.fingerprints.dataset, run.fingerprints.tokenizer,
            )  # fmt: skip
            kept = -1 if opened.restarted else opened.kept_version
            newer = [t for t, (trained, s) in standing.items() if not trained and s.weights_version > kept]
            lost = list(standing) if opened.restarted else newer
            for t in lost:
                del standing[t]
            for t in sorted(standing):  # one by one: each may follow one that was linked anew
                if lost and t > min(lost):
                    linked[t] = link(t)
        for kind in ("selection", "trained"):
            if entry.record.HasField(kind):
                s = entry.record.selection if kind == "selection" else entry.record.trained.selection
                standing[s.step] = kind == "trained", s
                found[place] = linked[s.step] = link(s.step)
                for t in sorted(standing):
                    if t > s.step:
                        linked[t] = link(t)
    return found


def tamper(path: Path, step: int, change: Callable[[Entry], None], *, chained: bool) -> None:
    """Change the last selection of a step in a file; `chained` hides it from every checksum and hash."""
    entries = frames_of(path.read_bytes())
    (*_, entry) = [e for e in entries if e.record.HasField("selection") and e.record.selection.step == step]
    change(entry)
    if chained:
        if entry.attachment:
            entry.record.selection.scores_sha256 = hashlib.sha256(entry.attachment).digest()
        for place in chains(entries):  # each depends on those before it
            entries[place].record.selection.chain = chains(entries)[place]
    path.write_bytes(file_of(entries))
