"""The paper's tables in their layout: our numbers, and the paper's beside them."""

from __future__ import annotations

from collections.abc import Sequence

from train_client.experiment.summary import ArmSummary, Summary
from train_client.report import paper_numbers as paper
from train_client.report.evidence import Evidence
from train_client.report.looks import look_of
from train_client.report.numbers import NOTHING, with_error
from train_client.report.paper_numbers import Number, PaperAverages, PaperRow
from train_client.report.tables import Cell, Row, Table

_OURS_BEYOND = ("colm", "paper_exact", "matched", "pivotal", "hardest")


def paper_tables(evidence: Evidence) -> list[Table]:
    """Tables 1 to 4, each where at least one of its arms is there."""
    return [table for make in (_table_1, _table_2, _table_3, _table_4) if (table := make(evidence)) is not None]


def has_the_papers_sets(summary: Summary) -> bool:
    """Whether our numbers can stand in the paper's columns."""
    return any(set(paper.SETS) <= arm.sets.keys() for arm in summary.arms)


def _table_1(evidence: Evidence) -> Table | None:
    rows = [
        ("random_r_uniform", "random r, uniform draws", paper.SMALL_1K),
        ("random_b_uniform", "random b, uniform draws", paper.LARGE_1K),
        ("paper", "paper", paper.SELECTED_1K),
        ("random_r", "random r, by source", None),
        ("random_b", "random b, by source", None),
        *((name, "", None) for name in _OURS_BEYOND),
        ("random_r_2x", "random r, by source, 2 × steps", None),
        ("random_b_2x", "random b, by source, 2 × steps", None),
        ("paper_2x", "paper, 2 × steps", paper.SELECTED_2K),
        *((f"{name}_2x", "", None) for name in _OURS_BEYOND),
    ]
    caption = "Table 1: small and large random batches, and selection. The paper’s random batches are drawn uniformly."
    return _by_set(evidence, caption, rows, more=[paper.PRETRAINED, paper.SMALL_2K, paper.LARGE_2K])


def _table_2(evidence: Evidence) -> Table | None:
    rows = [
        ("paper", "selected, weighted sampling", paper.SELECTED_1K),
        ("paper_uniform", "selected, uniform draws", paper.SELECTED_UNIFORM_1K),
        ("random_r", "random r, weighted sampling", None),
        ("random_r_uniform", "random r, uniform draws", paper.SMALL_1K),
        ("matched", "matched, weighted sampling", None),
        ("matched_uniform", "matched, uniform draws", None),
    ]
    if evidence.summary.find("paper_uniform") is None and evidence.summary.find("matched_uniform") is None:
        return None
    return _by_set(evidence, "Table 2: what weighted sampling is worth, with and without selection.", rows)


def _table_3(evidence: Evidence) -> Table | None:
    rows = [
        ("paper_weight", "weight", paper.CRITERIA["weight"]),
        ("paper_weight_grad", "weight × grad", paper.CRITERIA["weight_grad"]),
        ("paper", "grad", paper.CRITERIA["grad"]),
    ]
    return _by_averages(evidence, "Table 3: which coordinates are compared.", "criterion", rows)


def _table_4(evidence: Evidence) -> Table | None:
    rows = [
        ("paper_k_half", "half the width", paper.SPARSITY[0.5]),
        ("paper", "the width", paper.SPARSITY[1.0]),
        ("paper_k_double", "twice the width", paper.SPARSITY[2.0]),
    ]
    return _by_averages(evidence, "Table 4: how many coordinates are compared.", "k", rows)


