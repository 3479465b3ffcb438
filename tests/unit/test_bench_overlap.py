"""`bench overlap` without its processes: schedules, statistics, figures of made-up turns, devices, arms, pictures."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console

from shared.config import Config
from shared.dataset import Store
from shared.errors import ConfigError, DataError
from shared.sampler import draw_large_batch
from tests.made_up_turns import LARGE, SCORE, SELECTION, TRAIN, lines_of
from train_client.bench import devices as devices_module
from train_client.bench.arms import ARMS, DEFAULT, FLOOR, INLINE, LARGE_BATCH
from train_client.bench.devices import find_devices
from train_client.bench.interleave import Schedule, Turns
from train_client.bench.measure import clean_steps, estimate, mean_of, quantile
from train_client.bench.memory import Peaks
from train_client.bench.overlap import Options, parse_ratios
from train_client.bench.picture import draw_arms
from train_client.bench.results import summarise
from train_client.bench.tables import findings, print_result
from train_client.bench.workload import Size, make_workload
from train_client.demo.canvas import BLUE, ORANGE

STEP = TRAIN + 0.04


def made_up(*, rounds: int = 5, score: float = SCORE, counts_push: bool = False) -> tuple[dict[str, Turns], dict]:
    """Turns of all arms, and their result."""
    turns = {}
    for name in ARMS:
        rows = lines_of(name, steps=14, score=score)
        turns[name] = Turns([clean_steps(rows, range(2, 10), []) for _ in range(rounds)], rows)
    peaks = {name: Peaks((300 if name != LARGE_BATCH else 570) << 20, 200 << 20) for name in ARMS}
    result = summarise(turns, peaks, sizes=(16, 32), weights_bytes=1 << 20, counts_push=counts_push)
    return turns, result


def test_arms_cost_what_their_parts_add_up_to():
    _, result = made_up()
    seconds = {name: arm["step_seconds"] for name, arm in result["arms"].items()}
    inline = STEP + SCORE + 0.04
    expected = {FLOOR: STEP, DEFAULT: STEP + 0.01, INLINE: inline, LARGE_BATCH: LARGE + 0.04}
    # From one optimizer's end to the next: the snapshot, the upload, the selection, and training.
    expected["staleness_0"] = STEP + 0.01 + SELECTION
    assert {name: seconds[name] for name in expected} == pytest.approx(expected)
    assert result["selector_seconds"] == pytest.approx(SELECTION)
    assert result["arms"]["staleness_0"]["wait_fraction"] == pytest.approx(SELECTION / (STEP + 0.01 + SELECTION))
    assert result["arms"][DEFAULT]["device_seconds"] == pytest.approx(2 * (STEP + 0.01))
    assert result["arms"][INLINE]["device_seconds"] == pytest.approx(inline)
    assert result["arms"]["push_every_4"]["wire_bytes"] == 2000 + (1 << 18)
    assert result["arms"][FLOOR]["wire_bytes"] == 0
    assert result["memory"] == {"default_to_floor": 1.0, "large_batch_to_default": 1.9, "paper": 2.0}


def test_a_selector_that_is_slower_than_the_trainer_is_what_the_bound_allows():
    _, fast = made_up()
    assert fast["bound"]["allowed_seconds"] == pytest.approx(STEP)
    assert fast["bound"]["ratio"]["median"] == pytest.approx((STEP + 0.01) / STEP)
    assert fast["bound"]["verdict"] == "holds"
    _, slow = made_up(score=2.5)
    assert slow["bound"]["allowed_seconds"] == pytest.approx(SELECTION - SCORE + 2.5)
    assert slow["selector_to_floor"]["median"] == pytest.approx((SELECTION - SCORE + 2.5) / STEP)
    said = " ".join(findings(slow | {"floor_replays": {"same": 1, "of": 2}}))
    assert "the selector can't keep up: a selection takes 2.505" in said
    assert "in 1 of 2 steps" in said


def test_in_full_fine_tuning_the_bound_allows_snapshot_and_upload_too():
    _, result = made_up(counts_push=True)
    # The upload is seen where the trainer waits for it; in place of what the server alone says of it.
    assert result["bound"]["allowed_seconds"] == pytest.approx(0.01 + max(STEP, SELECTION))


def test_the_plan_made_of_the_pieces_foretells_the_arms():
    _, result = made_up()
    off = result["plan"]["difference"]
    assert off.keys() == ARMS.keys()
    assert all(abs(each) < 0.02 for each in off.values())
    assert result["plan"]["margin_measured"]["median"] == pytest.approx((STEP + SCORE + 0.04) / (STEP + 0.01))


def test_steps_that_a_pause_cut_into_do_not_count_and_neither_do_those_whose_selection_it_cut():
    rows = lines_of(DEFAULT, steps=8)
    begins = [row["wait_started_ns"] for row in rows]
    middle = begins[3] + 500_000_000
    kept = clean_steps(rows, range(1, 7), [(middle, middle + 1)])
    # Step 3 was trained, and the selection of step 4 made, when the pause came.
    assert [step.number for step in kept] == [1, 2, 5, 6]
    assert mean_of(kept, "seconds") == pytest.approx(STEP + 0.01)
    with pytest.raises(DataError, match="all of the steps 1 to 6"):
        clean_steps(rows, range(1, 7), [(begins[0], begins[7])])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 12])
def test_an_interval_holds_the_median_as_often_as_it_says(count: int):
    """Every value lies above or below the true median with equal odds: all patterns of signs, counted."""
    found = estimate(list(range(count)))
    low, high = int(found.low), int(found.high)
    patterns = itertools.product((False, True), repeat=count)
    # With k values below it, the true median lies between the k-th and the next of the sorted ones.
    held = sum(low < sum(pattern) <= high for pattern in patterns)
    assert found.confidence == pytest.approx(held / 2**count)
    assert found.median == (count - 1) / 2
    assert count < 5 or found.confidence >= 0.9


def test_quantiles_are_values_that_were_measured():
    assert [quantile([4.0, 1.0, 3.0, 2.0], share) for share in (0.25, 0.5, 0.95, 1.0)] == [1.0, 2.0, 4.0, 4.0]


def test_windows_of_the_rounds_are_apart_and_below_the_runs_length():
    schedule = Schedule(rounds=4, steps=8)
    windows = [schedule.window(number) for number in range(4)]
    assert all(len(window) == 8 for window in windows)
    gaps = [b.start - a.stop for a, b in itertools.pairwise(windows)]
    assert gaps == [3, 3, 3]
    assert windows[-1].stop < schedule.num_steps
    again = Schedule(rounds=4, steps=8, restart=True)
    assert {again.window(number) for number in range(4)} == {windows[0]}
    assert again.num_steps < schedule.num_steps


@pytest.mark.parametrize("preset", ["paper", "colm", "matched"])
def test_every_arm_is_a_valid_configuration_of_its_own(preset: str):
    base = Config.model_validate(
        {"selection": {"preset": preset, "sub_batch_size": 8, "large_batch_size": 16}, "run": {"lookahead": 5}}
    )
    made = {name: arm.config(base, recording=Path("before")) for name, arm in ARMS.items()}
    assert made[FLOOR].client.replay == Path("before")
    assert made[LARGE_BATCH].selection.sub_batch_size == 16
    assert not made[LARGE_BATCH].selection.scores
    both = (made[name].selection for name in (LARGE_BATCH, DEFAULT))
    one, other = (draw_large_batch([50, 20], selection, seed=0, step=3).tolist() for selection in both)
    assert one == other
    timings = {name: made[name].run.timing(scores=True) for name in ARMS if ARMS[name].served}
    assert [(t.staleness, t.push_every, t.lookahead) for t in timings.values()] == [
        (1, 1, 1),
        (0, 1, 0),
        (2, 1, 2),
        (1, 2, 2),
        (1, 4, 4),
    ]
    assert len({config.run.name for config in made.values()}) == len(ARMS)


def test_each_side_has_a_core_of_its_own_or_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices_module, "available_cores", lambda: [2, 3, 5])
    both = find_devices("cpu", "cpu")
    assert (both.trainer.cores, both.selector.cores) == ((2,), (5,))
    assert both.trainer.environment == {"CUDA_VISIBLE_DEVICES": ""}
    mixed = find_devices("cpu:3", "cuda:1")
    assert (mixed.trainer.cores, mixed.selector.cores) == ((3,), (2, 5))
    assert (mixed.selector.is_gpu, mixed.selector.environment) == (True, {"CUDA_VISIBLE_DEVICES": "1"})
    assert find_devices("cuda", "cpu").trainer.environment == {}
    with pytest.raises(ConfigError, match="would share core 5"):
        find_devices("cpu:5", "cpu")
    with pytest.raises(ConfigError, match=r"cpu:4: this process may use cores \[2, 3, 5\]"):
        find_devices("cpu:4", "cpu")
    with pytest.raises(ConfigError, match="'gpu' is no device"):
        find_devices("gpu", "cpu")


def test_ratios_of_a_sweep_are_read_and_others_refused():
    assert parse_ratios("1/2, 1/4,0.125") == [Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)]
    assert parse_ratios(None) == []
    for wrong in ("", "a", "1/0", "2/1", "0"):
        with pytest.raises(ConfigError, match="--sweep"):
            parse_ratios(wrong)
    with pytest.raises(ConfigError, match="--rounds 1 of --steps 0 measure nothing"):
        _ = Options(Path("out"), rounds=1, steps=0).schedule


def test_the_workload_has_rows_of_the_measured_lengths_and_a_model_that_reads_them(tmp_path: Path):
    size = Size(vocab_size=512, layers=1, width=32, sub_batch_size=4, micro_batch_size=2)
    config = make_workload(tmp_path / "here", size)
    assert config.is_file()
    store = Store.open(tmp_path / "here" / "store")
    lengths = store.lengths(np.arange(len(store)))
    assert lengths.mean() == pytest.approx(194, rel=0.03)
    assert store.manifest.max_token_id < 512
    assert len(store.source_rows) == 10
    assert json.loads((tmp_path / "here" / "model" / "config.json").read_text())["vocab_size"] == 512


def test_tables_and_picture_show_all_arms(tmp_path: Path):
    turns, result = made_up()
    shown = result | {
        "rounds": 5,
        "steps_per_round": 8,
        "devices": {"trainer": "cpu", "selector": "cuda:0"},
        "sweep": {"1/2": result, "1/4": result},
        "floor_replays": {"same": 8, "of": 8},
    }
    console = Console(width=132, record=True)
    print_result(shown, console)
    text = console.export_text()
    assert all(arm.title in text for arm in ARMS.values())
    assert "holds" in text
    path = tmp_path / "timeline.png"
    draw_arms({name: each.rows for name, each in turns.items()}, shown, path)
    pixels = imread(path)[..., :3]
    # In the widest lanes something runs at all times; of each color there is more than a tenth.
    for color in (BLUE, ORANGE):
        assert np.all(np.abs(pixels - to_rgb(color)) < 0.01, axis=2).mean() > 0.1
