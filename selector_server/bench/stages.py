"""Where the time of a selection goes, by watching the functions that it is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pkgutil import resolve_name
from typing import Any

import torch

# The functions of each stage, where they are looked up; none of them is called inside another.
STAGES: dict[str, tuple[str, ...]] = {
    "draw rows": ("selector_server.picker:draw_large_batch",),
    "draw probes": ("selector_server.scoring.probes:Probes.draw", "selector_server.scoring.scorer:signs"),
    "trunk": ("selector_server.scoring.split:Split.trunk",),
    "tail": ("selector_server.scoring.tail:Tail.hidden",),
    "head": ("selector_server.scoring.estimators:token_losses", "selector_server.scoring.estimators:token_gradients"),
    "tail back": ("torch.autograd:grad",),
    "sketch": ("selector_server.scoring.scorer:add_gradients",),
    "features": ("selector_server.picker:features_of",),
    "pick": ("selector_server.picker:pick_rows",),
}


def stage_seconds(run: Callable[[], object]) -> dict[str, float]:
    """Seconds of each stage of one run, and of what is in none: `other`."""
    seconds = dict.fromkeys(STAGES, 0.0)
    with ExitStack() as watches:
        for stage, functions in STAGES.items():
            for function in functions:
                watches.enter_context(_watch(function, stage, seconds))
        clock = _now()
        run()
        total = _now() - clock
    return seconds | {"other": total - sum(seconds.values())}


@contextmanager
def _watch(function: str, stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time that a function takes to its stage."""
    owner, _, name = function.rpartition("." if "." in function.partition(":")[2] else ":")
    holder = resolve_name(owner)
    original = getattr(holder, name)

    @wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        clock = _now()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[stage] += _now() - clock

    setattr(holder, name, timed)
    try:
        yield
    finally:
        setattr(holder, name, original)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
