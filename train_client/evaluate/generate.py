"""Greedy answers from a model by Hugging Face `generate`, many prompts at a time.

A prompt's answer doesn't depend on what it shares a batch with: prompts are padded on the left, padding is masked, and
each answer ends at its own end. (In bfloat16 and float16 rounding still differs between batch shapes.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from shared.errors import ModelError
from train_client.evaluate.engine import Generation, position_note, room


class TransformersEngine:
    """Answers on one device, with the key-value cache."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int) -> None:
        """An engine around a loaded model; PEFT models answer with their adapter."""
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._ends = _end_tokens(self._model, tokenizer)
        self._positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.chunk = 4 * batch_size
        # Sampling, penalties and length limits that a model brings along would make the answers something else.
        self._model.generation_config = GenerationConfig()
        self._model.config.use_cache = True

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, advance: Callable[[int], None]
    ) -> list[Generation]:
        """Answer prompts, in order.

        Args:
            prompts: Token ids.
            max_new_tokens: Where an answer is cut.
            advance: Called after each batch with how many prompts it had.

        Raises:
            ModelError: a batch doesn't fit the device's memory.
        """
        rooms = [room(len(ids), max_new_tokens, self._positions) for ids in prompts]
        results: dict[int, Generation] = {}
        for allowed, batch in self._batches(prompts, rooms):
            if allowed > 0:
                texts = self._answer([prompts[index] for index in batch], allowed)
                results.update(zip(batch, texts, strict=True))
            else:
                results.update({index: Generation("", 0, False) for index in batch})
            advance(len(batch))
        notes = [position_note(len(ids), max_new_tokens, self._positions) for ids in prompts]
        return [
            Generation(result.text, result.num_tokens, result.ended, "" if result.ended else notes[index])
            for index, result in ((index, results[index]) for index in range(len(prompts)))
        ]

    def _batches(self, prompts: Sequence[Sequence[int]], rooms: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Prompts of equal room, of similar length, the longest first: what doesn't fit in memory fails at once."""
        groups: dict[int, list[int]] = defaultdict(list)
        for index in sorted(range(len(prompts)), key=lambda index: -len(prompts[index])):
            groups[rooms[index]].append(index)
        for allowed, members in groups.items():
            for start in range(0, len(members), self._batch_size):
                yield allowed, members[start : start + self._batch_size]

    def _answer(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        longest = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self._ends[0]
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        settings = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=self._ends, pad_token_id=pad
        )
        device = self._model.device
        try:
            with torch.inference_mode():
                output = self._model.generate(
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
                )
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{len(prompts)} prompts of up to {longest} tokens with {max_new_tokens} new ones don't fit the "
                "device's memory: give a smaller --batch-size or --max-new-tokens"
            ) from error
        return [self._read(row) for row in output[:, longest:].tolist()]

    def _read(self, row: list[int]) -> Generation:
        end = next((place for place, token in enumerate(row) if token in self._ends), None)
        used = row if end is None else row[: end + 1]
        return Generation(self._tokenizer.decode(used, skip_special_tokens=True), len(used), end is not None)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer, as the tokenizer and the model's own settings have it."""
    ends: list[int] = []
    for holder in (tokenizer, model.generation_config, model.config):
        token = getattr(holder, "eos_token_id", None)
        ends += token if isinstance(token, list) else [] if token is None else [token]
    if not ends:
        raise ModelError("neither the tokenizer nor the model says which token ends an answer: set eos_token_id")
    return list(dict.fromkeys(ends))
