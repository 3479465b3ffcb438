import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from selector_server.scoring.head import Head, LogitMap, token_losses
from shared.errors import DataError
from shared.records import Row
from shared.rowloss import IGNORE, collate, find_answers, row_losses, row_means

VOCABULARY = 11


def make_rows(sizes, seed=0):
    """Rows of (prompt tokens, answer tokens)."""
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(0, VOCABULARY, p + a).astype(np.int32), p) for p, a in sizes]


def loss_by_hand(logits, row):
    """Mean negative log likelihood of one row's answer in plain float64 NumPy, token by token."""
    total, count = 0.0, 0
    for position in range(max(row.num_prompt_tokens, 1), len(row.input_ids)):
        scores = logits[position - 1].astype(np.float64)
        total += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[row.input_ids[position]]
        count += 1
    return total / count


row_sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(sizes=row_sizes, seed=st.integers(0, 2**31))
def test_loss_is_the_mean_over_answer_tokens_for_trainer_and_selector(sizes, seed):
    rows = make_rows(sizes, seed)
    batch = collate(rows)
    torch.manual_seed(seed)
    hidden = torch.randn(*batch["labels"].shape, 5)
    head = torch.nn.Linear(5, VOCABULARY)
    expected = [loss_by_hand(head(hidden)[i].detach().numpy(), row) for i, row in enumerate(rows)]
    answers = find_answers(batch["labels"])
    with torch.no_grad():
        losses = token_losses(hidden[answers.predicting], Head(head.weight, head.bias, LogitMap()), answers.targets)
    scored = row_means(losses, answers)
    trained = row_losses(head(hidden), batch["labels"])
    assert trained.dtype == torch.float32
    assert scored.dtype == torch.float64
    np.testing.assert_allclose(trained.detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(scored.numpy(), expected, rtol=1e-5)


def test_collate_pads_on_the_right_and_labels_answers_alone():
    rows = [Row(np.array([5, 6, 7, 8], dtype=np.int32), 1), Row(np.array([3, 4], dtype=np.int32), 1)]
    batch = collate(rows, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [3, 4, 9, 9]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7, 8], [IGNORE, 4, IGNORE, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_row_without_a_prompt_has_a_loss_from_its_second_token_on():
    (row,) = make_rows([(0, 4)])
    batch = collate([row])
    logits = torch.randn(1, 4, VOCABULARY)
    assert row_losses(logits, batch["labels"]).item() == pytest.approx(loss_by_hand(logits[0].numpy(), row), rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    prompt=st.integers(0, 4),
    spans=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    ends=st.booleans(),
)
def test_the_loss_of_a_conversation_is_that_of_its_answers(prompt, spans, ends):
    """`spans` are an answer's tokens and those of the question behind it, of which the last may be left out."""
    is_answer = [False] * prompt + [kind for answer, ask in spans for kind in [True] * answer + [False] * ask]
    is_answer = is_answer[: len(is_answer) - spans[-1][1] * ends]
    edges = [i for i in range(prompt + 1, len(is_answer)) if is_answer[i] != is_answer[i - 1]]
    ids = np.random.default_rng(0).integers(0, VOCABULARY, len(is_answer)).astype(np.int32)
    row = Row(ids, prompt, np.array(edges, dtype=np.int32))
    assert row.loss_mask().tolist() == is_answer
    learnt = [i for i, kind in enumerate(is_answer) if kind and i > 0]
    if not learnt:
        with pytest.raises(DataError, match="no answer token is left to predict"):
            collate([row])
        return
    batch = collate([row, *make_rows([(2, 9)])])
    assert [i for i, label in enumerate(batch["labels"][0].tolist()) if label != IGNORE and i > 0] == learnt
    logits = torch.randn(*batch["labels"].shape, VOCABULARY, generator=torch.Generator().manual_seed(1))
    log_p = logits[0].double().log_softmax(-1)
    expected = -np.mean([log_p[i - 1, ids[i]].item() for i in learnt])
    assert row_losses(logits, batch["labels"])[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("prompt", "answer"), [(3, 0), (0, 1)])
def test_row_without_a_predictable_answer_is_refused(prompt, answer):
    good, bad = make_rows([(2, 2), (prompt, answer)])
    with pytest.raises(
        DataError, match=f"row 1 of the batch has {prompt + answer} tokens of which {prompt} are prompt"
    ):
        collate([good, bad])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_lose_nothing_more_in_the_loss(dtype):
    rows = make_rows([(2, 30), (5, 9)])
    labels = collate(rows)["labels"]
    logits = (10 * torch.randn(*labels.shape, VOCABULARY)).to(dtype)
    expected = [loss_by_hand(logits[i].float().numpy(), row) for i, row in enumerate(rows)]
    np.testing.assert_allclose(row_losses(logits, labels).numpy(), expected, rtol=1e-6)


def test_gradient_is_that_of_the_mean_written_out_in_float64():
    rows = make_rows([(2, 3), (1, 6), (4, 1)])
    labels = collate(rows)["labels"]
    weights = torch.tensor([1.0, 0.0, 2.5])
    logits = torch.randn(*labels.shape, VOCABULARY, requires_grad=True)
    (row_losses(logits, labels) * weights).sum().backward()
    reference = logits.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(rows):
        p, log_p = row.num_prompt_tokens, reference[i].log_softmax(-1)
        picked = [log_p[t - 1, int(row.input_ids[t])] for t in range(p, len(row.input_ids))]
        total = total - weights[i] * sum(picked) / len(picked)
    total.backward()
    torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=1e-5, atol=1e-8)


def test_row_loss_in_a_model_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = make_rows([(3, 4), (20, 17), (1, 1), (2, 9)])

    def losses(batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return row_losses(logits, batch["labels"]).tolist()

    with torch.no_grad():
        together = losses(collate(rows, pad_id=7))
        alone = [losses(collate([row]))[0] for row in rows]
    assert together == pytest.approx(alone, rel=1e-6)
