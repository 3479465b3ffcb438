"""Numbers and lists of numbers as people, models and programs write them, read without evaluating anything.

What counts as equal is explained in `equality`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from train_client.evaluate.answers import NUMBER, is_mathematics

_FLOAT_ROUNDING = 1e-9
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_MIXED = re.compile(r"(-?)(\d{1,9})\s+(\d{1,9})/(\d{1,9})")
_PLAIN = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?)(?:\s*/\s*(\d+\.?\d*))?\s*(%)?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(-?\d+)\}")
_UNITS = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}")
_LABEL = re.compile(r"\s*([a-zA-Z]\w*)\s*[:=]\s*")
_SEPARATOR = re.compile(r"\s*(?:,\s*and\b|,|;|\band\b)\s*")
_BRACKETS = ("()", "[]", "{}")


@dataclass(frozen=True)
class Number:
    """A number as it was written.

    Attributes:
        value: Without its percent sign: 25 for 25%.
        integer: The same, exactly, where it is an integer.
        percent: Whether it had a percent sign.
    """

    value: float
    integer: int | None
    percent: bool


@dataclass(frozen=True)
class Values:
    """Numbers in the order they were written, the name before each (x in `x = 3`) or "", and what encloses them."""

    numbers: list[Number]
    labels: list[str]
    brackets: str


def count_values(text: str) -> int:
    """How many numbers an answer lists: 2 for `x = 3, y = 4`; 1 for everything that is no list of numbers."""
    values = read_values(plain(text))
    return len(values.numbers) if values else 1


def plain(text: str) -> str:
    """A text without what changes no value: currency, thousands' commas, units, spacing commands, a full stop."""
    text = text.strip().removesuffix(".")
    if whole := re.fullmatch(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}", text):
        text = whole.group(1)
    for old, new in (("\\left", ""), ("\\right", ""), ("\\!", ""), ("\\,", ""), ("\\%", "%"), ("\\$", "")):
        text = text.replace(old, new)
    text = re.sub(r"[$£€](?=\s*[\d.])", "", _UNITS.sub("", text).replace("−", "-"))
    return _THOUSANDS.sub(lambda found: found.group().replace(",", ""), text).strip()


def core(text: str) -> str:
    """The number in a phrase such as `18 dollars`: the first after the last = or colon; other texts as they are."""
    if is_mathematics(text):
        return text
    for part in (re.split(r"[=:]", text)[-1], text):
        for found in NUMBER.finditer(part):
            number = found.group().strip()
            end = found.start() + len(found.group().rstrip())
            if not part[end : end + 1].isalpha():  # 2abc is no 2
                return number
    return text


def _number(text: str) -> Number | None:
    text = re.sub(r"(?<=\d)\s*(?=\\[dt]?frac)", " ", text.strip())
    text = _FRACTION.sub(r"\1/\2", text)
    if mixed := _MIXED.fullmatch(text):
        sign, whole, above_line, below_line = mixed.groups()
        text = f"{sign}{int(whole) * int(below_line) + int(above_line)}/{below_line}"
    found = _PLAIN.fullmatch(text)
    if not found:
        return None
    above, below, percent = found.groups()
    integer = int(above) if below is None and re.fullmatch(r"[+-]?\d{1,300}", above) else None
    value = float(above)
    if below is not None:
        value = value / float(below) if float(below) else math.nan
        integer = int(value) if math.isfinite(value) and value.is_integer() else None
    elif integer is None and math.isfinite(value) and value.is_integer():
        integer = int(value)
    return Number(value, integer, percent is not None)


def read_values(text: str) -> Values | None:
    """The numbers of a list such as `(3, 4)`, `3 and 4` or `x = 3, y = 4`, or of a single number."""
    brackets = ""
    text = text.strip()
    if text[:1] + text[-1:] in _BRACKETS and len(text) > 1:
        brackets, text = text[0] + text[-1], text[1:-1]
    numbers, labels = [], []
    for part in _SEPARATOR.split(text):
        label = _LABEL.match(part)
        number = _number(part[label.end() :] if label else part)
        if number is None:
            return None
        numbers.append(number)
        labels.append(label.group(1) if label else "")
    return Values(numbers, labels, brackets)


def comparable(right: Values, answer: Values) -> bool:
    """Whether two lists mean the same kind of thing; of `(2, 5)` and `[2, 5]` one may be an interval."""
    return right.brackets == answer.brackets or not (right.brackets and answer.brackets)


def same_values(right: Values, answer: Values, tolerance: float) -> bool:
    """Lists are compared by label where both have labels, in order where the right one is a tuple, else as sets."""
    if len(right.numbers) != len(answer.numbers):
        return False
    theirs = list(answer.numbers)
    if all(right.labels) and all(answer.labels):
        if sorted(right.labels) != sorted(answer.labels) or len(set(right.labels)) != len(right.labels):
            return False
        theirs = [answer.numbers[answer.labels.index(label)] for label in right.labels]
    elif right.brackets != "()" and not all(right.labels):
        return _same_set(right.numbers, theirs, tolerance)
    return all(same_number(one, other, tolerance) for one, other in zip(right.numbers, theirs, strict=True))


def _same_set(right: list[Number], answer: list[Number], tolerance: float) -> bool:
    left = sorted(right, key=lambda number: number.value)
    other = sorted(answer, key=lambda number: number.value)
    return all(same_number(one, two, tolerance) for one, two in zip(left, other, strict=True))


def same_number(right: Number, answer: Number, tolerance: float) -> bool:
    """Whether a number is the right one; a percentage may be meant as its number or as its fraction."""
    if right.integer is not None and answer.integer is not None and right.percent == answer.percent:
        return right.integer == answer.integer
    scales = (1.0, 100.0) if right.percent and not answer.percent else (1.0,)
    scales = (1.0, 0.01) if answer.percent and not right.percent else scales
    is_integer = right.integer is not None
    return any(close(right.value, answer.value * scale, integer=is_integer, tolerance=tolerance) for scale in scales)


def close(right: float, answer: float, *, integer: bool, tolerance: float) -> bool:
    """Whether a number is as near to the right one as `equality` explains."""
    if not (math.isfinite(right) and math.isfinite(answer)):
        return False
    return math.isclose(right, answer, rel_tol=0, abs_tol=abs(right) * (0 if integer else tolerance)) or math.isclose(
        right, answer, rel_tol=_FLOAT_ROUNDING, abs_tol=_FLOAT_ROUNDING
    )
