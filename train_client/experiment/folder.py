"""The folder of an experiment: held by one process, and with a file that says what it is about."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.config import Config
from shared.errors import ConfigError
from train_client.experiment.arms import ARMS, Arm
from train_client.experiment.collect import write_json
from train_client.experiment.plan import RESULT_FORMAT, Plan, portable
from train_client.machine import machine, versions

_LOCK = "experiment.lock"


@contextlib.contextmanager
def held(out: Path) -> Iterator[Path]:
    """Hold the experiment's folder against another experiment.

    Raises:
        ConfigError: it belongs to a running one, or to something else.
    """
    lock = out / _LOCK
    if out.exists() and any(out.iterdir()) and not lock.exists():
        raise ConfigError(f"--out {out} holds files that no experiment wrote: choose another folder, or empty it")
    out.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--out {out} belongs to an experiment that is running: choose another folder") from None
        yield out


def describe(out: Path, *, name: str, scale: str, smoke: bool, base: Config, plan: Plan) -> None:
    """Write what the folder is about; arms and seeds of earlier commands stay in.

    Raises:
        ConfigError: the folder is of another scale.
    """
    path = out / "experiment.json"
    before = json.loads(path.read_text()) if path.exists() else {"arms": [], "seeds": []}
    new = {"format": RESULT_FORMAT, "name": name, "scale": scale, "smoke": smoke}
    for key, value in new.items():
        if before.get(key, value) != value:
            raise ConfigError(f"--out {out} is of {key} {before[key]!r}, not {value!r}: choose another folder")
    arms = {arm["name"]: arm for arm in before["arms"]} | {arm.name: _arm_record(arm) for arm in plan.arms}
    order = [name for name in ARMS if name in arms]
    seeds = sorted({*before["seeds"], *(run.seed for run in plan.runs)})
    content = {
        **new,
        "arms": [arms[name] for name in order],
        "seeds": seeds,
        "config": portable(base, out),
        "machine": machine(),
        "versions": versions(),
    }
    write_json(path, content)


def _arm_record(arm: Arm) -> dict[str, Any]:
    return {
        "name": arm.name,
        "title": arm.title,
        "group": arm.groups[0],
        "groups": list(arm.groups),
        "references": list(arm.references),
        "variant": arm.variant,
        "overrides": {key: str(value) for key, value in arm.overrides.items()},
    }
