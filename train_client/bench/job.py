"""One arm at work: a trainer and, where it has one, its selector server, which can be made to stand still.

Both are the product's own commands. While an arm stands still both processes do, so that it goes on as it was: with a
selection half scored, if need be. What a pause cut into is no measurement, and `measure.py` leaves it out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.config import Config
from shared.errors import SubbatchError
from train_client.bench.arms import Arm
from train_client.bench.devices import Device, Devices
from train_client.outcome import Outcome
from train_client.process import Command, count_lines, free_port, server_command, train_command
from train_client.run_config import environment_beside_config, with_values, write_config

_POLL_S = 0.02
# An arm may stand still for minutes between two looks at the clock, and start while others do.
_PATIENCE_S = 6 * 3600.0


class Job:
    """A run of an arm. Made, started, advanced any number of times, ended."""

    def __init__(
        self,
        arm: Arm,
        config: Config,
        folder: Path,
        devices: Devices,
        *,
        num_steps: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a run of an arm's configuration in a new folder; nothing is started yet.

        Args:
            arm: Which way to train.
            config: What makes that way, and everything else but its folders and its server.
            folder: Of this run.
            devices: Where both processes run.
            num_steps: Steps of the run.
            environment: Beside what the devices want.
        """
        self.arm, self.folder, self._devices = arm, folder, devices
        self._environment = environment or {}
        port = free_port()
        values: dict[str, Any] = {
            "run.num_steps": num_steps,
            "server.host": "127.0.0.1",
            "server.port": port,
            "server.journal": folder / "journal",
            "server.device": "cuda" if devices.selector.is_gpu else "cpu",
            "server.tls": None,
            "server.token_file": None,
            "client.tls": None,
            "client.token_file": None,
            "client.connect_timeout_s": _PATIENCE_S,
            "client.wait_timeout_s": _PATIENCE_S,
            "client.call_timeout_s": _PATIENCE_S,
            "train.output": folder / "train",
            "train.device": "auto" if devices.trainer.is_gpu else "cpu",
            "train.save_every": 0,
            "train.eval_every": 0,
            "train.gradient_check_every": 0,
            "train.resume": None,
            "train.trackers": (),
        }
        if arm.served:
            values["client.selector"] = f"127.0.0.1:{port}"
        self.config = with_values(config.model_dump(), values)
        self._commands: list[Command] = []
        # By `time.time_ns`: from when to when it stood still.
        self.pauses: list[tuple[int, int]] = []
        self._paused_ns = 0

    @property
    def output(self) -> Path:
        """What the trainer writes to."""
        return self.config.train.output

    @property
    def steps_done(self) -> int:
        """Steps that the trainer has written down."""
        return count_lines(self.output / "steps-rank0.jsonl")

    def start(self) -> None:
        """Start both processes, on any core: importing takes seconds."""
        self.folder.mkdir(parents=True)
        path = write_config(self.config, self.folder / "run.toml")
        if self.arm.served:
            self._start("the selector server", self._devices.selector, *server_command(path), log="server.log")
        self._start("the trainer", self._devices.trainer, *train_command(path, num_processes=1), log="train.log")

    def _start(self, name: str, device: Device, *arguments: object, log: str) -> None:
        environment = environment_beside_config() | device.environment | dict(self._environment)
        title, path = f"{name} of {self.arm.name}", self.folder / log
        self._commands.append(Command(title, *arguments, log=path, environment=environment, dies_with_us=True))

    def pin(self) -> None:
        """Keep each process on the cores of its side from now on."""
        *servers, trainer = self._commands
        trainer.pin(self._devices.trainer.cores)
        for server in servers:
            server.pin(self._devices.selector.cores)

    def advance(self, steps: int) -> None:
        """Go on until so many steps have been written down.

        Raises:
            SubbatchError: a process failed.
        """
        while self.steps_done < steps:
            if not self.check():
                raise SubbatchError(f"{self.arm.name} ended after {self.steps_done} steps, {steps} were asked for")
            time.sleep(_POLL_S)

    def check(self) -> bool:
        """Whether the trainer is still at work.

        Raises:
            SubbatchError: a process failed.
        """
        *servers, trainer = self._commands
        if not trainer.running:
            trainer.wait()
            return False
        for server in servers:
            if not server.running:
                server.wait()
                raise SubbatchError(f"{server.name} ended before its trainer (see {server.log})")
        return True

    def finish(self) -> None:
        """Wait for the trainer's end.

        Raises:
            SubbatchError: a process failed.
        """
        while self.check():
            time.sleep(_POLL_S)

    def pause(self) -> None:
        """Make both processes stand still, the trainer first: it is the one that is measured."""
        self._paused_ns = time.time_ns()
        for command in reversed(self._commands):
            command.pause()

    def resume(self) -> None:
        """Let both go on, the server first."""
        for command in self._commands:
            command.resume()
        self.pauses.append((self._paused_ns, time.time_ns()))

    def forget_peak_memory(self) -> None:
        """Leave out of peak memory what was held so far, where the devices are the processor."""
        for command in self._commands:
            command.forget_peak_memory()

    def selector_memory(self) -> int | None:
        """The most memory that the server's process has had resident; None without a server."""
        return self._commands[0].peak_memory() if self.arm.served else None

    def rows(self) -> list[dict[str, Any]]:
        """A line for each step, as the trainer wrote it down."""
        lines = (self.output / "steps-rank0.jsonl").read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def facts(self) -> dict[str, Any]:
        """What is true of the whole run; its peak memory only once it has ended."""
        return Outcome.read(self.output).facts

    def stop(self) -> None:
        """End both processes."""
        for command in reversed(self._commands):
            command.stop()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
