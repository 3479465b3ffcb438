"""The doctors find what was planted, name it with its remedy, and find nothing where nothing is."""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

import train_client.doctor
from selector_server.doctor.command import diagnose
from selector_server.security.certs import make_certificates
from shared.config import load_config
from shared.doctor import machine, software
from shared.doctor.finding import Finding
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from tests.service.harness import LiveServer
from tests.support import World, run_cli, write_config

NOW = datetime.datetime.now(datetime.timezone.utc)
Plant = Callable[[Path, World], dict[str, dict[str, object]]]


def problems(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.about, f"{finding.what} {finding.remedy}") for finding in found if finding.level == "problem"]


def tls(folder: Path, *, side: str = "server", now: datetime.datetime = NOW, days: int = 30) -> dict[str, object]:
    make_certificates(folder, [], days=days, now=now)
    return {"ca": folder / "ca.pem", "certificate": folder / f"{side}.pem", "key": folder / f"{side}.key"}


def copy(world: World, folder: Path) -> Path:
    return Path(shutil.copytree(world.model, folder / "model"))


def misspelt(folder: Path, world: World) -> dict[str, dict[str, object]]:
    return {"selection": {"large_batch": 12}}


def port_taken(folder: Path, world: World) -> dict[str, dict[str, object]]:
    taken = socket.create_server(("127.0.0.1", 0))
    KEPT.append(taken)
    return {"server": {"port": taken.getsockname()[1]}}


def open_to_all(folder: Path, world: World) -> dict[str, dict[str, object]]:
    return {"server": {"host": "0.0.0.0"}}


def no_such_gpu(folder: Path, world: World) -> dict[str, dict[str, object]]:
    return {"server": {"device": "cuda:99"}}


