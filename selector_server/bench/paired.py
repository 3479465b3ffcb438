"""Timing that survives a noisy machine: all contestants take turns, and what is compared is each round's ratio."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError


def time_in_turns(arms: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Run every arm once a round, in an order that alternates, and time each.

    Args:
        arms: What to run, by name; each arm prepares nothing that it wouldn't for a user.
        rounds: Rounds that count, >= 1.
        warmup: Rounds before them that don't.

    Returns:
        Seconds of each round, by arm.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(warmup + rounds):
        order = list(arms) if round_number % 2 else list(arms)[::-1]
        for name in order:
            clock = time.perf_counter()
            arms[name]()
            if round_number >= warmup:
                seconds[name].append(time.perf_counter() - clock)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median of the rounds' ratios: what drifts from round to round cancels out."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


@dataclass(frozen=True)
class Interval:
    """A median, and an interval that holds the true one with a known confidence, whatever the distribution."""

    median: float
    low: float
    high: float
    confidence: float


def median_interval(values: Sequence[float], *, confidence: float = 0.9) -> Interval:
    """The median of some rounds, with the shortest interval of order statistics of at least this confidence.

    Where there are too few rounds for that, the interval is that of all of them. Rounds are taken to be independent.
    """
    ordered, count = sorted(values), len(values)
    covered = [1 - 2 * sum(math.comb(count, k) for k in range(left + 1)) / 2**count for left in range(count // 2)]
    left_out = max((left for left, share in enumerate(covered) if share >= confidence), default=0)
    low, high = ordered[left_out], ordered[count - 1 - left_out]
    return Interval(statistics.median(ordered), low, high, max(0.0, covered[left_out]) if covered else 0.0)


def make_folder(out: Path) -> None:
    """Make the folder that results go to; minutes are lost where that fails at the end.

    Raises:
        ConfigError: it can't be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.part").touch()
        (out / "result.part").unlink()
    except OSError as error:
        raise ConfigError(f"--out {out} can't be written: {error.strerror}; choose another folder") from error


def write_result(out: Path, result: Mapping[str, Any]) -> Path:
    """Write `out/result.json`, whole or not at all.

    Raises:
        ConfigError: the folder can't be written.
    """
    path = out / "result.json"
    make_folder(out)
    try:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"--out {out} can't be written: {error.strerror}; choose another folder") from error
    return path
