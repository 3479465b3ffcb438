"""A real server under attack: each attempt is refused with its status, is logged and cheap; others are served."""

from __future__ import annotations

import datetime
import itertools
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest

from selector_server.security.certs import make_certificates
from shared.config import ClientConfig, TlsConfig
from shared.convert import run_to_pb
from shared.errors import (
    NotOwnerError,
    UnauthenticatedError,
    UnavailableError,
    WireError,
    from_rpc_error,
)
from shared.pb.v1 import selector_pb2 as pb
from shared.pb.v1 import selector_pb2_grpc
from shared.transport import MAX_MESSAGE_BYTES, open_channel
from shared.weights import content_hash, encode_weights
from shared.wire import decode_selection
from tests.service.harness import Job, LiveServer
from tests.support import World
from train_client.client import SelectorClient

_TOKENS = {name: f"{name}-" + "0123456789abcdef" for name in ("alice", "bob", "admin")}
_NOW = datetime.datetime.now(datetime.timezone.utc)
_MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of one CA, of another, and of one whose certificates have expired; and everybody's token."""
    folder = tmp_path_factory.mktemp("security")
    for name, now in (("ours", _NOW), ("theirs", _NOW), ("expired", _NOW - datetime.timedelta(days=9))):
        make_certificates(folder / name, [], days=2, now=now)
    for name, token in _TOKENS.items():
        (folder / name).write_text(token + "\n")
    (folder / "tokens").write_text("".join(f"{name}:{token}\n" for name, token in _TOKENS.items()))
    return folder


def tls(folder: Path, side: str, *, ca: str = "ours", own: str = "ours") -> TlsConfig:
    return TlsConfig(
        ca=folder / ca / "ca.pem", certificate=folder / own / f"{side}.pem", key=folder / own / f"{side}.key"
    )


@pytest.fixture(scope="module")
def server(world: World, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    limits = {"push_stall_s": 0.5, "push_bytes_per_s": 10 << 10, "streams_per_run": 2, "handshake_timeout_s": 1.0}
    journal = tmp_path_factory.mktemp("journal")
    with LiveServer(
        world, journal, token_file=folder / "tokens", tls=tls(folder, "server"), limits=limits, max_runs=8
    ) as live:
        yield live


@pytest.fixture(scope="module")
def job(world: World, server: LiveServer) -> Job:
    return Job(world, server.fingerprints)


class Bystander:
    """Alice's run, which is to go on whatever happens."""

    def __init__(self, server: LiveServer, folder: Path, job: Job) -> None:
        self._job, self._step = job, 0
        self._client = connect(server, folder, "alice", run="alices")
        incarnation, _ = self._client.open_run(job.info("alices", num_steps=500), cursor=0, restart=False)
        self._client.push(0, encode_weights(job.weights(0)))
        self._client.attach(incarnation, from_step=0, num_steps=500)

    def goes_on(self) -> None:
        """Three steps, of which the last can't have been there before."""
        for _ in range(3):
            assert self._client.selection(self._step).selection.step == self._step
            self._client.push(self._step + 1, encode_weights(self._job.weights(self._step + 1)))
            self._step += 1
            self._client.report(self._step)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def bystander(server: LiveServer, folder: Path, job: Job) -> Iterator[Bystander]:
    bystander = Bystander(server, folder, job)
    yield bystander
    bystander.close()


def connect(server: LiveServer, folder: Path, token: str | None, *, run: str, **settings: object) -> SelectorClient:
    options = {"selector": server.address, "tls": tls(folder, "client"), "connect_timeout_s": 0.5, **settings}
    if token:
        options["token_file"] = folder / token
    return SelectorClient(ClientConfig.model_validate(options), run=run, rank=0)


@contextmanager
def stub(server: LiveServer, folder: Path, token: str) -> Iterator[Any]:
    """Calls that our client would never make."""
    channel = open_channel(server.address, tls(folder, "client"))
    metadata = (("authorization", f"Bearer {_TOKENS[token]}"),)
    intercepted = grpc.intercept_channel(channel, _WithMetadata(metadata))
    yield selector_pb2_grpc.SelectorServiceStub(intercepted)
    channel.close()


class _WithMetadata(
    grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor
):
    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=self._metadata, timeout=30), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _call


