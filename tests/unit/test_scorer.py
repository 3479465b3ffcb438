import os

os.environ["HF_HUB_OFFLINE"] = "1"

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from selector_server.probes import Probes
from selector_server.scorer import Scorer
from shared.records import Row
from shared.rowloss import collate, row_losses

VOCABULARY = 67
EPSILON = 1e-3
ARCHITECTURES = ["phi", "llama", "qwen2", "qwen3", "gemma2"]


def tiny_model(kind, *, lora, **changes):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind in ("qwen3", "gemma2"):
        heads["head_dim"] = 8
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **heads, **special, **changes}))
    return add_lora(model) if lora else model


def add_lora(model):
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_rows(count, seed=0):
    """Rows whose answer repeats the prompt, 4 to 40 tokens."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        prompt = rng.integers(1, VOCABULARY, rng.integers(2, 16)).astype(np.int32)
        rows.append(Row(np.resize(prompt, len(prompt) + rng.integers(2, 24)), len(prompt)))
    return rows


def score(model, rows, *, count=1, score_tokens=128):
    scorer = Scorer(model, "cpu")
    probes = Probes(scorer.shape, seed=7, step=3, count=count)
    scores = scorer.projected_gradients(rows, probes, epsilon=EPSILON, score_tokens=score_tokens)
    return scores, probes, scorer.name


def loss_in_float64(model, row):
    """One row alone through the whole model, without any code of ours."""
    ids = torch.from_numpy(row.input_ids.astype(np.int64))
    logits = model(input_ids=ids[None]).logits[0]
    return F.cross_entropy(logits[row.num_prompt_tokens - 1 : -1], ids[row.num_prompt_tokens :])


def central_difference_in_float64(model, name, rows, probes):
    """The whole model in float64 with its parameter `name` perturbed."""
    model = copy.deepcopy(model).double().eval()
    parameter, c = dict(model.named_parameters())[name], np.empty((len(rows), probes.count))
    original = parameter.detach().clone()
    with torch.no_grad():
        for j in range(probes.count):
            step = EPSILON * torch.from_numpy(probes.draw(j)).double()
            sides = []
            for sign in (1, -1):
                parameter.copy_(original + sign * step)
                sides.append([loss_in_float64(model, row).item() for row in rows])
            c[:, j] = np.subtract(*sides) / (2 * EPSILON)
    return c


def derivative_in_float64(model, name, rows, probes):
    """The exact directional derivative of each row's loss along probe 0, through the whole model."""
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    parameter = dict(model.named_parameters())[name].requires_grad_(True)
    gradients = [torch.autograd.grad(loss_in_float64(model, row), parameter)[0] for row in rows]
    return np.array([(gradient.numpy() * probes.draw(0)).sum() for gradient in gradients])


def rank_correlation(left, right):
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return np.corrcoef(*ranks)[0, 1]


