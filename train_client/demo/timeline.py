"""The demo's main picture: who did what when, on which one sees selection t + 1 running under back-propagation t."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import groupby, zip_longest
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from shared.errors import DataError
from train_client.demo.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    YELLOW,
    legend_below,
    new_axes,
    save,
)
from train_client.outcome import Span, clip

SELECTION_COLORS: Mapping[str, str] = {
    "load": "#555555",
    "draw": YELLOW,
    "score": ORANGE,
    "pick": VERMILION,
    "journal": PURPLE,
}
TRAINING_COLORS: Mapping[str, str] = {
    "wait": "#D5D5D5",
    "prepare": GREY,
    "train": BLUE,
    "optimizer": GREEN,
    "push": "black",
}
_COLORS = {**SELECTION_COLORS, **TRAINING_COLORS}
_LABELS = {
    "load": "load weights",
    "prepare": "prepare batch",
    "train": "forward + backward",
    "push": "snapshot to push",
}
_SHADES = ("#3A3A3A", "#8A8A8A")
# Heights within a lane, whose middle is at 0 and whose next neighbor is 1 away: the band with the step's number, and
# the bar of the phases.
_BAND, _BAR = (-0.44, 0.24), (-0.2, 0.44)


def draw_timeline(spans: Sequence[Span], path: Path, *, first_step: int, last_step: int) -> None:
    """Draw all lanes while the ranks train on some steps; an arrow leads from each selection to its training.

    Args:
        spans: Of any number of lanes, which appear in the order of their first span.
        path: The PNG to write.
        first_step: First step shown.
        last_step: Last step shown; 6 to 8 steps read well.

    Raises:
        DataError: no training in these steps, an unknown phase, or a span that ends before it starts.
    """
    for span in spans:
        if span.phase not in _COLORS:
            raise DataError(f"{span} has an unknown phase: known are {', '.join(_COLORS)}")
        if not span.start_s <= span.end_s:
            raise DataError(f"{span} ends before it starts: give both times on one clock")
    shown = [s for s in spans if s.phase in TRAINING_COLORS and first_step <= s.step <= last_step]
    if not shown:
        steps = sorted({span.step for span in spans})
        known = f"{steps[0]} to {steps[-1]}" if steps else "none"
        raise DataError(f"no training span in steps {first_step} to {last_step}: the spans given have steps {known}")
    start, end = min(s.start_s for s in shown), max(s.end_s for s in shown)
    visible = list(clip(spans, start, end))
    lanes = list(dict.fromkeys(span.lane for span in spans))

    hidden = hidden_share(visible)
    figure, axes = new_axes(
        f"{hidden:.0%} of the selector's work runs while the ranks are training on an earlier step",
        width=12,
        height=1.9 + 1.05 * len(lanes),
    )
    for span in visible:
        _draw_phase(axes, span, lanes.index(span.lane), window=end - start)
    for (lane, step), group in groupby(sorted(visible, key=_lane_and_step), key=_lane_and_step):
        _draw_step_band(axes, step, lanes.index(lane), list(group), window=end - start)
    _draw_arrows(axes, visible, lanes)

    axes.set_xlim(0, end - start)
    axes.set_ylim(len(lanes) - 0.55, -0.6)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"seconds since step {first_step} began on the ranks")
    axes.set_title("Arrows lead from the selection of a step to the training on it.", loc="left", fontsize=10)
    _draw_keys(figure, {span.phase for span in visible})
    save(figure, path)


def _draw_phase(axes: Axes, span: Span, lane: int, *, window: float) -> None:
    bottom, height = _BAR
    width = span.end_s - span.start_s
    axes.add_patch(Rectangle((span.start_s, lane + bottom), width, height, color=_COLORS[span.phase], linewidth=0))
    if span.phase in ("score", "train") and width > 0.06 * window:
        middle = (span.start_s + span.end_s) / 2, lane + bottom + height / 2
        axes.annotate(span.phase, middle, ha="center", va="center", color="black" if span.phase == "score" else "white")


def _draw_step_band(axes: Axes, step: int, lane: int, spans: Sequence[Span], *, window: float) -> None:
    """The number of a step over everything a lane does for it, in a shade that changes from step to step."""
    if not spans:
        return
    left, right = min(s.start_s for s in spans), max(s.end_s for s in spans)
    bottom, height = _BAND
    axes.add_patch(Rectangle((left, lane + bottom), right - left, height, color=_SHADES[step % 2], linewidth=0))
    if right - left > 0.02 * window:
        text = f"step {step}" if right - left > 0.06 * window else str(step)
        middle = (left + right) / 2, lane + bottom + height / 2
        axes.annotate(text, middle, ha="center", va="center", color="white", fontweight="bold")


def _draw_arrows(axes: Axes, spans: Sequence[Span], lanes: Sequence[str]) -> None:
    """From the end of each step's selection to the first training on it."""
    for step in sorted({span.step for span in spans}):
        selected = [s for s in spans if s.step == step and s.phase in SELECTION_COLORS]
        trained = [s for s in spans if s.step == step and s.phase == "train"]
        if not selected or not trained:
            continue
        tail, head = max(selected, key=lambda s: s.end_s), min(trained, key=lambda s: (lanes.index(s.lane), s.start_s))
        axes.annotate(
            "",
            xy=(head.start_s, lanes.index(head.lane) + _BAND[0]),
            xytext=(tail.end_s, lanes.index(tail.lane) + sum(_BAR)),
            arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0},
        )


def _draw_keys(figure: Figure, used: Set[str]) -> None:
    """One row of colour keys for the selector's phases, one for the ranks'."""
    nothing = Patch(alpha=0, label="")
    rows = [
        [Patch(alpha=0, label=who), *(Patch(color=c, label=_LABELS.get(p, p)) for p, c in colors.items() if p in used)]
        for who, colors in (("selector:", SELECTION_COLORS), ("ranks:", TRAINING_COLORS))
    ]
    columns = list(zip_longest(*rows, fillvalue=nothing))
    legend_below(figure, columns=len(columns), keys=[key for column in columns for key in column])


def hidden_share(spans: Sequence[Span]) -> float:
    """The part of the selection phases' time in which some rank trains on an earlier step; 0 without selection."""
    total = hidden = 0.0
    for work in spans:
        if work.phase not in SELECTION_COLORS:
            continue
        total += work.end_s - work.start_s
        trained = sorted((s.start_s, s.end_s) for s in spans if s.phase == "train" and s.step < work.step)
        reached = work.start_s
        for left, right in trained:
            left, right = max(left, reached), min(right, work.end_s)
            if left < right:
                hidden += right - left
                reached = right
    return hidden / total if total else 0.0


def _lane_and_step(span: Span) -> tuple[str, int]:
    return span.lane, span.step
