"""What rank 0 of a real training job tells Prometheus while it trains, against the files it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scraping import Scraped, scrape
from tests.support import Server, Trainer, World, write_config
from train_client import metrics as m
from train_client.process import free_port

STEPS = 12


def scrape_until(trainer: Trainer, address: str, *, completed: int) -> Scraped:
    """The first scrape after some steps; an address that nobody listens on yet is asked again."""
    while trainer.process.poll() is None:
        try:
            found = scrape(address)
        except OSError:
            continue
        if found.value(m.COMPLETED.name) >= completed:
            return found
    raise AssertionError(f"the job ended first:\n{trainer.log_path.read_text()[-3000:]}")


@pytest.mark.parametrize("selector", ["server", pytest.param("inline", marks=pytest.mark.long)])
def test_rank_0_tells_its_steps_waits_rows_and_gradient_match(world: World, tmp_path: Path, selector: str) -> None:
    port = free_port()
    config = write_config(
        tmp_path,
        world,
        run={"num_steps": STEPS},
        client={"metrics": {"port": port}},
        train={"gradient_check_every": 3},
    )
    with Server(config) as server:
        where = server.address if selector == "server" else selector
        with Trainer(config, "--client.selector", where) as trainer:
            found = scrape_until(trainer, f"127.0.0.1:{port}", completed=5)
            trainer.finish()
    done = int(found.value(m.COMPLETED.name, run="run"))
    steps = [json.loads(line) for line in (tmp_path / "train" / "steps-rank0.jsonl").read_text().splitlines()]
    checks = [json.loads(line) for line in (tmp_path / "train" / "gradient.jsonl").read_text().splitlines()]

    listed = {name: metric for metric in m.METRICS for name in metric.scraped_names}
    exported = {name for name in found.names if name.startswith("subbatch")}
    assert {name: found.kinds[name] for name in exported} == {name: listed[name].kind for name in exported}
    of_a_server = {m.AWAY_SECONDS, m.STEPS_AHEAD, m.PUSHES, m.PUSH_BYTES, m.PUSH_SECONDS, m.PUSHES_UNDER_WAY, m.RETRIES}
    absent = {name for name, metric in listed.items() if name not in exported and "device" not in metric.labels}
    assert absent == (set() if selector == "server" else {metric.name for metric in of_a_server})

    parts = found.by("part", m.PART_SECONDS.name)
    assert parts == pytest.approx({part: sum(step[f"{part}_seconds"] for step in steps[:done]) for part in parts})
    assert sum(found.by("cause", m.WAIT_SECONDS.name).values()) == pytest.approx(parts["wait"], abs=1e-6)
    assert found.value("subbatch_trainer_step_seconds_count") == done
    assert found.value(m.ROWS.name) == sum(found.by("source", m.SOURCE_ROWS.name).values()) == 6 * done
    assert found.value(m.LOSS.name) == steps[done - 1]["loss"]
    assert found.value(m.GRADIENT_ERROR.name) in [check["error"] for check in checks]
    assert found.value(m.STEPS.name) == STEPS
    assert found.value(m.RESUMED_FROM.name) == 0
    assert found.value(m.BUILD.name, selector=selector) == 1
