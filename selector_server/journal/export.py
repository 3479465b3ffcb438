"""The selections of journalled runs as one Parquet file: a row for every row that was picked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from selector_server.journal.survey import open_run
from shared.errors import JournalError
from shared.wire import decode_selection

SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("step", pa.int64()),
        ("weights_version", pa.int64()),
        ("fallback", pa.bool_()),
        ("index", pa.int64()),
        ("source", pa.int32()),
        ("weight", pa.float32()),
        ("gain", pa.float32()),
        ("num_tokens", pa.int32()),
    ]
)
_ROWS_PER_GROUP = 1 << 16


def export(folder: Path, names: Sequence[str], out: Path) -> int:
    """Write the selections of runs that stand, by run and step, in pick order.

    Args:
        folder: Of the journals.
        names: The runs.
        out: The file; it appears when it is whole, in place of an older one.

    Returns:
        How many rows were written.

    Raises:
        RunNotFoundError, JournalError: a run that isn't there or isn't whole, or a file that can't be written.
    """
    part = out.with_name(out.name + ".part")
    num_rows = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
            tables: list[pa.Table] = []
            waiting = 0
            for name in names:
                state = open_run(folder, name)
                for step in (step for step in range(state.info.timing.num_steps) if state.has_selection(step)):
                    table = _table(name, state.selection(step).arrow)
                    tables.append(table)
                    waiting, num_rows = waiting + len(table), num_rows + len(table)
                    if waiting >= _ROWS_PER_GROUP:
                        writer.write_table(pa.concat_tables(tables))
                        tables, waiting = [], 0
            if tables:
                writer.write_table(pa.concat_tables(tables))
        os.replace(part, out)
    except OSError as error:
        raise JournalError(f"{out} can't be written: {error}: choose another --out") from None
    finally:
        part.unlink(missing_ok=True)
    return num_rows


def _table(name: str, arrow: bytes) -> pa.Table:
    selection = decode_selection(arrow)
    r = len(selection.index)
    shared = {
        "run": [name] * r,
        "step": [selection.step] * r,
        "weights_version": [selection.weights_version] * r,
        "fallback": [selection.fallback] * r,
    }
    own = {key: getattr(selection, key) for key in ("index", "source", "weight", "gain", "num_tokens")}
    return pa.table(shared | own, schema=SCHEMA)
