"""The one definition of a row's loss: the mean over its answer tokens of the next-token negative log likelihood.

Selector and trainers both take it from here, so that the rows are picked for the gradient that is then trained. It does
not depend on the rows beside it: padding is on the right, where causal attention can't see it, and has no target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import DataError
from shared.records import Row

IGNORE = -100


@dataclass(frozen=True, eq=False)
class Answers:
    """Where the answer tokens of a batch are predicted, in the order of rows and, in a row, of tokens.

    Attributes:
        predicting: Positions whose next token is an answer token, bool [m, T].
        targets: Those next tokens, int64 [num_answers].
        counts: Answer tokens of each row, int64 [m]; they sum to num_answers.
    """

    predicting: Tensor
    targets: Tensor
    counts: Tensor


def collate(rows: Sequence[Row], *, pad_id: int = 0, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Rows as one right-padded batch.

    Args:
        rows: At least one row.
        pad_id: Token that fills up; any token will do, it is never attended to.
        device: Where the tensors go.

    Returns:
        `input_ids` int64 [m, T]; `labels` int64 [m, T], `IGNORE` on prompt and padding; `attention_mask` int64 [m, T].

    Raises:
        DataError: a row without an answer token that has a token before it, hence without a loss.
    """
    lengths = [len(row.input_ids) for row in rows]
    shape = (len(rows), max(lengths))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        mask = row.loss_mask()
        if not mask[1:].any():
            raise DataError(
                f"row {i} of the batch has {length} tokens of which {length - int(mask.sum())} are prompt: "
                "no answer token is left to predict, prepare the store again without such rows"
            )
        input_ids[i, :length] = row.input_ids
        np.copyto(labels[i, :length], row.input_ids, where=mask)
        attention_mask[i, :length] = 1
    arrays = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def find_answers(labels: Tensor) -> Answers:
    """The answer tokens of a batch's labels, int64 [m, T]; a label is predicted at the position before it."""
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
    predicting = following != IGNORE
    return Answers(predicting, following[predicting], predicting.sum(dim=1))


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each row, for training.

    Args:
        logits: [m, T, V], any floating dtype.
        labels: int64 [m, T] as `collate` makes them.

    Returns:
        float32 [m], differentiable; NaN for a row without answer tokens.

    Cost: beside the logits, float32 values for answer positions alone.
    """
    answers = find_answers(labels)
    token_losses = F.cross_entropy(logits[answers.predicting].float(), answers.targets, reduction="none")
    return row_means(token_losses, answers).float()


def row_means(values: Tensor, answers: Answers) -> Tensor:
    """Mean of values [num_answers] over each row's tokens, float64 [m], summed in token order on every device."""
    return torch.segment_reduce(values.double(), "mean", lengths=answers.counts)
