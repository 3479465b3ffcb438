"""What one run left on disk → its result, the JSON that statistics and the report read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.config import Config
from train_client.experiment.plan import RESULT_FORMAT, Run, portable
from train_client.outcome import SELECTOR_PHASES, TRAINER_PHASES, Outcome, clip, phase_seconds, timeline, wait_fraction

_WINDOW_STEPS = 5


def collect(
    run: Run,
    outcome: Outcome,
    *,
    accuracy: Mapping[str, Any] | None,
    selector_memory: int | None,
    gallery: list[dict[str, Any]],
    with_timeline: bool,
) -> dict[str, Any]:
    """The result of a finished run.

    Args:
        run: What was run.
        outcome: What the trainer left.
        accuracy: What the evaluation found, if there was one.
        selector_memory: The most memory the selector server held, in bytes; None: what it says an accelerator held.
        gallery: Large batches as text.
        with_timeline: Whether to keep what ran when in some steps.
    """
    config, ranks = run.config, outcome.ranks
    warm_up = min(config.run.staleness + 2, len(ranks[0]) - 1)
    trainer_memory = outcome.facts["peak_memory_bytes"]
    medians = phase_seconds(ranks, warm_up=warm_up)
    selector_memory = selector_memory or ranks[0][-1]["selector"]["peak_bytes"] or None
    return {
        "format": RESULT_FORMAT,
        "arm": run.arm.name,
        "seed": run.seed,
        "variant": run.arm.variant,
        "config": portable(config, run.out),
        "initial_weights": outcome.facts["initial_weights"],
        "fingerprints": outcome.facts["fingerprints"],
        "heldout": outcome.heldout,
        "accuracy": accuracy,
        "gradient": outcome.gradient,
        **_seconds(outcome, scores=run.scores),
        "wait_fraction": wait_fraction(ranks, warm_up=warm_up),
        "peak_memory_bytes": {"trainer": trainer_memory, "selector": selector_memory if run.scores else None},
        "rows": _rows(config, outcome),
        "phases": {
            "selector": {phase: medians[f"selector_{phase}"] for phase in SELECTOR_PHASES},
            "trainer": {phase: medians[phase] for phase in TRAINER_PHASES},
            "step": medians["step"],
        },
        "timeline": _window(outcome, warm_up=warm_up) if with_timeline else [],
        "gallery": gallery,
    }


def _seconds(outcome: Outcome, *, scores: bool) -> dict[str, dict[str, float]]:
    """Seconds that steps took, and device-seconds.

    Held-out losses, gradient checks and starting up are left out; so are the very first selection, for which the
    server builds what it scores with, and the wait for it. A selector that scores holds a device for as long as the
    trainers train; one that only draws holds none.
    """
    ranks = outcome.ranks
    waited = [sum(row["wait_seconds"] for row in rank[1:]) for rank in ranks]
    busy = [sum(row["step_seconds"] - row["wait_seconds"] for row in rank) for rank in ranks]
    wall = max(waits + works for waits, works in zip(waited, busy, strict=True))
    selecting = sum(row["selector"][f"{phase}_seconds"] for row in ranks[0][1:] for phase in SELECTOR_PHASES)
    return {
        "seconds": {
            "wall": wall,
            "trainer_busy": sum(busy) / len(ranks),
            "selector_busy": selecting,
            "waited": max(waited),
        },
        "device_seconds": {
            "held": wall * (len(ranks) + scores),
            "busy": sum(busy) + (selecting if scores else 0.0),
        },
    }


def _rows(config: Config, outcome: Outcome) -> dict[str, int]:
    trained = [number for rank in outcome.ranks for row in rank for number in row["rows"]]
    drawn = config.selection.large_batch_size * config.run.num_steps
    return {
        "drawn": drawn,
        "scored": drawn if config.selection.scores else 0,
        "trained": len(trained),
        "distinct": len(set(trained)),
    }


def _window(outcome: Outcome, *, warm_up: int) -> list[dict[str, Any]]:
    """What ran when while the ranks trained on a few steps, those without a held-out loss among them if possible."""
    steps = len(outcome.ranks[0])
    length = min(_WINDOW_STEPS, steps)
    interrupted = {row["step"] for row in (*outcome.heldout, *outcome.gradient)}
    middle = max(0, min(max(warm_up, steps // 2), steps - length))
    starts = sorted(range(min(warm_up, steps - length), steps - length + 1), key=lambda first: abs(first - middle))
    quiet = (first for first in starts if not interrupted & set(range(first, first + length)))
    first = next(quiet, starts[0])
    spans = timeline(outcome.ranks)
    shown = [span for span in spans if span.lane != "selector" and first <= span.step < first + length]
    start, end = min(span.start_s for span in shown), max(span.end_s for span in shown)
    return [
        {"lane": s.lane, "phase": s.phase, "step": s.step, "start": round(s.start_s, 5), "end": round(s.end_s, 5)}
        for s in sorted(clip(spans, start, end), key=lambda s: (s.lane != "selector", s.lane, s.start_s))
    ]


def write_json(path: Path, value: Any) -> None:
    """Write a file as a whole or not at all; a run that diverged has losses that aren't finite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)
