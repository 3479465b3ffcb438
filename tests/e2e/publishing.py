"""A run's publish path without gRPC and without a model, in processes that may die at any point of it.

The trainer is a list of calls, each made until it is acknowledged, as a client does; the server is a process that is
forked for it, and forked again after its death, which reads the journal and goes on.

    python -m tests.e2e.publishing FOLDER < plans.json > lives.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from selector_server.journal import Journal
from selector_server.run import Run
from shared.pb.v1 import selector_pb2
from shared.records import Fingerprints, RunInfo, Selection, TensorSpec
from shared.selection_config import SelectionConfig
from shared.timing import Timing
from shared.weights import content_hash
from shared.wire import encode_selection
from tests.chaos import fault_points

STEPS = 5
INFO = RunInfo(
    name="run",
    seed=7,
    timing=Timing(num_steps=STEPS, staleness=1, push_every=1, lookahead=1),
    world_size=1,
    selection=SelectionConfig(),
    adapter_json='{"r": 4}',
    trainable=(TensorSpec("B", (8, 4), "float32"),),
    fingerprints=Fingerprints("data", "tokens", {"float32": "f"}),
)
_ENDED, _KILLED = 0, 9


def _open(cursor: int, open_id: str, incarnation: int = 0) -> Callable[[Run, Path], None]:
    def call(run: Run, _delivered: Path) -> None:
        run.open(INFO, cursor=cursor, restart=False, open_id=open_id, checkpoint_incarnation=incarnation)

    return call


def _push(version: int) -> Callable[[Run, Path], None]:
    payload = b"weights %d " % version * 40

    def call(run: Run, _delivered: Path) -> None:
        if not run.is_known(version, content_hash(payload)):
            run.add_weights(version, content_hash(payload), payload)

    return call


def _train(step: int) -> Callable[[Run, Path], None]:
    """Select what can be selected, deliver the selection of `step`, and hear that it has been trained."""

    def call(run: Run, delivered: Path) -> None:
        run.report_progress(0, step)
        while (selected := run.selectable_step()) is not None:
            version = INFO.timing.weights_version(selected)
            arrow = encode_selection(_picked(selected, version, run.weights(version) or b""))
            message = selector_pb2.SelectionMessage(step=selected, weights_version=version, arrow=arrow)
            run.add_selection(message, b"scores of step %d" % selected * 30)
            run.drop_unneeded_weights()
        with delivered.open("a") as file:
            file.write(f"{step} {content_hash(run.selection(step).arrow)}\n")
        run.report_progress(0, step + 1)

    return call


def _picked(step: int, version: int, weights: bytes) -> Selection:
    """A selection that depends on the weights that it saw."""
    draw = np.random.default_rng([step, *weights])
    r = 6
    return Selection(
        run=INFO.name,
        step=step,
        weights_version=version,
        large_batch_size=2 * r,
        index=draw.permutation(240)[:r].astype(np.int64),
        source=draw.integers(14, size=r, dtype=np.int32),
        weight=draw.random(r, dtype=np.float32),
        gain=draw.random(r, dtype=np.float32),
        num_tokens=draw.integers(9, 90, size=r, dtype=np.int32),
    )


def _close(run: Run, _delivered: Path) -> None:
    run.close()


# Trained to step 4, gone back to the checkpoint of step 1, trained to the end, opened once more there.
CALLS = (
    _open(0, "first"), _push(0), _train(0), _push(1), _train(1), _push(2), _train(2), _push(3), _train(3),
    _open(1, "second", 1), _train(1), _push(2), _train(2), _push(3), _train(3), _train(4), _close,
    _open(STEPS, "third", 2), _close,
)  # fmt: skip


def live(folder: Path, plans: Sequence[int]) -> int:
    """Make all calls on a run in `folder`, whose servers die at the planned points of their lives, one after another.

    Returns:
        How many servers died.
    """
    acknowledged, deaths = 0, 0
    for number in range(len(plans) + 1):
        plan = folder / "plan"
        if number < len(plans):
            fault_points.plan_to_die(plan, at=plans[number])
        acknowledgements, say = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(acknowledgements)
            fault_points.install(plan, None if plans else folder / "trace")
            _serve(folder, acknowledged, say)
        os.close(say)
        while heard := os.read(acknowledgements, 4096):
            acknowledged += len(heard)
        os.close(acknowledgements)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == _ENDED:
            assert acknowledged == len(CALLS)
            return deaths
        assert os.waitstatus_to_exitcode(status) == -_KILLED, f"the server of {folder} ended with status {status}"
        deaths += 1
    raise AssertionError("a server without a plan died")


def _serve(folder: Path, first_call: int, say: int) -> None:
    try:
        run = Run(Journal(folder / "run"))
        for call in CALLS[first_call:]:
            call(run, folder / "delivered")
            os.write(say, b".")
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(_ENDED)


if __name__ == "__main__":
    encode_selection(_picked(0, 0, b""))  # what Arrow imports at its first use takes longer than a server's whole life
    folder, all_plans = Path(sys.argv[1]), json.load(sys.stdin)
    for number in range(len(all_plans)):
        (folder / str(number)).mkdir()
    json.dump([live(folder / str(number), plans) for number, plans in enumerate(all_plans)], sys.stdout)
