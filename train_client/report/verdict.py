"""The answer in sentences, made from the numbers and no more certain than they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from train_client.experiment.comparison import EqualCost
from train_client.experiment.statistics import CONFIDENCE, Difference, Share
from train_client.experiment.summary import ArmSummary
from train_client.report.evidence import Evidence
from train_client.report.numbers import listed, percent, plain, plural, share_interval


@dataclass(frozen=True)
class Verdict:
    """What the page says first.

    Attributes:
        answer: A few words.
        sentence: The answer at equal steps.
        more: What else belongs to it, a sentence each.
    """

    answer: str
    sentence: str
    more: tuple[str, ...]


# (Whether with more steps, whether stopped early) → how random rows spend what selection spends on scores.
_SPENT = {
    (False, False): "with larger sub-batches",
    (False, True): "with all b rows, stopped early",
    (True, False): "with more steps",
    (True, True): "with twice the steps, stopped early",
}


def judge(evidence: Evidence) -> Verdict:
    """Whether selection beats random rows drawn the same way, at equal steps and at equal cost."""
    best = evidence.best
    if best is None:
        reason = "there is no finished pair of a selecting arm and random r with weighted sampling, of one seed"
        return Verdict("Nothing to compare yet", f"Whether selection helps can't be said: {reason}.", ())
    difference, share = best.own.differences["balanced"], best.own.shares.get("balanced")
    answer, sentence = _at_equal_steps(best, difference, share, candidates=len(evidence.selecting))
    return Verdict(answer, sentence, tuple(_more(evidence, best)))


def _at_equal_steps(
    best: ArmSummary, difference: Difference, share: Share | None, *, candidates: int
) -> tuple[str, str]:
    size = f"{plain(abs(difference.mean))} {'below' if difference.mean < 0 else 'above'} random r"
    if difference.count == 1:
        return (
            "Not known yet: one seed",
            f"At equal steps “{best.title}” ended {size}, both with weighted sampling{_closing(share)}; "
            "with one seed there is no error bar, so this decides nothing.",
        )
    found = (
        f"at equal steps “{best.title}” ends {size}, both with weighted sampling ({_spread(difference)}, "
        f"{plural(difference.count, 'seed')}){_closing(share)}"
    )
    # The best of several arms is the luckiest of them too.
    corrected = (difference.p_value if difference.p_value is not None else 1.0) * candidates < 1 - CONFIDENCE
    if difference.mean < 0 and difference.excludes_zero and corrected:
        note = f", and still does when corrected for being the best of {candidates}" if candidates > 1 else ""
        return "Yes, selection beats random rows", f"{_capital(found)}. The interval excludes zero{note}."
    if difference.mean < 0 and difference.excludes_zero:
        return (
            "Perhaps, selection beats random rows",
            f"{_capital(found)}; but it is the best of {candidates} arms, and corrected for that choice the difference "
            "may be chance.",
        )
    if difference.mean < 0:
        return (
            "Not shown that selection beats random rows",
            f"{_capital(found)}, and the interval holds zero.",
        )
    return "No, selection doesn’t beat random rows", f"Even the best selecting arm doesn’t: {found}."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _closing(share: Share | None) -> str:
    if share is None:
        return ""
    if share.value is None:
        return f"; the share of the distance to random b is {share.reason}"
    between = f" ({share_interval(share)})" if share_interval(share) else ""
    return f", which is {percent(share.value)}{between} of the distance to random b"


def _more(evidence: Evidence, best: ArmSummary) -> Iterator[str]:
    yield from filter(None, (_at_equal_cost(arm) for arm in _dearest_first(evidence, best)))
    paper = evidence.summary.find("paper")
    if paper is not None and paper is not best and "balanced" in paper.own.differences:
        yield _of_the_paper(paper)
    uniform = evidence.difference("random_r_uniform", "random_r")
    if uniform is not None:
        verb = "lowers" if uniform.mean > 0 else "raises"
        yield (
            f"Weighted sampling without any selection {verb} random r’s balanced loss by {plain(abs(uniform.mean))}"
            f"{_in_brackets(uniform)}{'' if uniform.excludes_zero or uniform.count == 1 else ', which may be chance'}."
        )
    diverged = [f"{arm.title} (seeds {listed([*map(str, arm.diverged)])})" for arm in evidence.main if arm.diverged]
    if diverged:
        yield f"Some runs diverged, and means leave them out, which flatters their arms: {listed(diverged)}."


def _dearest_first(evidence: Evidence, best: ArmSummary) -> list[ArmSummary]:
    """The best arm at equal steps, and the best at equal cost where that is another."""
    equal = {arm.name: one for arm in evidence.selecting if (one := hardest(arm)) and one.difference}
    cheapest = min(equal, key=lambda name: _mean(equal[name]), default=None)
    return [best, *(arm for arm in evidence.selecting if arm.name == cheapest and arm is not best)]


def hardest(arm: ArmSummary, measure: str = "row_cost") -> EqualCost | None:
    """The comparison at equal cost with whichever way to spend it on random rows gives the lower loss."""
    found = [one for more in (False, True) if (one := arm.own.at_equal_cost(measure, more_steps=more))]
    return max(found, key=_mean, default=None)


def _mean(one: EqualCost) -> float:
    return one.difference.mean if one.difference else float("-inf")


def _at_equal_cost(arm: ArmSummary) -> str | None:
    one = hardest(arm)
    if one is None:
        return None
    if one.difference is None:
        return f"At equal scoring-plus-training cost “{arm.title}” can’t be compared: it {one.reason}."
    where = "below" if one.difference.mean < 0 else "above"
    spent = _SPENT[one.references[1] != arm.own.references[1], one.stopped]
    says = "" if one.difference.count == 1 else f", which {_settled(one.difference)}"
    return (
        f"At equal scoring-plus-training cost “{arm.title}” ends {plain(abs(one.difference.mean))} {where} random "
        f"rows, on which as much is spent {spent}{_in_brackets(one.difference)}{says}."
    )


def _settled(difference: Difference) -> str:
    if not difference.excludes_zero:
        return "may be chance"
    return "is a gain beyond chance" if difference.mean < 0 else "is a loss beyond chance"


def _of_the_paper(paper: ArmSummary) -> str:
    difference, share = paper.own.differences["balanced"], paper.own.shares.get("balanced")
    where = "below" if difference.mean < 0 else "above"
    doubt = "" if difference.excludes_zero or difference.count == 1 else "; that can’t be told from no difference"
    return (
        f"The paper’s own settings end {plain(abs(difference.mean))} {where} random r{_in_brackets(difference)}"
        f"{_closing(share)}{doubt}."
    )


def _spread(difference: Difference) -> str:
    """The interval of the difference's size, written without signs where it is on one side of zero."""
    if difference.low is None or difference.high is None:
        return "one seed, so no interval"
    if difference.excludes_zero:
        low, high = sorted((abs(difference.low), abs(difference.high)))
        return f"95% interval {plain(low)} to {plain(high)}"
    return f"95% interval of the difference {plain(difference.low)} to +{plain(difference.high)}"


def _in_brackets(difference: Difference) -> str:
    return f" ({_spread(difference)})"
