import os

os.environ["HF_HUB_OFFLINE"] = "1"

import copy

import numpy as np
import pytest
import torch

from selector_server.scoring.estimators import ESTIMATORS
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scorer
from shared.errors import ModelError
from shared.records import Row
from shared.selection_config import SelectionConfig
from tests.small_models import (
    ARCHITECTURES,
    gradients_in_float64,
    loss_in_float64,
    make_rows,
    rank_correlation,
    tiny_model,
    train_a_little,
    v_rows,
    with_lora,
)


def score(model, rows, *, count=1, score_tokens=128, **selection):
    scorer = Scorer(model, "cpu")
    probes = Probes(scorer.shape, seed=7, step=3, count=count)
    config = SelectionConfig(num_probes=count, score_tokens=score_tokens, **selection)
    return scorer.score(rows, probes, config), probes, scorer.name


def derivatives_in_float64(model, name, rows, probes):
    """<∇L_i, z_j> with V's rows of the whole model's gradient."""
    gradients = np.stack([g[v_rows(model)] for (g,) in gradients_in_float64(model, rows, name)])
    return np.stack([(gradients * probes.draw(j)).sum(axis=(1, 2)) for j in range(probes.count)], axis=1)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_forward_and_reverse_mode_give_the_derivatives_of_the_whole_model_in_float64(kind, lora):
    model, rows = tiny_model(kind, lora=lora), make_rows(10)
    expected = None
    for estimator in ("jvp", "exact"):
        scores, probes, name = score(model, rows, count=3, estimator=estimator)
        if expected is None:
            expected = derivatives_in_float64(model, name, rows, probes)
            reference = copy.deepcopy(model).double().eval()
            losses = [loss_in_float64(reference, row).item() for row in rows]
        rms = np.sqrt((expected**2).mean())
        assert rms > 1e-2
        np.testing.assert_allclose(scores.c, expected, atol=1e-4 * rms, rtol=0)
        np.testing.assert_allclose(scores.loss, losses, rtol=1e-5)


@pytest.mark.parametrize("kind", ["phi", "llama", "gemma2", "gpt_neox", "phi3"])
def test_half_precision_trunk_ranks_rows_like_the_derivative_in_float64(kind):
    model, rows = tiny_model(kind), make_rows(32)
    train_a_little(model)
    for dtype in (torch.bfloat16, torch.float16):
        for lora in (False, True):
            half = copy.deepcopy(model).to(dtype)
            half = with_lora(half) if lora else half
            found = {estimator: score(half, rows, estimator=estimator) for estimator in ESTIMATORS}
            _, probes, name = found["central"]
            derivatives = derivatives_in_float64(half, name, rows, probes)
            for estimator, (scores, _, _) in found.items():
                assert rank_correlation(scores.c[:, 0], derivatives[:, 0]) >= 0.99, (dtype, lora, estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_that_is_not_finite_is_nan_and_spoils_no_other(estimator, dtype):
    model = tiny_model("llama", lora=True).to(dtype).train()
    rows = [Row(np.array([5, 6, 7, 8], dtype=np.int32), 2) for _ in range(5)]
    expected, _, _ = score(model, rows, count=2, estimator=estimator, soft_labels=True)
    for bad in (1, 4):
        rows[bad] = Row(np.array([5, 66, 7, 8], dtype=np.int32), 2)
    with torch.no_grad():
        model.get_input_embeddings().weight[66] = torch.nan
    found, _, _ = score(model, rows, count=2, estimator=estimator, soft_labels=True)
    assert found.finite.tolist() == [True, False, True, True, False]
    for name in ("loss", "c", "prompt"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert np.isnan(mine[~found.finite]).all()
        np.testing.assert_array_equal(mine[found.finite], theirs[found.finite])
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_row_scores_the_same_whatever_rows_are_beside_it(estimator):
    model, rows = tiny_model("phi", lora=True), make_rows(23)
    reference, _, _ = score(model, rows, count=2, score_tokens=1 << 20, estimator=estimator)
    tolerance = (2e-3 if estimator == "central" else 1e-5) * np.abs(reference.c).max()
    for score_tokens in (1, 50, 700):
        found, _, _ = score(model, rows, count=2, score_tokens=score_tokens, estimator=estimator)
        np.testing.assert_allclose(found.c, reference.c, atol=tolerance)
        np.testing.assert_allclose(found.loss, reference.loss, rtol=1e-6)
    order = np.random.default_rng(1).permutation(23)
    shuffled, _, _ = score(model, [rows[i] for i in order], count=2, estimator=estimator)
    np.testing.assert_allclose(shuffled.c, reference.c[order], atol=tolerance)


def test_many_probes_in_blocks_of_the_weights_rows_give_what_one_block_gives(monkeypatch):
    model, rows = tiny_model("phi3"), make_rows(9)
    expected, _, _ = score(model, rows, count=5, estimator="exact")
    monkeypatch.setattr("selector_server.scoring.estimators._BLOCK_VALUES", 3 * 32 * 14)
    found, _, _ = score(model, rows, count=5, estimator="exact")
    np.testing.assert_allclose(found.c, expected.c, atol=1e-6 * np.abs(expected.c).max())


class Twice(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return (self.inner(x) + self.inner(x)) / 2


def test_module_that_is_called_twice_has_no_exact_gradient_which_a_rehearsal_says():
    model = tiny_model("llama")
    model.model.layers[-1].mlp.down_proj = Twice(model.model.layers[-1].mlp.down_proj)
    selection = SelectionConfig(preset="matched")
    scorer = Scorer(model, "cpu", gradient_of="last_blocks")
    with pytest.raises(ModelError, match=r"1 of 7 trained linear modules are called 2 times .* estimator 'central'"):
        scorer.rehearse(selection)
    Scorer(model, "cpu").rehearse(SelectionConfig())


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 1.0 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_operation_without_a_forward_mode_derivative_is_noticed_before_training():
    class Projection(torch.nn.Linear):
        def forward(self, x):
            return NoForwardMode.apply(super().forward(x))

    model = tiny_model("llama")
    model.model.layers[-1].self_attn.o_proj.__class__ = Projection
    with pytest.raises(ModelError, match=r"estimator 'jvp' can't be used with this model"):
        Scorer(model, "cpu").rehearse(SelectionConfig(estimator="jvp"))
    Scorer(model, "cpu").rehearse(SelectionConfig(estimator="exact"))


def test_scoring_leaves_no_graph_and_no_gradient_behind():
    model, rows = tiny_model("llama", lora=True), make_rows(5)
    for estimator in ESTIMATORS:
        score(model, rows, estimator=estimator)
        assert all(parameter.grad is None for parameter in model.parameters())
        model(input_ids=torch.tensor([[3, 1, 4]])).logits.sum().backward()
        model.zero_grad()
