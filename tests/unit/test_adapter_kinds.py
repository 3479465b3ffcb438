"""Every kind of adapter that PEFT trains and the selector follows: PEFT's own model on both sides is the truth."""

from __future__ import annotations

import copy
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
from shared.errors import ModelError
from shared.model import adapter_to_json, base_fingerprint, trainable_tensors
from shared.selection_config import SelectionConfig
from shared.weights import decode_weights, encode_weights, tensor_specs
from tests.small_models import gradients_in_float64, make_rows, tiny_config, train_a_little

TIED = {"tie_word_embeddings": True}
MIXTURE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
# By name: an architecture, changes of it, and of LoRA on its queries and values.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rslora": ("llama", {}, {"use_rslora": True}),
    "dora": ("phi", {}, {"use_dora": True}),
    "dora on a fused projection": ("gpt_neox", {}, {"use_dora": True, "target_modules": ["query_key_value"]}),
    "dora on everything": ("llama", {}, {"use_dora": True, "use_rslora": True, "target_modules": "all-linear"}),
    "dora on the head": ("qwen3", {}, {"use_dora": True, "target_modules": ["v_proj", "lm_head"]}),
    "a saved head": ("phi", {}, {"modules_to_save": ["lm_head"], "use_dora": True, "bias": "all"}),
    "a saved head of tied embeddings": ("llama", TIED, {"modules_to_save": ["lm_head"]}),
    "saved embeddings": ("llama", {}, {"modules_to_save": ["embed_tokens", "norm"]}),
    "saved embeddings that stay tied": (
        "llama", TIED, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "adapted embeddings": ("gemma2", {}, {"target_modules": ["v_proj", "embed_tokens"]}),
    "biases": ("phi", {}, {"bias": "all"}),
    "biases of what is adapted": ("qwen2", {}, {"bias": "lora_only"}),
    "a bias of its own": ("llama", {}, {"lora_bias": True}),
    "some layers": ("llama", {}, {"layers_to_transform": [1, 2]}),
    "ranks by pattern": ("llama", {}, {"rank_pattern": {r"layers\.2.*v_proj|q_proj": 2}}),
    "scales by patterns in order": ("llama", {}, {"alpha_pattern": {"v_proj": 3.0, "layers.2.self_attn.v_proj": 30.0}}),
    "a pattern of modules": ("llama", {}, {"target_modules": r".*\.2\..*(v_proj|down_proj)"}),
    "parameters of experts": ("qwen3_moe", MIXTURE, {"target_parameters": ["mlp.experts.down_proj"]}),
}  # fmt: skip


def make_base(architecture: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_config(architecture, **changes))
    if architecture == "qwen3_moe":
        base.set_experts_implementation("eager")  # the others know no float64
    return base


def trained(base: Any, settings: dict[str, Any], *, steps: int = 4) -> Any:
    defaults = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**defaults | settings))
    train_a_little(model, steps=steps)
    return model.eval()


def followed(base: Any, trainer: Any) -> Any:
    """The selector's model of the trainer's run on its own base, with the weights that a push carries."""
    specs = tensor_specs(trainable_tensors(trainer))
    info: Any = SimpleNamespace(
        name="run", selection=SelectionConfig(), adapter_json=adapter_to_json(trainer), trainable=specs
    )
    model = model_of(base, info)
    mine = trainable_tensors(model)
    for name, tensor in decode_weights(encode_weights(trainable_tensors(trainer)), specs).items():
        mine[name].copy_(tensor)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_selector_computes_what_the_trainer_does_and_differentiates_it_as_peft_does(kind: str) -> None:
    architecture, changes, settings = KINDS[kind]
    base = make_base(architecture, changes)
    before = base_fingerprint(base)
    trainer = trained(base, settings)
    model = followed(base, trainer)

    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        assert model(input_ids=ids).logits.equal(trainer(input_ids=ids).logits)
    assert base_fingerprint(base) == before  # which other runs share

    rows = make_rows(4)
    scorer = Scorer(model, "cpu")
    rows_of_v = (
        [r for h in range(4) for r in range(24 * h + 16, 24 * h + 24)] if architecture == "gpt_neox" else slice(None)
    )
    gradients = [g[rows_of_v].ravel() for (g,) in gradients_in_float64(trainer, rows, scorer.name)]
    probes = Probes(scorer.shape, seed=7, step=3, count=2)
    truth = np.array([[g @ probes.draw(j).ravel() for j in range(2)] for g in gradients])
    for estimator, tolerance in (("central", 5e-3), ("jvp", 1e-5), ("exact", 1e-5)):
        found = scorer.score(rows, probes, SelectionConfig(num_probes=2, estimator=estimator))
        np.testing.assert_allclose(found.c, truth, rtol=0, atol=tolerance * np.abs(truth).max(), err_msg=estimator)


def test_sketches_of_a_dora_stand_in_for_the_gradients_that_peft_trains_with() -> None:
    base = make_base("llama", {})
    trainer = trained(base, {"use_dora": True, "target_modules": "all-linear"})
    model = followed(base, trainer)
    rows = make_rows(6)
    last = [n for n, p in trainer.named_parameters() if ".layers.2." in n and p.requires_grad and p.dim() == 2]
    gradients = np.array([np.concatenate([g.ravel() for g in of]) for of in gradients_in_float64(trainer, rows, *last)])
    selection = SelectionConfig(preset="matched", sketch_size=1 << 14)
    sketch = (
        Scorer(model, "cpu", gradient_of="last_blocks")
        .score(rows, Probes((), seed=1, step=0, count=1), selection)
        .sketch
    )
    assert sketch is not None
    truth, found = gradients @ gradients.T, sketch @ sketch.T
    assert np.abs(found - truth).max() < 0.05 * truth.diagonal().max()


def test_two_runs_that_train_the_bases_biases_have_biases_of_their_own() -> None:
    base = make_base("phi", {})
    longer, shorter = (trained(base, {"bias": "all"}, steps=steps) for steps in (6, 2))
    ids = torch.arange(24).view(2, 12)
    models = [followed(base, trainer) for trainer in (longer, shorter)]
    with torch.no_grad():
        for model, trainer in zip(models, (longer, shorter), strict=True):
            assert model(input_ids=ids).logits.equal(trainer(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"target_modules": ["q_proj"]}, "v_proj"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    ],
)
def test_an_adapter_that_can_not_be_followed_is_refused_by_name_when_the_run_is_opened(
    settings: dict[str, Any], what: str
) -> None:
    base = make_base("llama", {})
    trainer = trained(base, settings, steps=1)
    with pytest.raises(ModelError, match=what):
        Scorer(followed(base, trainer), "cpu")
