"""The simulation: against the closed form, a clock that ticks through tiny cases, and what must balance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from tests.unit.test_plan_predict import PAPER, costs, layouts
from train_client import push
from train_client.plan import simulate as simulate_module
from train_client.plan.costs import Costs, Layout, Noise
from train_client.plan.predict import predict
from train_client.plan.simulate import Played, factors, simulate

fixed = settings(deadline=None, derandomize=True, max_examples=60)
NOISY = Noise(jitter=0.2, straggler_share=0.05)


def pace(played: Played, *, skip: int, window: int) -> np.ndarray:
    """Mean step time of every run, over a window after a beginning."""
    return (played.ended[:, skip + window] - played.ended[:, skip]) / window


@fixed
@given(costs, layouts)
def test_without_noise_a_simulated_run_has_the_pace_of_the_closed_form(costs: Costs, layout: Layout) -> None:
    played = simulate(costs, layout, Noise(), num_steps=1000, seed=0)
    assert pace(played, skip=240, window=720)[0] == pytest.approx(predict(costs, layout).step_seconds, rel=1e-6)


@pytest.mark.parametrize(("staleness", "push_every"), [(0, 1), (1, 1), (1, 4), (2, 1), (3, 2)])
@pytest.mark.parametrize("score", [10.0, 100.0])
def test_runs_that_share_a_server_have_the_pace_of_the_closed_form(
    staleness: int, push_every: int, score: float
) -> None:
    costs = Costs(64, 128, 192.0, 384.0, score, score, load_seconds=8.0, upload_seconds=5.0, snapshot_seconds=2.0)
    layout = Layout(runs=5, staleness=staleness, push_every=push_every)
    played = simulate(costs, layout, Noise(), num_steps=300, seed=0)
    assert pace(played, skip=59, window=200) == pytest.approx(predict(costs, layout).step_seconds, rel=0.01)


def ticked(costs: Costs, layout: Layout, num_steps: int) -> list[list[int]]:
    """When each run ends each step, by a clock that ticks: who is free, who may begin, who is done; all times whole."""
    S, K, N = layout.staleness, layout.push_every, layout.runs
    lookahead = S + K - 1 if layout.lookahead is None else layout.lookahead
    train, busy = int(costs.train_seconds), int(costs.train_seconds) + costs.snapshot_seconds / K
    runs = [
        {"start": math.ceil(i * busy / N), "ended": [], "sent": [], "durable": {0}, "queue": [], "training": None,
         "snapshot": None, "upload": None, "loaded": 0}
        for i in range(N)
    ]  # fmt: skip
    select, clock = None, 0
    while any(len(run["ended"]) < num_steps for run in runs):
        # What happens at this tick can let other things happen at it, where a piece takes no time.
        changed = True
        while changed:
            changed = False
            if select and select[1] == clock:
                runs[select[0]]["sent"].append(clock)
                select, changed = None, True
            for run in runs:
                step = len(run["ended"])
                if run["upload"] and run["upload"][0] == clock:
                    run["durable"].add(run["upload"][1])
                    run["upload"], changed = None, True
                if run["training"] == clock:
                    run["training"], run["snapshot"], changed = None, "due", True
                pushes = (step + 1) % K == 0 and step + 1 + S < num_steps
                under_way = len(run["queue"]) + (run["upload"] is not None)
                if run["snapshot"] == "due" and (not pushes or under_way < 2):
                    run["snapshot"], changed = clock + (int(costs.snapshot_seconds) if pushes else 0), True
                if run["snapshot"] == clock:
                    run["snapshot"], changed = None, True
                    run["ended"].append(clock)
                    if pushes:
                        run["queue"].append(step + 1)
                if run["queue"] and not run["upload"]:
                    run["upload"], changed = (clock + int(costs.upload_seconds), run["queue"].pop(0)), True
                step = len(run["ended"])
                idle = run["training"] is None and run["snapshot"] is None and clock >= run["start"]
                if idle and len(run["sent"]) > step and clock >= run["sent"][step] + costs.deliver_seconds:
                    run["training"], changed = clock + train, True
        if select is None:
            able = []
            for number, run in enumerate(runs):
                step, done = len(run["sent"]), len(run["ended"])
                version = K * (max(0, step - S) // K)
                if step >= num_steps or clock < run["start"] or step > done + lookahead:
                    continue
                if version in run["durable"]:
                    last = run["ended"][-1] if done else run["start"]
                    began = max(last, run["sent"][done]) if step > done else last
                    able.append((began + (step - done) * busy, number, version))
            if able:
                _, number, version = min(able)
                load = int(costs.load_seconds) if version != runs[number]["loaded"] else 0
                runs[number]["loaded"] = version
                select = (number, clock + load + int(costs.score_seconds))
        clock += 1
    return [run["ended"] for run in runs]


whole = st.integers(1, 5)


# An upload that three pushes wait for, which few of the random cases have.
@example(train=1, score=1, snapshot=1, upload=5, load=0, deliver=0, layout=Layout(staleness=4), runs=1)
@settings(fixed, max_examples=400)
@given(
    train=whole, score=whole, snapshot=st.integers(0, 2), upload=whole, load=st.integers(0, 2),
    deliver=st.integers(0, 2), layout=layouts, runs=st.integers(1, 3),
)  # fmt: skip
def test_tiny_cases_end_every_step_when_a_ticking_clock_says(
    train: int, score: int, snapshot: int, upload: int, load: int, deliver: int, layout: Layout, runs: int
) -> None:
    costs = Costs(
        1, 2, train * runs, 2 * train, score, score,
        snapshot_seconds=snapshot * runs * layout.push_every, upload_seconds=upload, load_seconds=load,
        deliver_seconds=deliver,
    )  # fmt: skip
    layout = Layout(runs=runs, staleness=layout.staleness, push_every=layout.push_every, lookahead=layout.lookahead)
    played = simulate(costs, layout, Noise(), num_steps=12, seed=0)
    assert played.ended.tolist() == ticked(costs, layout, 12)


@pytest.mark.parametrize(("staleness", "push_every", "runs"), [(0, 1, 1), (1, 1, 3), (1, 4, 3), (3, 2, 2)])
def test_under_noise_no_work_is_lost_and_nothing_happens_before_what_it_waits_for(
    staleness: int, push_every: int, runs: int
) -> None:
    costs = Costs(
        64, 128, 192.0, 384.0, 100.0, 100.0,
        serial_seconds=5.0, snapshot_seconds=2.0, upload_seconds=30.0, load_seconds=3.0, deliver_seconds=1.0,
    )  # fmt: skip
    layout = Layout(trainers=4, selectors=2, runs=runs, staleness=staleness, push_every=push_every)
    num_steps = 150
    played = simulate(costs, layout, NOISY, num_steps=num_steps, seed=1)
    # The server does one thing at a time, and every selection once.
    jobs = np.sort(np.stack([played.select_began.ravel(), played.select_ended.ravel()], axis=1), axis=0)
    assert len(jobs) == runs * num_steps
    assert (jobs[1:, 0] >= jobs[:-1, 1]).all()
    # Training, standing still and snapshots make up the whole time.
    trained, still = played.trained - played.train_began, played.train_began - played.began
    assert (still >= 0).all()
    whole = played.ended[:, -1] - played.began[:, 0]
    assert (trained + still + (played.ended - played.trained)).sum(axis=1) == pytest.approx(whole)
    assert np.allclose(trained[0], played.rank_seconds.max(axis=1))
    # Every step waits for its selection, and every selection for its weights and its ranks.
    timing = layout.timing(num_steps)
    assert (played.train_began >= played.select_ended).all()
    for step in range(num_steps):
        if version := timing.weights_version(step):
            assert (played.upload_ended[:, version - 1] <= played.select_began[:, step]).all()
        if step > timing.lookahead:
            assert (played.ended[:, step - timing.lookahead - 1] <= played.select_began[:, step]).all()


def test_simulated_trainers_hold_as_many_snapshots_as_real_ones() -> None:
    assert simulate_module.MAX_UNDER_WAY == push.MAX_UNDER_WAY


def test_a_selector_that_is_infinitely_fast_leaves_the_slowest_ranks_as_the_only_delay() -> None:
    costs = Costs(64, 128, 192.0, 384.0, 0.0, 0.0)
    played = simulate(costs, Layout(trainers=8), NOISY, num_steps=50, seed=3)
    assert np.diff(played.ended[0]) == pytest.approx(played.rank_seconds.max(axis=1)[1:])


def test_trainers_that_are_infinitely_fast_leave_the_selections_as_the_only_delay() -> None:
    costs = Costs(64, 128, 1e-9, 1e-9, 10.0, 10.0)
    played = simulate(costs, Layout(runs=3), NOISY, num_steps=50, seed=3)
    assert played.ended.max() == pytest.approx((played.select_ended - played.select_began).sum(), rel=1e-6)


def test_noise_has_the_mean_and_the_spread_that_it_says() -> None:
    random = np.random.default_rng(0)
    jittered = factors(Noise(jitter=0.3), random, 400, 1000)
    assert jittered.mean() == pytest.approx(1, abs=0.002)
    assert jittered.std() == pytest.approx(0.3, abs=0.005)
    slowed = factors(Noise(straggler_share=0.1, straggler_slowdown=4), random, 400, 1000)
    assert (slowed == 4).mean() == pytest.approx(0.1, abs=0.003)
    assert set(np.unique(slowed)) == {1.0, 4.0}


def test_a_runs_training_times_are_the_same_whatever_the_server() -> None:
    slow, fast = (simulate(PAPER, Layout(4, g, 2), NOISY, num_steps=20, seed=5) for g in (1, 8))
    assert (slow.rank_seconds == fast.rank_seconds).all()
    assert np.allclose(slow.trained - slow.train_began, fast.trained - fast.train_began)
    other = simulate(PAPER, Layout(4, 1, 2), NOISY, num_steps=20, seed=6)
    assert not (slow.rank_seconds == other.rank_seconds).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jitter": -0.1}, "jitter is -0.1"),
        ({"straggler_share": 1.1}, "straggler_share is 1.1"),
        ({"straggler_slowdown": 0.5}, "straggler_slowdown is 0.5"),
    ],
)
def test_noise_that_can_not_be_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Noise(**change)
