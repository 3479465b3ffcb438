"""What a model wrote → the program in it, and the answer it gives.

Extraction never looks at the right answer, except at how many values that has (`printed_answer`). The result is what
the model claims in its own words, such as `18 dollars`; `equality` decides what that is worth.
"""

from __future__ import annotations

import re
import textwrap

# A model that wasn't taught to stop goes on with a question of its own.
_NEXT_QUESTION = re.compile(r"^###\s*(?:Instruction|Input|Question)", re.MULTILINE | re.IGNORECASE)
_FENCE = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = {"python", "py", "python3", ""}
# A line of code that prints: English text may well mention print(…) in the middle of a sentence.
_PRINTS = re.compile(r"^(?:.*;|[ \t]*(?:if|elif|else|for|while|try|with)\b.*:)?[ \t]*print[ \t]*\(", re.MULTILINE)

_ANSWER_IS = re.compile(r"\banswer[ \t]*(?:is|[:=])(?:[ \t]*[:=])?", re.IGNORECASE)
_HASHES = re.compile(r"####")
_BOXED = re.compile(r"\\boxed\s*\{")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_DECORATION = "*`\"'“”‘’ \t"
NUMBER = re.compile(
    r"(?<![\w.])(?<!\d[-,/])-?[$£€]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<!\d)\.\d+)?(?<=\d)"
    r"(?:[eE][+-]?\d{1,4})?(?:\s?/\s?\d+)?\s?%?"
)
_CHOICE = re.compile(r"\(([A-E])\)")
_LATEX_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NO_WORDS = {"and", "or", "sqrt", "log", "ln", "sin", "cos", "tan", "exp", "inf", "pi", "xy", "ab"}


def find_program(text: str) -> str:
    """The Python program in a model's output, or "": the first fenced block that prints, else a text that prints."""
    text = own_part(text)
    blocks = [block for language, block in _FENCE.findall(text) if language.lower() in _PYTHON]
    found = next((block for block in blocks or [text] if _PRINTS.search(block)), blocks[0] if blocks else "")
    # Some tokenizers put a space before a text's first word, and lists indent what is fenced in them.
    return textwrap.dedent(found.strip("\n")).lstrip()


def own_part(text: str) -> str:
    """An output up to where the model asks itself something else."""
    found = _NEXT_QUESTION.search(text)
    return text[: found.start()] if found else text


def extract_answer(text: str) -> str:
    r"""The final answer of a text, or "".

    The last of `The answer is X`, `\boxed{X}` and `#### X`; without any, the text itself where it is one line of
    mathematics or of words without a number; else its last number or its last choice in parentheses.
    """
    text = own_part(text).strip()
    if marked := marked_answer(text):
        return marked
    is_line = "\n" not in text
    if is_line and (is_mathematics(text) or not (NUMBER.search(text) or _CHOICE.search(text))):
        return _tidy(text)
    found = [(match.end(), match.group().strip()) for match in NUMBER.finditer(text)]
    found += [(match.end(), match.group(1)) for match in _CHOICE.finditer(text)]
    return max(found)[1] if found else ""


def marked_answer(text: str) -> str:
    """The final answer of a text that says which it is, or ""."""
    marks = [(match.end(), kind) for kind in (_ANSWER_IS, _HASHES, _BOXED) for match in kind.finditer(text)]
    for end, kind in sorted(marks, key=lambda mark: mark[0], reverse=True):
        if answer := _braced(text, end) if kind is _BOXED else _phrase(text[end:]):
            return answer
    return ""


def printed_answer(stdout: str, *, values: int = 1) -> str:
    """The answer that a program printed, or "".

    Args:
        stdout: What it printed.
        values: How many values the right answer has. Where there are several, a program may print a line for each.

    Returns:
        The last line, or that many last lines as a list. A Python list loses its brackets, which in mathematics would
        mean an interval.
    """
    lines = [line.strip() for line in stdout.splitlines() if line.strip()]
    if not lines:
        return ""
    last = lines[-values:]
    if values > 1 and len(last) == values and all(is_mathematics(line) and "," not in line for line in last):
        return ", ".join(last)
    line = marked_answer(lines[-1]) or _tidy(lines[-1])
    while line.startswith("[") and line.endswith("]"):
        line = line[1:-1].strip()
    return line


def is_mathematics(text: str) -> bool:
    """Whether a text has no words, apart from functions and what stands between numbers."""
    return not {word.lower() for word in _WORD.findall(_LATEX_COMMAND.sub(" ", text))} - _NO_WORDS


def _phrase(text: str) -> str:
    """What follows `the answer is`: up to the end of its sentence, on this line or the next."""
    line = text.lstrip().split("\n", 1)[0].strip()
    if boxed := _BOXED.search(line):
        return _braced(line, boxed.end())
    return _tidy(_SENTENCE_END.split(line, maxsplit=1)[0])


def _braced(text: str, start: int) -> str:
    """What stands from `start` to the brace that closes it; to the end where none does."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return _tidy(text[start:position])
    return _tidy(text[start:])


def _tidy(text: str) -> str:
    text = text.strip(_DECORATION).removesuffix(".").strip(_DECORATION)
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
            return text[len(opening) : -len(closing)].strip()
    return text
