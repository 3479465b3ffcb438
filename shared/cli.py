"""What both command lines share: logging, and errors as one line and an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.config import Config, load_config
from shared.errors import ConfigError, SubbatchError, help_link
from shared.json_log import log_as_json, logs_json

if TYPE_CHECKING:
    from rich.console import Console

EXIT_ERROR = 1
EXIT_USAGE = 2
# Tables that go to a file or a pipe have no terminal to fit into.
_FILE_WIDTH = 140


def make_console() -> Console:
    """A console on standard output, as wide as the terminal; wide enough for any table where there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """The option that `read_config` reads."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file (default: the one that SUBBATCH_CONFIG names); every key can also be given as "
        "--branch.key VALUE or as SUBBATCH_BRANCH__KEY",
    )


def add_completion_argument(parser: argparse.ArgumentParser, *, of: argparse.ArgumentParser) -> None:
    """The options of `completion`, which prints the script of the command line `of`."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="for which shell")
    parser.set_defaults(completed=of)


def print_completion(arguments: argparse.Namespace, _rest: list[str]) -> None:
    """Print the script that the arguments ask for."""
    from shared.completion import completion_script

    print(completion_script(arguments.completed, arguments.shell))


def add_dry_run_argument(parser: argparse.ArgumentParser) -> None:
    """The option that asks for `dry_run`."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the configuration as it was read and what it will take, check what can be checked, and stop",
    )


def dry_run(arguments: argparse.Namespace, rest: Sequence[str], plan: Callable[[Config], Iterable[str]]) -> None:
    """Print the configuration that arguments name, and the lines of a plan for it; of several ranks the first prints.

    What is printed is TOML, which read as a configuration gives this one.
    """
    from shared.resolved import resolved_lines

    config = read_config(arguments, rest)
    lines = [*resolved_lines(config, arguments.config, rest), ""]
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first:
        print(*lines, sep="\n")
    for line in [*plan(config), "ready: nothing was bound, written or loaded"]:
        if is_first:
            print(f"# {line}")


def read_config(arguments: argparse.Namespace, rest: Sequence[str]) -> Config:
    """The configuration that a command's arguments name; from here on log lines look as it says."""
    config = load_config(arguments.config, list(rest))
    if config.log.format == "json":
        log_as_json(rank=int(os.environ.get("RANK", "0")), pid=os.getpid())
    return config


def _tell(error: SubbatchError) -> None:
    """Say why a command ended, where its log lines go and as they look."""
    text = " ".join(str(error).split())
    if link := help_link(error):
        text = f"{text} (see {link})"
    if logs_json():
        logging.getLogger(__name__).critical("%s", text)
    else:
        print("error:", text, file=sys.stderr)


def run_command(main: Callable[[], None], *, refused: int = EXIT_ERROR) -> int:
    """Run a command; an error of ours becomes one line on standard error and an exit code other than 0.

    Args:
        main: The command.
        refused: The exit code of errors other than a wrong configuration's, which is 2.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    for chatty in ("httpx", "datasets", "transformers", "filelock", "fsspec"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # What one library says of another's use of it is for their developers.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        main()
    except SubbatchError as error:
        _tell(error)
        return EXIT_USAGE if isinstance(error, ConfigError) else refused
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
