"""The options of `train-client experiment`. Imports nothing heavy, since every command of `train-client` reads this."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shared.errors import ConfigError

_SCALES = ("micro", "phi2")
_SMOKE_STEPS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command, apart from `--branch.key VALUE`."""
    parser.add_argument("name", choices=["paper"], help="which experiment")
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("--config", type=Path, metavar="FILE", help="TOML file that the arms change")
    base.add_argument("--scale", choices=_SCALES, help="micro makes its own world for two cores; phi2 is the paper's")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for results; finished runs in it are kept")
    parser.add_argument("--arms", metavar="NAME,...", help="arms and groups, or all (default: experiment.arms)")
    parser.add_argument("--seeds", metavar="N|N,N,...", help="how many, or which (default: experiment.seeds)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each run, in place of run.num_steps")
    parser.add_argument("--smoke", action="store_true", help="one arm of each kind, one seed, few steps")
    parser.add_argument("--keep", action="store_true", help="keep journals, weights and answers of finished runs")
    parser.add_argument("--list", action="store_true", help="show arms and groups, and run nothing")


def from_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the short options say, "branch.key" → value."""
    given: dict[str, Any] = {}
    if arguments.arms is not None:
        given["experiment.arms"] = tuple(name.strip() for name in arguments.arms.split(",") if name.strip())
    if arguments.seeds is not None:
        try:
            numbers = [int(part) for part in arguments.seeds.split(",") if part.strip()]
        except ValueError:
            numbers = []
        if not numbers or min(numbers) < 0:
            raise ConfigError(f"--seeds {arguments.seeds!r} is neither how many nor which: give 5, or 0,1,4")
        alone = "," not in arguments.seeds
        given["experiment.seeds"] = tuple(range(numbers[0])) if alone else tuple(dict.fromkeys(numbers))
        if not given["experiment.seeds"]:
            raise ConfigError("--seeds 0 runs nothing: give how many, or which, such as 0,")
    if arguments.steps is not None:
        given["run.num_steps"] = arguments.steps
    elif arguments.smoke and arguments.scale != "micro":
        given["run.num_steps"] = _SMOKE_STEPS
    return given