def train_a_little(model, steps=40):
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        batch = collate(make_rows(8, seed=1000 + step))
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        row_losses(logits, batch["labels"]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_projected_gradients_are_those_of_the_whole_model_in_float64(kind, lora):
    model, rows = tiny_model(kind, lora=lora), make_rows(10)
    scores, probes, name = score(model, rows, count=3)
    expected = central_difference_in_float64(model, name, rows, probes)
    scale = np.sqrt((expected**2).mean())
    assert scale > 1e-2
    np.testing.assert_allclose(scores.c, expected, atol=2e-3 * scale)
    derivative = derivative_in_float64(model, name, rows, probes)
    np.testing.assert_allclose(scores.c[:, 0], derivative, atol=1e-2 * scale)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_half_precision_trunk_ranks_rows_like_the_derivative_in_float64(kind):
    model, rows = tiny_model(kind, lora=False), make_rows(32)
    train_a_little(model)
    for dtype in (torch.bfloat16, torch.float16):
        for lora in (False, True):
            half = copy.deepcopy(model).to(dtype)
            half = add_lora(half) if lora else half
            scores, probes, name = score(half, rows)
            derivative = derivative_in_float64(half, name, rows, probes)
            assert rank_correlation(scores.c[:, 0], derivative) > 0.99, (dtype, lora)


def test_reported_loss_is_the_rows_loss():
    model, rows = tiny_model("llama", lora=True), make_rows(7)
    scores, _, _ = score(model, rows, count=2)
    reference = copy.deepcopy(model).double().eval()
    expected = [loss_in_float64(reference, row).item() for row in rows]
    np.testing.assert_allclose(scores.loss, expected, rtol=1e-4)


def test_row_scores_the_same_whatever_rows_are_beside_it():
    model, rows = tiny_model("phi", lora=True), make_rows(23)
    reference, _, _ = score(model, rows, count=2, score_tokens=1 << 20)
    scale = np.abs(reference.c).max()
    for score_tokens in (1, 50, 128, 700):
        found, _, _ = score(model, rows, count=2, score_tokens=score_tokens)
        np.testing.assert_allclose(found.c, reference.c, atol=2e-3 * scale)
        np.testing.assert_allclose(found.loss, reference.loss, rtol=1e-6)
    order = np.random.default_rng(1).permutation(23)
    shuffled, _, _ = score(model, [rows[i] for i in order], count=2, score_tokens=128)
    np.testing.assert_allclose(shuffled.c, reference.c[order], atol=2e-3 * scale)


def test_scoring_twice_gives_the_same_bits_and_draws_no_global_random_numbers():
    model, rows = tiny_model("llama", lora=True).train(), make_rows(9)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, _, _ = score(model, rows, count=2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in model.named_parameters())
    torch.rand(3)
    second, _, _ = score(model, rows, count=2)
    np.testing.assert_array_equal(first.c, second.c)
    np.testing.assert_array_equal(first.loss, second.loss)


def test_scoring_between_steps_of_a_checkpointed_trainer_changes_nothing_it_computes():
    def run(*, scoring):
        model, rows = tiny_model("phi", lora=True, resid_pdrop=0.1), make_rows(6)
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        torch.manual_seed(1)
        model.train()
        for _ in range(3):
            if scoring:
                score(model, rows)
            batch = collate(rows)
            row_losses(model(input_ids=batch["input_ids"]).logits, batch["labels"]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    plain, scored = run(scoring=False), run(scoring=True)
    assert all(torch.equal(plain[name], scored[name]) for name in plain)


def test_scorer_follows_the_models_weights_after_refresh():
    model, rows = tiny_model("llama", lora=True).to(torch.bfloat16), make_rows(5)
    scorer = Scorer(model, "cpu")
    probes = Probes(scorer.shape, seed=7, step=3, count=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    scorer.refresh()
    found = scorer.projected_gradients(rows, probes, epsilon=EPSILON, score_tokens=128)
    np.testing.assert_array_equal(found.c, score(model, rows)[0].c)


def test_all_probes_share_one_trunk_pass():
    model, rows = tiny_model("llama", lora=True), make_rows(8)
    scorer, calls = Scorer(model, "cpu"), []
    for depth in (0, 2):
        layer = model.get_base_model().model.layers[depth]
        layer.register_forward_hook(lambda *_, depth=depth: calls.append(depth))
    probes = Probes(scorer.shape, seed=0, step=0, count=5)
    scorer.projected_gradients(rows, probes, epsilon=EPSILON, score_tokens=1 << 20)
    assert (calls.count(0), calls.count(2)) == (1, 10)


def test_head_sees_answer_tokens_alone_and_few_at_a_time(monkeypatch):
    model, rows = tiny_model("llama", lora=True), make_rows(8)
    expected, _, _ = score(model, rows, score_tokens=1 << 20)
    monkeypatch.setattr("selector_server.scorer._LOGITS_VALUES", 10 * VOCABULARY)
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    scorer = Scorer(model, "cpu")
    seen.clear()
    probes = Probes(scorer.shape, seed=7, step=3, count=1)
    found = scorer.projected_gradients(rows, probes, epsilon=EPSILON, score_tokens=1 << 20)
    assert max(seen) == 10
    assert sum(seen) == 2 * sum(len(row.input_ids) - row.num_prompt_tokens for row in rows)
    np.testing.assert_allclose(found.c, expected.c, atol=2e-3 * np.abs(expected.c).max())


def test_row_without_a_finite_loss_is_nan_and_spoils_no_other():
    model = tiny_model("llama", lora=True).train()
    rows = [Row(np.array([5, 6, 7, 8], dtype=np.int32), 2) for _ in range(5)]
    expected, _, _ = score(model, rows)
    for bad in (1, 4):
        rows[bad] = Row(np.array([5, 66, 7, 8], dtype=np.int32), 2)
    with torch.no_grad():
        model.get_input_embeddings().weight[66] = torch.nan
    found, _, _ = score(model, rows)
    assert found.finite.tolist() == [True, False, True, True, False]
    assert np.isnan(found.c[~found.finite]).all()
    np.testing.assert_array_equal(found.c[found.finite], expected.c[found.finite])
    assert all(module.training for module in model.modules())
