from __future__ import annotations

import json
import time

import pytest

from shared.adapter_settings import largest_rank, read_adapter_settings
from shared.errors import ModelError
from shared.model import adapter_to_json, add_adapter, trainable_tensors
from tests.small_models import tiny_model, with_lora

REFUSED = {
    "a rank of a billion": {"r": 10**9},
    "a rank that is no number": {"r": True},
    "a rank by pattern": {"rank_pattern": {"v_proj": 10**9}},
    "a pattern that never ends": {"target_modules": r"(a*)*b"},
    "a pattern in a list": {"target_modules": ["(a*)*b"]},
    "a pattern to leave out": {"exclude_modules": r"(a*)*b"},
    "a pattern as a key": {"alpha_pattern": {"(.*.*)*x": 1.0}},
    "a pattern of what is saved": {"modules_to_save": ["(a*)*b"]},
    "a pattern of layers": {"layers_pattern": "(a*)*b"},
    "a module to import": {"auto_mapping": {"base_model_class": "x", "parent_library": "os"}},
    "another module to import": {"megatron_config": {"x": 1}},
    "a file to open": {"base_model_name_or_path": "/etc/passwd"},
    "a branch to download": {"revision": "main"},
    "layers without end": {"layer_replication": [[0, 10**9]]},
    "layers of a billion": {"layers_to_transform": [10**9]},
    "another kind": {"peft_type": "IA3"},
    "a scale without bound": {"lora_alpha": 1e300},
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_setting_that_could_cost_or_reach_more_than_a_lora_is_refused_by_its_name(what: str) -> None:
    (key,) = REFUSED[what]
    began = time.process_time()
    with pytest.raises(ModelError, match=key):
        read_adapter_settings(json.dumps({"r": 4, "target_modules": ["v_proj"]} | REFUSED[what]))
    assert time.process_time() - began < 10  # a pattern that is tried would take for ever


def test_what_decides_the_tensors_is_kept_and_how_they_began_is_not() -> None:
    given = {
        "r": 4,
        "target_modules": ["v_proj", "model.layers.0.mlp.fc1"],
        "rank_pattern": {r"^model\.layers\.1\.self_attn\.v_proj$": 16},
        "use_dora": False,
        "init_lora_weights": "pissa",
        "eva_config": {"rho": 1.0},
        "trainable_token_indices": None,
    }
    kept = read_adapter_settings(json.dumps(given))
    assert kept == {key: given[key] for key in ("r", "target_modules", "rank_pattern")}
    assert largest_rank(kept) == 16


def test_a_trainers_pattern_becomes_the_names_that_it_matched() -> None:
    trainer = with_lora(tiny_model("phi"), target_modules=r".*layers\.1\..*(q_proj|fc1)")
    text = adapter_to_json(trainer)
    assert json.loads(text)["target_modules"] == ["model.layers.1.mlp.fc1", "model.layers.1.self_attn.q_proj"]
    server = add_adapter(tiny_model("phi"), text)
    assert trainable_tensors(server).keys() == trainable_tensors(trainer).keys()
