"""A run's whole configuration, changed and written to a file, for whoever starts runs of the product."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from shared.config import Config
from shared.errors import ConfigError
from train_client.process import environment_of

_OUR_PREFIX = "SUBBATCH_"


def with_values(tree: Mapping[str, Any], values: Mapping[str, Any]) -> Config:
    """A configuration with some "branch.key" values replaced.

    Raises:
        ValidationError: values that aren't valid, or don't go together.
    """
    changed = {branch: dict(keys) for branch, keys in tree.items()}
    for name, value in values.items():
        branch, key = name.split(".", 1)
        changed[branch][key] = value
    return Config.model_validate(changed)


def write_config(config: Config, path: Path) -> Path:
    """Write a whole configuration as TOML.

    Raises:
        ConfigError: it holds a value that TOML can't say: a None that isn't the default.
    """
    tree = config.model_dump(mode="json", exclude_none=True)
    again, wanted = Config.model_validate(tree).model_dump(), config.model_dump()
    if lost := [branch for branch in wanted if again[branch] != wanted[branch]]:
        raise ConfigError(f"a None in [{'], ['.join(lost)}] can't be written to a TOML file: leave it at its default")
    path.write_text(tomli_w.dumps(tree))
    return path


def environment_beside_config() -> dict[str, str]:
    """For a command that is given a whole configuration: what our environment said is in it, and would win over it."""
    return {key: value for key, value in environment_of().items() if not key.upper().startswith(_OUR_PREFIX)}
