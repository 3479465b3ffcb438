"""A selection as one Arrow record batch, and back, with every field checked on the way in.

Columns: index int64, source int32, weight float32, gain float32, num_tokens int32, none of them null. The schema's
metadata carries what the rows share.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from shared.columns import numbers
from shared.errors import WireError
from shared.plain_batch import WIRE_VERSION, read_batch, write_batch
from shared.records import Selection

__all__ = ["WIRE_VERSION", "decode_selection", "encode_selection", "same_selection"]

_COLUMNS = {
    "index": pa.int64(),
    "source": pa.int32(),
    "weight": pa.float32(),
    "gain": pa.float32(),
    "num_tokens": pa.int32(),
}
_SHARED = ("run", "step", "weights_version", "large_batch_size", "fallback", "wire_version")


def encode_selection(selection: Selection) -> bytes:
    """An Arrow IPC stream holding one record batch."""
    shared = {
        "run": selection.run,
        "step": str(selection.step),
        "weights_version": str(selection.weights_version),
        "large_batch_size": str(selection.large_batch_size),
        "fallback": str(int(selection.fallback)),
        "wire_version": str(WIRE_VERSION),
    }
    if selection.skipped.size:
        shared["skipped"] = " ".join(map(str, selection.skipped))
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()], metadata=shared)
    columns = [pa.array(getattr(selection, name), type=kind) for name, kind in _COLUMNS.items()]
    return write_batch(pa.record_batch(columns, schema=schema))


def decode_selection(payload: bytes) -> Selection:
    """The selection in an Arrow IPC stream.

    Raises:
        WireError: not one record batch of the columns above, another wire version, a missing or malformed shared
            field, nulls, no rows or more than the large batch, negative row numbers, or weights that aren't finite and
            non-negative.
    """
    batch, shared = read_batch(payload, _COLUMNS, what="a selection")
    missing = [key for key in _SHARED if key not in shared]
    if missing:
        raise WireError(f"selection lacks {', '.join(missing)}")
    columns = {name: numbers(batch.column(name)) for name in _COLUMNS}
    try:
        selection = Selection(
            run=shared["run"],
            step=int(shared["step"]),
            weights_version=int(shared["weights_version"]),
            large_batch_size=int(shared["large_batch_size"]),
            fallback=bool(int(shared["fallback"])),
            skipped=np.array(shared.get("skipped", "").split(), dtype=np.int64),
            **columns,
        )
    except (ValueError, OverflowError) as error:
        raise WireError(f"selection has a malformed field: {error}") from None
    if selection.step < 0 or selection.weights_version < 0 or selection.large_batch_size < batch.num_rows:
        raise WireError(
            f"selection of step {selection.step} with weights version {selection.weights_version} has "
            f"{batch.num_rows} rows of a large batch of {selection.large_batch_size}"
        )
    if (selection.skipped < 0).any() or batch.num_rows + len(selection.skipped) > selection.large_batch_size:
        raise WireError(
            f"selection of step {selection.step} has {batch.num_rows} rows and skipped {len(selection.skipped)} of a "
            f"large batch of {selection.large_batch_size}"
        )
    weights_ok = np.isfinite(selection.weight).all() and (selection.weight >= 0).all()
    if batch.num_rows == 0 or (selection.index < 0).any() or (selection.num_tokens < 1).any() or not weights_ok:
        raise WireError(f"selection of step {selection.step} has no rows, negative row numbers, or bad weights")
    return selection


def same_selection(left: Selection, right: Selection) -> bool:
    """Whether two selections are equal to the last bit."""
    return all(
        (a.dtype, a.tobytes()) == (b.dtype, b.tobytes()) if isinstance(a, np.ndarray) else a == b
        for a, b in zip(dataclasses.astuple(left), dataclasses.astuple(right), strict=True)
    )
