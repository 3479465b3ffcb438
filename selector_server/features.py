"""What scoring found → features of rows, whose distances say how alike the rows' gradients are."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from selector_server.adam import AdamState
from selector_server.picks.record import Features
from selector_server.scoring.probes import Probes
from selector_server.sparsify import sparsified
from shared.errors import SelectionError
from shared.selection_config import SelectionConfig

FloatArray = npt.NDArray[np.float64]
Metric = Literal["l1", "l2"]

# What asks which gradients are near each other or what they add up to; the others follow the paper's distances.
_PICKS_BY_PROJECTION = ("local_pivotal", "cube", "matching_pursuit")


def features_of(
    selection: SelectionConfig,
    *,
    c: FloatArray | None = None,
    probes: Probes | None = None,
    sketch: FloatArray | None = None,
    prompt: FloatArray | None = None,
    weight: npt.NDArray[np.float32] | None = None,
    adam: AdamState | None = None,
) -> Features:
    """Features of the rows, in the metric that their pick compares them in.

    Rows with projected gradients are compared by the L1 distances of their sparsified estimates, as in the paper. The
    designs that spread a sample, and matching pursuit, take c / √n in L2 instead: its inner products and distances are
    those of the gradients themselves, up to the error of n random directions (Johnson and Lindenstrauss), and it is far
    narrower than k coordinates. They too take the estimates where coordinates were asked for, by `criterion` or
    `adam_features`. A sketch is such a projection already.

    Args:
        selection: pick and the keys of its part "compare" are used.
        c: Projected gradients, [b, n].
        probes: The n probes they were projected on.
        sketch: In place of both, the gradients' sketch, [b, s]: its L2 norms and distances estimate the gradients'.
        prompt: The prompts' mean hidden states, [b, d], to tell rows apart by as well: see `with_soft_labels`.
        weight: The perturbed weight, for the criteria `weight` and `weight_grad`.
        adam: The run's moments before this step, for `adam_features`.

    Returns:
        The same bits for the same input and number of threads. Norms are the root of mean_j c_ij², unbiased for ‖g_i‖²
        before the root, or the sketch's.

    Raises:
        SelectionError: something the selection needs is missing, or doesn't fit the rest.
    """
    values, metric, norm = _gradients(selection, c, probes, sketch, weight, adam)
    if prompt is not None:
        values = with_soft_labels(values, prompt, metric, scale=selection.soft_label_scale)
    return Features(values, metric, norm)


def _gradients(
    selection: SelectionConfig,
    c: FloatArray | None,
    probes: Probes | None,
    sketch: FloatArray | None,
    weight: npt.NDArray[np.float32] | None,
    adam: AdamState | None,
) -> tuple[FloatArray, Metric, FloatArray]:
    """Features of the gradients alone, their metric, and the gradients' norms."""
    if sketch is not None:
        return sketch, "l2", np.sqrt(np.square(sketch).sum(axis=1))
    if c is None or probes is None:
        raise SelectionError("rows have neither a sketch nor projected gradients with their probes: score them first")
    if selection.adam_features and adam is None:
        raise SelectionError("adam_features needs the run's moments: give AdamState.initial at the first step")
    projection = c / np.sqrt(probes.count)
    norm = np.sqrt(np.square(projection).sum(axis=1))
    if selection.pick in _PICKS_BY_PROJECTION and selection.criterion == "grad" and not selection.adam_features:
        return projection, "l2", norm
    moments = adam if selection.adam_features else None
    return sparsified(c, probes, selection, weight=weight, adam=moments), "l1", norm


def with_soft_labels(values: FloatArray, prompt: FloatArray, metric: Metric, *, scale: float) -> FloatArray:
    """Features with the prompts' hidden states beside them, so that rows of unlike prompts are unlike.

    L1 distances of the two parts add, and so do squared L2 distances. The prompts are scaled so that their mean
    distance, in the sense of `mean_distance`, is `scale` times that of `values`, over all pairs. Where either part
    tells no rows apart the prompts add nothing.

    Args:
        values: Features of the gradients, [b, f].
        prompt: [b, d].
        metric: Of the features.
        scale: What the prompts' part of a distance is to the gradients', > 0.

    Returns:
        [b, f + d].

    Cost: O(b · log b · (f + d)) time.
    Source: paper §4.3, "Datasets with multiple sources", which leaves the scale open.
    """
    spread = mean_distance(prompt, metric)
    factor = scale * mean_distance(values, metric) / spread if spread > 0.0 else 0.0
    return np.concatenate([values, factor * prompt], axis=1)


def mean_distance(values: FloatArray, metric: Metric) -> float:
    """The mean L1 distance of all pairs of rows, or the root mean square of their L2 distances; 0 for a single row.

    Sorted, a column's gap from one row to the next is part of as many distances as there are pairs around it.
    """
    b = len(values)
    if b == 1:
        return 0.0
    if metric == "l2":
        # With a row as the origin, equal rows are zeros, not rounding.
        return float(np.sqrt(2.0 * np.var(values - values[0], axis=0, ddof=1).sum()))
    below = np.arange(1, b)
    gaps = np.diff(np.sort(values, axis=0), axis=0).sum(axis=1)
    return float((gaps * below * (b - below)).sum() / (b * (b - 1) / 2))
