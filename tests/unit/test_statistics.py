"""Means, paired differences, shares of a distance and equal costs: against SciPy, worked numbers and simulations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from shared.errors import DataError
from tests.made_up_results import LOSSES, STEPS, edit, write_results
from train_client.experiment.measures import measures, row_cost
from train_client.experiment.results import read_results
from train_client.experiment.statistics import Share, along, between, estimate, paired_difference, share_closed
from train_client.experiment.summary import Summary, make_summary, summarise


def summary_of(folder: Path) -> Summary:
    return make_summary(read_results(folder))


def test_the_standard_error_is_scipys_and_values_that_are_not_finite_are_counted() -> None:
    values = [1.0, 2.5, 4.0, 3.0]
    got = estimate([*values, math.nan, None, math.inf])
    assert (got.count, got.left_out) == (4, 3)
    assert got.mean == pytest.approx(np.mean(values))
    assert got.standard_error == pytest.approx(stats.sem(values))


def test_one_value_has_no_error_and_none_has_no_mean() -> None:
    assert estimate([2.0]).standard_error is None
    assert (estimate([]).mean, estimate([math.nan]).mean) == (None, None)


def test_a_paired_difference_is_scipys_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    arm, reference = generator.normal(size=5), generator.normal(size=5)
    got, truth = paired_difference(list(arm), list(reference)), stats.ttest_rel(arm, reference)
    assert got is not None
    assert got.mean == pytest.approx(np.mean(arm - reference))
    assert got.p_value == pytest.approx(truth.pvalue)
    assert (got.low, got.high) == pytest.approx(tuple(truth.confidence_interval(0.95)))


def test_a_paired_difference_worked_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard error 1 / √3, and Student's t for two degrees of freedom is 4.3027.
    got = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert got is not None
    assert (got.mean, got.standard_error) == (2.0, pytest.approx(0.57735, abs=1e-5))
    assert (got.low, got.high) == (pytest.approx(2 - 2.4841, abs=1e-4), pytest.approx(2 + 2.4841, abs=1e-4))
    assert not got.excludes_zero


def test_a_seed_that_diverged_leaves_its_pair_out() -> None:
    got = paired_difference([1.0, math.nan, 3.0], [0.0, 0.0, math.inf])
    assert got is not None
    assert (got.mean, got.count, got.low) == (1.0, 1, None)
    assert paired_difference([math.nan], [1.0]) is None
    with pytest.raises(DataError, match="2 and 1 seeds"):
        paired_difference([1.0, 2.0], [1.0])


def test_differences_that_are_all_equal_have_an_interval_of_no_width() -> None:
    got = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert got is not None
    assert (got.low, got.high, got.p_value, got.excludes_zero) == (0.0, 0.0, 1.0, False)


def test_references_close_nothing_and_everything() -> None:
    low, high = [1.40, 1.45, 1.38], [1.20, 1.26, 1.19]
    for arm, share in ((low, 0.0), (high, 1.0)):
        got = share_closed(arm, low, high)
        assert (got.value, got.low, got.high) == pytest.approx((share, share, share))


def test_the_share_has_the_ends_at_which_a_t_test_of_the_difference_just_fails() -> None:
    """Fieller's set is all θ for which closed - θ · distance can't be told from zero."""
    generator = np.random.default_rng(1)
    low = generator.normal(1.4, 0.02, 5)
    high, arm = low - generator.normal(0.2, 0.02, 5), low - generator.normal(0.1, 0.02, 5)
    got = share_closed(list(arm), list(low), list(high))
    assert got.value == pytest.approx(np.mean(low - arm) / np.mean(low - high))
    for end in (got.low, got.high):
        assert stats.ttest_1samp((low - arm) - end * (low - high), 0).pvalue == pytest.approx(0.05, abs=1e-9)


def test_a_distance_within_the_noise_gives_no_share() -> None:
    got = share_closed([1.0, 1.3, 0.9], [1.2, 1.0, 1.1], [1.1, 1.1, 0.95])
    assert (got.value, got.low) == (None, None)
    assert got.reason == "undefined: the distance is within the noise"
    backwards = share_closed([1.0, 1.1], [1.0, 1.1], [1.2, 1.3])
    assert (backwards.value, backwards.reason) == (None, "undefined: the goal is not better than the start")


def test_a_share_of_accuracy_is_of_a_rise() -> None:
    assert share_closed([0.5], [0.4], [0.8], smaller=False).value == pytest.approx(0.25)
    assert share_closed([0.5], [0.8], [0.4], smaller=False).value is None


def test_one_seed_has_a_share_and_no_interval_and_no_seed_has_none() -> None:
    assert share_closed([1.3], [1.4], [1.2]) == Share(pytest.approx(0.5), None, None, 1, "one seed: no interval")
    assert share_closed([], [], []).reason == "no seed has all three"


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_their_level_with_few_seeds(seeds: int) -> None:
    generator, trials = np.random.default_rng(7), 4000
    of_share = of_difference = 0
    for _ in range(trials):
        low = generator.normal(1.4, 0.05, seeds)
        arm = low - generator.normal(0.12, 0.02, seeds)
        high = low - generator.normal(0.20, 0.02, seeds)
        share, difference = share_closed(list(arm), list(low), list(high)), paired_difference(list(arm), list(low))
        assert share.low is not None
        assert share.high is not None
        assert difference is not None
        assert difference.low is not None
        assert difference.high is not None
        of_share += share.low <= 0.6 <= share.high
        of_difference += difference.low <= -0.12 <= difference.high
    # Four standard errors of a proportion of 0.95 in so many trials are 0.014.
    assert of_share / trials == pytest.approx(0.95, abs=0.014)
    assert of_difference / trials == pytest.approx(0.95, abs=0.014)


def test_what_random_rows_give_at_a_cost_between_two_is_straight_in_its_logarithm() -> None:
    assert between(20.0, (10.0, 40.0), ([1.4, 1.6], [1.2, 1.2])) == [pytest.approx(1.3), pytest.approx(1.4)]
    assert between(10.0, (10.0, 40.0), ([1.4], [1.2])) == [pytest.approx(1.4)]
    assert between(9.0, (10.0, 40.0), ([1.4], [1.2])) is None
    assert between(41.0, (10.0, 40.0), ([1.4], [1.2])) is None


def test_a_run_costs_a_pass_for_a_scored_row_and_three_for_a_trained_one(tmp_path: Path) -> None:
    runs = read_results(write_results(tmp_path, arms=("random_r", "random_b", "paper"), seeds=[0])).runs
    assert {name: row_cost(runs[name][0]) for name in runs} == {
        "random_r": 3 * 6 * STEPS,
        "random_b": 3 * 12 * STEPS,
        "paper": (12 + 3 * 6) * STEPS,
    }


def test_a_summary_finds_what_the_results_were_made_with(tmp_path: Path) -> None:
    summary = summary_of(write_results(tmp_path, noise=0.001))
    assert not summary.missing
    for arm in summary.arms:
        share = arm.weighted.shares["balanced"]
        expected = (1.40 - LOSSES[arm.name]) / 0.20
        assert share.low is not None
        assert share.high is not None
        assert share.value == pytest.approx(expected, abs=0.03)
        assert share.low - 1e-9 <= share.value <= share.high + 1e-9  # type: ignore[operator]
    uniform = summary.find("random_b_uniform")
    assert uniform is not None
    assert uniform.own.references == ("random_r_uniform", "random_b_uniform")
    assert uniform.own.shares["balanced"].value == pytest.approx(1.0)
    matched = summary.find("matched")
    assert matched is not None
    assert matched.means["row_cost"].mean == 3000
    assert matched.own.differences["trained"].mean == 0


@pytest.mark.parametrize("known", ["along the way", "at the ends"])
def test_at_equal_cost_the_better_way_to_spend_it_on_random_rows_counts(tmp_path: Path, known: str) -> None:
    """`matched` costs five sixths of random b, which then is at 1.20 + 2.2 / 5³ · 5/6 if its losses there are known."""
    folder = write_results(tmp_path, arms=("random_r", "random_b", "matched"), noise=0.0)
    # A size in between: log(5/3) / log(2) of the way from 1.40 to 1.20.
    best = 1.40 - 0.20 * math.log2(5 / 3)
    if known == "along the way":
        best = 1.20 + 2.2 / 5**3 * 5 / 6
    else:
        for seed, run in read_results(folder).runs["random_b"].items():
            edit(folder, "random_b", seed, heldout=[run["heldout"][0], run["heldout"][-1]])
    matched = summary_of(folder).find("matched")
    assert matched is not None
    equal = matched.own.at_equal_cost()
    assert equal is not None
    assert equal.difference is not None
    assert equal.stopped is (known == "along the way")
    assert equal.costs == (1800, 3600)
    assert equal.difference.mean == pytest.approx(1.29 - best, abs=1e-9)


def test_an_arm_that_costs_more_than_random_b_is_not_compared(tmp_path: Path) -> None:
    folder = write_results(tmp_path, arms=("random_r", "random_b", "matched"), seeds=range(2))
    for seed in range(2):
        edit(folder, "matched", seed, rows={"drawn": 9000, "scored": 9000, "trained": 600, "distinct": 300})
    matched = summary_of(folder).find("matched")
    assert matched is not None
    equal = matched.own.at_equal_cost()
    assert equal is not None
    assert (equal.difference, equal.reason) == (None, "costs more than random b")


def test_a_curve_is_straight_between_its_points_and_unknown_beyond_them() -> None:
    assert along({10: 2.0, 20: 1.0}, 17.5) == pytest.approx(1.25)
    assert math.isnan(along({10: 2.0, 20: 1.0}, 21))
    assert math.isnan(along({}, 1))


def test_more_steps_of_random_rows_are_another_way_to_spend_the_same(tmp_path: Path) -> None:
    arms = ("random_r", "random_b", "paper", "random_r_2x")
    paper = summary_of(write_results(tmp_path, arms=arms, noise=0.0)).find("paper")
    assert paper is not None
    steps = paper.own.at_equal_cost(more_steps=True)
    assert steps is not None
    assert steps.references == ("random_r", "random_r_2x")
    assert steps.difference is not None
    # Stopped after five sixths, twice the steps would be at 1.35 + 2.05 / 5³ · 5/6, a little more.
    assert not steps.stopped
    assert steps.difference.mean == pytest.approx(1.38 - (1.40 - 0.05 * math.log2(5 / 3)), abs=1e-9)


def test_what_is_missing_is_named_and_the_rest_compared_over_common_seeds(tmp_path: Path) -> None:
    folder = write_results(tmp_path, missing=[("random_r", 4), ("paper", 0), *(("colm", seed) for seed in range(5))])
    summary = summary_of(folder)
    assert set(summary.missing) == {("random_r", 4), ("paper", 0), *(("colm", seed) for seed in range(5))}
    assert summary.find("colm") is None
    paper = summary.find("paper")
    assert paper is not None
    assert paper.seeds == (1, 2, 3, 4)
    assert paper.means["balanced"].count == 4
    assert paper.own.shares["balanced"].count == 3


def test_a_diverged_seed_is_named_and_left_out(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    for seed, loss in ((1, None), (2, math.nan)):
        heldout = [{"step": 0, "balanced": 3.0, "natural": 3.0, "by_source": {}}]
        heldout.append(
            {"step": STEPS, "balanced": loss, "natural": loss, "by_source": {"data/CoT/gsm_train.json": loss}}
        )
        edit(folder, "paper", seed, heldout=heldout)
    summary = summarise(folder)
    paper = summary.find("paper")
    assert paper is not None
    assert paper.diverged == (1, 2)
    assert (paper.means["balanced"].count, paper.means["balanced"].left_out) == (3, 2)
    assert paper.own.shares["balanced"].count == 3
    written = json.loads((folder / "summary.json").read_text())
    assert [arm["diverged"] for arm in written["arms"] if arm["name"] == "paper"] == [[1, 2]]


def test_without_references_there_are_means_and_no_comparisons(tmp_path: Path) -> None:
    (paper,) = summary_of(write_results(tmp_path, arms=("paper",), accuracy=False)).arms
    assert paper.means["balanced"].count == 5
    assert paper.means["accuracy"].mean is None
    assert not paper.own.differences
    assert paper.own.equal_cost == ()


def test_gradient_checks_are_averaged_and_their_last_bias_taken(tmp_path: Path) -> None:
    run = read_results(write_results(tmp_path, arms=("paper",), seeds=[0])).runs["paper"][0]
    got = measures(run)
    assert got["gradient_error"] == pytest.approx(np.mean([check["error"] for check in run["gradient"]]))
    assert got["bias"] == run["gradient"][-1]["bias"]


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"experiment\.json isn't there"):
        summarise(tmp_path)
    write_results(tmp_path, arms=("paper",), seeds=[0], missing=[("paper", 0)])
    with pytest.raises(DataError, match="no finished run, out of 1 arms"):
        summarise(tmp_path)
    (tmp_path / "arms" / "paper").mkdir(parents=True)
    (tmp_path / "arms" / "paper" / "seed-0.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="has format 99, this release reads 1"):
        summarise(tmp_path)
    (tmp_path / "arms" / "paper" / "seed-0.json").write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        summarise(tmp_path)
