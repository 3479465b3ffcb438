"""Peak memory of trainer and selector, in runs of their own without gradient accumulation.

On a GPU it is what PyTorch's allocator held at most. On a processor it is how far a process's resident memory rose
above that of one that has imported the same and done nothing; what was held while the model was loaded is left out.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from train_client.bench.arms import FLOOR
from train_client.bench.devices import Device, Devices
from train_client.bench.job import Job
from train_client.process import Command, forget_peak_memory, peak_memory
from train_client.run_config import environment_beside_config

STEPS = 5
_AT_A_TIME = 2
_MODULES = {"trainer": "train_client.train", "selector": "selector_server.server"}


@dataclass(frozen=True)
class Peaks:
    """Of one arm, in bytes; None for a selector that isn't there, and where the system doesn't tell."""

    trainer: int | None
    selector: int | None


def measure_peaks(
    make_job: Callable[[str], Job], arms: Sequence[str], devices: Devices, *, logs: Path
) -> dict[str, Peaks]:
    """Run each arm for a few steps; the floor last, since it trains on what another one selected.

    Raises:
        SubbatchError: a process failed.
    """
    first = [name for name in arms if name != FLOOR]
    last = [name for name in arms if name == FLOOR]
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        bases = list(pool.map(lambda side: _imported(side, devices, logs), _MODULES))
        baselines = dict(zip(_MODULES, bases, strict=True))
        found = dict(zip(first, pool.map(lambda name: _peaks(make_job(name), devices, baselines), first), strict=True))
        found |= {name: _peaks(make_job(name), devices, baselines) for name in last}
    return {name: found[name] for name in arms}


def _peaks(job: Job, devices: Devices, baselines: Mapping[str, int | None]) -> Peaks:
    with job:
        job.start()
        job.advance(1)
        job.forget_peak_memory()
        job.finish()
        resident = job.selector_memory()
        held = job.rows()[-1]["selector"]["peak_bytes"] or None
    return Peaks(
        trainer=_above(job.facts()["peak_memory_bytes"], devices.trainer, baselines["trainer"]),
        selector=_above(held if devices.selector.is_gpu else resident, devices.selector, baselines["selector"])
        if job.arm.served
        else None,
    )


def _above(peak: int | None, device: Device, baseline: int | None) -> int | None:
    if device.is_gpu:
        return peak
    return None if peak is None or baseline is None else peak - baseline


def _imported(side: str, devices: Devices, logs: Path) -> int | None:
    """What a process holds that has imported a side's modules, in bytes."""
    device = devices.trainer if side == "trainer" else devices.selector
    command = Command(
        f"the baseline of the {side}'s memory",
        *("-m", __name__, _MODULES[side]),
        log=logs / f"baseline-{side}.log",
        cores=device.cores,
        environment=environment_beside_config() | device.environment,
        read_output=True,
    )
    with command:
        return int(command.first_line()) or None


def main() -> None:
    """Import a module and print how much memory is resident then, in bytes; 0 where the system doesn't tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    importlib.import_module(parser.parse_args().module)
    forget_peak_memory("self")
    print(peak_memory("self") or 0)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
