"""A step's scores → its selection: what the engine does after scoring, and what a replay repeats from the journal."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from selector_server.features import features_of
from selector_server.history import History
from selector_server.picks.choose import pick_rows
from selector_server.picks.quotas import small_sources
from selector_server.picks.record import Picks
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scores
from shared.dataset import Store
from shared.errors import SelectionError
from shared.random import Purpose, stream
from shared.records import Selection
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Picker:
    """How a run draws and picks; no model is needed for either.

    Attributes:
        store: The rows to draw from.
        selection: How to draw and pick.
        run: The run's name, for records and errors.
        seed: The run's seed.
        device: Where distances are computed.
    """

    store: Store
    selection: SelectionConfig
    run: str
    seed: int
    device: torch.device

    def draw(self, step: int) -> npt.NDArray[np.int64]:
        """The large batch of a step, row numbers in the store, int64 [b].

        Raises:
            ConfigError: the store has fewer rows than the large batch.
        """
        return draw_large_batch(self.store.source_rows, self.selection, seed=self.seed, step=step)

    def probes(self, step: int, shape: tuple[int, ...]) -> Probes | None:
        """The probes of a step, of the shape of what they perturb; None where losses are all that is asked for."""
        if self.selection.pick == "loss":
            return None
        # A history is held in terms of the probes, so a run that keeps one has the same probes at all steps.
        address = 0 if self.selection.keeps_history else step
        return Probes(shape, seed=self.seed, step=address, count=self.selection.num_probes)

    def pick(
        self,
        batch: npt.NDArray[np.int64],
        scores: Scores | None,
        *,
        step: int,
        weights_version: int,
        history: bytes = b"",
        probes: Probes | None = None,
        weight: npt.NDArray[np.float32] | None = None,
    ) -> tuple[Selection, bytes]:
        """The selection of a step from its scores, and what the next step's needs of the past.

        Args:
            batch: As `draw` gave it.
            scores: Of its rows, in its order; None where the pick needs none.
            step: The step.
            weights_version: Of the weights that scored them.
            history: What the selection of the step before left, where the run keeps a history; else empty.
            probes: That the rows were scored with.
            weight: What the probes perturbed, for the criteria that ask for it.

        Returns:
            The same bits for the same input and number of threads.

        Raises:
            SelectionError: too few rows with a finite loss, or a history that isn't this run's.
        """
        picks, usable, after = self._pick(batch, scores, step, history, probes, weight)
        index = batch[usable][picks.index]
        # Rows that were left out are stood in for by the others.
        weights = picks.weight * (len(batch) / len(usable))
        skipped = np.setdiff1d(batch, batch[usable])
        if skipped.size:
            logger.warning(
                "run %s, step %d: %d of %d rows have a loss that isn't finite and are left out: rows %s of the store",
                self.run, step, len(skipped), len(batch), ", ".join(map(str, skipped[:8])),
            )  # fmt: skip
        selection = Selection(
            run=self.run,
            step=step,
            weights_version=weights_version,
            large_batch_size=len(batch),
            index=index,
            source=self.store.sources_of(index),
            weight=weights.astype(np.float32),
            gain=picks.gain.astype(np.float32),
            num_tokens=self.store.lengths(index),
            skipped=skipped,
        )
        return selection, after

    def _pick(
        self,
        batch: npt.NDArray[np.int64],
        scores: Scores | None,
        step: int,
        past: bytes,
        probes: Probes | None,
        weight: npt.NDArray[np.float32] | None,
    ) -> tuple[Picks, npt.NDArray[np.int64], bytes]:
        """Picks among the usable rows, these rows' places in the large batch, and the history after the step."""
        selection, store = self.selection, self.store
        choose = partial(
            pick_rows,
            selection,
            source_rows=store.source_rows,
            generator=stream(self.seed, Purpose.PICK, step=step),
            device=self.device,
        )
        if scores is None:
            return choose(None, source=store.sources_of(batch), loss=None), np.arange(len(batch)), b""
        usable = np.flatnonzero(scores.finite)
        if len(usable) < selection.sub_batch_size:
            raise SelectionError(
                f"run {self.run!r}, step {step}: {len(usable)} of {len(batch)} rows have a finite loss, the sub-batch "
                f"needs {selection.sub_batch_size}: the weights have diverged or overflow their dtype; go back to a "
                "checkpoint, lower the learning rate, or use bfloat16"
            )
        scores, source = scores.of(usable), store.sources_of(batch[usable])
        if probes is None:
            return choose(None, source=source, loss=scores.loss), usable, b""
        before = History.read(past, selection)
        features = features_of(
            selection,
            c=scores.c,
            probes=probes,
            sketch=scores.sketch,
            prompt=scores.prompt,
            weight=weight,
            adam=before.adam,
        )
        picks = choose(features, source=source, loss=scores.loss, target=before.target(features))
        drawn = np.bincount(source, minlength=len(store.source_rows))
        small = small_sources(drawn, store.source_rows, size=len(picks.index)) if selection.keep_small_sources else ()
        after = before.after(features, picks, c=scores.c, counts=~np.isin(source, small))
        return picks, usable, after
