import os

os.environ["HF_HUB_OFFLINE"] = "1"

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scorer
from selector_server.scoring.sketch import add_gradients, signs, sketch_width
from shared.errors import ModelError
from shared.records import Row
from shared.selection_config import SelectionConfig
from tests.small_models import gradients_in_float64, loss_in_float64, make_rows, tiny_model, train_a_little, with_lora


def sketches(model, rows, *, size=1024, step=3, num_blocks=1, score_tokens=128, scorer=None):
    scorer = scorer or Scorer(model, "cpu", gradient_of="last_blocks", num_blocks=num_blocks)
    selection = SelectionConfig(
        estimator="exact", gradient_of="last_blocks", num_blocks=num_blocks, sketch_size=size, score_tokens=score_tokens
    )
    return scorer.score(rows, Probes(scorer.shape, seed=7, step=step, count=1), selection)


def last_block_gradients(model, rows, num_blocks=1):
    """Gradients of all trained matrices of the last blocks, flat, from the whole model in float64, [b, coordinates]."""
    last = [f".{2 - i}." for i in range(num_blocks)]
    names = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.dim() == 2 and any(layer in name.partition("layers")[2][:3] for layer in last)
    ]
    return np.stack([np.concatenate([g.ravel() for g in row]) for row in gradients_in_float64(model, rows, *names)])


@settings(deadline=None, max_examples=60)
@given(
    d_out=st.integers(1, 9),
    d_in=st.integers(1, 9),
    width=st.integers(1, 90),
    first=st.integers(0, 200),
    m=st.integers(1, 3),
    t=st.integers(1, 4),
)
def test_sketch_is_the_sum_of_signed_coordinates_in_buckets_written_out(d_out, d_in, width, first, m, t):
    torch.manual_seed(d_out + 10 * d_in)
    flow = [(torch.randn(t, d_out), torch.randn(t, d_in)) for _ in range(m)]
    left, right = signs(Probes((), seed=1, step=2, count=1), 0, (d_out, d_in), "cpu")
    assert set(left.tolist() + right.tolist()) <= {-1.0, 1.0}
    before = torch.randn(m, width)
    found = before.clone()
    add_gradients(found, flow, left, right, first=first)
    expected = before.double().clone()
    for i, (delta, x) in enumerate(flow):
        gradient = torch.einsum("ta,tb->ab", delta.double(), x.double())
        for a in range(d_out):
            for b in range(d_in):
                expected[i, (first + a * d_in + b) % width] += left[a].double() * right[b].double() * gradient[a, b]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("lora", "num_blocks"), [(True, 1), (False, 1), (False, 2)])
@pytest.mark.parametrize("kind", ["phi", "llama", "gemma3_text", "gpt_neox", "phi3"])
def test_inner_products_of_sketches_are_on_average_those_of_the_last_blocks_gradients_in_float64(
    kind, lora, num_blocks
):
    model = tiny_model(kind, lora=lora, **({"sliding_window": 4} if kind.startswith("gemma") else {}))
    rows = make_rows(6)
    gradients = last_block_gradients(model, rows, num_blocks)
    expected = gradients @ gradients.T
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    steps, scorer = 40, Scorer(model, "cpu", gradient_of="last_blocks", num_blocks=num_blocks)
    found = [sketches(model, rows, step=i, num_blocks=num_blocks, scorer=scorer).sketch for i in range(steps)]
    products = np.stack([s @ s.T for s in found])
    # A dense projection to 1,021 numbers deviates by √((1 + cos²) / 1021), at most 0.044.
    deviations = ((products - expected) / scale).std(axis=0)
    assert np.sqrt((deviations**2).mean()) < 1.2 * 0.044
    np.testing.assert_allclose(products.mean(axis=0) / scale, expected / scale, atol=5 * 0.044 / np.sqrt(steps))
    reference = copy.deepcopy(model).double().eval()
    losses = [loss_in_float64(reference, row).item() for row in rows]
    np.testing.assert_allclose(sketches(model, rows, num_blocks=num_blocks).loss, losses, rtol=1e-5)


def test_deviation_falls_with_the_root_of_the_width():
    model, rows = tiny_model("phi"), make_rows(24)
    train_a_little(model)
    gradients = last_block_gradients(model, rows)
    expected = gradients @ gradients.T
    scale, deviation = np.sqrt(np.outer(np.diag(expected), np.diag(expected))), {}
    for size in (64, 256, 1024):
        products = np.stack([(s := sketches(model, rows, size=size, step=i).sketch) @ s.T for i in range(6)])
        deviation[size] = np.sqrt((((products - expected) / scale) ** 2).mean())
        assert deviation[size] < 1.5 * np.sqrt(2 / size)
    assert deviation[64] > 1.6 * deviation[256] > 2.5 * deviation[1024]


def test_sketch_is_the_same_whatever_rows_are_beside_it_and_another_one_in_another_step():
    model, rows = tiny_model("qwen2", lora=True), make_rows(15)
    reference = sketches(model, rows, score_tokens=1 << 20).sketch
    for score_tokens in (1, 60, 200):
        found = sketches(model, rows, score_tokens=score_tokens).sketch
        np.testing.assert_allclose(found, reference, atol=1e-5 * np.abs(reference).max())
    assert np.array_equal(sketches(model, rows).sketch, sketches(model, rows).sketch)
    assert np.abs(sketches(model, rows, step=4).sketch - reference).max() > 0.1 * np.abs(reference).max()


def test_row_that_is_not_finite_is_nan_and_spoils_no_other_sketch():
    model = tiny_model("phi")
    rows = [Row(np.array([5, 6, 7, 8], dtype=np.int32), 2) for _ in range(4)]
    expected = sketches(model, rows)
    rows[2] = Row(np.array([5, 66, 7, 8], dtype=np.int32), 2)
    with torch.no_grad():
        model.get_input_embeddings().weight[66] = torch.nan
    found = sketches(model, rows)
    assert found.finite.tolist() == [True, True, False, True]
    assert np.isnan(found.sketch[2]).all()
    np.testing.assert_array_equal(found.sketch[found.finite], expected.sketch[found.finite])
    assert found.c is None


def test_last_blocks_need_no_v_projection_but_something_trained():
    model = with_lora(tiny_model("llama"), target_modules=["down_proj"])
    assert sketches(model, make_rows(3)).finite.all()
    with pytest.raises(ModelError, match="no linear module of the last 1 layers is trained: add some"):
        sketches(with_lora(tiny_model("llama"), layers_to_transform=[0]), make_rows(3))


def test_widths_are_primes_that_are_at_most_what_is_asked_for():
    assert [sketch_width(size, []) for size in (1, 2, 3, 4, 10, 25, 1024)] == [1, 2, 3, 3, 7, 23, 1021]
    assert sketch_width(1024, [256, 4 * 1021]) == 1019


def test_half_precision_trunk_gives_the_sketches_of_the_same_weights_in_float32():
    model, rows = tiny_model("llama"), make_rows(16)
    train_a_little(model)
    half = model.to(torch.bfloat16)
    found, expected = sketches(half, rows).sketch, sketches(copy.deepcopy(half).float(), rows).sketch
    off = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert off.max() < 0.1
