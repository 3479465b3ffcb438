"""The web page of a live server in a real browser: what it says of a run, to whom, and whether all can read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from selector_server.live.ask import as_dict, ask
from selector_server.live.pages import OPEN_PATHS
from shared.config import ClientConfig
from tests.browser import CHROMIUM, Browser
from tests.scraping import get
from tests.service.harness import Job, LiveServer
from tests.service.trainers import ArithmeticTrainer
from tests.support import World

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)")
STEPS, TRAINED = 80, 12
TOKEN = "a-token-of-an-admin"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def trainer(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArithmeticTrainer]:
    """A trainer that takes no time to train, and so waits for every selection."""
    with LiveServer(world, tmp_path_factory.mktemp("journal"), metrics={"port": 0}) as server:
        job = Job(world, server.fingerprints)
        with ArithmeticTrainer(server, job, job.info("starving", num_steps=STEPS)) as trainer:
            trainer.train(TRAINED)
            yield trainer


@pytest.fixture(scope="module")
def server(trainer: ArithmeticTrainer) -> LiveServer:
    return trainer.server


def test_the_page_and_the_command_line_are_told_the_same(trainer: ArithmeticTrainer, server: LiveServer) -> None:
    trainer.source.state()  # every push has arrived
    while ask(ClientConfig(selector=server.address))[0].waits_for == "scoring":
        pass
    status, body = get(server.metrics_address, "/status.json")
    assert status == 200
    shown = json.loads(body)
    (run,) = ask(ClientConfig(selector=server.address))
    expected = as_dict(run)
    (told,) = shown["runs"]
    for moving in ("unix_ns", "verdict"):
        told["detail"].pop(moving)
        expected["detail"].pop(moving)
    assert told == expected
    assert [int(step["step"]) for step in told["detail"]["steps"]][:TRAINED] == list(range(TRAINED))
    assert shown["num_rows"] == len(server.store)
    picked = sum(int(rows["picked"]) for rows in told["detail"]["sources"].values())
    drawn = sum(int(rows["drawn"]) for rows in told["detail"]["sources"].values())
    assert drawn == run.next_step * run.detail.large_batch_size
    assert picked == run.next_step * run.detail.sub_batch_size


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (360, True)])
def test_a_starving_trainer_is_seen_by_everybody(
    browser: Browser, trainer: ArithmeticTrainer, server: LiveServer, tmp_path: Path, width: int, dark: bool
) -> None:
    browser.open(f"http://{server.metrics_address}/", width=width, dark=dark)
    trainer.train(2)
    is_drawn = f"document.querySelector('.steps')?.textContent.startsWith('{trainer.cursor} of {STEPS} steps trained')"
    browser.wait_for(f"{is_drawn} && document.querySelectorAll('.timeline svg rect.waited').length > 0")
    said = browser.value("document.querySelector('.verdict').textContent")
    assert "Trainers wait" in said
    assert "for the selector: a selection takes" in said
    top = browser.value("document.querySelector('.verdict').getBoundingClientRect().bottom")
    assert top < 900  # without scrolling
    assert browser.value("document.querySelectorAll('.timeline svg rect.score').length") > 0
    assert browser.value("document.querySelectorAll('.sources tbody tr').length") == len(server.store.source_names)
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.barriers() == []
    assert browser.complaints() == []
    here = f"http://{server.metrics_address}/"
    assert all(url.startswith((here, "data:")) for url in browser.requests())
    browser.screenshot(tmp_path / "page.png", full=True)


@needs_chromium
def test_the_page_is_used_with_the_keyboard_alone(browser: Browser, server: LiveServer) -> None:
    browser.open(f"http://{server.metrics_address}/", width=1280)
    browser.wait_for("document.querySelector('summary') !== null")
    reached = []
    for _ in range(12):
        browser.press("Tab")
        reached.append(browser.value("document.activeElement.localName"))
        if reached[-1] == "summary":
            break
    assert reached[-1] == "summary", reached
    browser.press("Enter")
    browser.wait_for("document.querySelector('details').open")
    assert browser.value("document.querySelectorAll('.steps-table tbody tr').length") >= TRAINED


@needs_chromium
def test_a_page_with_a_barrier_is_found_out(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><html lang=en><title>t</title><main><h1>t</h1><input></main>")
    browser.open(page, width=800)
    assert [barrier.split(":")[0] for barrier in browser.barriers()] == ["label"]


@needs_chromium
def test_with_tokens_the_page_asks_for_one_and_says_when_the_server_is_gone(
    browser: Browser, world: World, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(f"admin:{TOKEN}\nsomebody:another-token-of-16\n")
    settings = {"metrics": {"port": 0}, "token_file": tmp_path / "tokens"}
    with LiveServer(world, tmp_path / "journal", **settings) as server:
        for path in OPEN_PATHS:
            assert get(server.metrics_address, path)[0] == 200
        assert get(server.metrics_address, "/status.json")[0] == 401
        assert get(server.metrics_address, "/status.json", token="another-token-of-16")[0] == 401
        browser.open(f"http://{server.metrics_address}/", width=800)
        browser.wait_for("!document.getElementById('token').hidden")
        assert browser.barriers() == []
        browser.value(f"document.querySelector('input').value = '{TOKEN}'; document.querySelector('button').click()")
        browser.wait_for("document.getElementById('live').textContent === 'live'")
        assert browser.value("document.getElementById('runs').innerText").strip() == "No run yet: start a trainer."
        assert browser.value("document.getElementById('token').hidden")
    browser.wait_for("document.getElementById('live').textContent.startsWith('the server doesn’t answer since')")
