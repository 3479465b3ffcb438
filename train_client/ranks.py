"""The ranks of a training job, and the little that they have to agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed

from shared.errors import CursorError, SubbatchError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks."""

    rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def on_first(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and give its result, or its error, to every rank.

        Raises:
            SubbatchError: what `action` raised, on every rank, so that none waits for another for ever.
        """
        outcome: list[T | SubbatchError | None] = [None]
        if self.is_first:
            try:
                outcome = [action()]
            except SubbatchError as error:
                outcome = [error]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(outcome, src=0)
        (result,) = outcome
        if isinstance(result, SubbatchError):
            raise result
        return result  # type: ignore[return-value]

    def gather(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank and give all results, by rank, to each.

        Raises:
            SubbatchError: what `action` raised on the lowest rank where it did, on every rank.
        """
        try:
            outcome: T | SubbatchError = action()
        except SubbatchError as error:
            outcome = error
        results: list[T] = []
        for each in self._all(outcome):
            if isinstance(each, SubbatchError):
                raise each
            results.append(each)
        return results

    def mean(self, value: float) -> float:
        """The mean over the ranks, on each of them."""
        return sum(self._all(value)) / self.world_size

    def agree_on_cursor(self, run: str, cursor: int) -> None:
        """Refuse ranks that stand at different steps.

        Raises:
            CursorError: on every rank, with all cursors.
        """
        cursors = self._all(cursor)
        if len(set(cursors)) > 1:
            raise CursorError(
                f"run {run!r}: the ranks stand at different steps {cursors}: resume all of them from one checkpoint"
            )

    def _all(self, mine: T) -> list[T]:
        """What each rank has, by rank."""
        if self.world_size == 1:
            return [mine]
        every: list[T] = [mine] * self.world_size
        torch.distributed.all_gather_object(every, mine)
        return every
