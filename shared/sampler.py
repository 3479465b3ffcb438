"""Large batches: a pure function of (seed, step), so that resuming is arithmetic and nothing has to be stored.

The store keeps the rows of a source together, so a source is a (start, rows) range and the draw needs memory for the
sources and the batch, not for the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigError
from shared.random import Purpose, stream
from shared.selection_config import SelectionConfig


def source_probabilities(rows: Sequence[int], selection: SelectionConfig) -> npt.NDArray[np.float64]:
    """How likely a slot of the large batch is to come from each source; sums to 1.

    `inverse_source` weighs a row by 1 / rows of its source (paper §4.3), which makes all sources equally likely;
    `temperature` T gives rows^(1/T); `uniform` gives rows.
    """
    sizes = np.asarray(rows, dtype=np.float64)
    exponent = {"inverse_source": 0.0, "uniform": 1.0, "temperature": 1.0 / selection.temperature}[selection.sampling]
    mass = np.where(sizes > 0, sizes**exponent, 0.0)
    return np.asarray(mass / mass.sum(), dtype=np.float64)


def draw_large_batch(rows: Sequence[int], selection: SelectionConfig, *, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Draw the large batch of a step, without repeats.

    Each slot first draws a source, then one of the source's rows that this batch doesn't hold yet; a slot whose source
    is used up draws again among the sources that have rows left.

    Args:
        rows: Rows of each source, in store order.
        selection: large_batch_size, sampling and temperature are used.
        seed: The run's seed.
        step: The step.

    Returns:
        Row numbers in the store in draw order, int64 [large_batch_size], all different.

    Raises:
        ConfigError: the store has fewer rows than the large batch.
    """
    size = selection.large_batch_size
    sizes = np.asarray(rows, dtype=np.int64)
    if size > sizes.sum():
        raise ConfigError(
            f"selection.large_batch_size {size} is larger than the data, {sizes.sum()} rows: "
            "lower it, or prepare a larger store"
        )
    generator = stream(seed, Purpose.DRAW, step=step)
    if selection.sampling == "uniform":
        return np.asarray(generator.choice(int(sizes.sum()), size, replace=False), dtype=np.int64)
    slots = _draw_sources(sizes, source_probabilities(rows, selection), size, generator)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    batch = np.empty(size, dtype=np.int64)
    for source in np.unique(slots):
        mine = slots == source
        batch[mine] = starts[source] + generator.choice(int(sizes[source]), int(mine.sum()), replace=False)
    return batch


def _draw_sources(
    sizes: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], size: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Which source each slot draws from, no source more often than it has rows."""
    slots = generator.choice(len(sizes), size, p=probabilities)
    left = probabilities.copy()
    while True:
        surplus = _beyond_capacity(slots, sizes)
        if not surplus.size:
            return slots
        left[np.bincount(slots, minlength=len(sizes)) >= sizes] = 0.0
        if left.sum() == 0.0:  # only sources of probability zero have rows left; unreachable for the modes above
            raise ConfigError(f"no source with rows left can fill a large batch of {size} rows")
        slots[surplus] = generator.choice(len(sizes), surplus.size, p=left / left.sum())


def _beyond_capacity(slots: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions of the slots that ask a source for more rows than it has, in slot order."""
    order = np.argsort(slots, kind="stable")
    ranked = slots[order]
    nth = np.arange(slots.size) - np.searchsorted(ranked, ranked)
    return np.sort(order[nth >= sizes[ranked]])
