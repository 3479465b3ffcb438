from __future__ import annotations

import pytest

from shared.addresses import is_loopback, parse_target, with_port
from shared.config import load_config
from shared.errors import ConfigError


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1",
        "127.9.9.9:1",
        "localhost:1",
        "[::1]:1",
        "::1",
        "unix:/run/x",
        "ipv4:127.0.0.1:1",
        "dns:///localhost:1",
    ],
)
def test_addresses_of_this_machine(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    ["", "10.0.0.1:1", "0.0.0.0", "[::]:1", "::", "localhost.example.org:1", "127.0.0.1.example.org:1", "2130706433:1",
     "dns:///example.org:1", "dns://127.0.0.1/example.org:1", "ipv6:[2001:db8::1]:1", "127.1:1", "xds:///localhost"],
)  # fmt: skip
def test_addresses_of_other_machines_and_doubtful_ones(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize(
    ("written", "uri", "certified"),
    [
        ("selector:50051", "selector:50051", ""),
        (" 10.0.0.7:1 ", "10.0.0.7:1", ""),
        ("[2001:db8::7]:65535", "[2001:db8::7]:65535", ""),
        ("10.0.0.7:50051, 10.1.0.7:50052", "ipv4:10.0.0.7:50051,10.1.0.7:50052", "10.0.0.7"),
        ("[2001:db8::7]:1,[::1]:2", "ipv6:%5B2001:db8::7%5D:1,%5B::1%5D:2", "2001:db8::7"),
        ("unix:/run/selector", "unix:/run/selector", ""),
        ("dns:///selector:50051", "dns:///selector:50051", ""),
    ],
)
def test_an_address_is_what_grpc_connects_to_and_whose_certificate_it_wants(
    written: str, uri: str, certified: str
) -> None:
    target = parse_target(written)
    assert (target.uri, target.certified) == (uri, certified)


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("10.0.0.7", "no port: write 10.0.0.7:50051"),
        ("::1", r"no port: write \[::1\]:50051"),
        ("[::1]", r"no port: write \[::1\]:50051"),
        ("2001:db8::7:50051", "is no address"),
        ("selector", "'selector' is no address: write host:port"),
        ("selector:", "is no address"),
        ("selector:0", "is no address"),
        ("selector:65536", "is no address"),
        ("http://selector:50051", "is no address"),
        ("selector:50051/", "is no address"),
        ("[selector]:50051", "is no address"),
        ("", "is no address"),
        ("10.0.0.7:1,", "'' is no address"),
        ("a:1,b:1", "several names, let one name have all"),
        ("10.0.0.7:1,[::1]:1", "of IPv4 or of IPv6"),
    ],
)
def test_what_is_no_address_is_refused_when_the_configuration_is_read(written: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=rf"client\.selector: .*{remedy}"):
        load_config(None, [f"--client.selector={written}"])


def test_numbers_of_ipv6_stand_in_brackets() -> None:
    assert [with_port(host, 5) for host in ("::", "[::1]", "10.0.0.7", "name")] == [
        "[::]:5",
        "[::1]:5",
        "10.0.0.7:5",
        "name:5",
    ]
