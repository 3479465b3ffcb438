"""`train-client evaluate` as a user runs it: a small model, a killed run that goes on, a file of predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.support import World, run_cli, write_config
from train_client.__main__ import main

QUESTIONS = 7
Evaluate = Callable[..., tuple[int, str]]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [
        {"question": f"What is {n} + {n}? " + "Think. " * n, "answer": 2 * n, "source": "even" if n % 2 == 0 else "odd"}
        for n in range(QUESTIONS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def evaluate(*arguments: object) -> Any:
    """The command in a process of its own."""
    return run_cli("train_client", "evaluate", *arguments, timeout=240)


@pytest.fixture
def evaluate_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """The command in this process, which has imported everything already; gives its exit code and standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["train-client", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(str(end.value.code)), capsys.readouterr().err

    return run


def test_a_model_is_asked_and_a_killed_run_goes_on_to_the_same_answers(
    world: World, questions: Path, tmp_path: Path, evaluate_here: Evaluate
) -> None:
    out = tmp_path / "out"
    arguments = ("--model", world.model, "--device", "cpu", "--questions", questions, "--max-new-tokens", 6)
    result = evaluate(*arguments, "--out", out, "--batch-size", 3)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "sums" in result.stdout
    scores, rows = json.loads((out / "scores.json").read_text()), rows_of(out)
    assert [row["number"] for row in rows] == list(range(QUESTIONS))
    assert scores["sets"]["sums"]["total"] == QUESTIONS
    assert scores["sets"]["sums"]["correct"] == sum(row["correct"] for row in rows)
    assert {source: score["total"] for source, score in scores["by_source"].items()} == {"even": 4, "odd": 3}
    assert scores["settings"]["ask"] == "hybrid"
    for row in rows:
        assert row["question"] in row["attempts"][0]["prompt"]
        assert row["fell_back"] == (not row["attempts"][0]["answer"])

    # As a kill leaves it: some whole lines in any order, half a line, no scores.
    whole = (out / "answers.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (out / "answers.jsonl").write_text(lines[5] + lines[2] + lines[0] + lines[4][:30])
    (out / "scores.json").unlink()
    result = evaluate(*arguments, "--out", out, "--batch-size", 2)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "3 answers are there, 4 questions to ask" in result.stderr
    assert (out / "answers.jsonl").read_text() == whole
    assert json.loads((out / "scores.json").read_text()) == scores

    code, error = evaluate_here(*arguments, "--out", out, "--ask", "plain")
    assert code == 2
    assert "ask was 'hybrid', is 'plain'" in error


def test_a_trained_adapter_is_asked_through_the_runs_configuration(
    world: World, questions: Path, tmp_path: Path, evaluate_here: Evaluate
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(world.model)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(tmp_path / "adapter")
    config = write_config(tmp_path / "run", world)
    outputs = {}
    for name, extra in {"adapted": ("--adapter", tmp_path / "adapter"), "base": ()}.items():
        out = tmp_path / name
        code, error = evaluate_here(
            *("--config", config, *extra, "--questions", questions, "--ask", "plain", "--max-new-tokens", 5),
            *("--out", out, "--limit", 3),
        )
        assert code == 0, error
        outputs[name] = [row["attempts"][0]["output"] for row in rows_of(out)]
    assert len(outputs["base"]) == 3
    assert outputs["adapted"] != outputs["base"]


def test_a_prediction_file_scores_as_a_hand_count_says(tmp_path: Path, evaluate_here: Evaluate) -> None:
    right = [
        {"answer": "18", "prediction": "18"},
        {"answer": 18, "prediction": "The answer is 18.0 dollars."},
        {"answer": "1/2", "output": "So \\boxed{\\frac{1}{2}}"},
        {"answer": "C", "output": "Let's think.\nThe answer is C", "source": "choices"},
        {"answer": "7", "output": "```python\nfrom sympy import *\nx = symbols('x')\nprint(solve(x - 7, x)[0])\n```"},
        {"answer": "\\sqrt{8}", "prediction": "2\\sqrt{2}"},
        {"answer": "3, 4", "output": "print(3)\nprint(4)"},
    ]
    wrong = [
        {"answer": "18", "prediction": "19"},
        {"answer": "C", "prediction": "B", "source": "choices"},
        {"answer": "5", "output": "while True:\n    pass\nprint(5)"},
        {"answer": "5", "output": "import socket\nsocket.create_connection(('127.0.0.1', 1))\nprint(5)"},
        {"answer": "9", "prediction": "9**9**9**9"},
    ]
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in right + wrong))
    code, error = evaluate_here("--predictions", path, "--out", tmp_path / "out")
    assert code == 0, error
    rows = rows_of(tmp_path / "out")
    assert [row["correct"] for row in rows] == [True] * len(right) + [False] * len(wrong)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["sets"]["given"]["correct"], scores["sets"]["given"]["total"]) == (7, 12)
    assert scores["by_source"]["choices"] == {"correct": 1, "total": 2}
    assert scores["sets"]["given"]["programs_failed"] == 2
    assert evaluate_here("--predictions", path, "--out", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores


def test_what_cannot_be_evaluated_is_said_in_one_line(
    world: World, questions: Path, tmp_path: Path, evaluate_here: Evaluate
) -> None:
    out = ("--out", tmp_path / "out")
    (tmp_path / "bad.jsonl").write_text('{"question": "a?"}\n')
    for arguments, code, message in (
        (("--model", world.model, *out), 2, "nothing is asked"),
        (("--questions", questions, *out), 2, "no model is named"),
        (("--model", tmp_path / "none", "--questions", questions, *out), 1, "none"),
        (("--model", world.model, "--questions", tmp_path / "bad.jsonl", *out), 1, "bad.jsonl line 1: 'answer'"),
        (("--predictions", tmp_path / "no.jsonl", *out), 1, "No such file"),
        (("--predictions", questions, "--model", world.model, *out), 2, "asks no model"),
        (("--model", world.model, "--questions", questions, "--out", questions), 2, "can't be written"),
    ):
        found, error = evaluate_here(*arguments)
        assert found == code, error
        assert message in error
        assert len(error.splitlines()) == 1
