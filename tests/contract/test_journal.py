"""The journal on a real disk: what survives a crash, what is refused, and what a full disk leaves behind."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from selector_server.journal import Journal, JournalReader, frames
from selector_server.run_state import RunState
from shared.errors import JournalError
from shared.pb.v1 import journal_pb2 as pb
from shared.pb.v1 import selector_pb2
from shared.weights import content_hash
from tests.contract.journal_by_hand import HEAD, frames_of


def a_record(step: int, size: int = 40) -> pb.JournalRecord:
    arrow = bytes((step * 31 + i) % 256 for i in range(size))
    return pb.JournalRecord(selection=selector_pb2.SelectionMessage(step=step, weights_version=step, arrow=arrow))


def steps(folder: Path) -> list[int]:
    """What a server that starts on this folder reads."""
    journal = Journal(folder)
    found = [record.selection.step for _, record in journal.records()]
    journal.close()
    return found


def written(folder: Path, count: int) -> tuple[bytes, list[int]]:
    """A journal of `count` records: its bytes, and where each record begins."""
    journal = Journal(folder)
    offsets = [journal.append(a_record(step)) for step in range(count)]
    journal.close()
    return (folder / "journal.bin").read_bytes(), offsets


def frames_by_hand(data: bytes) -> list[pb.JournalRecord]:
    return [entry.record for entry in frames_of(data)]


# ---- what is written is there


def test_records_are_there_in_order_after_reopening_and_at_their_offsets(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    sent = [a_record(step, size) for step, size in enumerate((0, 1, 5_000, 200_000, 7))]
    offsets = [journal.append(record) for record in sent]
    journal.close()
    again = Journal(tmp_path / "run")
    assert list(again.records()) == list(zip(offsets, sent, strict=True))
    assert [again.read(offset) for offset in reversed(offsets)] == sent[::-1]
    end = (tmp_path / "run" / "journal.bin").stat().st_size
    assert again.append(a_record(5)) == end
    assert steps(tmp_path / "run") == [0, 1, 2, 3, 4, 5]


def test_the_file_is_what_the_contract_says(tmp_path: Path) -> None:
    data, _ = written(tmp_path, 3)
    records = frames_by_hand(data)
    assert [r.selection.step for r in records] == [0, 1, 2]
    assert [r.selection.arrow for r in records] == [a_record(t).selection.arrow for t in range(3)]
    assert all(r.unix_ns > 1.6e18 for r in records), "records say when they were written"


def test_a_record_is_on_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    synced: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append((tmp_path / "journal.bin").read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    journal.append(a_record(0))
    assert [r.selection.step for r in frames_by_hand(synced[-1])] == [0]


def test_a_new_journal_has_no_records(tmp_path: Path) -> None:
    assert steps(tmp_path / "deep" / "run") == []
    assert steps(tmp_path / "deep" / "run") == []


def test_threads_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    offsets: dict[int, int] = {}

    def append(first: int) -> None:
        for step in range(first, first + 10):
            offsets[step] = journal.append(a_record(step, size=step * 50))

    threads = [threading.Thread(target=append, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(steps(tmp_path)) == list(range(40))
    assert all(journal.read(offset).selection.step == step for step, offset in offsets.items())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="can't be opened"):
        Journal(tmp_path / "file" / "run")


# ---- crashes


def test_a_record_torn_at_any_byte_is_cut_off_and_those_before_it_stay(tmp_path: Path) -> None:
    data, offsets = written(tmp_path, 3)
    file = tmp_path / "journal.bin"
    for end in range(offsets[2], len(data)):
        file.write_bytes(data[:end])
        assert steps(tmp_path) == [0, 1]
        assert file.read_bytes() == data[: offsets[2]], "the tail must be gone, or the next record is lost behind it"
    journal = Journal(tmp_path)
    assert len(list(journal.records())) == 2
    journal.append(a_record(7))
    assert steps(tmp_path) == [0, 1, 7]


def test_the_only_record_torn_at_any_byte_leaves_an_empty_journal(tmp_path: Path) -> None:
    data, _ = written(tmp_path, 1)
    for end in range(len(data)):
        (tmp_path / "journal.bin").write_bytes(data[:end])
        assert steps(tmp_path) == []


def test_a_record_of_which_only_the_length_reached_the_disk_is_cut_off(tmp_path: Path) -> None:
    """After a power failure a file may have its new size, with zeros where the data never arrived."""
    data, offsets = written(tmp_path, 3)
    for arrived in range(offsets[2], len(data)):
        missing = len(data) - arrived
        if data[arrived:] != bytes(missing):
            (tmp_path / "journal.bin").write_bytes(data[:arrived] + bytes(missing))
            assert steps(tmp_path) == [0, 1]


def test_a_flipped_byte_in_an_earlier_record_is_an_error_and_cuts_off_nothing(tmp_path: Path) -> None:
    data, offsets = written(tmp_path, 4)
    file = tmp_path / "journal.bin"
    # Magic, length, CRC and payload of the first and of a middle record.
    for position in [*range(offsets[1]), *range(offsets[2], offsets[3])]:
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        file.write_bytes(damaged)
        with pytest.raises(JournalError, match="damaged at byte"):
            steps(tmp_path)
        assert file.read_bytes() == damaged


def test_damage_that_spans_records_is_found_by_an_intact_one_behind_them(tmp_path: Path) -> None:
    data, offsets = written(tmp_path, 4)
    damaged = bytearray(data)
    for offset in offsets[1:3]:
        damaged[offset + HEAD + 3] ^= 0xFF
    (tmp_path / "journal.bin").write_bytes(damaged)
    with pytest.raises(JournalError, match=f"damaged at byte {offsets[1]} of"):
        steps(tmp_path)


def test_a_record_may_hold_what_looks_like_the_beginning_of_another(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    record = a_record(0)
    record.selection.arrow = b"SBJ2" * 20 + struct.pack("<4sIIIII", b"SBJ2", 5, 0, 0, 0, 0) + b"hello"
    journal.append(record)
    data = (tmp_path / "journal.bin").read_bytes()
    assert steps(tmp_path) == [0]
    (tmp_path / "journal.bin").write_bytes(data[:-1])
    assert steps(tmp_path) == []


@pytest.mark.parametrize("length", [0, 1, 41, 2**16, 2**31, 2**32 - 1])
def test_a_wrong_length_in_an_earlier_record_is_an_error(tmp_path: Path, length: int) -> None:
    data, offsets = written(tmp_path, 3)
    damaged = bytearray(data)
    damaged[offsets[1] + 4 : offsets[1] + 8] = struct.pack("<I", length)
    (tmp_path / "journal.bin").write_bytes(damaged)
    with pytest.raises(JournalError, match=f"damaged at byte {offsets[1]} of {len(data)}"):
        steps(tmp_path)


def test_reading_where_no_record_begins_is_an_error(tmp_path: Path) -> None:
    data, offsets = written(tmp_path, 2)
    journal = Journal(tmp_path)
    for offset in (offsets[1] + 1, offsets[1] - 1, len(data), len(data) + 100):
        with pytest.raises(JournalError, match=f"byte {offset}"):
            journal.read(offset)


def test_damage_at_the_beginning_of_a_large_file_is_told_without_reading_it_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    for step in range(2):
        journal.append(a_record(step), bytes([7]) * (32 << 20))
    journal.close()
    with (tmp_path / "journal.bin").open("r+b") as file:
        file.write(b"?")
    tracemalloc.start()
    try:
        with pytest.raises(JournalError, match="damaged at byte 0 of"):
            steps(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    # More than a frame can be isn't even searched: a crash leaves but one incomplete.
    monkeypatch.setattr(frames, "MAX_BYTES", 16 << 20)
    monkeypatch.setattr(mmap, "mmap", pytest.fail)
    with pytest.raises(JournalError, match="damaged at byte 0 of"):
        steps(tmp_path)


def test_a_forged_selection_of_a_step_below_zero_breaks_the_chain_and_nothing_else(tmp_path: Path) -> None:
    Journal(tmp_path).append(a_record(-1))
    with pytest.raises(JournalError, match="chain of selections is broken at step -1"):
        RunState(JournalReader(tmp_path))


# ---- what is attached to a record


def attached(folder: Path) -> tuple[bytes, list[int]]:
    """Three records with 50 bytes attached to each: the file, and where each begins."""
    journal = Journal(folder)
    offsets = [journal.append(a_record(step), bytes(range(1 + step, 51 + step))) for step in range(3)]
    journal.close()
    return (folder / "journal.bin").read_bytes(), offsets


def test_what_is_attached_is_there_after_reopening_and_stands_in_the_file_as_the_contract_says(tmp_path: Path) -> None:
    data, offsets = attached(tmp_path)
    assert [entry.attachment[0] for entry in frames_of(data)] == [1, 2, 3]
    reader = JournalReader(tmp_path)
    assert [reader.read_attachment(offset) for offset in offsets] == [entry.attachment for entry in frames_of(data)]
    plain = Journal(tmp_path).append(a_record(3))
    assert reader.read_attachment(plain) == b""
    assert steps(tmp_path) == [0, 1, 2, 3]


def test_a_record_torn_at_any_byte_of_what_is_attached_is_cut_off(tmp_path: Path) -> None:
    data, offsets = attached(tmp_path)
    for end in range(offsets[2], len(data)):
        for arrived in (data[:end], data[:end] + bytes(len(data) - end)):
            (tmp_path / "journal.bin").write_bytes(arrived)
            assert steps(tmp_path) == [0, 1]


def test_a_flipped_bit_anywhere_in_the_last_record_is_damage_and_not_a_torn_tail(tmp_path: Path) -> None:
    """A record that was durable may have been sent: nobody may lose it without being told."""
    data, offsets = attached(tmp_path)
    for position in range(offsets[2], len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        if damaged[-1] == 0:
            continue
        (tmp_path / "journal.bin").write_bytes(damaged)
        with pytest.raises(JournalError, match=f"damaged at byte {offsets[2]} of {len(data)}"):
            steps(tmp_path)
        assert (tmp_path / "journal.bin").read_bytes() == damaged


def test_damage_to_what_is_attached_to_an_earlier_record_is_found_when_it_is_read(tmp_path: Path) -> None:
    data, offsets = attached(tmp_path)
    damaged = bytearray(data)
    damaged[offsets[1] - 1] ^= 4
    (tmp_path / "journal.bin").write_bytes(damaged)
    assert steps(tmp_path) == [0, 1, 2]
    reader = JournalReader(tmp_path)
    with pytest.raises(JournalError, match=f"attached to the record at byte {offsets[0]} is damaged"):
        reader.read_attachment(offsets[0])
    assert reader.read_attachment(offsets[1])[0] == 2


def test_a_whole_sector_that_never_arrived_is_a_torn_tail(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(a_record(0))
    journal.append(a_record(1, size=5000))
    journal.close()
    data = bytearray((tmp_path / "journal.bin").read_bytes())
    data[1024:1536] = bytes(512)
    (tmp_path / "journal.bin").write_bytes(data)
    assert steps(tmp_path) == [0]


# ---- readers and other releases


def test_a_reader_beside_a_server_sees_whole_records_alone_and_changes_nothing(tmp_path: Path) -> None:
    data, offsets = written(tmp_path, 3)
    file = tmp_path / "journal.bin"
    file.write_bytes(data[:-5])
    reader = JournalReader(tmp_path)
    assert [record.selection.step for _, record in reader.records()] == [0, 1]
    assert reader.tail_bytes == len(data) - 5 - offsets[2]
    assert file.read_bytes() == data[:-5]


@pytest.mark.parametrize("number", [1, 3, 9])
def test_a_journal_of_another_format_is_refused_with_both_numbers_and_left_alone(tmp_path: Path, number: int) -> None:
    data, _ = written(tmp_path, 2)
    other = data.replace(b"SBJ2", b"SBJ%d" % number)
    (tmp_path / "journal.bin").write_bytes(other)
    with pytest.raises(JournalError, match=f"is of format {number}, this release reads format 2"):
        steps(tmp_path)
    assert (tmp_path / "journal.bin").read_bytes() == other


def test_a_record_too_large_to_be_read_again_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_BYTES", 1000)
    journal = Journal(tmp_path)
    with pytest.raises(JournalError, match=r"1001 attached is larger than 1000: .*server\.keep_scores"):
        journal.append(a_record(0), bytes(1001))
    journal.append(a_record(1), bytes([1]) * 1000)
    assert steps(tmp_path) == [1]


# ---- full and failing disks

ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from selector_server.journal import Journal
from shared.errors import StorageFullError
from shared.pb.v1 import journal_pb2 as pb, selector_pb2

def record(step, size):
    return pb.JournalRecord(selection=selector_pb2.SelectionMessage(step=step, arrow=bytes(size)))

folder = Path(sys.argv[1])
file = folder / "journal.bin"
journal = Journal(folder)
journal.append(record(0, 3000))
before = file.read_bytes()
# A file may not grow past this: the kernel writes what fits, then refuses, as a full disk does.
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 2000, hard))
for size in (2500, 100_000):
    try:
        journal.append(record(1, size))
        sys.exit("an append that can't fit has succeeded")
    except StorageFullError as error:
        assert str(file) in str(error) and "MiB free: make room there" in str(error), error
    assert file.read_bytes() == before, "the file isn't as it was"
try:
    journal.write_weights(3, "ab" * 32, bytes(len(before) + 5000))
    sys.exit("weights that can't fit have been stored")
except StorageFullError as error:
    assert str(folder / "weights") in str(error) and "MiB free: make room there" in str(error), error
assert not list((folder / "weights").iterdir()), "half-written weights"
journal.append(record(2, 100))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.append(record(3, 100_000))
"""


