"""A selection → each rank's micro-batches, as a pure function, so that the ranks agree without talking.

Every rank gets the same number of rows and runs the same number of forwards (ZeRO-3 and FSDP hang otherwise), tokens
are balanced over the ranks, and a micro-batch holds rows of similar length, so that little is spent on padding.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigError

IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows of one forward.

    Attributes:
        position: Which rows of the selection, int64 [m].
        is_filler: Rows that only fill up and weigh nothing, bool [m].
    """

    position: npt.NDArray[np.int64]
    is_filler: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Share:
    """One rank's rows of a selection.

    Attributes:
        position: Which rows of the selection, longest first, then those that fill up, int64 [rows_per_rank].
        num_real: How many don't fill up.
    """

    position: npt.NDArray[np.int64]
    num_real: int

    @property
    def distinct(self) -> npt.NDArray[np.int64]:
        """What the rank has to hold: each position once, in the order of their first use."""
        real, fillers = self.position[: self.num_real], self.position[self.num_real :]
        return np.concatenate([real, fillers[:1][~np.isin(fillers[:1], real)]])


def micro_batches_per_step(num_rows: int, *, world_size: int, micro_batch_size: int) -> int:
    """How many forwards each rank runs in a step of `num_rows` rows."""
    return -(-rows_per_rank(num_rows, world_size) // micro_batch_size)


def rows_per_rank(num_rows: int, world_size: int) -> int:
    """Rows of each rank, fillers included."""
    return -(-num_rows // world_size)


def partition(num_tokens: IntArray, *, world_size: int, micro_batch_size: int) -> list[list[MicroBatch]]:
    """Divide the rows of a selection among ranks and cut each rank's rows into micro-batches.

    Args:
        num_tokens: Row lengths, int [r].
        world_size: Number of ranks, >= 1.
        micro_batch_size: Most rows of a forward, >= 1.

    Returns:
        For each rank its micro-batches, longest rows first. Every row is in exactly one place and not a filler there.

    Raises:
        ConfigError: no rows, or a size below 1.
    """
    if micro_batch_size < 1:
        raise ConfigError(
            f"can't divide {len(num_tokens)} rows among {world_size} ranks in micro-batches of {micro_batch_size}"
        )
    return [list(_cut(share, size=micro_batch_size)) for share in deal(num_tokens, world_size=world_size)]


def deal(num_tokens: IntArray, *, world_size: int) -> list[Share]:
    """Divide the rows of a selection among ranks.

    Rows are dealt longest first, each to the rank with the fewest tokens that has room. Where a rank has fewer rows
    than the others, the shortest row of the selection fills up with weight zero.

    Args:
        num_tokens: Row lengths, int [r].
        world_size: Number of ranks, >= 1.

    Returns:
        The share of each rank.

    Raises:
        ConfigError: no rows, or no ranks.

    Cost: O(r log r).
    """
    num_rows = len(num_tokens)
    if num_rows == 0 or world_size < 1:
        raise ConfigError(f"can't divide {num_rows} rows among {world_size} ranks")
    room = rows_per_rank(num_rows, world_size)
    mine: list[list[int]] = [[] for _ in range(world_size)]
    with_room = [(0, rank) for rank in range(world_size)]  # tokens so far; of ranks with as many the lowest is first
    order = np.argsort(-np.asarray(num_tokens), kind="stable")
    for position in order.tolist():
        load, rank = with_room[0]
        mine[rank].append(position)
        if len(mine[rank]) < room:
            heapq.heapreplace(with_room, (load + int(num_tokens[position]), rank))
        else:
            heapq.heappop(with_room)
    filler = int(order[-1])
    return [
        Share(np.asarray(rows + [filler] * (room - len(rows)), dtype=np.int64), num_real=len(rows)) for rows in mine
    ]


def _cut(share: Share, *, size: int) -> Iterator[MicroBatch]:
    for start in range(0, len(share.position), size):
        part = share.position[start : start + size]
        yield MicroBatch(position=part, is_filler=np.arange(start, start + len(part)) >= share.num_real)


def by_token_budget(num_tokens: Sequence[int] | IntArray, *, budget: int) -> list[npt.NDArray[np.int64]]:
    """Cut rows, sorted by length, into groups whose padded size is at most `budget` tokens; a longer row stands alone.

    Returns:
        Row positions of each group, shortest rows first; ties keep their order.
    """
    groups: list[npt.NDArray[np.int64]] = []
    order = np.argsort(np.asarray(num_tokens), kind="stable").astype(np.int64)
    start = 0
    for end in range(1, len(order) + 1):
        is_last = end == len(order)
        if is_last or int(num_tokens[order[end]]) * (end + 1 - start) > budget:
            groups.append(order[start:end])
            start = end
    return groups
