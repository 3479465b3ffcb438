"""`completion`: a script by which a shell completes commands, options, the configuration's keys and their choices.

The script is made once, so that the shell never waits for Python at a key press.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import shtab

from shared.config_keys import keys

_FOLDER = "DIR"


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of a command line.

    Args:
        parser: The command line, which is given the configuration's keys as options: don't parse with it afterwards.
        shell: `bash`, `zsh` or `fish`.
    """
    for command in _commands(parser):
        if any("--config" in action.option_strings for action in command._actions):
            _add_keys(command)
        for action in command._actions:
            if action.type is Path:
                action.complete = shtab.DIRECTORY if action.metavar == _FOLDER else shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell))


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _add_keys(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("configuration")
    for name, field in keys():
        if field.annotation is bool:
            group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
            continue
        kind = Path if Path in (field.annotation, *get_args(field.annotation)) else str
        group.add_argument(f"--{name}", choices=_choices(field.annotation), type=kind)


def _choices(annotation: Any) -> list[str] | None:
    if get_origin(annotation) is not Literal:
        return None
    return [str(choice) for choice in get_args(annotation)]
