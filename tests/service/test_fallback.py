"""Training that goes on while its server is away: which rows, which weights afterwards, and every way back past it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.table import Table

from selector_server.journal import Journal
from selector_server.journal.reader import JournalReader
from selector_server.journal.survey import survey, survey_table
from selector_server.live.ask import ask
from selector_server.live.status import status_table
from selector_server.replay.check import Replayer
from selector_server.run import Run
from selector_server.run_state import RunState
from shared.config import ClientConfig, Config
from shared.errors import (
    ConfigError,
    DataError,
    StaleIncarnationError,
    SubbatchError,
    UnavailableError,
    WeightsError,
)
from shared.fallback import fallback_selection, rows_hash
from shared.records import Selection
from shared.weights import encode_weights
from shared.wire import decode_selection, same_selection
from tests.e2e.slow_proxy import SlowProxy
from tests.service.harness import Job, LiveServer
from tests.service.trainers import ArithmeticTrainer, ThreadRanks, computed
from tests.support import World
from train_client.client import SelectorClient
from train_client.reports import Reports

TIMINGS = [(2, 1), (1, 3)]


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(world, tmp_path / "journal") as live:
        yield live


@pytest.fixture
def job(world: World, server: LiveServer) -> Job:
    return Job(world, server.fingerprints)


def require_equal(got: dict[int, Selection], expected: dict[int, Selection], steps: range) -> None:
    assert sorted(got) == list(steps)
    for step in steps:
        assert same_selection(got[step], expected[step]), f"step {step}"


def fallbacks(selections: dict[int, Selection]) -> list[int]:
    return [step for step, selection in sorted(selections.items()) if selection.fallback]


def cell(table: Table, header: str) -> str:
    """What a table of one row says in a column."""
    (column,) = (column for column in table.columns if column.header == header)
    (text,) = column.cells
    return str(text)


def require_whole_journal(server: LiveServer, folder: Path, expected: dict[int, Selection]) -> None:
    """The journal reads back, chain and all, and its selections are those expected and compute again."""
    state = RunState(JournalReader(folder / "run"))
    for step, selection in expected.items():
        assert same_selection(decode_selection(state.selection(step).arrow), selection), f"step {step}"
    for report in Replayer(state, server.store, device=torch.device("cpu")).check(range(len(expected))):
        assert not report.differs, report


@pytest.mark.parametrize(("staleness", "push_every"), TIMINGS)
def test_a_server_that_was_away_goes_on_with_the_right_weights_and_a_rollback_past_it_repeats_everything(
    tmp_path: Path, server: LiveServer, job: Job, staleness: int, push_every: int
) -> None:
    info = job.info(num_steps=20, staleness=staleness, push_every=push_every)
    with ArithmeticTrainer(server, job, info, on_unavailable="sample") as trainer:
        trainer.train(3)
        checkpoint = trainer.state()
        server.stop()
        trainer.train_into_an_outage(5)  # long enough for weights to be given up
        server.start()
        trainer.wait_until_back()
        trainer.train(20 - trainer.cursor)
        without = fallbacks(trainer.selections)
        assert 5 <= len(without) < 17 - len(without), without
        expected = computed(server, job, info, without)
        require_equal(trainer.selections, expected, range(20))
        assert cell(status_table(server.address, ask(ClientConfig(selector=server.address))), "fallback") == str(
            len(without)
        )
    with resumed(server, job, info, checkpoint) as again:
        again.train(20 - 3)
        require_equal(again.selections, expected, range(3, 20))
        assert again.lineage == trainer.lineage
    server.stop()
    require_whole_journal(server, tmp_path / "journal", expected)
    surveys = [survey(tmp_path / "journal", "run", thorough=True)]
    assert cell(survey_table(tmp_path, surveys, thorough=True), "fallback") == str(len(without))


@pytest.mark.parametrize(("staleness", "push_every"), [(0, 1), (2, 1)])
def test_a_checkpoint_made_while_the_server_is_away_continues_as_the_job_that_made_it(
    tmp_path: Path, server: LiveServer, job: Job, staleness: int, push_every: int
) -> None:
    info = job.info(num_steps=12, staleness=staleness, push_every=push_every)
    with ArithmeticTrainer(server, job, info, on_unavailable="sample") as trainer:
        trainer.train(2)
        server.stop()
        trainer.train_into_an_outage(2)
        checkpoint = trainer.state()
        trainer.source.close()
    server.start()
    # Two jobs resume from it, the second while the first is alive; the first is refused from then on.
    with resumed(server, job, info, checkpoint) as first:
        first.train(12 - first.cursor)
        with resumed(server, job, info, checkpoint) as second:
            second.train(12 - second.cursor)
            with pytest.raises(StaleIncarnationError, match="incarnation 3"):
                first.source._client.close_run()
    expected = computed(server, job, info, fallbacks(trainer.selections | first.selections))
    require_equal(trainer.selections | first.selections, expected, range(12))
    require_equal(second.selections, expected, range(checkpoint["cursor"], 12))
    assert first.lineage == second.lineage
    server.stop()
    require_whole_journal(server, tmp_path / "journal", expected)


def test_a_checkpoint_made_while_the_server_is_away_binds_the_job_that_goes_on_too(
    server: LiveServer, job: Job
) -> None:
    info = job.info(num_steps=12, staleness=2)
    with ArithmeticTrainer(server, job, info, on_unavailable="sample") as trainer:
        trainer.train(2)
        server.stop()
        trainer.train_into_an_outage(1)
        trainer.train(1)
        checkpoint = trainer.state()
        server.start()
        trainer.wait_until_back()
        trainer.train(12 - trainer.cursor)
    assert not trainer.selections[11].fallback
    with resumed(server, job, info, checkpoint) as again:
        again.train(12 - again.cursor)
    for step in range(checkpoint["cursor"], 12):
        assert same_selection(again.selections[step], trainer.selections[step]), f"step {step}"


def test_all_ranks_do_without_a_selection_that_one_of_them_cannot_get(server: LiveServer, job: Job) -> None:
    info = dataclasses.replace(job.info(num_steps=10), world_size=2)
    barrier, results = threading.Barrier(2), {}
    ranks = [ThreadRanks(rank, 2).meet(barrier, results) for rank in range(2)]
    with SlowProxy(server.address, seed=0, most_s=0.0) as proxy:
        trainers = [
            ArithmeticTrainer(server, job, info, ranks[0], on_unavailable="sample"),
            ArithmeticTrainer(server, job, info, ranks[1], on_unavailable="sample", selector=proxy.address),
        ]

        def loop(trainer: ArithmeticTrainer) -> None:
            with trainer:
                trainer.train(3)
                if trainer is trainers[1]:
                    proxy.__exit__()  # a network that swallows everything, for this rank alone
                trainer.train(7)

        threads = [threading.Thread(target=loop, args=(trainer,)) for trainer in trainers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    require_equal(trainers[0].selections, trainers[1].selections, range(10))
    without = fallbacks(trainers[0].selections)
    assert without[-1] == 9
    # Rank 0 told the server of each, which went on selecting the others.
    require_equal(trainers[0].selections, computed(server, job, info, without), range(10))


def test_where_failing_is_asked_for_a_server_that_is_away_is_an_error_with_run_step_and_remedy(
    server: LiveServer, job: Job
) -> None:
    with ArithmeticTrainer(server, job, job.info(num_steps=12), on_unavailable="fail") as trainer:
        trainer.train(2)
        server.stop()
        with pytest.raises(UnavailableError, match=r"run 'run', step \d+: .*away for .*can't be reached.*checkpoint"):
            trainer.train(10)


def test_a_server_that_is_slow_to_select_is_not_away(server: LiveServer, job: Job) -> None:
    held = threading.Event()
    with ArithmeticTrainer(server, job, job.info(num_steps=4), on_unavailable="sample") as trainer:
        trainer.train(1)
        looks = threading.Semaphore(0)
        ask = trainer.source._client._liveness.ask

        def counted(step: int) -> str:
            looks.release()
            return ask(step)

        trainer.source._client._liveness.ask = counted  # type: ignore[method-assign]
        server.host._scheduler._worker.submit(held.wait)
        waiting = threading.Thread(target=trainer.train, args=(3,))
        waiting.start()
        for _ in range(4):  # questions, over several times the while after which a server counts as away
            assert looks.acquire(timeout=30)
        held.set()
        waiting.join(30)
    assert fallbacks(trainer.selections) == []


@pytest.mark.parametrize("on_unavailable", ["wait", "sample"])
def test_weights_that_are_refused_end_the_wait_for_a_selection_that_needs_them(
    server: LiveServer, job: Job, monkeypatch: pytest.MonkeyPatch, on_unavailable: str
) -> None:
    with ArithmeticTrainer(server, job, job.info(staleness=0), on_unavailable=on_unavailable) as trainer:
        trainer.train(1)

        is_known = Run.is_known

        def refuse(self: Run, version: int, sha256: str) -> bool:
            if version == 2:
                raise WeightsError("version 2 is not wanted")
            return is_known(self, version, sha256)

        monkeypatch.setattr(Run, "is_known", refuse)
        with pytest.raises(WeightsError, match="version 2 is not wanted"):
            trainer.train(2)  # step 2 would be waited for, for ten minutes
    assert sorted(trainer.selections) == [0, 1]


@pytest.mark.parametrize("preset", ["colm", "matched"])
def test_selections_that_depend_on_those_before_cannot_do_without(server: LiveServer, job: Job, preset: str) -> None:
    info = job.info(preset=preset)
    trainer = ArithmeticTrainer(server, job, info, on_unavailable="sample")
    with pytest.raises(ConfigError, match=r"on_unavailable is sample.* to wait"):
        trainer.open()
    trainer.source.close()
    client = SelectorClient(ClientConfig(selector=server.address), run="run", rank=0)
    rows = rows_hash(fallback_selection(info, server.store, 0))
    with pytest.raises(ConfigError, match="on_unavailable"):
        client.open_run(info, cursor=0, restart=False, trained={0: rows})
    client.close()


def test_a_source_without_a_server_has_nothing_to_do_without() -> None:
    with pytest.raises(ValueError, match=r"on_unavailable 'sample' is for a server.*'inline'"):
        Config(client={"selector": "inline", "on_unavailable": "sample"})  # type: ignore[arg-type]


def test_rows_that_the_server_would_not_draw_and_steps_past_its_own_are_refused(server: LiveServer, job: Job) -> None:
    info = job.info(num_steps=8)
    client = SelectorClient(ClientConfig(selector=server.address), run="run", rank=0)
    client.open_run(info, cursor=0, restart=False)
    rows = {step: rows_hash(fallback_selection(info, server.store, step)) for step in range(8)}
    for trained, kind, reason in (
        ({0: rows[1]}, DataError, "trained step 0 .*same releases"),
        ({5: rows[5]}, SubbatchError, "expects step 0 of 8, the trainer trained step 5"),
        ({9: b""}, SubbatchError, "aren't ascending steps"),
    ):
        with pytest.raises(kind, match=reason):
            client.open_run(info, cursor=0, restart=True, trained=trained)
    assert server.host.get("run").run.next_step == 0
    client.close()


def test_the_server_hears_of_steps_trained_without_it_before_weights_that_leave_these_out_and_before_the_end(
    server: LiveServer, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is told in the background, as where that has just failed and is about to be tried again.
    monkeypatch.setattr(Reports, "_tell", lambda self, completed: self._calls.stopping.wait())
    info = job.info(num_steps=8)
    rows = {step: rows_hash(fallback_selection(info, server.store, step)) for step in range(8)}
    client = SelectorClient(ClientConfig(selector=server.address), run="run", rank=0)
    incarnation, _ = client.open_run(info, cursor=0, restart=False)
    client.attach(incarnation, from_step=0, num_steps=8)
    client.report_trained({step: rows[step] for step in range(4)})
    client.push(3, encode_weights(job.weights(3)))
    run = server.host.get("run").run
    assert (run.num_fallback, run.next_step, run.weights_versions) == (4, 4, [3])
    client.report_trained({4: rows[4]})
    client.close_run()
    assert (run.num_fallback, client.untold_trained) == (5, {})
    client.close()


def slow_writes(monkeypatch: pytest.MonkeyPatch, version: int) -> tuple[threading.Event, threading.Event]:
    """Let the server's disk take its time for one version: an event when it begins, and one that lets it end."""
    writing, may_end = threading.Event(), threading.Event()
    write_weights = Journal.write_weights

    def slow(self: Journal, number: int, sha256: str, payload: bytes) -> None:
        if number == version:
            writing.set()
            assert may_end.wait(30)
        write_weights(self, number, sha256, payload)

    monkeypatch.setattr(Journal, "write_weights", slow)
    return writing, may_end


