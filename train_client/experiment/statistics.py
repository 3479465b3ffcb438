"""What a handful of paired seeds can say: means, paired differences, and the share of a distance that is closed.

Seeds are paired: with one seed, all arms begin with the same weights and draw the same large batches. What a seed does
to all arms alike cancels in differences, so every comparison is of differences within seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from shared.errors import DataError

CONFIDENCE = 0.95
_FEWEST_DRAWN = 3


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: None where no seed has a finite value.
        standard_error: Of the mean; None with fewer than two finite values.
        count: How many finite values there are.
        left_out: How many values aren't finite.
    """

    mean: float | None
    standard_error: float | None
    count: int
    left_out: int = 0


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with a 95 % confidence interval.

    Attributes:
        mean: Of arm - reference.
        standard_error, low, high, p_value: None with one seed. p_value is of the two-sided paired t test against 0.
        count: How many pairs.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    p_value: float | None
    count: int

    @property
    def drawn(self) -> tuple[float, float] | None:
        """The interval, if it is of a size to be drawn: that of two seeds is several times as wide as that of three."""
        if self.low is None or self.high is None or self.count < _FEWEST_DRAWN:
            return None
        return self.low, self.high

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Share:
    """How much of the distance from one reference to another an arm closes: 0 at the first, 1 at the second.

    Attributes:
        value: None where the share isn't defined; `reason` then says why.
        low, high: A 95 % confidence interval; None with one seed.
        count: How many seeds all three have.
        reason: Why a number is missing; empty if none is.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int
    reason: str = ""


def estimate(values: Sequence[float | None]) -> Estimate:
    """Mean and standard error; None and values that aren't finite are left out and counted."""
    finite = np.array([value for value in values if value is not None and np.isfinite(value)], dtype=np.float64)
    count = len(finite)
    left_out = len(values) - count
    if not count:
        return Estimate(None, None, 0, left_out)
    return Estimate(float(finite.mean()), _standard_error(finite), count, left_out)


def paired_difference(arm: Sequence[float], reference: Sequence[float]) -> Difference | None:
    """The mean of arm - reference over pairs, with Student's 95 % interval.

    Args:
        arm: A value per seed, [n]; pairs with a value that isn't finite are left out.
        reference: The same seeds in the same order.

    Returns:
        None where no finite pair is left.

    Raises:
        DataError: not as many of one as of the other.
    """
    difference = _pairs(arm, reference) @ np.array([1.0, -1.0])
    count = len(difference)
    if not count:
        return None
    mean, error = float(difference.mean()), _standard_error(difference)
    if error is None:
        return Difference(mean, None, None, None, None, count)
    reach = _t_quantile(count) * error
    if error:
        p_value = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    else:
        p_value = 0.0 if mean else 1.0
    return Difference(mean, error, mean - reach, mean + reach, p_value, count)


def share_closed(arm: Sequence[float], start: Sequence[float], goal: Sequence[float], *, smaller: bool = True) -> Share:
    """(start - arm) / (start - goal) as a ratio of means over paired seeds, with Fieller's interval.

    Fieller's interval holds its level at any number of seeds when the two differences are jointly normal; resampling
    five seeds doesn't (it covers about 85 % instead of 95 %). It has no finite ends where the distance itself can't be
    told from zero: then a share says nothing, and none is given.

    Args:
        arm: A value per seed, [n]; seeds with a value that isn't finite are left out.
        start: Of the reference with share 0.
        goal: Of the reference with share 1.
        smaller: Whether smaller values are better, as losses are; the goal must be better than the start.

    Raises:
        DataError: not as many of one as of another.

    Source: Fieller 1954, "Some problems in interval estimation".
    """
    values = _pairs(arm, start, goal)
    count = len(values)
    if not count:
        return Share(None, None, None, 0, "no seed has all three")
    closed, distance = values[:, 1] - values[:, 0], values[:, 1] - values[:, 2]
    top, bottom = float(closed.mean()), float(distance.mean())
    if bottom == 0 or (bottom > 0) != smaller:
        return Share(None, None, None, count, "undefined: the goal is not better than the start")
    if count == 1:
        return Share(top / bottom, None, None, 1, "one seed: no interval")
    (var_top, covariance), (_, var_bottom) = np.cov(closed, distance) / count
    factor = _t_quantile(count) ** 2
    square = bottom**2 - factor * var_bottom
    if square <= 0:
        return Share(None, None, None, count, "undefined: the distance is within the noise")
    middle = top * bottom - factor * covariance
    root = float(np.sqrt(max(0.0, middle**2 - square * (top**2 - factor * var_top))))
    return Share(top / bottom, float((middle - root) / square), float((middle + root) / square), count)


def between(
    cost: float, costs: tuple[float, float], losses: tuple[Sequence[float], Sequence[float]]
) -> list[float] | None:
    """Losses that random runs of a cost between two others would end with, one per seed.

    Straight in the logarithm of the cost. Losses fall ever more slowly as cost grows, so that a line in the cost itself
    would give larger ones, and flatter what is compared with them.

    Returns:
        None where `cost` is outside the two costs.
    """
    low, high = costs
    if not 0 < low <= cost <= high or low == high:
        return None
    part = float(np.log(cost / low) / np.log(high / low))
    return [(1 - part) * first + part * second for first, second in zip(*losses, strict=True)]


def along(curve: Mapping[int, float], step: float) -> float:
    """A loss curve at a step between those that it has, straight from one to the next; NaN outside them."""
    steps = sorted(curve)
    if not steps or not steps[0] <= step <= steps[-1]:
        return float("nan")
    return float(np.interp(step, steps, [curve[at] for at in steps]))


def _pairs(*columns: Sequence[float]) -> npt.NDArray[np.float64]:
    """[n, columns], rows with a value that isn't finite left out."""
    if len({len(column) for column in columns}) > 1:
        lengths = " and ".join(str(len(column)) for column in columns)
        raise DataError(f"paired values of {lengths} seeds: give one of each for every seed")
    rows = np.array(columns, dtype=np.float64).T
    kept: npt.NDArray[np.float64] = rows[np.isfinite(rows).all(axis=1)]
    return kept


def _standard_error(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _t_quantile(count: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
