"""The report's page: what it says, what it escapes, and that it needs nothing else."""

from __future__ import annotations

import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from shared.errors import ConfigError, DataError
from tests.made_up_results import LOSSES, SIX_SETS, STEPS, UGLY, edit, write_results
from train_client.experiment.arms import ARMS
from train_client.experiment.results import read_results
from train_client.experiment.summary import make_summary
from train_client.report import paper_numbers
from train_client.report.claims import claims
from train_client.report.command import run_report
from train_client.report.configs import arm_configs
from train_client.report.evidence import Evidence
from train_client.report.looks import look_of, method_of
from train_client.report.numbers import listed, memory, percent, signed
from train_client.report.page import render
from train_client.report.paper_numbers import PaperRow
from train_client.report.paper_tables import paper_tables
from train_client.report.tables import main_table
from train_client.report.verdict import judge

_VOID = {"meta", "link", "img", "br", "path", "use"}
_TABLE_ARMS = (*LOSSES, "paper_uniform", "paper_weight", "paper_weight_grad", "paper_k_half", "paper_k_double")


class Page(HTMLParser):
    """What a browser would make of the page: elements, identifiers, references and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        if tag not in _VOID:
            self.open.append(tag)
        self._take(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self._take(attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def _take(self, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            assert not name.startswith("on"), (name, value)
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href"):
                self.references.append(value or "")


def evidence_of(folder: Path) -> Evidence:
    results = read_results(folder)
    return Evidence(results, make_summary(results))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of every arm of the experiment, two seeds."""
    folder = write_results(tmp_path_factory.mktemp("everything"), arms=tuple(ARMS), seeds=range(2))
    return render(evidence_of(folder))


@pytest.fixture(scope="module")
def page(everything: str) -> Page:
    return Page(everything)


def test_the_page_is_whole_and_needs_nothing_else(page: Page, everything: str) -> None:
    assert page.open == []
    assert page.elements["script"] == page.elements["img"] == page.elements["iframe"] == 0
    outside = [reference for reference in page.references if not reference.startswith("#")]
    assert outside == ["data:,"]
    assert "@import" not in everything
    assert not re.search(r"url\((?!#)", everything)


def test_identifiers_are_unique_and_every_reference_leads_somewhere(page: Page, everything: str) -> None:
    assert [name for name, number in Counter(page.ids).items() if number > 1] == []
    inside = {reference.removeprefix("#") for reference in page.references if reference.startswith("#")}
    inside |= set(re.findall(r"url\(#([^)]+)\)", everything))
    assert inside <= set(page.ids)


def test_figures_have_the_pages_colours_and_text_that_stays_text(page: Page, everything: str) -> None:
    drawings = re.findall(r'<svg class="(?:wide|narrow)".*?</svg>', everything, flags=re.DOTALL)
    # Six figures and one for each of nine questions, all drawn twice.
    assert len(drawings) == 2 * 15
    for drawing in drawings:
        assert not re.search(r"#[0-9a-fA-F]{6}\b", drawing)
        assert "font-family" not in drawing
        assert 'role="img" aria-label="' in drawing
    assert "paper, exact gradients" in drawings[0]


def test_text_from_rows_is_shown_as_it_is(page: Page) -> None:
    assert f"print(3)\n{UGLY}" in page.text
    assert page.elements["b"] == 0
    assert "{{ 7*7 }}" in page.text


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    evidence = evidence_of(write_results(tmp_path, seeds=range(2)))
    assert render(evidence) == render(evidence)


def test_selection_that_wins_is_said_to_win_with_its_numbers(tmp_path: Path) -> None:
    evidence = evidence_of(write_results(tmp_path))
    verdict = judge(evidence)
    assert verdict.answer == "Yes, selection beats random rows"
    difference = evidence.difference("hardest", "random_r")
    assert difference is not None
    assert f"ends {abs(difference.mean):.3f} below random r" in verdict.sentence
    assert "5 seeds" in verdict.sentence
    assert "corrected for being the best of 6" in verdict.sentence
    more = " ".join(verdict.more)
    assert "At equal scoring-plus-training cost “largest losses” ends" in more
    assert "The paper’s own settings end" in more
    assert "Weighted sampling without any selection lowers" in more


