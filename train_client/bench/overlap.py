"""`train-client bench overlap`: what selection costs the trainers where it runs beside them, and elsewhere.

Every arm is a run of the product, trainer and server in processes of their own on devices of their own. The floor
trains again on the rows that the default arm selected, so that the two differ in nothing but selection.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from shared.config import Config, load_config
from shared.errors import ConfigError
from train_client.bench import memory
from train_client.bench.arms import ARMS, DEFAULT, MAIN
from train_client.bench.devices import Devices, find_devices
from train_client.bench.interleave import Schedule, Turns, take_turns
from train_client.bench.job import Job
from train_client.bench.picture import draw_arms
from train_client.bench.results import summarise
from train_client.bench.tables import print_result
from train_client.bench.workload import FULL, QUICK, make_workload
from train_client.experiment.collect import write_json
from train_client.experiment.plan import portable
from train_client.machine import machine, versions
from train_client.process import ending_on_sigterm
from train_client.run_config import with_values

# A turn's steps are a multiple of the largest push_every. Fewer than five rounds have no interval for their median.
_ROUNDS, _STEPS = 7, 8
_QUICK_ROUNDS, _QUICK_STEPS = 5, 4
_WORK = "work"


@dataclass(frozen=True)
class Options:
    """What is measured, beside the configuration.

    Attributes:
        out: Folder for results; `work` in it holds every run.
        quick: A small model and few rounds.
        config: A configuration of the user's own; None: one is made.
        overrides: `--branch.key VALUE` arguments.
        full: Train all weights.
        gradient_checkpointing: Recompute activations.
        ratios: r / b of each set of arms; none: as configured.
        trainer_device: As `devices.find_devices` takes it.
        server_device: The same.
        rounds: Turns of every arm; None: the default.
        steps: Steps of a turn that count; None: the default.
        restart: Start arms anew for every turn.
    """

    out: Path
    quick: bool = False
    config: Path | None = None
    overrides: Sequence[str] = ()
    full: bool = False
    gradient_checkpointing: bool = False
    ratios: Sequence[Fraction] = ()
    trainer_device: str = "cpu"
    server_device: str = "cpu"
    rounds: int | None = None
    steps: int | None = None
    restart: bool = False

    @property
    def schedule(self) -> Schedule:
        """How many steps are trained.

        Raises:
            ConfigError: too few to measure anything.
        """
        default = (_QUICK_ROUNDS, _QUICK_STEPS) if self.quick else (_ROUNDS, _STEPS)
        rounds = default[0] if self.rounds is None else self.rounds
        steps = default[1] if self.steps is None else self.steps
        if rounds < 1 or steps < 1:
            raise ConfigError(f"--rounds {rounds} of --steps {steps} measure nothing: give at least 1 of each")
        return Schedule(rounds=rounds, steps=steps, restart=self.restart)


def run(options: Options, *, console: Console) -> dict[str, Any]:
    """Run all arms, print tables, draw `timeline.png`, write `result.json`.

    Raises:
        ConfigError: options or a configuration that can't be used.
        SubbatchError: a run failed; its logs are in `work`.
    """
    devices, schedule = find_devices(options.trainer_device, options.server_device), options.schedule
    work = options.out.resolve() / _WORK
    shutil.rmtree(work, ignore_errors=True)
    with ending_on_sigterm():
        base = _base(options, work, console)
        configs = [_with_ratio(base, ratio) for ratio in options.ratios] or [base]
        sets = []
        for number, config in enumerate(configs):
            arms = list(ARMS) if number == 0 else list(MAIN)
            sets.append(_Measured.of(config, arms, devices, schedule, work / f"set-{number}", options.quick, console))
    results = [each.result for each in sets]
    result = {
        **results[0],
        "quick": options.quick,
        "devices": {"trainer": devices.trainer.name, "selector": devices.selector.name},
        "rounds": schedule.rounds,
        "steps_per_round": schedule.steps,
        "sweep": {_ratio(each): each for each in results} if len(results) > 1 else {},
        "config": portable(base, options.out),
        "machine": machine(),
        "versions": versions(),
    }
    write_json(options.out / "result.json", result)
    print_result(result, console)
    draw_arms(sets[0].lines, result, options.out / "timeline.png")
    return result


@dataclass(frozen=True)
class _Measured:
    """One set of arms: the result, and for the picture lines of steps by arm and the steps shown."""

    result: dict[str, Any]
    lines: dict[str, list[dict[str, Any]]]

    @classmethod
    def of(
        cls,
        base: Config,
        arms: Sequence[str],
        devices: Devices,
        schedule: Schedule,
        work: Path,
        quick: bool,
        console: Console,
    ) -> _Measured:
        """Record what the default arm selects, measure memory, then time all arms in turns."""
        r, b = base.selection.sub_batch_size, base.selection.large_batch_size
        console.print(f"r = {r}, b = {b}: {', '.join(arms)}")

        def make(
            name: str,
            folder: Path,
            recording: Path,
            config: Config,
            num_steps: int,
            environment: Mapping[str, str] | None = None,
        ) -> Job:
            arm, made = ARMS[name], ARMS[name].config(config, recording=recording)
            return Job(arm, made, folder, devices, num_steps=num_steps, environment=environment)

        console.print(f"recording {schedule.num_steps} steps of {DEFAULT}, whose rows the floor trains on again")
        recorded = work / "recording"
        with make(DEFAULT, recorded, Path(), base, schedule.num_steps) as job:
            job.start()
            job.finish()
            weights_bytes = job.facts()["weights_bytes"]
        whole = with_values(base.model_dump(), {"train.micro_batch_size": b})
        held = [name for name in arms if not quick or ARMS[name].push_every == 1]
        console.print(f"memory, without gradient accumulation: {memory.STEPS} steps of each arm")
        peaks = memory.measure_peaks(
            lambda name: make(
                name,
                work / "memory" / name,
                work / "memory" / DEFAULT / "train",
                whole,
                memory.STEPS,
                memory.ENVIRONMENT,
            ),
            held,
            devices,
            logs=work / "memory",
        )
        turns = take_turns(
            lambda name, number: make(name, work / f"{name}-{number}", recorded / "train", base, schedule.num_steps),
            arms,
            schedule,
            told=console.print,
        )
        result = summarise(
            turns, peaks, sizes=(r, b), weights_bytes=weights_bytes, counts_push=base.train.lora is False
        )
        return cls(result | {"floor_replays": _replayed(turns)}, {name: each.rows for name, each in turns.items()})


def _replayed(turns: dict[str, Turns]) -> dict[str, int]:
    """How many steps the floor trained on the very rows that the default arm selected, of those both trained."""
    floor, default = ({row["step"]: row["rows"] for row in turns[name].rows} for name in ("floor", DEFAULT))
    shared = floor.keys() & default.keys()
    return {"same": sum(floor[step] == default[step] for step in shared), "of": len(shared)}


def _base(options: Options, work: Path, console: Console) -> Config:
    """What all arms share.

    Raises:
        ConfigError: a configuration that can't be used.
    """
    path = options.config
    if path is None:
        console.print("making a small Phi and rows of MathInstruct's lengths")
        path = make_workload(work / "workload", QUICK if options.quick else FULL)
    config = load_config(path, list(options.overrides))
    values: dict[str, Any] = {}
    if options.full:
        values["train.lora"] = False
    if options.gradient_checkpointing:
        values["train.gradient_checkpointing"] = True
    config = _valid(config, values)
    if config.data.store is None or not config.model.path:
        raise ConfigError(f"{path} names no model.path or no data.store: bench overlap needs both")
    if not config.selection.scores:
        raise ConfigError(f"selection.pick {config.selection.pick!r} scores nothing, so there is nothing to overlap")
    return config


def _with_ratio(config: Config, ratio: Fraction) -> Config:
    """The same sub-batch, out of another large batch."""
    size = Fraction(config.selection.sub_batch_size) / ratio
    return _valid(config, {"selection.large_batch_size": round(size)})


def _valid(config: Config, values: dict[str, Any]) -> Config:
    try:
        return with_values(config.model_dump(), values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']} (given {first['input']!r})") from None


def _ratio(result: dict[str, Any]) -> str:
    return str(Fraction(result["sub_batch_size"], result["large_batch_size"]))


def parse_ratios(text: str | None) -> list[Fraction]:
    """The ratios r / b of a sweep.

    Raises:
        ConfigError: not a list of ratios in (0, 1].
    """
    if text is None:
        return []
    try:
        ratios = [Fraction(part.strip()) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        ratios = []
    if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise ConfigError(f"--sweep {text!r} is no list of ratios above 0 and up to 1: give some such as 1/2,1/4,1/8")
    return ratios
