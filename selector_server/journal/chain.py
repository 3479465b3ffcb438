"""The hash that chains each selection to the one before it; `journal.proto` says what it is made of."""

from __future__ import annotations

import hashlib

from shared.pb.v1 import selector_pb2 as pb

_ROOT = b"subbatch chain 1, run"
_LINK = b"subbatch chain 1, selection"


def chain_root(run: pb.RunInfo) -> bytes:
    """What a selection without one before it is chained to, 32 bytes, from the run as its newest opening has it."""
    return _digest(
        _ROOT,
        run.name.encode(),
        *map(_number, (run.seed, run.num_steps, run.staleness, run.push_every)),
        run.selection_json.encode(),
        run.adapter_json.encode(),
        run.fingerprints.dataset.encode(),
        run.fingerprints.tokenizer.encode(),
    )


def chain_link(before: bytes, message: pb.SelectionMessage) -> bytes:
    """The hash of a selection and all before it, 32 bytes.

    Args:
        before: That of the step before, or the root.
        message: The selection; its own `chain` isn't read.
    """
    return _digest(
        _LINK,
        before,
        _number(message.step),
        _number(message.weights_version),
        message.weights_sha256.encode(),
        message.arrow,
        message.history,
        message.scores_sha256,
    )


def _digest(*parts: bytes) -> bytes:
    """SHA-256 of parts, each after its length, so that no two lists of parts are hashed alike."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_number(len(part)))
        digest.update(part)
    return digest.digest()


def _number(value: int) -> bytes:
    """A uint64; of a negative number, which only a forged record holds, its two's complement."""
    return (value % 2**64).to_bytes(8, "little")
