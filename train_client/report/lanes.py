"""The timeline: what selector and trainers do in the same seconds."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from train_client.demo.timeline import hidden_share
from train_client.outcome import Span
from train_client.report.canvas import GROUND, INK, MUTED, RULE, C, Key, Picture, draw_picture
from train_client.report.evidence import Evidence

# Phase → what the legend calls it and its colour.
_PHASES = {
    "load": ("load weights", C[7]),
    "draw": ("draw", C[6]),
    "score": ("score", C[1]),
    "pick": ("pick", C[4]),
    "journal": ("journal", C[3]),
    "wait": ("wait", RULE),
    "prepare": ("prepare batch", C[5]),
    "train": ("forward and backward", C[0]),
    "optimizer": ("optimizer", C[2]),
    "push": ("push weights", INK),
}
_CSS = {color: f"var(--c{number})" for number, color in enumerate(C, start=1)} | {
    RULE: "var(--rule)",
    INK: "var(--ink)",
}
_SQUARE = "M1 1h8v8H1z"


def timeline(evidence: Evidence) -> Picture | None:
    """A few steps of the best selecting arm, or of any other whose timeline was kept."""
    arms = [*filter(None, [evidence.best]), *evidence.selecting, *evidence.summary.arms]
    for arm in arms:
        kept = next((run["timeline"] for run in evidence.runs(arm.name).values() if run["timeline"]), None)
        if kept:
            spans = [Span(s["lane"], s["phase"], s["step"], s["start"], s["end"]) for s in kept]
            return _draw([span for span in spans if span.phase in _PHASES], arm.title)
    return None


def _draw(spans: Sequence[Span], title: str) -> Picture | None:
    if not spans:
        return None
    lanes = sorted({span.lane for span in spans}, key=lambda lane: (lane != "selector", lane))
    start, end = min(span.start_s for span in spans), max(span.end_s for span in spans)

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        for span in spans:
            lane, width = lanes.index(span.lane), span.end_s - span.start_s
            axes.add_patch(
                Rectangle((span.start_s, lane - 0.26), width, 0.52, facecolor=_PHASES[span.phase][1], linewidth=0)
            )
            if span.phase in ("score", "train") and width > (0.09 if narrow else 0.05) * (end - start):
                middle = span.start_s + width / 2
                axes.text(middle, lane, f"{span.step}", ha="center", va="center", color=GROUND, fontweight="bold")
        if narrow:
            axes.set_yticks([])
            for row, lane_name in enumerate(lanes):
                axes.text(0, row - 0.4, lane_name, transform=axes.get_yaxis_transform(), va="center", fontsize=10)
        else:
            axes.set_yticks(range(len(lanes)), lanes)
            axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlim(start, end)
        axes.set_ylim(len(lanes) - 0.55, -0.6)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("seconds", color=MUTED)

    hidden = hidden_share(spans)
    used = {span.phase for span in spans if span.end_s > span.start_s}
    return draw_picture(
        "timeline",
        draw,
        title="Selection while training",
        caption=f"A few steps of “{title}”; numbers are steps. {hidden:.0%} of the selector’s work in them runs while "
        "the trainers are at an earlier step.",
        alt=f"Timeline of {title}: lanes {', '.join(lanes)}; {hidden:.0%} of the selector's work overlaps with "
        "training on earlier steps.",
        heights=(1.1 + 0.62 * len(lanes), 1.2 + 0.8 * len(lanes)),
        keys=[Key(text, _CSS[color], _SQUARE, dash="") for phase, (text, color) in _PHASES.items() if phase in used],
    )
