"""Alert rules and the dashboard: what they ask for exists, Prometheus's own tool understands it, and alerts fire."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from selector_server.metrics import METRICS as SELECTOR
from shared.metric import Metric
from tests.deploy.tools import DEPLOY, check, files, name
from train_client.metrics import METRICS as TRAINER

PROMETHEUS = DEPLOY / "prometheus"
RULES, DASHBOARD = PROMETHEUS / "subbatch-rules.yml", DEPLOY / "grafana" / "subbatch.json"

SCRAPED: dict[str, Metric] = {sample: metric for metric in (*SELECTOR, *TRAINER) for sample in metric.scraped_names}
# Prometheus's own.
BESIDE = {"job", "instance", "le"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def dashboard_queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return shown + [annotation["expr"] for annotation in dashboard["annotations"]["list"]]


def complaints(query: str) -> list[str]:
    """What a query asks for that no end has: metrics, labels, values of labels."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for record in recorded:
        query = query.replace(record, "recorded")
    found = []
    for metric, selector in re.findall(r"\b(subbatch_\w+)(?:\{([^}]*)\})?", query):
        known = SCRAPED.get(metric)
        if known is None:
            found.append(f"no metric {metric}")
            continue
        for label, value in re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', selector):
            values = (known.values or {}).get(label)
            if label not in {*known.labels, *BESIDE}:
                found.append(f"{metric} has no label {label}")
            elif values and not set(value.split("|")) <= set(values):
                found.append(f"{metric} has no {label} {value}")
    return found


def test_promtool_finds_nothing_in_the_scrape_configuration(tmp_path: Path) -> None:
    for file in ("prometheus.yml", RULES.name):
        (tmp_path / file).write_text((PROMETHEUS / file).read_text().replace("/state", str(tmp_path)))
    (tmp_path / "secrets" / "certs").mkdir(parents=True)
    for secret in ("certs/ca.pem", "metrics.token"):
        (tmp_path / "secrets" / secret).touch()
    check("promtool", "check", "config", tmp_path / "prometheus.yml")


def test_every_alert_fires_where_it_should_and_only_there() -> None:
    tests = next(iter(files("prometheus/*-test.yml")))
    check("promtool", "test", "rules", tests)
    tried = {
        case["alertname"]
        for group in yaml.safe_load(tests.read_text())["tests"]
        for case in group["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tried == {rule["alert"] for rule in rules() if "alert" in rule}


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"].keys() == {"summary", "description"}


@pytest.mark.parametrize("query", [rule["expr"] for rule in rules()] + dashboard_queries())
def test_every_query_names_metrics_labels_and_states_that_exist(query: str) -> None:
    assert complaints(query) == []


def test_a_query_of_something_that_does_not_exist_is_noticed() -> None:
    assert complaints("rate(subbatch_trainer_waits_total[5m])") == ["no metric subbatch_trainer_waits_total"]
    assert complaints('subbatch_selector_ranks{run="a", state="lost"}') == ["subbatch_selector_ranks has no state lost"]
    assert complaints('subbatch_selector_ready{run="a"}') == ["subbatch_selector_ready has no label run"]


def test_promtool_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    filled = [query.replace("$__rate_interval", "1m").replace("$run", ".*") for query in dashboard_queries()]
    assert not any("$" in query for query in filled)
    group = {"name": "dashboard", "rules": [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(filled)]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    check("promtool", "check", "rules", tmp_path / "rules.yml")


def test_every_panel_says_what_it_shows_and_has_a_place_of_its_own() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert all(panel["description"] for panel in panels())


def test_grafana_is_told_where_both_are() -> None:
    for file in files("grafana/provisioning/*/*.yaml"):
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1, name(file)
