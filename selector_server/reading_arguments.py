"""The options of `selector-server prepare` that say what is in the data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from selector_server.reading import Reading


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_reading` and `read_chat_template` read."""
    columns = parser.add_argument_group("which columns are what")
    columns.add_argument("--instruction-column", metavar="NAME", help="what is asked (default: instruction)")
    columns.add_argument("--output-column", metavar="NAME", help="what is answered (default: output)")
    columns.add_argument("--input-column", metavar="NAME", help="what the instruction is about, put behind it")
    columns.add_argument(
        "--messages-column",
        metavar="NAME",
        help="conversations (default: messages or conversations, where there is no instruction and output)",
    )
    columns.add_argument("--source-column", default="source", metavar="NAME", help="sources (default: %(default)s)")
    columns.add_argument(
        "--sources-by", choices=["column", "file", "folder"], default="column", help="what tells sources apart"
    )
    turns = parser.add_argument_group("what becomes of them")
    turns.add_argument(
        "--template",
        choices=["alpaca", "chat"],
        default="alpaca",
        help="around instructions: Alpaca's, or the tokenizer's own as around conversations (default %(default)s)",
    )
    turns.add_argument("--chat-template", type=Path, metavar="FILE", help="in place of the tokenizer's own")
    turns.add_argument("--system", metavar="TEXT", help="first turn of conversations that have no system's")
    turns.add_argument(
        "--train-on", choices=["all", "last"], default="all", help="which answers of a conversation have a loss"
    )
    turns.add_argument(
        "--tool-turns", choices=["refuse", "render"], default="refuse", help="render: leave them to the chat template"
    )
    turns.add_argument("--drop-refused", action="store_true", help="drop and count rows that can't be used")


def read_reading(arguments: argparse.Namespace) -> Reading:
    """What the options say.

    Raises:
        ConfigError: options that exclude each other.
    """
    from selector_server.layout import Columns
    from selector_server.reading import Reading

    given = {
        what: name
        for what in ("instruction", "output", "input", "messages")
        if (name := getattr(arguments, f"{what}_column")) is not None
    }
    if "messages" in given and len(given) > 1:
        raise ConfigError(f"--messages-column {given['messages']} takes the place of the other columns: leave them out")
    return Reading(
        columns=Columns(**given) if given else None,
        source_column=arguments.source_column,
        sources_by=arguments.sources_by,
        template=arguments.template,
        system=arguments.system,
        train_on=arguments.train_on,
        tools=arguments.tool_turns == "render",
        drop_refused=arguments.drop_refused,
    )


def read_chat_template(arguments: argparse.Namespace) -> str | None:
    """The text of the chat template that was given.

    Raises:
        ConfigError: it can't be read.
    """
    if arguments.chat_template is None:
        return None
    try:
        return str(arguments.chat_template.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {arguments.chat_template} can't be read: {error}") from error
