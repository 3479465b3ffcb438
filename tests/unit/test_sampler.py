"""Large batches: who is drawn how often, and that a draw is arithmetic on (seed, step).

Statistics use fixed seeds, so they either hold or don't; bounds are those that chance passes once in a thousand times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.random import Purpose, stream
from shared.sampler import draw_large_batch, source_probabilities
from shared.selection_config import SelectionConfig

fixed = settings(deadline=None, derandomize=True)

# Upper 0.1 % points of the chi-square distribution, by degrees of freedom.
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 15: 37.70}


def config(size: int, sampling: str = "inverse_source", temperature: float = 1.0) -> SelectionConfig:
    return SelectionConfig.model_validate(
        {"large_batch_size": size, "sub_batch_size": 1, "sampling": sampling, "temperature": temperature}
    )


def source_of(rows: list[int], batch: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(rows)), rows)[batch]


def source_counts(rows: list[int], selection: SelectionConfig, steps: int, seed: int = 7) -> np.ndarray:
    drawn = np.concatenate([draw_large_batch(rows, selection, seed=seed, step=t) for t in range(steps)])
    return np.bincount(source_of(rows, drawn), minlength=len(rows))


def chi_square(observed: np.ndarray, share: np.ndarray) -> float:
    expected = observed.sum() * share
    return float(((observed - expected) ** 2 / expected).sum())


def test_sources_are_equally_likely_though_one_is_a_thousand_times_another() -> None:
    rows = [64, 640, 6_400, 64_000]
    counts = source_counts(rows, config(32), steps=400)
    assert chi_square(counts, np.full(4, 0.25)) < CHI_SQUARE[3]


def test_rows_of_one_source_are_equally_likely() -> None:
    rows = [5, 16, 5_000]
    drawn = np.concatenate([draw_large_batch(rows, config(9), seed=1, step=t) for t in range(1_500)])
    mine = drawn[(drawn >= 5) & (drawn < 21)] - 5
    assert chi_square(np.bincount(mine, minlength=16), np.full(16, 1 / 16)) < CHI_SQUARE[15]


def test_uniform_sampling_gives_each_source_its_share_of_the_rows() -> None:
    rows = [50, 500, 5_000]
    counts = source_counts(rows, config(32, "uniform"), steps=400)
    assert chi_square(counts, np.array(rows) / sum(rows)) < CHI_SQUARE[2]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_temperature_lies_between_rows_and_sources(temperature: float) -> None:
    rows = [100, 1_000, 10_000]
    mass = [n ** (1 / temperature) for n in rows]
    counts = source_counts(rows, config(32, "temperature", temperature), steps=400)
    assert chi_square(counts, np.array(mass) / sum(mass)) < CHI_SQUARE[2]


def test_a_high_temperature_draws_sources_equally() -> None:
    rows = [10, 10_000]
    probabilities = source_probabilities(rows, config(2, "temperature", 1e6))
    np.testing.assert_allclose(probabilities, [0.5, 0.5], atol=1e-5)


def test_sources_without_rows_are_never_drawn_and_take_no_share() -> None:
    rows = [0, 500, 0, 5_000, 0]
    for sampling in ("inverse_source", "temperature", "uniform"):
        counts = source_counts(rows, config(16, sampling), steps=100)
        assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert chi_square(source_counts(rows, config(16), steps=300)[[1, 3]], np.full(2, 0.5)) < CHI_SQUARE[1]


def test_a_source_that_runs_out_gives_all_its_rows_and_the_others_share_the_rest_equally() -> None:
    rows = [3, 1, 4_000, 40_000]
    rest = np.zeros(2, dtype=np.int64)
    for step in range(100):
        sources = source_of(rows, draw_large_batch(rows, config(100), seed=5, step=step))
        counts = np.bincount(sources, minlength=4)
        assert counts[:2].tolist() == [3, 1]
        rest += counts[2:]
    assert rest.sum() == 100 * 96
    assert chi_square(rest, np.full(2, 0.5)) < CHI_SQUARE[1]


def test_sources_are_in_random_order_within_a_batch() -> None:
    """The first rows in draw order are a sub-batch of their own: the random arm, and what trains without a server."""
    rows = [200, 2_000, 20_000]
    selection = config(32)
    first = np.concatenate([draw_large_batch(rows, selection, seed=2, step=t)[:8] for t in range(800)])
    assert chi_square(np.bincount(source_of(rows, first), minlength=3), np.full(3, 1 / 3)) < CHI_SQUARE[2]


@fixed
@given(
    rows=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any),
    share=st.floats(0, 1),
    sampling=st.sampled_from(["inverse_source", "uniform", "temperature"]),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**40),
)
def test_a_large_batch_never_repeats_a_row_even_when_it_is_all_the_data(
    rows: list[int], share: float, sampling: str, seed: int, step: int
) -> None:
    size = max(1, round(share * sum(rows)))
    batch = draw_large_batch(rows, config(size, sampling, 3.0), seed=seed, step=step)
    assert batch.dtype == np.int64
    assert batch.shape == (size,)
    assert len(set(batch.tolist())) == size
    assert 0 <= batch.min() <= batch.max() < sum(rows)


@pytest.mark.parametrize("sampling", ["inverse_source", "uniform", "temperature"])
def test_a_large_batch_as_large_as_the_data_is_the_data(sampling: str) -> None:
    rows = [1, 7, 0, 20, 1, 1]
    batch = draw_large_batch(rows, config(30, sampling), seed=0, step=3)
    assert sorted(batch.tolist()) == list(range(30))
    assert batch.tolist() != list(range(30))


def test_sources_of_one_row_are_drawn_like_any_other() -> None:
    rows = [1] * 5
    first = [int(draw_large_batch(rows, config(2), seed=9, step=t)[0]) for t in range(1_000)]
    assert chi_square(np.bincount(first, minlength=5), np.full(5, 0.2)) < CHI_SQUARE[4]


@pytest.mark.parametrize(("rows", "size"), [([3, 4], 8), ([0, 0], 1), ([], 2)])
def test_a_large_batch_larger_than_the_data_is_refused_with_both_sizes(rows: list[int], size: int) -> None:
    with pytest.raises(ConfigError, match=rf"large_batch_size {size} is larger than the data, {sum(rows)} rows"):
        draw_large_batch(rows, config(size), seed=0, step=0)


DRAWS = """
import json, sys
from shared.selection_config import SelectionConfig
from shared.sampler import draw_large_batch
rows, steps = json.loads(sys.argv[1])
selection = SelectionConfig(large_batch_size=40, sub_batch_size=1)
print(json.dumps([draw_large_batch(rows, selection, seed=11, step=t).tolist() for t in steps]))
"""


def test_another_process_draws_the_same_in_any_order_of_steps() -> None:
    rows, steps = [7, 90, 4_000], [5, 0, 3, 2**40]
    here = [draw_large_batch(rows, config(40), seed=11, step=t).tolist() for t in sorted(steps)]
    there = subprocess.run(
        [sys.executable, "-c", DRAWS, json.dumps([rows, steps])],
        env={**os.environ, "PYTHONHASHSEED": "random"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(there.stdout) == [here[sorted(steps).index(t)] for t in steps]


def test_draws_differ_between_steps_and_between_seeds() -> None:
    rows = [100, 1_000]
    draws = {tuple(draw_large_batch(rows, config(8), seed=s, step=t).tolist()) for s in range(30) for t in range(30)}
    assert len(draws) == 900


def test_a_draw_is_the_one_it_has_always_been() -> None:
    """Pinned: a release, or a NumPy, that draws otherwise would change every run that is resumed under it."""
    rows = [3, 40, 0, 5_000, 600]
    pinned = {
        "inverse_source": [1833, 6, 299, 33, 0, 2, 2664, 5419, 1, 2925, 32, 24],
        "uniform": [592, 257, 1799, 4007, 4600, 2820, 4672, 3111, 1644, 1408, 507, 130],
        "temperature": [3875, 4514, 2345, 4166, 24, 2725, 569, 5271, 3013, 2823, 4600, 3792],
    }
    for sampling, batch in pinned.items():
        assert draw_large_batch(rows, config(12, sampling, 2.0), seed=2024, step=17).tolist() == batch
    # Here the two small sources run out.
    ran_out = [1, 0, 25, 24, 7, 31, 4, 34, 6, 46, 16, 35, 48, 40, 27, 3, 8, 32, 5, 2]
    assert draw_large_batch([2, 7, 40], config(20), seed=2024, step=6).tolist() == ran_out


@pytest.mark.parametrize("sampling", ["inverse_source", "uniform", "temperature"])
def test_a_draw_from_ten_million_rows_needs_memory_for_the_batch_alone(sampling: str) -> None:
    rows = [1_000 * 3**i for i in range(9)] + [1] * 4
    rows.append(10_000_000 - sum(rows))
    assert len(rows) == 14
    selection = config(4_096, sampling, 2.0)
    tracemalloc.start()
    batch = draw_large_batch(rows, selection, seed=0, step=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(batch.tolist())) == 4_096
    assert peak < 2 * 2**20, "more than a fifth of a byte for each row"


# ---- the generator below every draw


def philox_4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """The published Philox-4x64-10 (Salmon et al. 2011), on Python's integers."""
    mask = 2**64 - 1
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k0, second & mask, (first >> 64) ^ c[3] ^ k1, first & mask]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return c


def test_the_reference_generator_gives_the_published_numbers() -> None:
    # Random123's known-answer test for philox4x64-10 with counter and key zero.
    assert philox_4x64_10([0, 0, 0, 0], [0, 0]) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


@pytest.mark.parametrize("purpose", list(Purpose))
def test_a_stream_is_philox_at_its_address(purpose: Purpose) -> None:
    seed, step, index = 2**62 + 12345, 678, 9
    words = stream(seed, purpose, step=step, index=index).bit_generator.random_raw(12).tolist()
    # NumPy counts up before each block of four words.
    blocks = [philox_4x64_10([block, 0, index, step], [seed, int(purpose)]) for block in (1, 2, 3)]
    assert words == [word for block in blocks for word in block]


def test_streams_at_different_addresses_share_no_number() -> None:
    addresses = [(s, p, t, i) for s in range(3) for p in Purpose for t in range(3) for i in range(3)]
    words = [w for s, p, t, i in addresses for w in stream(s, p, step=t, index=i).bit_generator.random_raw(8).tolist()]
    assert len(set(words)) == len(words)
