"""Nothing under deploy/ goes unchecked: every file is of a kind that something here, or beside it, understands."""

from __future__ import annotations

import subprocess
from pathlib import Path

from shared.config import load_config
from tests.deploy.tools import DEPLOY, REPOSITORY, files, name

# By pattern, what checks it.
CHECKED = {
    "**/*.sh": "test_containers.py",
    "containers/Dockerfile*": "test_containers.py",
    "compose/*.yaml": "test_containers.py",
    "kubernetes/*/*.yaml": "test_kubernetes.py",
    "slurm/*.sbatch": "test_slurm.py",
    "systemd/*.service": "test_systemd.py",
    "prometheus/*.yml": "test_monitoring.py",
    "grafana/*.json": "test_monitoring.py",
    "grafana/provisioning/*/*.yaml": "test_monitoring.py",
    "accelerate/*.yaml": "test_launch_configs.py",
    "deepspeed/*.json": "test_launch_configs.py",
    "**/*.toml": "here",
    "examples/*.py": "../e2e/test_examples.py",
    "constraints*": "`make`, which installs from them",
    "**/*.md": "../unit/test_documentation.py",
    "docs/draw.py": "../unit/test_documentation.py",
    "docs/*.svg": "../unit/test_documentation.py",
    "images/*": "people",
}


def test_every_file_is_of_a_kind_that_is_checked() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "deploy"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    checked = {path for pattern in CHECKED for path in files(pattern)}
    assert {REPOSITORY / path for path in listed} - checked == set()
    for checker in CHECKED.values():
        assert not checker.endswith(".py") or (Path(__file__).parent / checker).is_file()


def test_configurations_are_ours() -> None:
    for path in files("**/*.toml"):
        config = load_config(path)
        assert config.model.path, f"{name(path)} names no model"
        assert not config.data.store or DEPLOY not in config.data.store.parents
