"""Draw → score → pick, for one model and one store: what the server runs and what selection in the trainer runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from selector_server.features import l1_distances, l1_features
from selector_server.picks import Picks, facility_location
from selector_server.probes import Probes
from selector_server.scorer import Scorer
from shared.dataset import Store
from shared.errors import ModelError
from shared.model import trainable_tensors
from shared.records import PhaseTimes, Selection
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig


class SelectionEngine:
    """Finds sub-batches with the weights its model holds at the moment."""

    def __init__(self, model: Any, store: Store, selection: SelectionConfig, *, run: str, seed: int) -> None:
        """Prepare for one run.

        Args:
            model: A causal language model, bare or with a LoRA adapter; it may be training at the same time as long as
                nobody steps it while `select` runs.
            store: The rows to draw from.
            selection: How to draw, score and pick.
            run: The run's name, for records and errors.
            seed: The run's seed.

        Raises:
            ModelError: a model that can't be split or has no V projection of its own, or too small a vocabulary.
        """
        self._store, self._selection, self._run, self._seed = store, selection, run, seed
        self._model = model
        self._scorer: Scorer | None = None
        self.weights_version = -1
        if selection.scores:
            require_vocabulary(model, store)
            self._scorer = Scorer(model, next(model.parameters()).device)

    def load(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put one version of the weights into the model; names and shapes have been checked against the run's."""
        mine = trainable_tensors(self._model)
        with torch.no_grad():
            for name, tensor in tensors.items():
                mine[name].copy_(tensor)
        self.weights_version = version

    def select(self, step: int, weights_version: int) -> tuple[Selection, PhaseTimes]:
        """The selection of a step, with the weights the model holds now.

        Raises:
            ConfigError: the store has fewer rows than the large batch.
            SelectionError: a row's loss isn't finite.
        """
        selection, started = self._selection, time.time_ns()
        clock = time.perf_counter()
        batch = draw_large_batch(self._store.source_rows, selection, seed=self._seed, step=step)
        drawn = time.perf_counter()
        scored = drawn
        size = selection.sub_batch_size
        if self._scorer is None:
            # The baseline: the first rows in draw order.
            weight = np.full(size, selection.large_batch_size / size)
            picks = Picks(index=np.arange(size), gain=np.zeros(size), weight=weight)
        else:
            self._scorer.refresh()
            probes = Probes(self._scorer.shape, seed=self._seed, step=step, count=selection.num_probes)
            scores = self._scorer.projected_gradients(
                self._store.rows(batch), probes, epsilon=selection.epsilon, score_tokens=selection.score_tokens
            )
            scored = time.perf_counter()
            distances = l1_distances(l1_features(scores.c, probes, k=selection.sparsify_k))
            picks = facility_location(distances.max() - distances, budget=size)
        index = batch[picks.index]
        result = Selection(
            run=self._run,
            step=step,
            weights_version=weights_version,
            large_batch_size=selection.large_batch_size,
            index=index,
            source=self._store.sources_of(index),
            weight=picks.weight.astype(np.float32),
            gain=picks.gain.astype(np.float32),
            num_tokens=self._store.lengths(index),
        )
        times = PhaseTimes(
            started_unix_ns=started,
            draw_seconds=drawn - clock,
            score_seconds=scored - drawn,
            pick_seconds=time.perf_counter() - scored,
        )
        return result, times


def require_vocabulary(model: Any, store: Store) -> None:
    """Refuse a model whose embedding has no row for some token of the store.

    Raises:
        ModelError: the store's largest token id is past the model's vocabulary.
    """
    size, largest = model.get_input_embeddings().weight.shape[0], store.manifest.max_token_id
    if largest >= size:
        raise ModelError(
            f"the model's vocabulary has {size} tokens, the store holds token id {largest}: prepare the store with "
            "this model's tokenizer"
        )
