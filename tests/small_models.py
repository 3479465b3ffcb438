"""Small random models of many architectures, rows for them, and the truth about both: the whole model in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from shared.records import Row
from shared.rowloss import collate, row_losses

ARCHITECTURES = ["phi", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "phi3", "granite"]
VOCABULARY = 67

# Where Q, K and V are made in one module: V's rows of 4 heads of 8, by hand.
FUSED = {
    "gpt_neox": ("query_key_value", [r for head in range(4) for r in range(24 * head + 16, 24 * head + 24)]),
    "phi3": ("qkv_proj", list(range(48, 64))),
}


def tiny_config(kind: str, **changes: Any) -> Any:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind.startswith(("qwen3", "gemma")):
        heads["head_dim"] = 8
    if kind == "granite":
        special["logits_scaling"] = 8.0
    return AutoConfig.for_model(kind, **{**sizes, **heads, **special, **changes})


def tiny_model(kind: str, *, lora: bool = False, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    return with_lora(model) if lora else model


def with_lora(model: Any, **changes: Any) -> Any:
    """LoRA on queries and values whose B matrices aren't zero any more."""
    targets = [FUSED[model.config.model_type][0]] if model.config.model_type in FUSED else ["q_proj", "v_proj"]
    settings = {"r": 4, "target_modules": targets, "lora_dropout": 0.5, "task_type": "CAUSAL_LM"} | changes
    model = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows whose answer repeats the prompt, 4 to 40 tokens; in every third the loss stops and starts again."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        prompt = rng.integers(1, VOCABULARY, rng.integers(2, 16)).astype(np.int32)
        row = Row(np.resize(prompt, len(prompt) + rng.integers(2, 24)), len(prompt))
        if number % 3 == 2:
            edges = [edge for edge in (len(prompt) + 1, len(prompt) + 4, len(prompt) + 9) if edge < len(row.input_ids)]
            row = Row(row.input_ids, len(prompt), np.array(edges, dtype=np.int32))
        rows.append(row)
    return rows


def answer_positions(row: Row) -> list[int]:
    """Positions of the tokens that have a loss, one by one."""
    positions, is_answer = [], False
    for position in range(len(row.input_ids)):
        if position == row.num_prompt_tokens or position in row.mask_edges.tolist():
            is_answer = not is_answer
        if is_answer and position:
            positions.append(position)
    return positions


def train_a_little(model: Any, steps: int = 40) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        batch = collate(make_rows(8, seed=1000 + step))
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        row_losses(logits, batch["labels"]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def loss_in_float64(model: Any, row: Row) -> Tensor:
    """One row alone through the whole model, without any code of ours."""
    ids = torch.from_numpy(row.input_ids.astype(np.int64))
    logits = model(input_ids=ids[None]).logits[0]
    positions = torch.tensor(answer_positions(row))
    return F.cross_entropy(logits[positions - 1], ids[positions])


def gradients_in_float64(model: Any, rows: list[Row], *names: str) -> list[list[npt.NDArray[np.float64]]]:
    """Each row's gradient of each named parameter, through the whole model, by row."""
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    parameters = [dict(model.named_parameters())[name].requires_grad_(True) for name in names]
    return [[g.numpy() for g in torch.autograd.grad(loss_in_float64(model, row), parameters)] for row in rows]


def v_rows(model: Any) -> slice | list[int]:
    """V's rows of the module that makes it."""
    kind = model.config.model_type
    return FUSED[kind][1] if kind in FUSED else slice(None)


def rank_correlation(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])
