"""How large a model, what is trained of it, and what travels will be: from its shapes, without loading a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shared.config import Config, ModelConfig
from shared.dataset import Store
from shared.errors import ModelError
from shared.model import new_adapter
from shared.quantised import quantisation
from shared.records import Selection
from shared.wire import encode_selection

_TRAINED_BYTES = 4
_PER_BYTE = {"8bit": 1, "4bit": 2}
_SAMPLED_ROWS = 4096


@dataclass(frozen=True)
class Sizes:
    """A model and what is trained of it.

    Attributes:
        parameters: Of the base model.
        model_bytes: These in memory: in `model.dtype`, linear modules in fewer bits where `model.load_in` says so.
        trained: Parameters that are trained: the adapter's, or all.
        push_bytes: Of one version of the weights on the wire, before deltas.
        width: Of its hidden states.
    """

    parameters: int
    model_bytes: int
    trained: int
    push_bytes: int
    width: int

    @property
    def training_bytes(self) -> int:
        """Gradients and AdamW's two moments, in float32, of what is trained."""
        return 3 * _TRAINED_BYTES * self.trained


def sizes(config: Config) -> Sizes | None:
    """Build the model and its adapter of shapes alone; None for a .gguf file, which tells no shapes without loading.

    Raises:
        ModelError: no model's configuration is there, or not a causal language model's; or no bitsandbytes.
        ConfigError: train.lora doesn't fit the model.
    """
    if config.model.load_in != "full":
        quantisation(config.model)
    if config.model.path.endswith(".gguf"):
        return None
    model = _shapes(config.model)
    parameters = sum(p.numel() for p in model.parameters())
    model_bytes = _bytes_in_memory(model, config.model)
    item = getattr(torch, config.model.dtype).itemsize
    lora = config.train.lora
    if lora:
        model = new_adapter(model, lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    pushed = config.run.pushed_dtype
    push_bytes = count * (getattr(torch, pushed).itemsize if pushed else _TRAINED_BYTES if lora else item)
    width = model.get_input_embeddings().weight.shape[1]
    return Sizes(parameters, model_bytes, count, push_bytes, width)


def selection_bytes(config: Config) -> int:
    """Bytes of one selection on the wire, Arrow's frame included."""
    r = config.selection.sub_batch_size
    whole, small = np.zeros(r, np.int64), np.zeros(r, np.int32)
    weight = np.ones(r, np.float32)
    b = config.selection.large_batch_size
    return len(encode_selection(Selection(config.run.name, 0, 0, b, whole, small, weight, weight, small)))


def mean_tokens(store: Store) -> float:
    """Tokens of a row, the mean over rows spread evenly through the store."""
    index = np.linspace(0, len(store) - 1, min(len(store), _SAMPLED_ROWS)).astype(np.int64)
    return float(store.lengths(index).mean())


def in_words(num_bytes: float) -> str:
    """Bytes in a unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.2f} GiB"


def _bytes_in_memory(model: Any, config: ModelConfig) -> int:
    """Of all parameters; the head and what isn't a linear module keep their dtype whatever `load_in` is."""
    whole = int(sum(p.numel() * p.element_size() for p in model.parameters()))
    if config.load_in == "full":
        return whole
    head = model.get_output_embeddings()
    linear: set[torch.Tensor] = {m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head}
    return whole - int(sum(p.numel() * p.element_size() - p.numel() // _PER_BYTE[config.load_in] for p in linear))


def _shapes(config: ModelConfig) -> torch.nn.Module:
    try:
        settings = AutoConfig.from_pretrained(config.path, revision=config.revision)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, config.dtype))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.path {config.path} has no usable config.json of a causal language model: "
            f"{' '.join(str(error).split())}: give a hub id or a folder with config.json and weights"
        ) from None
