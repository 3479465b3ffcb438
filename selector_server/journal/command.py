"""`selector-server journal`: list, verify and export what is in a journal folder, without changing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from selector_server.journal.export import export
from selector_server.journal.survey import run_names, survey, survey_table
from shared.errors import ConfigError, JournalError, RunNotFoundError


def run_journal(action: str, folder: Path, runs: Sequence[str], out: Path | None, console: Console) -> None:
    """Do one of `list`, `verify` and `export`, for some runs or all.

    Raises:
        JournalError: no such folder; with `verify`, a journal that isn't whole.
        RunNotFoundError: a run that isn't there.
        ConfigError: `export` without a file to write, or another action with one.
    """
    known = run_names(folder)
    if missing := sorted(set(runs) - set(known)):
        raise RunNotFoundError(f"journal folder {folder} holds no run {missing[0]!r} (runs: {', '.join(known)})")
    names = sorted(set(runs)) or known
    if (action == "export") != (out is not None):
        raise ConfigError(f"journal {action} with --out {out}: --out FILE belongs to `export`, which needs it")
    if out is not None:
        num_rows = export(folder, names, out)
        console.print(f"{out} holds {num_rows} picked rows of {len(names)} runs")
        return
    found = [survey(folder, name, thorough=action == "verify") for name in names]
    console.print(survey_table(folder, found, thorough=action == "verify"))
    if action == "verify" and (bad := [each.run for each in found if each.faults]):
        raise JournalError(f"{len(bad)} of {len(found)} journals in {folder} aren't whole: {', '.join(bad)}")
