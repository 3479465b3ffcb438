"""kill -9 of the server at every call by which its journal reaches the disk: wherever it died, nothing is different."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from selector_server.journal import JournalReader
from selector_server.journal.survey import survey
from selector_server.run_state import RunState
from shared.wire import same_selection
from tests.chaos import fault_points
from tests.chaos.fault_points import HALF
from tests.e2e.forked import start_server, start_trainer
from tests.e2e.publishing import STEPS
from tests.support import ENVIRONMENT, PYTHON, World, journalled_selections, write_config

ROOT = Path(__file__).parents[2]
RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is a folder of it: hundreds of servers are started on it."""
    with tempfile.TemporaryDirectory(dir=RAM) as path:
        yield Path(path)


def lives(folder: Path, plans: list[list[int]]) -> list[int]:
    """How many servers died in each run of `publishing`."""
    folder.mkdir()
    command = [PYTHON, "-m", "tests.e2e.publishing", str(folder)]
    done = subprocess.run(
        command, input=json.dumps(plans), capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout))


def assert_as_undisturbed(folder: Path, undisturbed: Path, what: str) -> None:
    """One run of `publishing` ended like another: what was delivered, what is journalled, and it is whole."""
    left, right = (RunState(JournalReader(each / "run")) for each in (folder, undisturbed))
    selected = [[(state.has_selection(t), state.selection(t)) for t in range(STEPS)] for state in (left, right)]
    assert selected[0] == selected[1], what
    assert (left.incarnation, left.closed, left.num_set_aside) == (right.incarnation, right.closed, right.num_set_aside)
    delivered = [(each / "delivered").read_text().splitlines() for each in (folder, undisturbed)]
    # A call whose acknowledgement was lost is made again; what it gives is the same.
    again = [line for number, line in enumerate(delivered[0]) if number == 0 or line != delivered[0][number - 1]]
    assert again == delivered[1], what
    found = survey(folder, "run", thorough=True)
    assert found.faults + found.notes == [], f"{what}: {found.faults} {found.notes}"


def test_a_server_killed_at_any_call_of_the_publish_path_changes_nothing(folder: Path) -> None:
    calm = folder / "calm"
    assert lives(calm, [[]]) == [0]
    trace = (calm / "0" / "trace").read_text().splitlines()
    assert {"before write", HALF, "before fsync", "after fsync", "before rename"} <= set(trace)

    plans = [[at] for at in range(1, len(trace) + 1)]
    # And where the server that repairs a torn record, the longest there are, dies of it too.
    halves = [at for at, name in enumerate(trace, 1) if name == HALF]
    plans += [[at, again] for at in halves[-2:] for again in range(1, 9)]
    deaths = lives(folder / "killed", plans)
    for number, plan in enumerate(plans):
        names = [trace[plan[0] - 1], *plan[1:]]
        assert deaths[number] == len(plan), names
        assert_as_undisturbed(folder / "killed" / str(number), calm / "0", f"killed at {plan}, {names}")


# ---- the same with a real server and a real training loop, which are forked from a process that has imported both

NUM_STEPS = 3


class Killed:
    """One run, trained to its end; where its server has lived so long, rolled back to step 1 and trained again."""

    def __init__(self, folder: Path, world: World, *, at: int | None) -> None:
        self._folder, self._port, self.deaths = folder, 0, 0
        self._config = write_config(folder, world, run={"num_steps": NUM_STEPS}, train={"save_every": 1})
        if at is not None:
            fault_points.plan_to_die(folder / "plan", at=at)
        self._start_server()
        self._train("first")
        if not self.deaths:
            self._train("again", f"--train.resume={folder / 'first' / 'checkpoint-1'}")
        self._server.terminate()
        self._server.join()
        assert self._server.exitcode == 0

    def _start_server(self) -> None:
        self._server, self._port = start_server(self._config, self._folder, port=self._port)

    def _train(self, name: str, *overrides: str) -> None:
        to_server = f"--client.selector=127.0.0.1:{self._port}"
        trainer = start_trainer(self._config, to_server, f"--train.output={self._folder / name}", *overrides)
        while trainer.is_alive():
            wait([trainer.sentinel, self._server.sentinel])
            if not self._server.is_alive():
                self.deaths += 1
                self._start_server()
        assert trainer.exitcode == 0

    def weights(self) -> set[bytes]:
        return {path.read_bytes() for path in self._folder.glob("*/model/adapter_model.safetensors")}


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_real_server_killed_at_any_call_of_the_publish_path_changes_nothing(world: World, folder: Path) -> None:
    calm = Killed(folder / "calm", world, at=None)
    trace = (folder / "calm" / "trace").read_text().splitlines()
    selections = journalled_selections(folder / "calm" / "journal")
    assert sorted(selections) == list(range(NUM_STEPS))
    assert len(calm.weights()) == 1, "the run that went back to step 1 ended otherwise"
    for at, name in enumerate(trace, 1):
        what = f"killed at point {at} of {len(trace)}, {name}"
        here = folder / "killed"
        killed = Killed(here, world, at=at)
        assert killed.deaths == 1, what
        assert killed.weights() == calm.weights(), what
        found = journalled_selections(here / "journal")
        assert found.keys() == selections.keys(), what
        assert all(same_selection(found[step], selections[step]) for step in selections), what
        verdict = survey(here / "journal", "run", thorough=True)
        assert verdict.faults + verdict.notes == [], f"{what}: {verdict.faults} {verdict.notes}"
        shutil.rmtree(here)
