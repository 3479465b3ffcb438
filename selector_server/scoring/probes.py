"""The random directions along which the last layer is perturbed: numbers with an address, made when they are needed.

A probe is as large as the weight it perturbs, so no two of them are ever held at once. The scorer asks for whole
probes one by one, the features for the same block of coordinates of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from shared.random import Purpose, stream


@dataclass(frozen=True)
class Probes:
    """The probes z_j ~ N(0, I) of one step, j < count.

    Attributes:
        shape: Shape of the perturbed weight.
        seed: The run's seed.
        step: The step.
        count: How many probes.
    """

    shape: tuple[int, ...]
    seed: int = field(kw_only=True)
    step: int = field(kw_only=True)
    count: int = field(kw_only=True)

    @property
    def size(self) -> int:
        """Coordinates of one probe."""
        return prod(self.shape)

    def draw(self, index: int) -> npt.NDArray[np.float32]:
        """Probe `index`, float32, in the shape of the weight."""
        return self._stream(index).standard_normal(self.shape, dtype=np.float32)

    def blocks(self, size: int) -> Iterator[npt.NDArray[np.float32]]:
        """All probes side by side, `size` of their flattened coordinates at a time, float32 [count, <= size]."""
        streams = [self._stream(index) for index in range(self.count)]
        for start in range(0, self.size, size):
            width = min(size, self.size - start)
            yield np.stack([numbers.standard_normal(width, dtype=np.float32) for numbers in streams])

    def _stream(self, index: int) -> np.random.Generator:
        return stream(self.seed, Purpose.PROBE, step=self.step, index=index)
