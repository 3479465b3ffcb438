"""The store: what is written is what is read, as views of the file, and nothing that isn't a whole store opens.

Stores are written from plain lists, which stay the truth that every answer is compared with.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shared.dataset import (
    MANIFEST_FILE,
    MASKED_ROWS_SCHEMA,
    ROWS_FILE,
    ROWS_SCHEMA,
    Manifest,
    SourceInfo,
    Store,
    TokenizerInfo,
)
from shared.errors import DataError
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig
from shared.store_writer import write_store

# (token ids, prompt tokens, origin) in store order: 4 rows of source a, 1 of b, 3 of c.
ROWS = [
    ([5, 6, 7], 2, 1),
    ([5, 9], 1, 4),
    ([1, 2, 3, 4, 5, 6], 4, 5),
    ([70000, 8], 1, 9),
    ([3, 3, 3], 1, 0),
    ([4, 4], 1, 2),
    ([2, 7, 1, 8, 2, 8], 3, 3),
    ([6, 2], 1, 7),
]
SOURCES = (("a", 4), ("b", 1), ("c", 3))
SOURCE_OF = [0, 0, 0, 0, 1, 2, 2, 2]
TOKENIZER = TokenizerInfo(name="tiny", fingerprint="f" * 64, eos_token_id=0, pad_token_id=None)


def batches(rows: list[tuple[list[int], int, int]], cuts: tuple[int, ...]) -> Iterator[pa.RecordBatch]:
    """Record batches of as many rows as `cuts` says."""
    start = 0
    for cut in cuts:
        ids, prompts, origins = zip(*rows[start : start + cut], strict=True)
        columns = [pa.array(ids, ROWS_SCHEMA.types[0]), pa.array(prompts, pa.int32()), pa.array(origins, pa.int64())]
        yield pa.record_batch(columns, schema=ROWS_SCHEMA)
        start += cut


def write(folder: Path, *, cuts: tuple[int, ...] = (3, 2, 3), **changes: Any) -> Manifest:
    """Write ROWS, or what `changes` says instead."""
    settings: dict[str, Any] = {
        "rows": ROWS,
        "sources": SOURCES,
        "tokenizer": TOKENIZER,
        "template": "alpaca",
        "max_length": 6,
        "prepared_from": "a list",
    } | changes
    rows = settings.pop("rows")
    settings["sources"] = [SourceInfo(name=n, rows=r, mean_tokens=1.0, dropped=0) for n, r in settings["sources"]]
    return write_store(folder, batches(rows, cuts), **settings)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write(tmp_path / "store")
    return Store.open(tmp_path / "store")


def test_every_row_reads_back_as_it_was_written(store: Store) -> None:
    assert len(store) == len(ROWS)
    read = [(row.input_ids.tolist(), row.num_prompt_tokens) for row in store.rows(range(len(ROWS)))]
    assert read == [(ids, prompt) for ids, prompt, _ in ROWS]
    assert [store.row(number).input_ids.tolist() for number in range(len(ROWS))] == [ids for ids, _, _ in ROWS]


def test_an_index_is_answered_in_its_own_order_with_its_repeats(store: Store) -> None:
    index = np.array([7, 0, 2, 2, 4, 3, 5, 6, 1, 7])
    assert [row.input_ids.tolist() for row in store.rows(index)] == [ROWS[i][0] for i in index]
    assert store.lengths(index).tolist() == [len(ROWS[i][0]) for i in index]
    assert store.origins(index).tolist() == [ROWS[i][2] for i in index]
    assert store.sources_of(index).tolist() == [SOURCE_OF[i] for i in index]
    dtypes = [store.lengths(index).dtype, store.origins(index).dtype, store.sources_of(index).dtype]
    assert dtypes == [np.int32, np.int64, np.int32]


def test_an_empty_index_gives_empty_answers(store: Store) -> None:
    assert store.rows([]) == []
    assert [store.lengths([]).size, store.origins([]).size, store.sources_of([]).size] == [0, 0, 0]


def test_rows_are_read_only(store: Store) -> None:
    first = store.row(2).input_ids
    assert first.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


# Where the loss of each of ROWS stops and starts again.
EDGES: list[list[int]] = [[], [], [5], [], [2], [], [4, 5], []]


def write_masked(folder: Path, *, cuts: tuple[int, ...] = (3, 2, 3), edges: list[list[int]] = EDGES) -> Manifest:
    """ROWS as conversations, with their mask edges."""
    ends = np.cumsum(cuts).tolist()
    columns = [pa.array(edges[end - cut : end], pa.list_(pa.int32())) for end, cut in zip(ends, cuts, strict=True)]
    masked = [
        pa.record_batch([*batch.columns, column], schema=MASKED_ROWS_SCHEMA)
        for batch, column in zip(batches(ROWS, cuts), columns, strict=True)
    ]
    sources = [SourceInfo(name=name, rows=rows, mean_tokens=1.0, dropped=0) for name, rows in SOURCES]
    return write_store(
        folder,
        masked,
        sources=sources,
        tokenizer=TOKENIZER,
        template="alpaca",
        max_length=6,
        prepared_from="a list",
        format_version=2,
    )


def test_conversations_come_back_with_their_masks_and_the_fingerprint_sees_them(tmp_path: Path) -> None:
    manifest = write_masked(tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert [row.mask_edges.tolist() for row in store.rows(range(8))] == EDGES
    assert [row.input_ids.tolist() for row in store.rows(range(8))] == [ids for ids, _, _ in ROWS]
    assert store.row(6).loss_mask().tolist() == [False, False, False, True, False, True]
    assert write_masked(tmp_path / "cut", cuts=(8,)).fingerprint == manifest.fingerprint
    others = [[*EDGES[:6], [4], []], [[], [], [], [], *EDGES[4:]], [[] for _ in ROWS]]
    found = {write_masked(tmp_path / str(n), edges=edges).fingerprint for n, edges in enumerate(others)}
    assert len(found | {manifest.fingerprint, fingerprint_by_hand(ROWS)}) == 5


@pytest.mark.parametrize("edges", [[6], [3], [5, 5], [5, 4], [-1]])
def test_a_mask_that_does_not_fit_its_row_is_damage_of_that_row_alone(tmp_path: Path, edges: list[int]) -> None:
    write_masked(tmp_path / "store", edges=[*EDGES[:6], edges, []])
    store = Store.open(tmp_path / "store")
    with pytest.raises(DataError, match=r"row 6 of store .* has been damaged"):
        store.rows([5, 6])
    assert store.row(2).mask_edges.tolist() == [5]


def test_sources_are_the_ranges_that_the_sampler_draws_from(store: Store) -> None:
    assert store.source_names == ("a", "b", "c")
    assert store.source_rows == (4, 1, 3)
    selection = SelectionConfig(large_batch_size=8, sub_batch_size=1)
    drawn = draw_large_batch(store.source_rows, selection, seed=1, step=0)
    assert sorted(store.sources_of(drawn).tolist()) == SOURCE_OF


@pytest.mark.parametrize("number", [-1, len(ROWS), 10**12])
def test_a_row_that_is_not_there_is_an_error_with_both_numbers(store: Store, number: int) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: store.row(number),
        lambda: store.rows([0, number]),
        lambda: store.lengths([number]),
        lambda: store.origins([number]),
        lambda: store.sources_of(np.array([0, number])),
    ]
    for call in calls:
        with pytest.raises(DataError, match=rf"row {number} is not in store .*: it has 8 rows, 0 to 7$"):
            call()


def fingerprint_by_hand(rows: list[tuple[list[int], int, int]]) -> str:
    """The fingerprint as its definition says: plain loops, no arrays."""

    def digest(numbers: list[int]) -> str:
        return hashlib.sha256(struct.pack(f"<{len(numbers)}i", *numbers)).hexdigest()

    content = {
        "columns": {
            "num_tokens": digest([len(ids) for ids, _, _ in rows]),
            "num_prompt_tokens": digest([prompt for _, prompt, _ in rows]),
            "input_ids": digest([token for ids, _, _ in rows for token in ids]),
        },
        "sources": [["a", 4], ["b", 1], ["c", 3]],
        "tokenizer": "f" * 64,
        "template": "alpaca",
        "max_length": 6,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("cuts", [(8,), (1,) * 8, (3, 2, 3), (7, 1)])
def test_the_fingerprint_is_the_hash_of_the_content_however_rows_are_batched(
    tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    manifest = write(tmp_path / "store", cuts=cuts)
    assert manifest.fingerprint == fingerprint_by_hand(ROWS)
    assert Store.open(tmp_path / "store").fingerprint == manifest.fingerprint
    assert manifest.max_token_id == 70000


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [([5, 6, 8], 2, 1), *ROWS[1:]]},
        {"rows": [([5, 6, 7], 1, 1), *ROWS[1:]]},
        {"rows": [([5, 6], 2, 1), ([7, 5, 9], 1, 4), *ROWS[2:]]},
        {"sources": (("a", 3), ("b", 2), ("c", 3))},
        {"sources": (("a", 4), ("b2", 1), ("c", 3))},
        {"tokenizer": TOKENIZER.model_copy(update={"fingerprint": "e" * 64})},
        {"template": "other"},
        {"max_length": 7},
    ],
)
def test_any_change_of_content_changes_the_fingerprint(tmp_path: Path, change: dict[str, Any]) -> None:
    assert write(tmp_path / "store", **change).fingerprint != fingerprint_by_hand(ROWS)


def test_names_for_people_and_origins_leave_the_fingerprint_alone(tmp_path: Path) -> None:
    moved = [(ids, prompt, origin + 100) for ids, prompt, origin in ROWS]
    renamed = TOKENIZER.model_copy(update={"name": "another path"})
    manifest = write(tmp_path / "store", rows=moved, tokenizer=renamed, prepared_from="elsewhere")
    assert manifest.fingerprint == fingerprint_by_hand(ROWS)


def edit_manifest(folder: Path, **changes: Any) -> None:
    file = folder / MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut_rows(folder: Path) -> None:
    data = (folder / ROWS_FILE).read_bytes()
    (folder / ROWS_FILE).write_bytes(data[:-100])


def zero_rows(folder: Path) -> None:
    (folder / ROWS_FILE).write_bytes(bytes((folder / ROWS_FILE).stat().st_size))


def other_columns(folder: Path) -> None:
    with pa.ipc.new_file(str(folder / ROWS_FILE), pa.schema({"x": pa.int8()})):
        pass
    edit_manifest(folder, rows_bytes=(folder / ROWS_FILE).stat().st_size)


def one_row_more(folder: Path) -> None:
    sources = json.loads((folder / MANIFEST_FILE).read_text())["sources"]
    edit_manifest(folder, rows=9, sources=[*sources, {"name": "d", "rows": 1, "mean_tokens": 1.0, "dropped": 0}])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / MANIFEST_FILE).unlink(), r"is not a store, it has no manifest.json: .*prepare SOURCE"),
        (lambda f: (f / MANIFEST_FILE).write_text("{"), r"is not the manifest of a store: .*prepare SOURCE"),
        (lambda f: (f / MANIFEST_FILE).write_text("[1]"), r"is not the manifest of a store: .*prepare SOURCE"),
        (lambda f: (f / MANIFEST_FILE).write_text("{}"), r"is not the manifest of a store: .*prepare SOURCE"),
        (lambda f: edit_manifest(f, format_version=3), r"format version 3, this release reads 1 and 2: prepare"),
        (lambda f: edit_manifest(f, rows="many"), r"is damaged, rows: .*prepare the data again"),
        (lambda f: edit_manifest(f, rows=9), r"is damaged, .*rows is 9, the sources have 8; prepare"),
        (lambda f: edit_manifest(f, sources=[]), r"is damaged, sources: .*prepare"),
        (lambda f: edit_manifest(f, added=1), r"is damaged, added: .*prepare"),
        (lambda f: (f / ROWS_FILE).unlink(), r"rows.arrow has 0 bytes and its manifest says \d+: prepare"),
        (cut_rows, r"rows.arrow has \d+ bytes and its manifest says \d+: prepare"),
        (zero_rows, r"is not an Arrow file that can be read: .*prepare the data again"),
        (other_columns, r"has the columns x int8, a store has input_ids .*: prepare the data again"),
        (lambda f: edit_manifest(f, format_version=2), r"origin int64, a store has .*, mask_edges list<.*: prepare"),
        (one_row_more, r"has 8 rows, its manifest says 9: prepare the data again"),
    ],
)
def test_a_store_that_is_not_whole_is_one_clear_line(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    write(tmp_path / "store")
    damage(tmp_path / "store")
    with pytest.raises(DataError, match=message) as caught:
        Store.open(tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "store") in str(caught.value)


def test_a_column_whose_name_is_no_text_is_damage(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "store" / ROWS_FILE
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data.replace(b"num_prompt_tokens", b"\x80um_prompt_tokens"))
    with pytest.raises(DataError, match="is not an Arrow file that can be read"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize(("was", "becomes"), [(70000, 70001), (70000, -1)])
def test_a_token_that_no_model_of_the_store_has_is_damage_of_its_row_alone(
    store: Store, tmp_path: Path, was: int, becomes: int
) -> None:
    file = tmp_path / "store" / ROWS_FILE
    data = file.read_bytes()
    assert data.count(struct.pack("<i", was)) == 1
    file.unlink()
    file.write_bytes(data.replace(struct.pack("<i", was), struct.pack("<i", becomes)))
    damaged = Store.open(tmp_path / "store")
    with pytest.raises(DataError, match=r"row 3 of store .* has been damaged"):
        damaged.row(3)
    assert damaged.row(2).input_ids.tolist() == store.row(2).input_ids.tolist()


def test_no_store_at_all_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"store .*absent does not exist: make it with `selector-server prepare .*absent`"
    ):
        Store.open(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"is a file, not a folder: make it with"):
        Store.open(tmp_path / "file")


def test_a_writer_that_dies_half_way_leaves_nothing_that_opens(tmp_path: Path) -> None:
    def dying() -> Iterator[pa.RecordBatch]:
        yield from batches(ROWS, (5,))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(
            tmp_path / "store",
            dying(),
            sources=(),
            tokenizer=TOKENIZER,
            template="alpaca",
            max_length=6,
            prepared_from="a list",
        )
    with pytest.raises(DataError, match=r"is not a store, it has no manifest\.json"):
        Store.open(tmp_path / "store")


def test_sources_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="order of their names"):
        write(tmp_path / "store", sources=(("b", 4), ("a", 1), ("c", 3)))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_opening_maps_the_rows_without_reading_them(tmp_path: Path) -> None:
    row = (list(range(2**20)), 1, 0)
    write(tmp_path / "store", rows=[row] * 16, cuts=(1,) * 16, sources=(("a", 16),))
    assert (tmp_path / "store" / ROWS_FILE).stat().st_size > 64 * 2**20

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    store = Store.open(tmp_path / "store")
    opened = resident() - before
    assert store.row(15).input_ids.sum(dtype=np.int64) == sum(range(2**20))
    assert opened < 4 * 2**20 <= resident() - before


def test_reading_a_store_imports_neither_torch_nor_pandas(store: Store) -> None:
    code = (
        "import sys; from shared.dataset import Store; store = Store.open(sys.argv[1]); store.rows([0, 7]);"
        "store.lengths([0, 7]); sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, str(store.path)], check=True)
