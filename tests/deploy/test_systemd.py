"""The systemd unit: systemd finds nothing in it, it exposes little, and what it starts is a server that serves."""

from __future__ import annotations

import datetime
import re
import shlex
import sys
from pathlib import Path

import pytest

from selector_server.security.certs import make_certificates
from shared.config import load_config
from tests.deploy.tools import DEPLOY, check
from tests.support import Server, World, run_cli, write_config

UNIT = DEPLOY / "systemd" / "subbatch-selector.service"
CONFIG = DEPLOY / "systemd" / "selector.toml"
# Of systemd's 0 (nothing) to 100 (everything); what is left is the network, devices and PyTorch's compiled code.
MOST_EXPOSURE = 25


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit, with a program in the place of the one that isn't installed here."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/subbatch/bin/selector-server", sys.executable))
    return path


def arguments(credentials: Path) -> list[str]:
    """Of the server that the unit starts."""
    joined = UNIT.read_text().replace("\\\n", " ")
    found = re.search(r"(?m)^ExecStart=(.*)$", joined)
    assert found
    program, command, *rest = shlex.split(found[1].replace("${CREDENTIALS_DIRECTORY}", str(credentials)))
    assert (Path(program).name, command) == ("selector-server", "serve")
    return rest


def test_systemd_finds_nothing_in_the_unit(installed: Path) -> None:
    assert check("systemd-analyze", "verify", installed) == ""


def test_the_unit_exposes_little(installed: Path) -> None:
    check("systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSURE}", installed)


def test_every_credential_that_the_server_is_given_is_loaded(tmp_path: Path) -> None:
    loaded = set(re.findall(r"(?m)^LoadCredential=([^:]+):", UNIT.read_text()))
    given = {Path(argument).name for argument in arguments(tmp_path) if argument.startswith(str(tmp_path))}
    assert given == loaded
    option, path, *overrides = arguments(tmp_path)
    assert (option, Path(path).name) == ("--config", CONFIG.name)
    server = load_config(CONFIG, overrides).server
    assert server.journal.is_relative_to("/var/lib/subbatch")
    assert server.tls
    assert server.tls.ca == tmp_path / "ca.pem"


@pytest.mark.long
def test_what_the_unit_starts_serves(world: World, tmp_path: Path) -> None:
    make_certificates(tmp_path / "credentials", [], days=1, now=datetime.datetime.now(datetime.timezone.utc))
    (tmp_path / "credentials" / "tokens").write_text("alice:0123456789abcdef\n")
    pem = {key: tmp_path / "credentials" / name for key, name in
           (("ca", "ca.pem"), ("certificate", "client.pem"), ("key", "client.key"))}  # fmt: skip
    config = write_config(tmp_path, world, server={"host": "0.0.0.0"}, client={"tls": pem})
    overrides = arguments(tmp_path / "credentials")[2:]
    with Server(config, *overrides) as server:
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        health = run_cli("selector_server", "health", "--config", config, "--client.selector", address)
        assert health.returncode == 0, health.stderr
        assert server.stop() == 0
