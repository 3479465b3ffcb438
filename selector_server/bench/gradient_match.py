"""How well a sub-batch's gradient stands in for the large batch's and for the population's, for every way of picking.

    selector-server bench gradient-match --out DIR [--quick] [--config run.toml]

At several points of a training run, large batches are drawn and each arm picks its sub-batch with the product's own
engine. Truth is every row's gradient over all trainable weights, by back-propagation. Errors are root mean squares
over large batches, relative to the gradient they are compared with; the bias is the norm of the mean of g_S - g_M.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from selector_server.bench.gradient_errors import Errors, Tally, over_points
from selector_server.bench.paired import median_ratio, time_in_turns, write_result
from selector_server.bench.row_gradients import population_gradient, require_memory, row_gradients, trained_weights
from selector_server.bench.shared_scores import SharedScores, SharingEngine
from selector_server.bench.training_run import World, points, synthetic_world, users_world
from selector_server.engine import SelectionEngine
from shared.config import Config
from shared.dataset import Store
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig

_SEED = 11
_EXACT = {"estimator": "exact", "gradient_of": "last_blocks"}
_PROBES = {"estimator": "exact", "num_probes": 16}

# What each arm changes of the config; `r` and `b` stand for the setting's sizes.
ARMS: dict[str, dict[str, Any]] = {
    "random_r": {"pick": "random"},
    "random_2r": {"pick": "random", "sub_batch_size": "2r"},
    "random_b": {"pick": "random", "sub_batch_size": "b"},
    "random_stratified": {"pick": "random_stratified"},
    "paper": {"preset": "paper"},
    "colm": {"preset": "colm"},
    "paper_exact": {"preset": "paper_exact"},
    "matched": {"preset": "matched"},
    "hardest": {"preset": "hardest"},
    "paper + gamma": {"weighting": "gamma"},
    "paper, jvp": {"estimator": "jvp"},
    "paper, |weight|": {"criterion": "weight"},
    "paper, |weight · grad|": {"criterion": "weight_grad"},
    "paper + Adam": {"adam_features": True},
    "paper + soft labels": {"soft_labels": True},
    "paper, proportional": {"quotas": "proportional"},
    "paper, balanced": {"quotas": "balanced"},
    "16 probes, facility location": {**_PROBES},
    "16 probes, facility location + gamma": {**_PROBES, "weighting": "gamma"},
    "16 probes, local pivotal": {**_PROBES, "pick": "local_pivotal", "inclusion": "norm"},
    "16 probes, matching pursuit": {**_PROBES, "pick": "matching_pursuit"},
    "exact, facility location + gamma": {**_EXACT, "weighting": "gamma"},
    "exact, clusters": {**_EXACT, "pick": "clusters"},
    "exact, local pivotal": {**_EXACT, "pick": "local_pivotal", "inclusion": "norm"},
    "exact, local pivotal, equal": {**_EXACT, "pick": "local_pivotal"},
    "exact, cube": {**_EXACT, "pick": "cube", "inclusion": "norm"},
    "matched, no feedback": {"preset": "matched", "feedback": 0.0},
    "matched, 2 blocks": {"preset": "matched", "num_blocks": 2},
}
# Arms that no other arm shares its scores with; `--quick` leaves them out.
_SLOW_ARMS = ("hardest", "paper, jvp", "paper + soft labels", "matched, 2 blocks")


@dataclass(frozen=True)
class Plan:
    """How much is measured, of which arms; `points` are steps of the training run, `rounds` time the costs."""

    sub_batch_size: int
    large_batches: int
    population: int
    points: list[int]
    rounds: int
    arms: dict[str, dict[str, Any]]


_QUICK_ARMS = {name: changes for name, changes in ARMS.items() if name not in _SLOW_ARMS}
QUICK = Plan(sub_batch_size=16, large_batches=48, population=512, points=[60], rounds=4, arms=_QUICK_ARMS)
FULL = Plan(sub_batch_size=32, large_batches=48, population=4096, points=[20, 200], rounds=3, arms=ARMS)


def run(*, out: Path, quick: bool, console: Console, config: Config | None = None) -> dict[str, Any]:
    """Measure, print a table for each setting, draw `gradient-match.png` and write `result.json` under `out`.

    Raises:
        ConfigError: `out` can't be written, a config without a store, or a model whose gradients don't fit in memory.
    """
    plan, threads = QUICK if quick else FULL, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            world = users_world(config) if config else synthetic_world(Path(folder), quick=quick, console=console)
            settings = _measure(world, plan, console)
    finally:
        torch.set_num_threads(threads)
    for setting in settings:
        console.print(_table(setting))
    result = {"plan": dataclasses.asdict(plan), "quick": quick, "settings": settings}
    write_result(out, result)
    from selector_server.bench.gradient_match_plot import draw

    draw(settings, out / "gradient-match.png")
    return result


def arm_config(changes: Mapping[str, Any], *, b: int, r: int) -> SelectionConfig:
    """The config of an arm at one setting."""
    sizes = {"2r": 2 * r, "b": b}
    size = sizes.get(changes.get("sub_batch_size", ""), r)
    return SelectionConfig(**{**changes, "large_batch_size": b, "sub_batch_size": size})


def _measure(world: World, plan: Plan, console: Console) -> list[dict[str, Any]]:
    r = plan.sub_batch_size
    sizes = [(2 * r, r), (4 * r, r)]
    found: dict[tuple[int, int], list[dict[str, Errors]]] = {size: [] for size in sizes}
    costs: dict[tuple[int, int], dict[str, float]] = {}
    for done, model in points(world, plan.points):
        require_memory(trained_weights(model), rows=4 * r, arms=len(plan.arms))
        console.print(f"after {done} steps of training: {plan.large_batches} large batches of each size")
        population = population_gradient(model, world.store, plan.population)
        for b, _ in sizes:
            found[b, r].append(_at_point(model, world.store, population, plan, b=b))
            if done == plan.points[-1]:
                costs[b, r] = _costs(model, world.store, plan, b=b)
    return [_setting(b, plan, found[b, r], costs[b, r]) for b, r in sizes]


def _at_point(
    model: Any, store: Store, population: npt.NDArray[np.float64], plan: Plan, *, b: int
) -> dict[str, Errors]:
    """Every arm's errors over the same large batches."""
    configs = {name: arm_config(changes, b=b, r=plan.sub_batch_size) for name, changes in plan.arms.items()}
    shared = SharedScores()
    engines = {
        name: SharingEngine(model, store, config, run=name, seed=_SEED, shared=shared)
        for name, config in configs.items()
    }
    histories = dict.fromkeys(configs, b"")
    tally = {name: Tally(population) for name in configs}
    for step in range(plan.large_batches):
        rows = draw_large_batch(store.source_rows, configs["random_b"], seed=_SEED, step=step)
        gradients = row_gradients(model, store, rows)
        large = gradients.mean(axis=0)
        shared.clear()
        place = {int(row): at for at, row in enumerate(rows)}
        for name, engine in engines.items():
            selected = engine.select(step, 0, histories[name])
            histories[name], selection = selected.history, selected.selection
            picked = gradients[[place[int(row)] for row in selection.index]]
            tally[name].add(large, selection.weight.astype(np.float64) @ picked / b)
    return {name: tally[name].errors() for name in configs}


