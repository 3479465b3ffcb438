"""The report in a real browser: opened from disk on a laptop and a phone, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser
from tests.made_up_results import UGLY, write_results
from tests.support import run_cli

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)")
_ARMS = ("random_r", "random_b", "random_r_uniform", "paper", "matched", "hardest", "matched_stale_0", "paper_probes_4")
_WIDTHS = (1280, 390, 360)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that the command wrote."""
    folder = write_results(tmp_path_factory.mktemp("report") / "out", arms=_ARMS, seeds=range(3))
    result = run_cli("train_client", "report", folder, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert str(folder / "report.html") in result.stdout
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", _WIDTHS)
def test_the_page_opens_without_a_complaint_or_a_request_and_fits(
    browser: Browser, page: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert browser.value("document.documentElement.scrollWidth") == width
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"


def test_complaints_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><script>missing()</script><img src='nowhere.png'>")
    browser.open(broken, width=800)
    found = " ".join(browser.complaints())
    assert "missing is not defined" in found
    assert "ERR_FILE_NOT_FOUND" in found


def test_one_drawing_of_each_figure_is_seen_and_its_text_can_be_read(browser: Browser, page: Path) -> None:
    smallest = (
        "Math.min(...[...document.querySelectorAll('.drawing svg text')].filter(t => t.checkVisibility())"
        ".map(t => [t.getScreenCTM(), parseFloat(getComputedStyle(t).fontSize)])"
        ".map(([matrix, size]) => size * Math.hypot(matrix.a, matrix.b)))"
    )
    shown = (
        "[...document.querySelectorAll('.drawing')].map(d => [...d.children].filter(s => s.checkVisibility()).length)"
    )
    for width in _WIDTHS:
        browser.open(page, width=width)
        assert set(browser.value(shown)) == {1}
        assert browser.value(smallest) >= 9


def test_text_and_lines_stand_out_from_the_ground_in_light_and_dark(browser: Browser, page: Path) -> None:
    """WCAG's contrast: 4.5 for text, 3 for what is drawn."""
    contrast = """
    (() => {
      const luminance = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const probe = document.body.appendChild(document.createElement('i'));
      const of = name => { probe.style.color = `var(--${name})`; return luminance(getComputedStyle(probe).color); };
      const ratio = (a, b) => (Math.max(of(a), of(b)) + 0.05) / (Math.min(of(a), of(b)) + 0.05);
      const text = ['ink', 'muted', 'accent', 'good', 'bad'];
      const found = {};
      for (const name of text) found[name] = Math.min(ratio(name, 'ground'), ratio(name, 'raised'));
      for (let i = 1; i <= 8; i++) found['c' + i] = ratio('c' + i, 'ground');
      found.mark = ratio('ink', 'mark');
      return found;
    })()"""
    for dark in (False, True):
        browser.open(page, width=1280, dark=dark)
        ratios = browser.value(contrast)
        assert {name: r for name, r in ratios.items() if r < (3 if name[0] == "c" else 4.5)} == {}


def test_the_scheme_changes_figures_too(browser: Browser, page: Path) -> None:
    ink = "getComputedStyle(document.querySelector('.drawing svg text')).fill"
    colors = []
    for dark in (False, True):
        browser.open(page, width=1280, dark=dark)
        colors.append(browser.value(ink))
    assert colors[0] != colors[1]


def test_a_row_of_the_gallery_opens_to_its_text_which_is_only_text(browser: Browser, page: Path) -> None:
    browser.open(page, width=390)
    first = "document.querySelector('#gallery .rows details')"
    assert browser.value(f"{first}.querySelector('.text').checkVisibility()") is False
    browser.value(f"{first}.querySelector('summary').click()")
    assert browser.value(f"{first}.querySelector('.text').checkVisibility()") is True
    assert UGLY in browser.value(f"{first}.querySelector('.text').textContent")
    assert browser.value("document.querySelectorAll('main b, main img, script').length") == 0
    assert browser.complaints() == []
    assert browser.value("document.documentElement.scrollWidth") == 390


def test_the_page_fits_a_phone_with_everything_opened(browser: Browser, page: Path) -> None:
    browser.open(page, width=360)
    browser.value("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.value("document.documentElement.scrollWidth") == 360
