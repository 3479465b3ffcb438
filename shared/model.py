"""The model as both sides see it: loading the base, adding an adapter, naming what is trained, hashing what is frozen.

This module imports torch; nothing that the wire or the journal needs imports this module.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from shared.adapter_settings import is_pattern, read_adapter_settings
from shared.checkpoint import Checkpoint
from shared.config import LoraSettings, ModelConfig
from shared.errors import ConfigError, ModelError
from shared.quantised import is_quantised, quantisation, share_quantised

Whole: TypeAlias = Callable[[Tensor], AbstractContextManager[Tensor]]

_HASH_CHUNK_ELEMENTS = 1 << 22
_LOCAL_SETTINGS = (
    "base_model_name_or_path", "revision", "inference_mode", "runtime_config", "auto_mapping", "peft_version",
)  # fmt: skip


def load_base_model(config: ModelConfig, device: torch.device) -> Any:
    """A causal language model from a hub id, a folder or a .gguf file, in eval mode on `device`.

    Raises:
        ModelError: no path given, nothing loadable there, or not a causal language model.
    """
    if not config.path:
        raise ModelError("model.path is not set: give a hub id, a folder or a .gguf file")
    disable_progress_bar()
    where, extra = config.path, dict[str, Any](revision=config.revision)
    if config.load_in != "full":
        extra |= {"quantization_config": quantisation(config), "device_map": {"": device}}
    if where.endswith(".gguf"):
        file = Path(where)
        if not file.is_file():
            raise ModelError(f"model.path {where} does not exist: give a hub id, a folder or a .gguf file")
        where, extra = str(file.parent), dict[str, Any](gguf_file=file.name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=getattr(torch, config.dtype), attn_implementation=config.attention, **extra
        )
        if config.load_in == "full":
            return model.to(device).eval()
        share_quantised(model)
        return model.eval()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"model.path {config.path} can't be loaded as a causal language model: {reason}: give a hub id, a folder "
            "with config.json and weights, or a .gguf file"
        ) from error


def add_adapter(model: Any, adapter_json: str) -> Any:
    """Wrap `model` with the LoRA adapter that `adapter_to_json` described, its weights still at their initial values.

    Raises:
        ModelError: the adapter isn't a LoRA config that PEFT can build on this model.
    """
    settings = read_adapter_settings(adapter_json)
    try:
        return get_peft_model(model, LoraConfig(**settings))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"the trainer's adapter config can't be built on this model: {error}") from error


def new_adapter(model: Any, lora: LoraSettings) -> Any:
    """Wrap `model` with a new LoRA adapter, its weights from torch's global generator.

    Raises:
        ConfigError: target_modules that the model doesn't have.
    """
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, adapter)
    except ValueError as error:
        raise ConfigError(
            f"train.lora.target_modules {list(lora.target_modules)} don't fit the model: {error}"
        ) from None


def adapter_to_json(model: Any) -> str:
    """The LoRA config of a PEFT model as canonical JSON; empty for a bare model.

    Raises:
        ModelError: the active adapter isn't LoRA (or a variant that is configured through it).
    """
    if not isinstance(model, PeftModel):
        return ""
    config = model.active_peft_config
    if not isinstance(config, LoraConfig):
        raise ModelError(f"adapter type {config.peft_type} isn't supported: use LoRA, or full fine-tuning")
    settings: dict[str, Any] = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    if any(isinstance(settings[key], str) for key in ("target_modules", "exclude_modules")):
        # A selector takes names, not patterns that may take for ever to match: these are what they matched here.
        settings["target_modules"] = sorted(model.base_model.targeted_module_names)
        settings["exclude_modules"] = None
    tuner = model.base_model
    targets = [*tuner.targeted_module_names, *tuner.targeted_parameter_names]
    for key in ("rank_pattern", "alpha_pattern"):
        settings[key] = _pattern_of_names(settings[key], targets)
    # Where and by which release the adapter was made says nothing about what it is; a run outlives an upgrade of PEFT.
    for local in _LOCAL_SETTINGS:
        settings.pop(local, None)
    settings["peft_type"], settings["task_type"] = "LORA", "CAUSAL_LM"
    return json.dumps({k: v for k, v in settings.items() if v is not None}, sort_keys=True, default=str)


def _pattern_of_names(values: Mapping[str, Any], targets: Iterable[str]) -> dict[str, Any]:
    """The same values by the names of the targets, where a selector doesn't take a pattern or their order matters.

    PEFT takes the first pattern that matches, and JSON has no order.
    """
    matches = {target: [key for key in values if re.match(rf"(.*\.)?({key})$", target)] for target in targets}
    if all(len(keys) < 2 for keys in matches.values()) and all(map(is_pattern, values)):
        return dict(values)
    return {"^" + target.replace(".", r"\.") + "$": values[keys[0]] for target, keys in matches.items() if keys}


def trainable_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Every trained parameter by its canonical name, sorted by name; those of a sharded model as they are.

    The names don't depend on what the adapter is called or on wrappers around the model.

    Raises:
        ModelError: nothing is trained, or the adapter's state doesn't cover everything that is trained.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ModelError("the model has no trainable parameter: add an adapter or call requires_grad_()")
    named = trained
    if isinstance(model, PeftModel):
        # Given the parameters themselves PEFT names them without the whole model's state, and without their shapes,
        # which a shard doesn't have.
        every = dict(model.named_parameters(remove_duplicate=False))
        adapter = model.active_adapter
        state = get_peft_model_state_dict(model, state_dict=every, adapter_name=adapter, save_embedding_layers=False)
        # The first of several names, which tied weights have and, with `bias`, those of saved modules; the original of
        # a saved module isn't trained.
        trained_names = [name for name in state if ".original_module." not in name]
        names = {id(state[name]): name for name in sorted(trained_names, reverse=True)}
        named = {name: state[name] for name in names.values()}
        if names.keys() != {*map(id, trained.values())}:
            raise ModelError(
                f"the adapter's state holds {len(named)} tensors but {len(trained)} are trained, or others: train only "
                "what the PEFT config names, such as modules_to_save"
            )
    return {name: named[name] for name in sorted(named)}


def trainable_tensors(model: Any) -> dict[str, Tensor]:
    """Every trained tensor by its canonical name, aliasing the model's own storage, sorted by name.

    Raises:
        ModelError: as `trainable_parameters`.
    """
    return {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}


def base_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The parameters of the base model by their own names, whatever adapter is around them."""
    if not isinstance(model, PeftModel):
        return dict(model.named_parameters())
    adapter = "." + model.active_adapter
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): p
        for name, p in model.get_base_model().named_parameters()
        if "lora_" not in name and f".modules_to_save{adapter}." not in name
    }


