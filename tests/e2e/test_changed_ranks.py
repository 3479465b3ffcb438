"""A job that goes on with another number of ranks: the same draws and journalled selections, and the right updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.config import Config, load_config
from shared.dataset import Store
from shared.records import Selection
from shared.sampler import draw_large_batch
from shared.wire import same_selection
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
