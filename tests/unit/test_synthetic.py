"""The demo's data set, tokenizer and model, against truths that the generator doesn't know."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.errors import DataError, ModelError
from shared.synthetic import corpus as corpus_module
from shared.synthetic.checks import check_program, run_program
from shared.synthetic.corpus import MIN_ROWS, SOURCES, CorpusFiles, write_corpus
from shared.synthetic.problems.problem import Problem, Step, explain
from shared.synthetic.styles import PLAIN, Written
from shared.synthetic.tiny_model import make_phi, train_tokenizer

Row = dict[str, str]
ROWS, HELDOUT = 2500, 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusFiles:
    return write_corpus(tmp_path_factory.mktemp("corpus"), rows=ROWS, heldout_per_source=HELDOUT, seed=3)


@pytest.fixture(scope="module")
def rows(corpus: CorpusFiles) -> list[Row]:
    return _read(corpus.train) + _read(corpus.heldout)


@pytest.fixture(scope="module")
def model_folder(corpus: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(corpus.train, folder, 1024)
    make_phi(folder, vocab_size=1024, layers=2, width=32, heads=2, seed=5, max_length=256)
    return folder


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Sizes


def test_source_sizes_agree_with_everything_that_is_published_about_them():
    sizes = {name: source.size for name, source in SOURCES.items()}
    total, ten_smallest = sum(sizes.values()), sum(sorted(sizes.values())[:10])
    assert (total, ten_smallest, len(sizes)) == (262_039, 70_615, 14)
    assert sizes["data/CoT/math50k_camel.json"] == 49_484
    assert sizes["data/CoT/college_math.json"] == 1_840
    assert sizes["data/PoT/MATH_train.json"] == 10_632
    shares = {"data/CoT/aqua_rat.json": 34.1, "data/CoT/gsm_rft.json": 10.8, "data/PoT/mathqa.json": 9.3}
    assert {name: round(100 * sizes[name] / total, 1) for name in shares} == shares


def test_files_keep_the_true_imbalance_and_every_source_has_a_few_rows(corpus: CorpusFiles):
    counts = Counter(row["source"] for row in _read(corpus.train))
    assert counts == corpus.rows_by_source
    assert counts.total() == ROWS
    for name, source in SOURCES.items():
        fair = ROWS * source.size / 262_039
        assert counts[name] == MIN_ROWS if fair < MIN_ROWS else abs(counts[name] - fair) < 3
    assert Counter(row["source"] for row in _read(corpus.heldout)) == dict.fromkeys(SOURCES, HELDOUT)


def test_the_smallest_corpus_has_the_least_rows_of_each_source(tmp_path: Path):
    files = write_corpus(tmp_path, rows=MIN_ROWS * 14, heldout_per_source=0, seed=0)
    assert set(files.rows_by_source.values()) == {MIN_ROWS}
    assert files.heldout.read_bytes() == b""


@pytest.mark.parametrize(
    ("rows", "heldout", "message"), [(55, 1, "55 rows are too few"), (100, -1, "heldout_per_source is -1")]
)
def test_impossible_sizes_are_refused_before_anything_is_written(tmp_path: Path, rows: int, heldout: int, message: str):
    with pytest.raises(DataError, match=message):
        write_corpus(tmp_path / "out", rows=rows, heldout_per_source=heldout, seed=0)
    assert not (tmp_path / "out").exists()


def test_a_negative_number_of_questions_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(DataError, match="questions_per_source is -1"):
        write_corpus(tmp_path / "out", rows=100, heldout_per_source=0, questions_per_source=-1, seed=0)
    assert not (tmp_path / "out").exists()


# Determinism


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_rows(tmp_path: Path, corpus: CorpusFiles):
    again = write_corpus(tmp_path / "again", rows=ROWS, heldout_per_source=HELDOUT, seed=3)
    other = write_corpus(tmp_path / "other", rows=ROWS, heldout_per_source=HELDOUT, seed=4)
    assert again.train.read_bytes() == corpus.train.read_bytes()
    assert again.heldout.read_bytes() == corpus.heldout.read_bytes()
    assert other.train.read_bytes() != corpus.train.read_bytes()


def test_heldout_rows_do_not_depend_on_the_number_of_training_rows(tmp_path: Path, corpus: CorpusFiles):
    fewer = write_corpus(tmp_path, rows=100, heldout_per_source=HELDOUT, seed=3)
    assert fewer.heldout.read_bytes() == corpus.heldout.read_bytes()


def test_no_instruction_appears_twice_in_training_and_heldout_rows_together(rows: list[Row]):
    assert len({row["instruction"] for row in rows}) == len(rows)


def test_questions_have_a_stream_of_their_own_and_leave_the_rows_as_they_are(tmp_path: Path, corpus: CorpusFiles):
    sizes = {"rows": ROWS, "heldout_per_source": HELDOUT, "seed": 3}
    asked = write_corpus(tmp_path / "asked", questions_per_source=5, **sizes)
    fewer = write_corpus(tmp_path / "fewer", questions_per_source=2, **sizes)
    assert asked.train.read_bytes() == fewer.train.read_bytes() == corpus.train.read_bytes()
    assert asked.heldout.read_bytes() == fewer.heldout.read_bytes() == corpus.heldout.read_bytes()
    assert not corpus.questions.exists()
    questions = _read(asked.questions)
    assert [row["source"] for row in questions] == [name for name in SOURCES for _ in range(5)]
    assert all(row.keys() == {"source", "question", "answer"} for row in questions)
    instructions = [row["instruction"] for row in _read(asked.train) + _read(asked.heldout)]
    assert len({*instructions, *(row["question"] for row in questions)}) == len(instructions) + len(questions)
    first = {name: [row for row in questions if row["source"] == name][:2] for name in SOURCES}
    assert _read(fewer.questions) == [row for name in SOURCES for row in first[name]]
    other = write_corpus(tmp_path / "other", rows=100, heldout_per_source=0, questions_per_source=5, seed=3)
    same = sum(left == right for left, right in zip(_read(other.questions), questions, strict=True))
    assert same > len(questions) / 2  # all but those that would repeat a row of either corpus


def test_answers_to_questions_are_right(tmp_path: Path):
    files = write_corpus(tmp_path, rows=100, heldout_per_source=0, questions_per_source=20, seed=3)
    for row in _read(files.questions):
        if row["source"] == "data/CoT/number_comparison.json":
            assert row["answer"] == _compare(row["question"])


@pytest.mark.parametrize(
    ("answer", "text"), [(7, "7"), (Fraction(3, 4), "3/4"), (Fraction(6, 3), "2"), ("B", "B"), ("1, 2, 3", "1, 2, 3")]
)
def test_an_answer_is_written_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int | Fraction | str, text: str
):
    name, source = next(iter(SOURCES.items()))
    fixed = replace(source, style=lambda _, draw: Written(f"Question {draw.random()}", "Because.", answer))
    monkeypatch.setattr(corpus_module, "SOURCES", {name: fixed})
    files = write_corpus(tmp_path, rows=MIN_ROWS, heldout_per_source=0, questions_per_source=1, seed=0)
    assert [row["answer"] for row in _read(files.questions)] == [text]


# Correctness


def test_programs_print_the_known_answer_in_an_interpreter_of_their_own():
    draw = Random(11)
    written = [
        source.style(family(draw), draw)
        for name, source in SOURCES.items()
        if name.startswith("data/PoT/")
        for family in source.families
        for _ in range(12)
    ]
    for output, row in zip(_run_elsewhere([row.output for row in written]), written, strict=True):
        if isinstance(row.answer, str):
            assert output == row.answer, row.output
        else:
            assert Fraction(output) == row.answer, row.output


def test_programs_in_the_file_print_one_line(rows: list[Row]):
    programs = [row["output"] for row in rows if row["source"].startswith("data/PoT/")]
    outputs = _run_elsewhere(programs)
    assert len(outputs) > 500
    assert all(re.fullmatch(r"-?\d+(\.\d+|/\d+)?|[A-E]", output) for output in outputs)


def test_every_equation_of_the_reasoning_holds_and_the_last_one_gives_the_answer(rows: list[Row]):
    equations = Counter[str]()
    for row in rows:
        if not row["source"].startswith("data/CoT/"):
            continue
        working, answer = row["output"].rsplit("\nThe answer is ", 1)
        value = None
        for left, right in _equations(working):
            value = _value(right)
            assert _value(left) == value, row["output"]
            equations[row["source"]] += 1
        if row["source"] == "data/CoT/aqua_rat.json":
            assert value == int(_choices(row)[answer]), row["output"]
        elif row["source"] != "data/CoT/number_comparison.json":
            assert value == _value(_plain(answer)), row["output"]
    counts = Counter(row["source"] for row in rows)
    for name in SOURCES:
        if name.startswith("data/CoT/") and "comparison" not in name:
            assert equations[name] > counts[name], f"{name}: equations aren't being found"


def test_multiple_choice_offers_five_different_numbers_and_no_position_is_always_right(rows: list[Row]):
    answers = Counter[str]()
    for row in rows:
        if row["source"] == "data/CoT/aqua_rat.json":
            assert len(set(_choices(row).values())) == 5
            answers[row["output"][-1]] += 1
    assert min(answers[letter] for letter in "ABCDE") > 0.05 * answers.total()


def test_comparisons_are_right():
    draw = Random(2)
    source = SOURCES["data/CoT/number_comparison.json"]
    for family in source.families:
        for _ in range(50):
            written = source.style(family(draw), draw)
            assert written.output.endswith(f"The answer is {_compare(written.instruction)}"), written


def _run_elsewhere(programs: list[str]) -> list[str]:
    runner = (
        "import contextlib, io, json, sys\n"
        "def run(program):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        exec(program, {})\n"
        "    return out.getvalue().strip()\n"
        "print(json.dumps([run(program) for program in json.load(sys.stdin)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", runner], input=json.dumps(programs), capture_output=True, text=True, check=True
    )
    outputs: list[str] = json.loads(done.stdout)
    return outputs


def _plain(text: str) -> str:
    """LaTeX and mathematical notation in Python's."""
    for pattern, python in (
        (r"\\frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)"),
        (r"\\binom\{(\d+)\}\{(\d+)\}", r"C(\1, \2)"),
        (r"\\sqrt\{(\d+)\}", r"sqrt(\1)"),
        (r"\\lfloor (.*?) \\rfloor", r"floor(\1)"),
        (r"\^\{(\d+)\}", r"**\1"),
        (r"\\cdot", "*"),
        (r"\\?\b(b?mod)\b", "%"),
        (r"\\gcd", "gcd"),
        (r"\^", "**"),
        (r"\$", ""),
    ):
        text = re.sub(pattern, python, text)
    return text


