"""`train-client bench`: from its arguments to a folder with `result.json` and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console

from shared.cli import make_console
from shared.errors import ConfigError


def run_bench(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Run the command.

    Raises:
        ConfigError: wrong arguments.
        SubbatchError: a run failed.
    """
    console = make_console()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {arguments.out} can't be written: {error.strerror}; choose another folder") from None
    if arguments.name == "overlap":
        _overlap(arguments, rest, console)
    else:
        if rest or arguments.config:
            raise ConfigError(f"bench {arguments.name} takes no configuration (given {arguments.config} {list(rest)})")
        module = import_module(f"train_client.bench.{arguments.name}")
        module.run(out=arguments.out, quick=arguments.quick, console=console)
    console.print(f"result.json and pictures are in {arguments.out}", soft_wrap=True, markup=False)


def _overlap(arguments: argparse.Namespace, rest: Sequence[str], console: Console) -> None:
    from train_client.bench.overlap import Options, parse_ratios, run

    options = Options(
        out=arguments.out,
        quick=arguments.quick,
        config=arguments.config,
        overrides=rest,
        full=arguments.full,
        gradient_checkpointing=arguments.gradient_checkpointing,
        ratios=parse_ratios(arguments.sweep),
        trainer_device=arguments.trainer_device,
        server_device=arguments.server_device,
        rounds=arguments.rounds,
        steps=arguments.steps,
        restart=arguments.restart,
    )
    run(options, console=console)
