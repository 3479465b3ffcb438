"""Weights on their way to the server: what is sent, in how much memory, and what becomes of an upload that fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from shared.errors import UnavailableError, WeightsError
from shared.pb.v1 import selector_pb2 as pb
from shared.weights import CHUNK_BYTES, chunks, encode_weights
from train_client.push import Pusher
from train_client.upload import push_messages


def weights(version: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(version)
    return {
        "b": torch.randn(3, 5, generator=generator).bfloat16(),
        "a": torch.randn(7, 2, generator=generator).t(),
        "c": torch.randn((), generator=generator, dtype=torch.float64),
    }


class Uploads:
    """Stands in for a server that answers only when it is let."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.began = {version: threading.Event() for version in range(8)}
        self.may_end = {version: threading.Event() for version in range(8)}
        self.sent: dict[int, bytes] = {}
        self.places: list[int] = []
        self._fails_at = fails_at
        self.pusher = Pusher(self._upload, run="run")

    def _upload(self, version: int, payload: memoryview, before: memoryview | None) -> None:
        self.began[version].set()
        assert self.may_end[version].wait(30)
        if version == self._fails_at:
            raise UnavailableError("the server stayed away")
        self.sent[version] = bytes(payload)
        self.places.append(torch.frombuffer(payload, dtype=torch.uint8).data_ptr())

    def let(self, *versions: int) -> None:
        for version in versions:
            self.may_end[version].set()


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    uploads = Uploads()
    yield uploads
    uploads.let(*range(8))
    uploads.pusher.close()


def test_what_is_sent_is_what_the_tensors_were_when_they_were_pushed(uploads: Uploads) -> None:
    trained = weights(0)
    expected = {}
    for version in (0, 1):
        for name, tensor in weights(version).items():
            trained[name].copy_(tensor)
        expected[version] = encode_weights(weights(version))
        uploads.pusher.push(version, trained)
    for tensor in trained.values():
        tensor.zero_()
    uploads.let(0, 1)
    uploads.pusher.wait_durable()
    assert uploads.sent == expected


def test_however_many_versions_are_pushed_two_places_in_memory_hold_them(uploads: Uploads) -> None:
    for version in range(8):
        if version >= 2:
            uploads.let(version - 2)
        uploads.pusher.push(version, weights(version))
    uploads.let(6, 7)
    uploads.pusher.wait_durable()
    assert len(uploads.places) == 8
    assert len(set(uploads.places)) == 2
    assert uploads.sent == {version: encode_weights(weights(version)) for version in range(8)}


def test_one_place_is_enough_where_each_push_is_durable_before_the_next(uploads: Uploads) -> None:
    uploads.let(*range(8))
    for version in range(4):
        uploads.pusher.push(version, weights(version))
        uploads.pusher.wait_durable()
    assert len(set(uploads.places)) == 1


def test_a_third_push_waits_until_the_first_is_durable(uploads: Uploads) -> None:
    for version in (0, 1):
        uploads.pusher.push(version, weights(version))
    third = threading.Thread(target=uploads.pusher.push, args=(2, weights(2)))
    third.start()
    assert uploads.began[0].wait(30)
    third.join(0.1)
    assert third.is_alive(), "the third push didn't wait"
    uploads.let(0)
    third.join(30)
    assert not third.is_alive()
    uploads.let(1, 2)
    uploads.pusher.wait_durable()
    assert list(uploads.sent) == [0, 1, 2]


@pytest.mark.parametrize("other", [{"b": torch.ones(3, 5), "a": torch.ones(2, 7)}, {**weights(0), "c": torch.ones(())}])
def test_other_tensors_than_before_are_refused_by_name(uploads: Uploads, other: dict[str, Tensor]) -> None:
    uploads.let(0)
    uploads.pusher.push(0, weights(0))
    uploads.pusher.wait_durable()
    with pytest.raises(WeightsError, match=r"what is trained has changed.*'c'"):
        uploads.pusher.push(1, other)


def test_an_upload_that_fails_is_an_error_of_the_next_push_and_of_waiting() -> None:
    uploads = Uploads(fails_at=0)
    uploads.pusher.push(0, weights(0))
    uploads.let(0)
    with pytest.raises(UnavailableError, match="stayed away"):
        uploads.pusher.wait_durable()
    with pytest.raises(UnavailableError, match="stayed away"):
        uploads.pusher.push(1, weights(1))
    uploads.pusher.close()


@pytest.mark.parametrize("size", [1, 127, 128, CHUNK_BYTES, 2 * CHUNK_BYTES + 17])
def test_messages_are_byte_for_byte_what_protobuf_makes_of_them(size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    header = pb.PushWeightsHeader(run="run", incarnation=3, version=5, num_bytes=size, sha256="ab")
    by_protobuf = [pb.PushWeightsRequest(header=header)]
    by_protobuf += [pb.PushWeightsRequest(chunk=bytes(chunk)) for chunk in chunks(payload)]
    assert list(push_messages(header, payload)) == [message.SerializeToString() for message in by_protobuf]