@contextmanager
def bounded_memory(most_mib: float) -> Iterator[None]:
    """This process, which holds the server and the client, grows by no more than this at any time meanwhile."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory_mib("VmRSS")
    yield
    grown = _memory_mib("VmHWM") - before
    assert grown < most_mib, f"grew by {grown:.0f} MiB"


def _memory_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


# ---- who may connect

_MISTAKES = {
    "another CA": (dict(ca="theirs"), "isn't signed by the CA of client.tls.ca"),
    "a foreign client certificate": (dict(own="theirs"), "client certificate that its CA signed"),
    "an expired client certificate": (dict(own="expired"), "client certificate that its CA signed"),
    "no client certificate": (None, r"a client certificate .*client\.tls\.certificate"),
    "plaintext": ("plaintext", r"it wants TLS \(set client\.tls\)"),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_a_stranger_gets_no_connection_and_reads_why(
    server: LiveServer,
    folder: Path,
    job: Job,
    bystander: Bystander,
    mistake: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    how, remedy = _MISTAKES[mistake]
    settings: TlsConfig | None = TlsConfig(ca=folder / "ours" / "ca.pem")
    if isinstance(how, dict):
        settings = tls(folder, "client", **how)
    elif how == "plaintext":
        settings = None
    stranger = connect(server, folder, "bob", run="x", tls=settings)
    with pytest.raises(UnavailableError, match=remedy):
        stranger.open_run(job.info("x"), cursor=0, restart=False)
    stranger.close()
    bystander.goes_on()
    assert "Handshake failed" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("of_server", "remedy"),
    [("expired", "the server's certificate has expired"), (None, "doesn't speak TLS: leave client.tls out")],
)
def test_a_trainer_trusts_no_server_without_a_valid_certificate(
    world: World, folder: Path, job: Job, tmp_path: Path, of_server: str | None, remedy: str
) -> None:
    settings = {"tls": tls(folder, "server", own=of_server)} if of_server else {}
    with LiveServer(world, tmp_path, **settings) as other:
        client = connect(other, folder, None, run="x", tls=tls(folder, "client", ca=of_server or "ours"))
        with pytest.raises(UnavailableError, match=remedy):
            client.open_run(job.info("x"), cursor=0, restart=False)
        client.close()


def test_a_certificate_that_is_replaced_is_used_by_the_next_connection(
    world: World, folder: Path, job: Job, tmp_path: Path
) -> None:
    live = tmp_path / "live"
    make_certificates(live, [], days=2, now=_NOW - datetime.timedelta(days=9))
    settings = TlsConfig(certificate=live / "server.pem", key=live / "server.key")
    with LiveServer(world, tmp_path / "journal", tls=settings) as other:
        for name in ("server.pem", "server.key"):
            (live / name).write_bytes((folder / "ours" / name).read_bytes())
        client = connect(other, folder, None, run="x", tls=TlsConfig(ca=folder / "ours" / "ca.pem"))
        assert client.open_run(job.info("x"), cursor=0, restart=False)[0] == 1
        client.close()


def test_a_connection_that_says_nothing_is_closed(server: LiveServer, bystander: Bystander) -> None:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as silent:
        assert silent.recv(1) == b""
    bystander.goes_on()


# ---- tokens


def test_a_missing_or_wrong_token_is_refused_and_health_needs_none(
    server: LiveServer, folder: Path, job: Job, bystander: Bystander, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "guess").write_text("a-guess-of-many-characters")
    for token, word in ((None, "missing"), ("guess", "wrong")):
        client = connect(server, folder, token, run="x")
        with pytest.raises(UnauthenticatedError, match=rf"{word} bearer token: set client\.token_file"):
            client.open_run(job.info("x"), cursor=0, restart=False)
        client.close()
        assert f"refused: UNAUTHENTICATED: {word} bearer token" in caplog.text
    assert "a-guess" not in caplog.text
    bystander.goes_on()


def test_every_call_about_anothers_run_is_refused(
    server: LiveServer, folder: Path, job: Job, bystander: Bystander, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_to_pb(job.info("alices", num_steps=500))
    header = pb.PushWeightsHeader(run="alices", incarnation=1, version=1, num_bytes=1, sha256="0" * 64)
    with stub(server, folder, "bob") as bob:
        calls = {
            "OpenRun": lambda: bob.OpenRun(pb.OpenRunRequest(run=run, cursor=2)),
            "OpenRun again": lambda: bob.OpenRun(pb.OpenRunRequest(run=run, restart=True)),
            "PushWeights": lambda: bob.PushWeights(iter([pb.PushWeightsRequest(header=header)])),
            "ReportProgress": lambda: bob.ReportProgress(pb.ReportProgressRequest(run="alices", incarnation=1)),
            "ReportTrained": lambda: bob.ReportTrained(pb.ReportTrainedRequest(run="alices", incarnation=1)),
            "StreamSelections": lambda: next(
                bob.StreamSelections(pb.StreamSelectionsRequest(run="alices", incarnation=1))
            ),
            "WatchRun": lambda: next(bob.WatchRun(pb.WatchRunRequest(run="alices"))),
            "CloseRun": lambda: bob.CloseRun(pb.CloseRunRequest(run="alices", incarnation=1)),
        }
        methods = {method.name for method in pb.DESCRIPTOR.services_by_name["SelectorService"].methods}
        of_no_run = {"DescribeServer", "DescribeStore"}
        assert {name.split()[0] for name in calls} == methods - of_no_run
        for name, call in calls.items():
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, name
            assert isinstance(from_rpc_error(refused.value, doing=""), NotOwnerError)
        assert len(re.findall(r"\(bob\) refused: PERMISSION_DENIED", caplog.text)) == len(calls)
    bystander.goes_on()


def test_one_sees_only_ones_own_runs_and_admin_all_also_after_a_restart(
    world: World, folder: Path, job: Job, tmp_path: Path
) -> None:
    def visible(token: str) -> set[str]:
        with stub(live, folder, token) as its:
            return {status.run for status in its.WatchRun(pb.WatchRunRequest())}

    with LiveServer(world, tmp_path, token_file=folder / "tokens", tls=tls(folder, "server")) as live:
        for name in ("alice", "bob"):
            client = connect(live, folder, name, run=name)
            client.open_run(job.info(name), cursor=0, restart=False)
            client.close()
        for _ in range(2):
            assert [visible(name) for name in ("alice", "bob", "admin")] == [{"alice"}, {"bob"}, {"alice", "bob"}]
            live.stop()
            live.start()
        admin = connect(live, folder, "admin", run="bob")
        admin.open_run(job.info("bob"), cursor=0, restart=True)
        admin.close()
        assert visible("bob") == {"bob"}  # which stays his


# ---- what a caller may ask for


def _opening(job: Job, **changes: Any) -> pb.OpenRunRequest:
    run = run_to_pb(job.info("greedy"))
    for name, value in changes.items():
        setattr(run, name, value)
    return pb.OpenRunRequest(run=run)


_TOO_MUCH: dict[str, tuple[dict[str, Any], str]] = {
    "num_steps": ({"num_steps": 2**62}, "RESOURCE_EXHAUSTED"),
    "lookahead": ({"lookahead": 2**40}, "RESOURCE_EXHAUSTED"),
    "staleness": ({"staleness": 2**40, "lookahead": 2**40}, "RESOURCE_EXHAUSTED"),
    "push_every": ({"push_every": 2**40}, "RESOURCE_EXHAUSTED"),
    "ranks": ({"world_size": 60_000}, "RESOURCE_EXHAUSTED"),
    "rows": ({"selection_json": '{"large_batch_size": 1000000000}'}, "RESOURCE_EXHAUSTED"),
    "probes": ({"selection_json": '{"num_probes": 1000000000}'}, "RESOURCE_EXHAUSTED"),
    "sketch": ({"selection_json": '{"preset": "matched", "sketch_size": 1000000000}'}, "RESOURCE_EXHAUSTED"),
    "score_tokens": ({"selection_json": '{"score_tokens": 1000000000000}'}, "RESOURCE_EXHAUSTED"),
    "a number of digits": ({"selection_json": '{"num_probes": ' + "9" * 100_000 + "}"}, "INVALID_ARGUMENT"),
    "a config": ({"selection_json": '"' + "x" * _MIB + '"'}, "RESOURCE_EXHAUSTED"),
    "nested JSON": ({"selection_json": "[" * 100_000}, "INVALID_ARGUMENT"),
    "nested adapter": ({"adapter_json": "[" * 100_000}, "FAILED_PRECONDITION"),
    "rank": ({"adapter_json": '{"r": 1000000000}'}, "FAILED_PRECONDITION"),
    "rank above the limit": ({"adapter_json": '{"r": 8192}'}, "RESOURCE_EXHAUSTED"),
    "a pattern without end": ({"adapter_json": '{"target_modules": "(a*)*b"}'}, "FAILED_PRECONDITION"),
    "another pattern": ({"adapter_json": '{"rank_pattern": {"(.*.*)*x": 3}}'}, "FAILED_PRECONDITION"),
    "a module to import": ({"adapter_json": '{"megatron_config": {"a": 1}}'}, "FAILED_PRECONDITION"),
    "a file to open": ({"adapter_json": '{"base_model_name_or_path": "/etc"}'}, "FAILED_PRECONDITION"),
    "layers": ({"adapter_json": '{"layer_replication": [[0, 1000000000]]}'}, "FAILED_PRECONDITION"),
    "a name above": ({"name": "../greedy"}, "INVALID_ARGUMENT"),
    "an absolute name": ({"name": "/tmp/greedy"}, "INVALID_ARGUMENT"),
    "a hidden name": ({"name": ".greedy"}, "INVALID_ARGUMENT"),
    "a name with a line": ({"name": "greedy\nINFO all is well"}, "INVALID_ARGUMENT"),
    "a long name": ({"name": "g" * 2000}, "RESOURCE_EXHAUSTED"),
}


@pytest.mark.parametrize("what", _TOO_MUCH)
def test_an_opening_that_asks_for_too_much_costs_nothing(
    server: LiveServer, folder: Path, job: Job, bystander: Bystander, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes, status = _TOO_MUCH[what]
    journals = set(server._folder.iterdir())
    with stub(server, folder, "bob") as bob, bounded_memory(64), pytest.raises(grpc.RpcError) as refused:
        bob.OpenRun(_opening(job, **changes))
    assert refused.value.code().name == status, refused.value.details()
    assert "OpenRun from ipv" in caplog.text
    assert "\nINFO all is well" not in caplog.text
    assert set(server._folder.iterdir()) == journals
    bystander.goes_on()


def test_tensors_larger_than_any_model_are_refused(server: LiveServer, folder: Path, job: Job) -> None:
    for shape in ([2**40, 2**40], [2**62] * 8, [1] * 1000, [-1]):
        request = _opening(job)
        request.run.trainable.add(name="x", shape=shape, dtype="float32")
        with stub(server, folder, "bob") as bob, bounded_memory(64), pytest.raises(grpc.RpcError) as refused:
            bob.OpenRun(request)
        assert refused.value.code().name in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")


_SEND_A_GIB = """
import sys, grpc
address, folder, token = sys.argv[1:]
read = lambda name: open(f"{folder}/ours/{name}", "rb").read()
credentials = grpc.ssl_channel_credentials(read("ca.pem"), read("client.key"), read("client.pem"))
channel = grpc.secure_channel(address, credentials, options=[("grpc.max_send_message_length", -1)])
call = channel.unary_unary("/subbatch.v1.SelectorService/OpenRun", request_serializer=lambda n: bytes(n))
try:
    call(1 << 30, timeout=60, metadata=(("authorization", f"Bearer {token}"),))
