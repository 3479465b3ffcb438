"""Costs out of what `train-client bench overlap` measured, and its arms as layouts, so that the two can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import DataError
from train_client.plan.costs import Costs, Layout
from train_client.plan.predict import Prediction, predict, predict_arms

RESULT_FILE = "result.json"


def read_result(folder: Path) -> dict[str, Any]:
    """What a benchmark wrote.

    Raises:
        DataError: no such file, or not a benchmark's of this release.
    """
    path = folder / RESULT_FILE
    what = "give the --out folder of `train-client bench overlap`"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}: {what}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): {what}") from None
    if not (isinstance(result, dict) and {"arms", "plan"} <= result.keys()):
        raise DataError(f"{path} has no arms and no costs of a plan: {what}")
    return result


def measured_costs(result: Mapping[str, Any]) -> Costs:
    """The costs that a benchmark found, of one training and one selector device.

    Raises:
        DataError: other costs than this release's.
        ConfigError: they can't be costs.
    """
    try:
        return Costs(**result["plan"]["costs"])
    except (KeyError, TypeError) as error:
        raise DataError(f"the benchmark's costs are of another release ({error}): run it again") from None


def predict_measured(costs: Costs, arms: Mapping[str, Any]) -> dict[str, Prediction]:
    """What is predicted for each arm of a benchmark, which has one training and at most one selector device."""
    predictions = predict_arms(costs, Layout())
    for name in arms:
        if match := re.fullmatch(r"push_every_(\d+)", name):
            predictions[name] = predict(costs, Layout(push_every=int(match[1])))
    return {name: predictions[name] for name in arms if name in predictions}
