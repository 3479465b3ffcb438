"""`train-client experiment`: from its arguments to a folder of results, a summary and a report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from shared.cli import make_console
from shared.config import Config, load_config
from shared.errors import ConfigError, SubbatchError
from train_client.evaluate.equality import require_math_verify
from train_client.experiment.arguments import from_flags
from train_client.experiment.arms import find_arms
from train_client.experiment.folder import describe, held
from train_client.experiment.listing import print_arms
from train_client.experiment.plan import make_plan
from train_client.experiment.runner import run_all
from train_client.process import ending_on_sigterm
from train_client.run_config import with_values

_PHI2 = Path(__file__).with_name("phi2.toml")


def run_experiment(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Run the command.

    Raises:
        ConfigError: wrong arguments, or arms that can't be run.
        SubbatchError: some runs failed; the others are finished.
    """
    console = make_console()
    given = from_flags(arguments)
    if arguments.list:
        path = arguments.config or (_PHI2 if arguments.scale == "phi2" else None)
        print_arms(console, _with(load_config(path, list(rest)), given), given.get("experiment.arms", ("all",)))
        return
    if arguments.out is None:
        raise ConfigError("--out is missing: give the folder for results")
    find_arms(given.get("experiment.arms", ()))  # a wrong name costs no minutes of making a world
    with held(arguments.out) as out, ending_on_sigterm():

        def base(variant: str) -> Config:
            return _with(load_config(_base_file(arguments, out, variant, console), list(rest)), given)

        bases = {"": base("")}
        if bases[""].experiment.questions:
            require_math_verify()
        arms = find_arms(_names(bases[""], given, smoke=arguments.smoke))
        if arguments.smoke:
            arms = [arm for arm in arms if arm.in_smoke or "experiment.arms" in given]
        if arguments.scale == "micro":
            bases |= {variant: base(variant) for variant in sorted({arm.variant for arm in arms} - {""})}
        seeds = (0,) if arguments.smoke and "experiment.seeds" not in given else bases[""].experiment.seeds
        plan = make_plan(arms, bases, seeds, out=out)
        described = {"name": arguments.name, "scale": arguments.scale or "", "smoke": arguments.smoke}
        describe(out, **described, base=bases[""], plan=plan)
        failures = run_all(plan, console=console, keep=arguments.keep)
        _conclude(out, console)
    if failures:
        raise SubbatchError(
            f"{len(failures)} of {len(plan.runs)} runs failed, their logs are in {out / 'work'}; give the same command "
            f"again to run them again: {'; '.join(failures)}"
        )


def _with(config: Config, given: Mapping[str, Any]) -> Config:
    try:
        return with_values(config.model_dump(), given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']} (given {first['input']!r})") from None


def _names(base: Config, given: Mapping[str, Any], *, smoke: bool) -> tuple[str, ...]:
    return ("all",) if smoke and "experiment.arms" not in given else base.experiment.arms


def _base_file(arguments: argparse.Namespace, out: Path, variant: str, console: Console) -> Path:
    """The TOML file that the arms change."""
    if arguments.config:
        return Path(arguments.config)
    if arguments.scale == "phi2":
        return _PHI2
    from train_client.experiment.micro import make_micro_world

    require_math_verify()  # every world asks questions
    return make_micro_world(out / "world", smoke=arguments.smoke, console=console, variant=variant)


def _conclude(out: Path, console: Console) -> None:
    """Write and show what the finished runs say; the page too, where what draws it is installed."""
    if not any(out.glob("arms/*/*.json")):
        return
    from train_client.experiment.summary import summarise
    from train_client.experiment.table import summary_table
    from train_client.report.command import run_report

    console.print(summary_table(summarise(out)))
    console.print(f"results are in {out}", soft_wrap=True, markup=False)
    try:
        run_report(out, None, console=console, with_table=False)
    except ConfigError as error:  # the results are whole without it
        console.print(str(error), soft_wrap=True, markup=False)
