"""How many rows and tokens of each source a step drew and picked: what mixes of sources are told from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.dataset import Store
from shared.records import Selection

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counted:
    """One step's counts.

    Attributes:
        drawn: Rows of the large batch by source, int64 [sources].
        picked: Rows of the sub-batch by source, int64 [sources].
        drawn_tokens: Of the large batch's rows.
        picked_tokens: Of the sub-batch's rows.
        skipped: Rows whose loss wasn't finite.
    """

    drawn: Counts
    picked: Counts
    drawn_tokens: int
    picked_tokens: int
    skipped: int

    @classmethod
    def of(cls, store: Store, batch: Counts, selection: Selection) -> Counted:
        """Count a step's rows.

        Args:
            store: That both were drawn from.
            batch: Rows of the large batch, numbers in the store, int64 [b].
            selection: The sub-batch.
        """
        size = len(store.source_rows)
        return cls(
            drawn=np.bincount(store.sources_of(batch), minlength=size),
            picked=np.bincount(selection.source, minlength=size),
            drawn_tokens=int(store.lengths(batch).sum()),
            picked_tokens=int(selection.num_tokens.sum()),
            skipped=len(selection.skipped),
        )
