"""Steps that a trainer trained while the server was away, checked against the server's own draw."""

from __future__ import annotations

from collections.abc import Sequence

from shared.dataset import Store
from shared.errors import DataError, WireError
from shared.fallback import fallback_selection, rows_hash
from shared.pb.v1 import selector_pb2 as pb
from shared.records import RunInfo
from shared.wire import encode_selection


def trained_selections(info: RunInfo, store: Store, steps: Sequence[pb.TrainedStep]) -> list[pb.SelectionMessage]:
    """What stands in the journal for each of these steps.

    Args:
        info: The run.
        store: The server's rows.
        steps: As a trainer tells of them.

    Raises:
        WireError: steps that aren't ascending, or not of the run.
        DataError: the trainer trained on other rows than the server's draw gives.
    """
    numbers = [step.step for step in steps]
    if numbers != sorted(set(numbers)) or not all(0 <= number < info.timing.num_steps for number in numbers):
        raise WireError(
            f"run {info.name!r}: trained steps {numbers[:8]} aren't ascending steps of its {info.timing.num_steps}"
        )
    return [_trained_selection(info, store, step) for step in steps]


def _trained_selection(info: RunInfo, store: Store, told: pb.TrainedStep) -> pb.SelectionMessage:
    selection = fallback_selection(info, store, told.step)
    if (mine := rows_hash(selection)) != told.rows_sha256:
        raise DataError(
            f"run {info.name!r} trained step {told.step} while the server was away, on rows with hash "
            f"{told.rows_sha256.hex() or 'none'}; the server draws rows with {mine.hex()}: run the same releases of "
            "subbatch and NumPy on both sides, and resume from a checkpoint before that step"
        )
    return pb.SelectionMessage(step=told.step, weights_version=0, arrow=encode_selection(selection))
