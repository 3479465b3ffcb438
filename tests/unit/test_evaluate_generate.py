"""Greedy generation against a loop without cache, batch or padding; vLLM against a stand-in for its interface."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from shared.config import ModelConfig
from shared.errors import ConfigError
from tests.small_models import VOCABULARY, tiny_model, train_a_little, with_lora
from train_client.evaluate.engine import Generation
from train_client.evaluate.generate import TransformersEngine
from train_client.evaluate.generate_vllm import VllmEngine
from train_client.evaluate.load import Who

EOS = 2


class Letters:
    """A tokenizer whose tokens are numbers."""

    pad_token_id = None
    eos_token_id = EOS

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(str(token) for token in ids if not (skip_special_tokens and token == EOS))


def make_prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, rng.integers(1, 20)).tolist() for _ in range(count)]


def greedy(model: Any, prompt: list[int], max_new_tokens: int) -> tuple[list[int], bool]:
    """One token at a time through the whole model."""
    ids, new = list(prompt), []
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        new.append(token)
        ids.append(token)
        if token == EOS:
            return new, True
    return new, False


def answers(model: Any, prompts: list[list[int]], *, batch_size: int, max_new_tokens: int = 12) -> list[Generation]:
    engine = TransformersEngine(model, Letters(), batch_size=batch_size)
    return engine.generate(prompts, max_new_tokens=max_new_tokens, advance=lambda count: None)


@pytest.mark.parametrize(("kind", "lora"), [("phi", False), ("llama", False), ("llama", True), ("gpt2", False)])
def test_batched_answers_are_those_of_a_plain_greedy_loop(kind: str, lora: bool) -> None:
    model = tiny_model(kind, lora=lora).eval()
    with torch.no_grad():  # an answer now and then ends by itself
        model.get_output_embeddings().weight[EOS] *= 3
    prompts = make_prompts(11)
    truth = [greedy(model, prompt, 12) for prompt in prompts]
    assert {ended for _, ended in truth} == {True, False}
    for batch_size in (1, 4, 16):
        for generation, (tokens, ended) in zip(answers(model, prompts, batch_size=batch_size), truth, strict=True):
            text = " ".join(str(token) for token in tokens if token != EOS)
            assert generation == Generation(text, len(tokens), ended)


def test_sampling_and_penalties_that_a_model_brings_along_are_ignored() -> None:
    model = tiny_model("phi").eval()
    truth = [greedy(model, prompt, 12)[0] for prompt in make_prompts(4)]
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, suppress_tokens=truth[0][:1], eos_token_id=EOS
    )
    found = [generation.text for generation in answers(model, make_prompts(4), batch_size=4)]
    assert found == [" ".join(str(token) for token in tokens if token != EOS) for tokens in truth]


def test_a_prompt_that_leaves_no_room_gets_a_note_and_the_others_their_answers() -> None:
    model = tiny_model("gpt2", max_position_embeddings=24).eval()  # learnt positions: past the end there is nothing
    model.get_output_embeddings().weight.data[EOS] = 0
    prompts = [[5] * 4, [5] * 20, [5] * 24, [5] * 30]
    found = answers(model, prompts, batch_size=4)
    assert [generation.num_tokens for generation in found] == [12, 4, 0, 0]
    assert found[0].note == ""
    assert "20 tokens leave 4 of the model's 24 positions" in found[1].note
    assert "30 tokens leave 0" in found[3].note


def test_progress_counts_every_prompt_once() -> None:
    counts: list[int] = []
    engine = TransformersEngine(tiny_model("phi").eval(), Letters(), batch_size=4)
    engine.generate(make_prompts(10), max_new_tokens=2, advance=counts.append)
    assert sum(counts) == 10


def test_a_trained_adapter_is_used() -> None:
    model = with_lora(tiny_model("llama"))
    train_a_little(model)
    model.eval()
    adapted = [generation.text for generation in answers(model, make_prompts(6), batch_size=3)]
    assert adapted == [
        " ".join(str(token) for token in greedy(model, prompt, 12)[0] if token != EOS) for prompt in make_prompts(6)
    ]
    with model.disable_adapter():
        assert adapted != [generation.text for generation in answers(model, make_prompts(6), batch_size=3)]


def who(adapter: Path | None = None) -> Who:
    return Who(ModelConfig(path="a/model"), adapter, "a/model")


def test_without_vllm_its_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="vLLM isn't installed"):
        VllmEngine(who(), Letters())


def test_vllm_is_asked_greedily_with_token_ids_and_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    class LLM:
        def __init__(self, **settings: Any) -> None:
            calls["load"] = settings
            self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=10))

        def generate(self, prompts: Any, params: Any, **settings: Any) -> Any:
            calls["prompts"], calls["params"], calls["lora"] = prompts, params, settings["lora_request"]
            reason = ("stop", "length")
            outputs = [SimpleNamespace(text="x", token_ids=[1], finish_reason=r) for r in reason]
            return [SimpleNamespace(outputs=[output]) for output in outputs]

    vllm, lora = ModuleType("vllm"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams = LLM, lambda **settings: settings  # type: ignore[attr-defined]
    lora.LoRARequest = lambda *parts: parts  # type: ignore[attr-defined]
    for name, module in {"vllm": vllm, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": lora}.items():
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16}))

    engine = VllmEngine(who(tmp_path), Letters())
    found = engine.generate([[5] * 3, [5] * 12, [5] * 8], max_new_tokens=4, advance=lambda count: None)
    assert (calls["load"]["enable_lora"], calls["load"]["max_lora_rank"]) == (True, 16)
    assert calls["prompts"] == [{"prompt_token_ids": [5] * 3}, {"prompt_token_ids": [5] * 8}]
    assert [(p["temperature"], p["max_tokens"], p["stop_token_ids"]) for p in calls["params"]] == [
        (0.0, 4, [EOS]),
        (0.0, 2, [EOS]),
    ]
    assert calls["lora"] == ("adapter", 1, str(tmp_path))
    assert [(generation.text, generation.ended) for generation in found] == [("x", True), ("", False), ("x", False)]
    assert ["positions" in generation.note for generation in found] == [False, True, True]
