"""Gradient estimates → their most important coordinates, as features whose L1 distances say how alike rows are.

An estimate has as many coordinates as the perturbed weight and is never formed: the k coordinates to keep are found
block by block. Under one probe all estimates are multiples of it, and a single number per row says the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from selector_server.adam import AdamState
from selector_server.scoring.probes import Probes
from shared.errors import SelectionError
from shared.selection_config import SelectionConfig

FloatArray = npt.NDArray[np.float64]
# From the probes at some coordinates, [n, w], to something there.
AtCoordinates = Callable[[npt.NDArray[np.floating]], FloatArray]

# One column stands for k where no distance is further off than this, relative to the largest.
ONE_COLUMN_TOLERANCE = 1e-7

# Estimates are made for so many values at a time that a processor's cache holds them (2 MiB).
_BLOCK_VALUES = 1 << 18


def sparsified(
    c: FloatArray,
    probes: Probes,
    selection: SelectionConfig,
    *,
    weight: npt.NDArray[np.float32] | None = None,
    adam: AdamState | None = None,
) -> FloatArray:
    """Features whose L1 distances are those of the estimates at the coordinates that matter most.

    The estimate of row i is ĝ_i = (1/n) Σ_j c_ij z_j, or what Adam would make of it. All rows keep the same k
    coordinates, those with the largest mean over rows of |estimate| (criterion `grad`), the largest |weight|
    (`weight`), or the largest product of the two (`weight_grad`); of equal ones the first.

    Args:
        c: Projected gradients, [b, n].
        probes: The n probes they were projected on; the same in every step of a run with `adam`.
        selection: criterion, sparsify_k (more than there are means all) and the adam keys are used.
        weight: The perturbed weight, for the criteria that ask for it; of the probes' shape, or flattened.
        adam: The run's moments before this step; None compares the estimates as they are.

    Returns:
        [b, 1] for one probe, else [b, min(k, coordinates)]. With one probe and `adam`, whose ε makes the estimates not
        quite multiples of each other, still [b, 1] unless a distance would be off by `ONE_COLUMN_TOLERANCE`.

    Raises:
        SelectionError: c or adam of another number of probes; a weight that is missing or of another size.

    Cost: O(b · n · coordinates) time for n > 1, O(coordinates + b · k) for n = 1; memory for a block of coordinates and
        the result.
    Source: paper §4.2, Eq. (7) and (8), "Further reduce the dimensionality"; CoLM (arXiv 2407.19580) §4.2 for Adam.
    """
    _require_fit(c, probes, selection, weight, adam)

    def estimate(z: npt.NDArray[np.floating]) -> FloatArray:
        return c / probes.count @ z if adam is None else adam.normalised(c, z, selection)

    def mean_magnitude(z: npt.NDArray[np.floating]) -> FloatArray:
        values = estimate(z)
        return np.asarray(np.abs(values, out=values).mean(axis=0), dtype=np.float64)

    flat = None if weight is None or selection.criterion == "grad" else weight.ravel()
    rank_one = probes.count == 1
    width = _BLOCK_VALUES // probes.count
    if selection.criterion == "weight":
        strength: AtCoordinates = _alike
    elif rank_one and (adam is None or selection.criterion == "grad"):
        # One probe: the mean magnitude grows with |z| alone. Its own rounding, or rows of zeros, mustn't hide that.
        strength = _magnitude
    else:
        strength, width = mean_magnitude, _BLOCK_VALUES // max(c.shape)
    z = _kept(probes, strength, flat, k=selection.sparsify_k, width=max(1, width))
    if not rank_one:
        return estimate(z)
    if adam is None:
        return estimate(np.abs(z).sum(axis=1, keepdims=True))
    column = _one_column(estimate, np.abs(z), width=max(1, _BLOCK_VALUES // len(c)))
    return estimate(z) if column is None else column


def largest(scores: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """Where the k largest scores are, ascending; of equal ones the first are taken."""
    if k >= scores.size:
        return np.arange(scores.size)
    cut = np.partition(scores, -k)[-k]
    chosen = scores > cut
    chosen[np.flatnonzero(scores == cut)[: k - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


def _kept(
    probes: Probes, strength: AtCoordinates, weight: npt.NDArray[np.float32] | None, *, k: int, width: int
) -> FloatArray:
    """The probes where strength, times |weight| if there is one, is largest: [n, min(k, coordinates)], in order."""
    kept, scores, start = np.empty((probes.count, 0)), np.empty(0), 0
    for z in probes.blocks(width):
        score, stop = strength(z), start + z.shape[1]
        if weight is not None:
            score = score * np.abs(weight[start:stop])
        kept, scores, start = np.concatenate([kept, z], axis=1), np.concatenate([scores, score]), stop
        best = largest(scores, k)
        kept, scores = kept[:, best], scores[best]
    return kept


def _one_column(estimate: AtCoordinates, size: FloatArray, *, width: int) -> FloatArray | None:
    """One number per row, the sum of its estimates, whose differences are the L1 distances; None where they aren't.

    They are where the rows are in the same order at every coordinate. To tell, the rows are put in their order at one
    coordinate: then no distance between two of them is further off than the way from the first row to the last, step by
    step, is longer than the difference of their numbers (the triangle inequality).

    Args:
        estimate: Of a single probe.
        size: Its magnitude at the coordinates, [1, k]: its sign changes no distance.
        width: Coordinates at a time.
    """
    order = np.argsort(estimate(np.median(size, keepdims=True))[:, 0], kind="stable")
    column, way = np.zeros((len(order), 1)), 0.0
    for start in range(0, size.shape[1], width):
        part = estimate(size[:, start : start + width])
        column += part.sum(axis=1, keepdims=True)
        way += float(np.abs(np.diff(part[order], axis=0)).sum())
    span = float(column[order[-1], 0] - column[order[0], 0])
    return column if way - span <= ONE_COLUMN_TOLERANCE * span else None


def _alike(z: npt.NDArray[np.floating]) -> FloatArray:
    return np.ones(z.shape[1])


def _magnitude(z: npt.NDArray[np.floating]) -> FloatArray:
    return np.asarray(np.abs(z[0]), dtype=np.float64)


def _require_fit(
    c: FloatArray,
    probes: Probes,
    selection: SelectionConfig,
    weight: npt.NDArray[np.float32] | None,
    adam: AdamState | None,
) -> None:
    if c.ndim != 2 or c.shape[1] != probes.count:
        raise SelectionError(
            f"projected gradients of shape {list(c.shape)} don't belong to {probes.count} probes: give the probes that "
            "the rows were scored with"
        )
    if adam is not None and len(adam.first) != probes.count:
        raise SelectionError(
            f"the Adam history is of {len(adam.first)} probes, the rows were scored with {probes.count}: a run keeps "
            "its num_probes"
        )
    if selection.criterion != "grad" and (weight is None or weight.size != probes.size):
        given = "none" if weight is None else f"one of {weight.size} coordinates"
        raise SelectionError(
            f"criterion {selection.criterion!r} needs the perturbed weight, of {probes.size} coordinates like the "
            f"probes; given {given}: pass the scorer's weight"
        )
