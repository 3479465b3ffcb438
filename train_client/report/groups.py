"""The ablations: for each question that more than one arm helps to answer, a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train_client.experiment.arms import GROUPS
from train_client.experiment.summary import ArmSummary
from train_client.report.canvas import Picture
from train_client.report.evidence import Evidence
from train_client.report.looks import method_of
from train_client.report.shares import Series, Value, setting
from train_client.report.tables import Table, group_table

# Group → its heading, and the configuration's key that it varies.
_HEADINGS: Mapping[str, tuple[str, str]] = {
    "sampling": ("Weighted sampling", "selection.sampling"),
    "criteria": ("Criteria", "selection.criterion"),
    "sparsity": ("Sparsity", "selection.sparsify_k"),
    "steps": ("Twice the steps", "run.num_steps"),
    "staleness": ("Staleness", "run.staleness"),
    "probes": ("Probes", "selection.num_probes"),
    "ratio": ("Size of the large batch", "selection.large_batch_size"),
    "weighting": ("Weights of picks", "selection.weighting"),
    "data": ("Duplicates and wrong answers", ""),
}
_BASE_DATA = "as in the main arms"
# Where the setting moves random r itself, a difference to it would hide what the setting does.
_ABSOLUTE = ("sampling", "steps")


@dataclass(frozen=True)
class Group:
    """A question and what answers it."""

    name: str
    heading: str
    question: str
    table: Table
    picture: Picture | None


def ablations(evidence: Evidence) -> list[Group]:
    """Every group but the main one whose arms have more than one value of what it varies."""
    names = dict.fromkeys([*GROUPS, *(group for arm in evidence.summary.arms for group in arm.groups)])
    found = []
    for name in names:
        arms = evidence.summary.in_group(name)
        if name == "main" or len(arms) < 2:
            continue
        if name == "data":
            # The main arms are the same question on the data as it is.
            methods = {method_of(arm.name) for arm in arms}
            arms = [*(arm for arm in evidence.main if arm.name in methods and arm not in arms), *arms]
        key = _HEADINGS.get(name, (name, ""))[1]
        values = [_value(evidence, arm, name, key) for arm in arms]
        if len(set(values)) > 1:
            found.append(_group(name, arms, values))
    return found


def _group(name: str, arms: Sequence[ArmSummary], values: Sequence[Any]) -> Group:
    heading, key = _HEADINGS.get(name, (name, ""))
    axis = key.rpartition(".")[2] or ("data" if name == "data" else "arm")
    # Numbers in order; words as the arms come, the base's among them first.
    numeric = all(isinstance(value, int | float) for value in values)
    order = sorted(set(values)) if numeric else list(dict.fromkeys(values))
    ranked = sorted(zip(arms, values, strict=True), key=lambda pair: order.index(pair[1]))
    table = group_table([arm for arm, _ in ranked], [str(value) for _, value in ranked], axis)
    absolute = name in _ABSOLUTE
    series = _series(arms, [order.index(value) for value in values], absolute=absolute)
    picture = setting(name, series, [str(value) for value in order], axis, absolute=absolute)
    return Group(name, heading, GROUPS.get(name, ""), table, picture)


def _series(arms: Sequence[ArmSummary], at: Sequence[int], *, absolute: bool) -> list[Series]:
    """A series for each method; the arm whose name is shortest stands for it."""
    methods: dict[str, dict[int, Value]] = {}
    heads: dict[str, ArmSummary] = {}
    for arm, place in zip(arms, at, strict=True):
        point = _loss(arm, place) if absolute else _difference(arm, place)
        if point is None:
            continue
        method = method_of(arm.name)
        methods.setdefault(method, {}).setdefault(place, point)
        if method not in heads or len(arm.name) < len(heads[method].name):
            heads[method] = arm
    return [Series(heads[method], [points[place] for place in sorted(points)]) for method, points in methods.items()]


def _loss(arm: ArmSummary, at: int) -> Value | None:
    loss = arm.means["balanced"]
    if loss.mean is None:
        return None
    error = loss.standard_error or 0.0
    return Value(at, loss.mean, loss.mean - error, loss.mean + error)


def _difference(arm: ArmSummary, at: int) -> Value | None:
    difference = arm.own.differences.get("balanced")
    if arm.name == arm.own.references[0] or difference is None:
        return None
    low, high = difference.drawn or (difference.mean, difference.mean)
    return Value(at, difference.mean, low, high)


def _value(evidence: Evidence, arm: ArmSummary, name: str, key: str) -> Any:
    if name == "data":
        return arm.variant or _BASE_DATA
    if not key:
        return arm.title
    branch, leaf = key.split(".")
    return evidence.config(arm.name)[branch][leaf]
