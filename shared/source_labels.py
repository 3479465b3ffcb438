"""Sources as labels of a metric: the largest by name, the rest together, so that there are never too many series."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.metric import MOST_SOURCES, OTHER_SOURCES


class SourceLabels:
    """The labels of one store's sources."""

    def __init__(self, names: Sequence[str], rows: Sequence[int]) -> None:
        """Choose the largest.

        Args:
            names: Of all sources.
            rows: How many each has.
        """
        self._named = np.argsort(-np.asarray(rows), kind="stable")[:MOST_SOURCES]
        self._labels = [names[number] for number in self._named]
        self._has_others = len(names) > MOST_SOURCES

    def label(self, counts: npt.NDArray[np.int64]) -> dict[str, int]:
        """Counts by label, of counts by source, int64 [sources]."""
        named = counts[self._named].tolist()
        labelled = dict(zip(self._labels, named, strict=True))
        return labelled | {OTHER_SOURCES: int(counts.sum()) - sum(named)} if self._has_others else labelled