def test_a_full_disk_leaves_the_journal_as_it_was_and_a_later_append_works(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, tmp_path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert steps(tmp_path) == [0, 2, 3]


def failing_times(times: int, real: Callable[[int], None]) -> Callable[[int], None]:
    left = [times]

    def fsync(descriptor: int) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    return fsync


@pytest.mark.parametrize("failures", [1, 2, 3, 5])
def test_a_disk_that_fails_to_sync_is_an_error_until_it_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """The failing sync may be the record's, or that of the repair after it."""
    journal = Journal(tmp_path)
    journal.append(a_record(0))
    monkeypatch.setattr(os, "fsync", failing_times(failures, os.fsync))
    refused = 0
    while True:
        try:
            journal.append(a_record(1))
            break
        except JournalError:
            refused += 1
    assert refused >= 1
    journal.append(a_record(2))
    # A record that was refused is not there, and none is lost behind what it left.
    assert steps(tmp_path) == [0, 1, 2]


def test_a_disk_that_refuses_even_the_repair_is_asked_again_before_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.append(a_record(0))

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        patch.setattr("selector_server.journal.writer.open", refuse, raising=False)
        for size in (40, 100_000):
            with pytest.raises(JournalError, match="can't be written"):
                journal.append(a_record(1, size))
    journal.append(a_record(2))
    assert steps(tmp_path) == [0, 2]


def test_a_disk_that_fails_to_sync_weights_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    monkeypatch.setattr(os, "fsync", failing_times(1, os.fsync))
    with pytest.raises(JournalError, match="can't be written"):
        journal.write_weights(3, content_hash(b"x"), b"x")
    assert list((tmp_path / "weights").iterdir()) == []
    journal.write_weights(3, content_hash(b"x"), b"x")
    assert journal.read_weights(3, content_hash(b"x")) == b"x"


# ---- weights


def test_weights_are_read_as_they_were_written_also_after_reopening(tmp_path: Path) -> None:
    payloads = {0: b"", 4: bytes(range(256)) * 5_000, 2**33: b"x"}
    journal = Journal(tmp_path)
    for version, payload in payloads.items():
        journal.write_weights(version, content_hash(payload), payload)
    again = Journal(tmp_path)
    for version, payload in payloads.items():
        assert again.has_weights(version, content_hash(payload))
        assert again.read_weights(version, content_hash(payload)) == payload
    assert not again.has_weights(1, content_hash(b"x"))


def test_two_contents_of_one_version_are_two_files(tmp_path: Path) -> None:
    """After a rewind the same version comes again, while its old file may still be there."""
    journal = Journal(tmp_path)
    for payload in (b"first", b"second"):
        journal.write_weights(4, content_hash(payload), payload)
    assert journal.read_weights(4, content_hash(b"first")) == b"first"
    journal.keep_weights({4: content_hash(b"second")})
    assert not journal.has_weights(4, content_hash(b"first"))
    assert journal.read_weights(4, content_hash(b"second")) == b"second"


def test_weights_are_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    payload, states = b"w" * 100_000, []
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        states.append((Path(source).read_bytes() == payload, Path(target).exists()))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    journal.write_weights(1, content_hash(payload), payload)
    assert states == [(True, False)], "whole under another name first, and only then in its place"


def test_only_the_weights_to_keep_are_kept_and_what_a_crash_left_goes(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    hashes = {}
    for version in range(5):
        payload = b"v%d" % version
        hashes[version] = content_hash(payload)
        journal.write_weights(version, hashes[version], payload)
    (tmp_path / "weights" / "v0000000009-abc.part").write_bytes(b"half")
    journal.keep_weights({v: hashes[v] for v in (1, 3)})
    assert [v for v in hashes if journal.has_weights(v, hashes[v])] == [1, 3]
    assert len(list((tmp_path / "weights").iterdir())) == 2
    journal.keep_weights({})
    assert list((tmp_path / "weights").iterdir()) == []


def test_weights_that_are_gone_or_damaged_are_an_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    digest = content_hash(b"weights")
    with pytest.raises(JournalError, match="can't be read"):
        journal.read_weights(4, digest)
    journal.write_weights(4, digest, b"weights")
    (file,) = (tmp_path / "weights").iterdir()
    file.write_bytes(b"weighty")
    with pytest.raises(JournalError, match="damaged"):
        journal.read_weights(4, digest)
