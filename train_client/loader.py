"""The micro-batches of one rank: selections, in order, turned into padded tensors with the scale of each row's loss.

Where the source can be read ahead, a step is received, divided, padded and copied to the device in the background while
the step before it trains. The cursor belongs to the plugin and counts trained steps only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.dataset import Store
from shared.errors import DataError
from shared.partition import MicroBatch, micro_batches_per_step, partition
from shared.records import Row, Selection
from shared.rowloss import collate
from train_client.ranks import Ranks
from train_client.read_ahead import ReadAhead
from train_client.received import Received
from train_client.source import SelectionSource
from train_client.staging import Staged, Staging


@dataclass(frozen=True, eq=False)
class SubBatch(Mapping[str, Tensor]):
    """One micro-batch of this rank; as a mapping it is the model's input, so that `model(**batch)` works.

    It holds no labels under the model's own name: the loss comes from `SubbatchPlugin.loss`, which knows the weights.

    Attributes:
        inputs: `input_ids` and `attention_mask`, int64 [m, T], padded on the right.
        row_labels: Tokens that have a loss, -100 elsewhere, int64 [m, T].
        scale: What each row's loss is multiplied with before summing, float32 [m]; 0 for rows that fill up.
        step: The step it belongs to.
        number: Its number within the step, from 0.
        is_last: Whether the optimizer steps after it.
    """

    inputs: Mapping[str, Tensor]
    row_labels: Tensor
    scale: Tensor
    step: int
    number: int
    is_last: bool

    def __getitem__(self, key: str) -> Tensor:
        return self.inputs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def tensors(self) -> list[Tensor]:
        """Everything it has on the device."""
        return [*self.inputs.values(), self.row_labels, self.scale]


@dataclass(frozen=True, eq=False)
class Step:
    """One step's work of this rank, and when and what it waited for.

    Attributes:
        received: The selection as it arrived.
        micro_batches: In the order they are to run.
        rows: This rank's rows, numbers in the store, rows that fill up left out.
        num_tokens: Tokens of these rows, padding left out.
        wait_started_ns: When this rank began to wait for the selection, by `time.time_ns`.
        wait_seconds: How long it stood still because the selection hadn't arrived.
        prepare_seconds: How long it stood still after that, because padding and copying weren't done.
    """

    received: Received
    micro_batches: list[SubBatch]
    rows: list[int]
    num_tokens: int
    wait_started_ns: int
    wait_seconds: float
    prepare_seconds: float


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A step before anybody has waited for it."""

    received: Received
    micro_batches: list[SubBatch]
    rows: list[int]
    num_tokens: int
    staged: Staged


class SubBatchLoader:
    """Turns the selections of a source into this rank's steps."""

    def __init__(
        self,
        source: SelectionSource,
        store: Store | None,
        ranks: Ranks,
        *,
        micro_batch_size: int,
        device: torch.device,
    ) -> None:
        """Prepare.

        Args:
            source: Of the selections.
            store: Of the rows; None where they come with the selections.
            ranks: This rank and the others.
            micro_batch_size: Most rows of a forward.
            device: Where tensors go.
        """
        self._source, self._store, self._ranks = source, store, ranks
        self._micro_batch_size = micro_batch_size
        self._staging = Staging(device)
        self._ahead: ReadAhead[_Prepared] | None = None

    def micro_batches_per_step(self, sub_batch_size: int) -> int:
        """How many micro-batches every rank runs in a step."""
        return micro_batches_per_step(
            sub_batch_size, world_size=self._ranks.world_size, micro_batch_size=self._micro_batch_size
        )

    def start(self, first_step: int, num_steps: int) -> None:
        """Begin to prepare steps in the background, one ahead, where the source can be read ahead."""
        if self._source.reads_ahead:
            self._ahead = ReadAhead(self._prepare, range(first_step, num_steps), name="subbatch-prepare")

    def step(self, step: int) -> Step:
        """This rank's share of a step; steps must be asked for in order. Waits until it is prepared.

        Raises:
            SubbatchError: no selection came, or it names rows that this rank's store doesn't hold.
        """
        started_ns, clock = time.time_ns(), time.perf_counter()
        instead = self._source.instead(step)
        prepared = self._ahead.take() if self._ahead else self._prepare(step)
        if instead and not prepared.received.selection.fallback:  # it came when the ranks had agreed to do without
            prepared = self._divide(instead)
        self._staging.hand_over(prepared.staged, [t for batch in prepared.micro_batches for t in batch.tensors()])
        ready = time.perf_counter()
        wait_seconds = min(max(prepared.received.arrived_unix_ns - started_ns, 0) / 1e9, ready - clock)
        return Step(
            received=prepared.received,
            micro_batches=prepared.micro_batches,
            rows=prepared.rows,
            num_tokens=prepared.num_tokens,
            wait_started_ns=started_ns,
            wait_seconds=wait_seconds,
            prepare_seconds=ready - clock - wait_seconds,
        )

    def close(self) -> None:
        """Stop preparing and let go of the source."""
        if self._ahead:
            self._ahead.stop()
        self._source.close()  # which ends a wait for a selection
        if self._ahead:
            self._ahead.join()

    def _prepare(self, step: int) -> _Prepared:
        return self._divide(self._source.selection(step))

    def _divide(self, received: Received) -> _Prepared:
        selection = received.selection
        parts = self._share(selection)
        with self._staging.copying() as staged:
            micro_batches = [self._sub_batch(received, part, number, len(parts)) for number, part in enumerate(parts)]
        mine = np.concatenate([part.position[~part.is_filler] for part in parts])
        return _Prepared(
            received=received,
            micro_batches=micro_batches,
            rows=selection.index[mine].tolist(),
            num_tokens=int(selection.num_tokens[mine].sum()),
            staged=staged,
        )

    def _share(self, selection: Selection) -> list[MicroBatch]:
        """This rank's part of a selection.

        Raises:
            DataError: the selection names rows that this rank's store doesn't hold as the server does.
        """
        if self._store and not np.array_equal(self._store.lengths(selection.index), selection.num_tokens):
            raise DataError(
                f"run {selection.run!r}: the rows of step {selection.step} have other lengths in this rank's store "
                "than on the server: give both the same store"
            )
        return partition(
            selection.num_tokens, world_size=self._ranks.world_size, micro_batch_size=self._micro_batch_size
        )[self._ranks.rank]

    def _rows(self, received: Received, part: MicroBatch) -> list[Row]:
        if self._store:
            return self._store.rows(received.selection.index[part.position])
        assert received.rows is not None
        return [received.rows[position] for position in part.position.tolist()]

    def _sub_batch(self, received: Received, part: MicroBatch, number: int, count: int) -> SubBatch:
        selection = received.selection
        rows = collate(self._rows(received, part))
        weight = np.where(part.is_filler, 0.0, selection.weight[part.position].astype(np.float64))
        # Accelerate divides by the micro-batches of a step and DDP by the ranks; the step's loss is Σ w_i L_i / b.
        scale = weight * count * self._ranks.world_size / selection.large_batch_size
        copy = self._staging.copy
        return SubBatch(
            inputs={"input_ids": copy(rows["input_ids"]), "attention_mask": copy(rows["attention_mask"])},
            row_labels=copy(rows["labels"]),
            scale=copy(torch.tensor(scale, dtype=torch.float32)),
            step=selection.step,
            number=number,
            is_last=number == count - 1,
        )
