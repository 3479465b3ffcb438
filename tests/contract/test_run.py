"""The protocol of DESIGN §3 as the server keeps it: cursor, incarnations, weights, rewind, memory across restarts."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from selector_server.journal import Journal
from selector_server.journal.frames import encode
from selector_server.run import Run
from shared.errors import (
    ConfigError,
    CursorError,
    FingerprintError,
    JournalError,
    RunExistsError,
    RunNotFoundError,
    StaleIncarnationError,
    SubbatchError,
    WeightsError,
    WireError,
)
from shared.pb.v1 import journal_pb2, selector_pb2
from shared.records import Fingerprints, RunInfo, TensorSpec
from shared.selection_config import SelectionConfig
from shared.timing import Timing
from shared.weights import content_hash

# One whole record, as a journal file holds it.
A_FRAME = encode(journal_pb2.JournalRecord(closed=journal_pb2.Closed(incarnation=1)), b"attached")
# Memory where there is a folder of it: these tests restart a server thousands of times.
RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=RAM) as path:
        yield Path(path) / "phi2-a"


def a_run(
    num_steps: int = 12,
    staleness: int = 1,
    push_every: int = 1,
    *,
    lora: bool = True,
    scores: bool = True,
    lookahead: int | None = None,
    **changes: Any,
) -> RunInfo:
    info = RunInfo(
        name="phi2-a",
        seed=7,
        timing=Timing(
            num_steps=num_steps,
            staleness=staleness,
            push_every=push_every,
            lookahead=staleness + push_every - 1 if lookahead is None else lookahead,
            scores=scores,
        ),
        world_size=2,
        selection=SelectionConfig(pick="facility_location" if scores else "random"),
        adapter_json='{"r": 4}' if lora else "",
        trainable=(TensorSpec("B", (8, 4), "float32"),),
        fingerprints=Fingerprints("data", "tokens", {"float32": "f", "bfloat16": "b"}),
    )
    return dataclasses.replace(info, **changes)


def opened(folder: Path, info: RunInfo, *, cursor: int = 0, restart: bool = False, open_id: str = "") -> Run:
    run = Run(Journal(folder))
    run.open(info, cursor=cursor, restart=restart, open_id=open_id)
    return run


def payload_of(version: int, lineage: str = "") -> bytes:
    return f"weights {version} {lineage}".encode()


def push(run: Run, version: int, lineage: str = "") -> None:
    """What the host does with weights that have been checked."""
    payload = payload_of(version, lineage)
    if not run.is_known(version, content_hash(payload)):
        run.add_weights(version, content_hash(payload), payload)


def select(run: Run) -> bool:
    """What the host does for a run that can go on: here a selection tells which weights it saw."""
    step = run.selectable_step()
    if step is None:
        return False
    version = run.info.timing.weights_version(step)
    seen = (run.weights(version) or b"base") if run.info.timing.scores else b"unscored"
    run.add_selection(
        selector_pb2.SelectionMessage(step=step, weights_version=version, arrow=b"step %d from %s" % (step, seen))
    )
    run.drop_unneeded_weights()
    return True


def select_all(run: Run) -> None:
    while select(run):
        pass


def report(run: Run, completed: int) -> None:
    for rank in run.completed:
        run.report_progress(rank, completed)


def selected(run: Run) -> dict[int, bytes]:
    return {t: run.selection(t).arrow for t in range(run.info.timing.num_steps) if run.has_selection(t)}


def weights_on_disk(folder: Path) -> list[int]:
    return sorted(int(path.name[1:11]) for path in (folder / "weights").iterdir())


def train(run: Run, first: int, last: int, *, missing: list[int] = (), lineage: str = "") -> None:
    """A trainer at step `first` that attempts the steps up to `last`, each push durable at once."""
    for version in missing:
        push(run, version, lineage)
    for step in range(first, last):
        select_all(run)
        assert run.has_selection(step), f"step {step}: {run.waits_for()}"
        if run.info.timing.steps_using(step + 1):
            push(run, step + 1, lineage)
        report(run, step + 1)
    select_all(run)


def trained(folder: Path, info: RunInfo, last: int) -> Run:
    run = Run(Journal(folder))
    train(run, 0, last, missing=run.open(info, cursor=0, restart=False, open_id=""))
    return run


# ---- opening


def test_a_run_with_an_adapter_first_needs_its_version_0() -> None:
    with tempfile.TemporaryDirectory() as path:
        run = Run(Journal(Path(path)))
        assert run.open(a_run(), cursor=0, restart=False, open_id="") == [0]
        assert run.selectable_step() is None
        assert "weights version 0" in run.waits_for()
        push(run, 0)
        assert run.selectable_step() == 0


def test_full_fine_tuning_begins_with_the_base_as_version_0(folder: Path) -> None:
    run = Run(Journal(folder))
    assert run.open(a_run(lora=False), cursor=0, restart=False, open_id="") == []
    assert run.selectable_step() == 0
    assert run.weights(0) is None
    select_all(run)
    assert selected(run) == {0: b"step 0 from base", 1: b"step 1 from base"}
    with pytest.raises(WeightsError, match="expects weights version 1, got 0"):
        push(run, 0)


def test_a_run_that_scores_nothing_needs_no_weights_at_any_step(folder: Path) -> None:
    run = Run(Journal(folder))
    assert run.open(a_run(scores=False), cursor=0, restart=False, open_id="") == []
    for version in (0, 1):
        with pytest.raises(WeightsError, match=f"uses no weights version {version}"):
            push(run, version)
    train(run, 0, 12)
    assert list(selected(run)) == list(range(12))


def test_a_name_that_is_taken_is_refused_to_a_new_trainer(folder: Path) -> None:
    opened(folder, a_run())
    again = Run(Journal(folder))
    with pytest.raises(RunExistsError, match=r"run 'phi2-a' exists.*checkpoint.*run\.name.*run\.restart"):
        again.open(a_run(), cursor=0, restart=False, open_id="")
    assert again.incarnation == 1


def test_restart_starts_over_with_other_settings_and_forgets_everything_but_the_incarnation(folder: Path) -> None:
    run = trained(folder, a_run(), 5)
    assert run.open(a_run(num_steps=3, seed=8), cursor=0, restart=True, open_id="") == [0]
    for now in (run, Run(Journal(folder))):
        assert now.incarnation == 2
        assert (now.info.seed, now.info.timing.num_steps) == (8, 3)
        assert selected(now) == {}
        assert now.weights_versions == []
    assert weights_on_disk(folder) == []


def test_restart_left_in_the_config_of_a_resumed_trainer_erases_nothing(folder: Path) -> None:
    run = trained(folder, a_run(), 5)
    before = selected(run)
    run.open(a_run(), cursor=5, restart=True, open_id="")
    assert selected(run) == before
    with pytest.raises(ConfigError):
        run.open(a_run(seed=8), cursor=5, restart=True, open_id="")


def test_an_opening_that_is_repeated_opens_once_even_across_a_restart_of_the_server(folder: Path) -> None:
    run = opened(folder, a_run(), open_id="first")
    assert run.open(a_run(), cursor=0, restart=False, open_id="first") == [0]
    again = Run(Journal(folder))
    assert again.open(a_run(), cursor=0, restart=False, open_id="first") == [0]
    push(again, 0)
    assert again.open(a_run(), cursor=0, restart=False, open_id="first") == []
    assert (run.incarnation, again.incarnation) == (1, 1)


def test_openings_without_an_id_are_never_taken_for_repetitions(folder: Path) -> None:
    run = trained(folder, a_run(), 3)
    for incarnation in (2, 3):
        run.open(a_run(), cursor=3, restart=False, open_id="")
        assert run.incarnation == incarnation


def test_a_late_repetition_of_an_opening_that_was_replaced_does_not_take_the_run_back(folder: Path) -> None:
    run = trained(folder, a_run(), 3)
    run.open(a_run(), cursor=3, restart=False, open_id="zombie")
    run.open(a_run(), cursor=3, restart=False, open_id="new")
    for now in (run, Run(Journal(folder))):
        with pytest.raises(StaleIncarnationError, match="incarnation 3"):
            now.open(a_run(), cursor=3, restart=False, open_id="zombie")
        assert now.incarnation == 3
        assert now.open(a_run(), cursor=3, restart=False, open_id="new") == []


def test_calls_of_a_job_that_was_replaced_are_refused_with_both_incarnations(folder: Path) -> None:
    run = trained(folder, a_run(), 3)
    run.require_incarnation(1)
    run.open(a_run(), cursor=3, restart=False, open_id="")
    run.require_incarnation(2)
    for incarnation in (0, 1, 3):
        with pytest.raises(StaleIncarnationError, match=f"incarnation 2, this call belongs to {incarnation}"):
            run.require_incarnation(incarnation)


def test_a_run_whose_first_opening_was_refused_answers_calls_and_is_never_selected_for(folder: Path) -> None:
    run = Run(Journal(folder))
    with pytest.raises(CursorError):
        run.open(a_run(), cursor=5, restart=False, open_id="")
    assert run.selectable_step() is None
    for incarnation in (0, 1):
        with pytest.raises(RunNotFoundError, match="phi2-a"):
            run.require_incarnation(incarnation)


@pytest.mark.parametrize("cursor", [-1, 13])
def test_a_cursor_outside_the_run_is_refused(folder: Path, cursor: int) -> None:
    run = Run(Journal(folder))
    with pytest.raises(CursorError, match=f"12 steps, the trainer is at step {cursor}"):
        run.open(a_run(), cursor=cursor, restart=False, open_id="")
    assert run.incarnation == 0


OTHERS = {
    "seed": (a_run(seed=8), ConfigError, ["seed", "7", "8"]),
    "num_steps": (a_run(num_steps=13), ConfigError, ["timing", "'num_steps': 12", "'num_steps': 13"]),
    "staleness": (a_run(staleness=2), ConfigError, ["'staleness': 1", "'staleness': 2"]),
    "push_every": (a_run(push_every=2), ConfigError, ["'push_every': 1", "'push_every': 2"]),
    "lookahead": (a_run(lookahead=4), ConfigError, ["'lookahead': 1", "'lookahead': 4"]),
    "selection": (a_run(selection=SelectionConfig(epsilon=0.5)), ConfigError, ["epsilon=0.001", "epsilon=0.5"]),
    "adapter": (a_run(adapter_json='{"r": 5}'), ConfigError, ['"r": 4', '"r": 5']),
    "shape": (a_run(trainable=(TensorSpec("B", (8, 5), "float32"),)), ConfigError, ["(8, 4)", "(8, 5)"]),
    "dataset": (
        a_run(fingerprints=Fingerprints("other", "tokens", {"float32": "f"})),
        FingerprintError,
        ["dataset data", "other", "same store"],
    ),
    "tokenizer": (
        a_run(fingerprints=Fingerprints("data", "words", {"float32": "f"})),
        FingerprintError,
        ["tokenizer tokens", "words"],
    ),
    "base": (
        a_run(fingerprints=Fingerprints("data", "tokens", {"float32": "F", "bfloat16": "b"})),
        FingerprintError,
        ["base model f,", "F", "same checkpoint"],
    ),
    "no base": (
        a_run(fingerprints=Fingerprints("data", "tokens", {})),
        FingerprintError,
        ["base model", "{}"],
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_run_can_only_be_continued_with_its_own_settings_and_both_values_are_named(folder: Path, what: str) -> None:
    info, kind, named = OTHERS[what]
    run = trained(folder, a_run(), 3)
    before = (folder / "journal.bin").read_bytes()
    with pytest.raises(kind) as caught:
        run.open(info, cursor=3, restart=False, open_id="")
    assert all(part in str(caught.value) for part in ["run 'phi2-a'", *named]), caught.value
    assert (folder / "journal.bin").read_bytes() == before
    assert (run.incarnation, run.info) == (1, a_run())


def test_the_number_of_ranks_may_change_between_incarnations(folder: Path) -> None:
    run = trained(folder, a_run(), 3)
    run.open(a_run(world_size=5), cursor=3, restart=False, open_id="")
    assert run.completed == dict.fromkeys(range(5), 3)


def test_base_models_are_compared_in_the_widest_dtype_that_both_sides_have(folder: Path) -> None:
    run = trained(folder, a_run(), 3)
    half = Fingerprints("data", "tokens", {"bfloat16": "b"})
    run.open(a_run(fingerprints=half), cursor=3, restart=False, open_id="")
    assert run.incarnation == 2


# ---- which step is selected next


def test_selecting_goes_at_most_lookahead_past_the_slowest_rank(folder: Path) -> None:
    run = opened(folder, a_run(staleness=2, lookahead=3, scores=False))
    select_all(run)
    assert run.next_step == 4
    run.report_progress(0, 5)
    assert run.selectable_step() is None
    assert run.waits_for() == "rank 1, which has completed 0 steps"
    run.report_progress(1, 1)
    select_all(run)
    assert run.next_step == 5
    run.report_progress(1, 0)  # a report that was overtaken on its way
    assert run.completed == {0: 5, 1: 1}


def test_selecting_waits_for_the_weights_of_its_step_and_says_so(folder: Path) -> None:
    run = opened(folder, a_run(staleness=1, push_every=2))
    push(run, 0)
    report(run, 9)
    select_all(run)
    assert (run.next_step, run.waits_for()) == (3, "weights version 2 from the trainer, for step 3")
    push(run, 2)
    select_all(run)
    assert (run.next_step, run.waits_for()) == (5, "weights version 4 from the trainer, for step 5")


def test_without_staleness_a_selection_waits_for_the_weights_of_its_own_step(folder: Path) -> None:
    run = opened(folder, a_run(staleness=0))
    for step in range(12):
        assert run.selectable_step() is None
        push(run, step)
        report(run, step)
        assert select(run)
    assert run.waits_for() == "nothing: every step is selected"


def test_nothing_is_selected_past_the_end_or_after_closing_or_after_a_failure(folder: Path) -> None:
    run = opened(folder, a_run(scores=False))
    run.failure = JournalError("the disk is full")
    assert run.selectable_step() is None
    assert "the disk is full" in run.waits_for()
    run.open(a_run(scores=False), cursor=1, restart=False, open_id="")
    assert run.selectable_step() == 1
    run.close()
    assert run.selectable_step() is None
    assert Run(Journal(folder)).selectable_step() is None
    run.open(a_run(scores=False), cursor=1, restart=False, open_id="")
    assert not run.closed
    report(run, 12)
    select_all(run)
    assert run.next_step == 12
    assert run.selectable_step() is None


def test_a_selection_of_any_step_but_the_next_is_refused(folder: Path) -> None:
    run = opened(folder, a_run(scores=False))
    for step in (-1, 1):
        with pytest.raises(WireError, match=f"expects step 0, got {step}"):
            run.add_selection(selector_pb2.SelectionMessage(step=step))
    assert selected(run) == {}


def test_a_selection_reads_back_as_it_was_journalled_and_never_changes(folder: Path) -> None:
    run = trained(folder, a_run(), 4)
    first = selected(run)
    run.open(a_run(), cursor=4, restart=False, open_id="")
    train(run, 4, 8)
    assert {t: selected(run)[t] for t in first} == first
    assert selected(Run(Journal(folder))) == selected(run)


def test_progress_of_a_rank_that_is_not_there_or_past_the_end_is_refused(folder: Path) -> None:
    run = opened(folder, a_run())
    for rank in (-1, 2):
        with pytest.raises(WireError, match=f"ranks 0 to 1, got rank {rank}"):
            run.report_progress(rank, 1)
    with pytest.raises(WireError, match="12 steps, got 13"):
        run.report_progress(0, 13)


# ---- weights


def test_weights_are_taken_in_order_only(folder: Path) -> None:
    run = opened(folder, a_run(staleness=2, push_every=4, num_steps=20))
    with pytest.raises(WeightsError, match="expects weights version 0, got 4"):
        push(run, 4)
    push(run, 0)
    with pytest.raises(WeightsError, match="expects weights version 4, got 8"):
        push(run, 8)
    push(run, 4)
    push(run, 8)
    assert run.weights_versions == [0, 4, 8]


@pytest.mark.parametrize("version", [-4, 1, 2, 3, 5, 16, 20, 400])
def test_weights_that_no_step_uses_are_refused(folder: Path, version: int) -> None:
    # Steps 14 and up would use version 12, steps 18 and up version 16: this run ends before.
    run = opened(folder, a_run(staleness=2, push_every=4, num_steps=18))
    for wanted in (0, 4, 8):
        push(run, wanted)
    with pytest.raises(WeightsError, match=f"uses no weights version {version}: .* push_every 4 .* below 18"):
        push(run, version)
    push(run, 12)


def test_weights_are_refused_once_every_step_is_selected(folder: Path) -> None:
    # Version 8 is what step 9 uses, but this trainer has that step behind it.
    run = opened(folder, a_run(num_steps=10, push_every=4, staleness=1), cursor=10)
    with pytest.raises(WeightsError, match="uses no weights version 8"):
        push(run, 8)


def test_weights_that_come_again_are_harmless_also_when_nothing_needs_them_any_more(folder: Path) -> None:
    run = trained(folder, a_run(), 6)
    push(run, 7)
    records = (folder / "journal.bin").stat().st_size
    for now in (run, Run(Journal(folder))):
        for version in range(8):
            push(now, version)
        assert now.weights_versions == weights_on_disk(folder) == [7]
    assert (folder / "journal.bin").stat().st_size == records


def test_other_weights_for_a_version_that_is_there_are_refused(folder: Path) -> None:
    run = opened(folder, a_run())
    push(run, 0)
    push(run, 1)
    for now in (run, Run(Journal(folder))):
        with pytest.raises(WeightsError, match="has weights version 1 already, with other content"):
            push(now, 1, "of another lineage")
        assert now.weights(1) == payload_of(1)


def test_weights_are_dropped_as_soon_as_no_step_needs_them(folder: Path) -> None:
    run = opened(folder, a_run(num_steps=9, staleness=1, push_every=2, lookahead=9))
    seen = []
    push(run, 0)
    report(run, 9)
    for version in (2, 4, 6):
        push(run, version)
    while select(run):
        seen.append(weights_on_disk(folder))
        assert seen[-1] == run.weights_versions
    # Steps 0…8 use versions 0 0 0 2 2 4 4 6 6.
    assert seen == [[0, 2, 4, 6]] * 2 + [[2, 4, 6]] * 2 + [[4, 6]] * 2 + [[6]] * 2 + [[]]


def test_a_version_is_kept_until_it_is_loaded_for_the_last_time(folder: Path) -> None:
    run = opened(folder, a_run(staleness=3, push_every=1))
    push(run, 0)
    for _ in range(3):
        assert select(run)
        assert run.weights(0) == payload_of(0)
    assert run.next_step == 3


# ---- a trainer that goes back


@pytest.mark.parametrize(
    ("staleness", "push_every", "cursor", "kept", "next_version"),
    [
        # The versions behind steps 0, 1, 2, …  S=0 K=1: 0 1 2 3 4 5 6 7 8 9 10 11
        (0, 1, 4, 5, 5),
        # S=1 K=1: 0 0 1 2 3 4 5 6 7 8 9 10
        (1, 1, 4, 6, 5),
        (1, 1, 1, 3, 2),
        # S=2 K=4: 0 0 0 0 0 0 4 4 4 4 8 8
        (2, 4, 3, 6, 4),
        (2, 4, 4, 10, 8),
        (2, 4, 7, 10, 8),
        (2, 4, 8, 12, None),
    ],
)
def test_rewinding_keeps_exactly_the_selections_made_with_weights_the_trainer_has_behind_it(
    folder: Path, staleness: int, push_every: int, cursor: int, kept: int, next_version: int | None
) -> None:
    run = trained(folder, a_run(staleness=staleness, push_every=push_every), 12)
    before = selected(run)
    assert list(before) == list(range(12))
    assert run.open(run.info, cursor=cursor, restart=False, open_id="") == []
    for now in (run, Run(Journal(folder))):
        assert selected(now) == {t: before[t] for t in range(kept)}
        assert now.next_step == kept
        assert now.completed == {0: cursor, 1: cursor}
        assert all(version <= cursor for version in now.weights_versions)
    if next_version is not None:
        push(run, next_version, "of another lineage")
        report(run, 12)
        select_all(run)
        assert b"of another lineage" in selected(run)[kept]


def test_rewinding_sets_aside_weights_newer_than_the_cursor_that_were_not_used_yet(folder: Path) -> None:
    run = opened(folder, a_run(lookahead=12))
    for version in range(7):
        push(run, version)
    for _ in range(4):
        select(run)
    assert weights_on_disk(folder) == [3, 4, 5, 6]
    run.open(run.info, cursor=3, restart=False, open_id="")
    assert weights_on_disk(folder) == run.weights_versions == [3]
    push(run, 4, "of another lineage")
    assert run.weights(4) == payload_of(4, "of another lineage")


def test_nothing_is_erased_from_the_journal_by_rewinding(folder: Path) -> None:
    run = trained(folder, a_run(), 8)
    before = (folder / "journal.bin").read_bytes()
    run.open(run.info, cursor=2, restart=False, open_id="")
    run.open(run.info, cursor=0, restart=True, open_id="")
    assert (folder / "journal.bin").read_bytes().startswith(before)


TIMINGS = [(0, 1), (1, 1), (2, 1), (0, 4), (1, 4), (2, 4), (3, 2)]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(("staleness", "push_every"), TIMINGS)
def test_any_checkpoint_of_any_crash_continues_to_the_selections_of_the_undisturbed_run(
    folder: Path, staleness: int, push_every: int, lora: bool
) -> None:
    info = a_run(10, staleness, push_every, lora=lora)
    undisturbed = selected(trained(folder.with_name("undisturbed"), info, 10))
    for crash in range(1, 11):
        shutil.rmtree(folder, ignore_errors=True)
        trained(folder, info, crash)
        # The trainer goes back ever further, and a step on from each checkpoint; each time the server was killed too.
        for cursor in range(crash, 0, -1):
            run = Run(Journal(folder))
            missing = run.open(info, cursor=cursor, restart=False, open_id="")
            assert set(missing) <= {cursor}, "older weights are gone from the trainer"
            train(run, cursor, min(cursor + 1, 10), missing=missing)
        train(run, 2, 10)
        assert selected(run) == undisturbed


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(("staleness", "push_every"), TIMINGS)
def test_with_the_servers_volume_lost_a_cursor_is_refused_exactly_where_older_weights_are_needed(
    folder: Path, staleness: int, push_every: int, lora: bool
) -> None:
    info = a_run(10, staleness, push_every, lora=lora)
    for cursor in range(11):
        run = Run(Journal(folder / str(cursor)))
        behind = {v for t in range(cursor, 10) if (v := info.timing.weights_version(t)) <= cursor}
        behind -= set() if lora else {0}
        lost = sorted(behind - {cursor})
        if not lost:
            assert run.open(info, cursor=cursor, restart=False, open_id="") == sorted(behind)
            continue
        with pytest.raises(CursorError) as caught:
            run.open(info, cursor=cursor, restart=False, open_id="")
        message = str(caught.value)
        assert f"step {cursor}" in message
        assert f"version {', '.join(map(str, lost))}, which" in message
        assert str(run.journal.folder) in message
        assert "run.name" in message
        assert run.incarnation == 0


def test_a_run_that_remembers_goes_on_only_where_its_past_is(folder: Path) -> None:
    info = a_run(staleness=0, selection=SelectionConfig(preset="matched"))
    run = opened(folder / "here", info)
    assert run.history(0) == b""
    for step in range(4):
        push(run, step)
        message = selector_pb2.SelectionMessage(step=step, weights_version=step, arrow=b"a", history=b"after %d" % step)
        run.add_selection(message)
        report(run, step + 1)
        assert run.history(step + 1) == b"after %d" % step
    again = Run(Journal(folder / "here"))
    again.open(info, cursor=2, restart=False, open_id="")
    assert again.next_step == 3  # that of step 2 used version 2, which the trainer has
    assert again.history(3) == b"after 2"
    # Version 3 would be pushed by the trainer; what the first three selections left behind it doesn't have.
    elsewhere = Run(Journal(folder / "elsewhere"))
    with pytest.raises(
        CursorError, match=r"can't continue at step 3: .*doesn't have that of step 2: restore .*elsewhere"
    ):
        elsewhere.open(info, cursor=3, restart=False, open_id="")
    assert elsewhere.incarnation == 0


def test_weights_files_that_were_deleted_are_missed_and_named(folder: Path) -> None:
    run = opened(folder, a_run(staleness=2))
    train(run, 0, 6, missing=[0])
    for version in (7, 8):
        push(run, version)
    # Steps 9 and up have no selection yet; step 9 uses version 7.
    assert (run.next_step, weights_on_disk(folder)) == (9, [7, 8])
    for path in (folder / "weights").iterdir():
        path.unlink()
    for now in (run, Run(Journal(folder))):
        with pytest.raises(CursorError, match=r"lacks weights version 7, which .* restore the server's journal folder"):
            now.open(run.info, cursor=8, restart=False, open_id="")
    # At step 7 the trainer still has version 7, and will make version 8 again.
    assert Run(Journal(folder)).open(run.info, cursor=7, restart=False, open_id="") == [7]


def test_a_deleted_file_of_the_cursors_own_version_is_pushed_again_and_used(folder: Path) -> None:
    before = trained(folder, a_run(), 6)
    push(before, 7)
    (file,) = (folder / "weights").iterdir()
    file.unlink()
    run = Run(Journal(folder))
    assert run.open(before.info, cursor=7, restart=False, open_id="") == [7]
    push(run, 7)
    assert weights_on_disk(folder) == [7]
    assert run.weights(7) == payload_of(7)
    assert Run(Journal(folder)).open(before.info, cursor=7, restart=False, open_id="") == []
    train(run, 7, 12)
    assert selected(run) == selected(trained(folder.with_name("undisturbed"), a_run(), 12))


def test_a_trainer_ahead_of_a_journal_that_lost_its_end_continues_only_where_no_weights_are_missing(
    folder: Path,
) -> None:
    for staleness, missing in ((0, [6]), (1, None)):
        info = a_run(staleness=staleness)
        run = trained(folder / str(staleness), info, 3)
        if missing is None:
            with pytest.raises(CursorError, match="version 5, which"):
                run.open(info, cursor=6, restart=False, open_id="")
        else:
            assert run.open(info, cursor=6, restart=False, open_id="") == missing
            train(run, 6, 12, missing=missing)
            assert run.next_step == 12


def test_a_change_that_cannot_be_journalled_is_not_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(folder, a_run(), 3)
    push(run, 4)
    report(run, 4)
    step = run.next_step
    message = selector_pb2.SelectionMessage(step=step, weights_version=step - 1, arrow=b"new")

    def full(record: Any, attachment: bytes = b"") -> int:
        raise JournalError("the disk is full")

    changes: list[Callable[[], Any]] = [
        lambda: run.add_selection(message),
        lambda: push(run, 5),
        lambda: run.open(run.info, cursor=1, restart=False, open_id=""),
        run.close,
    ]
    seen = state(run)
    with monkeypatch.context() as patch:
        patch.setattr(run.journal, "append", full)
        for change in changes:
            with pytest.raises(JournalError, match="full"):
                change()
            assert state(run) == seen
    for change in changes[:2]:
        change()
    assert run.has_selection(step)


# ---- a server that is killed after any operation


def state(run: Run) -> dict[str, Any]:
    """All that anybody can see of a run, ranks' progress aside, which the ranks report again."""
    return {
        "info": run.info,
        "incarnation": run.incarnation,
        "closed": run.closed,
        "next_step": run.next_step,
        "selections": selected(run),
        "weights": {v: run.weights(v) for v in run.weights_versions},
    }


