"""Which runs an experiment consists of, and which of them are finished already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.config import Config
from shared.errors import ConfigError
from train_client.experiment.arms import Arm, resolve

RESULT_FORMAT = 1
# What says where and how a run happens, not what is trained.
_ELSEWHERE = (
    "server", "client", "experiment.arms", "experiment.seeds", "experiment.trainer_devices",
    "experiment.selector_devices", "experiment.parallel", "experiment.gallery_steps", "run.name", "run.restart",
    "train.output", "train.threads", "train.save_every", "train.resume", "train.trackers",
)  # fmt: skip
_INSIDE = "OUT/"
_MOST_SHOWN = 4


@dataclass(frozen=True)
class Run:
    """One arm with one seed: what is to be run, where it works, and where its result goes."""

    arm: Arm
    seed: int
    config: Config
    out: Path

    @property
    def result(self) -> Path:
        """The file that says that this run is finished."""
        return self.out / "arms" / self.arm.name / f"seed-{self.seed}.json"

    @property
    def work(self) -> Path:
        """The folder for everything while it runs, and for its logs afterwards."""
        return self.out / "work" / self.arm.name / f"seed-{self.seed}"

    @property
    def scores(self) -> bool:
        """Whether it keeps the selector's device busy."""
        return self.config.selection.scores

    @property
    def cost(self) -> float:
        """How long it takes relative to others: three passes a trained row, and one a scored one."""
        selection = self.config.selection
        scored = selection.large_batch_size if self.scores else 0
        return self.config.run.num_steps * (3 * selection.sub_batch_size + scored)


@dataclass(frozen=True)
class Plan:
    """All runs, seed by seed; those that have a result already are not to be run again."""

    arms: list[Arm]
    runs: list[Run]
    finished: list[Run]

    @property
    def to_do(self) -> list[Run]:
        """What is left to run, in order."""
        done = {run.result for run in self.finished}
        return [run for run in self.runs if run.result not in done]


def make_plan(arms: Sequence[Arm], bases: Mapping[str, Config], seeds: Sequence[int], *, out: Path) -> Plan:
    """Resolve every arm for every seed and look for finished ones.

    Args:
        arms: What to run.
        bases: Variant of the world → its base configuration; the empty one is there.
        seeds: Seeds of every arm.
        out: The experiment's folder.

    Raises:
        ConfigError: an arm that can't be run, or a result in the way that another configuration gave.
    """
    for arm in arms:
        if arm.variant not in bases:
            raise ConfigError(
                f"arm {arm.name!r} needs other data, which only --scale micro makes: leave it and group 'data' out"
            )
    distinct = merge_equal(arms, bases, out=out)
    runs = [Run(arm, seed, resolve(bases[arm.variant], arm, seed=seed), out) for seed in seeds for arm in distinct]
    return Plan(distinct, runs, [run for run in runs if _is_finished(run)])


def merge_equal(arms: Sequence[Arm], bases: Mapping[str, Config], *, out: Path) -> list[Arm]:
    """Arms that are the same with this base become one, the first, which then belongs to the groups of all."""
    kept: dict[str, Arm] = {}
    renamed: dict[str, str] = {}
    for arm in arms:
        config = resolve(bases[arm.variant], arm, seed=0)
        identity = json.dumps([arm.variant, comparable(portable(config, out))], sort_keys=True)
        first = kept.setdefault(identity, arm)
        renamed[arm.name] = first.name
        kept[identity] = replace(first, groups=tuple(dict.fromkeys((*first.groups, *arm.groups))))
    merged = []
    for arm in kept.values():
        low, high = (renamed.get(name, name) for name in arm.references)
        merged.append(replace(arm, references=(low, high)))
    return merged


def portable(config: Config, out: Path) -> dict[str, Any]:
    """A configuration as JSON, paths inside the experiment's folder written so that the folder can be moved."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    roots = {f"{out}/", f"{out.resolve()}/"}
    return {branch: _inside(keys, roots) for branch, keys in tree.items()}


def _inside(value: Any, roots: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _inside(item, roots) for key, item in value.items()}
    if isinstance(value, list):
        return [_inside(item, roots) for item in value]
    if isinstance(value, str):
        for root in roots:
            if value.startswith(root):
                return _INSIDE + value.removeprefix(root)
    return value


def comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common to be the same run, "branch.key" → value."""
    flat = {f"{branch}.{key}": value for branch, keys in tree.items() for key, value in (keys or {}).items()}
    return {
        name: value
        for name, value in flat.items()
        if not any(name == other or name.startswith(other + ".") for other in _ELSEWHERE)
    }


def _is_finished(run: Run) -> bool:
    """Whether a run has a result.

    Raises:
        ConfigError: it has one, of another configuration.
    """
    if not run.result.exists():
        return False
    remedy = f"choose another --out, or delete {run.result} to run it again"
    try:
        found = json.loads(run.result.read_text())
        if found["format"] != RESULT_FORMAT:
            raise ConfigError(f"{run.result} has format {found['format']}, not {RESULT_FORMAT}: {remedy}")
        # Keys that this release has and the one that wrote the result had not: it ran as their defaults say.
        then = Config.model_validate(found["config"]).model_dump(mode="json")
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"{run.result} is not the result of a run ({error}): {remedy}") from None
    old, new = comparable(then), comparable(portable(run.config, run.out))
    if differing := [name for name in new if old.get(name) != new[name]]:
        shown = ", ".join(f"{name} {old.get(name)!r}, now {new[name]!r}" for name in differing[:_MOST_SHOWN])
        more = f" and {len(differing) - _MOST_SHOWN} more" if len(differing) > _MOST_SHOWN else ""
        raise ConfigError(f"{run.result} was run with {shown}{more}: {remedy}")
    return True
