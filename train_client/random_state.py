"""What a rank's random generators are at: dropout goes on after a checkpoint as it would have.

Accelerate and Trainers put it into their checkpoints; those of a DeepSpeed engine have none.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)


def random_state() -> dict[str, Any]:
    """Of this process: Python's, NumPy's and PyTorch's global generators, that of its accelerator included."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.accelerator.is_available():
        state["accelerator"] = torch.get_device_module().get_rng_state()
    return state


def set_random_state(every: list[dict[str, Any]], rank: int, world_size: int) -> None:
    """Take back this rank's.

    Args:
        every: What `random_state` gave, by rank; of another number of ranks nothing is taken, and a log line says so.
        rank: This one.
        world_size: How many there are now.
    """
    if len(every) != world_size:
        logger.warning(
            "the checkpoint has the random generators of %d ranks, there are %d: they go on from their seeds",
            len(every), world_size,
        )  # fmt: skip
        return
    mine = every[rank]
    random.setstate(mine["python"])
    np.random.set_state(mine["numpy"])
    torch.set_rng_state(mine["torch"])
    if "accelerator" in mine and torch.accelerator.is_available():
        torch.get_device_module().set_rng_state(mine["accelerator"])
