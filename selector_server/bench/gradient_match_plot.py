"""The picture of `bench gradient-match`: error against bias, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.selection_config import PRESETS

_BLUE, _SKY, _GREY, _ORANGE = "#0072B2", "#9CC9E3", "#999999", "#D55E00"


def draw(settings: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One panel a setting: bars of the error to the large batch, dots of the bias, the arms sorted by error.

    Presets are dark blue, random sampling is grey; a dotted line marks the error of r random rows.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    num_arms = len(settings[0]["arms"]) - 1
    figure, axes = plt.subplots(1, len(settings), figsize=(6.4 * len(settings), 1.6 + 0.27 * num_arms))
    for axis, setting in zip(axes, settings, strict=True):
        arms = {name: arm for name, arm in setting["arms"].items() if name != "random_b"}
        names = sorted(arms, key=lambda name: -arms[name]["error_large_batch"])
        errors = [arms[name]["error_large_batch"] for name in names]
        colors = [_GREY if name.startswith("random") else _BLUE if name in PRESETS else _SKY for name in names]
        axis.barh(names, errors, xerr=[arms[name]["stderr"] for name in names], color=colors, height=0.7)
        biases = [arms[name]["bias_large_batch"] for name in names]
        floors = [arms[name]["bias_floor"] for name in names]
        axis.plot(floors, names, "|", color="black", markersize=9, label="bias of an unbiased pick with this error")
        axis.plot(biases, names, "o", color=_ORANGE, markersize=5, label="bias")
        axis.axvline(arms["random_r"]["error_large_batch"], color="black", linewidth=0.8, linestyle=":")
        axis.set_title(f"r = {setting['r']} of b = {setting['b']}")
        axis.set_xlabel("error relative to the large batch's gradient")
        axis.set_xlim(left=0.0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(loc="upper center", bbox_to_anchor=(1.0, -0.08), ncol=2, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
