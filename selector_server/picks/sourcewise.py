"""Facility location as the config asks for it: of the whole batch, or source by source, small sources kept whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from selector_server.picks.clusters import clusters
from selector_server.picks.medoids import medoids
from selector_server.picks.quotas import balanced, proportional, small_sources
from selector_server.picks.record import Features, FloatArray, IntArray, Picks
from shared.selection_config import SelectionConfig

_QUOTAS = {"proportional": proportional, "balanced": balanced}


def pick_medoids(
    selection: SelectionConfig, features: Features, source: IntArray, source_rows: Sequence[int], *, device: Any
) -> Picks:
    """Pick the rows that stand in best for the others of the batch, or of their source.

    Args:
        selection: sub_batch_size, quotas, keep_small_sources and weighting are used.
        features: Of the m rows of the large batch.
        source: The rows' sources, [m].
        source_rows: Rows of each source in the whole data set.
        device: Where distances are computed.

    Returns:
        First the kept rows of small sources, with gain zero; then medoids, source by source with quotas. Weights are
        m / sub_batch_size, or with `gamma` the rows a pick represents: a kept row itself, a medoid those nearest to it
        among the rows it was picked from, and the nearest pick of all takes a row whose source has a quota of zero.
    """
    size, values, metric = selection.sub_batch_size, features.values, features.metric
    kept = _kept_rows(selection, source, source_rows)
    index, gain, owner = [kept], [np.zeros(len(kept))], np.full(len(source), -1)
    owner[kept] = np.arange(len(kept))
    taken = len(kept)
    for rows, budget in _parts(selection, source, kept):
        picks = medoids(values[rows], budget=budget, metric=metric, device=device)
        index.append(rows[picks.index])
        gain.append(picks.gain)
        if selection.weighting == "gamma":
            owner[rows] = taken + clusters(values[rows], picks.index, metric)
        taken += budget
    picked = np.concatenate(index)
    if selection.weighting == "none":
        weight = np.full(size, len(source) / size)
    else:
        weight = _rows_represented(owner, features, picked)
    return Picks(picked, np.concatenate(gain), weight)


def _kept_rows(selection: SelectionConfig, source: IntArray, source_rows: Sequence[int]) -> IntArray:
    if not selection.keep_small_sources:
        return np.empty(0, dtype=np.int64)
    drawn = np.bincount(source, minlength=len(source_rows))
    return np.flatnonzero(np.isin(source, small_sources(drawn, source_rows, size=selection.sub_batch_size)))


def _parts(selection: SelectionConfig, source: IntArray, kept: IntArray) -> list[tuple[IntArray, int]]:
    """Rows to pick medoids from, and how many of them."""
    others = np.setdiff1d(np.arange(len(source)), kept)
    budget = selection.sub_batch_size - len(kept)
    if selection.quotas == "none":
        return [(others, budget)]
    quota = _QUOTAS[selection.quotas](np.bincount(source[others]), budget=budget)
    return [(others[source[others] == number], int(quota[number])) for number in np.flatnonzero(quota)]


def _rows_represented(owner: IntArray, features: Features, picked: IntArray) -> FloatArray:
    if (owner < 0).any():
        owner = np.where(owner < 0, clusters(features.values, picked, features.metric), owner)
    return np.bincount(owner, minlength=len(picked)).astype(np.float64)
