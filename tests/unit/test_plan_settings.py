"""Where a plan's costs come from: arithmetic by hand, a file, options, a benchmark; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError, DataError
from train_client.plan.costs import Costs
from train_client.plan.measured import measured_costs, predict_measured, read_result
from train_client.plan.settings import read_settings

# Two operations per parameter and token: at 2 TFLOP/s a model of 10^9 parameters takes a millisecond for a token.
SMALL: dict[str, Any] = {"model_params": 1e9, "tflops": 2, "tokens_per_row": 100, "score_forwards": 1}


def test_a_backward_pass_counts_two_forward_passes_in_full_fine_tuning_and_one_where_hardly_anything_is_trained() -> (
    None
):
    full = read_settings(None, SMALL | {"trained_params": 1e9}).costs()
    assert full.train_seconds == pytest.approx(64 * 0.1 * 3)
    assert full.train_large_seconds == pytest.approx(128 * 0.1 * 3)
    assert full.score_seconds == full.inline_score_seconds == pytest.approx(128 * 0.1)
    adapter = read_settings(None, SMALL | {"trained_params": 1}).costs()
    assert adapter.train_seconds == pytest.approx(64 * 0.1 * 2)
    checkpointed = read_settings(None, SMALL | {"trained_params": 1, "checkpointing": True}).costs()
    assert checkpointed.train_seconds == pytest.approx(64 * 0.1 * 3)


def test_trained_weights_are_copied_sent_and_loaded_as_float32() -> None:
    rates = {f"{what}_gigabytes_per_second": rate for what, rate in (("snapshot", 8), ("push", 0.5), ("load", 2))}
    costs = read_settings(None, SMALL | {"trained_params": 5e8} | rates).costs()
    assert (costs.snapshot_seconds, costs.upload_seconds, costs.load_seconds) == pytest.approx((0.25, 4.0, 1.0))


def test_measured_passes_take_the_place_of_arithmetic_and_a_slower_selector_scores_longer() -> None:
    passes = {"forward_seconds_per_token": 1e-3, "backward_seconds_per_token": 4e-3, "selector_speed": 0.5}
    costs = read_settings(None, {"tokens_per_row": 100, "score_forwards": 1.5} | passes).costs()
    assert costs.train_seconds == pytest.approx(64 * 0.5)
    assert costs.inline_score_seconds == pytest.approx(1.5 * 128 * 0.1)
    assert costs.score_seconds == pytest.approx(2 * costs.inline_score_seconds)


def test_what_is_given_in_seconds_counts_and_its_like_follows_from_it() -> None:
    settings = read_settings(None, {"train_seconds": 3.0, "score_seconds": 2.0, "selector_speed": 0.5})
    costs = settings.costs()
    assert (costs.train_seconds, costs.train_large_seconds) == (3.0, 6.0)
    assert (costs.score_seconds, costs.inline_score_seconds) == (2.0, 1.0)
    origins = [settings.origin(f"{name}_seconds", measured=False) for name in ("train", "train_large", "upload")]
    assert origins == ["given", "derived", "arithmetic"]


def test_options_count_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "costs.toml"
    path.write_text("train_seconds = 3.0\nupload_seconds = 1\ntrainers = 8\n")
    settings = read_settings(path, {"trainers": "2", "upload_seconds": "0.5"})
    assert (settings.costs().train_seconds, settings.costs().upload_seconds) == (3.0, 0.5)
    assert settings.layout().trainers == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upload_seconds": "-1"}, "upload_seconds: .* greater than or equal to 0 .given '-1'."),
        ({"tflops": "fast"}, "tflops: .*valid number"),
        ({"tflops": "nan"}, "tflops"),
        ({"sub_batch_size": 200}, "sub-batch of 200 rows is to be chosen from 128"),
        ({"trained_params": 3e9}, "trained_params 3000000000.0 are more than model_params"),
    ],
)
def test_settings_that_can_not_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(None, options).costs()


@pytest.mark.parametrize(
    ("text", "message"),
    [("trainer = 4", "trainer: unknown key; known keys are .*trainers"), ("trainers = ", "is not valid TOML")],
)
def test_a_file_that_can_not_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "costs.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings(path, {})
    with pytest.raises(ConfigError, match="can't be read"):
        read_settings(tmp_path / "none.toml", {})


FOUND = Costs(16, 32, 1.0, 2.0, 0.8, 0.9, fixed_seconds=0.1, upload_seconds=0.3)


def result(**changes: Any) -> dict[str, Any]:
    arms = {
        name: {"step_seconds": 1.0, "wait_fraction": 0.0}
        for name in ("floor", "inline", "staleness_0", "staleness_1", "push_every_2")
    }
    return {"arms": arms, "plan": {"costs": dataclasses.asdict(FOUND)}} | changes


def test_a_benchmarks_costs_are_taken_and_single_ones_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result()))
    measured = measured_costs(read_result(tmp_path))
    assert measured == FOUND
    changed = read_settings(None, {"upload_seconds": 0.1, "trainers": 8}).costs(measured)
    assert changed == dataclasses.replace(FOUND, upload_seconds=0.1)
    assert [read_settings(None, {}).layout(measured=each).trainers for each in (True, False)] == [1, 4]
    with pytest.raises(ConfigError, match="large_batch_size, tflops: costs are measured"):
        read_settings(None, {"tflops": 100, "large_batch_size": 64}).costs(measured)


def test_every_arm_of_a_benchmark_is_predicted_with_its_own_timing() -> None:
    predicted = predict_measured(FOUND, result()["arms"])
    assert {name: arm.step_seconds for name, arm in predicted.items()} == pytest.approx(
        {
            "floor": 1.1,
            "inline": 2.0,
            "staleness_0": 2.2,
            "staleness_1": 1.1,
            # Version v is there 0.3 s after step v began; scoring for v + 1 then ends as that step could begin.
            "push_every_2": 1.1,
        }
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("{", "is not JSON"),
        ('{"arms": {}}', "has no arms and no costs"),
        ('{"arms": {}, "plan": {"costs": {"forward": 1}}}', "of another release"),
    ],
)
def test_a_result_that_is_none_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(DataError, match=message):
        measured_costs(read_result(tmp_path))
