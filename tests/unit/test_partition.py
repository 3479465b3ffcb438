"""A selection divided among ranks, against the best division found by trying all of them."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.partition import MicroBatch, by_token_budget, deal, micro_batches_per_step, partition, rows_per_rank

fixed = settings(deadline=None, derandomize=True)
lengths = st.lists(st.integers(1, 512), min_size=1, max_size=80)
sizes = st.integers(1, 9)


def real_rows(rank: list[MicroBatch]) -> list[int]:
    return [int(p) for batch in rank for p, filler in zip(batch.position, batch.is_filler, strict=True) if not filler]


def best_longest_share(tokens: list[int], world_size: int) -> int:
    """The least that the busiest rank must carry, when no rank has more than its number of rows: all ways tried."""
    room = -(-len(tokens) // world_size)
    best = sum(tokens)
    for owner in itertools.product(range(world_size), repeat=len(tokens)):
        if max(owner.count(r) for r in range(world_size)) <= room:
            shares = [sum(t for t, o in zip(tokens, owner, strict=True) if o == r) for r in range(world_size)]
            best = min(best, max(shares))
    return best


@fixed
@given(lengths, sizes, sizes)
def test_every_row_is_in_exactly_one_place_where_it_is_real(tokens: list[int], world: int, micro: int) -> None:
    ranks = partition(np.array(tokens, dtype=np.int32), world_size=world, micro_batch_size=micro)
    assert sorted(row for rank in ranks for row in real_rows(rank)) == list(range(len(tokens)))


@fixed
@given(lengths, sizes, sizes)
def test_all_ranks_run_equal_forwards_over_equal_numbers_of_rows(tokens: list[int], world: int, micro: int) -> None:
    ranks = partition(np.array(tokens, dtype=np.int32), world_size=world, micro_batch_size=micro)
    shapes = {tuple(len(batch.position) for batch in rank) for rank in ranks}
    assert len(ranks) == world
    assert len(shapes) == 1, "ranks would run forwards of different sizes"
    (shape,) = shapes
    assert sum(shape) == rows_per_rank(len(tokens), world) == -(-len(tokens) // world)
    assert len(shape) == micro_batches_per_step(len(tokens), world_size=world, micro_batch_size=micro)
    assert all(0 < size <= micro for size in shape)
    assert set(shape[:-1]) <= {micro}, "only the last micro-batch may be short"


@fixed
@given(lengths, sizes, sizes)
def test_no_more_rows_fill_up_than_the_ranks_need_to_be_equal(tokens: list[int], world: int, micro: int) -> None:
    ranks = partition(np.array(tokens, dtype=np.int32), world_size=world, micro_batch_size=micro)
    fillers = [batch.position[batch.is_filler] for rank in ranks for batch in rank]
    assert sum(map(len, fillers)) == world * rows_per_rank(len(tokens), world) - len(tokens)
    assert {tokens[p] for part in fillers for p in part} <= {min(tokens)}, "a filler costs a forward: take the shortest"


@fixed
@given(lengths, sizes, sizes)
def test_a_micro_batch_holds_rows_of_similar_length(tokens: list[int], world: int, micro: int) -> None:
    for rank in partition(np.array(tokens, dtype=np.int32), world_size=world, micro_batch_size=micro):
        in_order = [tokens[p] for batch in rank for p in batch.position]
        assert in_order == sorted(in_order, reverse=True)


@fixed
@given(lengths, sizes)
def test_each_row_goes_to_the_rank_with_the_fewest_tokens_that_has_room(tokens: list[int], world: int) -> None:
    rows: list[list[int]] = [[] for _ in range(world)]
    for position in sorted(range(len(tokens)), key=lambda p: (-tokens[p], p)):
        loads = {rank: sum(tokens[p] for p in mine) for rank, mine in enumerate(rows)}
        with_room = [rank for rank, mine in enumerate(rows) if len(mine) < -(-len(tokens) // world)]
        rows[min(with_room, key=lambda rank: (loads[rank], rank))].append(position)
    shares = deal(np.array(tokens, dtype=np.int32), world_size=world)
    assert [share.position[: share.num_real].tolist() for share in shares] == rows


@fixed
@given(lengths, sizes, sizes)
def test_a_rank_holds_what_its_micro_batches_need_and_each_row_once(tokens: list[int], world: int, micro: int) -> None:
    array = np.array(tokens, dtype=np.int32)
    for share, batches in zip(
        deal(array, world_size=world), partition(array, world_size=world, micro_batch_size=micro), strict=True
    ):
        needed = [p for batch in batches for p in batch.position.tolist()]
        assert share.distinct.tolist() == list(dict.fromkeys(needed))


def test_the_busiest_rank_carries_at_most_four_thirds_of_the_best_division() -> None:
    worst = Fraction(0)
    cases = [(list(t), 2) for t in itertools.combinations_with_replacement((1, 2, 3, 5, 8, 13), 5)]
    cases += [(list(t), 3) for t in itertools.combinations_with_replacement((1, 2, 7, 11), 6)]
    cases += [([4, 3, 3, 2, 2], 2), ([17, 14, 12, 11, 8], 2), ([5, 5, 4, 4, 3, 3, 3], 3)]
    for tokens, world in cases:
        ranks = partition(np.array(tokens), world_size=world, micro_batch_size=2)
        busiest = max(sum(tokens[p] for p in real_rows(rank)) for rank in ranks)
        worst = max(worst, Fraction(busiest, best_longest_share(tokens, world)))
    assert 1 <= worst <= Fraction(4, 3)


def test_real_lengths_spread_evenly() -> None:
    tokens = np.random.default_rng(0).lognormal(5.0, 0.6, 128).astype(np.int32) + 1
    loads = [
        sum(int(tokens[p]) for p in real_rows(rank)) for rank in partition(tokens, world_size=8, micro_batch_size=4)
    ]
    assert max(loads) <= 1.02 * tokens.sum() / 8


@fixed
@given(lengths, sizes, sizes)
def test_ranks_agree_without_talking(tokens: list[int], world: int, micro: int) -> None:
    here = partition(np.array(tokens, dtype=np.int32), world_size=world, micro_batch_size=micro)
    # Another process has its own copy, in another integer type.
    there = partition(np.array(tokens, dtype=np.int64), world_size=world, micro_batch_size=micro)
    for mine, theirs in zip(here, there, strict=True):
        for left, right in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(left.position, right.position)
            np.testing.assert_array_equal(left.is_filler, right.is_filler)


def test_ranks_without_a_row_of_their_own_run_fillers_alone() -> None:
    ranks = partition(np.array([9, 4], dtype=np.int32), world_size=4, micro_batch_size=2)
    assert [real_rows(rank) for rank in ranks] == [[0], [1], [], []]
    for rank in ranks[2:]:
        (batch,) = rank
        assert batch.position.tolist() == [1]
        assert batch.is_filler.tolist() == [True]


@pytest.mark.parametrize(("rows", "world", "micro"), [(0, 2, 2), (3, 0, 2), (3, 2, 0), (3, -1, 2)])
def test_an_impossible_division_is_refused_with_its_numbers(rows: int, world: int, micro: int) -> None:
    message = f"{rows} rows among {world} ranks"
    with pytest.raises(ConfigError, match=message):
        partition(np.ones(rows, dtype=np.int32), world_size=world, micro_batch_size=micro)


@fixed
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_groups_within_a_token_budget_hold_each_row_once_shortest_first(tokens: list[int], budget: int) -> None:
    groups = by_token_budget(np.array(tokens, dtype=np.int32), budget=budget)
    in_order = [int(p) for group in groups for p in group]
    # Python's sort is stable, so this also says that ties keep their order.
    assert in_order == sorted(range(len(tokens)), key=tokens.__getitem__)
    for group in groups:
        assert len(group) == 1 or len(group) * max(tokens[p] for p in group) <= budget


@fixed
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 40))
def test_no_other_cut_of_the_sorted_rows_needs_fewer_groups(tokens: list[int], budget: int) -> None:
    ordered = sorted(tokens)
    fewest = len(ordered)
    for cuts in itertools.product((False, True), repeat=len(ordered) - 1):
        edges = [0, *(i for i, cut in enumerate(cuts, start=1) if cut), len(ordered)]
        groups = [ordered[a:b] for a, b in itertools.pairwise(edges)]
        if all(len(g) == 1 or len(g) * g[-1] <= budget for g in groups):
            fewest = min(fewest, len(groups))
    assert len(by_token_budget(tokens, budget=budget)) == fewest
