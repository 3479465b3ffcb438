"""Exact configurations: the base as text that can be copied, and what each arm changes in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train_client.experiment.plan import comparable
from train_client.report.evidence import Evidence

_OF_THE_RUN = ("run.seed",)


@dataclass(frozen=True)
class Change:
    """A key that an arm has another value for."""

    key: str
    base: str
    value: str


@dataclass(frozen=True)
class ArmConfig:
    """An arm's configuration: changes, and all of it as JSON."""

    title: str
    name: str
    changes: Sequence[Change]
    text: str


def base_text(evidence: Evidence) -> str:
    """The base configuration as TOML, its missing values as comments."""
    lines: list[str] = []
    for branch, keys in evidence.results.about["config"].items():
        lines += ["", f"[{branch}]"] if lines else [f"[{branch}]"]
        lines += [f"{key} = {_toml(value)}" if value is not None else f"# {key}: none" for key, value in keys.items()]
    return "\n".join(lines)


def arm_configs(evidence: Evidence) -> list[ArmConfig]:
    """Every arm that has a result, by its first seed."""
    base = comparable(evidence.results.about["config"])
    configs = []
    for arm in evidence.summary.arms:
        tree = evidence.config(arm.name)
        mine = comparable(tree)
        changes = [
            Change(key, _toml(base.get(key)), _toml(value))
            for key, value in mine.items()
            if base.get(key) != value and key not in _OF_THE_RUN
        ]
        configs.append(ArmConfig(arm.title, arm.name, changes, json.dumps(tree, indent=1, ensure_ascii=False)))
    return configs


def _toml(value: Any) -> str:
    """A value as TOML writes it."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
