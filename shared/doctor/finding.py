"""A finding of a doctor, and how findings are shown: a line each, or JSON; problems make the exit code 1."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape

from shared.errors import SubbatchError

Level = Literal["ok", "warning", "problem"]
Check = Callable[[], "Iterable[Finding]"]

_MARKS: dict[Level, str] = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Attributes:
        about: What was looked at, in a word.
        level: A problem keeps the product from working; a warning will, or may.
        what: What is so, with its values; of a problem that one of our errors tells, with what to do.
        remedy: What to do; empty where nothing is to be done, or `what` says it.
    """

    about: str
    level: Level
    what: str
    remedy: str = ""


def examine(checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """Make every check, whatever the others find: an error of ours is a finding, too.

    Args:
        checks: What each is about, and the check itself.
    """
    found: list[Finding] = []
    for about, check in checks:
        try:
            found += check()
        except SubbatchError as error:
            found.append(Finding(about, "problem", " ".join(str(error).split())))
    return found


def show(findings: Sequence[Finding], console: Console, *, as_json: bool) -> None:
    """Print findings.

    Raises:
        SubbatchError: one of them is a problem; its text counts them.
    """
    problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        console.print_json(json.dumps({"problems": problems, "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            console.print(
                f"{_MARKS[finding.level]} [bold]{finding.about:<15}[/]{escape(finding.what)}", highlight=False
            )
            if finding.remedy:
                console.print(f"  {'':<15}→ {escape(finding.remedy)}", highlight=False)
    if problems:
        raise SubbatchError(f"{problems} of {len(findings)} findings are problems: see above what to do")
