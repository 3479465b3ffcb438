"""Which model is asked: a base, an adapter on it, or a model that was trained whole."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from shared.config import ModelConfig
from shared.errors import ConfigError, ModelError
from shared.model import load_base_model

_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_ENDS_BYTES = 1 << 20


@dataclass(frozen=True)
class Who:
    """The model that is asked.

    Attributes:
        base: What is loaded first.
        adapter: The folder of a PEFT adapter on it, if any.
        tokenizer: Where the tokenizer is.
    """

    base: ModelConfig
    adapter: Path | None
    tokenizer: str

    def settings(self) -> dict[str, Any]:
        """What identifies the model's answers, as JSON."""
        return {
            "model": self.base.path,
            "revision": self.base.revision,
            "dtype": self.base.dtype,
            "attention": self.base.attention,
            "adapter": str(self.adapter) if self.adapter else None,
            "weights": _digest(Path(self.base.path)),
            "adapter_weights": _digest(self.adapter) if self.adapter else None,
        }


def who_is_asked(config: ModelConfig, model: str | None, adapter: Path | None) -> Who:
    """Make sense of --model, --adapter and the configuration's [model].

    Args:
        config: The configuration's branch, with what the command line says of revision and dtype.
        model: A hub id, folder or .gguf file in place of `config.path`; or an adapter's folder.
        adapter: A folder that training left: an adapter, or a whole model.

    Raises:
        ConfigError: no model is named.
        ModelError: a folder that is neither, or an adapter whose base isn't known.
    """
    if model and adapter is None and _is_adapter(Path(model)):
        adapter, model = Path(model), None
    path = model or config.path
    if adapter is None:
        if not path:
            raise ConfigError("no model is named: give --model PATH, or --config FILE with model.path")
        return Who(config.model_copy(update={"path": path}), None, path)
    if not adapter.is_dir():
        raise ModelError(f"adapter {adapter} is not a folder: give what training left in OUTPUT/model")
    if not _is_adapter(adapter):
        if not (adapter / "config.json").is_file():
            raise ModelError(
                f"adapter {adapter} has neither {_ADAPTER_CONFIG} nor config.json: give what training left in "
                "OUTPUT/model"
            )
        # Trained whole: training writes no tokenizer beside it.
        has_tokenizer = (adapter / "tokenizer.json").is_file()
        return Who(config.model_copy(update={"path": str(adapter)}), None, str(adapter) if has_tokenizer else path)
    path = path or _base_of(adapter)
    return Who(config.model_copy(update={"path": path}), adapter, path)


def load_model(who: Who, device: torch.device) -> Any:
    """The model in eval mode on `device`.

    Raises:
        ModelError: it can't be loaded, or the adapter is of another model.
    """
    model = load_base_model(who.base, device)
    if who.adapter is None:
        return model
    hint = f"give the model that it was trained on (this one is {who.base.path})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing weights are an error here, just below
            adapted = PeftModel.from_pretrained(model, str(who.adapter)).eval()
        with safe_open(who.adapter / _ADAPTER_WEIGHTS, framework="pt") as file:
            theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"adapter {who.adapter} can't be put on the model ({reason}): {hint}") from error
    ours = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()}
    if ours.keys() != theirs.keys():
        only = sorted(ours.keys() ^ theirs.keys())[0]
        raise ModelError(
            f"adapter {who.adapter} has {len(theirs)} tensors, on this model it would have {len(ours)} (first "
            f"difference: {only}): {hint}"
        )
    return adapted


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device.

    Raises:
        ConfigError: cuda, and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device; give --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _is_adapter(folder: Path) -> bool:
    return (folder / _ADAPTER_CONFIG).is_file()


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads((adapter / _ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not base:
        raise ModelError(f"adapter {adapter} doesn't say what it was trained on: give --model PATH or --config FILE")
    return str(base)


def _digest(path: Path) -> str | None:
    """A hash over names, sizes, first and last MiB of the weights' files; None for what isn't on this machine.

    Training changes every tensor that it trains, so the ends of the files tell; all of a large model takes long.
    """
    files = [path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else []
    files = [file for file in files if file.suffix in _WEIGHTS]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(_ENDS_BYTES))
            content.seek(max(0, size - _ENDS_BYTES))
            digest.update(content.read())
    return digest.hexdigest() if files else None
