"""What is selected depends on the run's settings alone: not on where selection runs, and not on anybody's speed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from shared.records import Selection
from shared.wire import decode_selection, same_selection
from tests.e2e.slow_proxy import SlowProxy
from tests.support import Server, Trainer, World, journalled_selections, write_config

HERE = Path(__file__).parent
LOOP, SLOW_SERVER, WATCHED_END = HERE / "loop.py", HERE / "slow_server.py", HERE / "watched_end.py"


def given(output: Path, rank: int = 0) -> dict[int, Selection]:
    """The selections that a rank's loop was given."""
    rows = [json.loads(line) for line in (output / f"loop-rank{rank}.jsonl").read_text().splitlines()]
    return {row["step"]: decode_selection(base64.b64decode(row["selection"])) for row in rows}


def assert_same_selections(left: dict[int, Selection], right: dict[int, Selection]) -> None:
    assert left.keys() == right.keys()
    for step in left:
        assert same_selection(left[step], right[step]), f"step {step}: {left[step]} != {right[step]}"


def assert_same_weights(left: Path, right: Path) -> None:
    a, b = load_file(left / "weights.safetensors"), load_file(right / "weights.safetensors")
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize(
    ("num_steps", "selection", "train"),
    [
        (20, {}, {}),
        (6, {}, {"lora": False, "learning_rate": 1e-3}),
        (6, {"preset": "colm"}, {}),
        (6, {"preset": "matched"}, {}),
    ],
    ids=["lora", "full", "colm", "matched"],
)
def test_selections_through_the_server_equal_inline_selection_bit_for_bit(
    world: World, tmp_path: Path, num_steps: int, selection: dict[str, object], train: dict[str, object]
) -> None:
    config = write_config(
        tmp_path, world, run={"staleness": 0, "num_steps": num_steps}, selection=selection, train=train
    )
    inline = tmp_path / "inline"
    with Trainer(config, "--client.selector=inline", f"--train.output={inline}", script=LOOP) as trainer:
        trainer.finish()
    with Server(config) as server:
        with Trainer(config, f"--client.selector={server.address}", script=LOOP) as trainer:
            trainer.finish()
        assert server.stop() == 0

    through_server = given(tmp_path / "train")
    assert_same_selections(through_server, given(inline))
    assert_same_selections(through_server, journalled_selections(tmp_path / "journal"))
    assert_same_weights(tmp_path / "train", inline)
    # Had the weights not moved the picks, this test would prove little.
    assert [s.weights_version for s in through_server.values()] == list(range(num_steps))


@pytest.mark.slow
def test_delays_on_server_network_and_trainer_change_nothing(world: World, tmp_path: Path) -> None:
    outputs = []
    for seed, sleep in ((1, "0.05"), (2, "0.2")):
        folder = tmp_path / str(seed)
        config = write_config(folder, world, run={"staleness": 1})
        with (
            Server(config, script=SLOW_SERVER, SLOW_SEED=str(seed)) as server,
            SlowProxy(server.address, seed=seed) as proxy,
        ):
            arguments = (f"--client.selector={proxy.address}", f"--fault.sleep={sleep}")
            with Trainer(config, *arguments, script=LOOP, ranks=2) as trainer:
                trainer.finish()
        outputs.append(folder)
    first, second = outputs
    assert_same_selections(given(first / "train"), given(second / "train"))
    assert_same_selections(given(first / "train"), given(first / "train", rank=1))
    assert_same_weights(first / "train", second / "train")
    assert [s.weights_version for s in given(first / "train").values()] == [0, *range(19)]


def test_staleness_two_with_a_push_every_four_steps_runs_to_the_end(world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path, world, run={"staleness": 2, "push_every": 4})
    inline = tmp_path / "inline"
    with Trainer(config, "--client.selector=inline", f"--train.output={inline}", script=LOOP) as trainer:
        trainer.finish()
    with Server(config) as server, Trainer(config, f"--client.selector={server.address}", script=LOOP) as trainer:
        trainer.finish()
    selections = given(tmp_path / "train")
    assert [s.weights_version for s in selections.values()] == [0] * 6 + [4] * 4 + [8] * 4 + [12] * 4 + [16] * 2
    assert_same_selections(selections, given(inline))


def test_a_step_that_the_loss_scaler_skips_advances_step_and_version(world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path, world, run={"num_steps": 8})
    with Server(config) as server:
        arguments = (f"--client.selector={server.address}", "--fault.overflow_at=3")
        with Trainer(config, *arguments, script=LOOP) as trainer:
            trainer.finish()
    assert json.loads((tmp_path / "train" / "skipped.json").read_text()) == [3]
    assert [s.weights_version for s in given(tmp_path / "train").values()] == [0, 0, 1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_one_rank_and_two_ranks_draw_alike_and_train_every_row_once(world: World, tmp_path: Path) -> None:
    # Version 0 is behind the first two selections; later ones may differ in the last bits of a reduction.
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, ranks in ((one, 1), (two, 2)):
        config = write_config(folder, world, run={"num_steps": 6}, selection={"sub_batch_size": 7})
        with Server(config) as server:
            with Trainer(config, f"--client.selector={server.address}", ranks=ranks, script=WATCHED_END) as trainer:
                trainer.finish()
        rows = [
            [json.loads(line)["rows"] for line in path.read_text().splitlines()]
            for path in sorted((folder / "train").glob("steps-rank*.jsonl"))
        ]
        for step, selection in journalled_selections(folder / "journal").items():
            trained = sorted(row for rank in rows for row in rank[step])
            assert trained == sorted(selection.index.tolist())
    a, b = journalled_selections(one / "journal"), journalled_selections(two / "journal")
    for step in (0, 1):
        assert same_selection(a[step], b[step])
    rates = [
        [json.loads(line)["learning_rate"] for line in (f / "train" / "steps-rank0.jsonl").read_text().splitlines()]
        for f in (one, two)
    ]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 6
