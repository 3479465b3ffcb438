import os

os.environ["HF_HUB_OFFLINE"] = "1"

import copy

import numpy as np
import pytest
import torch

from selector_server.scoring.head import token_losses
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scorer
from shared.records import Row
from shared.rowloss import collate, row_losses
from shared.selection_config import SelectionConfig
from tests.small_models import ARCHITECTURES, answer_positions, loss_in_float64, make_rows, tiny_model, v_rows

EPSILON = 1e-3


def score(model, rows, *, count=1, score_tokens=128):
    scorer = Scorer(model, "cpu")
    probes = Probes(scorer.shape, seed=7, step=3, count=count)
    scores = scorer.score(rows, probes, SelectionConfig(epsilon=EPSILON, score_tokens=score_tokens))
    return scores, probes, scorer.name


def central_difference_in_float64(model, name, rows, probes):
    """The whole model in float64 with its parameter `name` perturbed."""
    model = copy.deepcopy(model).double().eval()
    parameter, c = dict(model.named_parameters())[name], np.empty((len(rows), probes.count))
    original, changed = parameter.detach().clone(), v_rows(model)
    with torch.no_grad():
        for j in range(probes.count):
            step = EPSILON * torch.from_numpy(probes.draw(j)).double()
            sides = []
            for sign in (1, -1):
                parameter.copy_(original)
                parameter[changed] += sign * step
                sides.append([loss_in_float64(model, row).item() for row in rows])
            c[:, j] = np.subtract(*sides) / (2 * EPSILON)
    return c


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_projected_gradients_are_those_of_the_whole_model_in_float64(kind, lora):
    model, rows = tiny_model(kind, lora=lora), make_rows(10)
    scores, probes, name = score(model, rows, count=3)
    expected = central_difference_in_float64(model, name, rows, probes)
    scale = np.sqrt((expected**2).mean())
    assert scale > 1e-2
    # Losses of about 4 come in steps of 5e-7 in float32, which are divided by 2ε.
    np.testing.assert_allclose(scores.c, expected, atol=max(2e-3 * scale, 2.5e-4))


def test_reported_loss_is_the_rows_loss():
    model, rows = tiny_model("llama", lora=True), make_rows(7)
    scores, _, _ = score(model, rows, count=2)
    reference = copy.deepcopy(model).double().eval()
    expected = [loss_in_float64(reference, row).item() for row in rows]
    np.testing.assert_allclose(scores.loss, expected, rtol=1e-4)


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
    found = scorer.score(rows, probes, SelectionConfig(epsilon=EPSILON, score_tokens=128))
    np.testing.assert_array_equal(found.c, score(model, rows)[0].c)


@pytest.mark.parametrize("estimator", ["central", "jvp", "exact"])
def test_all_probes_share_one_trunk_pass_that_stops_before_the_last_layer(estimator):
    model, rows = tiny_model("llama", lora=True), make_rows(8)
    scorer, calls = Scorer(model, "cpu"), []
    for depth in (0, 1, 2):
        layer = model.get_base_model().model.layers[depth]
        layer.register_forward_hook(lambda *_, depth=depth: calls.append(depth))
    probes = Probes(scorer.shape, seed=0, step=0, count=5)
    scorer.score(rows, probes, SelectionConfig(estimator=estimator, score_tokens=1 << 20))
    assert calls == [0, 1]


def test_head_sees_answer_tokens_alone(monkeypatch):
    model, rows, seen = tiny_model("llama", lora=True), make_rows(8), []
    monkeypatch.setattr(
        "selector_server.scoring.estimators.token_losses", lambda *a: seen.append(len(a[2])) or token_losses(*a)
    )
    score(model, rows)
    assert sum(seen) == 2 * sum(len(answer_positions(row)) for row in rows)


def test_without_probes_there_are_losses_alone():
    model, rows = tiny_model("gemma2"), make_rows(7)
    found = Scorer(model, "cpu").score(rows, None, SelectionConfig(pick="loss", score_tokens=64))
    reference = copy.deepcopy(model).double().eval()
    np.testing.assert_allclose(found.loss, [loss_in_float64(reference, row).item() for row in rows], rtol=1e-5)
    assert found.c is found.sketch is found.prompt is None


@pytest.mark.parametrize("gradient", [{}, {"estimator": "exact", "gradient_of": "last_blocks", "num_blocks": 2}])
def test_soft_labels_are_the_prompts_mean_hidden_state_on_its_way_into_the_last_layer(gradient):
    model, rows = tiny_model("qwen3", lora=True), [*make_rows(6), Row(np.array([5, 6, 7], dtype=np.int32), 0)]
    selection = SelectionConfig(soft_labels=True, score_tokens=64, **gradient)
    scorer = Scorer(model, "cpu", gradient_of=selection.gradient_of, num_blocks=selection.num_blocks)
    found = scorer.score(rows, Probes(scorer.shape, seed=0, step=0, count=1), selection)
    reference, expected = copy.deepcopy(model).double().eval(), []
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        hidden = reference(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
        expected.append(hidden[: max(row.num_prompt_tokens, 1)].mean(dim=0).detach().numpy())
    np.testing.assert_allclose(found.prompt, expected, atol=1e-5)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt_neox"])
def test_weight_is_what_the_probes_are_added_to(kind, lora):
    model = tiny_model(kind, lora=lora).to(torch.bfloat16)
    scorer = Scorer(model, "cpu")
    parameter = dict(model.named_parameters())[scorer.name]
    np.testing.assert_array_equal(scorer.weight(), parameter.detach().float().numpy()[v_rows(model)])
    assert scorer.weight().shape == scorer.shape == Probes(scorer.shape, seed=0, step=0, count=1).draw(0).shape
