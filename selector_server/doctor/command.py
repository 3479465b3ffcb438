"""The checks of `selector-server doctor`, in the order in which a server would stumble."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial

from rich.console import Console

from selector_server.doctor.device import device
from selector_server.doctor.journals import is_held, journals, needed_bytes
from selector_server.doctor.ports import ports
from shared.addresses import is_loopback
from shared.config import Config
from shared.doctor import inputs, machine, software
from shared.doctor.certificates import certificates
from shared.doctor.finding import Check, Finding, examine, show
from shared.errors import ConfigError

_HOST = re.compile(r"\[[^][]+\]|[^][:/,\s]+")


def run_doctor(read: Callable[[], Config], console: Console, *, as_json: bool) -> None:
    """Look at everything that a server needs, and print what was found.

    Args:
        read: Reads the configuration.
        console: Where to print.
        as_json: Print JSON.

    Raises:
        SubbatchError: something that keeps a server from serving was found.
    """
    show(diagnose(read), console, as_json=as_json)


def diagnose(read: Callable[[], Config]) -> list[Finding]:
    """What was found; without a configuration, only what needs none."""
    found = examine([("versions", software.packages), ("clock", machine.own_clock)])
    try:
        config = read()
    except ConfigError as error:
        return [Finding("configuration", "problem", str(error)), *found]
    server = config.server
    disk = f"{config.run.num_steps} steps of such a run and its weights"
    checks: list[tuple[str, Check]] = [
        ("device", partial(software.gpu_driver, server.device)),
        ("store", partial(inputs.store, config.data)),
        ("model", partial(inputs.model, config.model, config.data)),
        ("device", partial(device, config)),
        ("certificates", partial(certificates, server.tls, branch="server.tls", host=_called(config), now=_now())),
        ("ports", lambda: ports(server, is_running=is_held(server.journal))),
        ("journal", partial(journals, server.journal)),
        ("disk", lambda: machine.room(server.journal, needed_bytes(config), setting="server.journal", why=disk)),
    ]
    return [Finding("configuration", "ok", "every key is known, every value possible"), *found, *examine(checks)]


def _called(config: Config) -> str:
    """The name by which trainers of the same configuration call the server; empty where it says none."""
    host, _, _ = config.client.selector.rpartition(":")
    return "" if is_loopback(config.client.selector) or not _HOST.fullmatch(host) else host.strip("[]")


def _now() -> datetime:
    return datetime.now(timezone.utc)
