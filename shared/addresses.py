"""How a selector server's address is written, and what gRPC makes of it.

`host:port`, where the host is a name or a number (`[2001:db8::7]:50051`); several numbers of one server, with commas
between them, which are tried in their order; or a target of gRPC's own (`unix:`, `dns:`, `ipv4:` ...).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

_OF_GRPC = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^][]+\]|[^][:/\s]+):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65535


@dataclass(frozen=True)
class Target:
    """What gRPC connects to.

    Attributes:
        uri: Its name for gRPC.
        certified: The host that the server's certificate must be for; empty where that is the one in `uri`.
    """

    uri: str
    certified: str = ""


def parse_target(text: str) -> Target:
    """What an address means.

    Raises:
        ValueError: it is none; the text says how to write it.
    """
    scheme, colon, _ = text.partition(":")
    if colon and scheme in _OF_GRPC:
        return Target(text)
    hosts_and_ports = [_split(part.strip()) for part in text.split(",")]
    if len(hosts_and_ports) == 1:
        return Target(text.strip())
    versions = {_version(host) for host, _ in hosts_and_ports}
    if None in versions or len(versions) > 1:
        raise ValueError(
            f"{text!r} has several addresses, which must all be numbers, of IPv4 or of IPv6: to reach a server by "
            "several names, let one name have all of its addresses"
        )
    # gRPC would look for all of them, as one text, in the certificate.
    first = hosts_and_ports[0][0].strip("[]")
    return Target(
        f"ipv{versions.pop()}:" + ",".join(f"{quote(host, ':')}:{port}" for host, port in hosts_and_ports), first
    )


def with_port(host: str, port: int) -> str:
    """A host and a port as one address, the numbers of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether an address, with or without a port, as gRPC writes it, stays on this machine whatever a resolver says."""
    scheme, colon, rest = address.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("ipv4", "ipv6", "dns"):
        address = rest.lstrip("/").rpartition("/")[2]
    address = unquote(address)
    host = address[1:].partition("]")[0] if address.startswith("[") else address
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(text: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
        ValueError: it hasn't both.
    """
    found = _HOST_AND_PORT.fullmatch(text)
    if found and 0 < int(found["port"]) <= _MAX_PORT and not (found["host"][0] == "[" and _version(found["host"]) != 6):
        return found["host"], int(found["port"])
    if _version(text):
        raise ValueError(f"{text!r} has no port: write {with_port(text, 50051)}")
    raise ValueError(
        f"{text!r} is no address: write host:port, such as 10.0.0.7:50051, [2001:db8::7]:50051 or name:50051"
    )


def _version(host: str) -> int | None:
    """Of the Internet Protocol, where a host is a number."""
    try:
        return ipaddress.ip_address(host.strip("[]")).version
    except ValueError:
        return None
