"""The update of a step equals a single-process float64 reference, whatever the ranks and the micro-batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shared.dataset import Store
from shared.records import Selection
from shared.wire import encode_selection
from tests.support import Trainer, World, write_config

LOOP = Path(__file__).parent / "loop.py"
LARGE, SUB = 40, 13


@pytest.fixture(scope="module")
def selection(world: World) -> Selection:
    """Thirteen rows of uneven lengths with uneven weights."""
    store = Store.open(world.store)
    generator = np.random.default_rng(5)
    index = generator.choice(len(store), SUB, replace=False).astype(np.int64)
    assert len(set(store.lengths(index).tolist())) > 8
    return Selection(
        run="run",
        step=0,
        weights_version=0,
        large_batch_size=LARGE,
        index=index,
        source=store.sources_of(index),
        weight=generator.uniform(0.0, 8.0, SUB).astype(np.float32),
        gain=np.zeros(SUB, dtype=np.float32),
        num_tokens=store.lengths(index),
    )


@pytest.fixture(scope="module")
def reference(world: World, selection: Selection) -> dict[str, torch.Tensor]:
    """Σ w_i ∇L_i / b in float64, a row at a time, with the loss written out."""
    model = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float64).eval()
    model.requires_grad_()
    store = Store.open(world.store)
    for number, weight in zip(selection.index, selection.weight, strict=True):
        row = store.row(int(number))
        ids = torch.tensor(row.input_ids.tolist())[None]
        log_probabilities = model(input_ids=ids).logits[0].log_softmax(-1)
        answer = range(row.num_prompt_tokens, ids.shape[1])
        loss = -sum(log_probabilities[t - 1, ids[0, t]] for t in answer) / len(answer)
        (float(weight) * loss / LARGE).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("ranks", "micro_batch_size"), [(1, 4), (2, 3), (3, 2), (3, 5)])
def test_the_update_equals_a_float64_reference(
    world: World,
    selection: Selection,
    reference: dict[str, torch.Tensor],
    tmp_path: Path,
    ranks: int,
    micro_batch_size: int,
) -> None:
    payload = tmp_path / "selection.arrow"
    payload.write_bytes(encode_selection(selection))
    config = write_config(
        tmp_path,
        world,
        run={"num_steps": 1},
        selection={"large_batch_size": LARGE, "sub_batch_size": SUB},
        train={"lora": False, "micro_batch_size": micro_batch_size},
        client={"selector": "inline"},
    )
    with Trainer(config, "--fault.sgd=1", f"--fault.fixed={payload}", script=LOOP, ranks=ranks) as trainer:
        trainer.finish()
    before = dict(AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32).named_parameters())
    after = load_file(tmp_path / "train" / "weights.safetensors")
    assert after.keys() == reference.keys()
    update = torch.cat([(before[name] - after[name]).double().flatten() for name in reference])
    expected = torch.cat([gradient.flatten() for gradient in reference.values()])
    # An update is seen through float32 weights, whose own rounding is about 1e-7 of their size; the norm averages it.
    assert (update - expected).norm() / expected.norm() < 1e-5
