"""The mixtures of the small experiment: balanced and right, or imbalanced with known blemishes."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from shared.errors import DataError
from shared.synthetic import mixture as mixture_module
from shared.synthetic.checks import run_program
from shared.synthetic.corpus import SOURCES, write_corpus
from shared.synthetic.mixture import Blemishes, write_balanced, write_mixture

NONE = Blemishes(restated=0, mastered=0, wrong=0)


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mixture(folder: Path, blemishes: Blemishes, learnt: list[dict[str, str]], *, rows: int = 1400) -> Path:
    counts = {"heldout_per_source": 1, "questions_per_source": 2}
    return write_mixture(folder, rows=rows, blemishes=blemishes, learnt=learnt, seed=3, **counts).train


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return write_balanced(tmp_path_factory.mktemp("learnt") / "rows.jsonl", rows_per_source=20, seed=3)


def test_the_balanced_mixture_has_equally_many_different_rows_of_every_source(learnt):
    assert Counter(row["source"] for row in learnt) == dict.fromkeys(SOURCES, 20)
    assert len({row["instruction"] for row in learnt}) == len(learnt)


def test_the_balanced_mixture_has_nothing_that_is_kept_back(learnt, tmp_path):
    avoid = {row["instruction"] for row in learnt[:50]}
    others = write_balanced(tmp_path / "rows.jsonl", rows_per_source=20, seed=3, avoid=avoid)
    assert not avoid & {row["instruction"] for row in others}
    assert Counter(row["source"] for row in others) == dict.fromkeys(SOURCES, 20)


def test_without_blemishes_the_mixture_is_the_corpus(tmp_path, learnt):
    plain = write_corpus(tmp_path / "plain", rows=1400, heldout_per_source=1, seed=3).train
    assert mixture(tmp_path / "mixed", NONE, learnt).read_bytes() == plain.read_bytes()


def test_each_kind_of_blemish_is_as_frequent_as_asked(tmp_path, learnt):
    clean = read(mixture(tmp_path / "clean", NONE, learnt))
    known = {(row["instruction"], row["output"]) for row in clean}
    learnt_rows = {(row["instruction"], row["output"]) for row in learnt}
    questions, outputs = {row["instruction"] for row in clean}, {row["output"] for row in clean}
    rows = read(mixture(tmp_path / "spoilt", Blemishes(restated=0.2, mastered=0.3, wrong=0.1), learnt))
    kinds: Counter[tuple[str, str]] = Counter()
    for before, row in zip(clean, rows, strict=True):
        assert row["source"] == before["source"]
        text = row["instruction"], row["output"]
        if text in learnt_rows:
            kind = "mastered"
        elif text in known:
            kind = "kept"
        elif row["instruction"] in questions:
            kind = "wrong"
        else:
            assert row["output"] in outputs
            kind = "restated"
        kinds[row["source"], kind] += 1
    source = "data/CoT/aqua_rat.json"
    size = sum(count for (name, _), count in kinds.items() if name == source)
    shares = {kind: kinds[source, kind] / size for kind in ("restated", "mastered", "wrong")}
    assert shares == pytest.approx({"restated": 0.2, "mastered": 0.3, "wrong": 0.1}, abs=1 / size)
    assert all(kinds[name, "kept"] >= 4 for name in SOURCES)


def test_wrong_programs_and_choices_are_wrong(tmp_path, learnt):
    right = {row["instruction"]: row["output"] for row in read(mixture(tmp_path / "right", NONE, learnt))}
    spoilt = read(mixture(tmp_path / "spoilt", Blemishes(restated=0, mastered=0, wrong=0.5), learnt))
    changed = [row for row in spoilt if row["output"] != right[row["instruction"]]]
    assert len(changed) > 0.4 * len(spoilt)
    for row in changed:
        before = right[row["instruction"]]
        if row["source"].startswith("data/CoT/aqua"):
            assert row["output"][:-1] == before[:-1]
            assert row["output"][-1] in set("ABCDE") - {before[-1]}
        assert len(row["output"]) - len(before) in (-1, 0, 1, 2)


def test_questions_are_of_every_source_and_new(tmp_path, learnt):
    mixture(tmp_path, NONE, learnt)
    questions = read(tmp_path / "questions.jsonl")
    assert Counter(row["source"] for row in questions) == dict.fromkeys(SOURCES, 2)
    trained = {row["instruction"] for name in ("train", "heldout") for row in read(tmp_path / f"{name}.jsonl")}
    assert not trained & {row["question"] for row in questions}
    assert all(row["answer"] for row in questions)


def test_questions_leave_the_rows_as_they_are(tmp_path):
    plain = write_corpus(tmp_path / "a", rows=200, heldout_per_source=2, seed=3)
    asked = write_corpus(tmp_path / "b", rows=200, heldout_per_source=2, questions_per_source=3, seed=3)
    assert plain.train.read_bytes() == asked.train.read_bytes()
    assert plain.heldout.read_bytes() == asked.heldout.read_bytes()
    assert not plain.questions.exists()


def test_balanced_programs_print_a_number_or_a_choice(learnt):
    for row in learnt[:60]:
        if row["source"].startswith("data/PoT/"):
            assert run_program(row["output"])


@pytest.mark.parametrize("shares", [(0.5, 0.4, 0.2), (-0.1, 0.0, 0.0)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(DataError, match="are shares of the rows"):
        Blemishes(*shares)


def test_more_rows_than_there_are_questions_are_refused(tmp_path, monkeypatch):
    name, source = next(iter(SOURCES.items()))
    always = source.families[0](Random(0))
    monkeypatch.setattr(mixture_module, "SOURCES", {name: replace(source, families=(lambda _: always,))})
    with pytest.raises(DataError, match="different questions"):
        write_balanced(tmp_path / "rows.jsonl", rows_per_source=2, seed=0)
