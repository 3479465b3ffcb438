"""Selections that an earlier run recorded: to train on the same rows again, without a selector.

Every run leaves its selections in its `train.output`, in `steps-rank*.jsonl`. With `client.selector = "replay"` and
`client.replay` that folder, another run trains on the same rows with the same weights in the same order: with another
learning rate, another adapter, or to know what a step takes where nothing selects.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from shared.dataset import Store
from shared.errors import ConfigError, DataError, FingerprintError
from shared.records import PhaseTimes, RunInfo, Selection
from train_client.outcome import Outcome
from train_client.received import Received


class ReplaySource:
    """Selections read from the folder of an earlier run, by every rank for itself."""

    reads_ahead = True

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder, self._store = folder, store
        self._run = ""
        self._steps: dict[int, list[dict[str, Any]]] = {}

    def open(self, info: RunInfo, *, cursor: int, restart: bool) -> None:
        """Read the recording.

        Raises:
            ConfigError: no recording there that this release reads, or one that lacks steps of this run.
            FingerprintError: it was made with other data.
            DataError: its sub-batches have another size than this run's.
        """
        try:
            outcome = Outcome.read(self._folder)
        except ValueError as error:  # a killed run's last line may be torn
            raise ConfigError(
                f"client.replay {self._folder} can't be read ({error}): resume the recorded run, or record again"
            ) from None
        recorded = outcome.facts.get("fingerprints", {}).get("dataset")
        if not any(outcome.ranks) or recorded is None or "large_batch_size" not in outcome.ranks[0][0]:
            raise ConfigError(
                f"client.replay {self._folder} holds no recorded run: give the train.output of a run of this release"
            )
        if recorded != info.fingerprints.dataset:
            raise FingerprintError(
                f"client.replay {self._folder} was recorded with data {recorded}, data.store has "
                f"{info.fingerprints.dataset}: use the store of the recorded run"
            )
        self._run = info.name
        self._steps = {}
        for rank in outcome.ranks:
            for row in rank:
                self._steps.setdefault(row["step"], []).append(row)
        if lacking := [step for step in range(cursor, info.timing.num_steps) if step not in self._steps]:
            raise ConfigError(
                f"client.replay {self._folder} has {len(self._steps)} steps and lacks step {lacking[0]}, "
                f"run.num_steps is {info.timing.num_steps}: lower it, or record more"
            )
        sizes = {sum(len(row["rows"]) for row in rows) for rows in self._steps.values()}
        if sizes != {info.selection.sub_batch_size}:
            raise DataError(
                f"client.replay {self._folder} has sub-batches of {', '.join(map(str, sorted(sizes)))} rows, "
                f"selection.sub_batch_size is {info.selection.sub_batch_size}: set it to the recorded run's"
            )

    def selection(self, step: int) -> Received:
        """The recorded selection of a step, its rows in the order they were trained on."""
        parts = self._steps[step]
        index = np.array([number for part in parts for number in part["rows"]], dtype=np.int64)
        selection = Selection(
            run=self._run,
            step=step,
            weights_version=parts[0]["weights_version"],
            large_batch_size=parts[0]["large_batch_size"],
            index=index,
            source=self._store.sources_of(index),
            weight=np.array([weight for part in parts for weight in part["weights"]], dtype=np.float32),
            gain=np.array([gain for part in parts for gain in part["gains"]], dtype=np.float32),
            num_tokens=self._store.lengths(index),
            skipped=np.array(parts[0]["skipped"], dtype=np.int64),
        )
        now = time.time_ns()
        return Received(selection, PhaseTimes(started_unix_ns=now), num_bytes=0, arrived_unix_ns=now)

    def instead(self, step: int) -> Received | None:
        """Every step has its selection."""
        return None

    def before_step(self) -> None:
        """Nothing is selected with these weights."""

    def attempted(self, completed: int) -> None:
        """Nothing is selected with these weights."""

    def state(self) -> dict[str, Any]:
        """The recording is all there is."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """The recording is all there is."""

    def finish(self) -> None:
        """Nothing to tell anybody."""

    def close(self) -> None:
        """Nothing to let go of."""
