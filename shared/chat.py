"""Conversations to token ids by a tokenizer's own chat template, with a mask of exactly what the assistant said.

A template that marks its answers (`{% generation %}`) is believed. Of any other, an answer is what stands between the
template's prompt for it, which is the conversation before it with the generation prompt, and the end of its turn. Both
are rendered and have to be beginnings of the whole conversation's text; where a template makes that impossible (some
drop what earlier answers thought), the conversation is refused and the reason says so. A token that begins before an
answer and ends in it is the answer's, as it is where transformers follows the marks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from shared.errors import ModelError
from shared.records import Row

Message = Mapping[str, Any]
TrainOn = Literal["all", "last"]
_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REMEDY = "--train-on last, or a template with {% generation %} around its answers (--chat-template FILE)"


@dataclass(frozen=True)
class Refused:
    """Why a conversation can't be a row."""

    reason: str


class ChatEncoder:
    """Encodes conversations for training, by one tokenizer's template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        system: str | None = None,
        train_on: TrainOn = "all",
    ) -> None:
        """Prepare to encode.

        Args:
            tokenizer: A fast tokenizer with a chat template.
            max_length: Where rows are cut.
            system: The first turn of every conversation that has none of the role `system`.
            train_on: Which of the assistant's turns have a loss.

        Raises:
            ModelError: the tokenizer has no chat template.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template, which conversations need: give one with "
                "--chat-template FILE, or the tokenizer of a model that was made for conversations"
            )
        self._tokenizer, self._max_length = tokenizer, max_length
        self._system, self._train_on = system, train_on
        template = tokenizer.get_chat_template()
        self._marks = bool(_MARKS_ANSWERS.search(template))
        self.name = f"chat-{hashlib.sha256(template.encode()).hexdigest()[:16]}"

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Row | Refused | None]:
        """Encode conversations whose last message is the assistant's.

        Returns:
            For each its row; None where no token of an answer is left within max_length, or why it was refused.
        """
        return [self._encode(list(messages)) for messages in conversations]

    def _encode(self, messages: list[Message]) -> Row | Refused | None:
        if self._system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._system})
        try:
            found = self._marked(messages) if self._marks else self._between_prompts(messages)
        except Exception as error:  # a template is a program, and raises what it likes
            reason = " ".join(str(error).split()) or type(error).__name__
            return Refused(f"the tokenizer's chat template refuses it ({reason})")
        if isinstance(found, Refused):
            return found
        ids, mask = found[0][: self._max_length], found[1][: self._max_length]
        if not mask[1:].any():
            return None
        edges = np.flatnonzero(np.diff(mask, prepend=False)).astype(np.int32)
        return Row(ids, int(edges[0]), edges[1:])

    def _marked(self, messages: list[Message]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """By the template's own marks."""
        encoded = self._tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, verbose=False
        )
        mask = np.array(encoded["assistant_masks"], dtype=np.bool_)
        if self._train_on == "last" and mask.any():
            starts = np.flatnonzero(np.diff(mask, prepend=False) & mask)
            mask[: starts[-1]] = False
        return np.array(encoded["input_ids"], dtype=np.int32), mask

    def _between_prompts(
        self, messages: list[Message]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]] | Refused:
        """By the text before and behind each answer."""
        text = self._render(messages)
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        spans = []
        for at in answers[-1:] if self._train_on == "last" else answers:
            prompt = self._render(messages[:at], add_generation_prompt=True)
            said = text if at == len(messages) - 1 else self._render(messages[: at + 1])
            for part, what in ((prompt, "the prompt for"), (said, "the conversation up to")):
                if not text.startswith(part):
                    return Refused(
                        f"the tokenizer's chat template writes {what} turn {at + 1} otherwise than in the whole "
                        f"conversation, so which tokens are its answer can't be known: use {_REMEDY}"
                    )
            spans.append((len(prompt), len(self._without_space_behind_the_end(said))))
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts, ends = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        mask = np.zeros(len(starts), dtype=np.bool_)
        for first, last in spans:
            # A token that no character is left of, as tokenizers trim spaces, is where it starts.
            mask |= (starts < last) & np.where(starts < ends, ends > first, starts >= first)
        return np.array(encoding["input_ids"], dtype=np.int32), mask

    def _render(self, messages: list[Message], **settings: bool) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **settings))

    def _without_space_behind_the_end(self, said: str) -> str:
        """A turn that ends with a special token ends there: the line break that templates put behind is no answer."""
        stripped = said.rstrip()
        ends = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        return stripped if stripped.endswith(tuple(ends)) else said
