"""`train-client doctor`: what would keep a job from training, found before its GPUs are paid for.

Run it where the trainers run: it calls the server as they do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version

import grpc
from rich.console import Console

from shared.config import ClientConfig, Config
from shared.convert import fingerprints_from_pb
from shared.dataset import Store
from shared.doctor import inputs, machine, software
from shared.doctor.certificates import certificates
from shared.doctor.finding import Check, Finding, examine, show
from shared.errors import ConfigError, SubbatchError, from_rpc_error
from shared.pb.v1 import selector_pb2, selector_pb2_grpc
from shared.transport import call_metadata, open_channel

_NO_SERVER = ("inline", "replay")
# A checkpoint has the weights that are trained and AdamW's two moments; some of them are kept.
_STATES, _CHECKPOINTS = 3, 3


def run_doctor(read: Callable[[], Config], console: Console, *, as_json: bool) -> None:
    """Look at everything that a training job needs, its server included, and print what was found.

    Args:
        read: Reads the configuration.
        console: Where to print.
        as_json: Print JSON.

    Raises:
        SubbatchError: something that keeps a job from training was found.
    """
    show(diagnose(read), console, as_json=as_json)


def diagnose(read: Callable[[], Config]) -> list[Finding]:
    """What was found; without a configuration, only what needs none."""
    found = examine([("versions", software.packages), ("clock", machine.own_clock)])
    try:
        config = read()
    except ConfigError as error:
        return [Finding("configuration", "problem", str(error)), *found]
    client, now = config.client, datetime.now(timezone.utc)
    holds_rows = client.payload != "records"
    checks: list[tuple[str, Check]] = [
        ("device", partial(software.gpu_driver, config.train.device)),
        *([("store", partial(inputs.store, config.data))] if holds_rows else []),
        ("model", partial(inputs.model, config.model, config.data if holds_rows else None)),
        ("certificates", partial(certificates, client.tls, branch="client.tls", host="", now=now)),
        ("disk", partial(_disk, config)),
        ("server", partial(_server, config)),
    ]
    return [Finding("configuration", "ok", "every key is known, every value possible"), *found, *examine(checks)]


def _disk(config: Config) -> Iterable[Finding]:
    weights = 0 if config.train.lora else inputs.announced_weights(config.model).bytes
    needed = weights * _STATES * (_CHECKPOINTS if config.train.save_every else 1)
    return machine.room(config.train.output, needed, setting="train.output", why="its checkpoints")


def _server(config: Config) -> Iterable[Finding]:
    """Whether the server answers us, and is the one that this job needs.

    Raises:
        SubbatchError: it can't be reached, or refuses us.
    """
    client = config.client
    if client.selector in _NO_SERVER:
        yield Finding("server", "ok", f"client.selector is {client.selector!r}: none is needed")
        return
    asked = time.time()
    reply = _describe(client)
    answered = time.time()
    yield Finding("server", "ok", f"{client.selector} answers within {answered - asked:.2f} s, and lets this job in")
    if reply.version != (ours := version("subbatch")):
        what = f"the server is subbatch {reply.version}, here it is {ours}"
        yield Finding("versions", "warning", what, "install the same release on both sides")
    yield machine.clock_skew(reply.unix_ns / 1e9, asked_s=asked, answered_s=answered)
    yield from _same_rows(config, fingerprints_from_pb(reply.fingerprints).dataset)


def _same_rows(config: Config, theirs: str) -> Iterable[Finding]:
    if config.client.payload == "records":
        yield Finding("store", "ok", "the server sends this job its rows")
        return
    if config.data.store is None:
        return  # which has been found above
    try:
        ours = Store.open(config.data.store).fingerprint
    except SubbatchError:
        return  # which has been found above
    if ours == theirs:
        yield Finding("store", "ok", "the server has the same rows")
        return
    what = f"data.store {config.data.store} is {ours[:12]}, the server's is {theirs[:12]}"
    yield Finding("store", "problem", what, "copy the server's store here, or prepare both from the same rows")


def _describe(client: ClientConfig) -> selector_pb2.DescribeServerReply:
    metadata = call_metadata(client)
    with open_channel(client.selector, client.tls) as channel:
        stub = selector_pb2_grpc.SelectorServiceStub(channel)
        try:
            reply: selector_pb2.DescribeServerReply = stub.DescribeServer(
                selector_pb2.DescribeServerRequest(), timeout=client.call_timeout_s, metadata=metadata
            )
            if client.payload == "records":  # which a server may refuse
                stub.DescribeStore(
                    selector_pb2.DescribeStoreRequest(), timeout=client.call_timeout_s, metadata=metadata
                )
        except grpc.RpcError as error:
            raise from_rpc_error(error, doing=f"asking {client.selector} who it is") from None
    return reply
