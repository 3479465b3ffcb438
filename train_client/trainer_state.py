"""The run's state in a Trainer's checkpoint folder: JSON, so that reading it runs no code."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from shared.errors import CursorError

STATE_FILE = "subbatch.json"
_BYTES, _ITEMS = "$bytes", "$items"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` to a checkpoint folder, whole or not at all.

    Args:
        folder: The checkpoint's.
        state: Of text, numbers, bytes, lists, and mappings of them by text or number.
    """
    part = folder / f"{STATE_FILE}.part"
    part.write_text(json.dumps(_plain(state)) + "\n")
    os.replace(part, folder / STATE_FILE)


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote.

    Raises:
        CursorError: nothing is there, or nothing readable.
    """
    path = folder / STATE_FILE
    try:
        state = _restored(json.loads(path.read_text()))
    except FileNotFoundError:
        raise CursorError(
            f"checkpoint {folder} has no {STATE_FILE}: it was saved without SubbatchMixin or with save_only_model, or "
            "its job was killed while it saved: resume from another one"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise CursorError(f"{path} can't be read ({error}): resume from another checkpoint") from None
    if not isinstance(state, dict):
        raise CursorError(f"{path} holds no state of a run: resume from another checkpoint")
    return state


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(item) for key, item in value.items()}
        return {_ITEMS: [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_BYTES}:
        return base64.b64decode(value[_BYTES], validate=True)
    if value.keys() == {_ITEMS}:
        return {_restored(key): _restored(item) for key, item in value[_ITEMS]}
    return {key: _restored(item) for key, item in value.items()}
