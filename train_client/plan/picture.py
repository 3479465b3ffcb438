"""The picture of a simulated plan: who works when, how long steps take, and what more selector devices would give."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from train_client.demo.canvas import BLUE, DPI, GREY, ORANGE, VERMILION, save
from train_client.plan.plan import PLANNED, Plan
from train_client.plan.table import duration, who
from train_client.plan.timeline import draw_timeline
from train_client.plan.trial import Trial

_LEAST_WAIT_SHOWN = 0.1
# How far from the plan's own number of devices another must be for both to be legible.
_LOG_OF_A_LABEL = 0.2


def draw_plan(plan: Plan, trial: Trial, path: Path) -> None:
    """Draw the timeline of the first run over two panels: step times by arm, and waiting by selector devices."""
    figure = Figure(figsize=(13, 8.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_headline(plan, trial), x=0.01, ha="left", fontsize=13, fontweight="bold")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
    timeline = figure.add_subplot(grid[0, :])
    draw_timeline(timeline, trial.played, plan.layout)
    timeline.set_title(_what(plan), loc="left", fontsize=11)
    _step_times(figure.add_subplot(grid[1, 0]), plan, trial)
    _waiting(figure.add_subplot(grid[1, 1]), plan, trial)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    save(figure, path)


def _headline(plan: Plan, trial: Trial) -> str:
    planned, large = trial.arms[PLANNED], trial.arms["large_batch"]
    return (
        f"Trainers wait {planned.wait_fraction:.0%} of the time; a step takes {duration(planned.step_seconds_mean)}, "
        f"{planned.step_seconds_mean / large.step_seconds_mean:.2f} × that of training on all b rows"
    )


def _what(plan: Plan) -> str:
    layout, costs = plan.layout, plan.costs
    return (
        f"{who(layout)}, S = {layout.staleness}, K = {layout.push_every}, r = {costs.sub_batch_size} of "
        f"b = {costs.large_batch_size}"
    )


def _step_times(axes: Axes, plan: Plan, trial: Trial) -> None:
    names = ["floor", PLANNED, "inline", "large_batch"]
    titles = ["r rows,\nno selection", "this plan", "selection\ninside trainers", "all b rows"]
    colors = [GREY, BLUE, VERMILION, "#555555"]
    for place, (name, color) in enumerate(zip(names, colors, strict=True)):
        steps, seen = trial.steps[name], trial.arms[name]
        low, high = np.quantile(steps, [0.05, 0.95])
        axes.barh(place, seen.step_seconds_mean, color=color, height=0.6)
        axes.plot([low, high], [place, place], color="black", linewidth=1.5)
        axes.text(high, place, f"  {duration(seen.step_seconds_mean)}", va="center")
    axes.set_yticks(range(len(names)), titles)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.2 * max(np.quantile(trial.steps[name], 0.95) for name in names))
    axes.set_xlabel("seconds of a step: mean; line from 5 % to 95 % of steps")
    axes.set_title("How long a step takes", loc="left", fontsize=11)


def _waiting(axes: Axes, plan: Plan, trial: Trial) -> None:
    counts, here = list(plan.by_selectors), plan.layout.selectors
    predicted = [plan.by_selectors[count].wait_fraction for count in counts]
    simulated = [trial.by_selectors[count].wait_fraction for count in counts]
    axes.plot(counts, predicted, "--", color=GREY, label="without jitter")
    axes.plot(counts, simulated, "o-", color=BLUE, label="simulated")
    axes.plot([here], [simulated[counts.index(here)]], "o", color=ORANGE, markersize=11, label="this plan")
    axes.set_ylim(0, max(_LEAST_WAIT_SHOWN, 1.15 * max(*predicted, *simulated)))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if len(counts) < counts[-1]:
        axes.set_xscale("log")
    apart = [count for count in counts if count == here or abs(math.log(count / here)) > _LOG_OF_A_LABEL]
    axes.set_xticks(apart, [str(count) for count in apart])
    axes.minorticks_off()
    axes.set_xlabel("selector devices" + (" of each server" if plan.layout.servers > 1 else ""))
    axes.set_title("What more selector devices give: time that trainers wait", loc="left", fontsize=11)
    axes.legend(frameon=False)