def cut_store(folder: Path, world: World) -> dict[str, dict[str, object]]:
    store = Path(shutil.copytree(world.store, folder / "store"))
    rows = max((path for path in store.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    rows.write_bytes(rows.read_bytes()[:-100])
    return {"data": {"store": store}}


def other_tokenizer(folder: Path, world: World) -> dict[str, dict[str, object]]:
    model = copy(world, folder)
    path = model / "tokenizer.json"
    vocabulary = json.loads(path.read_text())
    vocabulary["model"]["merges"] = vocabulary["model"]["merges"][:-5]
    path.write_text(json.dumps(vocabulary))
    return {"model": {"path": model}}


def damaged_weights(folder: Path, world: World) -> dict[str, dict[str, object]]:
    weights = copy(world, folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return {"model": {"path": weights.parent}}


def expired(folder: Path, world: World) -> dict[str, dict[str, object]]:
    return {"server": {"tls": tls(folder / "certs", now=NOW - datetime.timedelta(days=40))}}


def wrong_key(folder: Path, world: World) -> dict[str, dict[str, object]]:
    return {"server": {"tls": tls(folder / "certs") | {"key": tls(folder / "others")["key"]}}}


def other_name(folder: Path, world: World) -> dict[str, dict[str, object]]:
    return {"server": {"tls": tls(folder / "certs")}, "client": {"selector": "gpu-7.example:50051"}}


def damaged_journal(folder: Path, world: World) -> dict[str, dict[str, object]]:
    (folder / "journal" / "old").mkdir(parents=True)
    (folder / "journal" / "old" / "journal.bin").write_bytes(b"no journal at all" * 10)
    return {}


def journal_is_a_file(folder: Path, world: World) -> dict[str, dict[str, object]]:
    (folder / "file").touch()
    return {"server": {"journal": folder / "file"}}


def too_small_a_disk(folder: Path, world: World) -> dict[str, dict[str, object]]:
    return {"run": {"num_steps": 2**40}}


def weak_token(folder: Path, world: World) -> dict[str, dict[str, object]]:
    (folder / "tokens").write_text("alice:secret\n")
    return {"server": {"token_file": folder / "tokens"}}


KEPT: list[socket.socket] = []


@pytest.mark.parametrize(
    ("plant", "about", "words"),
    [
        (misspelt, "configuration", "did you mean 'large_batch_size'"),
        (port_taken, "ports", "ss -ltnp"),
        (open_to_all, "ports", "server.tls"),
        (no_such_gpu, "device", "cuda:99"),
        (cut_store, "store", "prepare"),
        (other_tokenizer, "model", "prepare the store with this model's tokenizer"),
        (damaged_weights, "model", "copy or download them again"),
        (expired, "certificates", "has expired"),
        (wrong_key, "certificates", "isn't the key of"),
        (other_name, "certificates", "certs --host gpu-7.example"),
        (damaged_journal, "journal", "'old'"),
        (journal_is_a_file, "journal", "is a file"),
        (too_small_a_disk, "disk", "make room"),
        (weak_token, "ports", "can be guessed"),
    ],
)
def test_the_server_s_doctor_finds_what_was_planted(
    world: World, tmp_path: Path, plant: Plant, about: str, words: str
) -> None:
    (tmp_path / "run").mkdir()
    config = write_config(tmp_path / "run", world, **plant(tmp_path / "run", world))
    try:
        found = problems(diagnose(lambda: load_config(config)))
    finally:
        while KEPT:
            KEPT.pop().close()
    assert any(each == about and words in text for each, text in found), found


def test_a_healthy_server_has_no_problem_and_the_command_says_so_in_words_and_json(
    world: World, tmp_path: Path
) -> None:
    config = write_config(tmp_path, world, server={"tls": tls(tmp_path / "certs")})
    told = run_cli("selector_server", "doctor", "--config", config, "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    answer = json.loads(told.stdout)
    assert answer["problems"] == 0
    assert {"configuration", "versions", "device", "store", "model", "certificates", "ports", "journal", "disk"} <= {
        finding["about"] for finding in answer["findings"]
    }
    assert not (tmp_path / "journal").exists(), "it looks and leaves nothing"
    broken = run_cli("selector_server", "doctor", "--config", config, "--data.store", tmp_path / "nowhere")
    assert broken.returncode == 1
    assert "nowhere" in broken.stdout
    assert "problems" in broken.stderr


def test_a_server_that_runs_is_no_problem_to_its_own_doctor(world: World, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "journal").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken, (tmp_path / "journal" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = write_config(tmp_path, world, server={"port": taken.getsockname()[1]})
        assert problems(diagnose(lambda: load_config(config))) == []


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    have = software.version
    monkeypatch.setattr(software, "version", lambda name: "4.57.1" if name == "transformers" else have(name))
    (finding,) = software.packages()
    assert finding.level == "problem"
    assert "transformers 4.57.1" in finding.what
    assert "pip install" in finding.remedy


@contextmanager
def pretender(reply: Callable[[], pb.DescribeServerReply]) -> Iterator[str]:
    """A server that describes itself as it is told to, and does nothing else."""

    class Service(selector_pb2_grpc.SelectorServiceServicer):
        def DescribeServer(self, request: Any, context: Any) -> pb.DescribeServerReply:
            return reply()

    server = grpc.server(ThreadPoolExecutor(1))
    selector_pb2_grpc.add_SelectorServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def server(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "tokens").write_text("alice:0123456789abcdef\n")
    with LiveServer(world, folder / "journal", token_file=folder / "tokens", send_rows=False) as live:
        yield live


def trainers(world: World, folder: Path, **client: object) -> list[Finding]:
    config = write_config(folder, world, client=client)
    return train_client.doctor.diagnose(lambda: load_config(config))


def test_a_trainer_that_its_server_lets_in_has_no_problem(server: LiveServer, world: World, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    found = trainers(world, tmp_path, selector=server.address, token_file=tmp_path / "token")
    assert problems(found) == []
    told = {finding.about: finding.what for finding in found}
    assert "same rows" in told["store"]
    assert "of the server's" in told["clock"]


def test_the_trainer_s_doctor_finds_a_wrong_token_another_store_and_no_server(
    server: LiveServer, world: World, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("fedcba9876543210\n")
    ((about, text),) = problems(trainers(world, tmp_path, selector=server.address, token_file=tmp_path / "token"))
    assert about == "server"
    assert "wrong bearer token" in text

    (tmp_path / "token").write_text("0123456789abcdef\n")
    other = World(world.model, world.heldout, world.heldout, world.rows)
    ((about, text),) = problems(trainers(other, tmp_path, selector=server.address, token_file=tmp_path / "token"))
    assert about == "store"
    assert server.store.fingerprint[:12] in text
    assert "copy the server's store" in text

    ((about, text),) = problems(
        trainers(world, tmp_path, selector=server.address, token_file=tmp_path / "token", payload="records")
    )
    assert about == "server"
    assert "server.send_rows is false" in text

    ((about, text),) = problems(trainers(world, tmp_path, selector="127.0.0.1:1", call_timeout_s=5.0))
    assert about == "server"
    assert "nobody listens there" in text


@pytest.mark.parametrize(("ahead_s", "level"), [(0, "ok"), (-30, "warning"), (3600, "problem")])
def test_a_server_whose_clock_differs_is_told_of(
    world: World, server: LiveServer, tmp_path: Path, ahead_s: int, level: str
) -> None:
    def reply() -> pb.DescribeServerReply:
        same = pb.Fingerprints(dataset=server.store.fingerprint)
        return pb.DescribeServerReply(version="9.9", unix_ns=time.time_ns() + ahead_s * 10**9, fingerprints=same)

    with pretender(reply) as address:
        found = trainers(world, tmp_path, selector=address)
    assert [finding.level for finding in found if "server" in finding.what and finding.about == "clock"] == [level]
    (versions,) = [finding for finding in found if finding.about == "versions" and finding.level == "warning"]
    assert "9.9" in versions.what


def test_a_slow_answer_says_nothing_about_clocks() -> None:
    """The true difference may be anything up to half of the time that the answer took."""
    assert machine.clock_skew(109.0, asked_s=100.0, answered_s=120.0).level == "ok"
    assert machine.clock_skew(130.0, asked_s=100.0, answered_s=120.0).level == "warning"
