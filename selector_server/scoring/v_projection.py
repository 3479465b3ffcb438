"""Where a decoder layer makes the values of its attention: a projection of its own, or some rows of a fused one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from shared.errors import ModelError

_OWN = ("v_proj", "value")


@dataclass(frozen=True, eq=False)
class VProjection:
    """The linear module that is perturbed.

    Attributes:
        module: Its name in the layer; with LoRA, that of the B matrix on the projection.
        fused: Name of the fused projection it is or is on, in the layer; None where V has one of its own.
        rows: Which of its outputs are V's, hence which rows of its weight, int64 [d_v]; None for all.
    """

    module: str
    fused: str | None
    rows: Tensor | None


def find_v_projection(model: Any, layer: nn.Module, config: Any) -> VProjection:
    """Find what the paper perturbs (§4.2, Eq. 8) in one decoder layer.

    Args:
        model: The whole model: whether it has adapters.
        layer: The layer.
        config: The text model's config, for the number and size of its heads.

    Raises:
        ModelError: none or several V projections; a fused one of a layout we don't know; LoRA that doesn't train it.
    """
    names = {name.rpartition(".")[2]: name for name, _ in layer.named_modules()}
    own = [name for name, _ in layer.named_modules() if name.rpartition(".")[2] in _OWN]
    fused = [name for leaf, name in names.items() if leaf in _FUSED]
    if len(own) + len(fused) != 1:
        raise ModelError(
            f"{config.model_type}: the layer has {len(own) or 'no'} V projections of its own and {len(fused) or 'no'} "
            f"fused ones (looked for {', '.join((*_OWN, *_FUSED))}, its linear modules are "
            f"{', '.join(_linear_modules(layer))}): use a model that has one, such as Llama, Phi or Qwen"
        )
    name = (own or fused)[0]
    rows = _FUSED[name.rpartition(".")[2]](config) if fused else None
    module = _trained_part(model, layer, name, config.model_type)
    weight = layer.get_submodule(module).weight
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise ModelError(
            f"{config.model_type}: {module} of the last layer has a weight of shape {list(weight.shape)} and "
            f"{weight.dtype}: scoring needs it whole and in floating point, neither sharded nor quantised"
        )
    return VProjection(module, name if fused else None, None if rows is None else rows.to(weight.device))


def _last_rows(config: Any) -> Tensor:
    """Q, K, V one after the other: Phi-3."""
    heads, kv_heads, size = _heads(config)
    start = (heads + kv_heads) * size
    return torch.arange(start, start + kv_heads * size)


def _last_third_of_each_head(config: Any) -> Tensor:
    """Q, K, V of the first head, then of the second, ...: GPT-NeoX."""
    heads, _, size = _heads(config)
    return torch.arange(3 * heads * size).view(heads, 3, size)[:, 2].flatten()


# Where V's outputs are in a fused projection. A layout that is wrong for a model is noticed when the model is split.
_FUSED: dict[str, Callable[[Any], Tensor]] = {
    "qkv_proj": _last_rows,
    "query_key_value": _last_third_of_each_head,
}


def _heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key and value heads, and the size of each."""
    heads = int(config.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, int(kv_heads), int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _trained_part(model: Any, layer: nn.Module, name: str, kind: str) -> str:
    """The projection itself, or LoRA's B matrix on it."""
    projection: Any = layer.get_submodule(name)
    if hasattr(projection, "lora_B"):
        adapters = [adapter for adapter in projection.active_adapters if adapter in projection.lora_B]
        if len(adapters) != 1 or projection.merged or projection.disable_adapters:
            raise ModelError(
                f"{kind}: {name} of the last layer has LoRA adapters {sorted(projection.lora_B)}, active are "
                f"{adapters}, merged {projection.merged_adapters}, disabled {projection.disable_adapters}: "
                "keep exactly one active, unmerged and enabled"
            )
        return f"{name}.lora_B.{adapters[0]}"
    if isinstance(model, PeftModel) or any(hasattr(module, "lora_B") for module in model.modules()):
        configs = getattr(model, "peft_config", {})
        targets = {adapter: getattr(config, "target_modules", None) for adapter, config in configs.items()}
        raise ModelError(
            f"{kind}: the adapter doesn't train {name} of the last layer (its target_modules: {targets}): use LoRA, "
            f"add {name.rpartition('.')[2]!r} to target_modules, and leave layers_to_transform unset"
        )
    return name


def _linear_modules(layer: nn.Module) -> list[str]:
    """Names of the modules that hold a matrix, adapters left out."""
    matrices = (name.rpartition(".")[0] for name, p in layer.named_parameters() if p.dim() == 2 and "lora_" not in name)
    return [name.removesuffix(".base_layer") for name in matrices]