def base_fingerprint(model: Any, whole: Whole = nullcontext) -> dict[str, str]:
    """SHA-256 of the base parameters by dtype: as they are, and cast to bfloat16.

    Both sides compare the widest dtype that both have: two float32 loads must agree to the last bit, a float32 trainer
    and a bfloat16 server after the cast that `from_pretrained` made. Of a quantised base it is the checkpoint's,
    which a base in full has, too, that was loaded from it.

    Args:
        model: With an adapter or without.
        whole: Gives a parameter's whole value while it is entered, where the model is sharded; each is entered once,
            sorted by name.

    Raises:
        ModelError: a quantised base whose checkpoint can't be found, or is quantised itself.
    """
    parameters = base_parameters(model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    checkpoint = Checkpoint(base) if is_quantised(base) else None
    first = next(iter(parameters))
    own_dtype = parameters[first].dtype if checkpoint is None else checkpoint.tensor(first).dtype
    own = str(own_dtype).removeprefix("torch.")
    digests = {dtype: hashlib.sha256() for dtype in dict.fromkeys([own, "bfloat16"])}
    for name in sorted(parameters):
        value = whole(parameters[name]) if checkpoint is None else nullcontext(checkpoint.tensor(name))
        with value as parameter:
            tensor = parameter.detach()
            for dtype, digest in digests.items():
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                for chunk in tensor.reshape(-1).split(_HASH_CHUNK_ELEMENTS):
                    cast = chunk.to(device="cpu", dtype=getattr(torch, dtype)).contiguous()
                    digest.update(cast.view(torch.uint8).numpy())
    return {dtype: digest.hexdigest() for dtype, digest in digests.items()}
