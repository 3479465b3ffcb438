"""What is trained is told the same as by PEFT, whatever has happened to the model since it was last told."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from shared.model import trainable_tensors
from tests.small_models import tiny_model
from train_client.trained import TrainedTensors


def adapted(model: nn.Module) -> PeftModel:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "fc1"], modules_to_save=["lm_head"]))


def require_same_as_told_anew(trained: TrainedTensors, model: nn.Module) -> None:
    for _ in range(2):
        told, anew = trained.now(), trainable_tensors(model)
        assert list(told) == list(anew)
        assert all(told[name].data_ptr() == anew[name].data_ptr() for name in anew)


def test_what_is_told_again_has_the_weights_that_the_model_has_by_then() -> None:
    model = adapted(tiny_model("phi"))
    trained = TrainedTensors(model)
    require_same_as_told_anew(trained, model)
    for parameter in model.parameters():  # in place, as optimizers do, and by new storage, as offloading does
        parameter.data.add_(1.0)
    require_same_as_told_anew(trained, model)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    require_same_as_told_anew(trained, model)


def test_another_adapter_that_is_trained_from_now_on_is_told_of() -> None:
    model = adapted(tiny_model("phi"))
    trained = TrainedTensors(model)
    before = trained.now()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("other")
    for name, parameter in model.named_parameters():  # PEFT 0.18 leaves modules_to_save of the one before trained
        parameter.requires_grad_(".other." in name)
    require_same_as_told_anew(trained, model)
    assert trained.now().keys() != before.keys()


def test_parameters_that_are_replaced_are_told_of() -> None:
    model = tiny_model("phi")
    trained = TrainedTensors(model)
    trained.now()
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))
    require_same_as_told_anew(trained, model)
