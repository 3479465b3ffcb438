"""How well a step's sub-batch stood in for its large batch, where a loop measures it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GradientMatch:
    """How well a step's sub-batch stood in for its large batch.

    Attributes:
        error: |g_S - g_M| / |g_M| of the sub-batch's gradient and the large batch's.
        cosine: Of the two.
        bias: |Σ (g_S - g_M)| / Σ |g_M| over the checks so far.
    """

    error: float
    cosine: float
    bias: float
