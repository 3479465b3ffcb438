"""The demo's pictures: what is drawn, and what is refused."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from shared.errors import DataError
from train_client.demo.canvas import BLUE, ORANGE
from train_client.demo.pictures import Span, draw_loss_by_source, draw_loss_curves, draw_source_shares, draw_timeline
from train_client.demo.timeline import SELECTION_COLORS, TRAINING_COLORS, hidden_share

ARMS = ("selected 16 of 32", "random 16", "random 32")
SOURCES = [f"data/{kind}/source_{i}.json" for kind in ("CoT", "PoT") for i in range(7)]


def _run(*, overlapped: bool, steps: int = 8, seed: int = 0) -> list[Span]:
    """One selector and two ranks that train a second a step; scoring takes most of a second."""
    draw, clock, spans = random.Random(seed), 100.0, []
    for step in range(steps):
        selected = clock - 1.0 if overlapped else clock
        for phase, seconds in (("load", 0.02), ("draw", 0.02), ("score", 0.5 + 0.3 * draw.random()), ("pick", 0.05)):
            spans.append(Span("selector", phase, step, selected, selected + seconds))
            selected += seconds
        spans.append(Span("selector", "journal", step, selected, selected + 0.01))
        begin = max(clock, selected + 0.01)
        for rank in ("rank 0", "rank 1"):
            spans.append(Span(rank, "wait", step, clock, begin))
            spans.append(Span(rank, "prepare", step, begin, begin + 0.02))
            spans.append(Span(rank, "train", step, begin + 0.02, begin + 1.0))
            spans.append(Span(rank, "optimizer", step, begin + 1.0, begin + 1.05))
        spans.append(Span("rank 0", "push", step, begin + 1.05, begin + 1.3))
        clock = begin + 1.05
    return spans


def _size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def _columns(path: Path, color: str) -> np.ndarray:
    """Which columns of the picture, its legend left out, have the color."""
    pixels = imread(path)[: int(_size(path)[1] * 0.8), :, :3]
    return np.any(np.all(np.abs(pixels - to_rgb(color)) < 0.01, axis=2), axis=0)


def test_on_the_timeline_scoring_lies_over_training_only_where_they_overlap(tmp_path: Path):
    for overlapped in (True, False):
        path = tmp_path / f"{overlapped}.png"
        draw_timeline(_run(overlapped=overlapped), path, first_step=1, last_step=6)
        assert _size(path)[0] == 2400
        score, train = (_columns(path, c) for c in (SELECTION_COLORS["score"], TRAINING_COLORS["train"]))
        assert min(score.sum(), train.sum()) > 400
        both = (score & train).sum() / score.sum()
        assert both > 0.9 if overlapped else both < 0.1


@pytest.mark.parametrize("overlapped", [True, False])
def test_hidden_share_equals_counting_small_slices_of_time(overlapped: bool):
    spans = _run(overlapped=overlapped)
    total = hidden = 0
    for tick in range(95_000, 115_000):
        now = (tick + 0.5) / 1000
        active = [span for span in spans if span.start_s <= now < span.end_s]
        for work in (span for span in active if span.phase in SELECTION_COLORS):
            total += 1
            hidden += any(span.phase == "train" and span.step < work.step for span in active)
    assert hidden_share(spans) == pytest.approx(hidden / total, abs=0.01)


def test_loss_pictures_and_shares_are_png_files_of_a_readable_size(tmp_path: Path):
    draw = random.Random(1)
    curves = {arm: [(step, 4 - step / 20 + draw.gauss(0, 0.05)) for step in range(0, 61, 20)] for arm in ARMS}
    losses = {arm: {source: draw.uniform(1, 4) for source in SOURCES} for arm in ARMS}
    shares = {source: (0.4 / 2**i + 1e-4, 1 / 14, draw.choice((0.0, 0.1))) for i, source in enumerate(SOURCES)}
    draw_loss_curves(curves, tmp_path / "new" / "curves.png")
    draw_loss_by_source(losses, tmp_path / "by-source.png")
    draw_source_shares(shares, tmp_path / "shares.png")
    for picture in ("new/curves.png", "by-source.png", "shares.png"):
        width, height = _size(tmp_path / picture)
        assert 1500 <= width <= 2500
        assert 900 <= height <= 1500
        assert all(_columns(tmp_path / picture, color).sum() > 10 for color in (BLUE, ORANGE))


def test_spans_that_make_no_timeline_are_refused(tmp_path: Path):
    path = tmp_path / "timeline.png"
    spans = _run(overlapped=True)
    with pytest.raises(DataError, match="no training span in steps 20 to 25: the spans given have steps 0 to 7"):
        draw_timeline(spans, path, first_step=20, last_step=25)
    with pytest.raises(DataError, match="unknown phase: known are load, draw"):
        draw_timeline([*spans, Span("rank 0", "nap", 1, 0.0, 1.0)], path, first_step=1, last_step=6)
    with pytest.raises(DataError, match="ends before it starts"):
        draw_timeline([*spans, Span("rank 0", "train", 1, 2.0, 1.0)], path, first_step=1, last_step=6)
    with pytest.raises(DataError, match="steps none"):
        draw_timeline([], path, first_step=1, last_step=6)
    assert not path.exists()


def test_losses_that_cannot_be_compared_are_refused(tmp_path: Path):
    path = tmp_path / "loss.png"
    with pytest.raises(DataError, match="0 arms"):
        draw_loss_curves({}, path)
    with pytest.raises(DataError, match="arm 'a' has nothing"):
        draw_loss_curves({"a": []}, path)
    with pytest.raises(DataError, match=r"'a' and 'b' don't have the same sources: only one has \['y'\]"):
        draw_loss_by_source({"a": {"x": 1.0}, "b": {"x": 1.0, "y": 2.0}}, path)
    assert not path.exists()


def test_shares_that_are_not_fractions_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="at least one source"):
        draw_source_shares({}, tmp_path / "shares.png")
    with pytest.raises(DataError, match="fractions between 0 and 1"):
        draw_source_shares({"x": (34.1, 7.1, 7.2)}, tmp_path / "shares.png")
