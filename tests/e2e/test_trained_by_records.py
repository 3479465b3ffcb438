"""Trainers without the store train on rows that the server sends, to the same losses as on rows of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.e2e.test_bad_input import assert_refused
from tests.e2e.test_selections import assert_same_weights
from tests.support import Server, Trainer, World, run_cli, write_config

TRAINED = ("step", "weights_version", "loss", "rows", "weights", "gains", "num_tokens", "skipped", "learning_rate")


def without_store(config: Path) -> Path:
    """The same configuration, as on a machine that doesn't have the store."""
    path = config.with_name("trainers.toml")
    path.write_text("".join(f"{line}\n" for line in config.read_text().splitlines() if not line.startswith("store =")))
    assert "heldout_store" in path.read_text()
    return path


def lines(output: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / name).read_text().splitlines()]


def trained(output: Path, rank: int, *, first: int = 0) -> list[dict[str, Any]]:
    """What a rank was given and what it lost, to the last bit."""
    return [
        {key: row[key] for key in TRAINED} for row in lines(output, f"steps-rank{rank}.jsonl") if row["step"] >= first
    ]


def assert_same_model(left: Path, right: Path) -> None:
    a, b = (load_file(output / "model" / "adapter_model.safetensors") for output in (left, right))
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.long
def test_two_ranks_without_the_store_train_as_with_it_and_each_is_sent_its_own_rows_alone(
    world: World, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path,
        world,
        data={"heldout_store": world.heldout},
        selection={"sub_batch_size": 7},  # which two ranks can't share without a row that fills up
        run={"num_steps": 6},
        train={"eval_every": 3},
    )
    with Server(config) as server:
        for name, file, payload in (("index", config, "indices"), ("records", without_store(config), "records")):
            with Trainer(
                file,
                f"--client.selector={server.address}",
                f"--client.payload={payload}",
                f"--run.name={name}",
                f"--train.output={tmp_path / name}",
                ranks=2,
            ) as trainer:
                trainer.finish()
        status = run_cli("selector_server", "status", "--config", config, "--client.selector", server.address)
        assert "MiB" in status.stdout
    index, records = tmp_path / "index", tmp_path / "records"
    for rank in (0, 1):
        assert trained(records, rank) == trained(index, rank)
        for by_index, by_records in zip(
            *(lines(output, f"steps-rank{rank}.jsonl") for output in (index, records)), strict=True
        ):
            rows, tokens = len(by_records["rows"]), by_records["num_tokens"]
            more = by_records["wire_bytes"] - by_index["wire_bytes"]
            # Four bytes a token, and little else: the shortest row of all may fill up.
            assert 4 * tokens <= more <= 4 * tokens + 4 * tokens // rows + 40 * rows + 1500
    assert lines(records, "heldout.jsonl") == lines(index, "heldout.jsonl")
    assert_same_model(records, index)
    facts = [json.loads((output / "run.json").read_text())["fingerprints"] for output in (index, records)]
    assert facts[0] == facts[1]


@pytest.mark.long
def test_a_job_goes_on_with_another_number_of_ranks_by_records_as_by_index(world: World, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, world, data={"heldout_store": world.heldout}, run={"num_steps": 8}, train={"save_every": 4}
    )
    trainers = without_store(config)
    with Server(config) as server:

        def run(file: Path, payload: str, output: Path, ranks: int, *resume: str) -> None:
            arguments = (f"--client.selector={server.address}", f"--client.payload={payload}", *resume)
            with Trainer(file, *arguments, f"--train.output={output}", ranks=ranks) as trainer:
                trainer.finish()

        first = tmp_path / "first"
        run(trainers, "records", first, 2)
        resume = f"--train.resume={first / 'checkpoint-4'}"
        for ranks in (1, 3):
            run(trainers, "records", tmp_path / f"records-{ranks}", ranks, resume)
            server.kill()
            server.restart()
            run(config, "indices", tmp_path / f"index-{ranks}", ranks, resume)
            for rank in range(ranks):
                by_records = trained(tmp_path / f"records-{ranks}", rank)
                assert [row["step"] for row in by_records] == [4, 5, 6, 7]
                assert by_records == trained(tmp_path / f"index-{ranks}", rank)
            assert_same_model(tmp_path / f"records-{ranks}", tmp_path / f"index-{ranks}")


def test_what_needs_a_store_is_refused_by_name_where_rows_are_sent(world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path, world, client={"payload": "records", "selector": "127.0.0.1:1"})
    train = ("train", "--config", config)
    checks = run_cli("train_client", *train, "--train.gradient_check_every", "1")
    assert_refused(checks, "train.gradient_check_every", "client.payload")
    for key, value in (("client.selector", "inline"), ("client.on_unavailable", "sample")):
        assert_refused(run_cli("train_client", *train, f"--{key}", value), "payload", "indices")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zero3", "native-zero3", "fsdp2"])
def test_a_model_in_shards_trains_by_records_as_by_index(world: World, tmp_path: Path, kind: str) -> None:
    if kind != "fsdp2":
        pytest.importorskip("deepspeed")
    config = write_config(
        tmp_path,
        world,
        data={"heldout_store": world.heldout},
        run={"num_steps": 4},
        selection={"sub_batch_size": 5},
        train={"lora": {"rank": 4, "dropout": 0.0}},
    )
    with Server(config) as server:
        for payload, file in (("indices", config), ("records", without_store(config))):
            with Trainer(
                file,
                f"--sharding.kind={kind}",
                "--sharding.clip=1.0",
                f"--client.selector={server.address}",
                f"--client.payload={payload}",
                f"--run.name={payload}",
                f"--train.output={tmp_path / payload}",
                script=Path(__file__).with_name("sharded_loop.py"),
                ranks=2,
            ) as trainer:
                trainer.finish()
    assert_same_weights(tmp_path / "records", tmp_path / "indices")
