"""What can differ on an accelerator: precision of the trunk, memory, and the picks. Run with `pytest -m gpu`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from selector_server.picks.medoids import medoids
from selector_server.scoring.probes import Probes
from selector_server.scoring.scorer import Scorer
from shared.records import Row
from shared.selection_config import SelectionConfig
from tests.small_models import (
    VOCABULARY,
    gradients_in_float64,
    make_rows,
    rank_correlation,
    tiny_model,
    train_a_little,
    v_rows,
    with_lora,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def device() -> str:
    assert torch.cuda.is_available(), "these tests need a CUDA device; without one leave them out with -m 'not gpu'"
    return "cuda"


def derivative(model: Any, name: str, rows: list[Row], z: np.ndarray) -> np.ndarray:
    """Of each row's loss along z, through the whole model in float64 on the CPU."""
    gradients = gradients_in_float64(model.cpu(), rows, name)
    return np.array([(gradient[v_rows(model)] * z).sum() for (gradient,) in gradients])


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["phi", "llama", "qwen3", "gemma2"])
def test_half_precision_trunk_ranks_rows_like_the_derivative_in_float64(
    kind: str, dtype: torch.dtype, lora: bool, device: str
) -> None:
    model, rows = tiny_model(kind), make_rows(32)
    train_a_little(model)
    model = model.to(dtype)
    model = with_lora(model) if lora else model
    scorer = Scorer(model.to(device), device)
    probes = Probes(scorer.shape, seed=7, step=3, count=1)
    scores = scorer.score(rows, probes, SelectionConfig())
    assert scores.c is not None
    assert rank_correlation(scores.c[:, 0], derivative(model, scorer.name, rows, probes.draw(0))) >= 0.99


@pytest.mark.parametrize("estimator", ["jvp", "exact"])
@pytest.mark.parametrize("kind", ["phi", "llama", "gpt_neox"])
def test_exact_estimators_agree_with_float64(kind: str, estimator: str, device: str) -> None:
    model, rows = tiny_model(kind, lora=True), make_rows(16)
    scorer = Scorer(copy.deepcopy(model).to(device), device)
    probes = Probes(scorer.shape, seed=7, step=3, count=3)
    scores = scorer.score(rows, probes, SelectionConfig(estimator=estimator, num_probes=3))
    assert scores.c is not None
    for j in range(3):
        expected = derivative(model, scorer.name, rows, probes.draw(j))
        np.testing.assert_allclose(scores.c[:, j], expected, atol=1e-4 * np.sqrt((expected**2).mean()))


def test_scoring_twice_on_a_gpu_gives_the_same_bits(device: str) -> None:
    model, rows = tiny_model("llama", lora=True).to(device), make_rows(40)
    for changes in ({}, {"estimator": "exact", "gradient_of": "last_blocks"}):
        selection = SelectionConfig(**changes)
        scorer = Scorer(model, device, gradient_of=selection.gradient_of)
        probes = Probes(scorer.shape, seed=7, step=3, count=1)
        first, second = (scorer.score(rows, probes, selection) for _ in range(2))
        for name in ("loss", "c", "sketch"):
            left, right = getattr(first, name), getattr(second, name)
            assert (left is None and right is None) or np.array_equal(left, right)


def test_peak_memory_grows_neither_with_the_vocabulary_nor_with_rank_times_width_times_rows(device: str) -> None:
    peaks = {}
    for vocabulary, rank in ((VOCABULARY, 4), (50_000, 4), (VOCABULARY, 256)):
        model = with_lora(tiny_model("llama", vocab_size=vocabulary, hidden_size=512, intermediate_size=1024), r=rank)
        rows, model = make_rows(256), model.to(device)
        scorer = Scorer(model, device)
        probes = Probes(scorer.shape, seed=7, step=3, count=1)
        scorer.score(rows, probes, SelectionConfig())
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        scorer.score(rows, probes, SelectionConfig())
        peaks[vocabulary, rank] = torch.cuda.max_memory_allocated() - before
    b_rank_width = 256 * 256 * 512 * 4
    assert peaks[VOCABULARY, 256] - peaks[VOCABULARY, 4] < b_rank_width / 8
    assert peaks[50_000, 4] < 600 << 20  # the logits of these rows' answers at once: 256 · 12 · 50,000 · 4 bytes


def test_medoids_on_a_gpu_are_those_on_the_cpu(device: str) -> None:
    values = np.random.default_rng(0).standard_normal((300, 24))
    for metric in ("l1", "l2"):
        on_gpu = medoids(values, budget=100, metric=metric, device=device)
        on_cpu = medoids(values, budget=100, metric=metric)
        assert on_gpu.index.tolist() == on_cpu.index.tolist()
        np.testing.assert_allclose(on_gpu.gain, on_cpu.gain, rtol=1e-9)
