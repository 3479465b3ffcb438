"""The dataset store: a folder with one memory-mapped Arrow file and a manifest.

`rows.arrow` is an Arrow IPC file of several record batches, so that a batch's token offsets fit 32 bits whatever the
size of the store. The rows of a source stand together, sources by name and rows in the order they had in the data;
hence a source is a (start, rows) range, which is all the sampler has to know. `shared.store_writer` writes stores.

Format 1 holds rows of one prompt and one answer; in format 2 a row's loss may stop and start again, which
conversations need.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.columns import numbers
from shared.errors import DataError
from shared.mapped_rows import ACCESS_BYTES, MappedRows
from shared.records import Row

ROWS_FILE = "rows.arrow"
MANIFEST_FILE = "manifest.json"
ROWS_SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        # The row's number in the data that was prepared, before sorting by source and dropping.
        pa.field("origin", pa.int64(), nullable=False),
    ]
)
MASKED_ROWS_SCHEMA = ROWS_SCHEMA.append(pa.field("mask_edges", pa.list_(pa.int32()), nullable=False))
# The columns of each format version that this release reads and writes.
SCHEMAS = {1: ROWS_SCHEMA, 2: MASKED_ROWS_SCHEMA}
_NO_EDGES = np.empty(0, dtype=np.int32)
Index = Sequence[int] | npt.NDArray[np.int64]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceInfo(_Record):
    """One source of a store; its `dropped` rows are not in it."""

    name: str = Field(min_length=1)
    rows: int = Field(ge=1)
    mean_tokens: float
    dropped: int = Field(ge=0)


class TokenizerInfo(_Record):
    """What made a store's token ids. The name is for people, the fingerprint decides."""

    name: str
    fingerprint: str
    eos_token_id: int
    pad_token_id: int | None


