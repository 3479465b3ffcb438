"""Deltas of payloads: rebuilt to the last bit, short where weights changed little, never larger than announced."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.delta import BLOCK_BYTES, apply_delta, encode_delta
from shared.errors import WeightsError
from shared.weights import encode_weights


def a_little_trained(dtype: torch.dtype) -> tuple[bytes, bytes]:
    """Payloads before and after a step whose size is a thousandth of the weights'."""
    generator = torch.Generator().manual_seed(0)
    weights = 0.02 * torch.randn(400_001, generator=generator)
    step = 2e-5 * torch.randn(400_001, generator=generator)
    before, after = (
        encode_weights({"w": tensor.to(dtype), "b": torch.ones(3)}) for tensor in (weights, weights + step)
    )
    return before, after


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_rebuilt_is_what_was_encoded_whatever_the_bytes(data: st.DataObject) -> None:
    before = data.draw(st.binary(min_size=200, max_size=300))
    places = data.draw(st.dictionaries(st.integers(0, len(before) - 1), st.integers(0, 255), max_size=12))
    after = bytes(places.get(place, byte) for place, byte in enumerate(before))
    delta = encode_delta(before, after)
    assert delta is not None
    assert apply_delta(before, delta) == after


@pytest.mark.parametrize("beyond", [-1, 0, 1, 3])
def test_payloads_of_several_blocks_are_rebuilt_to_their_last_byte(beyond: int) -> None:
    before = torch.arange(2 * BLOCK_BYTES + beyond).to(torch.uint8).numpy().tobytes()
    after = bytearray(before)
    for place in (0, BLOCK_BYTES - 1, BLOCK_BYTES, len(before) - 1):
        after[place] ^= 0xA5
    delta = encode_delta(before, after)
    assert delta is not None
    assert len(delta) < 10_000
    assert apply_delta(before, delta) == after


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.65), (torch.bfloat16, 0.25)])
def test_a_training_step_is_shorter_than_its_weights(dtype: torch.dtype, share: float) -> None:
    before, after = a_little_trained(dtype)
    delta = encode_delta(before, after)
    assert delta is not None
    assert len(delta) < share * len(after)
    assert apply_delta(before, delta) == after


def test_payloads_that_have_nothing_in_common_have_no_delta() -> None:
    one, other = random.Random(0).randbytes(9000), random.Random(1).randbytes(9000)
    assert encode_delta(one, other) is None
    assert encode_delta(b"abc" * 100, b"abc" * 101) is None


def test_a_damaged_delta_is_an_error_or_gives_other_bytes_of_the_same_number() -> None:
    before, after = a_little_trained(torch.bfloat16)
    delta = encode_delta(before, after)
    assert delta is not None
    bomb = pa.Codec("zstd").compress(bytes(1 << 28), asbytes=True)
    wrong = [delta[:-1], delta + b"\0", delta[4:], b"", len(bomb).to_bytes(4, "little") + bomb]
    for each in wrong:
        with pytest.raises(WeightsError, match="push the whole"):
            apply_delta(before, each)
    for place in range(0, len(delta), len(delta) // 50):
        changed = bytearray(delta)
        changed[place] ^= 0x10
        try:
            rebuilt = apply_delta(before, changed)
        except WeightsError:
            continue
        assert len(rebuilt) == len(after)
