"""A new user's mistakes: one line with both values and the remedy, an exit code that isn't 0, nothing half done."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.support import Server, Trainer, World, run_cli, write_config


def assert_refused(result: object, *words: str) -> None:
    code, lines = result.returncode, result.stderr.strip().splitlines()  # type: ignore[attr-defined]
    assert code not in (0, None), result
    assert lines, "no message"
    assert lines[-1].startswith("error: "), lines[-5:]
    assert "Traceback" not in result.stderr  # type: ignore[attr-defined]
    for word in words:
        assert word in lines[-1], lines[-1]


def test_prepare_refuses_rows_without_the_columns_and_leaves_no_store(world: World, tmp_path: Path) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "store"
    source.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    result = run_cli("selector_server", "prepare", source, "--tokenizer", world.model, "--out", out)
    assert_refused(result, "instruction", "question")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]


def test_prepare_refuses_a_row_with_an_empty_source(world: World, tmp_path: Path) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "store"
    source.write_text(json.dumps({"source": "", "instruction": "1 + 1?", "output": "2"}) + "\n")
    assert_refused(run_cli("selector_server", "prepare", source, "--tokenizer", world.model, "--out", out), "source")
    assert not out.exists()


def test_serve_refuses_a_tokenizer_that_is_not_the_stores(world: World, tmp_path: Path) -> None:
    from shared.synthetic.tiny_model import make_phi, train_tokenizer

    other = tmp_path / "other"
    train_tokenizer(world.rows, other, vocab_size=400)
    make_phi(other, vocab_size=512, layers=2, width=32, heads=4, seed=0, max_length=512)
    config = write_config(tmp_path, world, model={"path": other})
    assert_refused(run_cli("selector_server", "serve", "--config", config), "tokenizer", "prepare")


def test_serve_refuses_a_port_that_is_in_use(world: World, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = write_config(tmp_path, world, server={"port": other.getsockname()[1]})
        assert_refused(run_cli("selector_server", "serve", "--config", config), str(other.getsockname()[1]), "port")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--selection.sub_batch_size=13"], ["13", "12"]),
        (["--run.lookahead=0"], ["0", "1"]),
        (["--run.num_step=3"], ["num_step"]),
        (["--train.lora.target_modules", '["nowhere"]'], ["nowhere"]),
        (["--train.resume=/nowhere"], ["/nowhere"]),
        (["--data.store=/nowhere"], ["/nowhere", "prepare"]),
    ],
)
def test_train_refuses_settings_that_can_not_work(
    world: World, tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    config = write_config(tmp_path, world)
    assert_refused(run_cli("train_client", "train", "--config", config, *overrides), *words)


def test_train_refuses_a_large_batch_that_is_larger_than_the_data(world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path, world, selection={"large_batch_size": 1000}, client={"selector": "inline"})
    assert_refused(run_cli("train_client", "train", "--config", config), "1000", "240")


def test_train_refuses_a_model_without_a_v_projection_that_we_know(world: World, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    fused = tmp_path / "fused"
    GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4)).save_pretrained(fused)
    AutoTokenizer.from_pretrained(world.model).save_pretrained(fused)
    config = write_config(
        tmp_path,
        world,
        model={"path": fused},
        client={"selector": "inline"},
        train={"lora": {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["c_attn"]}},
    )
    assert_refused(run_cli("train_client", "train", "--config", config), "V projections", "gpt2")


def test_a_trainer_says_where_it_looked_for_a_server_that_is_not_there(world: World, tmp_path: Path) -> None:
    client = {"selector": "127.0.0.1:1", "connect_timeout_s": 2.0}
    config = write_config(tmp_path, world, client=client)
    assert_refused(run_cli("train_client", "train", "--config", config), "127.0.0.1:1", "start the server")


@pytest.mark.slow
def test_a_server_refuses_trainers_that_differ_from_it_and_goes_on_serving(world: World, tmp_path: Path) -> None:
    from selector_server.prepare import prepare
    from shared.synthetic.tiny_model import make_phi

    config = write_config(tmp_path, world, run={"num_steps": 2})
    other_model, other_store = tmp_path / "other-model", tmp_path / "other-store"
    for file in world.model.iterdir():
        other_model.mkdir(exist_ok=True)
        (other_model / file.name).write_bytes(file.read_bytes())
    make_phi(other_model, vocab_size=512, layers=2, width=32, heads=4, seed=1, max_length=512)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(world.rows.read_text().splitlines(keepends=True)[:-1]))
    prepare(str(rows), tokenizer=str(world.model), out=other_store, num_proc=1)
    with Server(config) as server:
        train = ("train", "--config", config, "--client.selector", server.address)
        assert_refused(run_cli("train_client", *train, "--model.path", other_model), "base model", "server")
        assert_refused(run_cli("train_client", *train, "--data.store", other_store), "dataset", "server")
        with Trainer(config, f"--client.selector={server.address}") as trainer:
            trainer.finish()
        # The name is taken now, and nothing of the first run is lost.
        assert_refused(run_cli("train_client", *train), "run.restart", "checkpoint")
        with Trainer(config, f"--client.selector={server.address}", "--run.restart") as trainer:
            trainer.finish()
