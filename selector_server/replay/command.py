"""`selector-server replay`: a run's journal, a store, and where asked for a model, to a table or JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

import torch
from rich.console import Console
from rich.table import Table

from selector_server.agreement import require_same_fingerprints
from selector_server.engine import SelectionEngine
from selector_server.journal.survey import open_run
from selector_server.replay.check import Replayer
from selector_server.replay.finding import Finding, StepReport
from selector_server.run_engine import build_engine
from selector_server.run_state import RunState
from selector_server.scale_out.place import Place
from shared.config import Config
from shared.dataset import Store
from shared.errors import ConfigError, JournalError
from shared.model import base_fingerprint, load_base_model
from shared.records import Fingerprints

_STYLES = {"equal": "green", "differs": "bold red", "unchecked": "yellow"}


def run_replay(
    name: str,
    config: Config,
    *,
    from_step: int,
    to_step: int | None,
    rescore: bool,
    as_json: bool,
    console: Console,
) -> None:
    """Compute a run's selections again, and print what is equal, what differs, and what could not be checked.

    Args:
        name: The run.
        config: The server's journal and device, the data's store, and to rescore the model are used.
        from_step: The first step to check.
        to_step: The last one; None: the last that has a selection.
        rescore: Whether to score again where the weights are kept.
        as_json: JSON on standard output instead of a table.
        console: Where the table goes.

    Raises:
        JournalError: a step differs, or the journal is damaged or its chain broken.
        SubbatchError: the run, the store or the model isn't there, or isn't the one of the run.
    """
    run = open_run(config.server.journal, name)
    if config.data.store is None:
        raise ConfigError("data.store is not set: give the folder of the store that the run was trained with")
    store = Store.open(config.data.store)
    device = Place().device(config.server.device)
    last = run.next_step - 1 if to_step is None else to_step
    if not 0 <= from_step <= last < run.info.timing.num_steps:
        raise ConfigError(
            f"steps {from_step} to {last} can't be replayed: run {name!r} has {run.info.timing.num_steps} steps, "
            f"{run.next_step} of them selected"
        )
    engine = _engine(run, store, config, device) if rescore and run.info.selection.scores else None
    reports = list(Replayer(run, store, device=device, engine=engine).check(range(from_step, last + 1)))
    if as_json:
        sys.stdout.write(json.dumps(_as_json(run, reports), indent=1) + "\n")
    else:
        console.print(_table(name, reports))
        console.print(
            f"chain of selections intact; {run.num_set_aside} selections that rewinds set aside are in it, and were "
            "not computed again"
        )
    if different := [report.step for report in reports if report.differs]:
        raise JournalError(
            f"run {name!r}: {len(different)} of {len(reports)} steps differ, the first is step {different[0]}"
        )


def _engine(run: RunState, store: Store, config: Config, device: torch.device) -> SelectionEngine:
    if not config.model.path:
        raise ConfigError("model.path is not set: --rescore needs the model that the run was trained with")
    model = load_base_model(config.model, device)
    mine = Fingerprints(store.fingerprint, run.info.fingerprints.tokenizer, base_fingerprint(model))
    require_same_fingerprints(mine, run.info.fingerprints, left="this configuration", right=f"run {run.info.name!r}")
    return build_engine(model, store, run.info)


def _table(name: str, reports: Sequence[StepReport]) -> Table:
    """One row for steps in a row of which the same is to be said."""
    table = Table(title=f"replay of run {name}: steps {reports[0].step} to {reports[-1].step}")
    for column in ("steps", "draw", "scores", "pick"):
        table.add_column(column, overflow="fold")
    for steps, parts in _ranges(reports):
        shown = (
            f"[{_STYLES[part.verdict]}]{'bit-equal' if part.verdict == 'equal' else part.verdict}[/]"
            + (f": {part.why}".replace("[", r"\[") if part.why else "")
            for part in parts
        )
        table.add_row(str(steps[0]) if len(steps) == 1 else f"{steps[0]}–{steps[-1]}", *shown)
    return table


def _ranges(reports: Sequence[StepReport]) -> Iterator[tuple[list[int], tuple[Finding, ...]]]:
    for parts, group in groupby(reports, key=lambda report: (report.draw, report.scores, report.pick)):
        yield [report.step for report in group], parts


def _as_json(run: RunState, reports: Sequence[StepReport]) -> dict[str, object]:
    verdicts = {part: Counter(report.parts[part].verdict for report in reports) for part in reports[0].parts}
    return {
        "run": run.info.name,
        "incarnation": run.incarnation,
        "set_aside": run.num_set_aside,
        "summary": {part: dict(counter) for part, counter in verdicts.items()},
        "steps": [asdict(report) for report in reports],
    }
