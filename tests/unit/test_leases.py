"""Who is there and who is gone, on a clock that the tests turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from selector_server.leases import Leases

LEASE = 10.0


def test_a_rank_is_gone_a_lease_after_its_stream_ended_and_counts_again_when_it_is_heard() -> None:
    leases = Leases(range(2), lease_s=LEASE, now=0.0)
    for rank in range(2):
        assert not leases.stream_opened(rank)
    assert (leases.next_expiry, leases.silent_seconds(99.0)) == (None, {})
    leases.stream_ended(1, 100.0)
    assert leases.next_expiry == 110.0
    assert leases.expire(109.9) == []
    assert (leases.expire(110.0), leases.expire(111.0), leases.gone) == ([1], [], {1})
    assert (leases.next_expiry, leases.silent_seconds(112.0)) == (None, {1: 12.0})
    assert leases.heard(1, 120.0)
    assert (leases.gone, leases.next_expiry) == (frozenset(), 130.0)
    assert leases.expire(130.0) == [1]
    assert leases.stream_opened(1)
    assert (leases.gone, leases.next_expiry) == (frozenset(), None)


def test_a_rank_whose_connection_broke_is_there_as_long_as_one_of_its_streams_is() -> None:
    leases = Leases([0, 1], lease_s=LEASE, now=0.0)
    leases.stream_opened(0)
    leases.stream_opened(0)
    leases.stream_ended(0, 5.0)  # the old one, noticed late
    assert leases.expire(1000.0) == [1]
    leases.stream_ended(0, 1000.0)
    assert leases.expire(1010.0) == [0]


def test_where_all_are_gone_each_is_waited_for_again() -> None:
    leases = Leases(range(3), lease_s=LEASE, now=0.0)
    assert leases.expire(10.0) == [0, 1, 2]
    assert (leases.gone, leases.away) == (frozenset(), [0, 1, 2])
    leases.heard(1, 11.0)
    assert (leases.gone, leases.away) == ({0, 2}, [0, 2])


EVENTS = st.lists(
    st.tuples(st.sampled_from(["open", "end", "heard", "look"]), st.integers(0, 2), st.integers(0, 12)), max_size=60
)


@given(EVENTS)
def test_who_is_gone_follows_from_the_history_alone(events: list[tuple[str, int, int]]) -> None:
    leases = Leases(range(3), lease_s=LEASE, now=0.0)
    now, streams, last = 0.0, [0, 0, 0], [0.0, 0.0, 0.0]
    for kind, rank, later in events:
        now += later
        leases.expire(now)
        if kind == "end" and not streams[rank]:
            continue
        if kind == "open":
            leases.stream_opened(rank)
            streams[rank] += 1
        elif kind == "end":
            leases.stream_ended(rank, now)
            streams[rank] -= 1
        elif kind == "heard":
            leases.heard(rank, now)
        if kind != "look":
            last[rank] = now
        assert leases.away == [r for r in range(3) if not streams[r] and now - last[r] >= LEASE]