def _equations(working: str) -> list[tuple[str, str]]:
    sides = r"((?:(?:C|gcd|floor|sqrt)?[(0-9][-+*/%., 0-9()]*)) = (-?\(?\d+(?:[./]\d+)?\)?)"
    return re.findall(rf"(?<![\w*]){sides}", _plain(working))


def _value(expression: str) -> Fraction:
    exact = re.sub(r"\d+(\.\d+)?", lambda number: f"Fraction('{number[0]}')", expression)
    functions = {
        "Fraction": Fraction,
        "C": lambda n, k: math.comb(int(n), int(k)),
        "gcd": lambda a, b: math.gcd(int(a), int(b)),
        "floor": math.floor,
        "sqrt": lambda square: {Fraction(n * n): n for n in range(2000)}[square],
    }
    return Fraction(eval(exact, functions))


def _choices(row: Row) -> dict[str, str]:
    return dict(re.findall(r"\(([A-E])\) (\d+)", row["instruction"].split("Answer Choices:")[1]))


def _compare(question: str) -> str:
    numbers = re.findall(r"-?\d+(?:[./]\d+)?", question)
    if question.startswith("True or false"):
        return str(eval(question.split(": ")[1].rstrip("?"))).lower()
    if question.startswith("Sort"):
        return ", ".join(sorted(numbers, key=int))
    pick = min if "smaller" in question else max
    return pick(numbers, key=Fraction)


