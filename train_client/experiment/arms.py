"""Every arm of the experiment: what it changes in the base configuration, and which question it helps to answer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from shared.config import Config
from shared.errors import ConfigError
from train_client.run_config import with_values

# Group → the question that its arms answer.
GROUPS: Mapping[str, str] = {
    "main": "does a selected sub-batch beat a random one, both drawn by source, and how near does it get to all rows?",
    "sampling": "what does drawing by source give, with and without selection?",
    "criteria": "which coordinates of the gradient should be compared? (paper, Table 3)",
    "sparsity": "how many coordinates should be compared? (paper, Table 4)",
    "steps": "do twice the steps change the answer? (paper, Table 1 and Figure 1)",
    "staleness": "what does it cost to select with older weights?",
    "probes": "do more probes find a better sub-batch?",
    "ratio": "how does the answer move with the size of the large batch, the sub-batch the same?",
    "weighting": "does it help to weigh a pick by the rows that it stands for?",
    "data": "how does the answer move with near-duplicates and wrong answers in the data?",
}
# What says how rows are found; every arm starts from the defaults of these, whatever the base configuration has.
_METHOD = (
    "preset", "estimator", "gradient_of", "criterion", "adam_features", "soft_labels",
    "pick", "quotas", "keep_small_sources", "weighting", "inclusion",
)  # fmt: skip

_PAPER: dict[str, Any] = {"selection.preset": "paper"}
_COLM: dict[str, Any] = {"selection.preset": "colm"}
_MATCHED: dict[str, Any] = {"selection.preset": "matched"}
_PAPER_EXACT: dict[str, Any] = {"selection.preset": "paper_exact"}
_HARDEST: dict[str, Any] = {"selection.preset": "hardest"}
_PIVOTAL: dict[str, Any] = {
    "selection.estimator": "exact",
    "selection.gradient_of": "last_blocks",
    "selection.pick": "local_pivotal",
    "selection.inclusion": "norm",
}


@dataclass(frozen=True)
class Times:
    """A value of the base configuration, multiplied."""

    key: str
    factor: float

    def __str__(self) -> str:
        return f"{self.key} × {self.factor:g}" if self.factor != 1 else self.key


_RANDOM_R: dict[str, Any] = {"selection.pick": "random"}
_RANDOM_B = _RANDOM_R | {"selection.sub_batch_size": Times("selection.large_batch_size", 1)}
_UNIFORM = {"selection.sampling": "uniform"}
_SELECTING: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("paper", "paper", _PAPER),
    ("paper_exact", "paper, exact gradients", _PAPER_EXACT),
    ("matched", "matched", _MATCHED),
)
_COMPARED = (("random_r", "random r", _RANDOM_R), ("random_b", "random b", _RANDOM_B), *_SELECTING)
_TWICE = {"run.num_steps": Times("run.num_steps", 2)}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: A folder's name.
        title: What tables call it.
        groups: The questions it helps to answer, its own first.
        overrides: "branch.key" → a value, or a multiple of the base configuration's.
        references: The arms that train on random rows, as many as this one's sub-batch and as its large batch.
        variant: Which other world to run in; empty: the base one.
        in_smoke: Whether a smoke test runs it.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    overrides: Mapping[str, Any]
    references: tuple[str, str] = ("random_r", "random_b")
    variant: str = ""
    in_smoke: bool = False


def _main() -> Iterator[Arm]:
    both = ("main", "sampling")
    yield Arm("random_r", "random r", (*both, "steps", "ratio"), _RANDOM_R, in_smoke=True)
    yield Arm("random_b", "random b", (*both, "steps", "ratio"), _RANDOM_B, in_smoke=True)
    uniform = ("random_r_uniform", "random_b_uniform")
    yield Arm(uniform[0], "random r, uniform draws", both, _RANDOM_R | _UNIFORM, uniform, in_smoke=True)
    yield Arm(uniform[1], "random b, uniform draws", both, _RANDOM_B | _UNIFORM, uniform, in_smoke=True)
    also = ("sampling", "steps", "staleness", "ratio")
    yield Arm("paper", "paper", ("main", *also, "criteria", "sparsity", "probes", "weighting"), _PAPER, in_smoke=True)
    yield Arm("colm", "CoLM", ("main",), _COLM, in_smoke=True)
    yield Arm("paper_exact", "paper, exact gradients", ("main", *also), _PAPER_EXACT, in_smoke=True)
    yield Arm("matched", "matched", ("main", *also), _MATCHED, in_smoke=True)
    yield Arm("pivotal", "local pivotal", ("main",), _PIVOTAL, in_smoke=True)
    yield Arm("hardest", "largest losses", ("main",), _HARDEST, in_smoke=True)
    yield Arm("paper_uniform", "paper, uniform draws", ("sampling",), _PAPER | _UNIFORM, uniform, in_smoke=True)
    yield Arm("matched_uniform", "matched, uniform draws", ("sampling",), _MATCHED | _UNIFORM, uniform)


def _of_the_paper() -> Iterator[Arm]:
    for criterion, title in (("weight", "largest |weight|"), ("weight_grad", "largest |weight · gradient|")):
        overrides = _PAPER | {"selection.criterion": criterion}
        name = f"paper_{criterion}"
        yield Arm(name, f"paper, {title}", ("criteria",), overrides, in_smoke=criterion == "weight")
    for part, factor in (("half", 0.5), ("double", 2.0)):
        overrides = _PAPER | {"selection.sparsify_k": Times("selection.sparsify_k", factor)}
        name = f"paper_k_{part}"
        yield Arm(name, f"paper, {part} the coordinates", ("sparsity",), overrides, in_smoke=part == "half")
    twice = ("random_r_2x", "random_b_2x")
    for name, title, overrides in _COMPARED:
        doubled = f"{name}_2x"
        yield Arm(doubled, f"{title}, 2 × steps", ("steps",), overrides | _TWICE, twice, in_smoke=name == "paper")


def _of_ours() -> Iterator[Arm]:
    for name, method, overrides in _SELECTING:
        for staleness in (0, 1, 2, 4):
            title, stale = f"{method}, staleness {staleness}", {"run.staleness": staleness}
            chosen = name == "matched" and staleness == 0
            yield Arm(f"{name}_stale_{staleness}", title, ("staleness",), overrides | stale, in_smoke=chosen)
    for count in (1, 4, 16, 64):
        overrides = _PAPER | {"selection.num_probes": count}
        yield Arm(f"paper_probes_{count}", f"paper, {count} probes", ("probes",), overrides, in_smoke=count == 4)
    for factor in (2, 4, 8):
        larger = {"selection.large_batch_size": Times("selection.sub_batch_size", factor)}
        all_rows = {"selection.sub_batch_size": Times("selection.sub_batch_size", factor)}
        references = (f"random_r_b{factor}r", f"random_b{factor}r")
        title = f"b = {factor} r"
        yield Arm(references[0], f"random r, {title}", ("ratio",), _RANDOM_R | larger, references)
        yield Arm(references[1], f"random b, {title}", ("ratio",), _RANDOM_R | larger | all_rows, references)
        yield Arm(f"paper_b{factor}r", f"paper, {title}", ("ratio",), _PAPER | larger, references)
        exact = f"paper_exact_b{factor}r"
        yield Arm(exact, f"paper, exact gradients, {title}", ("ratio",), _PAPER_EXACT | larger, references)
        name = f"matched_b{factor}r"
        yield Arm(name, f"matched, {title}", ("ratio",), _MATCHED | larger, references, in_smoke=factor == 4)
    gamma = _PAPER | {"selection.weighting": "gamma"}
    yield Arm("paper_gamma", "paper, picks weighted", ("weighting",), gamma, in_smoke=True)


def _of_other_data() -> Iterator[Arm]:
    for variant in ("clean", "duplicates", "wrong"):
        references = (f"random_r_{variant}", f"random_b_{variant}")
        for name, title, overrides in (*_COMPARED, ("hardest", "largest losses", _HARDEST)):
            yield Arm(f"{name}_{variant}", f"{title}, {variant} data", ("data",), overrides, references, variant)


ARMS: Mapping[str, Arm] = {arm.name: arm for arm in (*_main(), *_of_the_paper(), *_of_ours(), *_of_other_data())}


def find_arms(names: Sequence[str]) -> list[Arm]:
    """The arms that these names of arms and groups mean, in the table's order; `all` means all.

    Raises:
        ConfigError: an unknown name, with the nearest known one.
    """
    wanted: set[str] = set()
    for name in names:
        known = [arm.name for arm in ARMS.values() if name in (arm.name, "all", *arm.groups)]
        if not known:
            near = difflib.get_close_matches(name, [*ARMS, *GROUPS, "all"], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"groups are {', '.join(GROUPS)}; see --list"
            raise ConfigError(f"no arm or group is called {name!r}: {hint}")
        wanted |= set(known)
    return [arm for arm in ARMS.values() if arm.name in wanted]


def resolve(base: Config, arm: Arm, *, seed: int) -> Config:
    """The whole configuration of an arm and seed.

    Raises:
        ConfigError: the arm doesn't go together with the base configuration.
    """
    bare = base.model_dump()
    for key in _METHOD:
        del bare["selection"][key]
    values: dict[str, Any] = {"selection.sampling": "inverse_source"} | dict(arm.overrides)
    for name, value in values.items():
        if isinstance(value, Times):
            values[name] = max(1, round(_value(base, value.key) * value.factor))
    values |= {"run.seed": seed, "run.name": f"{arm.name}-seed-{seed}", "run.restart": False, "train.resume": None}
    try:
        return with_values(bare, values)
    except ValidationError as error:
        reason = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
        raise ConfigError(f"arm {arm.name!r} doesn't go with the configuration: {reason}") from None


def _value(base: Config, name: str) -> Any:
    branch, key = name.split(".")
    return getattr(getattr(base, branch), key)
