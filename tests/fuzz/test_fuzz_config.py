"""The configuration from a file, the environment and the command line: a tree, or a ConfigError."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import strategies as st

from shared.config import Config, load_config
from shared.errors import ConfigError
from tests.fuzz.budget import fuzz
from tests.fuzz.damage import damaged

KEYS = [f"{branch}.{key}" for branch, field in Config.model_fields.items() for key in type(field.default).model_fields]
VALUES = st.one_of(
    st.sampled_from(
        ["0", "-1", "1e309", "nan", "inf", "true", "null", "", "[]", "{}", "[1]", '{"a": 1}', "9" * 5000, "[" * 5000,
         "../../etc", "\ud800", '"', "2026-01-01", "1_000", "0x10"]
    ),
    st.text(st.characters(exclude_characters="\0"), max_size=30),
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(KEYS).map(lambda key: key + ".x"), st.text("abt._", max_size=9)
)


def accepts(path: Path | None, overrides: list[str]) -> None:
    try:
        config = load_config(path, overrides)
    except ConfigError:
        return
    assert Config.model_validate(config.model_dump()) == config


def test_any_file_is_a_tree_or_refused(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "deploy" / "configs" / "phi2-mathinstruct.toml"
    file = tmp_path / "run.toml"

    def load(content: bytes) -> None:
        file.write_bytes(content)
        accepts(file, [])

    lines = st.builds(
        lambda pairs: "".join(f"{key} = {value}\n" for key, value in pairs).encode(errors="replace"),
        st.lists(st.tuples(NAMES, VALUES), max_size=4),
    )
    fuzz(load, st.one_of(damaged(example.read_bytes()), lines, st.binary(max_size=100)), quick=25)


def test_any_environment_and_command_line_are_a_tree_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(variables: list[tuple[str, str]], options: list[tuple[str, str]], stray: list[str]) -> None:
        with monkeypatch.context() as patch:
            for key, value in variables:
                name = "SUBBATCH_" + key.upper().replace(".", "__")
                patch.setenv(name, os.fsdecode(value.encode("utf-8", "replace")))
            accepts(None, [part for key, value in options for part in (f"--{key}", value)] + stray)

    pairs = st.lists(st.tuples(NAMES, VALUES), max_size=2)
    fuzz(load, pairs, pairs, st.lists(VALUES, max_size=1), quick=25)
