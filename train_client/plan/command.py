"""`train-client plan`: read costs and layout, predict, simulate where asked to, and say what follows."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from shared.cli import make_console
from shared.errors import ConfigError
from train_client.experiment.collect import write_json
from train_client.plan.arguments import given
from train_client.plan.costs import Costs
from train_client.plan.measured import measured_costs, predict_measured, read_result
from train_client.plan.plan import Plan, make_plan
from train_client.plan.sentences import sentences, trial_sentence
from train_client.plan.settings import PlanSettings, read_settings
from train_client.plan.table import arm_table, comparison_table, cost_table, selector_table

if TYPE_CHECKING:
    from train_client.plan.trial import Trial

PLAN_FILE, PICTURE_FILE = "plan.json", "plan.png"


def run_plan(arguments: argparse.Namespace, console: Console | None = None) -> None:
    """Print a plan and write `plan.json`, with --simulate also `plan.png`.

    Raises:
        ConfigError: costs, a layout or noise that can't be; a folder that can't be written; no matplotlib.
        DataError: what was measured can't be read.
    """
    console = console or make_console()
    settings = read_settings(arguments.costs, given(arguments))
    measured = read_result(arguments.measured) if arguments.measured else None
    costs = settings.costs(measured_costs(measured) if measured else None)
    plan = make_plan(costs, settings.layout(measured=measured is not None))
    _make_folder(arguments.out)
    trial = _simulate(plan, settings, arguments.out / PICTURE_FILE) if arguments.simulate else None
    result = _result(settings, plan, trial)
    if measured is None:
        console.print(_assumptions(settings))
    origins = {name: settings.origin(name, measured=measured is not None) for name in Costs.__dataclass_fields__}
    console.print(cost_table(costs, origins))
    console.print(arm_table(plan, trial.arms if trial else None))
    console.print(selector_table(plan, trial.by_selectors if trial else None))
    if measured is not None:
        predicted = predict_measured(costs, measured["arms"])
        console.print(comparison_table(predicted, measured["arms"]))
        result["compared"] = {
            name: {"predicted": asdict(arm), "measured": measured["arms"][name]} for name, arm in predicted.items()
        }
    for sentence in [*sentences(plan), *([trial_sentence(plan, trial)] if trial else [])]:
        console.print(sentence)
    write_json(arguments.out / PLAN_FILE, result)
    console.print(f"{PLAN_FILE}{f' and {PICTURE_FILE} are' if trial else ' is'} in {arguments.out}")


def _simulate(plan: Plan, settings: PlanSettings, picture: Path) -> Trial:
    """Play the plan and draw it."""
    # Matplotlib takes a while to import, which a plan without a simulation spares.
    try:
        from train_client.plan.picture import draw_plan
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--simulate draws with {error.name}, which isn't installed: pip install 'subbatch[bench]'"
        ) from None
    from train_client.plan.trial import simulate_plan

    trial = simulate_plan(plan, settings.noise(), num_steps=settings.steps, seed=settings.seed)
    draw_plan(plan, trial, picture)
    return trial


def _result(settings: PlanSettings, plan: Plan, trial: Trial | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "settings": settings.model_dump(),
        "costs": asdict(plan.costs),
        "layout": asdict(plan.layout),
        "arms": _dicts(plan.arms),
        "selectors_needed": plan.needed,
        "break_even_price": plan.break_even_price,
        "by_selectors": _dicts(plan.by_selectors),
    }
    if trial:
        result["simulated"] = {
            "arms": _dicts(trial.arms),
            "by_selectors": _dicts(trial.by_selectors),
            "uneven_fraction": trial.uneven_fraction,
        }
    return result


def _dicts(records: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): asdict(record) for name, record in records.items()}


def _assumptions(settings: PlanSettings) -> str:
    """What arithmetic rests on, and how to replace it."""
    forward, backward = settings.passes()
    begin = "Arithmetic" if settings.model_fields_set else "No costs were given, so these are the paper's"
    return (
        f"{begin}: {settings.model_params / 1e9:.3g} billion parameters, of which {settings.trained / 1e9:.3g} are "
        f"trained, rows of {settings.tokens_per_row:g} tokens, {settings.tflops:g} TFLOP/s, backward = "
        f"{backward / forward:.2f} × forward. Ratios hold better than seconds; to measure, run `train-client bench "
        "overlap` and give --measured DIR."
    )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / PLAN_FILE).touch()
    except OSError as error:
        raise ConfigError(f"--out {out} can't be written: {error.strerror}; choose another folder") from None
