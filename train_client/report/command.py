"""`train-client report`: from its arguments to a page, and the main table on the screen."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from shared.cli import make_console
from shared.errors import ConfigError
from train_client.experiment.results import read_results
from train_client.experiment.summary import make_summary
from train_client.experiment.table import summary_table
from train_client.report.evidence import Evidence
from train_client.report.verdict import judge

REPORT_FILE = "report.html"


def run_report(folder: Path, out: Path | None, *, console: Console | None = None, with_table: bool = True) -> Path:
    """Write the page of an experiment's results so far.

    Args:
        folder: The experiment's `--out`.
        out: The file to write; None: report.html in the folder.
        console: Where the main table, the verdict and the path are printed.
        with_table: Whether the table is.

    Returns:
        The file.

    Raises:
        DataError: no results there.
        ConfigError: the file can't be written, or what draws it isn't installed.
    """
    results = read_results(folder)
    evidence = Evidence(results, make_summary(results))
    try:
        from train_client.report.page import render
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a report needs {error.name}, which isn't installed: pip install 'subbatch[report]'"
        ) from None
    path = out or folder / REPORT_FILE
    _write(path, render(evidence))
    console = console or make_console()
    if with_table:
        console.print(summary_table(replace(evidence.summary, arms=tuple(evidence.main))))
    verdict = judge(evidence)
    console.print(f"{verdict.answer}. {verdict.sentence}", markup=False, highlight=False)
    console.print(f"the report is {path}", markup=False, highlight=False, soft_wrap=True)
    return path


def _write(path: Path, text: str) -> None:
    """Write the file as a whole or not at all.

    Raises:
        ConfigError: it can't be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}): give another file with --out") from None
