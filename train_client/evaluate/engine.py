"""What an engine is: something that answers prompts greedily. `generate` and `generate_vllm` have one each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Generation:
    """What a model answered.

    Attributes:
        text: Its words, without special tokens.
        num_tokens: How many tokens it took, the last one included.
        ended: Whether the model ended it; else it was cut.
        note: Why it is short or missing, where the model's positions are the reason.
    """

    text: str
    num_tokens: int
    ended: bool
    note: str = ""


class Engine(Protocol):
    """Whatever answers prompts."""

    chunk: int  # how many questions it likes to get at a time

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, advance: Callable[[int], None]
    ) -> list[Generation]:
        """Answer prompts, in order; `advance` is told how many more are done."""


def room(prompt_tokens: int, max_new_tokens: int, positions: int | None) -> int:
    """How many tokens may be generated after a prompt."""
    return max_new_tokens if positions is None else max(0, min(max_new_tokens, positions - prompt_tokens))


def position_note(prompt_tokens: int, max_new_tokens: int, positions: int | None) -> str:
    """Why an answer was cut earlier than asked, or ""."""
    left = room(prompt_tokens, max_new_tokens, positions)
    if left == max_new_tokens:
        return ""
    return f"the prompt's {prompt_tokens} tokens leave {left} of the model's {positions} positions for the answer"
