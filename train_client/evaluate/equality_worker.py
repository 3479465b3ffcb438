"""The process that compares answers with Math-Verify: questions come as lines of JSON, so do its verdicts.

It may take one gigabyte of memory. Its parent kills it when a comparison takes too long, and starts another.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
from contextlib import suppress
from typing import Any

from train_client.evaluate.values import close

_MEMORY_BYTES = 1 << 30
_SYMPY_NAMES = {"pi": r"\pi", "oo": r"\infty"}
# Python's power, as programs print it.
_POWER = re.compile(r"\*\*\s*(-?\w+|\([^()]*\))")


def main() -> None:
    """Answer until standard input ends."""
    from math_verify import parse, verify  # seconds to import, and only this process needs it

    logging.disable(logging.CRITICAL)
    if sys.platform == "linux":
        from train_client.evaluate.jail import address_space

        limit = address_space() + _MEMORY_BYTES
        with suppress(ValueError):  # a lower limit holds already
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            right = _same(parse, verify, question["right"], question["answer"], question["tolerance"])
        except Exception:  # Math-Verify and sympy raise whatever they like on what a model wrote
            right = False
        sys.stdout.write(json.dumps({"right": right}) + "\n")
        sys.stdout.flush()


def _same(parse: Any, verify: Any, right: str, answer: str, tolerance: float) -> bool:
    known, given = _parsed(parse, right), _parsed(parse, answer)
    if not known or not given:
        return False
    if verify(known, given):
        return True
    values = [_real(known[0]), _real(given[0])]
    if None in values:
        return False
    return close(values[0], values[1], integer=bool(known[0].is_integer), tolerance=tolerance)


def _parsed(parse: Any, text: str) -> list[Any]:
    """What a whole text means, as LaTeX.

    Math-Verify's parser for plain text isn't used: it looks for the last number in a text that it can't read, and so
    calls `9 @ 3` three.
    """
    from math_verify import LatexExtractionConfig

    if re.search(r"\d\s+\d", text):  # read as a sum
        return []
    latex = _POWER.sub(r"^{\1}", text.replace("$", ""))
    latex = re.sub(r"(?<![\\\w])(pi|oo)\b", lambda name: _SYMPY_NAMES[name.group()], latex)
    return [found for found in parse(f"${latex}$", [LatexExtractionConfig()]) if not isinstance(found, str)]


def _real(expression: Any) -> Any:
    """The value of an expression without variables, or None."""
    if not getattr(expression, "is_number", False) or not expression.is_real:
        return None
    return float(expression.evalf())
