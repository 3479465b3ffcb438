"""The folder of an experiment, read back: what it is about, and the results that are there so far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError
from train_client.experiment.plan import RESULT_FORMAT

_REMEDY = "give the --out folder of `train-client experiment`"


@dataclass(frozen=True)
class ArmRecord:
    """What experiment.json says of an arm.

    Attributes:
        name: The folder of its results.
        title: What tables call it.
        groups: The questions it helps to answer.
        references: The arms on random rows with shares 0 and 1.
        variant: Which other data it is trained on; empty: the base's.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    references: tuple[str, str]
    variant: str


@dataclass(frozen=True)
class Results:
    """What is in the folder.

    Attributes:
        about: experiment.json as it is.
        arms: In order; also those without a result yet.
        seeds: That every arm is to have.
        runs: Arm → seed → result; only what is finished.
    """

    about: Mapping[str, Any]
    arms: Sequence[ArmRecord]
    seeds: Sequence[int]
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]]

    @property
    def present(self) -> list[ArmRecord]:
        """Arms with at least one result, in order."""
        return [arm for arm in self.arms if self.runs[arm.name]]


def read_results(folder: Path) -> Results:
    """Read everything that is finished.

    Raises:
        DataError: no experiment's folder, no finished run in it, or a file of another format.
    """
    about = _read(folder / "experiment.json")
    arms = [_arm(record) for record in about["arms"]]
    runs = {arm.name: _runs(folder / "arms" / arm.name) for arm in arms}
    if not any(runs.values()):
        raise DataError(f"{folder} has no finished run, out of {len(arms)} arms: wait for one, or {_REMEDY}")
    seeds = sorted({*about["seeds"], *(seed for of_arm in runs.values() for seed in of_arm)})
    return Results(about, arms, seeds, runs)


def _arm(record: Mapping[str, Any]) -> ArmRecord:
    low, high = record.get("references", ("random_r", "random_b"))
    groups = tuple(record.get("groups", (record["group"],)))
    return ArmRecord(record["name"], record["title"], groups, (low, high), record.get("variant", ""))


def _runs(folder: Path) -> dict[int, Mapping[str, Any]]:
    found = (_read(path) for path in folder.glob("seed-*.json"))
    return {run["seed"]: run for run in sorted(found, key=lambda run: run["seed"])}


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != RESULT_FORMAT:
            raise DataError(f"{path} has format {content['format']}, this release reads {RESULT_FORMAT}: {_REMEDY}")
    except FileNotFoundError:
        raise DataError(f"{path} isn't there: {_REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} can't be read ({error!r}): delete it and give the experiment's command again"
        ) from None
    return content
