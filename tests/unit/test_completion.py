"""Shells complete our command lines: the scripts are given to the shells themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.tools import find

PROGRAMS = {"selector-server": "selector_server", "train-client": "train_client"}
_COMPLETE_IN_BASH = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_shtab_${1//-/_}
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scripts, PROGRAM.SHELL."""
    folder = tmp_path_factory.mktemp("completion")
    for program, module in PROGRAMS.items():
        for shell in ("bash", "zsh", "fish"):
            done = subprocess.run(
                [sys.executable, "-m", module, "completion", shell], capture_output=True, text=True, check=True
            )
            (folder / f"{program}.{shell}").write_text(done.stdout)
    return folder


def in_bash(scripts: Path, *words: str) -> set[str]:
    command = ["bash", "-c", _COMPLETE_IN_BASH, "bash", scripts / f"{words[0]}.bash", *words]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def in_fish(scripts: Path, *words: str) -> set[str]:
    line = f"source {scripts / words[0]}.fish; complete -C '{' '.join(words)}'"
    command = [find("fish"), "--no-config", "-c", line]
    home = {**os.environ, "HOME": str(scripts)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=home)
    return {offered.split("\t")[0] for offered in done.stdout.splitlines()}


@pytest.mark.parametrize("complete", [in_bash, in_fish])
def test_commands_keys_and_their_choices_are_offered(complete, scripts: Path) -> None:  # type: ignore[no-untyped-def]
    assert complete(scripts, "selector-server", "jour") == {"journal"}
    assert complete(scripts, "train-client", "ex") == {"experiment"}
    assert complete(scripts, "selector-server", "serve", "--run.stal") == {"--run.staleness"}
    assert complete(scripts, "train-client", "train", "--client.tls.c") == {
        "--client.tls.ca",
        "--client.tls.certificate",
    }
    assert complete(scripts, "train-client", "train", "--selection.preset", "paper") == {"paper", "paper_exact"}
    assert complete(scripts, "train-client", "train", "--train.gradient_checkpointing", "--no-train.gr") == {
        "--no-train.gradient_checkpointing"
    }


def test_commands_that_read_no_configuration_offer_none_of_its_keys(scripts: Path) -> None:
    assert in_bash(scripts, "train-client", "report", "--run.") == set()


@pytest.mark.parametrize("program", PROGRAMS)
def test_zsh_understands_its_script(program: str, scripts: Path) -> None:
    subprocess.run([find("zsh"), "-n", scripts / f"{program}.zsh"], check=True)