def _by_set(
    evidence: Evidence,
    caption: str,
    wanted: Sequence[tuple[str, str, PaperRow | None]],
    more: Sequence[PaperRow] = (),
) -> Table | None:
    found = [
        (arm, title or arm.title, theirs) for name, title, theirs in wanted if (arm := evidence.summary.find(name))
    ]
    if not found:
        return None
    if has_the_papers_sets(evidence.summary):
        titles = [paper.SET_TITLES[name] for name in paper.SETS]
        columns = [*titles[:3], "in-domain", *titles[3:], "out-of-domain", "all"]
        rows = []
        for arm, title, theirs in found:
            rows.append(_row(arm, title, [Cell(text) for text in _six_sets(evidence, arm)]))
            if theirs is not None:
                rows.append(_paper_row(theirs.title, _cells(theirs)))
        rows += [_paper_row(row.title, _cells(row)) for row in more]
        return Table(f"{caption} Exact match in percent.", "method", [(text, "") for text in columns], rows)
    sets = list(dict.fromkeys(name for arm, _, _ in found for name in arm.sets))
    columns = [*sets, *(["mean of sets"] if len(sets) > 1 else []), "balanced loss", "natural loss"]
    rows = []
    for arm, title, theirs in found:
        ours = [Cell(with_error(arm.sets.get(name), 1, scale=100)) for name in sets]
        ours += [Cell(with_error(arm.means["accuracy"], 1, scale=100))] if len(sets) > 1 else []
        ours += [Cell(with_error(arm.means["balanced"])), Cell(with_error(arm.means["natural"]))]
        beside = _beside(theirs.title, theirs.all_sets) if theirs else Cell(NOTHING, kind="muted")
        rows.append(_row(arm, title, [*ours, beside]))
    return Table(caption, "method", [*((text, "") for text in columns), ("the paper’s Phi-2", "all six sets")], rows)


def _by_averages(
    evidence: Evidence, caption: str, head: str, wanted: Sequence[tuple[str, str, PaperAverages]]
) -> Table | None:
    found = [(arm, title, theirs) for name, title, theirs in wanted if (arm := evidence.summary.find(name))]
    if len(found) < 2:
        return None
    same_sets = has_the_papers_sets(evidence.summary)
    ours = ["in-domain", "out-of-domain", "all"] if same_sets else ["accuracy", "balanced loss", "gradient error"]
    rows = []
    for arm, title, theirs in found:
        if same_sets:
            texts = _six_sets(evidence, arm)
            cells = [Cell(texts[3]), Cell(texts[7]), Cell(texts[8])]
        else:
            accuracy, loss = with_error(arm.means["accuracy"], 1, scale=100), with_error(arm.means["balanced"])
            cells = [Cell(accuracy), Cell(loss), Cell(with_error(arm.means["gradient_error"], 2))]
        beside = [_beside("", number) for number in (theirs.in_domain, theirs.out_of_domain, theirs.all_sets)]
        rows.append(_row(arm, title, [*cells, *beside]))
    of_paper = [(f"paper: {text}", "") for text in ("in-domain", "out-of-domain", "all")]
    return Table(caption, head, [*((text, "") for text in ours), *of_paper], rows)


def _row(arm: ArmSummary, title: str, cells: Sequence[Cell]) -> Row:
    look = look_of(arm.name)
    return Row(title, cells, look.css_color, look.outline)


def _paper_row(title: str, cells: Sequence[Cell]) -> Row:
    return Row(f"the paper: {title}", cells, kind="muted")


def _beside(title: str, number: Number) -> Cell:
    return Cell(_number(number) if number else NOTHING, title if number else "", "muted")


def _cells(row: PaperRow) -> list[Cell]:
    numbers = (*row.sets[:3], row.in_domain, *row.sets[3:], row.out_of_domain, row.all_sets)
    return [Cell(_number(number), kind="muted") for number in numbers]


def _number(number: Number) -> str:
    if number is None:
        return NOTHING
    value, error = number
    return f"{value:.1f}" if error is None else f"{value:.1f} ± {error:.1f}"


def _six_sets(evidence: Evidence, arm: ArmSummary) -> list[str]:
    """The paper's columns."""
    sets = [with_error(arm.sets.get(name), 1, scale=100) for name in paper.SETS]
    within, beyond, everywhere = (
        with_error(evidence.set_average(arm.name, names), 1, scale=100)
        for names in (paper.IN_DOMAIN, paper.OUT_OF_DOMAIN, paper.SETS)
    )
    return [*sets[:3], within, *sets[3:], beyond, everywhere]
