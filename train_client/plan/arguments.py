"""The options of `train-client plan`. Imports nothing heavy, since every command of `train-client` reads this."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from train_client.plan.settings import CostSettings, LayoutSettings, NoiseSettings, PlanSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every key of the settings as an option, and where results go."""
    parser.add_argument("--out", type=Path, default=Path("out/plan"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="TOML file of the keys below, with _ in place of -")
    parser.add_argument("--measured", type=Path, metavar="DIR", help="the --out folder of `train-client bench overlap`")
    parser.add_argument("--simulate", action="store_true", help="play every step with jitter, and draw plan.png")
    for model in (CostSettings, LayoutSettings, NoiseSettings):
        group = parser.add_argument_group((model.__doc__ or "").split(".")[0].lower())
        for name, field in model.model_fields.items():
            option = "--" + name.replace("_", "-")
            text = (field.description or "").replace("%", "%%")
            if field.annotation is bool:
                group.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=text)
                continue
            default = "" if field.default is None else f" (default {field.default:g})"
            group.add_argument(option, default=argparse.SUPPRESS, metavar="X", help=text + default)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as options."""
    return {key: value for key, value in vars(arguments).items() if key in PlanSettings.model_fields}
