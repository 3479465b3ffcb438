"""A base in 8 or 4 bits, on either side: which bases agree, and what is scored on one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from selector_server.run_engine import model_of
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scorer
from shared.config import Config, ModelConfig
from shared.errors import ConfigError, ModelError
from shared.model import adapter_to_json, base_fingerprint, load_base_model, trainable_tensors
from shared.selection_config import SelectionConfig
from shared.weights import tensor_specs
from tests.small_models import gradients_in_float64, make_rows, rank_correlation, tiny_config, train_a_little
from train_client.train import make_model

HAS_BITSANDBYTES = find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes isn't installed")


def save_model(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(seed)
    config = tiny_config("llama", hidden_size=64, intermediate_size=128)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def load(folder: Path, load_in: str = "full") -> Any:
    config = ModelConfig.model_validate({"path": str(folder), "load_in": load_in})
    return load_base_model(config, torch.device("cpu"))


def with_adapter(base: Any, *, steps: int, **settings: Any) -> Any:
    torch.manual_seed(1)
    defaults = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**defaults | settings))
    train_a_little(model, steps=steps)
    return model.eval()


def followed(base: Any, trainer: Any) -> Any:
    info: Any = SimpleNamespace(
        name="run",
        selection=SelectionConfig(),
        adapter_json=adapter_to_json(trainer),
        trainable=tensor_specs(trainable_tensors(trainer)),
    )
    model = model_of(base, info)
    mine = trainable_tensors(model)
    for name, tensor in trainable_tensors(trainer).items():
        mine[name].copy_(tensor)
    return model


def dense_twin(folder: Path, quantised: Any, trainer: Any) -> Any:
    """The trainer's model in full, its base made of what the quantised weights stand for, by bitsandbytes' own word."""
    from bitsandbytes.functional import dequantize_4bit

    base, modules = load(folder), dict(quantised.named_modules())
    for name, module in base.named_modules():
        if "Linear4bit" in type(modules.get(name)).__name__:
            weight = modules[name].weight
            module.weight.data.copy_(dequantize_4bit(weight.data, weight.quant_state))
        elif "Linear8bit" in type(modules.get(name)).__name__:
            state = modules[name].state
            module.weight.data.copy_(state.CB.float() * (state.SCB / 127)[:, None])
    return followed(base, trainer)


@needs_bitsandbytes
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bases_in_8_4_and_all_bits_agree_where_their_checkpoints_do(tmp_path: Path, stored: torch.dtype) -> None:
    folder, other = save_model(tmp_path / "a", dtype=stored), save_model(tmp_path / "b", seed=1, dtype=stored)
    full = base_fingerprint(load(folder))
    for load_in in ("8bit", "4bit"):
        found = base_fingerprint(with_adapter(load(folder, load_in), steps=1, modules_to_save=["lm_head"]))
        assert {dtype: full[dtype] for dtype in found} == found
        assert found.keys() == {str(stored).removeprefix("torch."), "bfloat16"}
        assert base_fingerprint(load(other, load_in))["bfloat16"] != full["bfloat16"]


@needs_bitsandbytes
def test_a_selector_in_4_bits_computes_and_differentiates_what_a_trainer_in_4_bits_does(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    trainer, base = with_adapter(load(folder, "4bit"), steps=4), load(folder, "4bit")
    model, dense = followed(base, trainer), dense_twin(folder, load(folder, "4bit"), trainer)
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        assert model(input_ids=ids).logits.equal(trainer(input_ids=ids).logits)
    rows, scorer = make_rows(4), Scorer(model, "cpu")
    probes = Probes(scorer.shape, seed=7, step=3, count=2)
    gradients = [g.ravel() for (g,) in gradients_in_float64(dense, rows, scorer.name)]
    truth = np.array([[g @ probes.draw(j).ravel() for j in range(2)] for g in gradients])
    for estimator in ("central", "jvp", "exact"):
        found = scorer.score(rows, probes, SelectionConfig(num_probes=2, estimator=estimator))
        # Some processors run 4 bits in bfloat16 whatever the dtype, so the trunk is no more exact than that.
        np.testing.assert_allclose(found.c, truth, rtol=0, atol=1e-2 * np.abs(truth).max(), err_msg=estimator)


@needs_bitsandbytes
def test_a_selector_in_8_bits_ranks_rows_as_its_weights_in_full_do(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    trainer = with_adapter(load(folder, "8bit"), steps=4)
    model, dense = followed(load(folder, "8bit"), trainer), dense_twin(folder, load(folder, "8bit"), trainer)
    rows, scorer = make_rows(12), Scorer(model, "cpu")
    probes = Probes(scorer.shape, seed=7, step=3, count=1)
    truth = np.array([g.ravel() @ probes.draw(0).ravel() for (g,) in gradients_in_float64(dense, rows, scorer.name)])
    found = scorer.score(rows, probes, SelectionConfig()).c
    assert found is not None
    assert rank_correlation(found[:, 0], truth) > 0.95


@needs_bitsandbytes
def test_dora_in_4_bits_is_refused_where_the_processor_packs_them(tmp_path: Path) -> None:
    from bitsandbytes.functional import has_avx512bf16

    folder = save_model(tmp_path)
    trainer = with_adapter(load(folder, "4bit"), steps=1, use_dora=True)
    model = followed(load(folder, "4bit"), trainer)
    if not has_avx512bf16():
        Scorer(model, "cpu")
        return
    with pytest.raises(ModelError, match=r"DoRA on .*q_proj.* 4 bits, packed for this processor"):
        Scorer(model, "cpu")


@needs_bitsandbytes
def test_what_keeps_a_quantised_base_from_being_compared_or_trained_is_said(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "full")
    model = load(folder, "4bit")
    model.save_pretrained(tmp_path / "packed")
    with pytest.raises(ModelError, match=r"fingerprint is that of the checkpoint.*uint8.*that isn't quantised"):
        base_fingerprint(load(tmp_path / "packed"))
    model.config._name_or_path = ""
    with pytest.raises(ModelError, match=r"fingerprint is that of the checkpoint.*load it from a folder"):
        base_fingerprint(model)
    config = Config.model_validate({"model": {"path": str(folder), "load_in": "4bit"}, "train": {"lora": False}})
    with pytest.raises(ConfigError, match=r"load_in '4bit' .* can't be trained"):
        make_model(config, torch.device("cpu"))


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
def test_without_bitsandbytes_a_base_in_8_bits_is_refused_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"needs bitsandbytes: pip install 'subbatch\[bitsandbytes\]'"):
        load(save_model(tmp_path), "8bit")
