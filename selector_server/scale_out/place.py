"""Which of the scoring processes this one is, as torchrun's environment says, and which device is its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from shared.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """One of `size` scoring processes; rank 0 serves."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Place:
        """The place that a launcher gave this process; the only one where there was no launcher.

        Raises:
            ConfigError: the processes are spread over several machines, or a launcher's variables are incomplete.
        """
        size = environment.get("WORLD_SIZE", "1")
        if size == "1":
            return cls()
        rank, local_size = environment.get("RANK", ""), environment.get("LOCAL_WORLD_SIZE", size)
        if not (size.isdigit() and rank.isdigit() and int(rank) < int(size)):
            raise ConfigError(
                f"WORLD_SIZE is {size!r} and RANK {rank!r}, which no launcher sets: start the server with torchrun or "
                "accelerate launch, or unset WORLD_SIZE for one scoring process"
            )
        if local_size != size:
            raise ConfigError(
                f"{size} scoring processes were started, {local_size} of them on this machine: scoring processes share "
                "one machine, so start them all on one with --nproc_per_node, or a server on each"
            )
        return cls(int(rank), int(size))

    def device(self, name: str) -> torch.device:
        """The device of this process: with several processes, `auto` and `cuda` give each a GPU of its own.

        Args:
            name: `server.device`. A GPU with a number is every process's.

        Raises:
            ConfigError: no such device, or fewer GPUs than processes.
        """
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and self.size > 1:
            if torch.cuda.device_count() < self.size:
                raise ConfigError(
                    f"{self.size} scoring processes for {torch.cuda.device_count()} GPUs: start as many processes as "
                    "GPUs, or set server.device to one GPU's number, such as cuda:0, to let them share it"
                )
            name = f"cuda:{self.rank}"
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"server.device {name!r} can't be used: {str(error).splitlines()[0]}") from None
        return device