except grpc.RpcError as error:
    print(error.code().name, error.details())
"""


def test_a_message_of_a_gibibyte_is_refused_before_it_is_read(
    server: LiveServer, folder: Path, bystander: Bystander
) -> None:
    arguments = [server.address, str(folder), _TOKENS["bob"]]
    with bounded_memory(64):
        told = subprocess.run(
            [sys.executable, "-c", _SEND_A_GIB, *arguments], capture_output=True, text=True, timeout=100, check=True
        ).stdout
        bystander.goes_on()
    assert "RESOURCE_EXHAUSTED" in told
    assert str(4 * _MIB) in told


def test_a_run_has_no_more_streams_than_it_may(server: LiveServer, folder: Path, bystander: Bystander) -> None:
    with stub(server, folder, "alice") as alice:
        open_one = alice.WatchRun(pb.WatchRunRequest(run="alices"))  # beside the bystander's own stream
        next(open_one)
        with pytest.raises(grpc.RpcError, match=r"2 streams under way, as many as server\.limits\.streams_per_run"):
            next(alice.WatchRun(pb.WatchRunRequest(run="alices")))
        open_one.cancel()
    bystander.goes_on()


# ---- pushes


@pytest.fixture(scope="module")
def bobs(server: LiveServer, folder: Path, job: Job) -> pb.PushWeightsHeader:
    """The header of the push that bob's run waits for."""
    client = connect(server, folder, "bob", run="bobs")
    incarnation, _ = client.open_run(job.info("bobs"), cursor=0, restart=False)
    client.close()
    payload = encode_weights(job.weights(0))
    return pb.PushWeightsHeader(
        run="bobs", incarnation=incarnation, version=0, num_bytes=len(payload), sha256=content_hash(payload)
    )


