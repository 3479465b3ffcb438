"""The devices of trainer and selector: a core of the processor, or a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.errors import ConfigError
from train_client.process import available_cores

_NAME = re.compile(r"(cpu|cuda)(?::(\d+))?")


@dataclass(frozen=True)
class Device:
    """Where one side runs.

    Attributes:
        name: As given: `cpu`, `cpu:3`, `cuda` or `cuda:1`.
        is_gpu: Whether that is a GPU.
        gpus: What CUDA_VISIBLE_DEVICES says; None: all.
        cores: The cores that its process stays on; none: any.
    """

    name: str
    is_gpu: bool
    gpus: str | None
    cores: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """What its process needs in its environment."""
        return {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": self.gpus}


@dataclass(frozen=True)
class Devices:
    """Both sides' devices."""

    trainer: Device
    selector: Device


def find_devices(trainer: str, selector: str) -> Devices:
    """Both sides' devices by name.

    On the processor a side has one core: the trainer the first that we may use, the selector the last, unless a
    number says which. A process that drives a GPU stays off the other side's core.

    Raises:
        ConfigError: no such device, or one core for both.
    """
    cores = available_cores()
    named = {
        "--trainer-device": _parse("--trainer-device", trainer),
        "--server-device": _parse("--server-device", selector),
    }
    mine: dict[str, tuple[int, ...]] = {}
    for (option, (kind, number)), default in zip(named.items(), (cores[:1], cores[-1:]), strict=True):
        if kind == "cpu" and number is not None and number not in cores:
            raise ConfigError(f"{option} cpu:{number}: this process may use cores {cores}: name one of those")
        mine[option] = () if kind == "cuda" else tuple(default) if number is None else (number,)
    first, second = mine.values()
    if first and first == second:
        raise ConfigError(
            f"trainer and selector would share core {first[0]}, which overlaps nothing: this process may use cores "
            f"{cores}; give it two"
        )
    taken = {*first, *second}
    found = []
    for option, (kind, number) in named.items():
        name = f"{kind}:{number}" if number is not None else kind
        if kind == "cuda":
            free = tuple(core for core in cores if core not in taken)
            found.append(Device(name, True, None if number is None else str(number), free))
        else:
            found.append(Device(name, False, "", mine[option]))
    return Devices(*found)


def _parse(option: str, name: str) -> tuple[str, int | None]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{option} {name!r} is no device: give cpu, cpu:CORE, cuda or cuda:GPU")
    return match[1], int(match[2]) if match[2] else None
