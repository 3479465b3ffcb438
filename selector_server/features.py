"""Projected gradients → features of rows, whose L1 distances say how alike the rows' gradients are.

The estimated gradient of row i is ĝ_i = (1/n) Σ_j c_ij z_j. It has as many coordinates as the perturbed weight and is
never formed: only the k coordinates that carry most of it are kept, and they are found block by block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from selector_server.probes import Probes

FloatArray = npt.NDArray[np.float64]

_BLOCK_VALUES = 1 << 22


def l1_features(c: FloatArray, probes: Probes, *, k: int) -> FloatArray:
    """Features whose L1 distances are those of the sparsified gradient estimates.

    With one probe the estimates are c_i · z, and their L1 distances |c_i - c_j| · Σ|z_kept|: one column says it all.

    Args:
        c: Projected gradients, [b, n].
        probes: The n probes they were projected on.
        k: Coordinates to keep (sparsity criterion `grad`), >= 1; more than there are means all.

    Returns:
        [b, 1] for one probe, else [b, min(k, coordinates)].

    Cost: O(b · n · coordinates) time for n > 1; memory for a block of coordinates and n · k values.
    Source: paper §4.2, Eq. (7) and (8), "Further reduce the dimensionality".
    """
    if probes.count == 1:
        return c * float(np.abs(kept_coordinates(np.ones((1, 1)), probes, k=k)).sum())
    return c @ kept_coordinates(c, probes, k=k) / probes.count


def kept_coordinates(c: FloatArray, probes: Probes, *, k: int) -> FloatArray:
    """The probes at the k coordinates where the mean over rows of |ĝ_i| is largest.

    Returns:
        float64 [n, min(k, coordinates)], coordinates in ascending order.
    """
    kept, magnitude = np.empty((probes.count, 0)), np.empty(0)
    for z in probes.blocks(max(1, _BLOCK_VALUES // max(c.shape))):
        kept = np.concatenate([kept, z], axis=1)
        magnitude = np.concatenate([magnitude, np.abs(c @ z).mean(axis=0)])
        if magnitude.size > k:
            largest = np.sort(np.argpartition(magnitude, -k)[-k:])
            kept, magnitude = kept[:, largest], magnitude[largest]
    return kept


def l1_distances(features: FloatArray) -> FloatArray:
    """Pairwise L1 distances [b, b] of features [b, f]."""
    rows = torch.from_numpy(features)
    return np.asarray(torch.cdist(rows, rows, p=1.0).numpy(), dtype=np.float64)
