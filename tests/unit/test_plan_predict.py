"""What a plan predicts: against a run played event by event, formulas written by hand, and limits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from train_client.plan.costs import Costs, Layout
from train_client.plan.predict import break_even_price, predict, predict_arms, selectors_needed

fixed = settings(deadline=None, derandomize=True, max_examples=150)
seconds = st.one_of(st.just(0.0), st.floats(0.01, 3.0))
layouts = st.builds(
    lambda staleness, push_every, ahead: Layout(
        staleness=staleness, push_every=push_every, lookahead=None if ahead is None else staleness + ahead
    ),
    st.integers(0, 5),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(0, 6)),
)
costs = st.builds(
    lambda train, score, **others: Costs(
        sub_batch_size=1,
        large_batch_size=2,
        train_seconds=train,
        train_large_seconds=2 * train,
        score_seconds=score,
        inline_score_seconds=score,
        **others,
    ),
    train=st.floats(0.01, 3.0),
    score=seconds,
    fixed_seconds=seconds,
    serial_seconds=seconds,
    snapshot_seconds=seconds,
    upload_seconds=seconds,
    load_seconds=seconds,
    deliver_seconds=seconds,
)


def played(costs: Costs, layout: Layout, num_steps: int = 1200) -> float:
    """Mean step time of one run of which every event is written down, long after its beginning."""
    S, K = layout.staleness, layout.push_every
    lookahead = S + K - 1 if layout.lookahead is None else layout.lookahead
    ended, selected, durable = [0.0], [], {0: 0.0}
    for t in range(num_steps):
        w = K * (max(0, t - S) // K)
        progress = ended[t - lookahead] if t > lookahead else 0.0
        begin = max(selected[-1] if selected else 0.0, durable[w], progress)
        loads = t > 0 and w != K * (max(0, t - 1 - S) // K)
        selected.append(begin + costs.serial_seconds + costs.score_seconds + (costs.load_seconds if loads else 0.0))
        end = max(ended[-1], selected[-1] + costs.deliver_seconds) + costs.train_seconds + costs.fixed_seconds
        if (t + 1) % K == 0:
            end = max(end, durable.get(t + 1 - 2 * K, 0.0)) + costs.snapshot_seconds
            durable[t + 1] = max(end, durable[t + 1 - K] if t + 1 > K else 0.0) + costs.upload_seconds
        ended.append(end)
    # Loops span at most S + K + lookahead + 1 steps, up to 17; a whole number of each possible period isn't needed,
    # since the deviation from the mean is bounded and shrinks with the window.
    window = 720
    return (ended[-1] - ended[-1 - window]) / window


@fixed
@given(costs, layouts)
def test_the_predicted_pace_is_that_of_a_run_played_event_by_event(costs: Costs, layout: Layout) -> None:
    prediction = predict(costs, layout)
    assert prediction.step_seconds == pytest.approx(played(costs, layout), rel=1e-6)
    assert sum(prediction.pieces.values()) == pytest.approx(prediction.step_seconds)


@fixed
@given(costs, st.integers(0, 4), st.integers(0, 4))
def test_pushing_every_step_the_pace_is_the_slowest_of_five_loops(costs: Costs, S: int, ahead: int) -> None:
    train = costs.train_seconds + costs.fixed_seconds + costs.snapshot_seconds
    select = costs.load_seconds + costs.score_seconds / 2 + costs.serial_seconds
    both = train + select + costs.deliver_seconds
    loops = {
        "trainers": train,
        "selector": select,
        "upload": costs.upload_seconds,
        "round trip": (both + costs.upload_seconds) / (S + 1),
        "lookahead": both / (S + ahead + 1),
    }
    prediction = predict(costs, Layout(selectors=2, staleness=S, lookahead=S + ahead))
    assert prediction.step_seconds == pytest.approx(max(loops.values()))
    assert loops[prediction.bottleneck] == pytest.approx(prediction.step_seconds)
    assert prediction.wait_fraction == pytest.approx(1 - train / max(loops.values()))


PAPER = Costs(
    sub_batch_size=64,
    large_batch_size=128,
    train_seconds=192.0,
    train_large_seconds=384.0,
    score_seconds=128.0,
    inline_score_seconds=128.0,
)


def test_with_a_forward_of_one_and_a_backward_of_two_the_ceilings_are_those_of_the_design() -> None:
    arms = predict_arms(PAPER, Layout())
    assert {name: arm.step_seconds for name, arm in arms.items()} == {
        "floor": 192,
        "large_batch": 384,
        "inline": 320,
        "staleness_0": 320,
        "staleness_1": 192,
        "staleness_2": 192,
    }
    assert arms["staleness_1"].device_seconds == 384
    assert arms["staleness_1"].selector_fraction == pytest.approx(2 / 3)


def test_one_selector_device_feeds_one_and_a_half_trainers_and_two_feed_three() -> None:
    assert [selectors_needed(PAPER, Layout(trainers=n)) for n in (1, 2, 4)] == [1, 2, 3]
    assert predict(PAPER, Layout(trainers=2)).step_seconds == 128


def test_more_selectors_do_not_help_where_something_else_is_in_the_way() -> None:
    serial = Costs(64, 128, 192.0, 384.0, 128.0, 128.0, serial_seconds=200.0)
    upload = Costs(64, 128, 192.0, 384.0, 128.0, 128.0, upload_seconds=200.0)
    assert selectors_needed(serial, Layout()) is None
    assert selectors_needed(upload, Layout()) is None
    assert selectors_needed(upload, Layout(staleness=2)) is None
    assert selectors_needed(upload, Layout(push_every=2)) is None
    assert selectors_needed(upload, Layout(staleness=2, push_every=2)) == 1
    assert selectors_needed(PAPER, Layout(staleness=0)) is None


def test_scoring_is_dealt_in_whole_micro_batches() -> None:
    costs = Costs(64, 128, 192.0, 384.0, 128.0, 128.0, score_parts=3)
    assert [costs.select(devices) for devices in (1, 2, 3, 9)] == pytest.approx([128, 128 * 2 / 3, 128 / 3, 128 / 3])


def test_at_the_break_even_price_a_server_costs_what_selection_inline_does() -> None:
    layout = Layout(trainers=4, selectors=3)
    price = break_even_price(PAPER, layout)
    at_price = Layout(trainers=4, selectors=3, selector_price=price)
    assert predict(PAPER, at_price).device_seconds == pytest.approx(
        predict_arms(PAPER, layout)["inline"].device_seconds
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upload_seconds": -1.0}, "upload_seconds is -1.0"),
        ({"score_seconds": float("nan")}, "score_seconds is nan"),
        ({"train_seconds": 0.0}, "train_seconds is 0.0"),
        ({"sub_batch_size": 129}, "129 rows is to be chosen from 128"),
        ({"score_parts": 129}, "score_parts is 129"),
    ],
)
def test_costs_that_can_not_be_are_refused(change: dict[str, float], message: str) -> None:
    good = {"sub_batch_size": 64, "large_batch_size": 128, "train_seconds": 1.0, "train_large_seconds": 2.0}
    good |= {"score_seconds": 1.0, "inline_score_seconds": 1.0}
    with pytest.raises(ConfigError, match=message):
        Costs(**(good | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainers": 0}, "trainers is 0"),
        ({"staleness": -1}, "staleness is -1"),
        ({"staleness": 3, "lookahead": 2}, "lookahead 2 is less than staleness 3"),
        ({"selector_price": -0.5}, "selector_price is -0.5"),
    ],
)
def test_layouts_that_can_not_be_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Layout(**change)
