"""Draw → score → pick, for one model and one store: what the server runs and what selection in the trainer runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selector_server.counted import Counted
from selector_server.kept import Kept, made_here
from selector_server.picker import Picker
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scorer, Scores
from shared.dataset import Store
from shared.errors import ModelError
from shared.model import trainable_tensors
from shared.records import PhaseTimes, Selection
from shared.selection_config import SelectionConfig


@dataclass(frozen=True, eq=False)
class Selected:
    """One step's selection, and what came with it.

    Attributes:
        selection: The sub-batch.
        times: How long each phase took.
        history: What the next step's selection needs of the past; empty where it needs nothing.
        kept: What the rows were picked from; None where nothing was scored.
        counted: Rows and tokens drawn and picked.
    """

    selection: Selection
    times: PhaseTimes
    history: bytes
    kept: Kept | None
    counted: Counted


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
            ModelError: a model that can't be split or has no V projection to perturb, whose gradients the estimator
                can't take, or too small a vocabulary.
        """
        self._store, self._selection, self._seed = store, selection, seed
        self._model = model
        self._device = next(model.parameters()).device
        self._picker = Picker(store, selection, run, seed, self._device)
        self._scorer: Scorer | None = None
        self.weights_version = -1
        if selection.scores:
            require_vocabulary(model, store)
            self._scorer = Scorer(
                model, self._device, gradient_of=selection.gradient_of, num_blocks=selection.num_blocks
            )
            self._scorer.rehearse(selection)

    def load(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put one version of the weights into the model; names and shapes have been checked against the run's."""
        mine = trainable_tensors(self._model)
        with torch.no_grad():
            for name, tensor in tensors.items():
                mine[name].copy_(tensor)
        self.weights_version = version

    def select(self, step: int, weights_version: int, history: bytes = b"") -> Selected:
        """The selection of a step, with the weights the model holds now.

        Args:
            step: The step.
            weights_version: Of the weights the model holds.
            history: What the selection of the step before left, where the run keeps a history; else empty.

        Raises:
            ConfigError: the store has fewer rows than the large batch.
            SelectionError: too few rows with a finite loss, or a history that isn't this run's.
        """
        started, clock = time.time_ns(), time.perf_counter()
        batch = self._picker.draw(step)
        drawn = time.perf_counter()
        scores = probes = weight = None
        if self._scorer is not None:
            probes = self._picker.probes(step, self.probe_shape)
            scores = self.score(batch, probes)
            weight = self.weight() if probes else None
        scored = time.perf_counter()
        selection, after = self._picker.pick(
            batch, scores, step=step, weights_version=weights_version, history=history, probes=probes, weight=weight
        )
        times = PhaseTimes(
            started_unix_ns=started,
            draw_seconds=drawn - clock,
            score_seconds=scored - drawn,
            pick_seconds=time.perf_counter() - scored,
            peak_bytes=torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0,
        )
        shape = probes.shape if probes else ()
        kept = Kept(batch, scores, shape, made_here(self._device)) if scores else None
        return Selected(selection, times, after, kept, Counted.of(self._store, batch, selection))

    def score(self, rows: npt.NDArray[np.int64], probes: Probes | None) -> Scores:
        """Score rows of the store, int64 [b], with the weights the model holds now; without probes, their losses."""
        assert self._scorer is not None
        self._scorer.refresh()
        return self._scorer.score(self._store.rows(rows), probes, self._selection)

    @property
    def probe_shape(self) -> tuple[int, ...]:
        """The shape of what probes perturb; empty where they are only seeds."""
        assert self._scorer is not None
        return self._scorer.shape

    def weight(self) -> npt.NDArray[np.float32] | None:
        """What is perturbed, as it was scored last, where the selection's criterion looks at it."""
        assert self._scorer is not None
        return self._scorer.weight() if self._selection.criterion != "grad" else None


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
