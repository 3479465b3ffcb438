"""Bytes with a few things wrong: bits flipped, pieces cut out, put in, doubled or zeroed, lengths replaced."""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypothesis import strategies as st

Edit = Callable[[bytes], bytes]

# What a length, an offset or a count must not be, little endian, as 32 or 64 bits.
_NUMBERS = [
    struct.pack(kind, value)
    for kind, values in (
        ("<i", (0, 1, -1, 7, 2**16, 2**30, 2**31 - 1, -(2**31))),
        ("<q", (0, 1, -1, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))),
    )
    for value in values
]


def damaged(data: bytes, *, least: int = 1) -> st.SearchStrategy[bytes]:
    """`data` after `least` to four edits; headers and ends are hit more often than their share."""
    size = len(data)
    places = st.one_of(
        st.integers(0, size), st.integers(0, min(size, 64)), st.integers(0, min(size, 64)).map(lambda back: size - back)
    )
    lengths = st.one_of(st.integers(1, 16), st.integers(1, max(1, size)))
    edit = st.one_of(
        st.builds(_flip, places, st.integers(0, 7)),
        st.builds(_put, places, st.one_of(st.binary(min_size=1, max_size=16), st.sampled_from(_NUMBERS))),
        st.builds(_insert, places, st.binary(min_size=1, max_size=64)),
        st.builds(_cut, places, lengths),
        st.builds(_end, places),
        st.builds(_zero, places, lengths),
        st.builds(_double, places, lengths),
    )
    return st.lists(edit, min_size=least, max_size=4).map(lambda edits: _apply(data, edits))


def _apply(data: bytes, edits: list[Edit]) -> bytes:
    for edit in edits:
        data = edit(data)
    return data


def _flip(place: int, bit: int) -> Edit:
    return lambda data: data[:place] + bytes(b ^ 1 << bit for b in data[place : place + 1]) + data[place + 1 :]


def _put(place: int, piece: bytes) -> Edit:
    return lambda data: data[:place] + piece + data[place + len(piece) :]


def _insert(place: int, piece: bytes) -> Edit:
    return lambda data: data[:place] + piece + data[place:]


def _cut(place: int, length: int) -> Edit:
    return lambda data: data[:place] + data[place + length :]


def _end(place: int) -> Edit:
    return lambda data: data[:place]


def _zero(place: int, length: int) -> Edit:
    return lambda data: data[:place] + bytes(len(data[place : place + length])) + data[place + length :]


def _double(place: int, length: int) -> Edit:
    return lambda data: data[: place + length] + data[place:]
