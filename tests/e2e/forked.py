"""Servers that die where they are told to and training loops beside them, forked as `tests.forked` does."""

from __future__ import annotations

from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from shared.config import load_config
from tests.chaos import fault_points
from tests.forked import FORKS


def start_server(config: Path, folder: Path, *, port: int = 0) -> tuple[BaseProcess, int]:
    """A selector server that dies where `folder / "plan"` says; the process and its port."""
    ours, theirs = FORKS.Pipe()
    process = FORKS.Process(target=_serve, args=(config, port, folder, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, int(ours.recv().rsplit(":", 1)[1])


def start_trainer(config: Path, *overrides: str) -> BaseProcess:
    """The reference loop on one rank."""
    process = FORKS.Process(target=_train, args=(config, overrides), daemon=True)
    process.start()
    return process


def _serve(config: Path, port: int, folder: Path, ready: Connection) -> None:
    from selector_server.scale_out.launch import launch

    fault_points.install(folder / "plan", folder / "trace")
    launch(load_config(config, ["--server.port", str(port)]), on_ready=ready.send)


def _train(config: Path, overrides: tuple[str, ...]) -> None:
    from train_client.train import train

    train(load_config(config, list(overrides)))
