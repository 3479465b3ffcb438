"""A job that goes on with another number of ranks: the same draws and journalled selections, and the right updates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.config import Config, load_config
from shared.dataset import Store
from shared.records import Selection
from shared.sampler import draw_large_batch
from shared.wire import same_selection
from tests.e2e.examples import EXAMPLES_BY_NAME, ROWS_AT_ONCE, Example, Job
from tests.e2e.test_selections import LOOP, assert_same_selections, given
from tests.support import Server, Trainer, World, journalled_selections, run_cli, write_config
from train_client.train import make_model

STEPS, SAVED = 8, 4
LARGE, SUB = 12, 7
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}


def a_config(folder: Path, world: World, **selection: object) -> Path:
    return write_config(
        folder,
        world,
        run={"num_steps": STEPS},
        selection={"large_batch_size": LARGE, "sub_batch_size": SUB} | selection,
        train={"lora": LORA},
    )


def assert_draws_are_those_of_the_seed(selections: dict[int, Selection], config: Config) -> None:
    """A selection's rows are of its step's draw, which nothing but seed and step decides."""
    assert config.data.store is not None
    assert sorted(selections) == list(range(STEPS))
    store = Store.open(config.data.store)
    for step, selection in selections.items():
        drawn = draw_large_batch(store.source_rows, config.selection, seed=config.run.seed, step=step)
        assert set(selection.index.tolist()) <= set(drawn.tolist())


def update_in_float64(config: Config, before: dict[str, torch.Tensor], selection: Selection) -> dict[str, torch.Tensor]:
    """Σ w_i ∇L_i / b of the adapter, a row at a time, with the loss written out."""
    assert config.data.store is not None
    model = make_model(config, torch.device("cpu"))
    model.load_state_dict(before)
    model = model.double().eval()
    store = Store.open(config.data.store)
    for number, weight in zip(selection.index, selection.weight, strict=True):
        row = store.row(int(number))
        ids = torch.tensor(row.input_ids.tolist())[None]
        log_probabilities = model(input_ids=ids).logits[0].log_softmax(-1)
        answer = range(row.num_prompt_tokens, ids.shape[1])
        loss = -sum(log_probabilities[t - 1, ids[0, t]] for t in answer) / len(answer)
        (float(weight) * loss / LARGE).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("ranks", "then"), [(4, 2), (2, 3)])
def test_a_loop_goes_on_with_other_ranks_and_the_single_process_update(
    world: World, tmp_path: Path, ranks: int, then: int
) -> None:
    path = a_config(tmp_path, world)
    config, output, again = load_config(path), tmp_path / "train", tmp_path / "again"
    with Server(path) as server:
        here = (f"--client.selector={server.address}", "--fault.sgd=1")
        with Trainer(path, *here, f"--fault.save_at={SAVED}", script=LOOP, ranks=ranks) as trainer:
            trainer.finish()
        whole = journalled_selections(tmp_path / "journal")
        resumed = (f"--fault.resume={output / 'saved'}", f"--fault.save_at={SAVED + 1}", f"--train.output={again}")
        with Trainer(path, *here, *resumed, script=LOOP, ranks=then) as trainer:
            trainer.finish()
    after = journalled_selections(tmp_path / "journal")

    assert_draws_are_those_of_the_seed(after, config)
    kept = [step for step, selection in whole.items() if selection.weights_version <= SAVED]
    assert kept == list(range(SAVED + 2))
    assert all(same_selection(after[step], whole[step]) for step in kept)
    for rank in range(then):
        assert_same_selections(given(again, rank), {step: after[step] for step in range(SAVED, STEPS)})
    logs = [[json.loads(r) for r in (again / f"loop-rank{n}.jsonl").read_text().splitlines()] for n in range(then)]
    for number, step in enumerate(range(SAVED, STEPS)):  # every row once, whatever the ranks
        assert sorted(row for log in logs for row in log[number]["rows"]) == sorted(after[step].index.tolist())
    replayed = run_cli("selector_server", "replay", "run", "--config", path)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr

    before, then_ = (load_file(folder / "saved" / "model.safetensors") for folder in (output, again))
    expected = update_in_float64(config, before, after[SAVED])
    update = torch.cat([(before[name] - then_[name]).double().flatten() for name in expected])
    reference = torch.cat([gradient.flatten() for gradient in expected.values()])
    assert (update - reference).norm() / reference.norm() < 1e-5


def on(ranks: int, example: Example) -> Example:
    return replace(example, launcher=(*example.launcher[:-1], f"--nproc_per_node={ranks}"))


def assert_nearly_the_same(one: Path, other: Path) -> None:
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("name", "ranks", "then"), [("trainer", 4, 2), ("deepspeed-zero1", 2, 3)])
def test_a_trainer_and_an_engine_go_on_with_other_ranks_where_they_stood(
    world: World, tmp_path: Path, name: str, ranks: int, then: int
) -> None:
    example = EXAMPLES_BY_NAME[name]
    pytest.importorskip(example.needs)
    # Rows that no rounding decides, so that all steps can be compared.
    path = a_config(tmp_path, world, pick="random")
    log, whole, again = tmp_path / "job.log", tmp_path / "whole", tmp_path / "again"
    with Server(path) as server:
        given = {
            "CONFIG": path,
            "CLIENT__SELECTOR": server.address,
            "TRAIN__MICRO_BATCH_SIZE": ROWS_AT_ONCE,
        }
        with Job(log, on(ranks, example).command(world.model, whole), **given) as job:
            job.finish()
        expected = journalled_selections(tmp_path / "journal")
        again.mkdir()
        (whole / "checkpoint-5").rename(again / "checkpoint-5")
        if name != "trainer":
            (again / "latest").write_text("checkpoint-5")
            with pytest.raises(AssertionError, match=f"DP world size of {ranks} but the current world size is {then}"):
                resume(log, on(then, example), world, again, given)
            make_universal(again / "checkpoint-5", log)
            example = replace(example, resume=("--resume", "--universal"))
        resume(log, on(then, example), world, again, given)
    after = journalled_selections(tmp_path / "journal")
    assert_draws_are_those_of_the_seed(after, load_config(path))
    assert_same_selections(after, expected)
    assert_nearly_the_same(again, whole)


def resume(log: Path, example: Example, world: World, output: Path, given: dict[str, object]) -> None:
    with Job(log, example.command(world.model, output, resume=True), **given) as job:
        job.finish()


def make_universal(checkpoint: Path, log: Path) -> None:
    folders = ("--input_folder", str(checkpoint), "--output_folder", f"{checkpoint}-universal")
    with Job(log, ["-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state", *folders]) as job:
        job.finish()
