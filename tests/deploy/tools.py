"""The programs that check deployment files: where they are, and what to do where one isn't.

CI installs them (`.ci/run`), so there a missing one fails; elsewhere its tests are skipped with the line that installs
it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"

_VENV, _DEBIAN = "make .venv/.ready", "apt-get install --no-install-recommends"
_INSTALL = {
    "hadolint": _VENV,
    "kubernetes-validate": _VENV,
    "shellcheck": _VENV,
    "promtool": f"{_DEBIAN} prometheus",
    "prometheus": f"{_DEBIAN} prometheus",
    "docker-compose": f"{_DEBIAN} docker-compose",
    "systemd-analyze": f"{_DEBIAN} systemd",
    "zsh": f"{_DEBIAN} zsh",
    "fish": f"{_DEBIAN} fish",
    "kubectl": "install kubectl 1.27 or newer",
}


def find(tool: str) -> str:
    """The path of a tool: beside this Python, or on the PATH. Skips the test where it is missing; in CI it fails."""
    beside = Path(sys.executable).with_name(tool)
    found = str(beside) if beside.is_file() else shutil.which(tool)
    if found is None:
        reason = f"{tool} isn't installed: {_INSTALL[tool]}"
        if os.environ.get("CI"):
            pytest.fail(f"{reason} (in CI nothing under deploy/ goes unchecked)")
        pytest.skip(reason)
    return found


def check(tool: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Run a tool over files, demand that it is content, and give what it printed."""
    done = subprocess.run(
        [find(tool), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        timeout=120,
    )
    assert done.returncode == 0, f"{tool} {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}"
    return done.stdout


def files(*patterns: str) -> list[Path]:
    """The files under deploy/ that match any of these patterns; there is one for each pattern."""
    found = []
    for pattern in patterns:
        matching = sorted(DEPLOY.glob(pattern))
        assert matching, f"deploy/{pattern} matches nothing"
        found += matching
    return found


def name(path: Path) -> str:
    """What a test over files calls one."""
    return str(path.relative_to(DEPLOY))
