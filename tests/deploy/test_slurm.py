"""The Slurm script: one job whose parts find each other, on nodes that fail, and past its time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.wire import same_selection
from tests.deploy import slurm_stand_in
from tests.deploy.tools import DEPLOY, REPOSITORY, check
from tests.processes import descendants, send
from tests.support import ENVIRONMENT, World, journalled_selections, write_config

SCRIPT = DEPLOY / "slurm" / "subbatch.sbatch"
JOB = 4711


def test_bash_and_shellcheck_find_nothing_in_the_slurm_script() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    check("shellcheck", SCRIPT)


def test_what_is_no_configuration_or_no_heterogeneous_job_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.touch()
    for arguments, complaint in (([], "usage"), (["nowhere.toml"], "nowhere.toml is no configuration"),
                                 ([str(config)], "this job has one part")):  # fmt: skip
        done = subprocess.run(["bash", SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert complaint in done.stderr
    assert list(tmp_path.iterdir()) == [config]


class Cluster:
    """Three nodes of this machine's loopback interface: one for the selector, two for trainers."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self._config = folder, config
        self.state, self.log = folder / f"subbatch-{JOB}", folder / "job.log"
        self._requeued = folder / "requeued"
        slurm_stand_in.install(folder / "bin")
        self._attempt = 0

    @contextmanager
    def attempt(self, *overrides: str) -> Iterator[subprocess.Popen[bytes]]:
        """Slurm starts the job, again where it was requeued or a node has failed; whatever is left of it is killed."""
        self._requeued.unlink(missing_ok=True)
        beside = Path(sys.executable).parent
        environment = ENVIRONMENT | {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{beside}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "SLURM_JOB_ID": str(JOB),
            "SLURM_RESTART_COUNT": str(self._attempt),
            "SLURM_JOB_NODELIST_HET_GROUP_0": "127.0.0.4",
            "SLURM_JOB_NODELIST_HET_GROUP_1": "127.0.0.[2-3]",
            "STAND_IN_REQUEUED": str(self._requeued),
            "SAVE_EVERY": "20",
        }
        self._attempt += 1
        with self.log.open("ab") as log:
            job = subprocess.Popen(
                ["bash", SCRIPT, self._config, *overrides], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        try:
            yield job
        finally:
            self.fail_all_nodes(job)

    def fail_all_nodes(self, job: subprocess.Popen[bytes]) -> None:
        send([job.pid, *descendants(job.pid)] if job.poll() is None else [], signal.SIGKILL)
        job.wait()

    @property
    def is_requeued(self) -> bool:
        return self._requeued.exists()

    def steps(self, rank: int = 0) -> list[int]:
        path = self.state / "train" / f"steps-rank{rank}.jsonl"
        return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []

    def wait_until(self, condition: Callable[[], bool], job: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 180
        while not condition():
            assert job.poll() is None, self.words()
            assert time.monotonic() < deadline, self.words()
            time.sleep(0.02)

    def words(self) -> str:
        logs = (self.log, self.state / "selector.log", self.state / "train.log")
        return "\n----\n".join(path.read_text()[-3000:] for path in logs if path.exists())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_slurm_job_survives_failed_nodes_and_its_time_limit_with_the_same_selections(
    world: World, tmp_path: Path
) -> None:
    settings = {"run": {"num_steps": 80}, "train": {"learning_rate": 1e-3}}
    undisturbed = Cluster(tmp_path / "undisturbed", write_config(tmp_path / "undisturbed", world, **settings))
    with undisturbed.attempt() as job:
        assert job.wait(400) == 0, undisturbed.words()
    assert undisturbed.steps(0) == undisturbed.steps(1) == list(range(80))

    cluster = Cluster(tmp_path / "disturbed", write_config(tmp_path / "disturbed", world, **settings))
    with cluster.attempt() as job:
        cluster.wait_until(lambda: len(cluster.steps()) >= 5, job)
        cluster.fail_all_nodes(job)
    token = (cluster.state / "secrets/token").read_text()
    certificate = (cluster.state / "secrets/certs/server.pem").read_bytes()
    assert not list((cluster.state / "train").glob("checkpoint-*")), "it was to fail before its first checkpoint"

    with cluster.attempt() as job:
        cluster.wait_until(lambda: (cluster.state / "train/checkpoint-40").is_dir(), job)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(120) == 0
        assert cluster.is_requeued, cluster.words()
        assert not descendants(job.pid)
    assert max(cluster.steps()) < 79, "its time limit was to come before its end"

    with cluster.attempt() as job:
        assert job.wait(400) == 0, cluster.words()
    assert not cluster.is_requeued
    assert set(cluster.steps(0)) == set(cluster.steps(1)) == set(range(80))
    assert (cluster.state / "train/model").is_dir()
    assert (cluster.state / "secrets/token").read_text() == token
    assert (cluster.state / "secrets/certs/server.pem").read_bytes() != certificate
    for secret in ("token", "certs/server.key", "certs/client.key"):
        assert (cluster.state / "secrets" / secret).stat().st_mode & 0o077 == 0
    assert token not in cluster.words()
    same = journalled_selections(undisturbed.state / "journal"), journalled_selections(cluster.state / "journal")
    assert same[0].keys() == same[1].keys() == set(range(80))
    assert all(same_selection(same[0][step], same[1][step]) for step in range(80))


@pytest.mark.long
def test_a_configuration_that_the_selector_refuses_ends_the_job_for_good(world: World, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, write_config(tmp_path, world))
    with cluster.attempt("--selection.pick", "dice") as job:
        assert job.wait(120) == 1
    assert "selection.pick" in cluster.words()
    assert not cluster.is_requeued
