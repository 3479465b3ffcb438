import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selector_server.adam import AdamState
from selector_server.scoring.probes import Probes
from shared.errors import WireError
from shared.selection_config import SelectionConfig

ADAM = SelectionConfig(adam_features=True)


def estimates(c, probes):
    """Every row's whole estimate, [b, coordinates]."""
    return c @ np.stack([probes.draw(j).ravel() for j in range(probes.count)]).astype(np.float64) / probes.count


def materialised(past, c, probes, selection):
    """Adam on whole estimates: each row of `c` alone, on top of moments as large as the weight."""
    beta1, beta2 = selection.adam_beta1, selection.adam_beta2
    first, second = np.zeros(probes.size), np.zeros(probes.size)
    for rows in [estimates(step, probes) for step in past]:
        first = np.mean([beta1 * first + (1 - beta1) * row for row in rows], axis=0)
        second = np.mean([beta2 * second + (1 - beta2) * row**2 for row in rows], axis=0)
    found = []
    for row in estimates(c, probes):
        moment = (beta1 * first + (1 - beta1) * row) / (1 - beta1 ** (len(past) + 1))
        square = (beta2 * second + (1 - beta2) * row**2) / (1 - beta2 ** (len(past) + 1))
        found.append(moment / (np.sqrt(square) + selection.adam_epsilon))
    return np.array(found)


def after(past, selection=ADAM):
    state = AdamState.initial(past[0].shape[1])
    for c in past:
        state = state.updated(c, selection)
    return state


@pytest.mark.parametrize("epsilon", [1e-8, 0.3])
@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_estimates_are_normalised_as_adam_with_moments_as_large_as_the_weight_would(steps, count, epsilon):
    selection = ADAM.model_copy(update={"adam_epsilon": epsilon})
    probes, numbers = Probes((6, 7), seed=3, step=0, count=count), np.random.default_rng(count)
    past = [numbers.standard_normal((numbers.integers(1, 9), count)) + 0.5 for _ in range(steps)]
    c = numbers.standard_normal((8, count))
    state = after(past, selection) if past else AdamState.initial(count)
    z = next(probes.blocks(probes.size))
    expected = materialised(past, c, probes, selection)
    np.testing.assert_allclose(state.normalised(c, z, selection), expected, rtol=1e-9, atol=1e-12)
    assert state.steps == steps


def test_the_first_step_of_plain_adam_is_the_sign_of_the_gradient():
    probes, c = Probes((50,), seed=0, step=0, count=2), np.array([[1.0, 2.0], [-3.0, 0.5]])
    found = AdamState.initial(2).normalised(c, next(probes.blocks(50)), ADAM)
    np.testing.assert_allclose(found, np.sign(estimates(c, probes)), atol=1e-5)


def test_a_step_without_rows_that_count_leaves_the_history_alone():
    state = after([np.array([[1.0, 2.0]])])
    assert state.updated(np.empty((0, 2)), ADAM).to_bytes() == state.to_bytes()


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 7), b=st.integers(1, 9), steps=st.integers(0, 4), scale=st.integers(-150, 150))
def test_a_history_comes_back_bit_for_bit_and_goes_on_alike(n, b, steps, scale):
    numbers = np.random.default_rng(n * 100 + b)
    state = AdamState.initial(n)
    for _ in range(steps):
        state = state.updated(numbers.standard_normal((b, n)) * 10.0**scale, ADAM)
    again = AdamState.from_bytes(state.to_bytes(), num_probes=n)
    assert again.steps == state.steps == steps
    np.testing.assert_array_equal(again.first, state.first)
    np.testing.assert_array_equal(again.second, state.second)
    c = numbers.standard_normal((b, n))
    assert again.updated(c, ADAM).to_bytes() == state.updated(c, ADAM).to_bytes()


def with_numbers(state, **changes):
    numbers = np.frombuffer(state.to_bytes(), dtype="<f8").copy()
    for position, value in changes.items():
        numbers[int(position[1:])] = value
    return numbers.tobytes()


def test_bytes_that_are_no_history_are_refused_with_what_they_say():
    state = after([np.array([[1.0, 2.0], [0.5, -1.0]])] * 3)
    good = state.to_bytes()
    assert len(good) == 8 * 6  # steps, two of the first moment, three of the second
    for data, count, message in [
        (good, 3, "48 bytes isn't one of 3 probes, which takes 80"),
        (good[:-1], 2, "47 bytes isn't one of 2 probes, which takes 48"),
        (b"", 1, "0 bytes"),
        (with_numbers(state, _0=-1.0), 2, "says -1.0 steps"),
        (with_numbers(state, _0=2.5), 2, "says 2.5 steps"),
        (with_numbers(state, _0=np.nan), 2, "says nan steps"),
        (with_numbers(state, _2=np.inf), 2, "to inf"),
        (with_numbers(state, _4=100.0), 2, "eigenvalues from -"),
        (with_numbers(state, _3=-1.0), 2, "eigenvalues from -"),
        (with_numbers(state, _0=0.0), 2, "of 0 steps holds a second moment"),
    ]:
        with pytest.raises(WireError, match=message):
            AdamState.from_bytes(data, num_probes=count)