class Killed(RuleBasedStateMachine):
    """Any sequence of calls, each followed by a restart, beside a second account of DESIGN §3.

    The account never drops anything and searches all steps for every answer, so it also shows that a run drops no
    weights that are still needed.
    """

    @initialize(
        rules=st.sampled_from([(0, 1), (1, 1), (2, 1), (0, 3), (2, 3), (3, 2)]),
        kind=st.sampled_from(["lora", "lora", "full", "unscored"]),
        extra=st.integers(0, 2),
    )
    def begin(self, rules: tuple[int, int], kind: str, extra: int) -> None:
        staleness, self.every = rules
        self.staleness, self.lookahead = staleness, staleness + self.every - 1 + extra
        self.scores, self.base = kind != "unscored", kind == "full"
        self.info = a_run(9, *rules, lora=kind != "full", scores=self.scores, lookahead=self.lookahead, trainable=())
        self.directory = tempfile.TemporaryDirectory(dir=RAM)
        self.folder = Path(self.directory.name) / "phi2-a"
        self.run = Run(Journal(self.folder))
        self.incarnation, self.cursor, self.closed = 0, 0, False
        self.made: dict[int, bytes] = {}
        self.pushed: dict[int, bytes] = {}
        self.trained: set[int] = set()
        self.completed = [0, 0]
        self.count = 0

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.run.journal.close()
            self.directory.cleanup()

    # -- the second account

    def version(self, step: int) -> int:
        """The newest multiple of K that is at most t − S, and not negative."""
        return max(v for v in range(0, step + 1, self.every) if v == 0 or v <= step - self.staleness)

    def lacking(self, cursor: int, made: dict[int, bytes], pushed: dict[int, bytes]) -> list[int]:
        """Versions, of any age, that a step from the cursor on waits for."""
        if not self.scores:
            return []
        asked = {self.version(t) for t in range(cursor, 9) if t not in made}
        return sorted(asked - pushed.keys() - ({0} if self.base else set()))

    def upcoming(self) -> int:
        return min((t for t in range(self.cursor, 9) if t not in self.made), default=9)

    # -- calls

    @rule(cursor=st.integers(0, 9), restart=st.sampled_from([False, False, False, True]))
    def open(self, cursor: int, restart: bool) -> None:
        # A trainer isn't past a step that has no selection, unless this server has lost them all.
        cursor = min(cursor, self.upcoming()) if self.incarnation else cursor
        over = restart and cursor == 0
        trained = set() if over else self.trained
        kept = [t for t in self.made if t in trained or not self.scores or self.version(t) <= cursor]
        made = {} if over else {t: self.made[t] for t in kept}
        pushed = {} if over else {v: p for v, p in self.pushed.items() if v <= cursor}
        lacking = [v for v in self.lacking(cursor, made, pushed) if v <= cursor]
        expected: type[SubbatchError] | None = None
        if self.incarnation and cursor == 0 and not restart:
            expected = RunExistsError
        elif any(v < cursor for v in lacking):
            expected = CursorError
        if expected:
            with pytest.raises(expected):
                self.run.open(self.info, cursor=cursor, restart=restart, open_id="")
            return
        assert self.run.open(self.info, cursor=cursor, restart=restart, open_id="") == lacking
        self.incarnation += 1
        self.cursor, self.closed, self.completed = cursor, False, [cursor, cursor]
        self.made, self.pushed, self.trained = made, pushed, trained

    @precondition(lambda self: self.incarnation)
    @rule(ahead=st.integers(-3, 3), lineage=st.sampled_from(["", "other"]))
    def push(self, ahead: int, lineage: str) -> None:
        newest = max(self.pushed, default=-self.every)
        version = newest + ahead * self.every if ahead else newest + 1
        payload = payload_of(version, lineage)
        lacking = self.lacking(self.upcoming(), self.made, self.pushed)
        accepted = self.pushed.get(version) == payload or lacking[:1] == [version]
        users = {t for t in range(9) if self.scores and self.version(t) == version}
        skipped = bool(users & self.trained) and all(t < self.cursor or t in self.made for t in users)
        try:
            push(self.run, version, lineage)
        except WeightsError:
            assert not accepted
            assert not skipped or version in self.pushed
        else:
            assert accepted or skipped
            self.pushed |= {version: payload} if accepted else {}

    @precondition(lambda self: self.incarnation)
    @rule(back=st.integers(0, 2), count=st.integers(1, 3), repeated=st.booleans())
    def trained_without(self, back: int, count: int, repeated: bool) -> None:
        """Steps that the trainer had no selection for, some of which the server has selected in vain."""
        first = max(0, self.upcoming() - back)
        steps = range(first, min(first + count, 9))
        messages = [
            selector_pb2.SelectionMessage(step=t, arrow=b"step %d without" % t)
            for t in steps
            for _ in range(1 + repeated)
        ]
        self.run.add_trained(messages)
        self.trained |= set(steps)
        self.made |= {t: b"step %d without" % t for t in steps}

    @precondition(lambda self: self.incarnation)
    @rule()
    def push_next(self) -> None:
        self.push_version(self.lacking(self.upcoming(), self.made, self.pushed)[:1])

    def push_version(self, versions: list[int]) -> None:
        for version in versions:
            push(self.run, version, str(self.incarnation))
            self.pushed[version] = payload_of(version, str(self.incarnation))

    @precondition(lambda self: self.incarnation)
    @rule()
    def select(self) -> None:
        step = self.upcoming()
        ready = not self.closed and step < 9 and step <= min(self.completed) + self.lookahead
        version = self.version(step) if self.scores else 0
        ready = ready and (not self.scores or (self.base and version == 0) or version in self.pushed)
        assert self.run.selectable_step() == (step if ready else None)
        assert select(self.run) == ready
        if ready:
            seen = self.pushed.get(version, b"base") if self.scores else b"unscored"
            self.made[step] = b"step %d from %s" % (step, seen)

    @precondition(lambda self: self.incarnation and not self.closed)
    @rule(count=st.integers(1, 4), late=st.booleans())
    def train(self, count: int, late: bool) -> None:
        """Steps of a trainer whose ranks keep together; the weights of the last one may never arrive."""
        for left in reversed(range(count)):
            step = max(self.completed)
            if step == 9:
                return
            self.completed = [step, step]
            for rank in (0, 1):
                self.run.report_progress(rank, step)
            while self.upcoming() <= step:
                self.push_version([v for v in self.lacking(self.upcoming(), self.made, self.pushed) if v <= step][:1])
                self.select()
            for rank in (0, 1):
                self.report(rank, 1)
            if not (late and left == 0):
                next_lacking = self.lacking(self.upcoming(), self.made, self.pushed)[:1]
                self.push_version([v for v in next_lacking if v == step + 1])

    @precondition(lambda self: self.incarnation)
    @rule(rank=st.integers(0, 1), further=st.integers(-1, 3))
    def report(self, rank: int, further: int) -> None:
        completed = min(9, self.completed[rank] + further)
        self.run.report_progress(rank, completed)
        self.completed[rank] = max(self.completed[rank], completed)

    @precondition(lambda self: self.incarnation)
    @rule()
    def close(self) -> None:
        self.run.close()
        self.closed = True

    # -- what must hold after each of them

    def check(self, run: Run) -> None:
        assert run.incarnation == self.incarnation
        if not self.incarnation:
            assert run.selectable_step() is None
            return
        assert state(run) == {
            "info": self.info,
            "incarnation": self.incarnation,
            "closed": self.closed,
            "next_step": self.upcoming(),
            "selections": self.made,
            "weights": {v: p for v, p in self.pushed.items() if v in self.wanted()},
        }

    def wanted(self) -> set[int]:
        return {self.version(t) for t in range(self.cursor, 9) if t not in self.made}

    @invariant()
    def the_run_is_what_the_account_says(self) -> None:
        if hasattr(self, "run"):
            self.check(self.run)
            assert weights_on_disk(self.folder) == sorted(v for v in self.pushed if v in self.wanted())

    @invariant()
    def a_server_that_starts_on_its_journal_is_the_same(self) -> None:
        """Now and then the tail is torn as well, as by a crash in the midst of the next record."""
        if not hasattr(self, "run"):
            return
        self.count += 1
        self.run.journal.close()
        if self.count % 3 == 0:
            with open(self.folder / "journal.bin", "ab") as file:
                file.write(A_FRAME[: self.count % len(A_FRAME)])
        self.run = Run(Journal(self.folder))
        self.check(self.run)
        if self.incarnation:
            assert self.run.completed == {0: self.cursor, 1: self.cursor}
            for rank, completed in enumerate(self.completed):
                self.run.report_progress(rank, completed)


TestKilledAfterAnyOperation = Killed.TestCase
TestKilledAfterAnyOperation.settings = settings(
    derandomize=True, deadline=None, max_examples=60, stateful_step_count=40, phases=[Phase.generate]
)


def test_a_checkpoint_of_a_branch_that_was_left_is_refused_rather_than_given_another_branchs_weights(
    folder: Path,
) -> None:
    info = a_run(num_steps=20)
    run = trained(folder, info, 12)
    missing = run.open(info, cursor=5, restart=False, open_id="back", checkpoint_incarnation=1)
    train(run, 5, 12, missing=missing, lineage="second branch")
    # Versions 6 to 12 are the second branch's now; the first one's checkpoint of step 10 needs its own version 9.
    with pytest.raises(CursorError, match=r"version 9 .*went back to step 5"):
        run.open(info, cursor=10, restart=False, open_id="forward", checkpoint_incarnation=1)
    # The same step of the second branch is fine, and so is what both branches have in common.
    assert run.open(info, cursor=10, restart=False, open_id="same branch", checkpoint_incarnation=2) == []
    before = selected(run)[5]
    run.open(info, cursor=4, restart=False, open_id="common", checkpoint_incarnation=1)
    assert selected(run)[5] == before
