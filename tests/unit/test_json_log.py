"""Log lines as JSON: what the lines of real processes say, read by a JSON parser."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from pathlib import Path

import pytest

from shared.json_log import JsonFormatter
from tests.support import run_cli


def formatted(message: str, *args: object, **fields: object) -> dict[str, object]:
    record = logging.LogRecord("here", logging.WARNING, __file__, 1, message, args, None)
    for name, value in fields.items():
        setattr(record, name, value)
    line = JsonFormatter(rank=3).format(record)
    assert "\n" not in line
    return json.loads(line)


def test_what_a_line_is_about_becomes_fields() -> None:
    line = formatted("run %s: step %d: %s silent for %.0f s", "phi2", 7, "rank 1", 2.5)
    assert {**line, "time": ""} == {
        "time": "",
        "level": "warning",
        "logger": "here",
        "message": "run phi2: step 7: rank 1 silent for 2 s",
        "rank": 3,
        "run": "phi2",
        "step": 7,
    }
    assert datetime.fromisoformat(str(line["time"])).utcoffset().total_seconds() == 0


@pytest.mark.parametrize(
    ("message", "args"),
    [("100 %% of run %s\n", ("a",)), ("%(run)s", ({"run": "a"},)), ("run %5s", ("a",)), ('"\u2028', ())],
)
def test_lines_that_arent_ours_are_whole(message: str, args: tuple[object, ...]) -> None:
    assert formatted(message, *args)["message"] == (message % args[0] if "(" in message else message % args)


def test_an_exception_is_one_field() -> None:
    try:
        raise ValueError("run\nover")
    except ValueError:
        line = formatted("step %d failed", 3, exc_info=sys.exc_info())
    assert line["step"] == 3
    assert "ValueError: run\nover" in str(line["exception"])


def test_a_command_that_fails_says_so_in_json(tmp_path: Path) -> None:
    done = run_cli("selector_server", "serve", "--log.format", "json", "--data.store", tmp_path / "none")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 2
    assert lines[-1]["level"] == "critical"
    assert "model.path is not set" in lines[-1]["message"]
