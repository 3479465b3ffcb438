"""Every script in deploy/examples, as a user starts it: two ranks and a real server; killed, and resumed.

All go on exactly. Under DDP and ZeRO-1 they train what `train-client train` trains, to the last bit: the same
selections, and the same weights in the end. That is so where a step is one micro-batch a rank and nothing is clipped.
With several, DDP adds them up on each rank and reduces the sum, while ZeRO and FSDP2 reduce each; with clipping, each
has an order of its own to add up the norm. ZeRO-3 differs in last bits from the third step on. After some steps a
selection may differ, too; those with the weights of version 0 are the same everywhere. So where the model is in
shards the killed job is compared with one that nobody killed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from selector_server.security.certs import make_certificates
from shared.records import Selection
from tests.e2e.examples import (
    EXAMPLES,
    EXAMPLES_BY_NAME,
    NO_CLIPPING,
    RATE,
    ROOT,
    ROWS_AT_ONCE,
    TORCHRUN,
    Example,
    Job,
)
from tests.support import Server, World, journalled_selections, write_config
from train_client.process import free_port

STEPS = 30
WITH_TLS = "accelerate-zero3"
PLAIN = Path(__file__).with_name("plain_loop.py")


@dataclass(frozen=True)
class Reference:
    """A server, the configuration of all runs, and what the reference loop made of it."""

    server: Server
    config: Path
    selections: dict[int, Selection]
    adapter: Path


def a_config(folder: Path, world: World, **branches: Mapping[str, object]) -> Path:
    lora = {"rank": 4, "alpha": 16.0, "dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    train = {"learning_rate": RATE, "warmup_ratio": 0.0, "lora": lora}
    tree: dict[str, Mapping[str, object]] = {
        "selection": {"large_batch_size": 12, "sub_batch_size": 7},
        "run": {"num_steps": STEPS},
        "train": train | {"micro_batch_size": ROWS_AT_ONCE, "max_grad_norm": NO_CLIPPING},
    }
    return write_config(folder, world, **tree, **branches)


def with_tls(folder: Path, world: World) -> Path:
    """The same with mutual TLS and a token."""
    make_certificates(folder / "certs", [], days=1, now=datetime.now(timezone.utc))
    (token := folder / "token").write_text("a-token-that-is-long-enough-to-be-one\n")
    both = {}
    for end in ("server", "client"):
        files = {"ca": "ca.pem", "certificate": f"{end}.pem", "key": f"{end}.key"}
        both[end] = {"token_file": token, "tls": {name: folder / "certs" / file for name, file in files.items()}}
    return a_config(folder, world, **both)


@pytest.fixture(scope="module")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("reference")
    config = a_config(folder, world)
    with Server(config) as server:
        command = [*TORCHRUN, "-m", "train_client", "train"]
        with Job(folder / "train.log", command, **settings(config, "reference", server)) as job:
            job.finish()
        adapter = folder / "train" / "model" / "adapter_model.safetensors"
        yield Reference(server, config, journalled_selections(folder / "journal", "reference"), adapter)


def settings(config: Path, run: str, server: Server) -> dict[str, object]:
    return {"CONFIG": config, "RUN__NAME": run, "CLIENT__SELECTOR": server.address}


def assert_same_selection(left: Selection, right: Selection) -> None:
    """Of two runs."""
    assert left.index.tolist() == right.index.tolist(), f"step {left.step}"
    assert left.gain.tolist() == right.gain.tolist(), f"step {left.step}"


def assert_same(journal: Path, run: str, adapter: Path, reference: Reference) -> None:
    selections = journalled_selections(journal, run)
    assert sorted(selections) == sorted(reference.selections) == list(range(STEPS))
    for step, selection in selections.items():
        assert_same_selection(selection, reference.selections[step])
    weights, expected_weights = load_file(adapter), load_file(reference.adapter)
    assert weights.keys() == expected_weights.keys()
    assert all(weights[key].equal(expected_weights[key]) for key in weights)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", EXAMPLES_BY_NAME)
def test_an_example_that_is_killed_and_resumed_trains_what_the_reference_loop_trains(
    world: World, tmp_path: Path, reference: Reference, name: str
) -> None:
    example = EXAMPLES_BY_NAME[name]
    if not find_spec(example.needs):
        pytest.skip(f"{example.needs} is not installed")
    with contextlib.ExitStack() as stack:
        config, server = reference.config, reference.server
        if name == WITH_TLS:
            config = with_tls(tmp_path / "tls", world)
            server = stack.enter_context(Server(config))
        given = settings(config, name, server)
        expected = reference
        if not example.is_exact:
            expected = undisturbed(example, world, tmp_path / "undisturbed", config, name, server)
            for step in (0, 1):
                assert_same_selection(expected.selections[step], reference.selections[step])
        with Job(tmp_path / "job.log", example.command(world.model, tmp_path), **given) as job:
            job.kill_once_there_is(tmp_path / example.checkpoint)
        with Job(tmp_path / "job.log", example.command(world.model, tmp_path, resume=True), **given) as job:
            job.finish()
    assert_same(config.parent / "journal", name, tmp_path / "adapter_model.safetensors", expected)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["trainer", "sft"])
def test_a_trainer_on_hosts_without_the_store_trains_what_the_reference_loop_trains(
    world: World, tmp_path: Path, reference: Reference, name: str
) -> None:
    example, run = EXAMPLES_BY_NAME[name], f"{name}-records"
    if not find_spec(example.needs):
        pytest.skip(f"{example.needs} is not installed")
    lines = reference.config.read_text().splitlines(keepends=True)
    (config := tmp_path / "run.toml").write_text("".join(line for line in lines if not line.startswith("store =")))
    given = settings(config, run, reference.server) | {"CLIENT__PAYLOAD": "records"}
    with Job(tmp_path / "job.log", example.command(world.model, tmp_path), **given) as job:
        job.kill_once_there_is(tmp_path / example.checkpoint)
    with Job(tmp_path / "job.log", example.command(world.model, tmp_path, resume=True), **given) as job:
        job.finish()
    assert_same(reference.config.parent / "journal", run, tmp_path / "adapter_model.safetensors", reference)


def undisturbed(example: Example, world: World, folder: Path, config: Path, name: str, server: Server) -> Reference:
    """What an example makes of a run that nobody kills."""
    folder.mkdir()
    run = f"{name}-undisturbed"
    with Job(folder / "job.log", example.command(world.model, folder), **settings(config, run, server)) as job:
        job.finish()
    selections = journalled_selections(config.parent / "journal", run)
    return Reference(server, config, selections, folder / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.long
def test_deepspeeds_own_launcher_starts_its_example(world: World, tmp_path: Path, reference: Reference) -> None:
    pytest.importorskip("deepspeed")
    example = EXAMPLES_BY_NAME["deepspeed-zero3"]
    port = f"--master_port={free_port()}"
    launcher = ("-m", "deepspeed.launcher.runner", "--num_accelerators=2", port)
    command = replace(example, launcher=launcher).command(world.model, tmp_path)
    with Job(tmp_path / "job.log", command, **settings(reference.config, "launched", reference.server)) as job:
        job.finish()
    selections = journalled_selections(reference.config.parent / "journal", "launched")
    assert sorted(selections) == list(range(STEPS))
    for step in (0, 1):  # made with the weights of version 0
        assert selections[step].index.tolist() == reference.selections[step].index.tolist()
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert all(tensor.any() for tensor in adapter.values())  # B begins as zeros


def readmes_diff() -> str:
    """The first diff in README.md, of a loop on Accelerate."""
    found = re.search(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    return found.group(1)


def hunks(diff: str) -> list[tuple[str, str]]:
    """What stands there before and after, of each part of the diff; a line of dots parts them."""
    found = []
    for hunk in re.split(r"^ …\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines()
        found.append(tuple("".join(f"{row[1:]}\n" for row in lines if row[0] in (" ", sign)) for sign in "-+"))
    return found


def test_readmes_diff_changes_five_lines_of_a_plain_loop_and_gives_the_example() -> None:
    diff, plain = readmes_diff(), PLAIN.read_text()
    added, removed = ([row[1:] for row in diff.splitlines() if row[0] == sign] for sign in "+-")
    assert len(removed) < len(added) <= 5
    assert all(plain.count(before) == 1 for before, _ in hunks(diff))
    example = [row.strip() for row in (EXAMPLES / "accelerate_loop.py").read_text().splitlines()]
    for line in added:
        assert line.strip().replace('"run.toml"', "args.config") in example


@pytest.mark.slow
@pytest.mark.long
def test_a_plain_loop_that_is_changed_as_the_readme_says_trains_what_the_reference_loop_trains(
    world: World, tmp_path: Path, reference: Reference
) -> None:
    changed = PLAIN.read_text()
    for before, after in hunks(readmes_diff()):
        changed = changed.replace(before, after)
    (script := tmp_path / "loop.py").write_text(changed)
    options = ["--model", str(world.model), "--rows", str(world.rows), "--output", str(tmp_path)]
    with Job(tmp_path / "plain.log", [str(PLAIN), *options]) as job:
        job.finish()
    (tmp_path / "adapter_model.safetensors").unlink()
    given = settings(reference.config, "readme", reference.server)
    del given["CONFIG"]  # it names its file, in the folder where it is started
    command = [*TORCHRUN, str(script), *options]
    with Job(tmp_path / "job.log", command, folder=reference.config.parent, **given) as job:
        job.finish()
    assert_same(reference.config.parent / "journal", "readme", tmp_path / "adapter_model.safetensors", reference)
