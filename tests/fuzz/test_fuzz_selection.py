"""The Arrow stream of a selection, as a trainer or a reader of journals gets it: a selection, or a WireError."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from shared.errors import WireError
from shared.records import Selection
from shared.wire import decode_selection, encode_selection
from tests.fuzz.budget import fuzz
from tests.fuzz.damage import damaged


def a_selection(rows: int, skipped: int) -> Selection:
    numbers = np.arange(rows)
    return Selection(
        run="phi2-a",
        step=40,
        weights_version=39,
        large_batch_size=rows + skipped,
        index=numbers * 7,
        source=(numbers % 14).astype(np.int32),
        weight=np.ones(rows, dtype=np.float32),
        gain=np.linspace(9, 0, rows, dtype=np.float32),
        num_tokens=(1 + numbers).astype(np.int32),
        skipped=numbers[:skipped] * 7 + 1,
    )


def written(schema: pa.Schema, batches: list[pa.RecordBatch], compression: str | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def foreign() -> st.SearchStrategy[bytes]:
    """Whole Arrow streams of anything: other columns, nested or dictionaries, compressed, many batches."""
    with pa.ipc.open_stream(encode_selection(a_selection(8, 0))) as reader:
        (own,) = list(reader)
    zeros = pa.array(np.zeros(1 << 24))  # 128 MiB, of which compression leaves next to nothing
    words = pa.array(["a", "b"] * 100).dictionary_encode()
    lists = pa.array([[1, 2], [3]] * 100, pa.list_(pa.int32()))
    others = [
        pa.record_batch([array], names=["index"], metadata=own.schema.metadata) for array in (zeros, words, lists)
    ]
    small = [own, *others[1:]]
    whole = [written(b.schema, [b] * n, c) for b in small for n in (0, 1, 3) for c in (None, "lz4", "zstd")]
    return st.sampled_from([*whole, written(others[0].schema, others[:1], "zstd")])


def test_bytes_are_a_whole_selection_or_refused() -> None:
    def decode(payload: bytes) -> None:
        try:
            selection = decode_selection(payload)
        except WireError:
            return
        rows = len(selection.index)
        assert 0 < rows + len(selection.skipped) <= selection.large_batch_size
        columns = (selection.index, selection.source, selection.weight, selection.gain, selection.num_tokens)
        assert {len(column) for column in columns} == {rows}
        assert np.isfinite(selection.weight).all()
        assert min(selection.step, selection.weights_version) >= 0
        # What is accepted can be told to others, who accept it too.
        again = decode_selection(encode_selection(selection))
        assert (again.run, again.step) == (selection.run, selection.step)

    bases = [encode_selection(a_selection(rows, skipped)) for rows, skipped in ((1, 0), (8, 2), (64, 0))]
    fuzz(
        decode,
        st.one_of(*map(damaged, bases), foreign(), foreign().flatmap(damaged), st.binary(max_size=200)),
        quick=300,
    )
