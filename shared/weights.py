"""Trainable tensors ↔ one safetensors payload, cut into chunks, and the checks on the way in.

The format can't run code, its header is bounded, and names, shapes, dtypes and values are all checked before a tensor
reaches a model. Torch is imported only where tensors are built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from shared.errors import WeightsError
from shared.records import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 1 << 20


def encode_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors payload; tensors must be on the CPU."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def decode_weights(payload: bytes, expected: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """The tensors of a payload, in the order of `expected`.

    Raises:
        WeightsError: not safetensors, names, shapes or dtypes other than `expected`, or values that aren't finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"weights are not a safetensors payload: {error}") from None
    wanted = {spec.name for spec in expected}
    if tensors.keys() != wanted:
        lacking, extra = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
        raise WeightsError(
            f"weights have other names than the run was opened with: {len(lacking)} missing {lacking[:3]}, "
            f"{len(extra)} unknown {extra[:3]}"
        )
    for spec in expected:
        tensor = tensors[spec.name]
        got = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if got != (spec.shape, spec.dtype):
            raise WeightsError(f"weights {spec.name} are {got}, the run was opened with {(spec.shape, spec.dtype)}")
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"weights {spec.name} hold values that aren't finite: training has diverged")
    return {spec.name: tensors[spec.name] for spec in expected}


def chunks(payload: bytes) -> Iterator[bytes]:
    """The payload in pieces of CHUNK_BYTES; the last one may be shorter."""
    view = memoryview(payload)
    for start in range(0, len(payload), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def content_hash(payload: bytes) -> str:
    """SHA-256 of a payload, in hex."""
    return hashlib.sha256(payload).hexdigest()
