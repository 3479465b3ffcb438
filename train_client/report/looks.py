"""How an arm looks in every figure: a colour and a marker for its method, dots for uniform draws."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from train_client.report.canvas import COLORS, INK, MUTED

_SUFFIX = re.compile(r"_(uniform|2x|stale_\d+|probes_\d+|b\d+r|k_\w+|weight|weight_grad|gamma|clean|duplicates|wrong)$")
_ALL_OF_B = re.compile(r"random_b\d+r")
# Marker → its outline in a box of 10 by 10.
_OUTLINES: Mapping[str, str] = {
    "o": "M5 1a4 4 0 1 0 .001 0z",
    "s": "M1.5 1.5h7v7h-7z",
    "^": "M5 1l4.3 8H.7z",
    "v": "M5 9L.7 1h8.6z",
    "D": "M5 .5L9.5 5 5 9.5.5 5z",
    "P": "M3.5 1h3v2.5H9v3H6.5V9h-3V6.5H1v-3h2.5z",
    "X": "M1 3l2-2 2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2z",
    "p": "M5 .7l4.4 3.2-1.7 5.2H2.3L.6 3.9z",
}


@dataclass(frozen=True)
class Look:
    """A colour's placeholder, a marker, and a dash pattern as Matplotlib names it."""

    color: str
    marker: str
    dash: str = "-"

    @property
    def outline(self) -> str:
        """The marker as an SVG path in a box of 10 by 10."""
        return _OUTLINES[self.marker]

    @property
    def css_color(self) -> str:
        """What a style sheet calls the colour."""
        return f"var({COLORS[self.color]})"

    @property
    def css_dash(self) -> str:
        """The dash pattern in SVG's terms."""
        return {"-": "none", "--": "5 3", ":": "1.5 2.5"}[self.dash]


_BY_NUMBER = [color for color, name in COLORS.items() if name.startswith("--c")]
_METHODS: Mapping[str, Look] = {
    "random_r": Look(MUTED, "o", "--"),
    "random_b": Look(INK, "s", "--"),
    "paper": Look(_BY_NUMBER[0], "^"),
    "colm": Look(_BY_NUMBER[1], "v"),
    "paper_exact": Look(_BY_NUMBER[2], "D"),
    "matched": Look(_BY_NUMBER[3], "o"),
    "pivotal": Look(_BY_NUMBER[4], "P"),
    "hardest": Look(_BY_NUMBER[5], "X"),
}
_OTHERS = (Look(_BY_NUMBER[6], "p"), Look(_BY_NUMBER[7], "s"))


def method_of(arm: str) -> str:
    """The arm that an arm varies: `paper_stale_2` is a `paper`."""
    return "random_b" if _ALL_OF_B.fullmatch(arm) else _SUFFIX.sub("", arm)


def look_of(arm: str) -> Look:
    """An arm's look; a method that nobody foresaw gets one by its name."""
    method = method_of(arm)
    look = _METHODS.get(method) or _OTHERS[sum(method.encode()) % len(_OTHERS)]
    return Look(look.color, look.marker, ":") if arm.endswith("_uniform") else look
