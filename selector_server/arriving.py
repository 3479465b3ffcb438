"""Weights on their way in: each byte is copied once, to where it stays, and hashed while later ones are received."""

from __future__ import annotations

import asyncio
import hashlib

from shared.errors import WeightsError, WireError
from shared.weights import CHUNK_BYTES

# Hashing that many bytes takes many times as long as handing them to a thread.
_LOT_BYTES = 4 << 20


class Arriving:
    """One push between its header and its last chunk; used on an event loop."""

    def __init__(self, version: int, *, num_bytes: int, sha256: str) -> None:
        """Expect what a header announces.

        Args:
            version: Of the weights.
            num_bytes: Of the payload; memory is taken as it fills.
            sha256: Of the payload, in hex.
        """
        self._version, self._sha256 = version, sha256
        self._payload = bytearray(num_bytes)
        self._view = memoryview(self._payload)
        self._digest = hashlib.sha256()
        self._received = self._handed_over = 0
        self._hashing: asyncio.Future[None] | None = None

    def add(self, chunk: bytes | memoryview) -> None:
        """Take the next chunk.

        Raises:
            WireError: an empty one, or one that is too large.
            WeightsError: more bytes than were announced.
        """
        if not 0 < len(chunk) <= CHUNK_BYTES:
            raise WireError(
                f"weights version {self._version}: after the header come chunks of 1 to {CHUNK_BYTES} bytes"
            )
        end = self._received + len(chunk)
        if end > len(self._payload):
            raise WeightsError(
                f"weights version {self._version} are longer than the {len(self._payload)} bytes announced"
            )
        self._view[self._received : end] = chunk
        self._received = end
        if end - self._handed_over >= _LOT_BYTES and (self._hashing is None or self._hashing.done()):
            self._hash_what_is_here()

    async def whole(self) -> bytearray:
        """The payload, when there are no more chunks; nobody else has it.

        Raises:
            WeightsError: it is too short, or has another hash than was announced.
        """
        if self._received != len(self._payload):
            raise WeightsError(
                f"weights version {self._version} ended after {self._received} of {len(self._payload)} bytes: "
                "push again"
            )
        if self._hashing:
            await self._hashing
        await self._hash_what_is_here()
        if (digest := self._digest.hexdigest()) != self._sha256:
            raise WeightsError(
                f"weights version {self._version} arrived with hash {digest}, sent with {self._sha256}: push again"
            )
        return self._payload

    def _hash_what_is_here(self) -> asyncio.Future[None]:
        """Hash all that is here and isn't hashed, in another thread; the lot before must be done."""
        lot = self._view[self._handed_over : self._received]
        self._handed_over = self._received
        self._hashing = asyncio.get_running_loop().run_in_executor(None, self._digest.update, lot)
        return self._hashing
