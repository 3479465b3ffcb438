import json
import os

import pytest

from selector_server.bench.paired import make_folder, median_ratio, time_in_turns, write_result
from shared.errors import ConfigError
from tests.support import run_cli


def test_arms_take_turns_in_an_order_that_alternates_and_the_warm_up_does_not_count():
    order = []
    seconds = time_in_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, warmup=1)
    assert "".join(order) == "baabbaab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_the_ratio_is_the_median_of_the_rounds_ratios_so_that_a_slow_round_cancels_out():
    assert median_ratio([2.0, 20.0, 9.0], [1.0, 10.0, 3.0]) == 2.0


def test_a_result_replaces_the_one_before(tmp_path):
    for value in (1, 2):
        path = write_result(tmp_path / "deep" / "out", {"value": value})
    assert json.loads(path.read_text()) == {"value": 2}
    assert os.listdir(path.parent) == ["result.json"]


def test_a_folder_that_can_not_be_written_is_refused_before_anything_is_measured(tmp_path):
    taken = tmp_path / "file"
    taken.write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .*file can't be written: .*; choose another folder"):
        make_folder(taken)
    done = run_cli("selector_server", "bench", "gradient-match", "--out", taken / "deeper")
    assert done.returncode == 2
    assert "can't be written" in done.stderr
    assert taken.read_text() == "mine"


def test_a_bench_that_takes_no_config_says_so(tmp_path):
    done = run_cli("selector_server", "bench", "scoring", "--out", tmp_path, "--config", "run.toml")
    assert done.returncode == 2
    assert "bench scoring takes no configuration (given run.toml" in done.stderr
