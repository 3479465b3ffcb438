"""The options of `train-client evaluate`. Imports nothing heavy, since every command of `train-client` reads this."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from shared.cli import add_config_argument

ASK = ("hybrid", "program", "plain")
TEMPLATES = ("alpaca", "chat", "none")
ENGINES = ("transformers", "vllm")
# What MAmmoTH's evaluation, which the paper used, appends to a question.
TRIGGER = "Let's write a program."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command, apart from `--branch.key VALUE`."""
    what = parser.add_argument_group("what is asked")
    what.add_argument(
        "--questions",
        nargs="+",
        action="extend",
        metavar="FILE|SET",
        help="JSONL with question and answer (source and id if you like), or gsm8k, math, numglue, svamp, mathematics, "
        "simuleq from the hub",
    )
    what.add_argument("--limit", type=_at_least(1), metavar="N", help="only the first N questions of each set")
    what.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="ask no model: score a JSONL with answer, and prediction or output",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="answers.jsonl and scores.json go here")

    model = parser.add_argument_group("who is asked (what isn't given comes from the configuration's [model])")
    add_config_argument(parser)
    model.add_argument("--model", metavar="PATH", help="hub id, folder or .gguf file; also an adapter's folder")
    model.add_argument("--adapter", type=Path, metavar="DIR", help="what `train-client train` left in OUTPUT/model")
    model.add_argument("--revision", help="branch, tag or commit of a hub id")
    model.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    model.add_argument("--device", choices=["auto", "cpu", "cuda"], help="default auto, or cpu if train.device says so")
    model.add_argument("--engine", choices=ENGINES, default="transformers", help="default %(default)s")
    model.add_argument("--batch-size", type=_at_least(1), default=16, metavar="N", help="default %(default)s")

    how = parser.add_argument_group("how it is asked")
    how.add_argument(
        "--ask",
        choices=ASK,
        default="hybrid",
        help="hybrid: for a program, then for reasoning where that gives nothing; program: only the former; plain: "
        "each question as it stands, once (default %(default)s)",
    )
    how.add_argument("--trigger", default=TRIGGER, help="words that ask for a program (default: %(default)s)")
    how.add_argument("--template", choices=TEMPLATES, default="alpaca", help="around a question (default %(default)s)")
    how.add_argument("--max-new-tokens", type=_at_least(1), default=2048, metavar="N", help="default %(default)s")
    how.add_argument(
        "--tolerance",
        type=_share,
        metavar="X",
        help="relative error allowed where the right answer is a number but no integer (default 0.04 for math, as in "
        "MAmmoTH, else 0.001)",
    )


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is too small: give at least {least}")
        return value

    return number


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value
