"""The demo's pictures: plain data in, PNG files out. Each headline says what to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from shared.errors import DataError
from train_client.demo.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, legend_below, new_axes, save
from train_client.demo.timeline import draw_timeline
from train_client.outcome import Span

__all__ = ["Span", "draw_loss_by_source", "draw_loss_curves", "draw_source_shares", "draw_timeline"]

_LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (VERMILION, "v"))


def draw_loss_curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Draw the held-out loss of each arm by step.

    Args:
        curves: (step, loss) points of each arm, at most five arms.
        path: The PNG to write.

    Raises:
        DataError: no arm, too many, or one without points.
    """
    _check_arms(curves)
    last = {arm: max(points)[1] for arm, points in curves.items()}
    best = min(last, key=lambda arm: last[arm])
    end = max(max(points)[0] for points in curves.values())
    figure, axes = new_axes(f"After {end} steps, '{best}' has the lowest held-out loss", width=8, height=4.8)
    for (arm, points), (color, marker) in zip(curves.items(), _LOOKS, strict=False):
        steps, losses = zip(*sorted(points), strict=True)
        axes.plot(steps, losses, color=color, marker=marker, markersize=6, linewidth=2, label=f"{arm}: {last[arm]:.3f}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("held-out loss, mean over sources\n(nats per answer token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color="#E5E5E5")
    axes.legend(title=f"loss after {end} steps", alignment="left", edgecolor="none", framealpha=1)
    save(figure, path)


def draw_loss_by_source(losses: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw the held-out loss of each source, one mark for each arm.

    Args:
        losses: By arm and source; the headline compares the first arm with the second.
        path: The PNG to write.

    Raises:
        DataError: no arm, too many, or arms that don't have the same sources.
    """
    _check_arms(losses)
    first, *others = losses
    sources = sorted(losses[first], key=lambda source: losses[first][source])
    for other in others:
        if losses[other].keys() != losses[first].keys():
            differing = sorted(losses[other].keys() ^ losses[first].keys())
            raise DataError(f"arms '{first}' and '{other}' don't have the same sources: only one has {differing}")
    headline = "Held-out loss by source"
    if others:
        wins = sum(losses[first][s] < losses[others[0]][s] for s in sources)
        headline = f"'{first}' has a lower held-out loss than '{others[0]}' on {wins} of {len(sources)} sources"
    figure, axes = new_axes(headline, width=9, height=1.8 + 0.33 * len(sources))
    for i, (arm, (color, marker)) in enumerate(zip(losses, _LOOKS, strict=False)):
        rows = [row + 0.22 * (i - (len(losses) - 1) / 2) for row in range(len(sources))]
        axes.plot([losses[arm][s] for s in sources], rows, marker, color=color, markersize=6, label=arm)
    axes.set_xlabel("held-out loss (nats per answer token)")
    _source_rows(axes, sources)
    legend_below(figure, columns=len(losses))
    save(figure, path)


def draw_source_shares(shares: Mapping[str, tuple[float, float, float]], path: Path) -> None:
    """Draw how much of the file, of the large batches and of the sub-batches each source makes up.

    Args:
        shares: By source, each of the three as a fraction of 1.
        path: The PNG to write.

    Raises:
        DataError: no source, or a share outside [0, 1].
    """
    if not shares:
        raise DataError("no source shares to draw: give at least one source")
    for source, values in shares.items():
        if not all(0 <= value <= 1 for value in values):
            raise DataError(f"the shares of {source} are {values}: give fractions between 0 and 1")
    sources = sorted(shares, key=lambda source: -shares[source][0])
    file, large, sub = zip(*(shares[source] for source in sources), strict=True)
    figure, axes = new_axes(
        f"A source is {_percent(min(file))} to {_percent(max(file))} of the file, "
        f"and {_percent(min(large))} to {_percent(max(large))} of the large batches",
        width=9,
        height=1.9 + 0.33 * len(sources),
    )
    rows = range(len(sources))
    axes.hlines(rows, file, large, color="#CCCCCC", linewidth=2, zorder=1)
    axes.plot(file, rows, "o", color="white", markeredgecolor="#555555", markersize=8, label="file")
    axes.plot(large, rows, "o", color=BLUE, markersize=8, label="large batches (drawn)")
    axes.plot(sub, rows, "D", color=ORANGE, markersize=5, label="sub-batches (trained on)")
    axes.axvline(1 / len(sources), color=GREY, linestyle=":", label="equal share")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    axes.set_xlabel("share of rows (log scale)")
    _source_rows(axes, sources)
    legend_below(figure, columns=4)
    save(figure, path)


def _check_arms(arms: Mapping[str, object]) -> None:
    if not 0 < len(arms) <= len(_LOOKS):
        raise DataError(f"{len(arms)} arms to draw: give 1 to {len(_LOOKS)}")
    for arm, values in arms.items():
        if not values:
            raise DataError(f"arm '{arm}' has nothing to draw: give it at least one value")


def _source_rows(axes: Axes, sources: Sequence[str]) -> None:
    """Name the rows, first source on top, without what all the names have in common."""
    names = [source.removeprefix("data/").removesuffix(".json") for source in sources]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(color="#E5E5E5")


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"