@pytest.mark.parametrize(
    ("arms", "seeds", "answer"),
    [
        (("random_r", "random_b", "colm"), 5, "No, selection doesn’t beat random rows"),
        (("random_r", "random_b", "matched"), 1, "Not known yet: one seed"),
        (("random_r", "random_b"), 5, "Nothing to compare yet"),
        (("matched",), 5, "Nothing to compare yet"),
    ],
)
def test_the_answer_is_no_more_certain_than_the_numbers(
    tmp_path: Path, arms: tuple[str, ...], seeds: int, answer: str
) -> None:
    evidence = evidence_of(write_results(tmp_path, arms=arms, seeds=range(seeds)))
    assert judge(evidence).answer == answer
    assert answer in Page(render(evidence)).text


@pytest.mark.parametrize(
    ("gains", "answer"),
    [
        # t = 3.10 with four degrees of freedom, p = 0.036: less than 0.05, and more than a third of it.
        ((0.03, 0.03, 0.05, 0.005, 0.01), "Perhaps, selection beats random rows"),
        ((0.05, -0.03, 0.04, -0.02, 0.03), "Not shown that selection beats random rows"),
    ],
)
def test_the_best_of_three_needs_more_than_the_luckiest_would_have(
    tmp_path: Path, gains: tuple[float, ...], answer: str
) -> None:
    folder = write_results(tmp_path, arms=("random_r", "random_b", "paper", "colm", "matched"), noise=0.0)
    for seed, run in read_results(folder).runs["random_r"].items():
        end = run["heldout"][-1]
        for arm, gain in (("paper", gains[seed]), ("colm", 0.0), ("matched", 0.0)):
            edit(folder, arm, seed, heldout=[{**end, "balanced": end["balanced"] - gain}])
    assert judge(evidence_of(folder)).answer == answer


def test_the_main_table_has_a_row_for_each_arm_with_worked_numbers(tmp_path: Path) -> None:
    table = main_table(evidence_of(write_results(tmp_path, noise=0.0, seeds=range(4))))
    cells = {row.title: [cell.text for cell in row.cells] for row in table.rows}
    notes = {row.title: [cell.note for cell in row.cells] for row in table.rows}
    assert len(cells) == len(LOSSES)
    column = {title: at for at, (title, _) in enumerate(table.columns)}
    assert cells["matched"][column["against random r"]] == "−0.110"
    assert cells["matched"][column["distance closed"]] == "55%"
    assert cells["CoLM"][column["distance closed"]] == "−35%"
    assert cells["random b"][column["distance closed"]] == "100%"
    assert cells["matched"][column["at equal cost"]] == signed(1.29 - (1.20 + 2.2 / 5**3 * 5 / 6))
    assert (cells["matched"][column["rows trained"]], notes["matched"][column["rows trained"]]) == ("600", "1,200")
    assert notes["matched"][column["device-seconds"]] == "of 24.0"


