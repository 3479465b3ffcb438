"""Peak memory of trainer and selector, in runs of their own without gradient accumulation.

On a GPU it is what PyTorch's allocator held at most. On a processor it is how far a process's resident memory rose
above that of one that has imported the same and done nothing; what was held while the model was loaded is left out.
The C library would keep what is freed for what is asked for next: half of a step's memory or more, as chance will have
it. In these runs it gives every larger block back, so that what is resident is what is in use.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from train_client.bench.arms import FLOOR
from train_client.bench.devices import Device, Devices
from train_client.bench.interleave import run_together
from train_client.bench.job import Job
from train_client.process import Command, forget_peak_memory, peak_memory
from train_client.run_config import environment_beside_config

STEPS = 5
# For glibc; where it is another C library, this says nothing. Above it a block is a mapping of its own.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
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
    with ExitStack() as stack:
        asked = {side: stack.enter_context(_importing(side, devices, logs)) for side in _MODULES}
        baselines = {side: int(command.first_line()) or None for side, command in asked.items()}
    found: dict[str, Peaks] = {}
    begun: set[str] = set()

    def is_done(job: Job) -> bool:
        name = job.arm.name
        if name not in begun and job.steps_done:
            begun.add(name)
            job.forget_peak_memory()
        if job.check():
            return False
        found[name] = _peaks(job, devices, baselines)
        job.stop()
        return True

    for group in ([name for name in arms if name != FLOOR], [name for name in arms if name == FLOOR]):
        with ExitStack() as stack:
            run_together([stack.enter_context(make_job(name)) for name in group], is_done)
    return {name: found[name] for name in arms}


def _peaks(job: Job, devices: Devices, baselines: Mapping[str, int | None]) -> Peaks:
    """Of a job whose trainer has ended and whose server hasn't."""
    trainer = _above(job.facts()["peak_memory_bytes"], devices.trainer, baselines["trainer"])
    if not job.arm.served:
        return Peaks(trainer, None)
    held = job.rows()[-1]["selector"]["peak_bytes"] or None
    selector = held if devices.selector.is_gpu else job.selector_memory()
    return Peaks(trainer, _above(selector, devices.selector, baselines["selector"]))


def _above(peak: int | None, device: Device, baseline: int | None) -> int | None:
    if device.is_gpu:
        return peak
    return None if peak is None or baseline is None else peak - baseline


def _importing(side: str, devices: Devices, logs: Path) -> Command:
    """A process that imports a side's modules and says what it holds then, in bytes."""
    device = devices.trainer if side == "trainer" else devices.selector
    return Command(
        f"the baseline of the {side}'s memory",
        *("-m", __name__, _MODULES[side]),
        log=logs / f"baseline-{side}.log",
        environment=environment_beside_config() | device.environment | ENVIRONMENT,
        read_output=True,
    )


def main() -> None:
    """Import a module and print how much memory is resident then, in bytes; 0 where the system doesn't tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    importlib.import_module(parser.parse_args().module)
    forget_peak_memory("self")
    print(peak_memory("self") or 0)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
