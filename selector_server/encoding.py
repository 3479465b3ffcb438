"""Conversations to rows of tokens, in this process or in several; what comes back is in the order of what was given."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from shared.chat import Message, Refused
from shared.records import Row
from shared.tokenizer import encode_answers, encode_prompts

Encoder = Callable[[Sequence[Sequence[Message]]], list[Row | Refused | None]]
Told = TypeVar("Told")
_encoder: Encoder | None = None  # of a process that encodes


class PromptEncoder:
    """Encodes an instruction and its output by one of `shared.tokenizer`'s templates."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, template: str, max_length: int) -> None:
        self._tokenizer, self.name, self._max_length = tokenizer, template, max_length

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Row | Refused | None]:
        """Encode conversations of two turns; None where no token of the answer is left within max_length."""
        asked, answers = ([conversation[turn]["content"] for conversation in conversations] for turn in (0, 1))
        encoded = zip(
            encode_prompts(self._tokenizer, asked, template=self.name),
            encode_answers(self._tokenizer, answers),
            strict=True,
        )
        return [
            Row(np.array((prompt + answer)[: self._max_length], dtype=np.int32), len(prompt))
            if len(prompt) < self._max_length
            else None
            for prompt, answer in encoded
        ]


def encode_all(
    batches: Iterable[tuple[Told, list[Sequence[Message]]]], encoder: Encoder, *, num_proc: int | None
) -> Iterator[tuple[Told, list[Row | Refused | None]]]:
    """Encode batches of conversations.

    Args:
        batches: Each with whatever belongs to it, which comes back with its rows.
        encoder: What encodes a batch.
        num_proc: Processes that encode; None: this one.
    """
    if num_proc is None or num_proc == 1:
        for told, conversations in batches:
            yield told, encoder(conversations)
        return
    # Spawned: a fork of a process whose tokenizer has used its threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_proc, mp_context=context, initializer=_take, initargs=(encoder,)) as pool:
        waiting: deque[tuple[Told, Future[list[Row | Refused | None]]]] = deque()
        for told, conversations in batches:
            waiting.append((told, pool.submit(_encode, conversations)))
            if len(waiting) > 2 * num_proc:  # what `map` would not bound
                first, encoded = waiting.popleft()
                yield first, encoded.result()
        for last, encoded in waiting:
            yield last, encoded.result()


def _take(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent leaves nobody behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(conversations: list[Sequence[Message]]) -> list[Row | Refused | None]:
    assert _encoder is not None
    return _encoder(conversations)
