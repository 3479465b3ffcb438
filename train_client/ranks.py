"""The ranks of a training job on one host or many, and the little that they have to agree on.

What is wrong is wrong for all of them. Every rank raises it, so that none waits for another for ever; the first of each
host tells it whole, the others point there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import torch.distributed

from shared.errors import CursorError, SubbatchError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks.

    Attributes:
        rank: Its number among all.
        world_size: How many there are.
        local_rank: Its number among those of its host.
    """

    rank: int
    world_size: int
    local_rank: int = 0

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
            self._raise(result)
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
                self._raise(each)
            results.append(each)
        return results

    def mean(self, value: float) -> float:
        """The mean over the ranks, on each of them."""
        return sum(self._all(value)) / self.world_size

    def require_all(self, action: Callable[[], object]) -> None:
        """Run `action` on every rank.

        Raises:
            SubbatchError: on every rank, what it raised anywhere, with the ranks and hosts where it did: first of what
                was raised on the lowest rank.
        """

        def outcome() -> tuple[str, SubbatchError | None]:
            try:
                action()
            except SubbatchError as error:
                return platform.node(), error
            return platform.node(), None

        outcomes = self.gather(outcome)
        failed = [(rank, host, error) for rank, (host, error) in enumerate(outcomes) if error]
        if not failed:
            return
        if self.world_size == 1:
            raise failed[0][2]
        places: dict[str, list[tuple[int, str]]] = {}
        for rank, host, error in failed:
            places.setdefault(str(error), []).append((rank, host))
        told = "; ".join(f"{_in_words(where)}: {text}" for text, where in places.items())
        others = self.world_size - len(failed)
        self._raise(type(failed[0][2])(told + (f"; the other ranks, {others} of them, had no error" if others else "")))

    def agree_on_cursor(self, run: str, cursor: int) -> None:
        """Refuse ranks that stand at different steps.

        Raises:
            CursorError: on every rank, with all cursors.
        """
        cursors = self._all(cursor)
        if len(set(cursors)) > 1:
            self._raise(
                CursorError(
                    f"run {run!r}: the ranks stand at different steps {cursors}: resume all of them from one checkpoint"
                )
            )

    def _raise(self, error: SubbatchError) -> NoReturn:
        """Raise an error that every rank raises.

        Raises:
            SubbatchError: of its kind; its text is left to the first rank of each host.
        """
        if self.local_rank == 0:
            raise error
        raise type(error)(f"rank {self.rank} ends with the error that the first rank of its host tells")

    def _all(self, mine: T) -> list[T]:
        """What each rank has, by rank."""
        if self.world_size == 1:
            return [mine]
        every: list[T] = [mine] * self.world_size
        torch.distributed.all_gather_object(every, mine)
        return every


def _in_words(where: Sequence[tuple[int, str]]) -> str:
    """Ranks by their hosts: `ranks 2, 3 on b and rank 5 on c`."""
    by_host: dict[str, list[int]] = {}
    for rank, host in where:
        by_host.setdefault(host, []).append(rank)
    return " and ".join(
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} on {host}" for host, ranks in by_host.items()
    )
