"""Which columns of the data are what: a row as it was read in, a conversation and its source out.

Rows are instructions with an output, or conversations: `messages` of (role, content), or ShareGPT's `conversations` of
(from, value). An instruction and its output are a conversation of two turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.chat import Message, Refused
from shared.errors import DataError

CONVERSATIONS = ("messages", "conversations")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_call": "tool",
    "observation": "tool",
}
# Names that other data gives to what is missing.
_ALSO_KNOWN_AS = {
    "instruction": ("question", "prompt", "query", "problem", "input", "user", "text"),
    "output": ("answer", "response", "completion", "solution", "target", "assistant", "chosen"),
    "messages": ("conversation", "conversations", "messages", "dialog", "dialogue", "turns", "chat"),
    "source": ("dataset", "origin", "subset", "category", "task", "domain", "source_name"),
}


@dataclass(frozen=True)
class Columns:
    """What the columns of some data are called.

    Attributes:
        instruction: What is asked; with `output`, in rows that aren't conversations.
        output: What is answered.
        input: What the instruction is about, put behind it after an empty line where a row has one.
        messages: A conversation, instead of the three above.
        source: Where a row comes from; None where its file or folder says so.
    """

    instruction: str = "instruction"
    output: str = "output"
    input: str | None = None
    messages: str | None = None
    source: str | None = "source"

    @property
    def needed(self) -> dict[str, str]:
        """The names of the columns that have to be there, by what they are."""
        text = {"instruction": self.instruction, "output": self.output, "input": self.input}
        what = {"source": self.source, **({"messages": self.messages} if self.messages else text)}
        return {part: name for part, name in what.items() if name is not None}

    def require(self, found: Sequence[str], *, of: str) -> None:
        """Demand the columns.

        Args:
            found: Those that there are.
            of: Whose they are, for the error.

        Raises:
            DataError: one is missing.
        """
        missing = {what: name for what, name in self.needed.items() if name not in found}
        if not missing:
            return
        fixes = [f"--{what}-column {name}" for what in missing if (name := _likely(what, found))]
        if not self.messages and (chat := next((name for name in _ALSO_KNOWN_AS["messages"] if name in found), None)):
            fixes = [f"--messages-column {chat}", *(fix for fix in fixes if fix.startswith("--source"))]
        if "source" in missing and not any(fix.startswith("--source") for fix in fixes):
            fixes.append("--sources-by file")
        raise DataError(
            f"{of} has the columns {', '.join(found)}, it lacks {', '.join(missing.values())}: name them, "
            f"{'perhaps' if fixes else 'with'} {' '.join(fixes or [f'--{what}-column NAME' for what in missing])}"
        )


def _likely(what: str, found: Iterable[str]) -> str | None:
    names = {name.lower(): name for name in found}
    return next((names[other] for other in _ALSO_KNOWN_AS.get(what, ()) if other in names), None)


def conversation(row: Mapping[str, Any], columns: Columns, *, of: str, tools: bool) -> list[Message] | Refused | None:
    """The conversation of a row, up to the assistant's last turn.

    Args:
        row: Values by column.
        columns: Which is what.
        of: Whose row it is, for errors.
        tools: Leave turns of tools, and what calls them, to the template; else they are refused.

    Returns:
        Its messages; None where there is nothing to learn from it (instruction or output blank, no assistant's turn),
        or why it can't be used.

    Raises:
        DataError: a column that holds something else altogether.
    """
    if columns.messages is not None:
        return _from_messages(row.get(columns.messages), columns.messages, of, tools)
    asked, answer = text_of(row, columns.instruction, of=of), text_of(row, columns.output, of=of)
    if not asked.strip() or not answer.strip():
        return None
    about = text_of(row, columns.input, of=of) if columns.input else ""
    if about.strip():
        asked = f"{asked}\n\n{about}"
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def text_of(row: Mapping[str, Any], column: str, *, of: str) -> str:
    """The text in a column, empty where there is none.

    Raises:
        DataError: it holds something else.
    """
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"column {column!r} of {of} holds {type(value).__name__}, prepare needs text: convert it")
    return value


def _from_messages(value: Any, column: str, of: str, tools: bool) -> list[Message] | Refused | None:
    if not isinstance(value, list) and value is not None:
        raise DataError(
            f"column {column!r} of {of} holds {type(value).__name__}, prepare needs a list of messages: convert it, or "
            "name another with --messages-column"
        )
    messages: list[Message] = []
    for number, turn in enumerate(value or [], 1):
        message = _message(turn, tools)
        if isinstance(message, Refused):
            return Refused(f"turn {number} {message.reason}")
        messages.append(message)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    answers = [message for message in messages if message["role"] == "assistant"]
    return messages if any(answer["content"].strip() or "tool_calls" in answer for answer in answers) else None


def _message(turn: Any, tools: bool) -> Message | Refused:
    if not isinstance(turn, Mapping):
        return Refused(f"is {type(turn).__name__}, not a message with a role and content")
    name = turn.get("role", turn.get("from"))
    if name is None:
        return Refused(f"has {', '.join(map(str, turn)) or 'nothing'}, neither role nor from")
    if not isinstance(name, str) or (role := _ROLES.get(name.lower())) is None:
        return Refused(f"has the role {name!r}, known are {', '.join(_ROLES)}")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text") or "") for part in content)
    uses_tools = role == "tool" or bool(turn.get("tool_calls"))
    if uses_tools and not tools:
        return Refused(f"is of a tool, or calls one ({name}): pass --tool-turns render where the template knows them")
    if content is None and uses_tools:
        content = ""
    if not isinstance(content, str):
        return Refused(f"has content of {type(content).__name__}, prepare needs text")
    kept = {
        key: turn[key] for key in ("tool_calls", "tool_call_id", "name") if uses_tools and turn.get(key) is not None
    }
    return {"role": role, "content": content, **kept}
