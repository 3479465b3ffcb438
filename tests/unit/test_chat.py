"""Conversations: which tokens have a loss, by template, and which can't be used.

Truths are written by hand: the text of a conversation typed out with its answers in brackets, and the tokens that
`tokenizers` finds on them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shared.chat import ChatEncoder, Refused
from shared.errors import ModelError
from shared.records import Row

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no ' + m['role'] + ' here') }}{% endif %}{% endfor %}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A{{ '\n' }}"
    "{% generation %}{{ m['content'] }}</s>{% endgeneration %}{{ '\n' }}"
    "{% else %}Q: {{ m['content'] }}\n{% endif %}{% endfor %}"
)
# As templates of reasoning models do, it drops what earlier answers thought.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Its prompt for an answer isn't what it then writes before one.
CONTRARY = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant, think: {% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is ½ of 8?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And of 10? "},
    {"role": "assistant", "content": " 5 – five"},
]


def make_tokenizer(template: str | None, *, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([m["content"] for m in TALK] + ["user assistant system It is"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        extra_special_tokens=["<|im_end|>"],
    )


def encode(template: str, messages: list[dict[str, Any]], **settings: Any) -> Row | Refused | None:
    (found,) = ChatEncoder(make_tokenizer(template), **{"max_length": 500, **settings})([messages])
    return found


def answers_of(tokenizer: PreTrainedTokenizerFast, row: Row) -> list[str]:
    """The text of each run of tokens that has a loss."""
    runs: list[list[int]] = []
    mask = row.loss_mask().tolist()
    for at, (token, learnt) in enumerate(zip(row.input_ids.tolist(), mask, strict=True)):
        if learnt and not (at and mask[at - 1]):
            runs.append([])
        if learnt:
            runs[-1].append(token)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


# The whole text, what has a loss in brackets.
CHATML_TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is ½ of 8?<|im_end|>\n"
    "<|im_start|>assistant\n⟦It is 4.<|im_end|>⟧\n<|im_start|>user\nAnd of 10? <|im_end|>\n"
    "<|im_start|>assistant\n⟦ 5 – five<|im_end|>⟧\n"
)
LLAMA2_TEXT = "<s>[INST] What is ½ of 8? [/INST]⟦ It is 4.</s>⟧[INST] And of 10?  [/INST]⟦  5 – five</s>⟧"
MARKED_TEXT = "Q: Be brief.\nQ: What is ½ of 8?\nA\n⟦It is 4.</s>⟧\nQ: And of 10? \nA\n⟦ 5 – five</s>⟧\n"


@pytest.mark.parametrize("train_on", ["all", "last"])
@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [(CHATML, TALK, CHATML_TEXT), (LLAMA2, TALK[1:], LLAMA2_TEXT), (MARKED, TALK, MARKED_TEXT)],
)
def test_the_loss_is_on_what_the_assistant_says_and_on_the_end_of_its_turn(
    template: str, messages: list[dict[str, Any]], expected: str, train_on: str
) -> None:
    row = encode(template, messages, train_on=train_on)
    assert isinstance(row, Row)
    tokenizer = make_tokenizer(template)
    plain = re.sub("[⟦⟧]", "", expected)
    assert row.input_ids.tolist() == tokenizer(plain, add_special_tokens=False)["input_ids"]
    answers = re.findall("⟦(.*?)⟧", expected, flags=re.DOTALL)
    assert answers_of(tokenizer, row) == (answers if train_on == "all" else answers[-1:])


def test_a_tokenizer_that_trims_its_offsets_learns_the_space_in_front_too() -> None:
    tokenizer = make_tokenizer(LLAMA2, trim_offsets=True)
    (row,) = ChatEncoder(tokenizer, max_length=500)([TALK[1:]])
    assert isinstance(row, Row)
    assert answers_of(tokenizer, row) == [" It is 4.</s>", "  5 – five</s>"]


def test_a_system_prompt_comes_first_where_there_is_none() -> None:
    with_own, without = encode(CHATML, TALK, system="Be rude."), encode(CHATML, TALK[1:], system="Be brief.")
    assert isinstance(with_own, Row)
    assert isinstance(without, Row)
    assert with_own.input_ids.tolist() == without.input_ids.tolist()


def test_what_is_past_max_length_is_cut_and_nothing_left_is_no_row() -> None:
    whole = encode(CHATML, TALK)
    assert isinstance(whole, Row)
    first, second = int(whole.num_prompt_tokens), int(whole.mask_edges[1])
    cut = encode(CHATML, TALK, max_length=second)
    assert isinstance(cut, Row)
    assert cut.input_ids.tolist() == whole.input_ids[:second].tolist()
    assert cut.loss_mask().tolist() == whole.loss_mask()[:second].tolist()
    assert encode(CHATML, TALK, max_length=first) is None
    assert encode(CHATML, TALK, max_length=second, train_on="last") is None


THOUGHT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>hm</think>a"}]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (FORGETFUL, THOUGHT * 2, "writes the conversation up to turn 2 otherwise than in the whole"),
        (
            CONTRARY,
            TALK,
            "writes the prompt for turn 3 otherwise than in the whole .* use --train-on last, or a template",
        ),
        (LLAMA2, TALK, r"chat template refuses it \(no system here\)"),
        (CHATML.replace("messages %}", "messages %}{{ messages[0]['role'] and '' }}"), TALK[2:3], "refuses it"),
    ],
)
def test_a_template_that_hides_where_answers_are_is_refused_by_name(
    template: str, messages: list[dict[str, Any]], message: str
) -> None:
    refused = encode(template, messages)
    assert isinstance(refused, Refused)
    assert re.search(message, refused.reason), refused.reason


def test_the_last_answer_of_a_forgetful_template_is_exact() -> None:
    row = encode(FORGETFUL, THOUGHT * 2, train_on="last")
    assert isinstance(row, Row)
    tokenizer = make_tokenizer(FORGETFUL)
    assert answers_of(tokenizer, row) == ["<think>hm</think>a<|im_end|>"]
    assert "user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>" in tokenizer.decode(row.input_ids)


def test_no_chat_template_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="has no chat template, which conversations need: give one with --chat-template"
    ):
        ChatEncoder(make_tokenizer(None), max_length=9)
