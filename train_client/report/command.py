"""`train-client report`: from its arguments to a page, and the main table on the screen."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from shared.errors import ConfigError
from train_client.experiment.results import read_results
from train_client.experiment.summary import make_summary
from train_client.report.evidence import Evidence
from train_client.report.page import render
from train_client.report.tables import Table, main_table
from train_client.report.verdict import judge

REPORT_FILE = "report.html"
_ON_SCREEN = 4


def run_report(folder: Path, out: Path | None, *, console: Console | None = None) -> Path:
    """Write the page of an experiment's results so far.

    Args:
        folder: The experiment's `--out`.
        out: The file to write; None: report.html in the folder.
        console: Where the path and the main table are printed.

    Returns:
        The file.

    Raises:
        DataError: no results there.
        ConfigError: the file can't be written.
    """
    results = read_results(folder)
    evidence = Evidence(results, make_summary(results))
    path = out or folder / REPORT_FILE
    text = render(evidence)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}): give another file with --out") from None
    console = console or Console()
    console.print(_on_screen(main_table(evidence)))
    verdict = judge(evidence)
    console.print(f"{verdict.answer}. {verdict.sentence}", markup=False, highlight=False)
    console.print(f"the report is {path}", markup=False, highlight=False, soft_wrap=True)
    return path


def _on_screen(table: Table) -> RichTable:
    """The first columns of a table: a terminal is narrower than a page."""
    screen = RichTable(table.head)
    for title, note in table.columns[:_ON_SCREEN]:
        screen.add_column(f"{title}\n{note}", justify="right")
    for row in table.rows:
        style = "bold" if row.kind == "best" else ""
        screen.add_row(row.title, *(_text(cell.text, cell.note) for cell in row.cells[:_ON_SCREEN]), style=style)
    return screen


def _text(text: str, note: str) -> str:
    return f"{text}\n{note}" if note else text
