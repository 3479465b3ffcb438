"""Draw → score → pick, for one model and one store: what the server runs and what selection in the trainer runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selector_server.features import features_of
from selector_server.history import History
from selector_server.picks.choose import pick_rows
from selector_server.picks.quotas import small_sources
from selector_server.picks.record import Picks
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scorer, Scores
from shared.dataset import Store
from shared.errors import ModelError, SelectionError
from shared.model import trainable_tensors
from shared.random import Purpose, stream
from shared.records import PhaseTimes, Selection
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Selected:
    """One step's selection, and what came with it.

    Attributes:
        selection: The sub-batch.
        times: How long each phase took.
        history: What the next step's selection needs of the past; empty where it needs nothing.
    """

    selection: Selection
    times: PhaseTimes
    history: bytes


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
            ModelError: a model that can't be split or has no V projection to perturb, or too small a vocabulary.
        """
        self._store, self._selection, self._run, self._seed = store, selection, run, seed
        self._model = model
        self._device = next(model.parameters()).device
        self._scorer: Scorer | None = None
        self.weights_version = -1
        if selection.scores:
            require_vocabulary(model, store)
            self._scorer = Scorer(
                model, self._device, gradient_of=selection.gradient_of, num_blocks=selection.num_blocks
            )

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
        batch = draw_large_batch(self._store.source_rows, self._selection, seed=self._seed, step=step)
        drawn = time.perf_counter()
        picked = self._pick(batch, step, history)
        picks, index = picked.picks, batch[picked.usable][picked.picks.index]
        # Rows that were left out are stood in for by the others.
        weight = picks.weight * (len(batch) / len(picked.usable))
        skipped = np.setdiff1d(batch, batch[picked.usable])
        if skipped.size:
            logger.warning(
                "run %s, step %d: %d of %d rows have a loss that isn't finite and are left out: rows %s of the store",
                self._run, step, len(skipped), len(batch), ", ".join(map(str, skipped[:8])),
            )  # fmt: skip
        selection = Selection(
            run=self._run,
            step=step,
            weights_version=weights_version,
            large_batch_size=len(batch),
            index=index,
            source=self._store.sources_of(index),
            weight=weight.astype(np.float32),
            gain=picks.gain.astype(np.float32),
            num_tokens=self._store.lengths(index),
            skipped=skipped,
        )
        times = PhaseTimes(
            started_unix_ns=started,
            draw_seconds=drawn - clock,
            score_seconds=picked.score_seconds,
            pick_seconds=time.perf_counter() - drawn - picked.score_seconds,
            peak_bytes=torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0,
        )
        return Selected(selection, times, picked.history)

    def score(self, rows: npt.NDArray[np.int64], probes: Probes | None) -> Scores:
        """Score rows of the store, int64 [b], with the weights the model holds now; without probes, their losses."""
        assert self._scorer is not None
        self._scorer.refresh()
        return self._scorer.score(self._store.rows(rows), probes, self._selection)

    def _probes(self, step: int) -> Probes | None:
        """The probes of a step; None where losses are all that is asked for."""
        assert self._scorer is not None
        selection = self._selection
        if selection.pick == "loss":
            return None
        # A history is held in terms of the probes, so a run that keeps one has the same probes at all steps.
        address = 0 if selection.keeps_history else step
        return Probes(self._scorer.shape, seed=self._seed, step=address, count=selection.num_probes)

    def _pick(self, batch: npt.NDArray[np.int64], step: int, past: bytes) -> _Picked:
        """Score a large batch and pick among its rows."""
        clock, selection, store = time.perf_counter(), self._selection, self._store
        choose = partial(
            pick_rows,
            selection,
            source_rows=store.source_rows,
            generator=stream(self._seed, Purpose.PICK, step=step),
            device=self._device,
        )
        if self._scorer is None:
            picks = choose(None, source=store.sources_of(batch), loss=None)
            return _Picked(picks, np.arange(len(batch)), b"", 0.0)
        probes = self._probes(step)
        scores = self.score(batch, probes)
        score_seconds = time.perf_counter() - clock
        usable = np.flatnonzero(scores.finite)
        if len(usable) < selection.sub_batch_size:
            raise SelectionError(
                f"run {self._run!r}, step {step}: {len(usable)} of {len(batch)} rows have a finite loss, the sub-batch "
                f"needs {selection.sub_batch_size}: the weights have diverged or overflow their dtype; go back to a "
                "checkpoint, lower the learning rate, or use bfloat16"
            )
        scores, source = scores.of(usable), store.sources_of(batch[usable])
        if probes is None:
            return _Picked(choose(None, source=source, loss=scores.loss), usable, b"", score_seconds)
        history = History.read(past, selection)
        weight = self._scorer.weight() if selection.criterion != "grad" else None
        features = features_of(
            selection,
            c=scores.c,
            probes=probes,
            sketch=scores.sketch,
            prompt=scores.prompt,
            weight=weight,
            adam=history.adam,
        )
        picks = choose(features, source=source, loss=scores.loss, target=history.target(features))
        drawn = np.bincount(source, minlength=len(store.source_rows))
        small = small_sources(drawn, store.source_rows, size=len(picks.index)) if selection.keep_small_sources else ()
        after = history.after(features, picks, c=scores.c, counts=~np.isin(source, small))
        return _Picked(picks, usable, after, score_seconds)


@dataclass(frozen=True, eq=False)
class _Picked:
    """What one step picked.

    Attributes:
        picks: Among the usable rows.
        usable: Rows of the large batch with a finite loss, int64 [m].
        history: As in `Selected`.
        score_seconds: How long scoring took.
    """

    picks: Picks
    usable: npt.NDArray[np.int64]
    history: bytes
    score_seconds: float


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
