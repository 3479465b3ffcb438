"""What a simulation is summed up as: typical steps, and where the trainers' time goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train_client.plan.simulate import Played

Array = npt.NDArray[np.float64]
# Of the steps, left out at either end: the pipeline fills, and runs that end leave the others more of the server.
_EDGE = 0.1


@dataclass(frozen=True)
class Observed:
    """One simulated way to train, over all its runs.

    Attributes:
        step_seconds: Median.
        step_seconds_mean: Mean.
        step_seconds_p95: 95th percentile.
        wait_fraction: The part of the time in which a run waits for a selection, or for a push before it can snapshot.
        selector_fraction: The part of its time in which a server selects, on average.
    """

    step_seconds: float
    step_seconds_mean: float
    step_seconds_p95: float
    wait_fraction: float
    selector_fraction: float


def step_times(played: Played) -> Array:
    """Step times of all runs, float64 [runs, steps], without the edges."""
    return _inner(played.ended - played.began)


def observe(played: Played, *, servers: int) -> Observed:
    """Sum up a simulation of so many servers."""
    steps = step_times(played)
    waited = _inner(played.train_began - played.began + played.free_to_push - played.trained)
    selecting = (played.select_ended - played.select_began).sum()
    return Observed(
        step_seconds=float(np.median(steps)),
        step_seconds_mean=float(steps.mean()),
        step_seconds_p95=float(np.quantile(steps, 0.95)),
        wait_fraction=float(waited.sum() / steps.sum()),
        selector_fraction=float(selecting / servers / (played.select_ended.max() - played.select_began.min())),
    )


def uneven_fraction(played: Played) -> float:
    """The part of its time for which the first run's average rank waits for its slowest."""
    uneven = _inner(played.rank_seconds.max(axis=1) - played.rank_seconds.mean(axis=1))
    return float(uneven.sum() / step_times(played)[0].sum())


def observe_alone(steps: Array) -> Observed:
    """Sum up step times, float64 [steps], of an arm without a server, in which nobody waits for anything but ranks."""
    inner = _inner(steps)
    return Observed(
        step_seconds=float(np.median(inner)),
        step_seconds_mean=float(inner.mean()),
        step_seconds_p95=float(np.quantile(inner, 0.95)),
        wait_fraction=0.0,
        selector_fraction=0.0,
    )


def _inner(columns: Array) -> Array:
    """Without the first and last steps, along the last axis."""
    edge = max(1, int(_EDGE * columns.shape[-1]))
    return columns[..., edge:-edge]
