"""The peak of memory, with and without what was left out."""

from __future__ import annotations

import sys

import pytest
import torch

from train_client.memory import PeakMemory

MIB = 1 << 20


def hold(mib: int) -> int:
    """Fill memory and give it back."""
    return int(torch.ones(mib * MIB, dtype=torch.uint8).sum())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_what_is_left_out_is_not_counted_and_what_came_before_is() -> None:
    memory = PeakMemory(torch.device("cpu"))
    hold(200)
    before = memory.so_far()
    assert before is not None
    with memory.left_out():
        hold(600)
    assert memory.so_far() == pytest.approx(before, abs=20 * MIB)
    hold(400)
    after = memory.so_far()
    assert after is not None
    assert after > before + 100 * MIB
