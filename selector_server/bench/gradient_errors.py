"""Errors of a sub-batch's gradient over many large batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """Of one way of picking; root mean squares relative to the gradient that is compared with.

    Attributes:
        error_large_batch: |g_S - g_M| / |g_M|.
        bias_large_batch: The norm of the mean of g_S - g_M, relative to |g_M|.
        bias_floor: What that norm is for an unbiased way of picking with the same error, over as many large batches.
        error_population: |g_S - g| / |g|, g the population's gradient.
        stderr: Standard error of error_large_batch.
    """

    error_large_batch: float
    bias_large_batch: float
    bias_floor: float
    error_population: float
    stderr: float


def over_points(errors: Sequence[Errors]) -> Errors:
    """Root mean squares over the points of a run; the standard error is of their mean."""
    means = {f.name: float(np.sqrt(np.mean([getattr(e, f.name) ** 2 for e in errors]))) for f in fields(Errors)}
    means["stderr"] /= float(np.sqrt(len(errors)))
    return Errors(**means)


class Tally:
    """Errors of one arm over many large batches."""

    def __init__(self, population: FloatArray) -> None:
        self._population = population
        self._drift = np.zeros_like(population)
        self._to_large: list[float] = []
        self._to_population: list[float] = []
        self._large: list[float] = []

    def add(self, large: FloatArray, estimate: FloatArray) -> None:
        """Take in one large batch's gradient, and the sub-batch's estimate of it."""
        error = estimate - large
        self._drift += error
        self._to_large.append(float(error @ error))
        self._to_population.append(float(np.square(estimate - self._population).sum()))
        self._large.append(float(large @ large))

    def errors(self) -> Errors:
        """What the batches so far say; the standard error is of the root mean square, by the delta method."""
        count, scale = len(self._large), float(np.mean(self._large))
        squares = np.array(self._to_large) / scale
        error = float(np.sqrt(squares.mean()))
        spread = float(squares.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
        return Errors(
            error_large_batch=error,
            bias_large_batch=float(np.linalg.norm(self._drift / count)) / np.sqrt(scale),
            bias_floor=error / np.sqrt(count),
            error_population=float(np.sqrt(np.mean(self._to_population) / (self._population @ self._population))),
            stderr=spread / (2 * error) if error else 0.0,
        )
