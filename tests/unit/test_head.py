import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from selector_server.scoring import head as head_module
from selector_server.scoring.head import Head, LogitMap, token_gradients, token_losses
from tests.small_models import tiny_model

MAPS = [LogitMap(), LogitMap(factor=0.25), LogitMap(cap=2.0), LogitMap(factor=3.0, cap=5.0)]


def make_head(vocabulary, width, logit_map, *, bias=True):
    torch.manual_seed(vocabulary + 7 * width)
    return Head(torch.randn(vocabulary, width), torch.randn(vocabulary) if bias else None, logit_map)


def by_autograd_in_float64(hidden, head, targets):
    """Losses and their derivatives from all logits at once."""
    hidden = hidden.double().requires_grad_()
    logits = head.logit_map.factor * F.linear(
        hidden, head.weight.double(), None if head.bias is None else head.bias.double()
    )
    if head.logit_map.cap is not None:
        logits = torch.tanh(logits / head.logit_map.cap) * head.logit_map.cap
    losses = F.cross_entropy(logits, targets, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), hidden)[0]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 12),
    vocabulary=st.integers(1, 40),
    values=st.integers(1, 200),
    tokens=st.integers(1, 12),
    which=st.integers(0, 3),
    bias=st.booleans(),
)
def test_losses_and_derivatives_in_blocks_are_those_of_all_logits_in_float64(
    n, vocabulary, values, tokens, which, bias
):
    head = make_head(vocabulary, 5, MAPS[which], bias=bias)
    hidden, targets = 2 * torch.randn(n, 5), torch.randint(0, vocabulary, (n,))
    expected, gradient = by_autograd_in_float64(hidden, head, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "_CPU_VALUES", values)
        patch.setattr(head_module, "_MAX_TOKENS", tokens)
        losses = token_losses(hidden, head, targets)
        same, found = token_gradients(hidden, head, targets)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(same, losses, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [-300.0, 0.0, 300.0])
def test_logits_far_from_zero_neither_overflow_nor_vanish(shift):
    head = Head(torch.randn(20, 5), torch.full((20,), shift), LogitMap())
    head.bias[7] += 150
    hidden, targets = torch.randn(6, 5), torch.tensor([7, 7, 3, 3, 0, 19])
    expected, gradient = by_autograd_in_float64(hidden, head, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "_CPU_VALUES", 30)
        losses, found = token_gradients(hidden, head, targets)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-5)


def test_token_that_is_not_finite_spoils_no_other():
    head = make_head(30, 5, LogitMap())
    hidden, targets = torch.randn(4, 5), torch.tensor([1, 2, 3, 4])
    losses, gradient = token_gradients(hidden, head, targets)
    hidden[2] = torch.nan
    found, derivative = token_gradients(hidden, head, targets)
    others = torch.tensor([0, 1, 3])
    assert found[2].isnan()
    assert torch.equal(found[others], losses[others])
    assert torch.equal(derivative[others], gradient[others])


@pytest.mark.parametrize("changes", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["v_proj", "lm_head"]}])
def test_head_with_an_adapter_is_the_matrix_that_its_module_applies(changes):
    settings_ = {"r": 4, "target_modules": ["v_proj"], "task_type": "CAUSAL_LM"} | changes
    model = get_peft_model(tiny_model("phi", tie_word_embeddings=False), LoraConfig(**settings_)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    module, hidden = model.get_base_model().get_output_embeddings(), torch.randn(7, 32)
    with torch.no_grad():
        head = Head.of(module, 32, LogitMap())
        torch.testing.assert_close(F.linear(hidden, head.weight, head.bias), module(hidden), rtol=1e-5, atol=1e-5)
