"""All arms on one clock: what trainer and selector do, and how many steps each arm gets done, in the same seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    window = _SHOWN_STEPS * figures[LARGE_BATCH]["step_seconds"]
    lanes = sum(1 + ARMS[name].served for name in arms)
    figure, axes = new_axes(_headline(result), width=12, height=1.9 + 0.5 * lanes)
    y, ticks = 0.0, []
    for name in arms:
        spans = _last_turn(lines[name], steps=result["steps_per_round"], window=window, served=ARMS[name].served)
        top = y
        _draw_lane(axes, [s for s in spans if s.lane != "selector" or not ARMS[name].served], y, window)
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


def _last_turn(lines: Sequence[Mapping[str, Any]], *, steps: int, window: float, served: bool) -> list[Span]:
    """The spans of the last turn's steps, on a clock that starts with one of them."""
    rows = [dict(line) for line in lines[-steps - 2 :]]
    spans = [span for span in timeline([rows]) if served or _has_selection(rows) or span.lane != "selector"]
    start = next(span.start_s for span in spans if span.lane != "selector" and span.step == rows[1]["step"])
    return list(clip(spans, start, start + window))


def _has_selection(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row["selector"]["score_seconds"] > 0 for row in rows)


def _draw_lane(axes: Axes, spans: Sequence[Span], top: float, window: float) -> None:
    """A lane's phases, selection over what it happens in, and the number of each step over its longest phase."""
    ordered = sorted(spans, key=lambda span: span.lane == "selector")
    for span in ordered:
        color = _SELECTING if span.lane == "selector" else TRAINING_COLORS[span.phase]
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
