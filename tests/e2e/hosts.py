"""Hosts of a cluster on this machine, for root on Linux: network namespaces with names, addresses and links.

Every host has an interface `sel` in the network of the server; those that train have one more, `train`, in a network
among themselves. Links go down as where a cable is pulled: silently. Of each host only its networks, its name and its
`/etc/hosts` are its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from tests.processes import descendants, send
from tests.support import ENVIRONMENT, PYTHON

Network = Literal["sel", "train"]

_PREFIX: Mapping[Network, tuple[str, str]] = {"sel": ("10.77.0", "fd77::"), "train": ("10.78.0", "fd78::")}
# Nobody is there to be asked for names, which would be noticed seconds later each time.
_AS_HOST = """
mount --bind "$1" /etc/hosts
if [ -e /etc/resolv.conf ]; then mount --bind /dev/null /etc/resolv.conf; fi
hostname "$2"
shift 2
exec "$@"
"""


class Hosts:
    """Hosts by name, of which the first has number 1; removed at the end of a `with` block, with what runs on them."""

    def __init__(self, folder: Path, networks: Mapping[str, Sequence[Network]]) -> None:
        """Lay the cables.

        Args:
            folder: For the hosts' files.
            networks: Which networks each host is in.
        """
        self._folder, self._networks = folder, networks
        self._numbers = {name: number for number, name in enumerate(networks, start=1)}
        self._id = f"sb{uuid.uuid4().hex[:8]}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._names: dict[str, str] = {}

    def __enter__(self) -> Hosts:
        if os.name != "posix" or os.geteuid():
            pytest.skip("network namespaces take root")
        try:
            made = subprocess.run(["ip", "netns", "add", self._namespace("switch")], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("network namespaces take the command ip")
        if made.returncode:
            pytest.skip(f"no network namespaces here: {made.stderr}")
        for network in _PREFIX:
            _ip("-n", self._namespace("switch"), "link", "add", network, "type", "bridge")
            _ip("-n", self._namespace("switch"), "link", "set", network, "up")
        for name, networks in self._networks.items():
            _ip("netns", "add", self._namespace(name))
            _ip("-n", self._namespace(name), "link", "set", "lo", "up")
            for network in networks:
                self._plug_in(name, network)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                send([*descendants(process.pid), process.pid], signal.SIGKILL)
            process.wait()
        for name in (*self._networks, "switch"):
            subprocess.run(["ip", "netns", "del", self._namespace(name)], capture_output=True, check=False)

    def address(self, host: str, network: Network, *, version: Literal[4, 6] = 4) -> str:
        """A host's number in a network."""
        four, six = _PREFIX[network]
        return f"{four}.{self._numbers[host]}" if version == 4 else f"{six}{self._numbers[host]}"

    def resolve(self, name: str, address: str) -> None:
        """Let all hosts find an address, from now on, under a name."""
        self._names[name] = address
        # Whoever accepts a connection may ask for its other end's name, and nobody answers but this file.
        numbers = {self.address(host, network): host for host, each in self._networks.items() for network in each}
        numbers |= {address: name for name, address in self._names.items()}
        text = "127.0.0.1 localhost\n" + "".join(f"{number} {name}\n" for number, name in numbers.items())
        for host in self._networks:
            self._etc_hosts(host).write_text(text)  # in place, as it is mounted

    def renumber(self, host: str, network: Network, number: int) -> None:
        """Give a host other addresses in a network; nobody has the ones it had."""
        for action in ("del", "add"):
            for version, length in ((4, 24), (6, 64)):
                address = f"{self.address(host, network, version=version)}/{length}"  # type: ignore[arg-type]
                no_check = ["nodad"] if (action, version) == ("add", 6) else []
                _ip("-n", self._namespace(host), "address", action, address, "dev", network, *no_check)
            self._numbers[host] = number

    def link(self, host: str, network: Network, state: Literal["up", "down"]) -> None:
        """Pull a host's cable out of a network's switch, or put it in again."""
        _ip("-n", self._namespace("switch"), "link", "set", f"{host}-{network}", state)

    def sent_bytes(self, host: str, network: Network) -> int:
        """What a host has sent on a network, with all headers."""
        path = f"/sys/class/net/{network}/statistics/tx_bytes"
        return int(subprocess.check_output(["ip", "netns", "exec", self._namespace(host), "cat", path]))

    def start(
        self, host: str, *arguments: str, log: Path, environment: Mapping[str, str] = {}, **options: object
    ) -> subprocess.Popen[bytes]:
        """Start Python on a host; its output is appended to `log`, where `options` (of Popen) don't say otherwise."""
        here = ["ip", "netns", "exec", self._namespace(host), "unshare", "--mount", "--uts", "sh", "-ec", _AS_HOST, "-"]
        with log.open("ab") as file:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                [*here, str(self._etc_hosts(host)), host, PYTHON, *arguments],
                **{"stdout": file, "stderr": file, "stdin": subprocess.DEVNULL, **options},  # type: ignore[call-overload]
                env={**ENVIRONMENT, **environment},
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _plug_in(self, host: str, network: Network) -> None:
        switch, namespace = self._namespace("switch"), self._namespace(host)
        outside = f"{host}-{network}"
        _ip("-n", switch, "link", "add", outside, "type", "veth", "peer", "name", network, "netns", namespace)
        _ip("-n", switch, "link", "set", outside, "master", network, "up")
        for version, length in ((4, 24), (6, 64)):
            address = f"{self.address(host, network, version=version)}/{length}"  # type: ignore[arg-type]
            no_check = ["nodad"] if version == 6 else []
            _ip("-n", namespace, "address", "add", address, "dev", network, *no_check)
        _ip("-n", namespace, "link", "set", network, "up")

    def _etc_hosts(self, host: str) -> Path:
        return self._folder / f"hosts-of-{host}"

    def _namespace(self, host: str) -> str:
        return f"{self._id}-{host}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
