"""Timing that survives a noisy machine: all contestants take turns, and what is compared is each round's ratio."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
