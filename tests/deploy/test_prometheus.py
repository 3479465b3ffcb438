"""A real Prometheus that scrapes both ends of a real job and evaluates the alert rules on what it gets."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.tools import DEPLOY, find
from tests.support import Server, Trainer, World, write_config
from train_client.process import free_port

RULES = DEPLOY / "prometheus" / "subbatch-rules.yml"


class Prometheus:
    """A Prometheus of its own."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in ports.items()
        ]
        interval = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        config = {"global": interval, "rule_files": [str(RULES)], "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML, too
        self._url = f"127.0.0.1:{free_port()}"
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [find("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={self._url}",
             f"--storage.tsdb.path={folder / 'data'}"],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def get(self, path: str, **query: str) -> Any:
        url = f"http://{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        found = self.get("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Ask again and again; Prometheus must live meanwhile."""
        while True:
            try:
                if holds():
                    return
            except OSError:  # it isn't listening yet
                pass
            with pytest.raises(subprocess.TimeoutExpired):
                self._process.wait(0.2)

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.mark.long
def test_prometheus_scrapes_both_ends_and_the_rules_are_evaluated_on_what_it_gets(world: World, tmp_path: Path) -> None:
    find("prometheus")
    ports = {"subbatch-selector": free_port(), "subbatch-trainer": free_port()}
    config = write_config(
        tmp_path,
        world,
        run={"num_steps": 100_000},
        server={"metrics": {"port": ports["subbatch-selector"]}},
        client={"metrics": {"port": ports["subbatch-trainer"]}},
    )
    with Server(config) as server, Prometheus(tmp_path, ports) as prometheus:
        with Trainer(config, "--client.selector", server.address) as trainer:
            prometheus.wait_until(lambda: prometheus.value("sum(up)") == 2)
            prometheus.wait_until(lambda: (prometheus.value('subbatch_trainer_completed_steps{run="run"}') or 0) > 3)
            prometheus.wait_until(lambda: (prometheus.value("rate(subbatch_selector_selections_total[5m])") or 0) > 0)
            # Counted by one end and by the other, a moment apart.
            ahead = prometheus.value("subbatch_selector_next_step - on (run) subbatch_trainer_completed_steps")
            assert ahead is not None

            def rules() -> list[dict[str, Any]]:
                return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

            prometheus.wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()))
            assert {rule["name"]: rule.get("lastError") for rule in rules() if rule["health"] != "ok"} == {}
            prometheus.wait_until(lambda: prometheus.value("run:subbatch_trainer_waiting:ratio_rate5m") is not None)
            trainer.kill()
        prometheus.wait_until(lambda: prometheus.value('up{job="subbatch-trainer"}') == 0)
