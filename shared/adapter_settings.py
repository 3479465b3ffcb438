"""An adapter's description, as it arrives from a trainer, checked before PEFT sees it.

PEFT's own reader is made for files one trusts: settings can name modules to import, files to open, patterns that take
for ever to match, and sizes that no machine has. Here only what a LoRA's shape consists of goes through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from shared.errors import ModelError

_MAX_JSON_BYTES = 1 << 18
_MAX_NAMES = 16_384
MAX_RANK = 1 << 16
_MAX_LAYER = 1 << 16
# PEFT's.
_DEFAULT_RANK = 8
# A module's name, whole or its last part.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,512}")
# Of names, without repetition or choice.
_PATTERN = re.compile(r"\^?(?:[A-Za-z0-9_.-]|\\\.){1,512}\$?")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_NAMES and all(map(_is_name, value))


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def _is_layer(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_LAYER


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_pattern(text: str) -> bool:
    """Whether a selector takes this pattern of names, which takes no longer to match than to read."""
    return bool(_PATTERN.fullmatch(text))


def _by_pattern(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and len(value) <= _MAX_NAMES
            and all(is_pattern(key) and of(each) for key, each in value.items())
        )

    return check


_SHAPE: dict[str, Callable[[Any], bool]] = {
    "r": _is_rank,
    "lora_alpha": _is_scale,
    "lora_dropout": lambda value: type(value) in (int, float) and 0 <= value < 1,
    "target_modules": lambda value: value == "all-linear" or _is_names(value),
    "exclude_modules": _is_names,
    "target_parameters": _is_names,
    "modules_to_save": _is_names,
    "layers_to_transform": lambda value: (
        _is_layer(value) or (isinstance(value, list) and len(value) <= _MAX_LAYER and all(map(_is_layer, value)))
    ),
    "layers_pattern": lambda value: _is_name(value) or _is_names(value),
    "rank_pattern": _by_pattern(_is_rank),
    "alpha_pattern": _by_pattern(_is_scale),
    "bias": lambda value: value in ("none", "all", "lora_only"),
    "peft_type": lambda value: value == "LORA",
    "task_type": lambda value: value == "CAUSAL_LM",
    "fan_in_fan_out": _is_flag,
    "use_rslora": _is_flag,
    "use_dora": _is_flag,
    "lora_bias": _is_flag,
    "ensure_weight_tying": _is_flag,
}
# How a trainer found its first weights, which it pushes; and what PEFT writes for models of its own.
_OF_THE_TRAINER = frozenset({
    "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core",
    "qalora_group_size",
})  # fmt: skip


def read_adapter_settings(adapter_json: str) -> dict[str, Any]:
    """The settings of a LoRA that decide which tensors it has and what it computes.

    Raises:
        ModelError: no JSON object, a setting that is out of bounds, or one that this product can't follow.
    """
    if len(adapter_json) > _MAX_JSON_BYTES:
        raise ModelError(f"the trainer's adapter config has {len(adapter_json)} bytes, at most {_MAX_JSON_BYTES} fit")
    try:
        settings = json.loads(adapter_json)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the trainer's adapter config is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ModelError(f"the trainer's adapter config is a {type(settings).__name__}, not an object of settings")
    kept = {}
    for key, value in settings.items():
        if key in _OF_THE_TRAINER or value is None or value is False or value in ({}, []):
            continue
        if key not in _SHAPE:
            raise ModelError(
                f"the trainer's adapter config sets {key[:64]!r}, which a selector can't follow: leave it at its "
                f"default; what can be set is {', '.join(_SHAPE)}"
            )
        if not _SHAPE[key](value):
            raise ModelError(
                f"the trainer's adapter config has {key} {_short(value)}: ranks are 1 to {MAX_RANK}, modules and "
                "patterns are names of letters, digits, _, - and dots, without repetition or choice"
            )
        kept[key] = value
    return kept


def largest_rank(settings: dict[str, Any]) -> int:
    """The largest rank in checked settings."""
    ranks: list[int] = [settings.get("r", _DEFAULT_RANK), *settings.get("rank_pattern", {}).values()]
    return max(ranks)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "…"
