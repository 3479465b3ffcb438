"""All arms on one clock: what trainer and selector do, and how many steps each arm gets done, in the same seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from train_client.bench.arms import ARMS, DEFAULT, FLOOR, INLINE, LARGE_BATCH
from train_client.demo.canvas import legend_below, new_axes, save
from train_client.demo.timeline import SELECTION_COLORS, TRAINING_COLORS
from train_client.outcome import Span, clip, timeline

_ORDER = (FLOOR, DEFAULT, "staleness_2", "push_every_2", "push_every_4", "staleness_0", INLINE, LARGE_BATCH)
_SHOWN_STEPS = 4
_HEIGHT, _GAP = 0.42, 0.28
_LABELS = {
    "score": "select",
    "train": "forward + backward",
    "wait": "wait for a selection",
    "optimizer": "optimizer",
    "push": "snapshot to push",
}
_SELECTING = SELECTION_COLORS["score"]


def draw_arms(lines: Mapping[str, Sequence[Mapping[str, Any]]], result: Mapping[str, Any], path: Path) -> None:
    """Draw the last turn of every arm.

    Args:
        lines: By arm, a line for each step.
        result: Of `results.summarise`.
        path: The PNG to write.
    """
    arms = [name for name in _ORDER if name in lines]
    figures = result["arms"]
    turns = {name: _last_turn(lines[name], steps=result["steps_per_round"], served=ARMS[name].served) for name in arms}
    longest = _SHOWN_STEPS * figures[LARGE_BATCH]["step_seconds"]
    window = min(longest, *(max(span.end_s for span in spans) for spans in turns.values()))
    lanes = sum(1 + ARMS[name].served for name in arms)
    figure, axes = new_axes(_headline(result), width=12, height=1.9 + 0.5 * lanes)
    y, ticks = 0.0, []
    for name in arms:
        spans, top = list(clip(turns[name], 0.0, window)), y
        _draw_lane(axes, [s for s in spans if s.lane != "selector"], y, window)
        if ARMS[name].served:
            y += _HEIGHT + 0.04
            _draw_lane(axes, [s for s in spans if s.lane == "selector"], y, window)
        bottom = y + _HEIGHT
        ticks.append(((top + bottom) / 2, ARMS[name].title))
        _label(axes, figures[name], (top + bottom) / 2, window)
        y = bottom + _GAP
    axes.set_xlim(0, window)
    axes.set_ylim(y, -0.15)
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("seconds since a step began; of two lanes the lower one is the selector's; numbers are steps")
    phases = ("train", "optimizer", "wait", "push")
    keys = [Patch(color=TRAINING_COLORS[phase], label=_LABELS[phase]) for phase in phases]
    legend_below(figure, columns=5, keys=[*keys, Patch(color=_SELECTING, label=_LABELS["score"])])
    save(figure, path)


def _headline(result: Mapping[str, Any]) -> str:
    ratio = result["arms"][DEFAULT]["ratio_to_floor"]["median"]
    other = result["arms"][INLINE]["ratio_to_floor"]["median"]
    return (
        f"With a selector beside the trainer a step takes {ratio:.2f} × one without selection, "
        f"with selection in the trainer {other:.2f} ×"
    )


def _last_turn(lines: Sequence[Mapping[str, Any]], *, steps: int, served: bool) -> list[Span]:
    """What was done in the last turn, on a clock that starts with one of its steps.

    Where the trainer selects, that stands in its push phase, and is for the step that follows.
    """
    rows = [dict(line) for line in lines[-steps - 2 :]]
    selects = not served and any(row["selector"]["score_seconds"] > 0 for row in rows)
    spans = [span for span in timeline([rows]) if served or span.lane != "selector"]
    if selects:
        spans = [replace(s, phase="score", step=s.step + 1) if s.phase == "push" else s for s in spans]
    start = next(span.start_s for span in spans if span.lane != "selector" and span.step == rows[1]["step"])
    return [replace(span, start_s=span.start_s - start, end_s=span.end_s - start) for span in spans]


def _draw_lane(axes: Axes, spans: Sequence[Span], top: float, window: float) -> None:
    """A lane's phases, and the number of each step over its longest."""
    for span in spans:
        color = _SELECTING if span.phase in SELECTION_COLORS else TRAINING_COLORS[span.phase]
        width = span.end_s - span.start_s
        axes.add_patch(Rectangle((span.start_s, top), width, _HEIGHT, color=color, linewidth=0))
        if span.phase in ("train", "score") and width > 0.02 * window:
            ink = "black" if span.phase == "score" else "white"
            middle = (span.start_s + span.end_s) / 2, top + _HEIGHT / 2
            axes.annotate(str(span.step), middle, ha="center", va="center", color=ink, fontsize=8)


def _label(axes: Axes, figures: Mapping[str, Any], middle: float, window: float) -> None:
    """How long a step takes, at the right of the lanes."""
    text = f"{figures['step_seconds']:.2f} s a step\n{figures['ratio_to_floor']['median']:.2f} × r rows given"
    axes.annotate(text, (window * 1.01, middle), va="center", fontsize=9, annotation_clip=False)
