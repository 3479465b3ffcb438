"""The documentation against what it speaks of: links, anchors, keys, commands, errors, and the code that it shows."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from shared import errors
from shared.cli import run_command
from shared.config import Config
from shared.config_keys import branches
from tests.contract.reference import comments_above

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "deploy" / "docs"
_LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.split()
PAGES = [ROOT / name for name in _LISTED if (ROOT / name).is_file()]
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_MOST_LINES = 30
_FILES = ("toml", "json", "jsonl", "md", "py")


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_or_a_heading(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_key_that_is_named_is_one_of_the_configuration(page: Path) -> None:
    known = {".".join(at): branch.model_fields.keys() for at, branch in branches()}
    text = page.read_text()
    named = re.findall(r"`([a-z]+(?:\.[a-z_]+)+)(?: = [^`]*)?`", text) + re.findall(r"--([a-z]+(?:\.[a-z_]+)+)", text)
    for name in named:
        place, _, key = name.rpartition(".")
        if key not in _FILES and place.split(".")[0] in Config.model_fields:
            assert key in known.get(place, ()) or name in known, f"{name} is no key"


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SubbatchError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_ends_with_a_link_to_its_own_heading(
    kind: type[errors.SubbatchError], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise kind("3 is not 4: make it 4")

    assert run_command(fail) != 0
    (line,) = capsys.readouterr().err.splitlines()
    if kind is errors.SubbatchError:  # a count of others, which were told
        assert line == "error: 3 is not 4: make it 4"
        return
    page, _, anchor = line.removeprefix("error: 3 is not 4: make it 4 (see ").removesuffix(")").partition("#")
    assert anchor in anchors(ROOT / page)


def test_the_timeline_is_drawn_by_the_rules_of_today() -> None:
    drawing = runpy.run_path(str(DOCS / "draw.py"))
    assert (DOCS / "timeline.svg").read_text() == drawing["picture"]()


def test_a_comment_belongs_to_the_line_right_below_it_and_headings_to_none() -> None:
    source = "# ---- pushes\n# Of one,\n# or two.\na = 1\n\n# apart\n\nb = 2  # beside\nc = 3\n"
    assert {line: text for line, text in comments_above(source).items() if text} == {4: "Of one, or two.", 7: "apart"}


def test_the_method_that_is_shown_is_short_and_passes_the_tests_of_every_method(tmp_path: Path) -> None:
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (DOCS / "add-a-method.md").read_text(), re.DOTALL | re.MULTILINE)
    added = [line for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert len(added) <= _MOST_LINES
    for folder in ("shared", "selector_server", "tests/unit"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)
    which = ["tests/unit/test_choose.py", "-k", "farthest or every_pick"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", *which]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
