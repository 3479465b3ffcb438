"""Arrow columns of numbers as NumPy arrays, where they lie.

Arrow's own `to_numpy` imports pandas, wherever that is installed, even if nothing is converted by it: that takes a
second and 50 MB, in the middle of a trainer's first step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def numbers(column: pa.Array) -> npt.NDArray[Any]:
    """A column of integers or floats without nulls, not copied and not writable."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    _, values = column.buffers()
    if values is None:  # as Arrow may have it where there are no rows
        return np.empty(0, dtype)
    # The buffer may be longer than what it holds, by any number of bytes.
    return np.frombuffer(values, dtype, count=column.offset + len(column))[column.offset :]
