"""A scoring process is lost: the server ends and says who it was; started again, it goes on with the job.

And who may start them, and that nobody is left when they end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_resume import steps_done, wait_until
from tests.e2e.test_selections import LOOP, assert_same_selections, given
from tests.service.scaled import ScaledServer
from tests.support import Trainer, World, journalled_selections, write_config

pytestmark = pytest.mark.long

STEPS = 8


def test_a_killed_scoring_process_is_named_and_a_restarted_server_goes_on_at_the_same_step(
    world: World, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path, world, run={"num_steps": STEPS}, selection={"score_tokens": 200}, server={"worker_timeout_s": 8.0}
    )
    inline = tmp_path / "inline"
    with ScaledServer(config) as server:
        slowly = (f"--client.selector={server.address}", "--fault.sleep=0.2")
        with Trainer(config, *slowly, script=LOOP) as trainer:
            wait_until(lambda: steps_done(tmp_path / "train") >= 3, trainer)
            killed, began = server.pid(1), time.monotonic()
            os.kill(killed, signal.SIGKILL)
            assert server.process.wait(timeout=60) != 0
            assert time.monotonic() - began < 30
            assert f"scoring process 1 (pid {killed}) has died" in server.text()
            selected = journalled_selections(tmp_path / "journal")
            assert 3 <= len(selected) < STEPS

            server.restart()
            trainer.finish()
        assert "has died" not in server.text()

        stopped = server.pid(1)
        os.kill(stopped, signal.SIGSTOP)
        server.wait_for_end_of(0)
        assert f"scoring process 1 (pid {stopped}) hasn't been heard" in server.text()
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):  # its launcher may have ended it
            left = psutil.Process(stopped)
            os.kill(stopped, signal.SIGCONT)
            left.wait(timeout=60)  # it ends by itself when it finds the others gone
    with Trainer(config, "--client.selector=inline", f"--train.output={inline}", script=LOOP) as trainer:
        trainer.finish()
    assert_same_selections(given(tmp_path / "train"), given(inline))
    final = journalled_selections(tmp_path / "journal")
    assert_same_selections({step: final[step] for step in selected}, selected)


def test_when_the_serving_process_is_killed_the_others_end_by_themselves_and_nobody_is_left(
    world: World, tmp_path: Path
) -> None:
    config = write_config(tmp_path, world, server={"worker_timeout_s": 8.0})
    with ScaledServer(config, processes=3) as server:
        launcher = psutil.Process(server.process.pid)
        pids = [server.pid(rank) for rank in range(3)]
        launcher.suspend()  # or it would end the others
        os.kill(pids[0], signal.SIGKILL)
        for pid in pids[1:]:
            server.wait_for_end(pid, timeout=30)
        assert server.text().count(f"scoring process 0 (pid {pids[0]}) has died") == 2
        launcher.resume()
        assert server.process.wait(timeout=60) != 0
        assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_accelerate_starts_the_scoring_processes_as_torchrun_does(world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path, world, run={"num_steps": STEPS}, selection={"score_tokens": 200})
    inline = tmp_path / "inline"
    with ScaledServer(config, launcher="accelerate") as server:
        with Trainer(config, f"--client.selector={server.address}", script=LOOP) as trainer:
            trainer.finish()
        workers = [server.pid(0), server.pid(1)]
        server.stop()
        assert "selector_server.server: stopped" in server.text()
        assert not [pid for pid in workers if psutil.pid_exists(pid)]
    with Trainer(config, "--client.selector=inline", f"--train.output={inline}", script=LOOP) as trainer:
        trainer.finish()
    assert_same_selections(given(tmp_path / "train"), given(inline))
