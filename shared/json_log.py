"""Log lines as JSON objects, one a line, for whatever collects them; `log.format = "json"`.

Our own lines name what they are about ("run %s: step %d: ..."), so those values become fields without being said twice.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timezone
from typing import Any

_FIELDS = ("run", "step", "rank", "version", "incarnation")
_PLACE = re.compile(r"(?:\b(\w+) )?%(?:\.\d+)?[a-z%]")


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time (UTC), level, logger, message, and what it is about.

    A record about a run, a step, a rank, a weights version or an incarnation has fields of these names. `exception`
    holds a traceback.
    """

    def __init__(self, **fields: str | int) -> None:
        """`fields` stand on every line: which end and which process this is."""
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
            **what_it_is_about(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def what_it_is_about(record: logging.LogRecord) -> dict[str, str | int]:
    """The run, step and so on of a record, by the words that stand before its arguments."""
    if not isinstance(record.args, tuple) or not isinstance(record.msg, str):
        return {}
    words = [match[1] for match in _PLACE.finditer(record.msg) if not match[0].endswith("%%")]
    if len(words) != len(record.args):  # a template that isn't one of ours
        return {}
    pairs = zip(words, record.args, strict=True)
    return {word: value for word, value in pairs if word in _FIELDS and isinstance(value, (str, int))}


def log_as_json(**fields: str | int) -> None:
    """Let every handler of the root logger write JSON; `fields` stand on every line. Warnings become lines, too."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter(**fields))
    logging.captureWarnings(True)


def logs_json() -> bool:
    """Whether log lines are JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
