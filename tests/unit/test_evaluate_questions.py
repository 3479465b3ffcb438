"""Question sets from files and by name; files that can't be used say why and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DataError
from train_client.evaluate import question_sets
from train_client.evaluate.equality import MATH_TOLERANCE, TOLERANCE
from train_client.evaluate.question_sets import HubSet, JsonSet, load_sets
from train_client.evaluate.questions import check_names, read_predictions, read_questions


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_file_gives_its_questions_with_answers_as_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"question": "a?", "answer": 18, "source": "s", "id": 7},
        "",
        {"question": "b?", "answer": [3, 4.5]},
        {"question": "c?", "answer": "16 - 3 = 13\n#### 13"},
        {"question": "d?", "answer": "So it is \\boxed{\\frac{1}{2}}."},
    )
    found = read_questions(path)
    assert found.name == "mine"
    assert found.tolerance == TOLERANCE
    assert [q.answer for q in found.questions] == ["18", "3, 4.5", "13", "\\frac{1}{2}"]
    assert [(q.number, q.source, q.id) for q in found.questions[:2]] == [(0, "s", "7"), (1, "mine", "")]
    assert len(read_questions(path, limit=2).questions) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "a?"}, "line 2: 'answer' must be .* missing; the line has 'question'"),
        ({"answer": "3"}, "line 2: 'question' must be a text, it is missing"),
        ({"question": " ", "answer": "3"}, "line 2: 'question' must be a text, it is ' '"),
        ({"question": "a?", "answer": None}, "line 2: 'answer' must be .* it is None"),
        ({"question": "a?", "answer": ""}, "line 2: 'answer' must be"),
        ("[1]", "line 2 is a JSON list"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "a?", "answer": "3"}, line)
    with pytest.raises(DataError, match=message):
        read_questions(path)


def test_files_that_are_missing_empty_or_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_sets([str(tmp_path / "none.jsonl")])
    with pytest.raises(DataError, match="is empty"):
        read_questions(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_questions(tmp_path / "binary.jsonl")


def test_an_unknown_set_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="the sets by name are gsm8k, math, svamp, numglue, mathematics, simuleq"):
        load_sets(["gsm9k"])


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "q.jsonl", {"question": "a?", "answer": "3"})
    with pytest.raises(DataError, match="two sets of questions are named 'q'"):
        check_names(load_sets([str(tmp_path / "a/q.jsonl"), str(tmp_path / "b/q.jsonl")]))


def test_a_prediction_file_says_whether_it_holds_answers_or_outputs(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"answer": 3, "prediction": 4}, {"answer": "5", "output": "print(5)"})
    found, predictions = read_predictions(path)
    assert [q.answer for q in found.questions] == ["3", "5"]
    assert predictions == [("prediction", "4"), ("output", "print(5)")]
    for row in ({"answer": 3}, {"answer": 3, "prediction": 3, "output": "3"}):
        with pytest.raises(DataError, match=r"line 1 has the keys answer.*exactly one of"):
            read_predictions(write(path, row))


def test_sets_on_the_hub_are_read_by_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(path: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        calls.append((path, config, split))
        return [
            {
                **{
                    "question": "a?",
                    "answer": "3 + 1\n#### 1,004",
                    "problem": "p?",
                    "solution": "so \\boxed{\\frac12}",
                },
                **{"question_concat": "body question?", "Answer": "7.0"},
            }
        ]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    gsm8k, math, svamp = load_sets(["gsm8k", "math", "svamp"])
    assert [(q.text, q.answer) for q in gsm8k.questions] == [("a?", "1,004")]
    assert [(q.text, q.answer) for q in math.questions] == [("p?", "\\frac12")]
    assert [(q.text, q.answer) for q in svamp.questions] == [("body question?", "7.0")] * 2
    assert (gsm8k.tolerance, math.tolerance) == (TOLERANCE, MATH_TOLERANCE)
    assert calls[0] == ("openai/gsm8k", "main", "test")


def test_a_json_list_at_an_address_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": "a?", "answer": 3.0}, {"question": "b?", "answer": ["\\frac{1}{2}", 0.5]}]
    (tmp_path / "n.json").write_text(json.dumps(rows))
    monkeypatch.setitem(question_sets.SETS, "numglue", JsonSet((tmp_path / "n.json").as_uri()))
    [found] = load_sets(["numglue"])
    assert [q.answer for q in found.questions] == ["3.0", "\\frac{1}{2}"]


def test_without_a_network_a_named_set_says_how_to_give_it_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"gsm8k can't be loaded from openai/gsm8k .*offline.*--questions FILE"):
        load_sets(["gsm8k"])
    monkeypatch.setitem(question_sets.SETS, "math", HubSet("x/y", None, ("test",), "no_such", "answer"))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"question": "a"}])
    with pytest.raises(DataError, match=r"can't be loaded from x/y .KeyError"):
        load_sets(["math"])