def test_a_checkpoint_waits_until_every_version_it_depends_on_is_durable(
    server: LiveServer, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = job.info(num_steps=8, staleness=2)
    writing, may_end = slow_writes(monkeypatch, 3)
    with ArithmeticTrainer(server, job, info) as trainer:
        trainer.train(3)  # steps 0 to 2 use version 0
        assert writing.wait(30)
        saved: list[dict[str, Any]] = []
        saving = threading.Thread(target=lambda: saved.append(trainer.state()))
        saving.start()
        saving.join(0.3)
        assert not saved
        may_end.set()
        saving.join(30)
        trainer.train(5)
    with resumed(server, job, info, saved[0]) as again:
        again.train(5)
    require_equal(again.selections, computed(server, job, info, ()), range(3, 8))


def test_a_job_that_goes_back_while_the_older_ones_push_is_under_way_gets_weights_of_its_own_alone(
    server: LiveServer, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = job.info(num_steps=8)
    writing, may_end = slow_writes(monkeypatch, 4)
    zombie = ArithmeticTrainer(server, job, info)
    with zombie:
        zombie.train(2)
        checkpoint = zombie.state()
        zombie.lineage = b"another branch"  # what it pushes from now on is not what the checkpoint leads to
        zombie.train(2)
        assert writing.wait(30)
        again = resumed(server, job, info, checkpoint)
        opening = threading.Thread(target=again.open)
        opening.start()
        may_end.set()
        opening.join(30)
        again.train(6)
        for call in (lambda: zombie.source._client.push(5, b"late"), zombie.source._client.close_run):
            with pytest.raises(StaleIncarnationError, match="incarnation 2"):
                call()
        again.source.close()
    require_equal(again.selections, computed(server, job, info, ()), range(2, 8))


def resumed(server: LiveServer, job: Job, info: Any, checkpoint: dict[str, Any], **client: Any) -> ArithmeticTrainer:
    trainer = ArithmeticTrainer(server, job, info, **client)
    trainer.load(checkpoint)
    return trainer
