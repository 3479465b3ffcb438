"""Tokenised rows on the wire: any rows arrive as they were sent, and what isn't rows is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.dataset import Store
from shared.errors import WireError
from shared.records import Row
from shared.rows_wire import decode_rows, encode_rows, row_bytes
from tests.support import World

fixed = settings(deadline=None, derandomize=True)
MOST = 99


def a_row(*tokens: int, prompt: int = 1, edges: tuple[int, ...] = ()) -> Row:
    return Row(np.array(tokens, dtype=np.int32), prompt, np.array(edges, dtype=np.int32))


def sent(*rows: Row, index: list[int] | None = None) -> bytes:
    return encode_rows(np.array(range(len(rows)) if index is None else index, dtype=np.int64), rows)


def assert_equal(left: Row, right: Row) -> None:
    for field in dataclasses.fields(Row):
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        np.testing.assert_array_equal(mine, theirs)
        assert np.asarray(mine).dtype.kind == np.asarray(theirs).dtype.kind


@fixed
@given(
    st.lists(
        st.tuples(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9)), max_size=9
    )
)
def test_any_rows_arrive_as_they_were_sent(rows: list[tuple[int, list[int]]]) -> None:
    index = np.array([number for number, _ in rows], dtype=np.int64)
    made = [a_row(*tokens, prompt=0, edges=tuple(range(1, len(tokens), 2))) for _, tokens in rows]
    got_index, got = decode_rows(encode_rows(index, made), max_token_id=2**31 - 1)
    assert got_index.tolist() == index.tolist()
    for mine, theirs in zip(made, got, strict=True):
        assert_equal(mine, theirs)


def test_rows_of_a_store_arrive_whole_in_about_the_bytes_that_were_foreseen(world: World) -> None:
    store = Store.open(world.store)
    index = np.arange(len(store) - 1, -1, -1)
    rows = store.rows(index)
    payload = encode_rows(index, rows)
    got_index, got = decode_rows(payload, max_token_id=store.manifest.max_token_id)
    assert got_index.tolist() == index.tolist()
    for mine, theirs in zip(rows, got, strict=True):
        assert_equal(mine, theirs)
    assert 0 <= len(payload) - sum(map(row_bytes, rows)) < 2000


def test_a_row_that_arrived_can_not_be_written_to() -> None:
    _, (row,) = decode_rows(sent(a_row(1, 2, 3)), max_token_id=MOST)
    with pytest.raises(ValueError, match="read-only"):
        row.input_ids[0] = 9


def forged(column: str, array: pa.Array) -> bytes:
    with pa.ipc.open_stream(sent(a_row(1, 2, 3), a_row(4, 5))) as reader:
        (whole,) = list(reader)
    columns = dict(zip(whole.schema.names, whole.columns, strict=True)) | {column: array}
    schema = pa.schema([(name, each.type) for name, each in columns.items()], metadata=whole.schema.metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    return bytes(sink.getvalue())


def token_lists(*rows: list[int]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.field("item", pa.int32(), nullable=False)))


def compressed() -> bytes:
    with pa.ipc.open_stream(sent(a_row(*[1] * 5000))) as reader:
        (whole,) = list(reader)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, whole.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(whole)
    return bytes(sink.getvalue())


REFUSED = {
    "nothing": b"",
    "garbage": b"\x80\x04\x95 not arrow at all " * 20,
    "compressed rows": compressed(),
    "a negative token": sent(a_row(1, -2)),
    "a token that the store doesn't have": sent(a_row(1, MOST + 1)),
    "no answer": sent(a_row(1, 2, prompt=2)),
    "a prompt of negative length": sent(a_row(1, 2, prompt=-1)),
    "a mask whose edges don't rise": sent(a_row(1, 2, 3, 4, 5, edges=(3, 3))),
    "a mask that begins in the prompt": sent(a_row(1, 2, 3, 4, 5, prompt=2, edges=(2, 4))),
    "a mask beyond the row": sent(a_row(1, 2, 3, edges=(2, 3))),
    "no tokens": sent(a_row(prompt=0)),
    "a negative row number": sent(a_row(1, 2), index=[-1]),
    "a null": forged("num_prompt_tokens", pa.array([1, None], pa.int32())),
    "a column more": forged("labels", pa.array([1, 1], pa.int32())),
    "wider tokens": forged("input_ids", pa.array([[1, 2, 3], [4, 5]], pa.list_(pa.int64()))),
}


def test_the_forger_of_these_tests_can_make_rows_that_are_accepted() -> None:
    index, rows = decode_rows(forged("input_ids", token_lists([1, 2, 3], [4, 5])), max_token_id=MOST)
    assert (index.tolist(), [row.input_ids.tolist() for row in rows]) == ([0, 1], [[1, 2, 3], [4, 5]])


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_store_holds_is_refused(what: str) -> None:
    with pytest.raises(WireError):
        decode_rows(REFUSED[what], max_token_id=MOST)


def test_a_flipped_bit_raises_nothing_but_a_wire_error() -> None:
    payload = sent(a_row(1, 2, 3), a_row(4, 5))
    for position in range(len(payload)):
        for bit in range(8):
            flipped = bytearray(payload)
            flipped[position] ^= 1 << bit
            try:
                _, rows = decode_rows(bytes(flipped), max_token_id=MOST)
            except WireError:
                continue
            assert all(0 <= row.input_ids.min() and row.input_ids.max() <= MOST for row in rows)
