"""A trainer that goes back to an older checkpoint continues exactly as it would have, however often it does."""

from __future__ import annotations

import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.chaos.job import rows_of
from tests.chaos.judge import Told, step_differences, weights_differences
from tests.e2e.forked import start_server, start_trainer
from tests.support import World, journalled_selections, write_config

NUM_STEPS = 14
WEIGHTS = Path("model") / "adapter_model.safetensors"


def wait_until_trained(output: Path, step: int, trainer: BaseProcess) -> None:
    deadline = time.monotonic() + 120
    while len(rows_of(output, 0)) < step:
        assert trainer.is_alive(), "the trainer ended too early"
        assert time.monotonic() < deadline, f"step {step} was never trained"
        time.sleep(0.01)


def told(number: int, first_step: int, output: Path) -> Told:
    return Told(number, first_step, (rows_of(output, 0),))


def test_going_back_to_older_checkpoints_continues_as_a_run_that_never_did(world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path, world, run={"num_steps": NUM_STEPS}, train={"save_every": 2})
    outputs = {name: tmp_path / name for name in ("inline", "first", "second", "third", "lost")}

    # The truth needs no server: selection inside the training process, of a run that trains every step once.
    truth = start_trainer(config, "--client.selector=inline", f"--train.output={outputs['inline']}")
    truth.join()
    assert truth.exitcode == 0

    server, port = start_server(config, tmp_path)
    to_server = f"--client.selector=127.0.0.1:{port}"
    first = start_trainer(config, to_server, f"--train.output={outputs['first']}")
    wait_until_trained(outputs["first"], 9, first)
    first.kill()
    first.join()
    # Far behind the newest checkpoint: what was selected with weights newer than version 2 must go.
    back = f"--train.resume={outputs['first'] / 'checkpoint-2'}"
    second = start_trainer(config, to_server, back, f"--train.output={outputs['second']}")
    wait_until_trained(outputs["second"], 5, second)
    second.kill()
    second.join()
    server.kill()
    server.join()
    server, _ = start_server(config, tmp_path, port=port)
    back = f"--train.resume={outputs['second'] / 'checkpoint-4'}"
    third = start_trainer(config, to_server, back, f"--train.output={outputs['third']}")
    third.join()
    assert third.exitcode == 0

    expected = told(0, 0, outputs["inline"])
    attempts = [told(0, 0, outputs["first"]), told(1, 2, outputs["second"]), told(2, 4, outputs["third"])]
    assert len(attempts[0].by_rank[0]) >= 9
    assert step_differences(expected, attempts, num_steps=NUM_STEPS) == []
    assert weights_differences(outputs["inline"] / WEIGHTS, outputs["third"] / WEIGHTS) == []
    selections = journalled_selections(tmp_path / "journal")
    trained = {row["step"]: sorted(row["rows"]) for row in expected.by_rank[0]}
    assert {step: sorted(selection.index.tolist()) for step, selection in selections.items()} == trained

    # What the first job trained past step 2 is another branch now, though it would be the same.
    ahead = f"--train.resume={outputs['first'] / 'checkpoint-8'}"
    lost = start_trainer(config, to_server, ahead, f"--train.output={outputs['lost']}")
    lost.join()
    assert lost.exitcode != 0
    assert rows_of(outputs["lost"], 0) == []
    server.terminate()
    server.join()
    assert server.exitcode == 0
