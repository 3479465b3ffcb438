"""What a selection was picked from, as the journal keeps it: with this and the run's settings the pick can be repeated.

One safetensors payload: rows, what scoring found of them, and the shape that the probes had. Scores are kept in float32
where that loses nothing, which is so for the sketches, nearly all of the bytes: they were made in float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from selector_server.scoring.scorer import Scores
from shared.errors import WireError

_SCORES = ("loss", "c", "sketch", "prompt")
_SHAPES = {"loss": 1, "c": 2, "sketch": 2, "prompt": 2}
_HEAD = 8


@dataclass(frozen=True, eq=False)
class Kept:
    """One step's large batch and its scores.

    Attributes:
        rows: Numbers in the store in draw order, int64 [b].
        scores: Of these rows.
        probe_shape: Of what the probes perturbed; empty where they are only seeds.
        made_on: Device type, threads and library versions that a pick's last bits may depend on.
    """

    rows: npt.NDArray[np.int64]
    scores: Scores
    probe_shape: tuple[int, ...]
    made_on: dict[str, str]

    def to_bytes(self) -> bytes:
        """The payload."""
        arrays = {name: getattr(self.scores, name) for name in _SCORES}
        tensors: dict[str, npt.NDArray[Any]] = {n: _narrowed(array) for n, array in arrays.items() if array is not None}
        tensors |= {"rows": self.rows, "probe_shape": np.array(self.probe_shape, dtype=np.int64)}
        return bytes(save(tensors, metadata=self.made_on))

    @classmethod
    def from_bytes(cls, payload: bytes) -> Kept:
        """What `to_bytes` wrote.

        Raises:
            WireError: not such a payload.
        """
        try:
            tensors = load(payload)
            head = int.from_bytes(payload[:_HEAD], "little")
            made_on = json.loads(payload[_HEAD : _HEAD + head]).get("__metadata__", {})
        except (SafetensorError, ValueError, KeyError) as error:
            raise WireError(f"kept scores are not a safetensors payload: {error}") from None
        rows, shape = tensors.pop("rows", None), tensors.pop("probe_shape", None)
        fitting = (
            rows is not None
            and shape is not None
            and rows.dtype == shape.dtype == np.int64
            and rows.ndim == shape.ndim == 1
            and "loss" in tensors
            and all(
                name in _SHAPES
                and array.dtype in (np.float32, np.float64)
                and array.ndim == _SHAPES[name]
                and len(array) == len(rows)
                for name, array in tensors.items()
            )
        )
        if not fitting or rows is None or shape is None:
            described = {name: (str(array.dtype), array.shape) for name, array in tensors.items()}
            raise WireError(f"kept scores hold {described}, which isn't what a step's are")
        scores = Scores(**{name: array.astype(np.float64) for name, array in tensors.items()})
        return cls(rows, scores, tuple(shape.tolist()), made_on)


def made_here(device: torch.device) -> dict[str, str]:
    """What the last bits of a pick made in this process may depend on."""
    return {
        "device": device.type,
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def _narrowed(array: npt.NDArray[np.float64]) -> npt.NDArray[np.floating]:
    """The array in float32 if that has the same values, else as it is."""
    narrow = array.astype(np.float32)
    return narrow if np.array_equal(narrow, array, equal_nan=True) else array
