"""Which weights a step's selection uses, against tables written by hand and searches over all steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import RunConfig
from shared.timing import Timing

fixed = settings(deadline=None, derandomize=True)

# DESIGN §3 by hand: the version behind steps 0, 1, 2, …
TABLE = {
    (0, 1): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    (1, 1): [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    (2, 1): [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    (0, 4): [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8],
    (1, 4): [0, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8],
    (2, 4): [0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8],
    (3, 2): [0, 0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 8],
    (5, 3): [0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 3, 6],
}

timings = st.builds(
    lambda num_steps, staleness, push_every: Timing(
        num_steps=num_steps, staleness=staleness, push_every=push_every, lookahead=staleness + push_every - 1
    ),
    st.integers(1, 40),
    st.integers(0, 7),
    st.integers(1, 7),
)


def timing(num_steps: int, staleness: int, push_every: int, *, scores: bool = True) -> Timing:
    lookahead = staleness + push_every - 1
    return Timing(num_steps=num_steps, staleness=staleness, push_every=push_every, lookahead=lookahead, scores=scores)


@pytest.mark.parametrize(("staleness", "push_every"), TABLE)
def test_the_version_behind_each_step_is_the_one_in_the_table(staleness: int, push_every: int) -> None:
    rules = timing(12, staleness, push_every)
    assert [rules.weights_version(t) for t in range(12)] == TABLE[staleness, push_every]


def test_without_staleness_every_step_uses_the_weights_it_trains() -> None:
    rules = timing(50, staleness=0, push_every=1)
    assert all(rules.weights_version(t) == t for t in range(50))


@fixed
@given(timings)
def test_a_selection_never_needs_weights_newer_than_staleness_allows_nor_older_than_the_bound(rules: Timing) -> None:
    for t in range(rules.num_steps):
        version = rules.weights_version(t)
        assert version % rules.push_every == 0
        assert version <= max(0, t - rules.staleness)
        assert t - version <= rules.staleness + rules.push_every - 1


@fixed
@given(timings)
def test_steps_using_a_version_are_exactly_those_that_ask_for_it(rules: Timing) -> None:
    for version in range(-3, rules.num_steps + rules.push_every + 3):
        asking = [t for t in range(rules.num_steps) if rules.weights_version(t) == version]
        assert list(rules.steps_using(version)) == asking


@fixed
@given(timings)
def test_versions_needed_are_those_up_to_the_cursor_that_a_remaining_step_asks_for(rules: Timing) -> None:
    for cursor in range(rules.num_steps + 1):
        asked = {rules.weights_version(t) for t in range(cursor, rules.num_steps)}
        assert rules.versions_needed(cursor) == sorted(v for v in asked if v <= cursor)


@fixed
@given(timings)
def test_with_the_default_lookahead_a_trainer_that_pushes_what_is_used_never_waits_for_ever(rules: Timing) -> None:
    durable, selected = {0}, 0
    for completed in range(rules.num_steps):
        while selected < rules.num_steps and selected <= completed + rules.lookahead:
            if rules.weights_version(selected) not in durable:
                break
            selected += 1
        assert selected > completed, f"step {completed} has no selection while the trainer waits for it"
        if rules.steps_using(completed + 1):
            durable.add(completed + 1)


def test_nothing_is_pushed_that_no_remaining_step_uses() -> None:
    rules = timing(10, staleness=1, push_every=4)
    assert [v for v in range(15) if rules.steps_using(v)] == [0, 4, 8]
    assert [v for v in range(15) if timing(9, 1, 4).steps_using(v)] == [0, 4]


@fixed
@given(timings, st.integers(0, 60))
def test_a_run_that_scores_nothing_uses_no_weights_at_any_step(rules: Timing, step: int) -> None:
    unscored = timing(rules.num_steps, rules.staleness, rules.push_every, scores=False)
    assert unscored.weights_version(step) == 0
    assert list(unscored.steps_using(step)) == []
    assert list(unscored.steps_using(0)) == []
    assert unscored.versions_needed(step) == []


@pytest.mark.parametrize(("staleness", "push_every", "lookahead"), [(0, 1, 0), (1, 1, 1), (2, 4, 5), (0, 4, 3)])
def test_lookahead_defaults_to_staleness_plus_push_every_minus_one(
    staleness: int, push_every: int, lookahead: int
) -> None:
    run = RunConfig(num_steps=7, staleness=staleness, push_every=push_every)
    assert run.timing(scores=True) == Timing(
        num_steps=7, staleness=staleness, push_every=push_every, lookahead=lookahead, scores=True
    )
    assert RunConfig(staleness=staleness, lookahead=9).timing(scores=False).lookahead == 9
