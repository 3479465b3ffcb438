"""Deals the micro-batches of a large batch to scoring processes: a pure function, so they agree without talking."""

from __future__ import annotations

from collections.abc import Sequence


def deal(costs: Sequence[int], *, num_shares: int) -> list[list[int]]:
    """Divide micro-batches so that the shares cost about the same: the costliest first, each to the lightest share.

    Args:
        costs: Of each micro-batch, in padded tokens.
        num_shares: How many processes there are, >= 1.

    Returns:
        For each share the numbers of its micro-batches, ascending. The first share has one where there is any; others
        may have none.

    Source: Graham 1969; the costliest share is at most 4/3 - 1/(3 · num_shares) times what is possible.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    load = [0] * num_shares
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        lightest = min(range(num_shares), key=load.__getitem__)
        shares[lightest].append(number)
        load[lightest] += costs[number]
    return [sorted(share) for share in shares]
