"""The selector server: draws large batches, scores their rows with forward passes alone, picks sub-batches.

It imports `shared` and never `train_client`.
"""

from pathlib import Path

import shared

if Path(str(shared.__file__)).parent != (_ours := Path(__file__).parents[1] / "shared"):
    raise ImportError(
        f"another package named 'shared' ({shared.__file__}) hides subbatch's ({_ours}): rename or remove it"
    )