def _costs(model: Any, store: Store, plan: Plan, *, b: int) -> dict[str, float]:
    """Each arm's time for a selection, relative to the paper preset's; arms that score nothing cost almost nothing."""
    engines = {
        name: SelectionEngine(model, store, arm_config(changes, b=b, r=plan.sub_batch_size), run=name, seed=_SEED)
        for name, changes in plan.arms.items()
    }
    selecting = {name: partial(engine.select, 0, 0) for name, engine in engines.items()}
    seconds = time_in_turns(selecting, rounds=plan.rounds, warmup=0)
    return {name: median_ratio(seconds[name], seconds["paper"]) for name in plan.arms}


def _setting(b: int, plan: Plan, found: Sequence[Mapping[str, Errors]], costs: Mapping[str, float]) -> dict[str, Any]:
    """One setting's part of the result: over all points, and at each."""
    arms = {name: dataclasses.asdict(over_points([point[name] for point in found])) for name in plan.arms}
    at_points = {
        str(step): {name: dataclasses.asdict(errors) for name, errors in point.items()}
        for step, point in zip(plan.points, found, strict=True)
    }
    with_costs = {name: {**errors, "cost": costs[name]} for name, errors in arms.items()}
    return {"b": b, "r": plan.sub_batch_size, "arms": with_costs, "points": at_points}


def _table(setting: Mapping[str, Any]) -> Table:
    arms, r = setting["arms"], setting["r"]
    base, double = arms["random_r"]["error_large_batch"], arms["random_2r"]["error_population"]
    title = (
        f"r = {r} of b = {setting['b']}: errors relative to the gradient that is matched, cost to the paper preset's"
    )
    table = Table(title=title)
    table.add_column("arm", no_wrap=True)
    for column in ("large batch", "x random r", "bias", "floor", "population", "x random 2r", "cost"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, arm in arms.items():
        error, population = arm["error_large_batch"], arm["error_population"]
        table.add_row(
            name,
            f"{error:.3f} ± {arm['stderr']:.3f}",
            f"{error / base:.2f}",
            f"{arm['bias_large_batch']:.3f}",
            f"{arm['bias_floor']:.3f}",
            f"{population:.3f}",
            f"{population / double:.2f}",
            f"{arm['cost']:.2f}",
        )
    return table
