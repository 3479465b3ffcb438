"""What service and end-to-end tests share: a small world of data and model, and real processes to run in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selector_server.journal import Journal
from selector_server.run import Run
from shared.records import Selection
from shared.wire import decode_selection
from tests.forked import Forked

PYTHON = sys.executable
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
}


@dataclass(frozen=True)
class World:
    """A prepared store, a held-out store and a small model, made once for all tests."""

    model: Path
    store: Path
    heldout: Path
    rows: Path


def write_config(folder: Path, world: World, **branches: Mapping[str, object]) -> Path:
    """A TOML file for a run in `folder`; `branches` adds to or overrides what every test wants."""
    tree: dict[str, dict[str, object]] = {
        "model": {"path": world.model},
        "data": {"store": world.store},
        "selection": {"large_batch_size": 12, "sub_batch_size": 6, "sparsify_k": 64},
        "run": {"name": "run", "num_steps": 20},
        "server": {"port": 0, "journal": folder / "journal", "threads": 1, "device": "cpu"},
        "client": {"wait_timeout_s": 120.0},
        "train": {
            "output": folder / "train",
            "device": "cpu",
            "threads": 1,
            "micro_batch_size": 2,
            "learning_rate": 5e-3,
            "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.05},
        },
    }
    for branch, keys in branches.items():
        tree.setdefault(branch, {}).update(keys)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.toml"
    path.write_text("".join(_toml_table(name, keys) for name, keys in tree.items()))
    return path


def _toml_table(name: str, keys: Mapping[str, object]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in keys.items())


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return '"' + str(value) + '"'


class Server:
    """A real `selector-server serve` process; `script` replaces the entry point, to inject faults."""

    def __init__(self, config: Path, *overrides: str, script: Path | None = None, **environment: str) -> None:
        self._config, self._script, self._environment = config, script, environment
        self.address = ""
        self._start(overrides)

    def _start(self, overrides: Sequence[str]) -> None:
        arguments = ["serve", "--config", str(self._config), *overrides]
        self.log = (self._config.parent / "server.log").open("ab")
        self.process: subprocess.Popen[str] | Forked
        if self._script or self._environment:
            entry = [str(self._script)] if self._script else ["-m", "selector_server"]
            self.process = subprocess.Popen(
                [PYTHON, *entry, *arguments],
                stdout=subprocess.PIPE,
                stderr=self.log,
                env=ENVIRONMENT | self._environment,
                text=True,
            )
        else:
            self.process = Forked.with_output(
                "selector_server", arguments, environment=ENVIRONMENT, stderr=Path(self.log.name)
            )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith("selector-server ready on "), f"no ready line, see {self.log.name}"
        self.address = ready.split()[-1]

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start again where it was."""
        port = self.address.rsplit(":", 1)[1]
        self._start(["--server.port", port])

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=60)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stdout:
            self.process.stdout.close()
        self.log.close()


class Trainer:
    """A real training job, under torchrun where it has several ranks, in a process group of its own."""

    def __init__(
        self, config: Path, *overrides: str, ranks: int = 1, script: Path | None = None, **environment: str
    ) -> None:
        entry = [str(script)] if script else ["-m", "train_client"]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        self.log_path = config.parent / "train.log"
        self.process: subprocess.Popen[bytes] | Forked
        if ranks == 1 and script is None:
            arguments = ["train", "--config", config, *overrides]
            log_path = self.log_path
            environment = ENVIRONMENT | environment
            self.process = Forked("train_client", arguments, environment=environment, stdout=log_path, stderr=log_path)
            return
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [PYTHON, *launcher, *entry, "train", "--config", str(config), *overrides],
                stdout=log,
                stderr=log,
                env=ENVIRONMENT | environment,
                start_new_session=True,
            )

    def wait(self, timeout: float = 240) -> int:
        """The exit code; of a job that hangs, what each of its threads was doing."""
        try:
            return self.process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGABRT)
            self.process.wait(timeout=30)
            server_log = self.log_path.with_name("server.log")
            logs = (path.read_text()[-8000:] for path in (self.log_path, server_log) if path.exists())
            raise AssertionError(f"the trainer still ran after {timeout:.0f} s:\n" + "\n----\n".join(logs)) from None

    def finish(self, timeout: float = 240) -> None:
        """Wait, and demand success."""
        code = self.wait(timeout)
        assert code == 0, f"trainer exited with {code}:\n{self.log_path.read_text()[-4000:]}"

    def kill(self) -> None:
        """kill -9 of the launcher and every rank."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


def journalled_selections(journal: Path, run: str = "run") -> dict[int, Selection]:
    """The selections of a run as a restarted server would send them; works on a copy, a server may be running."""
    copy = journal.parent / f"copy-of-{journal.name}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(journal / run, copy)
    state = Run(Journal(copy))
    steps = range(state.info.timing.num_steps)
    return {step: decode_selection(state.selection(step).arrow) for step in steps if state.has_selection(step)}


def run_cli(module: str, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = Forked(module, arguments, environment=ENVIRONMENT, stdout=out, stderr=err)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess([module, *arguments], code, out.read_text(), err.read_text())
