"""Looks at the store and the model without loading either: whole, and made for each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from shared.config import DataConfig, ModelConfig
from shared.dataset import Store
from shared.doctor.finding import Finding
from shared.errors import ConfigError, FingerprintError, ModelError
from shared.tokenizer import load_tokenizer, tokenizer_fingerprint

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Weights:
    """A model's weights as its files announce them.

    Attributes:
        parameters: How many; 0 where that isn't told without loading them.
        bytes: What they take in memory, in `model.dtype`.
    """

    parameters: int
    bytes: int


def store(data: DataConfig) -> Iterable[Finding]:
    """Whether the store is there and whole.

    Raises:
        SubbatchError: it isn't.
    """
    opened = _open(data)
    yield Finding(
        "store",
        "ok",
        f"{opened.path}: {len(opened)} rows of {len(opened.source_rows)} sources ({opened.fingerprint[:12]})",
    )


def model(config: ModelConfig, data: DataConfig | None) -> Iterable[Finding]:
    """Whether the model's files are there and whole, and fit the store's tokens.

    Args:
        config: Where it is.
        data: Where the store is; None where the server sends rows, and compares tokenizers itself.

    Raises:
        SubbatchError: something is missing, damaged, or of another model.
    """
    if not config.path:
        raise ConfigError("model.path is not set: give a hub id, a folder or a .gguf file")
    tokenizer = tokenizer_fingerprint(load_tokenizer(config.path, config.revision))
    weights, size = announced_weights(config), _vocabulary(config)
    told = f"{weights.parameters / 1e6:,.1f} M parameters" if weights.parameters else "weights not looked at"
    if data is None:
        yield Finding("model", "ok", f"{config.path}: {told}")
        return
    opened = _open(data)
    if tokenizer != opened.manifest.tokenizer.fingerprint:
        raise FingerprintError(
            f"tokenizer of model.path {config.path} is {tokenizer}, store {opened.path} was prepared with "
            f"{opened.manifest.tokenizer.fingerprint}: prepare the store with this model's tokenizer"
        )
    if size is not None and opened.manifest.max_token_id >= size:
        raise ModelError(
            f"the vocabulary of model.path {config.path} has {size} tokens, the store holds token id "
            f"{opened.manifest.max_token_id}: prepare the store with this model's tokenizer"
        )
    yield Finding("model", "ok", f"{config.path}: {told}, its tokenizer is the store's")


def announced_weights(config: ModelConfig) -> Weights:
    """Read the headers of a folder's safetensors files.

    Raises:
        ModelError: one is missing or damaged.
    """
    folder = Path(config.path)
    count = sum(_parameters(path) for path in _weight_files(folder)) if folder.is_dir() else 0
    return Weights(count, count * _BYTES[config.dtype])


def _weight_files(folder: Path) -> Iterator[Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ModelError(f"model.path {folder} lacks {len(missing)} of its {len(names)} files, the first is "
                             f"{missing[0]}: copy or download it again")  # fmt: skip
        yield from (folder / name for name in names)
    elif single.is_file():
        yield single
    elif not list(folder.glob("pytorch_model*.bin")):
        raise ModelError(f"model.path {folder} holds no weights: copy or download model.safetensors")


def _parameters(path: Path) -> int:
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights {path} are damaged ({error}): copy or download them again") from None
    count = 0
    for shape in shapes:
        size = 1
        for length in shape:
            size *= length
        count += size
    return count


def _vocabulary(config: ModelConfig) -> int | None:
    if config.path.endswith(".gguf"):
        return None
    try:
        settings = AutoConfig.from_pretrained(config.path, revision=config.revision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.path {config.path} has no usable config.json: {' '.join(str(error).split())}"
        ) from None
    size = settings.get_text_config().vocab_size
    return int(size) if size is not None else None


def _open(data: DataConfig) -> Store:
    if data.store is None:
        raise ConfigError("data.store is not set: give the folder that `selector-server prepare` wrote")
    return Store.open(data.store)