def test_a_diverged_run_is_in_the_answer(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    edit(folder, "paper", 2, heldout=[{"step": STEPS, "balanced": None, "natural": None, "by_source": {}}])
    evidence = evidence_of(folder)
    assert any("diverged" in sentence and "paper (seeds 2)" in sentence for sentence in judge(evidence).more)
    assert Page(render(evidence)).open == []


def test_results_without_losses_checks_or_accuracy_still_make_a_page(tmp_path: Path) -> None:
    folder = write_results(tmp_path, arms=("random_r", "paper"), seeds=[0], accuracy=False)
    for arm in ("random_r", "paper"):
        edit(folder, arm, 0, heldout=[], gradient=[], timeline=[], gallery=[])
    assert "Nothing to compare yet" in Page(render(evidence_of(folder))).text


def test_missing_runs_are_named(tmp_path: Path) -> None:
    text = Page(render(evidence_of(write_results(tmp_path, missing=[("paper", 1), ("colm", 3)])))).text
    assert "2 runs not finished: paper seed 1, colm seed 3." in text


PAPER_ROWS = [value for value in vars(paper_numbers).values() if isinstance(value, PaperRow)]


@pytest.mark.parametrize("row", PAPER_ROWS, ids=[f"{row.title} {row.all_sets}" for row in PAPER_ROWS])
def test_the_papers_averages_are_those_of_its_sets(row: PaperRow) -> None:
    """Rounded to a tenth in the paper, sets and averages alike."""
    values = [number and number[0] for number in row.sets]
    for part, average in ((values[:3], row.in_domain), (values[3:], row.out_of_domain), (values, row.all_sets)):
        known = [value for value in part if value is not None]
        if average is not None and len(known) == len(part) and row is not paper_numbers.SELECTED_2K:
            assert sum(known) / len(known) == pytest.approx(average[0], abs=0.101)


def test_at_the_papers_scale_its_lines_stand_in_the_same_columns(tmp_path: Path) -> None:
    tables = paper_tables(evidence_of(write_results(tmp_path, scale="phi2", arms=_TABLE_ARMS)))
    assert [table.caption.split(":")[0] for table in tables] == ["Table 1", "Table 2", "Table 3", "Table 4"]
    first = tables[0]
    assert [title for title, _ in first.columns] == [
        "GSM8K", "MATH", "NumGLUE", "in-domain", "SVAMP", "Math.", "SimulEq", "out-of-domain", "all",
    ]  # fmt: skip
    rows = {row.title: [cell.text for cell in row.cells] for row in first.rows}
    assert rows["the paper: SSM"][:3] == ["67.0 ± 0.7", "29.9 ± 0.1", "55.0 ± 0.4"]
    assert rows["the paper: SSM"][-1] == "54.0 ± 0.2"
    assert all(len(row.cells) == len(table.columns) for table in tables for row in table.rows)
    assert {row.kind for row in first.rows if row.title.startswith("the paper:")} == {"muted"}


def test_at_another_scale_the_papers_numbers_are_pale_and_ours_keep_their_own_sets(tmp_path: Path) -> None:
    evidence = evidence_of(write_results(tmp_path, arms=_TABLE_ARMS))
    first = paper_tables(evidence)[0]
    assert [title for title, _ in first.columns][:3] == ["heldout", "gsm8k", "mean of sets"]
    assert not set(SIX_SETS[1:]) & {title for title, _ in first.columns}
    assert {row.cells[-1].kind for row in first.rows} == {"muted"}
    assert "They are of another scale" in Page(render(evidence)).text


def test_claims_of_the_paper_are_judged_by_their_intervals(tmp_path: Path) -> None:
    found = {claim.text: claim for claim in claims(evidence_of(write_results(tmp_path, arms=_TABLE_ARMS)))}
    assert found["Selection beats small random batches that are drawn by source too"].verdict == "holds"
    assert found["Selection beats large random batches that are drawn by source too"].verdict == "fails"
    # Made up to be the same but for noise.
    assert found["k = the model’s width is better than half of it"].verdict == "not shown"
    one = claims(evidence_of(write_results(tmp_path / "one", arms=_TABLE_ARMS, seeds=[0])))
    assert {claim.verdict for claim in one[:-2]} == {"one seed"}


def test_configurations_name_what_an_arm_changes(tmp_path: Path) -> None:
    found = {config.name: config for config in arm_configs(evidence_of(write_results(tmp_path)))}
    assert [(c.key, c.base, c.value) for c in found["random_b_uniform"].changes] == [
        ("selection.sub_batch_size", "6", "12"),
        ("selection.sampling", '"inverse_source"', '"uniform"'),
        ("selection.pick", '"facility_location"', '"random"'),
    ]
    assert found["paper"].changes == []
    assert {c.key for c in found["matched"].changes} >= {"selection.preset", "selection.pick", "selection.estimator"}


def test_arms_of_one_method_look_alike_and_methods_do_not() -> None:
    looks = {name: look_of(name) for name in LOSSES}
    assert len({(look.color, look.marker, look.dash) for look in looks.values()}) == len(LOSSES)
    assert {method_of(name) for name in ARMS} == {method_of(name) for name in LOSSES}
    assert look_of("matched_stale_4") == look_of("matched_b8r") == look_of("matched_wrong") == look_of("matched")
    assert look_of("something_new").outline


def test_numbers_read_well() -> None:
    assert [signed(0.1234), signed(-0.1), signed(-0.0001), percent(-0.004)] == ["+0.123", "−0.100", "0.000", "0%"]
    assert [memory(582352896), memory(1.2e10), memory(None)] == ["582 MB", "12.0 GB", "–"]
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_the_command_writes_the_page_and_prints_path_and_table(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "out", seeds=range(2))
    screen = io.StringIO()
    path = run_report(folder, None, console=Console(file=screen, width=200))
    assert path == folder / "report.html"
    assert path.read_text().startswith("<!DOCTYPE html>")
    said = screen.getvalue()
    assert f"the report is {path}" in said
    assert "paper, exact gradients" in said
    elsewhere = tmp_path / "new" / "page.html"
    assert run_report(folder, elsewhere, console=Console(file=screen)) == elsewhere
    assert [file.name for file in elsewhere.parent.iterdir()] == ["page.html"]


def test_the_command_refuses_a_folder_without_results_and_a_file_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"experiment\.json isn't there"):
        run_report(tmp_path, None)
    folder = write_results(tmp_path / "out", arms=("paper",), seeds=[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        run_report(folder, tmp_path / "file" / "page.html")
