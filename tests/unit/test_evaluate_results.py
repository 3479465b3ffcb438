"""The folder of an evaluation: scores, going on where it stopped, and settings that must not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError, DataError
from train_client.evaluate.results import make_scores, open_folder, score_table, source_table


def row(number: int, *, right: bool, source: str = "s", **changes: Any) -> dict[str, Any]:
    attempt = {"program": "", "error": "", "ended": True} | changes.pop("attempt", {})
    given = {"set": "a", "number": number, "source": source, "correct": right, "answer": "1", "fell_back": False}
    return given | {"attempts": [attempt]} | changes


def test_scores_are_what_a_hand_counts() -> None:
    rows = [
        row(0, right=True, attempt={"program": "p"}),
        row(1, right=False, source="t", attempt={"program": "p", "error": "e"}, answer=""),
        row(2, right=False, attempt={"ended": False}),
        row(3, right=False, fell_back=True),
        row(0, right=True, **{"set": "b"}),
    ]
    scores = make_scores(rows, {"ask": "plain"})
    assert scores["sets"]["a"] == {
        **{"correct": 1, "total": 4, "accuracy": 0.25, "standard_error": pytest.approx(0.2165, abs=1e-4)},
        **{"programs": 2, "programs_failed": 1, "fell_back": 1, "cut_short": 1, "unanswered": 1},
    }
    assert scores["sets"]["b"]["standard_error"] == 0
    assert scores["average"] == 0.625
    assert scores["by_source"] == {"s": {"correct": 2, "total": 4}, "t": {"correct": 0, "total": 1}}
    assert score_table(scores).row_count == 3
    by_source = source_table(scores)
    assert by_source is not None
    assert by_source.row_count == 2


def test_answers_come_back_in_the_order_of_the_questions(tmp_path: Path) -> None:
    with open_folder(tmp_path / "out", {"ask": "plain"}) as answers:
        answers.add([row(2, right=True), row(0, right=True)])
        answers.add([row(1, right=False)])
        answers.sort([("a", 0), ("a", 1), ("a", 2)])
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2]


def test_a_killed_evaluation_keeps_its_whole_lines(tmp_path: Path) -> None:
    with open_folder(tmp_path, {"ask": "plain"}) as answers:
        answers.add([row(0, right=True), row(1, right=True)])
    path = tmp_path / "answers.jsonl"
    path.write_text(path.read_text()[:-20])
    with open_folder(tmp_path, {"ask": "plain"}) as answers:
        assert list(answers.rows) == [("a", 0)]
        answers.add([row(1, right=False)])
    assert [json.loads(line)["correct"] for line in path.read_text().splitlines()] == [True, False]


def test_other_settings_are_refused_with_both_values(tmp_path: Path) -> None:
    with open_folder(tmp_path, {"ask": "plain", "model": "m"}) as answers:
        answers.add([row(0, right=True)])
    with pytest.raises(ConfigError, match=r"ask was 'plain', is 'hybrid'.*another folder"):
        open_folder(tmp_path, {"ask": "hybrid", "model": "m"})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ConfigError, match=r"no settings\.json"):
        open_folder(tmp_path, {"ask": "plain", "model": "m"})


def test_a_folder_without_answers_takes_any_settings(tmp_path: Path) -> None:
    open_folder(tmp_path, {"ask": "plain"}).__exit__(None, None, None)
    open_folder(tmp_path, {"ask": "hybrid"}).__exit__(None, None, None)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*file can't be written"):
        open_folder(tmp_path / "file", {})
    (tmp_path / "answers.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="line 1 is not an answer"):
        open_folder(tmp_path, {})
