"""The options of `train-client bench`. Imports nothing heavy, since every command of `train-client` reads this."""

from __future__ import annotations

import argparse
from pathlib import Path

_NAMES = ("overlap", "push", "deltas", "telemetry")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command, apart from `--branch.key VALUE`."""
    parser.add_argument(
        "name", choices=_NAMES, help="what selection costs the trainers, a push, deltas, metrics and traces"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for result.json and pictures")
    parser.add_argument("--quick", action="store_true", help="under five minutes on two cores")
    overlap = parser.add_argument_group("overlap")
    overlap.add_argument("--config", type=Path, metavar="FILE", help="TOML file with your own model, data and settings")
    overlap.add_argument("--full", action="store_true", help="train all weights, not LoRA")
    overlap.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations in the backward")
    overlap.add_argument("--sweep", metavar="R/B,...", help="ratios of sub-batch to large batch, such as 1/2,1/4,1/8")
    overlap.add_argument("--trainer-device", default="cpu", metavar="DEVICE", help="cpu[:CORE] or cuda[:GPU]")
    overlap.add_argument("--server-device", default="cpu", metavar="DEVICE", help="cpu[:CORE] or cuda[:GPU]")
    overlap.add_argument("--rounds", type=int, metavar="N", help="turns of every arm (default 7, quick 5)")
    overlap.add_argument("--steps", type=int, metavar="N", help="steps of a turn that count (default 8, quick 4)")
    overlap.add_argument(
        "--restart", action="store_true", help="start arms anew for every turn: for models that don't fit side by side"
    )