# What the checks refuse


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print(2 + 2)", "prints '4', the answer is 5"),
        ("answer = 5", "prints '', the answer is 5"),
        ("print(5 / 0)", "ZeroDivisionError"),
        ("import os\nprint(5)", "'os' is not one of"),
        ("print(open('x'))", "NameError"),
    ],
)
def test_a_program_that_does_not_print_the_answer_is_refused(program: str, message: str):
    with pytest.raises(DataError, match=message):
        check_program(program, 5)


def test_a_program_prints_as_python_would():
    assert run_program("for i in range(2):\n    print(i, 1 / 2)") == "0 0.5\n1 0.5"


@pytest.mark.parametrize(
    ("expression", "answer", "message"), [("a + 1", 4, "steps give 3"), ("a + b", 2, "'b'"), ("len(a)", 2, "len")]
)
def test_steps_that_do_not_arrive_at_the_answer_are_refused(expression: str, answer: int, message: str):
    problem = Problem(question="?", given={"a": 2}, steps=(Step("#", "c", expression),), answer=answer)
    with pytest.raises(DataError, match=message):
        explain(problem, PLAIN)


# Tokenizer and model


def test_the_tokenizer_gives_back_any_text(rows: list[Row], model_folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = [row[key] for row in rows for key in ("instruction", "output")]
    for text in (*texts, "  two spaces\n\ttab, naïve café — 数学 🙂 ", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 1024
    assert tokenizer.bos_token_id is None
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert len(tokenizer("12345 + 678")["input_ids"]) == 9


def test_the_same_rows_give_the_same_tokenizer(corpus: CorpusFiles, model_folder: Path, tmp_path: Path):
    train_tokenizer(corpus.train, tmp_path, 1024)
    assert (tmp_path / "tokenizer.json").read_bytes() == (model_folder / "tokenizer.json").read_bytes()


def test_the_model_loads_offline_and_computes_what_it_computed_when_it_was_made(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = AutoModelForCausalLM.from_pretrained(model_folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}

    state = torch.get_rng_state()
    made = make_phi(model_folder, vocab_size=1024, layers=2, width=32, heads=2, seed=5, max_length=256).eval()
    assert torch.equal(torch.get_rng_state(), state)
    ids = AutoTokenizer.from_pretrained(model_folder)("Ada has 12 pens.", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(loaded(ids).logits, made(ids).logits)


def test_the_model_has_the_modules_that_adapters_name(model_folder: Path):
    model = make_phi(model_folder, vocab_size=1024, layers=2, width=32, heads=2, seed=5, max_length=256)
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert names >= {"q_proj", "k_proj", "v_proj", "fc1", "fc2"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"vocab_size": 512}, "vocab_size 512 is less"), ({"width": 36}, "width 36 is no multiple")],
)
def test_a_model_that_does_not_fit_is_refused(model_folder: Path, changed: dict[str, int], message: str):
    sizes = {"vocab_size": 1024, "layers": 1, "width": 32, "heads": 2, "seed": 0, "max_length": 64}
    with pytest.raises(ModelError, match=message):
        make_phi(model_folder, **(sizes | changed))


def test_a_vocabulary_without_room_for_all_bytes_is_refused(corpus: CorpusFiles, tmp_path: Path):
    with pytest.raises(ModelError, match="give at least 258"):
        train_tokenizer(corpus.train, tmp_path, 200)
