import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console

from selector_server import engine, picker
from selector_server.bench import scoring
from selector_server.bench.peak_memory import peak_bytes
from selector_server.bench.stages import STAGES, stage_seconds
from selector_server.bench.workload import ModelSize, make_model, make_store, plain_forward
from selector_server.scoring import estimators, probes, split, tail
from shared.selection_config import SelectionConfig
from shared.synthetic.random_rows import MAX_TOKENS

CPU = torch.device("cpu")
TINY = ModelSize(layers=2, width=64)
small_model = partial(make_model, size=TINY)
WATCHED = [
    (picker, "draw_large_batch"),
    (probes.Probes, "draw"),
    (split.Split, "trunk"),
    (tail.Tail, "hidden"),
    (estimators, "token_losses"),
    (estimators, "token_gradients"),
    (torch.autograd, "grad"),
    (picker, "features_of"),
    (picker, "pick_rows"),
]


def test_rows_have_the_lengths_that_were_measured():
    store = make_store(num_rows=4000, vocab_size=100)
    rows = store.rows(np.arange(4000))
    total = np.array([len(row.input_ids) for row in rows])
    answers = total - [row.num_prompt_tokens for row in rows]
    assert (store.source_rows, total.max() <= MAX_TOKENS) == ((400,) * 10, True)
    # What 4,000 rows had, 400 of each of ten sources of MathInstruct.
    assert total.mean() == pytest.approx(193.9, rel=0.02)
    assert answers.sum() / total.sum() == pytest.approx(0.521, rel=0.03)
    np.testing.assert_allclose(np.quantile(total, [0.1, 0.5, 0.9]), [115, 166, 309], rtol=0.05)


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_plain_forward_gives_the_models_logits_of_the_answers(lora_rank):
    model = small_model(vocab_size=50, lora_rank=lora_rank, device=CPU)
    rows = make_store(num_rows=9, vocab_size=50).rows(np.arange(9))
    expected = []
    for row in sorted(rows, key=lambda row: len(row.input_ids)):
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        logits = model(input_ids=ids[None]).logits[0]
        expected += [logits[t - 1, ids[t]].item() for t in range(row.num_prompt_tokens, len(ids))]
    found = plain_forward(model, rows, device=CPU, tokens=700)
    np.testing.assert_allclose(found.squeeze(1).numpy(), expected, atol=1e-5)


def test_stages_of_a_selection_are_watched_and_the_functions_put_back():
    before = [getattr(owner, name) for owner, name in WATCHED]
    model, store = small_model(vocab_size=50, device=CPU), make_store(num_rows=40, vocab_size=50)
    reached = set()
    for changes in ({}, {"preset": "matched"}):
        selection = SelectionConfig(large_batch_size=8, sub_batch_size=4, **changes)
        run = engine.SelectionEngine(model, store, selection, run="a", seed=0)
        seconds = stage_seconds(partial(run.select, 0, 0))
        assert seconds.keys() == {*STAGES, "other"}
        assert min(seconds.values()) >= 0
        reached |= {stage for stage, spent in seconds.items() if spent > 0}
    assert reached == {*STAGES, "other"}
    assert before == [getattr(owner, name) for owner, name in WATCHED]


def test_peak_memory_is_measured_in_a_process_of_its_own():
    selection = SelectionConfig(large_batch_size=2, sub_batch_size=1)
    assert 1 << 20 < peak_bytes(selection, vocab_size=300, lora_rank=2, device=CPU) < 1 << 29


def test_benchmark_prints_ratios_and_writes_what_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "peak_bytes", lambda *_, **__: 3 << 20)
    monkeypatch.setattr(scoring, "QUICK", (scoring.Setting(60, 2, ("central", "last block"), rounds=1, size=TINY),))
    console = Console(record=True, width=140)
    result = scoring.run(out=tmp_path, quick=True, console=console)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result.keys() >= {"ratio_to_forward", "stage_seconds", "peak_bytes", "device"}
    for values in (result["ratio_to_forward"], result["stage_seconds"]):
        assert list(values["vocab_60_lora_2"]) == ["central", "last block"]
    seconds = result["seconds"]["vocab_60_lora_2"]
    ratio = result["ratio_to_forward"]["vocab_60_lora_2"]["central"]
    assert ratio == pytest.approx(seconds["central"] / seconds["forward"])
    assert f"{ratio:.2f}" in console.export_text()
    assert (tmp_path / "scoring.png").read_bytes().startswith(b"\x89PNG")
