"""What scoring processes agree on without talking, and how each notices that another is lost."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator
from multiprocessing import Pipe

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selector_server.scale_out.deal import deal
from selector_server.scale_out.place import Place
from selector_server.scale_out.pulse import Peer, Pulse
from shared.errors import ConfigError

costs = st.lists(st.integers(1, 1000), max_size=40)


@given(costs, st.integers(1, 9))
def test_every_micro_batch_is_dealt_once_and_rank_0_goes_short_last(costs: list[int], num_shares: int) -> None:
    shares = deal(costs, num_shares=num_shares)
    assert sorted(itertools.chain(*shares)) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    assert len(shares) == num_shares
    assert bool(shares[0]) == bool(costs)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(1, 3))
def test_the_costliest_share_is_near_the_best_of_all_divisions(costs: list[int], num_shares: int) -> None:
    best = min(
        max(sum(c for c, share in zip(costs, shares, strict=True) if share == s) for s in range(num_shares))
        for shares in itertools.product(range(num_shares), repeat=len(costs))
    )
    dealt = max(sum(costs[number] for number in share) for share in deal(costs, num_shares=num_shares))
    assert dealt <= best * (4 / 3 - 1 / (3 * num_shares)) + 1e-9


def test_without_a_launcher_there_is_one_process() -> None:
    assert Place.of({}) == Place.of({"WORLD_SIZE": "1", "RANK": "0"}) == Place(rank=0, size=1)
    assert Place.of({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_WORLD_SIZE": "4"}) == Place(rank=3, size=4)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "4"}, "RANK ''"),
        ({"WORLD_SIZE": "4", "RANK": "4"}, "RANK '4'"),
        ({"WORLD_SIZE": "4", "RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "share one machine"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Place.of(environment)


def test_processes_have_a_gpu_each_or_share_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert [str(Place(rank, 2).device("auto")) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    assert str(Place(2, 3).device("cuda:1")) == "cuda:1"
    assert str(Place(1, 2).device("cpu")) == "cpu"
    with pytest.raises(ConfigError, match="3 scoring processes for 2 GPUs"):
        Place(0, 3).device("auto")


class Ends:
    """Two pulses that listen to each other, and what each has lost."""

    def __init__(self, *, timeout_s: float) -> None:
        left, right = Pipe()
        self.lost: list[queue.Queue[str]] = [queue.Queue(), queue.Queue()]
        self.left = Pulse([Peer("right", left)], timeout_s=timeout_s, on_loss=self.lost[0].put)
        self.right = Pulse([Peer("left", right)], timeout_s=timeout_s, on_loss=self.lost[1].put)
        self.sockets = left, right


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends(timeout_s=0.8)
    yield ends
    for pulse in (ends.left, ends.right):
        pulse.stop()


def test_a_process_whose_socket_closes_has_died(ends: Ends) -> None:
    ends.left.start()
    ends.sockets[1].close()
    assert ends.lost[0].get(timeout=30).startswith("right has died")
    ends.right.start()


def test_a_process_that_is_silent_is_stopped(ends: Ends) -> None:
    ends.left.start()
    assert "right hasn't been heard for" in ends.lost[0].get(timeout=30)
    ends.right.start()


def test_work_that_gets_no_further_is_hanging_and_idling_is_not(ends: Ends) -> None:
    ends.left.start()
    ends.right.start()
    with pytest.raises(queue.Empty):
        ends.lost[0].get(timeout=1.5)
    with ends.right.working():
        for _ in range(15):
            ends.right.advance()
            with pytest.raises(queue.Empty):
                ends.lost[0].get(timeout=0.1)
        assert "right is at work and has got no further for" in ends.lost[0].get(timeout=30)


def test_a_peer_that_ends_when_it_may_is_no_loss(ends: Ends) -> None:
    ends.left.start()
    ends.right.start()
    ends.right.let_peers_go()
    ends.left.stop()
    ends.right.outlast_peers()
    assert ends.lost[1].empty()


def test_a_lost_group_is_explained_by_the_pulse_or_else_in_its_own_words(ends: Ends) -> None:
    ends.left.start()
    ends.right.start()
    ends.left.settle("connection closed")
    assert ends.lost[0].get(timeout=30).startswith("connection closed")
