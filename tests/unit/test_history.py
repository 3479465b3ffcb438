import numpy as np
import pytest

from selector_server.history import History
from selector_server.picks.record import Features, Picks
from shared.errors import SelectionError, WireError
from shared.selection_config import SelectionConfig


def batch(seed, rows=6, width=4):
    return np.random.default_rng(seed).standard_normal((rows, width))


def features(values):
    return Features(values, "l2", np.linalg.norm(values, axis=1))


def picks_of(index, weight):
    return Picks(np.array(index), np.zeros(len(index)), np.array(weight))


def test_what_was_left_out_comes_back_decayed_until_it_is_made_up_for():
    selection = SelectionConfig(pick="matching_pursuit", feedback=0.5, feedback_decay=0.8)
    stored, expected = b"", np.zeros(4)
    for seed in range(4):
        values, picks = batch(seed), picks_of([seed, 5], [2.0, 1.5])
        history = History.read(stored, selection)
        np.testing.assert_allclose(
            history.target(features(values)), values.sum(axis=0) + 0.5 * expected, rtol=1e-5, atol=1e-6
        )
        expected = 0.8 * expected + values.sum(axis=0) - 2.0 * values[seed] - 1.5 * values[5]
        stored = history.after(features(values), picks, c=None, counts=np.ones(6, dtype=bool))
    assert len(stored) == 4 * 4


@pytest.mark.parametrize("changes", [{}, {"pick": "cube"}, {"pick": "matching_pursuit", "feedback": 0.0}])
def test_a_run_without_history_stores_nothing_and_aims_at_its_batch(changes):
    selection = SelectionConfig(**changes)
    assert not selection.keeps_history
    history, values = History.read(b"", selection), batch(0)
    np.testing.assert_array_equal(history.target(features(values)), values.sum(axis=0))
    assert history.after(features(values), picks_of([1], [6.0]), c=values, counts=np.ones(6, dtype=bool)) == b""


def test_moments_learn_from_the_rows_that_count_alone():
    selection = SelectionConfig(adam_features=True, num_probes=4)
    values, counts = batch(1), np.array([True, False, True, True, False, True])
    stored = History.read(b"", selection).after(features(values), picks_of([1], [6.0]), c=values, counts=counts)
    after = History.read(stored, selection).adam
    assert after.steps == 1
    np.testing.assert_allclose(after.first, 0.1 * values[counts].mean(axis=0) / 4)


def test_a_history_of_another_width_is_refused():
    selection = SelectionConfig(pick="matching_pursuit")
    history = History.read(np.ones(3, dtype="<f4").tobytes(), selection)
    with pytest.raises(SelectionError, match=r"history is of features of 3 values, this step's have 4: .*start"):
        history.target(features(batch(0)))


def test_a_history_that_is_no_history_is_refused():
    with pytest.raises(WireError, match="5 bytes"):
        History.read(b"12345", SelectionConfig(pick="matching_pursuit"))
    with pytest.raises(WireError, match="5 bytes"):
        History.read(b"12345", SelectionConfig(adam_features=True))
