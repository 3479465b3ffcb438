"""A server and training hosts, each a machine of its own as far as the network goes: cables are pulled, hosts die."""

from __future__ import annotations

import datetime
import json
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selector_server.security.certs import make_certificates
from tests.chaos.job import rows_of
from tests.chaos.judge import Told, step_differences, weights_differences
from tests.e2e.hosts import Hosts
from tests.e2e.test_selections import assert_same_selections
from tests.processes import descendants, send
from tests.support import Server, Trainer, World, journalled_selections, write_config
from train_client.checkpoint import latest_checkpoint

logger = logging.getLogger(__name__)

# Each of these starts several servers and jobs, and lets links be down for their real time.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

PATIENCE_S = 400.0
DOWN_S = 20.0
PORT = 50051
STEPS = 60


class Cluster:
    """One selector server, at `selector` on host `server`, and training jobs over hosts `a` and `b`."""

    def __init__(self, hosts: Hosts, world: World, folder: Path, *, steps: int) -> None:
        self.hosts, self.folder = hosts, folder
        make_certificates(folder / "certs", ["selector"], days=2, now=datetime.datetime.now(datetime.timezone.utc))
        (folder / "tokens").write_text("team:0123456789abcdef\n")
        (folder / "token").write_text("0123456789abcdef\n")
        for name in ("token", "tokens"):
            (folder / name).chmod(0o600)
        pem = {side: {"certificate": folder / f"certs/{side}.pem", "key": folder / f"certs/{side}.key"}
               for side in ("server", "client")}  # fmt: skip
        ca = {"ca": folder / "certs/ca.pem"}
        self.config = write_config(
            folder,
            world,
            run={"name": "run", "num_steps": steps},
            server={"host": "0.0.0.0", "port": PORT, "token_file": folder / "tokens", "tls": pem["server"] | ca},
            client={"selector": f"selector:{PORT}", "token_file": folder / "token", "tls": pem["client"] | ca},
            train={"save_every": 10},
        )
        hosts.resolve("selector", hosts.address("server", "sel"))
        self.serve()

    def serve(self) -> None:
        """Start the server's process, and return when it is ready."""
        self.server = self.hosts.start(
            "server", "-m", "selector_server", "serve", "--config", str(self.config),
            log=self.folder / "server.log", stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.server.stdout
        assert self.server.stdout.readline().startswith(b"selector-server ready on 0.0.0.0:")

    def kill_server(self) -> None:
        send([*descendants(self.server.pid), self.server.pid], signal.SIGKILL)
        self.server.wait()

    def train(self, ranks: dict[str, int], *overrides: str, **of_host: str) -> Training:
        """Start a job with so many ranks on each host; `of_host` overrides client.selector there."""
        return Training(self, ranks, overrides, of_host)


class Training:
    """A job under torchrun, started on each host as a person would."""

    def __init__(self, cluster: Cluster, ranks: dict[str, int], overrides: tuple[str, ...], of_host: dict[str, str]):
        self.output, self.logs = cluster.folder / "train", {}
        self.launchers: dict[str, subprocess.Popen[bytes]] = {}
        command = ["train", "--config", str(cluster.config), *overrides]
        for number, (host, count) in enumerate(ranks.items()):
            here = [f"--client.selector={of_host[host]}"] if host in of_host else []
            self.logs[host] = cluster.folder / f"{host}.log"
            self.launchers[host] = cluster.hosts.start(
                host,
                "-m", "torch.distributed.run", f"--nnodes={len(ranks)}", f"--node_rank={number}",
                f"--nproc_per_node={count}", f"--master_addr={cluster.hosts.address('a', 'train')}",
                "--master_port=29500", "-m", "train_client", *command, *here,
                log=self.logs[host],
                environment={"GLOO_SOCKET_IFNAME": "train"},
            )  # fmt: skip

    def completed(self) -> int:
        """How many steps rank 0 has trained."""
        return len(rows_of(self.output, 0))

    def wait_for(self, what: str, condition: Callable[[], object]) -> float:
        """Wait for something that the job comes to while it runs; for how long."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() < began + PATIENCE_S, f"waited in vain for {what}:\n{self.words()}"
            assert all(each.poll() is None for each in self.launchers.values()), self.words()
            time.sleep(0.05)
        return time.monotonic() - began

    def wait_for_step(self, step: int) -> float:
        return self.wait_for(f"step {step}", lambda: self.completed() > step)

    def finish(self) -> None:
        for host, process in self.launchers.items():
            assert process.wait(PATIENCE_S) == 0, (host, self.words())

    def kill(self, host: str) -> None:
        process = self.launchers[host]
        send([*descendants(process.pid), process.pid], signal.SIGKILL)
        process.wait()

    def words(self) -> str:
        return "\n".join(f"---- {host}\n{path.read_text()[-3000:]}" for host, path in self.logs.items())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path, {"server": ["sel"], "a": ["sel", "train"], "b": ["sel", "train"]}) as hosts:
        yield hosts


def on_one_host(world: World, folder: Path, *, ranks: int, steps: int) -> Path:
    """The same job with a server beside it, on one host, without faults, TLS or tokens."""
    config = write_config(folder, world, run={"num_steps": steps})
    with Server(config) as server, Trainer(config, f"--client.selector={server.address}", ranks=ranks) as trainer:
        trainer.finish(PATIENCE_S)
    return folder


def assert_nothing_lost(folder: Path, truth: Path, *, ranks: int, steps: int, told: list[Told]) -> None:
    """Selections, every step of every rank and the final weights are those of one host that nothing disturbed."""
    expected = Told(0, 0, tuple(rows_of(truth / "train", rank) for rank in range(ranks)))
    assert step_differences(expected, told, num_steps=steps) == []
    assert_same_selections(journalled_selections(folder / "journal"), journalled_selections(truth / "journal"))
    for name in ("adapter_model.safetensors",):
        assert weights_differences(truth / "train/model" / name, folder / "train/model" / name) == []


def told(output: Path, ranks: int, *, number: int = 0, first_step: int = 0) -> Told:
    rows = tuple(rows_of(output, rank) for rank in range(ranks))
    return Told(number, first_step, tuple([row for row in each if row["step"] >= first_step] for each in rows))


def test_links_that_are_down_for_20_seconds_and_a_server_that_reboots_elsewhere_lose_nothing(
    world: World, tmp_path: Path, hosts: Hosts
) -> None:
    truth = on_one_host(world, tmp_path / "truth", ranks=4, steps=STEPS)
    cluster = Cluster(hosts, world, tmp_path / "hosts", steps=STEPS)
    job = cluster.train({"a": 2, "b": 2})
    took: dict[str, float] = {}

    def down_for_a_while(what: str, *links: tuple[str, str]) -> None:
        before = job.completed()
        for link in links:
            hosts.link(*link, "down")  # type: ignore[call-overload]
        time.sleep(DOWN_S)  # the fault itself
        assert job.completed() <= before + 3, "nothing was down"
        for link in links:
            hosts.link(*link, "up")  # type: ignore[call-overload]
        took[what] = job.wait_for_step(job.completed() + 3)

    job.wait_for_step(5)
    down_for_a_while("b without the server", ("b", "sel"))
    down_for_a_while("a without the server", ("a", "sel"))
    waits = {host: log.read_text().count("waiting for selection for step") for host, log in job.logs.items()}
    down_for_a_while("b without any network", ("b", "sel"), ("b", "train"))

    hosts.link("server", "sel", "down")  # so that no connection hears of the end of its server
    cluster.kill_server()
    hosts.renumber("server", "sel", 9)
    hosts.resolve("selector", hosts.address("server", "sel"))
    cluster.serve()
    hosts.link("server", "sel", "up")
    took["a server at another address"] = job.wait_for_step(job.completed() + 3)
    job.finish()
    logger.info("back to training after: %s", {what: f"{seconds:.1f} s" for what, seconds in took.items()})
    assert_nothing_lost(cluster.folder, truth, ranks=4, steps=STEPS, told=[told(job.output, 4)])
    for host, log in job.logs.items():
        assert waits[host], (host, "didn't say what it waited for")
        assert "network or server: selector:50051" in log.read_text()


def test_a_wrong_address_on_one_of_two_ragged_hosts_is_named_and_a_host_that_dies_costs_no_step(
    world: World, tmp_path: Path, hosts: Hosts
) -> None:
    ragged = {"a": 2, "b": 1}
    truth = on_one_host(world, tmp_path / "truth", ranks=3, steps=30)
    cluster = Cluster(hosts, world, tmp_path / "hosts", steps=30)

    wrong = cluster.train(ragged, "--client.connect_timeout_s=1", b=f"127.0.0.1:{PORT}")
    assert [process.wait(PATIENCE_S) for process in wrong.launchers.values()] == [1, 1]
    for host in ragged:
        errors = [line for line in wrong.logs[host].read_text().splitlines() if line.startswith("error: ")]
        whole = [line for line in errors if "rank 2 on b: reaching 127.0.0.1:50051: " in line]
        assert len(whole) == 1, wrong.words()
        assert "nobody listens there" in whole[0]

    job = cluster.train(ragged)
    job.wait_for_step(14)
    for network in ("sel", "train"):
        hosts.link("b", network, "down")  # type: ignore[arg-type]
    job.kill("b")
    first = told(job.output, 3)
    job.kill("a")  # whose ranks wait for rank 2 until their communication library gives up
    for network in ("sel", "train"):
        hosts.link("b", network, "up")  # type: ignore[arg-type]
    checkpoint = latest_checkpoint(job.output)
    assert checkpoint
    at = json.loads(checkpoint.name.split("-")[1])
    assert at in (10, 20)
    again = cluster.train(ragged, "--train.resume=latest")
    again.finish()
    assert_nothing_lost(
        cluster.folder, truth, ranks=3, steps=30, told=[first, told(again.output, 3, number=1, first_step=at)]
    )
