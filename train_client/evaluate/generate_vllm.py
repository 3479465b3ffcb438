"""Greedy answers from vLLM, where it is installed: the same prompts, the same end tokens, its own batching.

Written against vLLM's public interface and tested with a stand-in for it; not yet run with vLLM itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from shared.errors import ConfigError, ModelError
from train_client.evaluate.engine import Generation, position_note, room
from train_client.evaluate.load import Who


class VllmEngine:
    """Answers on the GPUs that vLLM finds."""

    chunk = 2048

    def __init__(self, who: Who, tokenizer: Any) -> None:
        """Load the model into vLLM.

        Raises:
            ConfigError: vLLM isn't installed.
            ModelError: vLLM can't load the model.
        """
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise ConfigError(f"--engine vllm: vLLM isn't installed ({error}): pip install vllm, or leave it") from None
        adapter: dict[str, Any] = {}
        if who.adapter:
            rank = int(json.loads((who.adapter / "adapter_config.json").read_text())["r"])
            adapter = {"enable_lora": True, "max_lora_rank": rank}
        try:
            self._llm = LLM(
                model=who.base.path,
                tokenizer=who.tokenizer,
                revision=who.base.revision,
                dtype=who.base.dtype,
                **adapter,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"vLLM can't load {who.base.path}: {' '.join(str(error).split())[:300]}") from error
        self._adapter = LoRARequest("adapter", 1, str(who.adapter)) if who.adapter else None
        self._ends = [tokenizer.eos_token_id]
        self._positions = int(self._llm.llm_engine.model_config.max_model_len)

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, advance: Callable[[int], None]
    ) -> list[Generation]:
        """Answer prompts, in order; `advance` is told at the end."""
        from vllm import SamplingParams

        rooms = [room(len(ids), max_new_tokens, self._positions) for ids in prompts]
        fitting = [index for index, left in enumerate(rooms) if left > 0]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompts[index])} for index in fitting],
            [SamplingParams(temperature=0.0, max_tokens=rooms[index], stop_token_ids=self._ends) for index in fitting],
            lora_request=self._adapter,
            use_tqdm=False,
        )
        notes = [position_note(len(ids), max_new_tokens, self._positions) for ids in prompts]
        results = [Generation("", 0, False, note) for note in notes]
        for index, output in zip(fitting, outputs, strict=True):
            answer = output.outputs[0]
            ended = answer.finish_reason == "stop"
            note = "" if ended else notes[index]
            results[index] = Generation(answer.text, len(answer.token_ids), ended, note)
        advance(len(prompts))
        return results
