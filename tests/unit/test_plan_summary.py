"""What is said of a plan: waiting counted by hand, what would help, numbers of devices, sentences."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.test_plan_predict import PAPER
from train_client.plan.costs import Costs, Layout, Noise
from train_client.plan.observed import observe, uneven_fraction
from train_client.plan.plan import PLANNED, make_plan
from train_client.plan.predict import predict, selectors_needed
from train_client.plan.sentences import sentences, trial_sentence
from train_client.plan.simulate import Played, simulate
from train_client.plan.table import duration, title
from train_client.plan.trial import simulate_plan

SLOW_UPLOAD = replace(PAPER, upload_seconds=500.0, snapshot_seconds=10.0, load_seconds=20.0)


def test_waiting_is_what_a_run_stands_still_for_a_selection_or_for_an_older_snapshot() -> None:
    num_steps = 30
    begin = 10.0 * np.arange(num_steps)[None, :]
    # A selection arrives after 2 s, two ranks train for 4 and 5 s, an older snapshot is in the way for 1, then 2 s.
    played = Played(
        select_began=begin,
        select_ended=begin + 2,
        began=begin,
        train_began=begin + 2,
        trained=begin + 7,
        free_to_push=begin + 8,
        ended=begin + 10,
        upload_began=begin + 10,
        upload_ended=begin + 11,
        rank_seconds=np.tile([4.0, 5.0], (num_steps, 1)),
    )
    seen = observe(played, servers=1)
    assert (seen.step_seconds, seen.step_seconds_mean, seen.step_seconds_p95) == (10, 10, 10)
    assert seen.wait_fraction == pytest.approx(0.3)
    assert seen.selector_fraction == pytest.approx(60 / 292)
    assert uneven_fraction(played) == pytest.approx(0.05)


@pytest.mark.parametrize("layout", [Layout(4, 2), Layout(4, 2, staleness=0), Layout(4, 3, runs=4, servers=2)])
def test_without_noise_a_trial_shows_what_the_plan_predicts_for_every_number_of_devices(layout: Layout) -> None:
    plan = make_plan(replace(PAPER, upload_seconds=3.0, snapshot_seconds=1.0), layout)
    trial = simulate_plan(plan, Noise(), num_steps=200, seed=0)
    for name, seen in trial.arms.items():
        assert seen.step_seconds_mean == pytest.approx(plan.arms[name].step_seconds, rel=0.01)
        assert trial.steps[name].mean() == pytest.approx(seen.step_seconds_mean, rel=0.01)
    assert set(trial.arms) == {"floor", "large_batch", "inline", PLANNED}
    assert list(trial.by_selectors) == list(plan.by_selectors)
    for count, seen in trial.by_selectors.items():
        assert seen.wait_fraction == pytest.approx(plan.by_selectors[count].wait_fraction, abs=0.01)
        assert seen.selector_fraction == pytest.approx(plan.by_selectors[count].selector_fraction, rel=0.02)


def test_each_of_several_servers_does_what_it_would_alone() -> None:
    costs = replace(PAPER, load_seconds=5.0)
    together, alone = Layout(4, 2, runs=6, servers=3), Layout(4, 2, runs=2)
    assert predict(costs, together).step_seconds == predict(costs, alone).step_seconds
    assert predict(costs, together).device_seconds == predict(costs, alone).device_seconds
    played = simulate(costs, together, Noise(jitter=0.1), num_steps=40, seed=0)
    for server in range(3):
        jobs = np.sort([played.select_began[server::3].ravel(), played.select_ended[server::3].ravel()])
        assert (jobs[0, 1:] >= jobs[1, :-1]).all()
    assert (played.select_began[0] < played.select_ended[1]).any()


def test_where_no_number_of_devices_suffices_the_remedy_is_the_cheapest_of_all_that_were_looked_at() -> None:
    plan = make_plan(SLOW_UPLOAD, Layout(trainers=1))
    assert plan.needed is None
    remedy = plan.remedy
    assert remedy is not None
    assert predict(SLOW_UPLOAD, remedy).wait_fraction < 1e-6
    needed = {
        (S, K): selectors_needed(SLOW_UPLOAD, Layout(trainers=1, staleness=S, push_every=K))
        for S in range(1, 9)
        for K in range(1, 9)
    }
    assert remedy.selectors == min(count for count in needed.values() if count)
    youngest = min(S + K for (S, K), count in needed.items() if count == remedy.selectors)
    assert remedy.staleness + remedy.push_every == youngest


def test_the_numbers_of_devices_that_are_shown_are_few_and_hold_the_plans_own_and_the_needed_one() -> None:
    for layout in (Layout(1, 1), Layout(4, 2), Layout(64, 7), Layout(64, 100)):
        plan = make_plan(PAPER, layout)
        assert len(plan.by_selectors) <= 10
        assert {layout.selectors, plan.needed} <= set(plan.by_selectors)
        assert max(plan.by_selectors) <= 128


@pytest.mark.parametrize(
    ("costs", "layout", "said"),
    [
        (
            PAPER,
            Layout(1, 1),
            ["The trainers set the pace: 192 s", "1 selector device is enough", "0.67 of a training"],
        ),
        (PAPER, Layout(4, 1), ["The selector sets the pace: 128 s", "3 selector devices are enough", "inside"]),
        (SLOW_UPLOAD, Layout(1, 1, staleness=4), ["upload of weights sets the pace: 500 s", "would with S = "]),
        (SLOW_UPLOAD, Layout(1, 1), ["upload of weights", "No number", "even if selector devices are free"]),
        (replace(SLOW_UPLOAD, upload_seconds=150.0), Layout(1, 1), ["round trip of the weights", "0.28 of a training"]),
        (replace(PAPER, serial_seconds=200.0), Layout(1, 1), ["No number", "what they don't shorten"]),
    ],
)
def test_sentences_say_what_sets_the_pace_what_would_help_and_what_it_costs(
    costs: Costs, layout: Layout, said: list[str]
) -> None:
    text = " ".join(sentences(make_plan(costs, layout)))
    for part in said:
        assert part in text


def test_the_last_sentence_says_what_jitter_changes() -> None:
    plan = make_plan(PAPER, Layout(4, 2))
    text = trial_sentence(plan, simulate_plan(plan, Noise(jitter=0.1), num_steps=100, seed=0))
    match = re.search(r"wait ([\d.]+)% of the time, and less than 1% from (\d) devices on; .* waits ([\d.]+)%", text)
    assert match, text
    waits, devices, uneven = float(match[1]), int(match[2]), float(match[3])
    # A quarter without jitter; the slowest rank takes longer than the average one, which leaves less to wait for.
    assert 20 < waits < 25
    assert devices in (3, 4)
    # The largest of four normal deviates is 1.03 deviations above their mean, of training, three quarters of a step.
    assert uneven == pytest.approx(0.75 * 10.3, abs=1)


def test_durations_have_three_digits_and_arms_their_timing() -> None:
    times = {0: "0 s", 2.5e-8: "0.03 µs", 0.0123: "12.3 ms", 1: "1.00 s", 0.98765: "988 ms", 4321.0: "4,321 s"}
    assert {seconds: duration(seconds) for seconds in times} == times
    assert title("staleness_2", Layout(push_every=3)) == "server, S = 2, K = 3"
    assert title("push_every_4", Layout()) == "server, S = 1, K = 4"
