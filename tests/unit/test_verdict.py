"""Who waits for whom is told from times as a server sees them; expected words follow from how the times were made."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from selector_server.live.lanes import lanes, selector_spans, trainer_spans
from selector_server.live.recent import Recent
from selector_server.live.top import view
from selector_server.live.verdict import flow, verdict
from shared.pb.v1 import selector_pb2 as pb

NOW = 1_000.0


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def made(
    *, training: float, selecting: float, late: float = 0.0, num_steps: int = 20, staleness: int = 1, ends: float = NOW
) -> pb.RunStatus:
    """A run whose selections begin `late` seconds after the training of the step before them, or of two before them.

    A step trains once its selection is there and the step before is done; the selector makes one after the other.
    """
    steps, done, ready = [], [0.0], 0.0
    for n in range(num_steps):
        behind = done[-1] if staleness == 0 or len(done) < 2 else done[-2]
        began = max(ready, behind + late)
        ready = began + selecting
        done.append(max(done[-1], ready) + training)
        times = pb.PhaseTimes(started_unix_ns=ns(began), score_seconds=selecting)
        seen = pb.StepSeen(step=n, times=times, ready_unix_ns=ns(ready), last_completed_unix_ns=ns(done[-1]))
        seen.first_completed_unix_ns = seen.last_completed_unix_ns
        steps.append(seen)
    shift = ns(ends - done[-1])
    for seen in steps:
        seen.times.started_unix_ns += shift
        seen.ready_unix_ns += shift
        seen.first_completed_unix_ns += shift
        seen.last_completed_unix_ns += shift
    return pb.RunStatus(
        run="run",
        num_steps=1000,
        next_step=num_steps + 1,
        completed={0: num_steps, 1: num_steps},
        waits_for="scoring",
        detail=pb.RunDetail(unix_ns=ns(NOW), steps=steps, staleness=staleness, lookahead=2),
    )


def told(status: pb.RunStatus, **given: object) -> pb.Verdict:
    known: dict[str, object] = {"failure": "", "held": "", "missing": [], "is_shared": False} | given
    return verdict(status, now_unix_ns=ns(NOW), **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(("training", "selecting"), [(1.0, 0.5), (1.0, 1.5), (0.2, 2.0)])
def test_the_wait_is_what_selecting_takes_longer_than_training(training: float, selecting: float) -> None:
    seen = flow(made(training=training, selecting=selecting).detail.steps)
    assert seen.training_seconds == pytest.approx(training)
    assert seen.selection_seconds == pytest.approx(selecting)
    assert seen.wait_seconds == pytest.approx(max(0.0, selecting - training), abs=1e-6)
    assert seen.step_seconds == pytest.approx(max(training, selecting))


def test_a_slow_selector_is_named_with_both_times() -> None:
    said = told(made(training=1.0, selecting=2.0))
    assert (said.level, said.headline) == (
        pb.Verdict.WAITING,
        "Trainers wait 50% of the time for the selector: a selection takes 2.00 s, training a step 1.00 s",
    )
    assert "more scoring processes" in said.remedy
    assert said.wait_fraction == pytest.approx(0.5)


def test_without_staleness_the_remedy_is_staleness() -> None:
    said = told(made(training=1.0, selecting=0.5, staleness=0))
    assert said.level == pb.Verdict.WAITING
    assert said.headline.startswith("Trainers wait 33% of the time for the selector")
    assert said.remedy == "run.staleness = 1 lets both happen at once"


def test_late_weights_are_told_from_a_slow_selector_and_from_a_shared_one() -> None:
    late = made(training=1.0, selecting=0.2, late=1.6)
    assert "weights that it needs arrive late" in told(late).headline
    assert "works for other runs" in told(late, is_shared=True).headline


def test_a_run_that_keeps_up_is_good_and_names_ranks_that_are_gone() -> None:
    status = made(training=1.0, selecting=0.5)
    assert told(status).level == pb.Verdict.GOOD
    status.gone_ranks.append(1)
    assert "rank 1 gone, the others go on" in told(status).headline


def test_a_step_that_takes_far_longer_than_usual_names_the_rank_that_is_not_done() -> None:
    status = made(training=1.0, selecting=0.5, ends=NOW - 42.0)
    status.detail.steps.add(step=20, ready_unix_ns=ns(NOW - 42.0))
    status.completed[0] = 21
    said = told(status, missing=[1])
    assert said.level == pb.Verdict.STALLED
    assert said.headline == "Step 20 has been trained for 42 s; usually a step takes 1.00 s. Not done: rank 1"


def test_trainers_that_have_waited_for_long_are_told_what_the_selector_waits_for() -> None:
    status = made(training=1.0, selecting=0.5, ends=NOW - 30.0)
    status.next_step, status.waits_for = 20, "weights version 19 from the trainer, for step 20"
    said = told(status)
    assert said.level == pb.Verdict.STALLED
    assert "waited 30 s for step 20; the selector waits for weights version 19 from the trainer" in said.headline


def test_errors_full_disks_absent_trainers_and_ends_come_first() -> None:
    status = made(training=1.0, selecting=2.0)
    assert "boom" in told(status, failure="boom").headline
    assert told(status, held="disk full").level == pb.Verdict.STALLED
    status.gone_ranks.extend([0, 1])
    status.silent_seconds[0], status.silent_seconds[1] = 50.0, 40.0
    assert told(status).headline == "No trainer is here: every rank has been silent for 40 s or longer"
    status.closed = True
    assert told(status).headline == "Closed by its trainer after 20 of 1000 steps"
    status.num_steps = 20
    assert told(status).headline == "Trained: all 20 steps"


def test_a_run_begins_without_a_judgement() -> None:
    assert told(made(training=1.0, selecting=2.0, num_steps=3)).level == pb.Verdict.STARTING
    assert told(pb.RunStatus(run="run", num_steps=3, completed={0: 0})).level == pb.Verdict.STARTING


def test_a_step_is_complete_when_every_rank_that_is_there_has_told() -> None:
    recent = Recent(range(3))
    for step in (5, 6):
        recent.selected(step, step, pb.PhaseTimes(started_unix_ns=1))
    recent.completed(0, 7, gone=())
    recent.completed(1, 6, gone=())
    assert recent.missing() == [2]
    assert [bool(s.first_completed_unix_ns) for s in recent.steps()] == [True, True]
    recent.completed(1, 6, gone={2})
    assert [bool(s.last_completed_unix_ns) for s in recent.steps()] == [True, False]
    assert recent.missing() == [1, 2]
    recent.completed(2, 7, gone=())
    recent.completed(1, 7, gone=())
    assert [bool(s.last_completed_unix_ns) for s in recent.steps()] == [True, True]
    assert recent.missing() == []


def test_the_lanes_show_as_much_waiting_as_there_was() -> None:
    status = made(training=1.0, selecting=2.0)
    status.detail.verdict.CopyFrom(told(status))
    waited = sum(end - begin for kind, begin, end in trainer_spans(status) if kind == "wait")
    trained = sum(end - begin for kind, begin, end in trainer_spans(status) if kind == "train")
    assert trained == pytest.approx(20.0)
    assert waited == pytest.approx(19 * 1.0, rel=0.1)
    assert {kind for kind, begin, end in selector_spans(status) if end > begin} == {"score"}
    text = lanes(status, width=100)
    lines = text.plain.splitlines()
    assert lines[0].startswith("selector")
    assert lines[0].count("█") > 80
    assert lines[1].startswith("trainers")
    assert 30 <= lines[1].count("░") <= 60


def test_the_terminal_view_shows_cause_remedy_progress_and_source_shares() -> None:
    status = made(training=1.0, selecting=2.0)
    status.detail.sub_batch_size, status.detail.large_batch_size = 16, 32
    status.detail.sources["gsm"].CopyFrom(pb.SourceRows(drawn=30, picked=5))
    status.detail.sources["math"].CopyFrom(pb.SourceRows(drawn=10, picked=15))
    status.detail.verdict.CopyFrom(told(status))
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(view("host:1", [status], age_s=0.0, width=110))
    shown = console.export_text()
    assert "Trainers wait 50% of the time for the selector" in shown
    assert "what helps: score faster" in shown
    assert "20 of 1000 steps trained" in shown
    assert [line.split()[1:4] for line in shown.splitlines() if " gsm " in line or " math " in line] == [
        ["gsm", "75.0%", "25.0%"],
        ["math", "25.0%", "75.0%"],
    ]
    console.print(view("host:1", [status], age_s=9.0, width=110))
    assert "hasn't answered for 9 s" in console.export_text()
