"""Engines of several arms that score a large batch once where they would all find the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from selector_server.engine import SelectionEngine
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scores
from shared.dataset import Store
from shared.selection_config import SelectionConfig

# What decides the scores of given rows, besides probes and weights.
_SCORING = ("estimator", "gradient_of", "num_blocks", "sketch_size", "epsilon", "score_tokens", "soft_labels")


class SharedScores(dict[Any, Scores]):
    """Scores by what decides them; to be cleared when weights or large batches change."""


class SharingEngine(SelectionEngine):
    """An engine that first looks whether another one has scored these rows in the same way."""

    def __init__(
        self, model: Any, store: Store, selection: SelectionConfig, *, run: str, seed: int, shared: SharedScores
    ) -> None:
        """Prepare as `SelectionEngine` does; engines with the same `shared` have the same model, store and seed."""
        super().__init__(model, store, selection, run=run, seed=seed)
        self._shared = shared
        self._way = tuple(getattr(selection, key) for key in _SCORING)

    def score(self, rows: npt.NDArray[np.int64], probes: Probes | None) -> Scores:
        """As `SelectionEngine.score`, or what it gave before."""
        key = (rows.tobytes(), probes, self._way)
        if key not in self._shared:
            self._shared[key] = super().score(rows, probes)
        return self._shared[key]