class Manifest(_Record):
    """What a store holds."""

    format_version: int = 1
    fingerprint: str
    prepared_from: str
    tokenizer: TokenizerInfo
    template: str
    max_length: int
    max_token_id: int
    rows: int
    rows_bytes: int
    sources: tuple[SourceInfo, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sources_make_the_store(self) -> Manifest:
        names = [source.name for source in self.sources]
        if names != sorted(set(names)):
            raise ValueError(f"sources aren't in the order of their names: {names}")
        if self.rows != (total := sum(source.rows for source in self.sources)):
            raise ValueError(f"rows is {self.rows}, the sources have {total}")
        return self


class Store:
    """An open store. Nothing is read before it is asked for, and little of it is kept in memory afterwards."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        batches: Sequence[pa.RecordBatch],
        mapped: MappedRows | None = None,
    ) -> None:
        self.path = path
        self._mapped = mapped
        self.manifest = manifest
        self.source_names = tuple(source.name for source in manifest.sources)
        self.source_rows = tuple(source.rows for source in manifest.sources)
        self._source_ends = np.cumsum(self.source_rows)
        self._batch_starts = [0, *np.cumsum([batch.num_rows for batch in batches]).tolist()]
        self._ids = [numbers(batch.column("input_ids").values) for batch in batches]
        self._offsets = [numbers(batch.column("input_ids").offsets) for batch in batches]
        self._num_prompt_tokens = [numbers(batch.column("num_prompt_tokens")) for batch in batches]
        self._origin = [numbers(batch.column("origin")) for batch in batches]
        masks = [batch.column("mask_edges") for batch in batches if "mask_edges" in batch.schema.names]
        self._mask_edges = [(numbers(mask.values), numbers(mask.offsets)) for mask in masks]

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Map a store; its rows stay on disk.

        Raises:
            DataError: no store there, one that is not whole, or one of another format version.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        mapped = _map_rows(path, manifest)
        # Every draw asks for the lengths of its rows, wherever they are in the store.
        mapped.prefetch(batch.column("input_ids").buffers()[1] for batch in mapped.batches)
        return cls(path, manifest, mapped.batches, mapped)

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def fingerprint(self) -> str:
        """The hash of the store's content: equal for equal rows, tokenizer, template and max_length anywhere."""
        return self.manifest.fingerprint

    def row(self, number: int) -> Row:
        """One row, read-only.

        Raises:
            DataError: number outside [0, len(store)), or a row that has been damaged on the disk.
        """
        if not 0 <= number < len(self):
            raise self._out_of_range(number)
        batch = bisect.bisect_right(self._batch_starts, number) - 1
        local = number - self._batch_starts[batch]
        ids = _entry(self._ids[batch], self._offsets[batch], local)
        edges = _entry(*self._mask_edges[batch], local) if self._mask_edges else _NO_EDGES
        self._account(3 * ACCESS_BYTES + (0 if ids is None else ids.nbytes))
        row = None
        if ids is not None and edges is not None:
            row = Row(ids, int(self._num_prompt_tokens[batch][local]), edges)
        if row is None or not row.is_sound(max_token_id=self.manifest.max_token_id):
            raise DataError(f"row {number} of store {self.path} has been damaged: copy the store again, or prepare it")
        return row

    def rows(self, index: Index) -> list[Row]:
        """The rows of an index [n], in its order.

        Raises:
            DataError: a number outside [0, len(store)).
        """
        return [self.row(number) for number in self._checked(index).tolist()]

    def sources_of(self, index: Index) -> npt.NDArray[np.int32]:
        """The source number of each row of an index [n], int32 [n]: positions in `source_names`.

        Raises:
            DataError: a number outside [0, len(store)).
        """
        return np.searchsorted(self._source_ends, self._checked(index), side="right").astype(np.int32)

    def lengths(self, index: Index) -> npt.NDArray[np.int32]:
        """How many tokens, prompt and answer, each row of an index [n] has, int32 [n].

        Raises:
            DataError: a number outside [0, len(store)).
        """
        lengths = np.empty(len(index), dtype=np.int32)
        for batch, mine, local in self._by_batch(index):
            lengths[mine] = self._offsets[batch][local + 1] - self._offsets[batch][local]
        return lengths

    def origins(self, index: Index) -> npt.NDArray[np.int64]:
        """The number that each row of an index [n] had in the prepared data, int64 [n].

        Raises:
            DataError: a number outside [0, len(store)).
        """
        origins = np.empty(len(index), dtype=np.int64)
        for batch, mine, local in self._by_batch(index):
            origins[mine] = self._origin[batch][local]
        return origins

    def _by_batch(self, index: Index) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Each record batch that the index touches, the positions of its part of the index, and row numbers in it."""
        numbers = self._checked(index)
        order = np.argsort(numbers, kind="stable")
        batches = np.searchsorted(self._batch_starts, numbers[order], side="right") - 1
        touched, starts = np.unique(batches, return_index=True)
        for batch, mine in zip(touched.tolist(), np.split(order, starts[1:]), strict=False):
            yield batch, mine, numbers[mine] - self._batch_starts[batch]
            # However many rows of a batch are asked for, not more than its column is read.
            self._account(min(ACCESS_BYTES * len(mine), self._offsets[batch].nbytes + ACCESS_BYTES))

    def _account(self, num_bytes: int) -> None:
        if self._mapped is not None:
            self._mapped.account(num_bytes)

    def _checked(self, index: Index) -> npt.NDArray[np.int64]:
        numbers = np.asarray(index, dtype=np.int64)
        outside = (numbers < 0) | (numbers >= len(self))
        if outside.any():
            raise self._out_of_range(int(numbers[outside][0]))
        return numbers

    def _out_of_range(self, number: int) -> DataError:
        return DataError(f"row {number} is not in store {self.path}: it has {len(self)} rows, 0 to {len(self) - 1}")


def _entry(values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int32], local: int) -> npt.NDArray[np.int32] | None:
    """A copy of one entry of a column of lists, read-only; None where the offsets don't make sense.

    A view would bring its pages back into memory whenever it is looked at.
    """
    start, end = offsets[local : local + 2].tolist()
    entry = values[start:end].copy()
    entry.flags.writeable = False
    return entry if 0 <= start <= end and len(entry) == end - start else None


def _read_manifest(path: Path) -> Manifest:
    again = f"make it with `selector-server prepare SOURCE --tokenizer TOKENIZER --out {path}`"
    if not path.is_dir():
        raise DataError(f"store {path} {'is a file, not a folder' if path.exists() else 'does not exist'}: {again}")
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise DataError(f"{path} is not a store, it has no {MANIFEST_FILE}: give the folder of a store, or {again}")
    try:
        text = file.read_bytes()
        version = json.loads(text)["format_version"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file} is not the manifest of a store: give the folder of a store, or {again}") from None
    if not isinstance(version, int) or version not in SCHEMAS:
        raise DataError(
            f"store {path} has format version {version}, this release reads {' and '.join(map(str, SCHEMAS))}: "
            "prepare the data again, or use the release that made the store"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise DataError(f"{file} is damaged, {where}: {first['msg']}; prepare the data again") from None


def _map_rows(path: Path, manifest: Manifest) -> MappedRows:
    file = path / ROWS_FILE
    size = file.stat().st_size if file.is_file() else 0
    if size != manifest.rows_bytes:
        raise DataError(
            f"store {path} is not whole, {ROWS_FILE} has {size} bytes and its manifest says {manifest.rows_bytes}: "
            "prepare the data again, or copy the store again"
        )
    mapped = MappedRows(file, SCHEMAS[manifest.format_version])
    if (rows := sum(batch.num_rows for batch in mapped.batches)) != manifest.rows:
        raise DataError(f"{file} has {rows} rows, its manifest says {manifest.rows}: prepare the data again")
    return mapped
