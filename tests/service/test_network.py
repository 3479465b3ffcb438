"""Networks as clusters have them: distant, proxied, with several addresses, wrong for some of the hosts."""

from __future__ import annotations

import datetime
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from selector_server.security.certs import make_certificates
from shared.config import ClientConfig, TlsConfig
from shared.errors import UnavailableError
from tests.e2e.slow_proxy import SlowProxy
from tests.service.harness import Job, LiveServer
from tests.service.trainers import ArithmeticTrainer, ThreadRanks
from tests.support import World
from train_client.client import SelectorClient

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    make_certificates(folder, [], days=2, now=datetime.datetime.now(datetime.timezone.utc))
    return folder


@pytest.fixture(scope="module")
def server(world: World, folder: Path) -> Iterator[LiveServer]:
    with LiveServer(world, folder / "journal", host="127.0.0.1", tls=tls(folder, "server")) as live:
        yield live


@pytest.fixture(scope="module")
def job(world: World, server: LiveServer) -> Job:
    return Job(world, server.fingerprints)


def tls(folder: Path, side: str) -> TlsConfig:
    return TlsConfig(ca=folder / "ca.pem", certificate=folder / f"{side}.pem", key=folder / f"{side}.key")


def opens(address: str, folder: Path, job: Job, run: str) -> bool:
    config = ClientConfig(selector=address, tls=tls(folder, "client"), connect_timeout_s=20.0)
    client = SelectorClient(config, run=run, rank=0)
    try:
        return client.open_run(job.info(run), cursor=0, restart=False) == (1, [0])
    finally:
        client.close()


def port_nobody_has() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_server_half_a_second_away_is_reached_on_one_connection(server: LiveServer, folder: Path, job: Job) -> None:
    with SlowProxy(server.address, seed=0, least_s=0.5, most_s=0.5) as proxy:
        assert opens(proxy.address, folder, job, "distant")
        assert proxy.connections == 1


def test_proxies_of_the_web_are_not_asked_and_grpcs_own_is(
    server: LiveServer, folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, NOBODY)
    assert opens(server.address, folder, job, "proxied")
    monkeypatch.setenv("grpc_proxy", NOBODY)
    config = ClientConfig(selector=server.address, tls=tls(folder, "client"), connect_timeout_s=0.1)
    client = SelectorClient(config, run="grpc-proxied", rank=0)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9: .*refused"):
        client.open_run(job.info("grpc-proxied"), cursor=0, restart=False)
    client.close()


def test_of_several_addresses_those_where_nobody_is_are_passed_over(server: LiveServer, folder: Path, job: Job) -> None:
    assert opens(f"127.0.0.1:{port_nobody_has()},{server.address}", folder, job, "several")


def test_a_server_listens_on_and_is_reached_by_an_address_of_ipv6(world: World, tmp_path: Path, folder: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with LiveServer(world, tmp_path, host="::1", tls=tls(folder, "server")) as six:
        port = six.address.rpartition(":")[2]
        job = Job(world, six.fingerprints)
        assert opens(f"[::1]:{port}", folder, job, "six")
        assert opens(f"[::1]:{port_nobody_has()},[::1]:{port}", folder, job, "several")


def test_ranks_that_do_not_reach_the_server_are_named_with_their_hosts_once_and_no_run_is_opened(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = threading.local()
    monkeypatch.setattr("platform.node", lambda: hosts.name)
    with LiveServer(world, tmp_path) as server:
        job = Job(world, server.fingerprints)
        barrier, results, errors = threading.Barrier(5), {}, {}
        nowhere = f"127.0.0.1:{port_nobody_has()}"

        def start(rank: int) -> None:
            """Two ranks on host a, three on b, of which two have a wrong address."""
            hosts.name = "a" if rank < 2 else "b"
            ranks = ThreadRanks(rank, 5, rank % 2 if rank < 2 else rank - 2).meet(barrier, results)
            wrong = {"selector": nowhere, "connect_timeout_s": 0.1} if rank > 2 else {}
            trainer = ArithmeticTrainer(server, job, job.info(), ranks, **wrong)
            try:
                trainer.open()
            except UnavailableError as error:
                errors[rank] = str(error)
            trainer.source.close()

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert server.host.names == []
    assert errors[0] == errors[2]
    assert errors[0].startswith(f"ranks 3, 4 on b: reaching {nowhere}: unavailable: nobody listens there")
    assert errors[0].endswith("; the other ranks, 3 of them, had no error")
    assert errors[0].count(nowhere) == 2, "once as the address, once in what gRPC says of it"
    assert {rank: text for rank, text in errors.items() if rank % 2 or rank > 2} == {
        rank: f"rank {rank} ends with the error that the first rank of its host tells" for rank in (1, 3, 4)
    }
