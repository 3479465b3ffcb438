"""A store on disk, its manifest and its Arrow file: rows that can be trained on, or a DataError."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from shared.dataset import MANIFEST_FILE, MASKED_ROWS_SCHEMA, ROWS_FILE, ROWS_SCHEMA, SourceInfo, Store, TokenizerInfo
from shared.errors import DataError
from shared.store_writer import write_store
from tests.fuzz.budget import fuzz
from tests.fuzz.damage import damaged

NUM_ROWS = 12


def a_store(folder: Path) -> None:
    rows = [[(row * 5 + at) % 50 for at in range(2 + row)] for row in range(NUM_ROWS)]
    batches = [
        pa.record_batch(
            [
                pa.array(rows[start : start + 4], ROWS_SCHEMA.types[0]),
                pa.array([1] * 4, pa.int32()),
                pa.array(range(start, start + 4), pa.int64()),
                pa.array(
                    [[2, 3][: row % 3] if row > 2 else [] for row in range(start, start + 4)], ROWS_SCHEMA.types[0]
                ),
            ],
            schema=MASKED_ROWS_SCHEMA,
        )
        for start in range(0, NUM_ROWS, 4)
    ]
    write_store(
        folder,
        batches,
        sources=[SourceInfo(name=name, rows=6, mean_tokens=1.0, dropped=0) for name in "ab"],
        tokenizer=TokenizerInfo(name="tiny", fingerprint="f" * 64, eos_token_id=0, pad_token_id=None),
        template="alpaca",
        max_length=20,
        prepared_from="a list",
        format_version=2,
    )


def use(folder: Path) -> None:
    """Open a store and read all of it; rows must be such that a model can be trained on them."""
    try:
        store = Store.open(folder)
        numbers = np.arange(len(store)) if len(store) < 1000 else np.array([0, len(store) - 1])
        rows = store.rows(numbers)
        lengths = store.lengths(numbers)
        store.origins(numbers)
        sources = store.sources_of(numbers)
    except DataError:
        return
    assert [len(row.input_ids) for row in rows] == lengths.tolist()
    assert (sources < len(store.source_names)).all()
    for row in rows:
        assert 0 <= row.num_prompt_tokens < len(row.input_ids)
        assert row.loss_mask()[row.num_prompt_tokens]
        assert 0 <= row.input_ids.min() <= row.input_ids.max() <= store.manifest.max_token_id


def test_a_damaged_arrow_file_gives_rows_to_train_on_or_an_error(tmp_path: Path) -> None:
    a_store(tmp_path / "store")
    file, manifest_file = tmp_path / "store" / ROWS_FILE, tmp_path / "store" / MANIFEST_FILE
    data, manifest = file.read_bytes(), json.loads(manifest_file.read_text())

    def damage(changed: bytes) -> None:
        # A new file each time: the old one is still mapped by whoever has it open.
        file.unlink()
        file.write_bytes(changed)
        manifest_file.write_text(json.dumps(manifest | {"rows_bytes": len(changed)}))
        use(tmp_path / "store")

    fuzz(damage, st.one_of(damaged(data), st.binary(max_size=300)), quick=300)


def test_a_damaged_manifest_gives_rows_to_train_on_or_an_error(tmp_path: Path) -> None:
    a_store(tmp_path / "store")
    file = tmp_path / "store" / MANIFEST_FILE
    data = file.read_bytes()
    manifest = json.loads(data)

    def damage(changed: bytes) -> None:
        file.write_bytes(changed)
        use(tmp_path / "store")

    values = st.one_of(
        st.sampled_from([None, 0, 1, -1, 2**31, 2**63, 1e308, "", "x", [], {}, True, "9" * 5000]), st.floats()
    )
    replaced = st.builds(
        lambda key, value: json.dumps(manifest | {key: value}).encode(), st.sampled_from([*manifest, "extra"]), values
    )
    fuzz(damage, st.one_of(damaged(data), replaced, st.binary(max_size=300)), quick=300)
