"""Steps trained without a selection, as a journal keeps them: what they replace, what a rollback does with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from selector_server.journal import Journal
from selector_server.run import Run
from shared.errors import ConfigError, CursorError, StaleIncarnationError, WeightsError
from shared.pb.v1 import selector_pb2
from shared.selection_config import SelectionConfig
from shared.weights import content_hash
from tests.contract.journal_by_hand import chains, frames_of
from tests.contract.test_run import a_run, payload_of, push, report, select, select_all, selected, train


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(Journal(tmp_path / "phi2-a"))
    yield run
    # Whatever happened: the file holds what is remembered, and its chain is what an independent reader says.
    again = Run(Journal(run.journal.folder))
    assert (selected(again), again.next_step, again.weights_versions) == (
        selected(run), run.next_step, run.weights_versions,
    )  # fmt: skip
    entries = frames_of((run.journal.folder / "journal.bin").read_bytes())
    for place, chain in chains(entries).items():
        record = entries[place].record
        assert (record.trained.selection if record.HasField("trained") else record.selection).chain == chain


def without(*steps: int) -> list[selector_pb2.SelectionMessage]:
    return [selector_pb2.SelectionMessage(step=step, arrow=b"step %d without" % step) for step in steps]


def test_a_selection_that_nobody_used_gives_way_and_those_after_it_stay_though_their_weights_are_gone(run: Run) -> None:
    run.open(a_run(), cursor=0, restart=False, open_id="")
    train(run, 0, 5, missing=[0])
    # Selected are steps 0 to 6, that of step 6 with version 5; the trainer got none after step 4.
    assert (run.next_step, run.weights_versions) == (7, [])
    before = selected(run)
    run.add_trained(without(5))
    run.add_trained(without(5))
    assert selected(run) == before | {5: b"step 5 without"}
    assert run.num_set_aside == 1
    train(run, 6, 12, missing=[6])
    assert selected(run)[11] == b"step 11 from " + payload_of(10)


@pytest.mark.parametrize("cursor", range(1, 13))
def test_a_rollback_to_any_step_repeats_what_was_trained_without_and_selects_the_rest_again(
    run: Run, cursor: int
) -> None:
    run.open(a_run(), cursor=0, restart=False, open_id="")
    train(run, 0, 4, missing=[0])
    run.add_trained(without(4, 5, 6))
    report(run, 7)
    train(run, 7, 12, missing=[6, 7])
    before = selected(run)
    assert [step for step, seen in before.items() if b"without" in seen] == [4, 5, 6]
    missing = run.open(run.info, cursor=cursor, restart=False, open_id="", checkpoint_incarnation=1)
    assert missing == []
    # The trainer doesn't know which steps those are, and pushes every version that some step would use.
    train(run, cursor, 12)
    assert selected(run) == before


def test_weights_that_only_steps_trained_without_would_use_are_taken_as_known_and_not_stored(run: Run) -> None:
    run.open(a_run(), cursor=0, restart=False, open_id="")
    train(run, 0, 4, missing=[0])
    run.add_trained(without(5, 6))
    stored = run.weights_versions
    assert run.is_known(5, content_hash(payload_of(5)))
    assert run.weights_versions == stored
    with pytest.raises(WeightsError, match="expects weights version 6, got 7"):
        push(run, 7)
    push(run, 6)


def test_a_checkpoint_made_without_the_server_opens_where_its_own_weights_would_be_missing(run: Run) -> None:
    info = a_run(staleness=2)
    run.open(info, cursor=0, restart=False, open_id="")
    train(run, 0, 3, missing=[0])
    with pytest.raises(CursorError, match="version 4, 5"):
        run.open(info, cursor=6, restart=False, open_id="a")
    # Steps 5, 6 and 7 would use versions 3, 4 and 5; the trainer at step 6 holds version 6.
    assert run.open(info, cursor=6, restart=False, open_id="b", trained=without(5, 6, 7)) == [6]
    assert run.open(info, cursor=6, restart=False, open_id="b", trained=without(5, 6, 7)) == [6]
    assert run.incarnation == 2
    train(run, 6, 12, missing=[6])
    assert selected(run)[8] == b"step 8 from " + payload_of(6)


def test_with_the_servers_volume_lost_a_checkpoint_opens_where_its_steps_need_none_of_the_lost_weights(
    run: Run,
) -> None:
    with pytest.raises(CursorError, match="version 5"):
        run.open(a_run(), cursor=6, restart=False, open_id="")
    assert run.open(a_run(), cursor=6, restart=False, open_id="", trained=without(6)) == [6]
    train(run, 6, 12, missing=[6])
    assert selected(run)[7] == b"step 7 from " + payload_of(6)


def test_a_journal_that_lost_its_end_is_not_filled_up_with_steps_that_had_a_selection(run: Run) -> None:
    run.open(a_run(), cursor=0, restart=False, open_id="")
    train(run, 0, 2, missing=[0])
    with pytest.raises(CursorError, match=r"expects step 4 of 12, the trainer trained step 5 .*lost its end; restore"):
        run.add_trained(without(5))
    assert run.next_step == 4


def test_a_run_that_keeps_a_history_has_no_steps_without_a_selection(run: Run) -> None:
    info = a_run(selection=SelectionConfig(preset="matched"))
    with pytest.raises(ConfigError, match=r"step 1 without .*on_unavailable to wait"):
        run.open(info, cursor=2, restart=False, open_id="", trained=without(1))
    run.open(info, cursor=0, restart=False, open_id="")
    with pytest.raises(ConfigError, match="step 0 without"):
        run.add_trained(without(0))


def test_starting_over_forgets_what_was_trained_without(run: Run) -> None:
    run.open(a_run(), cursor=0, restart=False, open_id="")
    run.add_trained(without(0, 1))
    run.open(dataclasses.replace(a_run(), seed=8), cursor=0, restart=True, open_id="")
    assert selected(run) == {}
    push(run, 0)
    select_all(run)
    assert selected(run)[0] == b"step 0 from " + payload_of(0)


def test_a_zombie_and_a_rollback_while_its_push_is_under_way(run: Run) -> None:
    """The push was checked before the opening, and ends after it: the host asks again, under its lock."""
    run.open(a_run(), cursor=0, restart=False, open_id="")
    train(run, 0, 4, missing=[0])
    late = payload_of(5, "zombie")
    assert not run.is_known(5, content_hash(late))
    run.open(run.info, cursor=3, restart=False, open_id="")
    with pytest.raises(StaleIncarnationError, match="incarnation 2, this call belongs to 1"):
        run.require_incarnation(1)
    push(run, 4, "new")
    report(run, 4)
    assert select(run)
    assert selected(run)[5] == b"step 5 from " + payload_of(4, "new")
