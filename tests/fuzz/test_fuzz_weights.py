"""Pushed weights: the safetensors payload, and on a real server the sequence of messages that brings it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from shared.convert import run_to_pb
from shared.errors import WeightsError
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.weights import content_hash, decode_weights, encode_weights, tensor_specs
from tests.fuzz.budget import fuzz
from tests.fuzz.damage import damaged
from tests.service.harness import Job, LiveServer
from tests.support import World

# ---- the payload


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "layer.A": torch.linspace(-1, 1, 12).reshape(3, 4),
        "layer.B": torch.linspace(-1, 1, 8).reshape(4, 2).to(torch.bfloat16),
        "scale": torch.tensor(0.5, dtype=torch.float64),
        "none": torch.empty(0, 3, dtype=torch.float16),
    }


def with_header(change: Any) -> bytes:
    """The payload of `some_tensors` after a change to its header, whose length is right."""
    payload = encode_weights(some_tensors())
    end = 8 + int.from_bytes(payload[:8], "little")
    text = json.dumps(change(json.loads(payload[8:end]))).encode()
    return len(text).to_bytes(8, "little") + text + payload[end:]


def headers() -> st.SearchStrategy[bytes]:
    """Headers that are JSON, with values that no writer gives."""
    names = st.sampled_from([*some_tensors(), "other", "__metadata__", ""])
    keys = st.sampled_from(["dtype", "shape", "data_offsets", "extra"])
    numbers = st.sampled_from([0, 1, -1, 3, 8, 2**31, 2**53, 2**63, 2**64, 1e400, 0.5])
    values = st.one_of(
        numbers,
        st.lists(numbers, max_size=4),
        st.sampled_from(["F32", "F64", "BF16", "F16", "I64", "BOOL", "F8_E4M3", "C64", "", None, {}, "F32 "]),
    )

    def changed(name: str, key: str, value: object) -> bytes:
        return with_header(lambda header: header | {name: header.get(name, {}) | {key: value}})

    return st.builds(changed, names, keys, values)


def test_a_payload_is_the_tensors_of_the_run_and_finite_or_refused() -> None:
    specs = tensor_specs(some_tensors())

    def decode(payload: bytes) -> None:
        try:
            tensors = decode_weights(payload, specs)
        except WeightsError:
            return
        assert tensor_specs(tensors) == specs
        assert all(tensor.isfinite().all() for tensor in tensors.values())

    whole = encode_weights(some_tensors())
    fuzz(decode, st.one_of(damaged(whole), headers(), headers().flatmap(damaged), st.binary(max_size=200)), quick=200)


# ---- the messages

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,  # protobuf can't read it
}


class Pushing:
    """A run on a real server that waits for version 0 of its weights."""

    def __init__(self, world: World, server: LiveServer) -> None:
        job = Job(world, server.fingerprints)
        self.payload, self.other = encode_weights(job.weights(0)), encode_weights(job.weights(1))
        self._channel = grpc.insecure_channel(server.address)
        self._stub = selector_pb2_grpc.SelectorServiceStub(self._channel)
        self._request = pb.OpenRunRequest(run=run_to_pb(job.info()), restart=True)
        self._incarnation = 0
        self._push = self._channel.stream_unary("/subbatch.v1.SelectorService/PushWeights")

    def open(self) -> int:
        """The incarnation of a run without weights; it is started over where it has some."""
        if not self._incarnation:
            self._incarnation = self._stub.OpenRun(self._request, timeout=30).incarnation
        return self._incarnation

    def push(self, messages: list[bytes]) -> grpc.StatusCode:
        try:
            self._push(iter(messages), timeout=30)
        except grpc.RpcError as error:
            return error.code()
        self._incarnation = 0
        return grpc.StatusCode.OK

    def versions(self) -> list[int]:
        status = next(iter(self._stub.WatchRun(pb.WatchRunRequest(run="run"), timeout=30)))
        return list(status.weights_versions)

    def close(self) -> None:
        self._channel.close()


def content_of(messages: list[bytes]) -> bytes | None:
    """What chunks add up to; None where some aren't chunks."""
    try:
        parts = [pb.PushWeightsRequest.FromString(message) for message in messages]
    except DecodeError:
        return None
    return b"".join(part.chunk for part in parts) if all(part.HasField("chunk") for part in parts) else None


@pytest.fixture
def pushing(world: World, tmp_path: Path) -> Iterator[Pushing]:
    with LiveServer(world, tmp_path / "journal") as server:
        pushing = Pushing(world, server)
        yield pushing
        pushing.close()


def test_a_push_is_durable_if_it_is_whole_and_refused_if_it_is_anything_else(pushing: Pushing) -> None:
    payload = pushing.payload

    def header(**changes: Any) -> pb.PushWeightsRequest:
        fields = {"run": "run", "version": 0, "num_bytes": len(payload), "sha256": content_hash(payload), **changes}
        return pb.PushWeightsRequest(header=pb.PushWeightsHeader(**fields))

    def push(changes: dict[str, Any], cuts: list[int], order: str, spoil: tuple[int, bytes] | None) -> None:
        incarnation = pushing.open()
        content = pushing.other if changes.pop("of_other", False) else payload
        ends = [0, *sorted(cuts), len(content)]
        chunks = [pb.PushWeightsRequest(chunk=content[a:b]) for a, b in pairwise(ends)]
        first = header(**{"incarnation": incarnation, **changes})
        messages = [first, *chunks]
        messages = {
            "right": messages,
            "backwards": messages[:1] + messages[:0:-1],
            "headless": chunks,
            "twice": messages + messages,
            "cut": messages[:-1],
            "late": [*chunks, first],
            "nothing": [],
            "more": [*messages, pb.PushWeightsRequest(chunk=b"\0")],
        }[order]
        raw = [message.SerializeToString() for message in messages]
        if spoil and raw:
            raw[spoil[0] % len(raw)] = spoil[1]
        meant = [header(incarnation=incarnation).SerializeToString()]
        got = content_of(raw[1:]) if raw[:1] == meant else None
        code = pushing.push(raw)
        if code is grpc.StatusCode.OK:
            assert got == payload
            assert pushing.versions() == [0]
        else:
            assert code in REFUSALS
            assert pushing.versions() == []

    numbers = st.sampled_from([0, 1, -1, 2**31, 2**62, -(2**63), len(payload) - 1, len(payload) + 1])
    changes = st.fixed_dictionaries(
        {},
        optional={
            "run": st.sampled_from(["", "other", "../run", "run/../run"]),
            "incarnation": numbers,
            "version": numbers,
            "num_bytes": numbers,
            "sha256": st.sampled_from(["", "00" * 32, "../" * 20, content_hash(pushing.other)]),
            "of_other": st.booleans(),
        },
    )
    cuts = st.lists(st.integers(0, len(payload)), max_size=4)
    orders = st.sampled_from(["right"] * 4 + ["backwards", "headless", "twice", "cut", "late", "nothing", "more"])
    spoils = st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 5), st.binary(max_size=40)))
    fuzz(push, st.one_of(st.just({}), changes), cuts, orders, spoils, quick=25)
