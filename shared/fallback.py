"""The sub-batch of a step that is trained while the server is away: the first rows of the step's own draw, unweighted.

A pure function of the run's settings and the step, so that every rank makes the same, the server can check it against
its own draw, and a rollback past it gives it again.
"""

from __future__ import annotations

import hashlib

import numpy as np

from shared.dataset import Store
from shared.records import RunInfo, Selection
from shared.sampler import draw_large_batch


def fallback_selection(info: RunInfo, store: Store, step: int) -> Selection:
    """The first r rows of M_t in draw order, each standing for b / r rows.

    Args:
        info: The run.
        store: The rows it draws from.
        step: The step.

    Returns:
        A selection that says of itself that it is a fallback; its weights version is 0, as of all that isn't scored.

    Raises:
        ConfigError: the store has fewer rows than the large batch.
    """
    settings = info.selection
    index = draw_large_batch(store.source_rows, settings, seed=info.seed, step=step)[: settings.sub_batch_size]
    r = len(index)
    return Selection(
        run=info.name,
        step=step,
        weights_version=0,
        large_batch_size=settings.large_batch_size,
        index=index,
        source=store.sources_of(index),
        weight=np.full(r, settings.large_batch_size / r, dtype=np.float32),
        gain=np.zeros(r, dtype=np.float32),
        num_tokens=store.lengths(index),
        fallback=True,
    )


def rows_hash(selection: Selection) -> bytes:
    """SHA-256 of the row numbers, int64, little endian, in order: what a trainer says it trained on."""
    return hashlib.sha256(np.ascontiguousarray(selection.index, dtype="<i8").tobytes()).digest()
