"""Journal files: damage is an error or a torn tail, never other content; and records made to harm are refused.

A file that ends between two records can't be told from one whose run had come no further: then what is read is a
beginning of what was written, and a trainer that is past it is refused when it opens the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from selector_server.journal import Journal, JournalReader
from selector_server.journal.survey import survey
from selector_server.run import Run
from selector_server.run_state import RunState
from shared.convert import run_to_pb
from shared.errors import JournalError, SubbatchError
from shared.pb.v1 import selector_pb2
from shared.records import Fingerprints, RunInfo, TensorSpec
from shared.selection_config import SelectionConfig
from shared.timing import Timing
from shared.weights import content_hash
from shared.wire import encode_selection
from tests.contract.journal_by_hand import Entry, file_of, frames_of
from tests.fuzz.budget import fuzz
from tests.fuzz.damage import damaged
from tests.fuzz.test_fuzz_selection import a_selection

Content = list[tuple[bytes, bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run's journal folder after five steps, a rewind and its end."""
    info = RunInfo(
        name="run",
        seed=7,
        timing=Timing(num_steps=6, staleness=1, push_every=1, lookahead=1, scores=True),
        world_size=2,
        selection=SelectionConfig(),
        adapter_json='{"r": 4}',
        trainable=(TensorSpec("B", (8, 4), "float32"),),
        fingerprints=Fingerprints("data", "tokens", {"float32": "f"}),
    )
    run = Run(Journal(tmp_path / "run"))
    for cursor in (0, 3):
        for version in run.open(info, cursor=cursor, restart=False, open_id=f"at {cursor}"):
            _push(run, version, cursor)
        for step in range(cursor, 6):
            while (at := run.selectable_step()) is not None:
                message = selector_pb2.SelectionMessage(
                    step=at, weights_version=info.timing.weights_version(at), arrow=encode_selection(a_selection(8, 0))
                )
                run.add_selection(message, bytes(range(40)) * (at % 3))
                run.drop_unneeded_weights()
            if step < 4:
                _push(run, step + 1, cursor)
            for rank in (0, 1):
                run.report_progress(rank, step + 1)
    run.close()
    run.journal.close()
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def _push(run: Run, version: int, cursor: int) -> None:
    payload = b"weights %d from %d" % (version, cursor)
    if not run.is_known(version, content_hash(payload)):
        run.add_weights(version, content_hash(payload), payload)


def read(folder: Path) -> Content:
    """All that a reader gets, records and what is attached to them."""
    reader = JournalReader(folder)
    RunState(reader)
    return [(record.SerializeToString(), reader.read_attachment(offset)) for offset, record in reader.records()]


def test_a_damaged_file_is_an_error_or_a_beginning_of_what_was_written(folder: Path) -> None:
    file = folder / "run" / "journal.bin"
    data, whole = file.read_bytes(), read(folder / "run")

    def damage(changed: bytes) -> None:
        file.write_bytes(changed)
        try:
            found = read(folder / "run")
        except JournalError:
            return
        assert found == whole[: len(found)]
        # A server goes on from there, behind a repaired tail.
        run = Run(Journal(folder / "run"))
        run.journal.close()
        assert file.read_bytes() == data[: file.stat().st_size]
        assert read(folder / "run") == found

    fuzz(damage, st.one_of(damaged(data), st.binary(max_size=300)), quick=200)


def _fields(message: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every scalar field of a message and those in it, with its descriptor."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            continue
        if field.message_type:
            if message.HasField(field.name):
                yield from _fields(getattr(message, field.name), (*path, field.name))
        else:
            yield (*path, field.name), field


_NUMBERS = st.sampled_from([0, 1, -1, 5, 6, 7, 65536, 2**31 - 1, 2**40, 2**62, 2**63 - 1, -(2**63)])


def _value(field: Any) -> st.SearchStrategy[Any]:
    if field.type == field.TYPE_BYTES:
        return st.one_of(st.binary(max_size=40), st.just(encode_selection(a_selection(2, 0))))
    if field.type == field.TYPE_STRING:
        return st.one_of(st.text(max_size=40), st.sampled_from(["../run", "[" * 5000, '{"r": 1e999}', "9" * 5000]))
    if field.type == field.TYPE_BOOL:
        return st.booleans()
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return st.floats()
    is_unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    bits = 31 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 63
    return _NUMBERS.filter(lambda value: (0 if is_unsigned else -(2**bits)) <= value < 2**bits)


def test_records_made_to_harm_under_right_checksums_are_refused_or_a_run(folder: Path) -> None:
    """Whoever can write the folder can make checksums right: readers then say so, and don't crash, hang or swell."""
    file = folder / "run" / "journal.bin"
    entries = frames_of(file.read_bytes())

    @st.composite
    def tampered(draw: st.DrawFn) -> bytes:
        changed = [Entry(type(entry.record).FromString(entry.record.SerializeToString()), entry.attachment)
                   for entry in entries]  # fmt: skip
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.integers(0, len(changed) - 1))
            what = draw(st.sampled_from(["field", "field", "field", "drop", "double", "move", "attachment"]))
            if what == "field":
                paths = list(_fields(changed[place].record))
                (*holders, name), field = paths[draw(st.integers(0, len(paths) - 1))]
                holder: Any = changed[place].record
                for each in holders:
                    holder = getattr(holder, each)
                setattr(holder, name, draw(_value(field)))
            elif what == "attachment":
                changed[place].attachment = draw(st.binary(max_size=40))
            else:
                entry = changed[place] if what == "double" else changed.pop(place)
                if what != "drop" or not changed:
                    changed.insert(draw(st.integers(0, len(changed))), entry)
        return file_of(changed)

    def tamper(changed: bytes) -> None:
        file.write_bytes(changed)
        found = survey(folder, "run", thorough=True)
        if found.state is None:
            assert found.faults
            return
        try:
            run = Run(Journal(folder / "run"))
        except SubbatchError:
            return
        run.waits_for()
        run.journal.close()

    fuzz(tamper, tampered(), quick=100)


def test_the_run_in_these_files_is_whole(folder: Path) -> None:
    found = survey(folder, "run", thorough=True)
    assert found.faults == []
    assert found.state is not None
    assert (found.state.next_step, found.state.incarnation, found.state.closed) == (6, 2, True)
    assert run_to_pb(found.state.info).name == "run"
