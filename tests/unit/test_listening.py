from __future__ import annotations

import asyncio
import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from selector_server.listening import listen
from selector_server.security.certs import make_certificates, next_steps
from shared.config import ServerConfig
from shared.errors import ConfigError
from tests.support import run_cli

NOW = datetime.datetime.now(datetime.timezone.utc)


def bind(**settings: object) -> str:
    async def there() -> str:
        server, address = listen(ServerConfig.model_validate({"port": 0, **settings}))
        await server.stop(0)
        return address

    return asyncio.run(there())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, ["trainer-net.example", "10.1.2.3"], days=30, now=NOW)
    (folder / "tokens").write_text("alice:0123456789abcdef")
    return folder


def test_plaintext_and_no_token_are_for_this_machine_alone(folder: Path) -> None:
    pair = {"certificate": folder / "server.pem", "key": folder / "server.key"}
    token_file = folder / "tokens"
    for lacking, named in (
        ({}, r"server\.tls.* and server\.token_file"),
        ({"token_file": token_file}, r"server\.tls"),
        ({"tls": pair}, r"server\.token_file, or server\.tls\.ca"),
    ):
        with pytest.raises(ConfigError, match=rf"0\.0\.0\.0 can be reached from other machines: set {named}.*insecure"):
            bind(host="0.0.0.0", **lacking)
    for enough in (
        {"token_file": token_file, "tls": pair},
        {"tls": pair | {"ca": folder / "ca.pem"}},
        {"insecure": True},
    ):
        assert bind(host="0.0.0.0", **enough).startswith("0.0.0.0:")
    assert bind(host="localhost").startswith("localhost:")


def test_the_certificates_are_good_for_their_hosts_side_and_time_alone(folder: Path) -> None:
    read = {path.name: path.read_bytes() for path in folder.glob("*.pem")}
    ca, server, client = (x509.load_pem_x509_certificate(read[f"{name}.pem"]) for name in ("ca", "server", "client"))
    policy = PolicyBuilder().store(Store([ca]))
    for host in (x509.DNSName("trainer-net.example"), x509.DNSName("localhost")):
        assert policy.time(NOW).build_server_verifier(host).verify(server, [])[-1] == ca
    refused = [
        policy.time(NOW).build_server_verifier(x509.DNSName("example.org")),
        policy.time(NOW + datetime.timedelta(days=31)).build_server_verifier(x509.DNSName("localhost")),
    ]
    for verifier in refused:
        with pytest.raises(VerificationError):
            verifier.verify(server, [])
    usage = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert client.verify_directly_issued_by(ca) is None


def test_the_command_makes_private_keys_and_replaces_nothing(tmp_path: Path) -> None:
    out = tmp_path / "certs"
    made = run_cli("selector_server", "certs", "--out", out, "--host", "gpu-7", "--days", 3)
    assert made.returncode == 0, made.stderr
    assert next_steps(out) in made.stdout
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {"server.key", "client.key"}
    assert modes.keys() == {"ca.pem", "server.pem", "server.key", "client.pem", "client.key"}
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConfigError, match=r"holds ca\.pem, server\.pem"):
        make_certificates(out, [], days=3, now=NOW)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("hosts", "days", "reason"), [([], 0, "--days 0"), ([], 9999, "9999"), (["näh"], 1, "neither a name")]
)
def test_certificates_that_make_no_sense_are_refused(tmp_path: Path, hosts: list[str], days: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_certificates(tmp_path / "none", hosts, days=days, now=NOW)
    assert not (tmp_path / "none").exists()
