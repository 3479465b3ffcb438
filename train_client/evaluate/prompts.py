"""A question → the tokens that a model is asked with, the same that training put before an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shared.errors import ConfigError
from shared.tokenizer import PROMPT_TEMPLATES, encode_prompts

# The ways in which MathInstruct asks for a program.
_TRIGGERS = re.compile(
    r"\s*(?:Let's write a (?:Python )?program(?: to solve it)?\.|Let's program in Python in the response\."
    r"|Please write a program to solve it\.?)\s*$"
)


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, as text for a reader and as token ids."""

    text: str
    ids: list[int]


def ask_for_program(question: str, trigger: str) -> str:
    """The question with the words that ask for a program, once."""
    return f"{without_trigger(question)} {trigger.strip()}"


def without_trigger(question: str) -> str:
    """The question without words that ask for a program."""
    return _TRIGGERS.sub("", question).rstrip()


def make_prompt(tokenizer: Any, question: str, *, template: str) -> Prompt:
    """A question in its template: `alpaca` as in training, the tokenizer's own `chat`, or `none`.

    Raises:
        ConfigError: `chat`, and the tokenizer has no template for it.
    """
    if template in PROMPT_TEMPLATES:
        text = PROMPT_TEMPLATES[template].format(instruction=question)
        return Prompt(text, encode_prompts(tokenizer, [question], template=template)[0])
    if template == "none":
        return Prompt(question, list(tokenizer(question)["input_ids"]))
    if not tokenizer.chat_template:
        raise ConfigError("the model's tokenizer has no chat template: give --template alpaca or none")
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return Prompt(text, list(tokenizer(text, add_special_tokens=False)["input_ids"]))
