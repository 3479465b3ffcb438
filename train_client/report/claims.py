"""What the paper claims, beside what these results say of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from train_client.experiment.statistics import Difference
from train_client.report.evidence import Evidence
from train_client.report.numbers import interval, plural, signed
from train_client.report.paper_numbers import MEMORY_RATIO, SPEED_UP


@dataclass(frozen=True)
class Claim:
    """A claim, the paper's number for it, ours, and whether it holds here.

    Attributes:
        paper: Empty for a control that the paper doesn't have.
        verdict: "holds", "fails", "not shown" or "one seed".
    """

    text: str
    paper: str
    ours: str
    verdict: str


def claims(evidence: Evidence) -> list[Claim]:
    """Those for which both arms have a seed in common."""
    return list(_claims(evidence))


def _claims(evidence: Evidence) -> Iterator[Claim]:
    pairs = (
        (
            "Selection beats small random batches, these drawn uniformly",
            "54.0 against 50.1",
            "paper",
            "random_r_uniform",
        ),
        (
            "Selection beats small random batches that are drawn by source too",
            "",
            "paper",
            "random_r",
        ),
        (
            "Selection beats large random batches, these drawn uniformly",
            "54.0 against 52.6",
            "paper",
            "random_b_uniform",
        ),
        ("Selection beats large random batches that are drawn by source too", "", "paper", "random_b"),
        ("Selection needs weighted sampling", "54.0 against 51.5", "paper", "paper_uniform"),
        ("Largest gradients are a better criterion than largest weights", "54.0 against 53.9", "paper", "paper_weight"),
        ("… and than largest weight × gradient", "54.0 against 53.3", "paper", "paper_weight_grad"),
        ("k = the model’s width is better than half of it", "54.0 against 53.2", "paper", "paper_k_half"),
        ("… and than twice as much", "54.0 against 53.1", "paper", "paper_k_double"),
        (
            "Selection still beats small random batches after 2 × the steps",
            "57.1 against 55.9",
            "paper_2x",
            "random_r_2x",
        ),
    )
    for text, theirs, better, worse in pairs:
        difference = evidence.difference(better, worse)
        if difference is not None:
            ours = f"loss {signed(difference.mean)}"
            ours += f" ({interval(difference)})" if interval(difference) else ""
            yield Claim(text, theirs, f"{ours}, {plural(difference.count, 'seed')}", _verdict(difference))
    yield from _costs(evidence)


def _costs(evidence: Evidence) -> Iterator[Claim]:
    """Time and memory against training on all rows, as ratios of means: no test belongs to them."""
    paper, large = evidence.summary.find("paper"), evidence.summary.find("random_b")
    if paper is None or large is None:
        return
    for text, theirs, measure in (
        ("Selection is faster than training on all rows", f"{SPEED_UP} ×", "wall"),
        ("… with less memory at the trainer", f"{MEMORY_RATIO:g} ×", "trainer_memory"),
    ):
        mine, other = paper.mean(measure), large.mean(measure)
        if mine and other:
            yield Claim(text, theirs, f"{other / mine:.2f} ×", "holds" if other > mine else "fails")


def _verdict(difference: Difference) -> str:
    if difference.count == 1:
        return "one seed"
    if not difference.excludes_zero:
        return "not shown"
    return "holds" if difference.mean < 0 else "fails"
