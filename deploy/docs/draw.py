"""Draws timeline.svg: which step trains on which selection, made from which weights. Run it after changing it.

Times are made up (a selection takes 0.8 of a training step); which weights version a selection waits for is the
product's own rule, `shared.timing.Timing`.
"""

from __future__ import annotations

from pathlib import Path

from shared.timing import Timing

STEPS, SELECT, TRAIN = 5, 0.8, 1.0
LEFT, SCALE, LANE, BAR = 110, 84, 34, 26
INK, SELECTOR, TRAINER, WAIT = "#1b1f24", "#e8a33d", "#3f72af", "#f2c6b4"


def play(timing: Timing) -> list[tuple[float, float, float]]:
    """When each step's selection begins, and when its training begins and ends."""
    ends: list[float] = []
    seen: list[tuple[float, float, float]] = []
    free = 0.0
    for step in range(timing.num_steps):
        version, slowest = timing.weights_version(step), step - timing.lookahead
        begin = max(free, ends[version - 1] if version else 0.0, ends[slowest - 1] if slowest > 0 else 0.0)
        free = begin + SELECT
        train = max(free, ends[-1] if ends else 0.0)
        ends.append(train + TRAIN)
        seen.append((begin, train, ends[-1]))
    return seen


def bar(x: float, width: float, y: float, color: str, text: str = "", ink: str = "#ffffff") -> str:
    """A bar from a time on, with what it is."""
    left = LEFT + SCALE * x
    drawn = f'<rect x="{left:.1f}" y="{y}" width="{SCALE * width - 1.5:.1f}" height="{BAR}" rx="3" fill="{color}"/>'
    middle = left + SCALE * width / 2
    return drawn + f'<text x="{middle:.1f}" y="{y + 17}" text-anchor="middle" fill="{ink}">{text}</text>' * bool(text)


def panel(title: str, timing: Timing, y: float) -> list[str]:
    """Two lanes under a title."""
    parts = [f'<text x="8" y="{y + 14}" font-weight="bold" fill="{INK}">{title}</text>']
    selector, ranks = y + 24, y + 24 + LANE
    parts += [f'<text x="8" y="{lane + 17}" fill="{INK}">{name}</text>' for lane, name in
              ((selector, "selector"), (ranks, "training ranks"))]  # fmt: skip
    before = 0.0
    for step, (begin, train, end) in enumerate(play(timing)):
        parts.append(bar(begin, SELECT, selector, SELECTOR, f"{step} with v{timing.weights_version(step)}", INK))
        if train > before + 1e-9:
            parts.append(bar(before, train - before, ranks, WAIT, "wait" if train - before > 0.4 else "", INK))
        parts.append(bar(train, end - train, ranks, TRAINER, f"step {step}"))
        before = end
    return parts


def picture() -> str:
    """The whole picture."""
    panels = [
        ("S = 0: the paper's algorithm, nothing overlaps", Timing(STEPS, 0, 1, 0)),
        ("S = 1 (default): step t + 1 is selected while step t trains", Timing(STEPS, 1, 1, 1)),
        ("S = 1, K = 2: weights are pushed every second step", Timing(STEPS, 1, 2, 2)),
    ]
    height, width = 110, LEFT + SCALE * 9.4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height * len(panels)}" role="img" '
        'font-family="sans-serif" font-size="13"><title>Selections and training over time</title>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number, (title, timing) in enumerate(panels):
        parts += panel(title, timing, height * number)
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_name("timeline.svg").write_text(picture(), encoding="utf-8")
