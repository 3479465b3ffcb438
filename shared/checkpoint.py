"""The checkpoint that a model was loaded from, read tensor by tensor: what a base in 8 or 4 bits was before.

Two quantised bases, or a quantised and a whole one, have no bytes in common that could be compared. Where they come
from has: so a quantised base has the fingerprint of its checkpoint, the same that a whole base loaded from it has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from shared.errors import ModelError


class Checkpoint:
    """Tensors by the names that the model's parameters have."""

    def __init__(self, model: Any) -> None:
        """Find the files.

        Args:
            model: As `from_pretrained` gave it, from safetensors of floating-point numbers.

        Raises:
            ModelError: they aren't there.
        """
        self._path, revision = model.config.name_or_path, getattr(model.config, "_commit_hash", None)
        self._prefix = f"{model.base_model_prefix}."
        index = self._find(SAFE_WEIGHTS_INDEX_NAME, revision)
        if index:
            files: dict[str, str] = json.loads(index.read_text())["weight_map"]
            found = {file: self._find(file, revision) for file in set(files.values())}
        else:
            found = {SAFE_WEIGHTS_NAME: self._find(SAFE_WEIGHTS_NAME, revision)}
        if lacking := [file for file, path in found.items() if path is None]:
            raise ModelError(
                "the base is quantised, so its fingerprint is that of the checkpoint it was loaded from: "
                f"{self._path or 'where its config names none,'} lacks {lacking[0]}: load it from a folder or hub id "
                "with safetensors that aren't quantised"
            )
        self._files: dict[str, Any] = {file: safe_open(path, framework="pt") for file, path in found.items()}
        self._where = {name: file for file, opened in self._files.items() for name in opened.keys()}

    def tensor(self, name: str) -> Tensor:
        """The value that a parameter was loaded from.

        Raises:
            ModelError: the checkpoint has none of that name, or one that is quantised already.
        """
        key = next((key for key in (name, name.removeprefix(self._prefix)) if key in self._where), None)
        try:
            tensor: Tensor | None = self._files[self._where[key]].get_tensor(key) if key else None
        except SafetensorError as error:
            raise ModelError(f"checkpoint {self._path} can't be read: {error}") from error
        if tensor is None or not tensor.is_floating_point():
            held = "no such tensor" if tensor is None else f"it as {tensor.dtype}"
            raise ModelError(
                f"the base is quantised, so its fingerprint is that of the checkpoint it was loaded from: for {name} "
                f"{self._path} holds {held}: load the base from a checkpoint that isn't quantised, and quantise it then"
            )
        return tensor

    def _find(self, file: str, revision: str | None) -> Path | None:
        if not self._path:
            return None
        found = cached_file(self._path, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None
