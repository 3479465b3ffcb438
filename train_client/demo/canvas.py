"""What all pictures share: colours, type and resolution, without pyplot and its global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 200
# Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, YELLOW, GREY = "#CC79A7", "#F0E442", "#999999"


def new_axes(headline: str, *, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes under a headline that says what to see."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(headline, x=0.01, ha="left", fontsize=13, fontweight="bold")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def legend_below(figure: Figure, *, columns: int, keys: Sequence[Artist] | None = None) -> None:
    """Keys for what has a label, or for these artists column by column, where they can't hide a mark."""
    handles = figure.axes[0].get_legend_handles_labels()[0] if keys is None else keys
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=1.4)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, making its folder if it isn't there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white")
