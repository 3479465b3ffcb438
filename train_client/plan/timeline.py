"""Part of a plan's picture: what the server and some ranks of one run do in a few steps of a simulation."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from train_client.demo.canvas import BLUE, ORANGE, PURPLE
from train_client.plan.costs import Layout
from train_client.plan.simulate import Played

_STEPS_SHOWN = 6
_RANKS_SHOWN = 4
# What fits across.
_CHARACTERS = 150
_WAIT, _UNEVEN, _OTHERS, _SNAPSHOT = "#F2C6B4", "#D5D5D5", "#F6DFB0", "black"
_SELECTOR, _UPLOAD, _FIRST_RANK = 0, 1, 2


class _Lanes:
    """Bars in lanes, from one time to another."""

    def __init__(self, axes: Axes, start: float, end: float) -> None:
        self._axes, self._start, self._end = axes, start, end

    def bar(self, lane: int, left: float, right: float, color: str, *texts: str, ink: str = "white") -> None:
        """One bar where it can be seen, with the first of the texts that fits."""
        left, right = max(left, self._start), min(right, self._end)
        if not left < right:  # also where either isn't a number, since nothing happened
            return
        middle, width = (left + right) / 2 - self._start, right - left
        self._axes.barh(
            lane, width, left=left - self._start, height=0.74, color=color, edgecolor="white", linewidth=0.6
        )
        room = width / (self._end - self._start) * _CHARACTERS
        if text := next((text for text in texts if len(text) + 1 < room), ""):
            self._axes.text(middle, lane, text, ha="center", va="center", color=ink, fontsize=9)


def draw_timeline(axes: Axes, played: Played, layout: Layout) -> None:
    """Draw some steps in the middle of the first run; selections of runs that share its server are paler."""
    num_steps = played.ended.shape[1]
    first = num_steps // 2
    steps = range(first, min(num_steps, first + _STEPS_SHOWN))
    start, end = played.began[0, steps[0]], played.ended[0, steps[-1]]
    ranks = range(min(_RANKS_SHOWN, layout.trainers))
    lanes = _Lanes(axes, start, end)
    _draw_server(lanes, played, layout)
    for step in steps:
        for rank in ranks:
            _draw_rank(lanes, played, step, rank)
    names = ["selector", "upload", *(f"rank {rank}" for rank in ranks)]
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.set_xlim(0, end - start)
    axes.set_xlabel(f"seconds since step {first} of one run began")
    _draw_keys(axes, layout)


def _draw_server(lanes: _Lanes, played: Played, layout: Layout) -> None:
    for run in range(layout.servers, layout.runs, layout.servers):
        for left, right in zip(played.select_began[run], played.select_ended[run], strict=True):
            lanes.bar(_SELECTOR, left, right, _OTHERS)
    for step, (left, right) in enumerate(zip(played.select_began[0], played.select_ended[0], strict=True)):
        lanes.bar(_SELECTOR, left, right, ORANGE, f"select {step}", str(step), ink="black")
    for step, (left, right) in enumerate(zip(played.upload_began[0], played.upload_ended[0], strict=True)):
        lanes.bar(_UPLOAD, left, right, PURPLE, f"weights {step + 1}", str(step + 1))


def _draw_rank(lanes: _Lanes, played: Played, step: int, rank: int) -> None:
    lane, begin, trained = _FIRST_RANK + rank, played.train_began[0, step], played.trained[0, step]
    done, free = begin + played.rank_seconds[step, rank], played.free_to_push[0, step]
    lanes.bar(lane, played.began[0, step], begin, _WAIT, "wait", ink="black")
    lanes.bar(lane, begin, done, BLUE, f"train {step}", str(step))
    lanes.bar(lane, done, trained, _UNEVEN)
    lanes.bar(lane, trained, free, _WAIT)
    lanes.bar(lane, free, played.ended[0, step], _SNAPSHOT)


def _draw_keys(axes: Axes, layout: Layout) -> None:
    named = {
        "select for this run": ORANGE,
        "select for other runs": _OTHERS if layout.runs_per_server > 1 else "",
        "upload": PURPLE,
        "train": BLUE,
        "wait for the slowest rank": _UNEVEN if layout.trainers > 1 else "",
        "wait for the selector": _WAIT,
        "snapshot": _SNAPSHOT,
    }
    keys = [Patch(color=color, label=label) for label, color in named.items() if color]
    axes.legend(
        handles=keys, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=len(keys), frameon=False, handlelength=1.2
    )
