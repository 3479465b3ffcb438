"""The configuration as it was read, key by key, and which of file, environment and command line said what."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from shared.config import CONFIG_VARIABLE, ENV_DELIMITER, ENV_PREFIX, Config
from shared.selection_config import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def resolved_lines(
    config: Config, path: Path | None, overrides: Sequence[str], environment: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """The tree as TOML that gives the same tree again; a comment says where what isn't a default comes from.

    Tokens are no part of the tree, only the files that hold them are named.

    Args:
        config: As it was read.
        path: The file that was given; None for the one that the environment names, if any.
        overrides: Arguments of the command line.
        environment: Its variables.
    """
    file = path or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    in_file = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
    variables = {name.upper() for name in environment}
    defaults = Config.model_construct().model_dump(mode="json")

    def origin(at: tuple[str, ...]) -> str:
        if any(text.split("=")[0] in _options(at) for text in overrides):
            return "command line"
        if named := [name for name in _variables(at) if name in variables]:
            return f"environment, {named[0]}"
        if _is_in(in_file, at):
            return str(file)
        return f"preset {config.selection.preset!r}" if at[-1] in PRESETS[config.selection.preset] else "derived"

    yield from _table(config.model_dump(mode="json"), defaults, (), origin)


def _table(values: Mapping[str, Any], defaults: Any, at: tuple[str, ...], origin: Any) -> Iterator[str]:
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    told = [(key, value) for key, value in values.items() if key not in tables and value is not None]
    if at and told:
        yield f"[{'.'.join(at)}]"
    for key, value in told:
        # An empty tuple's elements may span lines in TOML; a line each is what can be annotated.
        line = " ".join(tomli_w.dumps({key: value}).split())
        default = defaults.get(key) if isinstance(defaults, dict) else None
        yield line if value == default else f"{line}  # {origin((*at, key))}"
    for key, table in tables.items():
        inner = defaults.get(key) if isinstance(defaults, dict) else None
        yield from _table(table, inner, (*at, key), origin)


def _options(at: tuple[str, ...]) -> set[str]:
    """The options that may have set a key: its own, or a whole branch's."""
    return {f"--{'.'.join(at[:end])}" for end in range(1, len(at) + 1)} | {f"--no-{'.'.join(at)}"}


def _variables(at: tuple[str, ...]) -> list[str]:
    return [ENV_PREFIX + ENV_DELIMITER.join(at[:end]).upper() for end in range(len(at), 0, -1)]


def _is_in(tree: Any, at: tuple[str, ...]) -> bool:
    for key in at:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True
