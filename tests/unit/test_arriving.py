"""Weights on their way in: the payload and its hash, whatever the chunks; and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from types import SimpleNamespace

import pytest

from selector_server.arriving import Arriving
from shared.errors import SubbatchError
from shared.weights import CHUNK_BYTES


def arrived(payload: bytes, sizes: list[int], *, num_bytes: int | None = None, sha256: str = "") -> bytes:
    async def arrive() -> bytes:
        announced = len(payload) if num_bytes is None else num_bytes
        arriving = Arriving(7, num_bytes=announced, sha256=sha256 or hashlib.sha256(payload).hexdigest())
        start = 0
        for size in sizes:
            arriving.add(payload[start : start + size])
            start += size
            await asyncio.sleep(0)
        return bytes(await arriving.whole())

    return asyncio.run(arrive())


def test_a_payload_arrives_as_it_was_sent_however_it_was_cut() -> None:
    generator = random.Random(0)
    payload = generator.randbytes(14 * CHUNK_BYTES + 17)
    whole = [CHUNK_BYTES] * 14 + [17]
    uneven = [generator.randint(1, CHUNK_BYTES) for _ in range(24)]
    short = payload[: sum(uneven)]
    assert arrived(payload, whole) == payload
    assert arrived(short, uneven) == short
    assert arrived(b"x", [1]) == b"x"


def test_no_part_is_hashed_before_those_that_came_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    overtaken = threading.Event()

    class SlowAtFirst:
        def __init__(self) -> None:
            self._digest, self._begun = hashlib.sha256(), 0
            self.hexdigest = self._digest.hexdigest

        def update(self, part: bytes) -> None:
            self._begun += 1
            if self._begun > 1:
                overtaken.set()
            else:
                overtaken.wait(0.5)  # in vain where the next part isn't begun meanwhile
                time.sleep(0.1 * overtaken.is_set())
            self._digest.update(part)

    payload = random.Random(0).randbytes(9 * CHUNK_BYTES)
    sha256 = hashlib.sha256(payload).hexdigest()
    monkeypatch.setattr("selector_server.arriving.hashlib", SimpleNamespace(sha256=SlowAtFirst))
    assert arrived(payload, [CHUNK_BYTES] * 9, sha256=sha256) == payload


@pytest.mark.parametrize(
    ("sizes", "num_bytes", "sha256", "reason"),
    [
        ([10], 11, "", "ended after 10 of 11 bytes: push again"),
        ([], None, "", "ended after 0 of 100 bytes"),
        ([60, 40], 99, "", "longer than the 99 bytes announced"),
        ([60, 0, 40], None, "", f"chunks of 1 to {CHUNK_BYTES} bytes"),
        ([100], None, "00" * 32, f"arrived with hash {hashlib.sha256(bytes(100)).hexdigest()}, sent with 0000"),
    ],
)
def test_weights_that_are_not_as_announced_are_refused(
    sizes: list[int], num_bytes: int | None, sha256: str, reason: str
) -> None:
    with pytest.raises(SubbatchError, match=f"weights version 7.*{reason}"):
        arrived(bytes(100), sizes, num_bytes=num_bytes, sha256=sha256)


def test_a_chunk_that_is_too_large_is_refused() -> None:
    size = CHUNK_BYTES + 1
    with pytest.raises(SubbatchError, match=f"chunks of 1 to {CHUNK_BYTES} bytes"):
        arrived(bytes(size), [size])
