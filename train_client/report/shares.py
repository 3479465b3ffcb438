"""Figures of the end of training: the share closed by arm, losses by source, and how one setting moves the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from train_client.experiment.statistics import Difference
from train_client.experiment.summary import ArmSummary
from train_client.report.canvas import INK, MUTED, RULE, Picture, draw_picture
from train_client.report.curves import keys_of
from train_client.report.evidence import Evidence, short_source
from train_client.report.looks import look_of
from train_client.report.numbers import percent, share_interval

_WIDEST = (-1.5, 2.5)  # shares; intervals may reach further, and then end in an arrow
_MOST_ARMS_BY_SOURCE = 5


@dataclass(frozen=True)
class Value:
    """A number under one of a setting's values, which `at` counts, with its error bar."""

    at: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A method under several settings, and an arm that it looks like."""

    arm: ArmSummary
    points: Sequence[Value]


def forest(evidence: Evidence) -> Picture | None:
    """The share of the distance from random r to random b that each arm closes."""
    arms = [arm for arm in evidence.main if arm.name not in ("random_r", "random_b")]
    shares = {arm.name: share for arm in arms if (share := arm.weighted.shares.get("balanced"))}
    known = [arm for arm in arms if arm.name in shares and shares[arm.name].value is not None]
    if not known:
        return None
    known.sort(key=lambda arm: shares[arm.name].value or 0.0, reverse=True)
    ends = [end for arm in known for end in (shares[arm.name].value, shares[arm.name].low, shares[arm.name].high)]
    inside = [min(max(end, _WIDEST[0]), _WIDEST[1]) for end in ends if end is not None]
    low, high = min(0.0, *inside), max(1.0, *inside)

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        for at, color in ((0.0, MUTED), (0.5, RULE), (1.0, INK)):
            axes.axvline(at, color=color, linestyle="--" if at != 0.5 else ":", linewidth=1.2, zorder=0)
        for row, arm in enumerate(known):
            share, look = shares[arm.name], look_of(arm.name)
            value = share.value or 0.0
            axes.plot(value, row, look.marker, color=look.color, markersize=8)
            if share.low is not None and share.high is not None:
                _bar(axes, share.low, share.high, row, color=look.color)
            _row_label(axes, row, arm.title, narrow=narrow)
        axes.set_ylim(len(known) - 0.4, -0.9 if narrow else -0.6)
        pad = 0.06 * (high - low)
        axes.set_xlim(low - pad, high + pad)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.set_xlabel("share of the distance closed")
        top = axes.secondary_xaxis("top")
        top.set_xticks([0, 1], ["random r", "random b"])
        top.tick_params(length=0)
        top.spines[:].set_visible(False)
        _rows_only(axes, [arm.title for arm in known], narrow=narrow)

    said = "; ".join(
        f"{arm.title} {percent(shares[arm.name].value or 0.0)} ({share_interval(shares[arm.name]) or 'no interval'})"
        for arm in known
    )
    return draw_picture(
        "shares",
        draw,
        title="How near to random b",
        caption="0% is random r and 100% random b, both drawn by source; bars are Fieller’s 95% intervals of each "
        "arm by itself. Below 0% an arm is worse than random r. The dotted line is half-way.",
        alt=f"Share of the distance closed: {said}.",
        heights=(1.4 + 0.42 * len(known), 1.5 + 0.55 * len(known)),
    )


def by_source(evidence: Evidence) -> Picture | None:
    """Each source's loss at the end, less random r's."""
    chosen = evidence.selecting
    best = evidence.best
    first = [arm for arm in chosen if arm is best or arm.name == "paper"]
    arms = [*first, *(arm for arm in chosen if arm not in first)][: _MOST_ARMS_BY_SOURCE - 1]
    arms = [arm for arm in evidence.main if arm in arms or arm.name == "random_b"]
    values = {arm.name: evidence.by_source(arm.name, "random_r") for arm in arms}
    sources = sorted({source for of_arm in values.values() for source in of_arm})
    if not sources:
        return None
    order = values.get("random_b") or values[arms[0].name]
    sources.sort(key=lambda source: order[source].mean if source in order else 0.0)

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=MUTED, linestyle="--")
        height = 0.8 / len(arms)
        for i, arm in enumerate(arms):
            look = look_of(arm.name)
            for row, source in enumerate(sources):
                if difference := values[arm.name].get(source):
                    at = row + (0.1 if narrow else 0.0) + height * (i - (len(arms) - 1) / 2)
                    axes.barh(at, difference.mean, height * 0.82, color=look.color, alpha=0.55, linewidth=0)
                    _error(axes, difference, at, color=look.color)
        low, high = _reach([d.mean for of_arm in values.values() for d in of_arm.values()])
        axes.set_xlim(low, high)
        for row, source in enumerate(sources):
            _row_label(axes, row - 0.06, short_source(source), narrow=narrow)
        axes.set_ylim(len(sources) - 0.4, -0.75 if narrow else -0.6)
        axes.set_xlabel("held-out loss, difference to random r")
        axes.grid(axis="x")
        _rows_only(axes, [short_source(source) for source in sources], narrow=narrow)

    rows = 0.13 * len(arms)
    return draw_picture(
        "sources",
        draw,
        title="Which sources gain",
        caption="Held-out loss at the end, difference to random r paired by seed, with 95% intervals where "
        "there are three seeds or more. Left is better.",
        alt="; ".join(
            f"{short_source(source)}: "
            + ", ".join(f"{arm.title} {d.mean:+.3f}" for arm in arms if (d := values[arm.name].get(source)))
            for source in sources
        ),
        heights=(1.0 + len(sources) * max(0.36, rows), 1.0 + len(sources) * (0.34 + rows)),
        keys=keys_of(arms),
    )


def setting(name: str, series: Sequence[Series], labels: Sequence[str], axis: str, *, absolute: bool) -> Picture | None:
    """How the answer moves with one setting.

    Args:
        name: Unique on the page.
        series: A method each.
        labels: The setting's values, in order.
        axis: What the setting is.
        absolute: Values are losses with standard errors, not differences to random r with intervals.
    """
    if len(labels) < 2 or not any(one.points for one in series):
        return None
    what = "balanced held-out loss" if absolute else "difference to its random r"

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        if not absolute:
            axes.axhline(0, color=MUTED, linestyle="--")
        spread = min(0.1, 0.6 / len(series))
        for i, one in enumerate(series):
            look, shift = look_of(one.arm.name), spread * (i - (len(series) - 1) / 2)
            x, values = [point.at + shift for point in one.points], [point.value for point in one.points]
            axes.plot(x, values, "-", color=look.color, alpha=0.4, linewidth=1.2)
            axes.plot(x, values, look.marker, color=look.color, markersize=7)
            for at, point in zip(x, one.points, strict=True):
                axes.vlines(at, point.low, point.high, color=look.color, linewidth=1.6)
        axes.set_ylim(*_reach([point.value for one in series for point in one.points], zero=not absolute))
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_xlabel(axis)
        axes.set_ylabel(what)
        axes.grid(axis="y")

    said = "; ".join(
        f"{one.arm.title}: " + ", ".join(f"{point.value:.3f} at {labels[point.at]}" for point in one.points)
        for one in series
    )
    return draw_picture(
        f"setting-{name}",
        draw,
        title="",
        caption="Balanced held-out loss, ± standard error."
        if absolute
        else "Balanced held-out loss, difference to random r under the same setting, paired, with 95% intervals.",
        alt=f"{what.capitalize()}. {said}.",
        heights=(3.4, 3.6),
        keys=keys_of([one.arm for one in series]),
    )


def _bar(axes: Axes, low: float, high: float, row: float, *, color: str) -> None:
    """An interval, with an arrow where it goes on beyond the picture."""
    left, right = max(low, _WIDEST[0]), min(high, _WIDEST[1])
    axes.hlines(row, left, right, color=color, linewidth=2)
    for end, beyond, marker in ((left, low < left, "<"), (right, high > right, ">")):
        if beyond:
            axes.plot(end, row, marker, color=color, markersize=6)


def _error(axes: Axes, difference: Difference, row: float, *, color: str) -> None:
    if difference.drawn:
        axes.hlines(row, *difference.drawn, color=color, linewidth=1.3)


def _reach(means: Sequence[float], *, zero: bool = True) -> tuple[float, float]:
    """Limits around the means, and zero if wanted; intervals of two seeds may leave the picture."""
    low, high = min(means), max(means)
    low, high = (min(0.0, low), max(0.0, high)) if zero else (low, high)
    pad = 0.22 * (high - low) or 0.1
    return low - pad, high + pad


def _row_label(axes: Axes, row: float, text: str, *, narrow: bool) -> None:
    """On a narrow screen, a row's name stands over it, so that the width belongs to the data."""
    if narrow:
        axes.text(0, row - 0.34, text, transform=axes.get_yaxis_transform(), va="center", fontsize=10)


def _rows_only(axes: Axes, names: Sequence[str], *, narrow: bool) -> None:
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    if narrow:
        axes.set_yticks([])
    else:
        axes.set_yticks(range(len(names)), names)