def _endless(chunk: bytes) -> Iterator[pb.PushWeightsRequest]:
    return itertools.repeat(pb.PushWeightsRequest(chunk=chunk))


@pytest.mark.parametrize(
    ("chunks", "status", "why"),
    [
        ("endless", "INVALID_ARGUMENT", "longer than the"),
        ("oversized", "INVALID_ARGUMENT", "chunks of 1 to"),
        ("silent", "DEADLINE_EXCEEDED", "sent nothing for 0.5 s"),
        ("trickling", "DEADLINE_EXCEEDED", r"slower than server\.limits\.push_bytes_per_s"),
    ],
)
def test_a_push_that_never_ends_is_ended(
    server: LiveServer,
    folder: Path,
    bobs: pb.PushWeightsHeader,
    bystander: Bystander,
    chunks: str,
    status: str,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = threading.Event()

    def trickle() -> Iterator[pb.PushWeightsRequest]:
        for _ in range(1 if chunks == "silent" else 10**9):
            yield pb.PushWeightsRequest(chunk=b"x")
            done.wait(0.01)
        done.wait(30)

    sent = {"endless": _endless(bytes(4096)), "oversized": _endless(bytes(_MIB + 1))}.get(chunks) or trickle()
    with stub(server, folder, "bob") as bob, bounded_memory(64), pytest.raises(grpc.RpcError) as refused:
        bob.PushWeights(itertools.chain([pb.PushWeightsRequest(header=bobs)], sent))
    done.set()
    assert refused.value.code().name == status, refused.value.details()
    assert re.search(why, refused.value.details())
    assert "PushWeights from" in caplog.text
    bystander.goes_on()


def test_weights_with_a_bomb_for_a_header_are_refused(
    server: LiveServer, folder: Path, job: Job, bobs: pb.PushWeightsHeader, bystander: Bystander
) -> None:
    size = bobs.num_bytes
    bombs = [
        (2**63).to_bytes(8, "little") + bytes(size - 8),
        (size - 8).to_bytes(8, "little") + b"[" * (size - 8),
        (100).to_bytes(8, "little")
        + b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'.ljust(100)
        + bytes(size - 108),
    ]
    with stub(server, folder, "bob") as bob:
        for payload in bombs:
            header = pb.PushWeightsHeader()
            header.CopyFrom(bobs)
            header.sha256 = content_hash(payload)
            parts = [pb.PushWeightsRequest(header=header), pb.PushWeightsRequest(chunk=payload)]
            with bounded_memory(64), pytest.raises(grpc.RpcError, match="not a safetensors payload") as refused:
                bob.PushWeights(iter(parts))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bystander.goes_on()


# ---- what a server may send


def _bomb(kind: str) -> bytes:
    columns = {
        "index": pa.array([0], pa.int64()),
        "source": pa.array([0], pa.int32()),
        "weight": pa.array([1], pa.float32()),
        "gain": pa.array([0], pa.float32()),
        "num_tokens": pa.array([1], pa.int32()),
    }
    if kind == "compressed":
        columns = {name: pa.array(np.zeros(1 << 21), array.type, safe=False) for name, array in columns.items()}
    if kind == "dictionary":
        columns["source"] = columns["source"].dictionary_encode()
    if kind == "nested":
        columns["source"] = pa.array([[0]], pa.list_(pa.int32()))
    schema = pa.schema([pa.field(name, array.type, nullable=False) for name, array in columns.items()])
    options = pa.ipc.IpcWriteOptions(compression="zstd" if kind == "compressed" else None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for _ in range(1000 if kind == "many batches" else 1):
            writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    payload = bytes(sink.getvalue())
    if kind == "long":  # the batch says it has more rows than the message has bytes
        at = payload.rindex((1).to_bytes(8, "little"), 0, len(payload) - 300)
        payload = payload[:at] + (2**40).to_bytes(8, "little") + payload[at + 8 :]
    return payload


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("compressed", "is compressed"),
        ("dictionary", "got .*'dictionary'"),
        ("nested", "has columns"),
        ("many batches", "one record batch"),
        ("long", "claims 1099511627776 rows"),
    ],
)
def test_a_selection_that_would_unfold_is_refused_while_it_is_small(kind: str, reason: str) -> None:
    payload = _bomb(kind)
    assert len(payload) < MAX_MESSAGE_BYTES / 8
    with bounded_memory(16), pytest.raises(WireError, match=reason):
        decode_selection(payload)
