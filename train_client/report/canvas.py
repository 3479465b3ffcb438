"""Matplotlib figures as SVG inside a page: the page's colours and type, one drawing for wide screens, one for narrow.

A figure is drawn with placeholder colours, for which the SVG then has CSS variables, so that it follows the reader's
light or dark scheme. Text stays text. Phones get a drawing of their own, since one that shrinks can't be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, RULE, GROUND = "#010101", "#020202", "#030303", "#040404"
# Placeholder → the CSS variable that stands in its place.
COLORS: Mapping[str, str] = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    GROUND: "--ground",
    **{f"#0500{number:02x}": f"--c{number}" for number in range(1, 9)},
}
C = tuple(color for color, name in COLORS.items() if name.startswith("--c"))
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.parse_math": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}
_WIDE_INCHES, _NARROW_INCHES = 10.4, 4.75
_DEFAULTS = {"#000000": INK, "#ffffff": GROUND}


@dataclass(frozen=True)
class Key:
    """A line of the legend that stands under a figure; an empty dash means no line through the mark."""

    title: str
    color: str
    outline: str
    dash: str = "none"


@dataclass(frozen=True)
class Picture:
    """A figure for the page.

    Attributes:
        title: What to see.
        caption: How to read it.
        svg: Both drawings.
        keys: The legend.
    """

    title: str
    caption: str
    svg: Markup
    keys: Sequence[Key] = ()


Draw = Callable[[Figure, bool], None]


def draw_picture(
    name: str,
    draw: Draw,
    *,
    title: str,
    caption: str,
    alt: str,
    heights: tuple[float, float],
    keys: Sequence[Key] = (),
) -> Picture:
    """Draw a figure twice.

    Args:
        name: Unique on the page.
        draw: Draws into a figure; its second argument says whether the screen is narrow.
        title: What to see.
        caption: How to read it.
        alt: What a person who can't see it should know.
        heights: In inches, on wide and on narrow screens.
        keys: The legend.
    """
    drawings = []
    for narrow, width, height in zip((False, True), (_WIDE_INCHES, _NARROW_INCHES), heights, strict=True):
        kind = "narrow" if narrow else "wide"
        settings: Any = _SETTINGS | {"svg.hashsalt": f"{name}-{kind}"}
        with mpl.rc_context(settings):
            figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
            FigureCanvasSVG(figure)
            draw(figure, narrow)
            drawings.append(_inline(figure, prefix=f"{name}-{kind}", kind=kind, alt=alt))
    return Picture(title, caption, Markup("\n").join(drawings), keys)


def panels(figure: Figure, narrow: bool, count: int = 2) -> list[Axes]:
    """Side by side, or below each other on a narrow screen."""
    grid = figure.subplots(count, 1) if narrow else figure.subplots(1, count)
    return list(grid.flat)


def _inline(figure: Figure, *, prefix: str, kind: str, alt: str) -> Markup:
    """The figure as an SVG element without anything that could touch the rest of a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"#[0-9a-f]{6}\b", _variable, text)
    # The page's own type; Matplotlib's measures stay, and are of a wide one, so that nothing runs into anything.
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: ((?:[\w]+ )*?)([\d.]+px) [^;\"]*", _font, text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = (
        f'<svg class="{kind}" {box[0]} xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{escape(alt)}"'
    )
    return Markup(re.sub(r"<svg[^>]*", lambda _: head, text, count=1))


def _variable(match: re.Match[str]) -> str:
    color = _DEFAULTS.get(match[0], match[0])
    return f"var({COLORS[color]})" if color in COLORS else match[0]


def _font(match: re.Match[str]) -> str:
    weight = next((word for word in match[1].split() if word in ("bold", "700", "600")), "")
    return f"font-size: {match[2]}" + (f"; font-weight: {weight}" if weight else "")
