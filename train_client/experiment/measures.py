"""One run's result → the numbers that are compared, and curves along training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Run = Mapping[str, Any]

# Passes through the model: a scored row goes forward once, a trained row forward and, at twice the cost, backward.
SCORED, TRAINED = 1, 3


def measures(run: Run) -> dict[str, float | None]:
    """Every number of a run that has a mean over seeds; None where the run doesn't have it, NaN where it diverged."""
    last = run["heldout"][-1] if run["heldout"] else {}
    checks = run["gradient"]
    ending = checks[-1] if checks else {}
    rows, memory = run["rows"], run["peak_memory_bytes"]
    return {
        "balanced": _loss(last, "balanced"),
        "natural": _loss(last, "natural"),
        "accuracy": _accuracy(run),
        "gradient_error": _mean(check.get("error") for check in checks),
        "cosine": _mean(check.get("cosine") for check in checks),
        "bias": ending.get("bias"),
        "bias_floor": ending.get("bias_floor"),
        "wall": run["seconds"]["wall"],
        "step": run["phases"]["step"],
        "waited": run["seconds"]["waited"],
        "held": run["device_seconds"]["held"],
        "busy": run["device_seconds"]["busy"],
        "trainer_memory": memory["trainer"],
        "selector_memory": memory["selector"],
        "scored": rows["scored"],
        "trained": rows["trained"],
        "distinct": rows["distinct"],
        "row_cost": row_cost(run),
    }


def row_cost(run: Run) -> float:
    """Passes of a row through the model, over the whole run."""
    return float(SCORED * run["rows"]["scored"] + TRAINED * run["rows"]["trained"])


def set_accuracy(run: Run) -> dict[str, float]:
    """Set → part of its questions that were answered right."""
    sets = (run["accuracy"] or {}).get("sets", {})
    return {name: score["correct"] / score["total"] for name, score in sets.items() if score["total"]}


def source_accuracy(run: Run) -> dict[str, float]:
    """Source → part of its questions that were answered right."""
    sources = (run["accuracy"] or {}).get("by_source", {})
    return {name: score["correct"] / score["total"] for name, score in sources.items() if score["total"]}


def source_losses(run: Run) -> dict[str, float]:
    """Source → held-out loss at the end."""
    losses = run["heldout"][-1]["by_source"] if run["heldout"] else {}
    return {name: math.nan if loss is None else float(loss) for name, loss in losses.items()}


def curve(run: Run, kind: str = "balanced") -> dict[int, float]:
    """Step → held-out loss."""
    return {entry["step"]: math.nan if entry.get(kind) is None else float(entry[kind]) for entry in run["heldout"]}


def gradient_curve(run: Run, kind: str) -> dict[int, float]:
    """Step → a number of the gradient checks."""
    return {check["step"]: float(check[kind]) for check in run["gradient"] if check.get(kind) is not None}


def _loss(entry: Mapping[str, Any], kind: str) -> float | None:
    if kind not in entry:
        return None
    # A natural loss may be missing altogether; the balanced one is only missing where it isn't a number.
    if entry[kind] is None:
        return math.nan if kind == "balanced" else None
    return float(entry[kind])


def _accuracy(run: Run) -> float | None:
    return _mean(set_accuracy(run).values())


def _mean(values: Any) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
