"""The large batch → its sub-batch, in the way the run's config says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from selector_server.picks.clusters import pick_from_clusters
from selector_server.picks.cube import balancing_variables, cube
from selector_server.picks.distances import pairwise_distances
from selector_server.picks.pivotal import local_pivotal
from selector_server.picks.probabilities import by_norm, equal
from selector_server.picks.pursuit import matching_pursuit
from selector_server.picks.record import Features, FloatArray, IntArray, Picks
from selector_server.picks.sourcewise import pick_medoids
from selector_server.picks.strata import share_of_each
from shared.errors import SelectionError
from shared.selection_config import SelectionConfig

_T = TypeVar("_T")


def pick_rows(
    selection: SelectionConfig,
    features: Features | None,
    *,
    source: npt.NDArray[np.integer[Any]],
    source_rows: Sequence[int],
    loss: FloatArray | None,
    generator: np.random.Generator,
    device: Any,
    target: FloatArray | None = None,
) -> Picks:
    """Pick the sub-batch of one step.

    Args:
        selection: pick, sub_batch_size and what belongs to them.
        features: Of the m rows of the large batch, in draw order, all finite; None where the pick scores nothing.
        source: The rows' sources, [m].
        source_rows: Rows of each source in the whole data set.
        loss: The rows' losses, [m]; read by pick `loss` alone.
        generator: The step's own; equal generators give equal picks.
        device: Where distances and directions are computed.
        target: What the picks' weighted features should add up to, [f], for `matching_pursuit`; None: all rows' sum.

    Returns:
        sub_batch_size rows. Weights sum to m; where they are 1 / probability and the probabilities differ, on average;
        those of matching pursuit as its target asks. Gains are what facility location or matching pursuit gained, zero
        for other ways of picking.

    Raises:
        SelectionError: fewer than sub_batch_size rows; features or losses that the pick reads are missing.
    """
    if len(source) < selection.sub_batch_size:
        raise SelectionError(
            f"can't pick {selection.sub_batch_size} of {len(source)} rows that are left of the large batch: raise "
            "large_batch_size, lower sub_batch_size, or find out why the other rows' losses aren't finite"
        )
    batch = _Batch(selection, features, source.astype(np.int64), source_rows, loss, generator, device, target)
    return _WAYS[selection.pick](batch)


@dataclass(frozen=True, eq=False)
class _Batch:
    """What `pick_rows` was given."""

    selection: SelectionConfig
    features: Features | None
    source: IntArray
    source_rows: Sequence[int]
    loss: FloatArray | None
    generator: np.random.Generator
    device: Any
    target: FloatArray | None

    @property
    def size(self) -> int:
        return self.selection.sub_batch_size

    def needs(self, what: str, given: _T | None) -> _T:
        if given is None:
            raise SelectionError(f"pick {self.selection.pick!r} reads the rows' {what}, got none: score the rows first")
        return given


def _random(batch: _Batch) -> Picks:
    """The first rows: draw order is random."""
    return _alike(np.arange(batch.size), batch)


def _random_stratified(batch: _Batch) -> Picks:
    return _alike(share_of_each(batch.source, size=batch.size, generator=batch.generator), batch)


def _loss(batch: _Batch) -> Picks:
    """The largest losses, largest first; of equal ones the lowest row."""
    return _alike(np.argsort(-batch.needs("losses", batch.loss), kind="stable")[: batch.size], batch)


def _matching_pursuit(batch: _Batch) -> Picks:
    values = batch.needs("features", batch.features).values
    target = values.sum(axis=0) if batch.target is None else batch.target
    return matching_pursuit(values, target, budget=batch.size, ridge=batch.selection.ridge)


def _local_pivotal(batch: _Batch) -> Picks:
    features, probability = batch.needs("features", batch.features), _probability(batch)
    distances = pairwise_distances(features.values, features.metric, device=batch.device).cpu().numpy()
    return _sampled(local_pivotal(distances, probability, generator=batch.generator), probability)


def _cube(batch: _Batch) -> Picks:
    features, probability = batch.needs("features", batch.features), _probability(batch)
    variables = balancing_variables(features.values, batch.source, probability, device=batch.device)
    return _sampled(cube(variables, probability, generator=batch.generator), probability)


def _clusters(batch: _Batch) -> Picks:
    features = batch.needs("features", batch.features)
    return pick_from_clusters(features, size=batch.size, generator=batch.generator, device=batch.device)


def _facility_location(batch: _Batch) -> Picks:
    features = batch.needs("features", batch.features)
    return pick_medoids(batch.selection, features, batch.source, batch.source_rows, device=batch.device)


def _probability(batch: _Batch) -> FloatArray:
    if batch.selection.inclusion == "equal":
        return equal(len(batch.source), size=batch.size)
    norm = batch.needs("features", batch.features).norm
    return by_norm(norm, size=batch.size, norm_share=batch.selection.norm_share)


def _alike(index: IntArray, batch: _Batch) -> Picks:
    """Picks that weigh the same."""
    return Picks(index, np.zeros(len(index)), np.full(len(index), len(batch.source) / len(index)))


def _sampled(index: IntArray, probability: FloatArray) -> Picks:
    """Picks of a sampling design, weighted so that a total over them is the batch's on average (Horvitz, Thompson)."""
    return Picks(index, np.zeros(len(index)), 1.0 / probability[index])


_WAYS: dict[str, Callable[[_Batch], Picks]] = {
    "facility_location": _facility_location,
    "matching_pursuit": _matching_pursuit,
    "local_pivotal": _local_pivotal,
    "cube": _cube,
    "clusters": _clusters,
    "random": _random,
    "random_stratified": _random_stratified,
    "loss": _loss,
}
