"""Steps prepared one ahead: the same as those that aren't, in order, and their errors where they belong."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from shared.dataset import Store
from shared.errors import DataError, SubbatchError
from shared.partition import partition
from shared.records import PhaseTimes, Selection
from tests.support import World
from train_client.loader import Step, SubBatchLoader
from train_client.ranks import Ranks
from train_client.read_ahead import ReadAhead
from train_client.received import Received

NUM_STEPS = 4
LONG_AGO, FAR_OFF = 0, 1 << 62


class MadeUpSource:
    """Random rows for each step; step 2's lengths are another store's where `is_wrong`."""

    def __init__(self, store: Store, *, reads_ahead: bool, is_wrong: bool = False, arrived: int = LONG_AGO) -> None:
        self.reads_ahead = reads_ahead
        self._store, self._is_wrong, self._arrived = store, is_wrong, arrived
        self.threads: set[str] = set()
        self.is_closed = False

    def selection(self, step: int) -> Received:
        self.threads.add(threading.current_thread().name)
        index = np.random.default_rng(step).choice(len(self._store), 7, replace=False).astype(np.int64)
        selection = Selection(
            run="run",
            step=step,
            weights_version=0,
            large_batch_size=14,
            index=index,
            source=self._store.sources_of(index),
            weight=np.arange(7, dtype=np.float32),
            gain=np.zeros(7, dtype=np.float32),
            num_tokens=self._store.lengths(index) + np.int32(self._is_wrong and step == 2),
        )
        return Received(selection, PhaseTimes(), num_bytes=3, arrived_unix_ns=self._arrived)

    def instead(self, step: int) -> None: ...

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def load(world: World) -> Iterator[Callable[..., tuple[MadeUpSource, SubBatchLoader]]]:
    store, started = Store.open(world.store), []

    def start(**settings: object) -> tuple[MadeUpSource, SubBatchLoader]:
        source = MadeUpSource(store, **settings)  # type: ignore[arg-type]
        loader = SubBatchLoader(source, store, Ranks(1, 2), micro_batch_size=2, device=torch.device("cpu"))  # type: ignore[arg-type]
        loader.start(0, NUM_STEPS)
        started.append(loader)
        return source, loader

    yield start
    for loader in started:
        loader.close()


def content(step: Step) -> list[object]:
    tensors = [[t.tolist() for t in batch.tensors()] for batch in step.micro_batches]
    places = [(batch.step, batch.number, batch.is_last) for batch in step.micro_batches]
    return [step.received.selection.index.tolist(), tensors, places, step.rows, step.num_tokens]


def test_steps_are_the_same_whether_or_not_they_are_prepared_ahead(
    load: Callable[..., tuple[MadeUpSource, SubBatchLoader]],
) -> None:
    (ahead, reading), (between, waiting) = load(reads_ahead=True), load(reads_ahead=False)
    for step in range(NUM_STEPS):
        assert content(reading.step(step)) == content(waiting.step(step))
    assert ahead.threads == {"subbatch-prepare"}
    assert between.threads == {threading.current_thread().name}


def test_steps_are_the_same_whether_rows_come_from_a_store_or_with_the_selection(world: World) -> None:
    class WithRows(MadeUpSource):
        def selection(self, step: int) -> Received:
            received = super().selection(step)
            lengths = received.selection.num_tokens
            mine = [int(p) for batch in partition(lengths, world_size=2, micro_batch_size=2)[1] for p in batch.position]
            numbers = received.selection.index[mine]
            return dataclasses.replace(received, rows=dict(zip(mine, self._store.rows(numbers), strict=True)))

    store = Store.open(world.store)
    settings = {"micro_batch_size": 2, "device": torch.device("cpu")}
    holding = SubBatchLoader(MadeUpSource(store, reads_ahead=False), store, Ranks(1, 2), **settings)  # type: ignore[arg-type]
    without = SubBatchLoader(WithRows(store, reads_ahead=False), None, Ranks(1, 2), **settings)  # type: ignore[arg-type]
    for step in range(NUM_STEPS):
        assert content(without.step(step)) == content(holding.step(step))


def test_rows_of_another_store_are_an_error_of_their_own_step_not_of_the_one_before(
    load: Callable[..., tuple[MadeUpSource, SubBatchLoader]],
) -> None:
    _, loader = load(reads_ahead=True, is_wrong=True)
    for step in (0, 1):
        assert {batch.step for batch in loader.step(step).micro_batches} == {step}
    for _ in range(2):
        with pytest.raises(DataError, match="rows of step 2 have other lengths"):
            loader.step(2)


@pytest.mark.parametrize("reads_ahead", [True, False])
def test_standing_still_is_waiting_until_the_selection_is_there_and_preparing_afterwards(
    load: Callable[..., tuple[MadeUpSource, SubBatchLoader]], reads_ahead: bool
) -> None:
    _, loader = load(reads_ahead=reads_ahead, arrived=LONG_AGO)
    step = loader.step(0)
    assert step.wait_seconds == 0.0
    assert step.prepare_seconds > 0.0
    _, loader = load(reads_ahead=reads_ahead, arrived=FAR_OFF)
    before = time.perf_counter()
    step = loader.step(0)
    assert 0.0 < step.wait_seconds <= time.perf_counter() - before
    assert step.prepare_seconds == 0.0


def test_closing_closes_the_source_and_ends_the_thread(
    load: Callable[..., tuple[MadeUpSource, SubBatchLoader]],
) -> None:
    source, loader = load(reads_ahead=True)
    loader.step(0)
    loader.close()
    assert source.is_closed
    assert "subbatch-prepare" not in {thread.name for thread in threading.enumerate()}


def test_nothing_is_made_before_the_one_before_it_is_taken() -> None:
    began = [threading.Event() for _ in range(4)]
    taken: list[int] = []

    def make(number: int) -> int:
        began[number].set()
        return number

    ahead = ReadAhead(make, range(4), name="test")
    for number in range(3):
        assert began[number].wait(30)
        assert not began[number + 1].wait(0.1)
        taken.append(ahead.take())
    taken.append(ahead.take())
    ahead.join()
    assert taken == [0, 1, 2, 3]


def test_an_error_ends_the_series_and_is_raised_to_whoever_takes() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise SubbatchError("the second")
        return number

    ahead = ReadAhead(make, range(4), name="test")
    assert ahead.take() == 0
    for _ in range(2):
        with pytest.raises(SubbatchError, match="the second"):
            ahead.take()
    ahead.join()


def test_a_series_that_is_stopped_ends_whatever_has_not_been_taken() -> None:
    ahead = ReadAhead(lambda number: number, range(4), name="test")
    ahead.stop()
    ahead.join()
