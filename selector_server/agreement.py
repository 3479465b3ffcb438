"""What a trainer, a server and a run must agree on, and the errors that say where they don't."""

from __future__ import annotations

import dataclasses

from shared.errors import ConfigError, FingerprintError
from shared.records import Fingerprints, RunInfo


def require_same(have: RunInfo, got: RunInfo) -> None:
    """Refuse an opening with other settings than the run's; ranks may come and go, all else is fixed.

    Raises:
        ConfigError, FingerprintError: the first setting that differs, with both values.
    """
    require_same_fingerprints(have.fingerprints, got.fingerprints, left=f"run {have.name!r}", right="the trainer")
    for field in ("seed", "timing", "selection", "adapter_json", "trainable"):
        mine, theirs = getattr(have, field), getattr(got, field)
        if mine != theirs:
            raise ConfigError(
                f"run {have.name!r} was opened with {field} {_short(mine)}, the trainer has {_short(theirs)}: use the "
                "run's settings, another run.name, or run.restart"
            )


def require_same_fingerprints(mine: Fingerprints, theirs: Fingerprints, *, left: str, right: str) -> None:
    """Refuse two sides that don't hold the same data, tokenizer and base model.

    Base models are compared in the widest dtype that both sides have hashed.

    Raises:
        FingerprintError: what differs, with both values and the remedy.
    """
    common = [d for d in ("float32", "float16", "bfloat16") if d in mine.base_model and d in theirs.base_model]
    pairs = {
        "dataset": (mine.dataset, theirs.dataset, "give both sides the same store"),
        "tokenizer": (mine.tokenizer, theirs.tokenizer, "give both sides the tokenizer the store was prepared with"),
        "base model": (
            (mine.base_model[common[0]], theirs.base_model[common[0]])
            if common
            else (mine.base_model, theirs.base_model)
        )
        + ("load the same checkpoint, with the same dtype where it isn't bfloat16, on both sides",),
    }
    for what, (a, b, remedy) in pairs.items():
        if a != b:
            raise FingerprintError(f"{left} has {what} {_short(a)}, {right} has {_short(b)}: {remedy}")


def _short(value: object) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return str(dataclasses.asdict(value))
    text = str(value)
    return text if len(text) <= 400 else text[:400] + "…"
