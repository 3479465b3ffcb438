"""The one source of randomness of a run: a counter-based generator, so that any draw is arithmetic on its address.

NumPy's Philox-4x64-10, keyed by (seed, purpose) and starting at counter (0, 0, index, step). It runs on the CPU: every
device, every number of scorers and every replay sees the same numbers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of every journal ever written: never reuse one."""

    DRAW = 1
    PROBE = 2
    PICK = 3


def stream(seed: int, purpose: Purpose, *, step: int, index: int = 0) -> np.random.Generator:
    """The generator at one address; equal addresses give equal numbers for ever.

    Args:
        seed: The run's seed, 0 <= seed < 2**63.
        purpose: What the numbers are for.
        step: The step they belong to.
        index: Which of several streams of that step, such as a probe's number.
    """
    philox = np.random.Philox(
        key=np.array([seed, int(purpose)], dtype=np.uint64), counter=np.array([0, 0, index, step], dtype=np.uint64)
    )
    return np.random.Generator(philox)
