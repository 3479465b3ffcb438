"""Whatever is killed, the run goes on as if nothing had happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_selections import LOOP, assert_same_selections, assert_same_weights, given
from tests.support import Server, Trainer, World, journalled_selections, write_config


def wait_until(condition: Callable[[], bool], trainer: Trainer, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert trainer.process.poll() is None, trainer.log_path.read_text()[-3000:]
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def steps_done(output: Path) -> int:
    log = output / "loop-rank0.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps on two ranks that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder, world)
    with Server(config) as server:
        with Trainer(config, f"--client.selector={server.address}", script=LOOP, ranks=2) as trainer:
            trainer.finish()
    return folder


@pytest.mark.slow
def test_everything_killed_at_step_14_resumes_from_the_checkpoint_of_step_9(
    world: World, tmp_path: Path, undisturbed: Path
) -> None:
    config = write_config(tmp_path, world)
    output = tmp_path / "train"
    with Server(config) as server:
        slowly = (f"--client.selector={server.address}", "--fault.save_at=9", "--fault.sleep=0.3")
        with Trainer(config, *slowly, script=LOOP, ranks=2) as trainer:
            wait_until(lambda: steps_done(output) >= 14, trainer)
            trainer.kill()
        server.kill()
        assert (output / "saved-whole").exists()
        before = given(output)
        assert max(before) >= 13

        server.restart()
        again = (f"--client.selector={server.address}", f"--fault.resume={output / 'saved'}")
        with Trainer(config, *again, f"--train.output={tmp_path / 'again'}", script=LOOP, ranks=2) as trainer:
            trainer.finish()
    expected = given(undisturbed / "train")
    after = given(tmp_path / "again")
    assert sorted(after) == list(range(9, 20))
    assert_same_selections(after, {step: expected[step] for step in after})
    assert_same_selections(before, {step: expected[step] for step in before})
    assert_same_selections(journalled_selections(tmp_path / "journal"), expected)
    assert_same_weights(tmp_path / "again", undisturbed / "train")


@pytest.mark.slow
def test_server_killed_again_and_again_changes_nothing_for_the_trainers(
    world: World, tmp_path: Path, undisturbed: Path
) -> None:
    config = write_config(tmp_path, world)
    output = tmp_path / "train"
    with Server(config) as server:
        arguments = (f"--client.selector={server.address}", "--fault.sleep=0.3")
        with Trainer(config, *arguments, script=LOOP, ranks=2) as trainer:
            for at in (2, 11):
                wait_until(lambda at=at: steps_done(output) >= at, trainer)
                server.kill()
                server.restart()
            trainer.finish()
    for rank in (0, 1):
        assert_same_selections(given(output, rank), given(undisturbed / "train"))
    assert_same_weights(output, undisturbed / "train")
