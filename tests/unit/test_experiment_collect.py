"""From files that a run left to its result: sums worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.config import Config
from shared.dataset import Store
from shared.sampler import draw_large_batch
from tests.support import World
from train_client.experiment.arms import ARMS
from train_client.experiment.collect import collect, write_json
from train_client.experiment.gallery import gallery_steps, make_gallery
from train_client.experiment.plan import Run
from train_client.experiment.screen import last_loss
from train_client.outcome import Outcome

STEPS = 12
CONFIG = Config.model_validate(
    {"run": {"num_steps": STEPS, "staleness": 1}, "selection": {"large_batch_size": 4, "sub_batch_size": 2}}
)


def line(rank: int, step: int, *, wait: float = 0.5) -> dict[str, Any]:
    """A step that trains for 2 s and takes 3 + wait seconds in all; its selection took 1.25 s, a second before it."""
    begun = 100.0 + 4 * step - (60 if step == 0 else 0)
    return {
        "step": step,
        "rows": [10 * rank + step % 3],
        "weights": [2.0],
        "gains": [0.5],
        "loss": 1.0 / (step + 1),
        "step_seconds": 3.0 + wait,
        "wait_started_ns": int(begun * 1e9),
        "wait_seconds": wait,
        "prepare_seconds": 0.25,
        "train_seconds": 2.0,
        "optimizer_seconds": 0.5,
        "push_seconds": 0.25,
        "selector": {
            "started_unix_ns": int((begun - 1) * 1e9),
            "load_seconds": 0.125,
            "draw_seconds": 0.0,
            "score_seconds": 1.0,
            "pick_seconds": 0.125,
            "journal_seconds": 0.0,
            "peak_bytes": 100 + step,
        },
    }


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """What a run on two ranks left; the first selection took a minute to come."""
    folder = tmp_path / "train"
    folder.mkdir()
    for rank in range(2):
        lines = [line(rank, step, wait=60.0 if step == 0 else 0.5 * rank) for step in range(STEPS)]
        (folder / f"steps-rank{rank}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    heldout = [{"step": step, "balanced": 2.0, "natural": 1.0, "by_source": {"a": 2.0}} for step in (0, 5, 12)]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heldout))
    facts = {"initial_weights": "ab", "fingerprints": {"dataset": "cd"}, "peak_memory_bytes": 7}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def result_of(output: Path, *, arm: str = "paper", selector_memory: int | None = 9) -> dict[str, Any]:
    from train_client.experiment.arms import resolve

    run = Run(ARMS[arm], 0, resolve(CONFIG, ARMS[arm], seed=0), output.parent)
    more: dict[str, Any] = {"accuracy": None, "gallery": [], "with_timeline": True}
    return collect(run, Outcome.read(output), selector_memory=selector_memory, **more)


def test_seconds_leave_out_starting_up_and_add_up_over_devices(output: Path) -> None:
    result = result_of(output)
    assert result["seconds"] == {
        "wall": pytest.approx(STEPS * 3 + 11 * 0.5),
        "trainer_busy": pytest.approx(STEPS * 3),
        "selector_busy": pytest.approx(11 * 1.25),
        "waited": pytest.approx(11 * 0.5),
    }
    assert result["device_seconds"] == {
        "held": pytest.approx(3 * (STEPS * 3 + 11 * 0.5)),
        "busy": pytest.approx(2 * STEPS * 3 + 11 * 1.25),
    }


def test_a_random_arm_holds_no_device_for_selecting(output: Path) -> None:
    result = result_of(output, arm="random_r")
    assert result["device_seconds"]["held"] == pytest.approx(2 * (STEPS * 3 + 11 * 0.5))
    assert result["device_seconds"]["busy"] == pytest.approx(2 * STEPS * 3)
    assert (result["rows"]["scored"], result["peak_memory_bytes"]["selector"]) == (0, None)


def test_rows_are_counted_over_ranks(output: Path) -> None:
    assert result_of(output)["rows"] == {"drawn": 48, "scored": 48, "trained": 24, "distinct": 6}


def test_what_the_trainer_said_is_passed_on(output: Path) -> None:
    result = result_of(output)
    assert (result["initial_weights"], result["fingerprints"]) == ("ab", {"dataset": "cd"})
    assert [entry["step"] for entry in result["heldout"]] == [0, 5, 12]
    assert (result["gradient"], result["accuracy"]) == ([], None)
    assert result["peak_memory_bytes"] == {"trainer": 7, "selector": 9}
    on_an_accelerator = result_of(output, selector_memory=None)["peak_memory_bytes"]
    assert on_an_accelerator == {"trainer": 7, "selector": 100 + STEPS - 1}
    assert result["phases"]["selector"]["score"] == 1.0
    assert result["phases"]["trainer"]["train"] == 2.0
    assert result["phases"]["step"] == 3.0


def test_the_timeline_is_a_window_of_five_steps_on_one_clock(output: Path) -> None:
    spans = result_of(output)["timeline"]
    trained = {span["step"] for span in spans if span["lane"] == "rank 0"}
    assert trained == {6, 7, 8, 9, 10}
    assert [span["lane"] for span in spans] == sorted(
        (span["lane"] for span in spans), key=["selector", "rank 0", "rank 1"].index
    )
    # Step 6 begins at 124 s, and the selection of step 7 at 127 s.
    assert next(s for s in spans if s["lane"] == "rank 0" and s["phase"] == "train")["start"] == pytest.approx(0.25)
    (score,) = (s for s in spans if s["phase"] == "score" and s["step"] == 7)
    assert (score["start"], score["end"]) == (pytest.approx(3.125), pytest.approx(4.125))
    assert all(0 <= span["start"] < span["end"] for span in spans)


def test_the_timeline_avoids_steps_between_which_a_held_out_loss_was_taken(output: Path) -> None:
    lines = [{"step": step, "balanced": 2.0, "natural": 1.0, "by_source": {}} for step in (0, 9, 12)]
    (output / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    spans = result_of(output)["timeline"]
    assert {span["step"] for span in spans if span["lane"] == "rank 0"} == {4, 5, 6, 7, 8}


def test_a_gallery_shows_the_whole_large_batch_in_draw_order_with_its_texts(world: World, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "model": {"path": str(world.model)},
            "data": {"store": str(world.store)},
            "selection": {"large_batch_size": 6, "sub_batch_size": 2},
            "run": {"num_steps": 3, "seed": 5},
        }
    )
    store = Store.open(world.store)
    drawn = draw_large_batch(store.source_rows, config.selection, seed=5, step=2).tolist()
    row = {"rows": [drawn[4], drawn[1]], "weights": [3.5, 2.5], "gains": [0.5, float("nan")]}
    outcome = Outcome([[{}, {}, row]], [], [], {})
    ((shown),) = make_gallery(config, outcome, steps=[2])
    assert (shown["step"], [entry["row"] for entry in shown["rows"]]) == (2, drawn)
    assert [entry["weight"] for entry in shown["rows"]] == [0.0, 2.5, 0.0, 0.0, 3.5, 0.0]
    assert [entry["picked"] for entry in shown["rows"]] == [False, True, False, False, True, False]
    originals = [json.loads(text) for text in world.rows.read_text().splitlines()]
    for entry, origin in zip(shown["rows"], store.origins(drawn).tolist(), strict=True):
        assert {key: entry[key] for key in ("source", "instruction", "output")} == originals[origin]
    write_json(tmp_path / "shown.json", shown)


def test_gallery_steps_are_spread_over_the_run() -> None:
    assert gallery_steps(CONFIG) == [3, 7, 11]
    one = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"num_steps": 1})})
    assert gallery_steps(one) == [0]


def test_a_result_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "arms" / "seed-0.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_last_loss_is_of_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    assert last_loss(path) is None
    path.write_text("")
    assert last_loss(path) is None
    path.write_text('{"loss": 2.0}\n{"loss": 1.5}\n{"loss": 1')
    assert last_loss(path) == 1.5
