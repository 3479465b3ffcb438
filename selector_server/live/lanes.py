"""The newest steps as two lines of characters: what the selector did, and what the trainers did meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from rich.text import Text

from shared.pb.v1 import selector_pb2 as pb

# Of each kind of work a character, so that colour is not needed, and rich's style.
_MARKS = {
    "load": ("▒", "magenta"),
    "score": ("█", "blue"),
    "pick": ("▓", "cyan"),
    "journal": ("▪", "yellow"),
    "train": ("█", "green"),
    "wait": ("░", "red"),
}
_LABEL = 10
Span = tuple[str, float, float]


def lanes(status: pb.RunStatus, *, width: int) -> Text:
    """Both lines with their legend; the right end is now.

    Args:
        status: With its detail.
        width: In columns.
    """
    columns = max(20, width - _LABEL)
    now = status.detail.unix_ns / 1e9
    step = max(status.detail.verdict.step_seconds, 0.05)
    length = min(600.0, step * max(4.0, columns / 12))
    text = Text()
    for label, spans in (("selector", selector_spans(status)), ("trainers", trainer_spans(status))):
        text.append(label.ljust(_LABEL), "bold")
        for kind in _columns(spans, now=now, length=length, columns=columns):
            mark, style = _MARKS.get(kind, (" ", ""))
            text.append(mark, style)
        text.append("\n")
    text.append(f"{'':{_LABEL}}{f'−{length:.0f} s':<{max(1, columns - 3)}}now\n{'':{_LABEL}}", "dim")
    for kind, (mark, style) in _MARKS.items():
        text.append(f"{mark} ", style).append(f"{kind}  ", "dim")
    return text


def selector_spans(status: pb.RunStatus) -> list[Span]:
    """What the selector did: kind, beginning, end, in seconds on the server's clock."""
    spans = []
    for step in status.detail.steps:
        times, at = step.times, step.times.started_unix_ns / 1e9
        work = (("load", times.load_seconds), ("score", times.draw_seconds + times.score_seconds))
        for kind, seconds in (*work, ("pick", times.pick_seconds)):
            spans.append((kind, at, at + seconds))
            at += seconds
        spans.append(("journal", at, step.ready_unix_ns / 1e9))
    return spans


def trainer_spans(status: pb.RunStatus) -> list[Span]:
    """What all ranks together did: they wait from the end of a step until the next one's selection is there."""
    steps, now = list(status.detail.steps), status.detail.unix_ns / 1e9
    spans: list[Span] = []
    if steps and steps[0].first_completed_unix_ns:
        spans.append(("train", steps[0].ready_unix_ns / 1e9, steps[0].first_completed_unix_ns / 1e9))
    for before, step in pairwise(steps):
        if not before.last_completed_unix_ns or step.step != before.step + 1:
            continue
        free, ready = before.last_completed_unix_ns / 1e9, step.ready_unix_ns / 1e9
        if ready > free:
            spans.append(("wait", free, ready))
        spans.append(("train", max(free, ready), step.last_completed_unix_ns / 1e9 or now))
    if steps and steps[-1].last_completed_unix_ns and steps[-1].step + 1 < status.num_steps and not status.closed:
        spans.append(("wait", steps[-1].last_completed_unix_ns / 1e9, now))
    return spans


def _columns(spans: list[Span], *, now: float, length: float, columns: int) -> Iterator[str]:
    """What fills each column for the longest time, waiting before all else."""
    width = length / columns
    for n in range(columns):
        begin, end = now - length + n * width, now - length + (n + 1) * width
        shares: dict[str, float] = {}
        for kind, since, until in spans:
            overlap = min(until, end) - max(since, begin)
            if overlap > 0.0:
                shares[kind] = shares.get(kind, 0.0) + overlap * (2.0 if kind == "wait" else 1.0)
        yield max(shares, key=shares.__getitem__) if shares else ""
