"""What a replay says of a step: equal to the last bit, different and where, or not checked and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from selector_server.scoring.scorer import Scores
from shared.records import Selection


@dataclass(frozen=True)
class Finding:
    """One part of a step: `equal`, `differs` or `unchecked`, and in words where or why."""

    verdict: Literal["equal", "differs", "unchecked"]
    why: str = ""


EQUAL = Finding("equal")


@dataclass(frozen=True)
class StepReport:
    """What was found of a step: its draw, its scores, its pick with the weights of rows and the history it left."""

    step: int
    draw: Finding
    scores: Finding
    pick: Finding

    @property
    def parts(self) -> dict[str, Finding]:
        """The findings by name."""
        return {"draw": self.draw, "scores": self.scores, "pick": self.pick}

    @property
    def differs(self) -> bool:
        """Whether any part does."""
        return any(finding.verdict == "differs" for finding in self.parts.values())


def compare(what: Mapping[str, tuple[Any, Any]]) -> Finding:
    """Compare recorded with recomputed values, by name: arrays to the last bit, anything else with ==."""
    different = [text for name, pair in what.items() if (text := _difference(name, *pair))]
    return Finding("differs", "; ".join(different)) if different else EQUAL


def selections(recorded: Selection, recomputed: Selection) -> dict[str, tuple[Any, Any]]:
    """The fields of two selections, for `compare`."""
    return {f.name: (getattr(recorded, f.name), getattr(recomputed, f.name)) for f in fields(Selection)}


def scores(recorded: Scores, recomputed: Scores) -> dict[str, tuple[Any, Any]]:
    """The fields of two steps' scores, for `compare`."""
    return {f.name: (getattr(recorded, f.name), getattr(recomputed, f.name)) for f in fields(Scores)}


def _difference(name: str, recorded: Any, recomputed: Any) -> str:
    """Where two values differ, in words; empty where they don't."""
    if not (isinstance(recorded, np.ndarray) and isinstance(recomputed, np.ndarray)):
        return "" if recorded is recomputed or recorded == recomputed else _both(name, recorded, recomputed)
    if (recorded.shape, recorded.dtype) != (recomputed.shape, recomputed.dtype):
        shapes = (f"{array.dtype} {list(array.shape)}" for array in (recorded, recomputed))
        return _both(name, *shapes)
    # A row without a score is nan, whatever its bits; every other number is compared by them.
    bits = f"u{recorded.dtype.itemsize}"
    unequal = recorded.view(bits) != recomputed.view(bits)
    if recorded.dtype.kind == "f":
        unequal &= ~(np.isnan(recorded) & np.isnan(recomputed))
    if not unequal.any():
        return ""
    first = tuple(np.argwhere(unequal)[0].tolist())
    text = _both(f"{name} {list(first)}", recorded[first], recomputed[first])
    return f"{text} ({int(unequal.sum())} of {unequal.size} values differ)"


def _both(name: str, recorded: Any, recomputed: Any) -> str:
    return f"{name}: recorded {_short(recorded)}, recomputed {_short(recomputed)}"


def _short(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes {value[:8].hex()}…"
    return str(value)
