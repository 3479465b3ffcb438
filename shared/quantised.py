"""A base in 8 or 4 bits, by bitsandbytes: how it is loaded, and what copies of it share."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from shared.config import ModelConfig
from shared.errors import ModelError


def is_quantised(model: Any) -> bool:
    """Whether some of a model's weights are held in fewer bits than they are computed with."""
    return getattr(model, "quantization_method", None) is not None


def quantisation(config: ModelConfig) -> Any:
    """What `from_pretrained` is to do to a base that isn't loaded in full.

    Raises:
        ModelError: bitsandbytes isn't installed, or the file is quantised by other means.
    """
    if config.path.endswith(".gguf"):
        raise ModelError(
            f"model.load_in {config.load_in!r} is for safetensors, model.path is {config.path}: leave it out"
        )
    if find_spec("bitsandbytes") is None:
        raise ModelError(f"model.load_in {config.load_in!r} needs bitsandbytes: pip install 'subbatch[bitsandbytes]'")
    return BitsAndBytesConfig(
        load_in_8bit=config.load_in == "8bit",
        load_in_4bit=config.load_in == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )


def share_quantised(model: Any) -> list[Any]:
    """What copies of a quantised model should share besides its parameters and buffers; it never changes.

    Bitsandbytes moves the scales of 8-bit weights from these to their module in its first forward, where copies that
    share the weights would no longer find them. Here all modules have them before there are copies.
    """
    shared = []
    for module in model.modules():
        if hasattr(module, "init_8bit_state"):
            if module.weight.CB is not None:
                module.init_8bit_state()
            shared.append(module.state)
        elif getattr(module, "quant_state", None) is not None:
            shared.append(module.quant_state)
    return shared
