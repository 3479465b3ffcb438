"""True gradients of rows over all trainable weights, by back-propagation through the whole model."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shared.dataset import Store
from shared.errors import ConfigError
from shared.partition import by_token_budget
from shared.random import Purpose, stream
from shared.rowloss import collate, row_losses
from shared.sampler import source_probabilities
from shared.selection_config import SelectionConfig

_POPULATION_SEED = 12
_TOKENS = 4096


def trained_weights(model: Any) -> int:
    """How many weights are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def require_memory(num_weights: int, *, rows: int, arms: int) -> None:
    """Refuse a model whose rows' gradients don't fit in memory: two copies in float32, and a float64 sum for each arm.

    Raises:
        ConfigError: what they need and what there is.
    """
    needed, there = num_weights * (8 * rows + 8 * arms), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ConfigError(
            f"gradients of {rows} rows over {num_weights:,} trained weights need {needed / 2**30:.1f} GiB, there are "
            f"{there / 2**30:.1f} GiB: measure with a smaller model or a LoRA of lower rank (train.lora.rank)"
        )


def row_gradients(model: Any, store: Store, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Each row's gradient, [b, trainable weights]; the model is in eval mode."""
    return np.stack([_gradient(model, store, rows[i : i + 1]).astype(np.float32) for i in range(len(rows))])


def population_gradient(model: Any, store: Store, size: int) -> npt.NDArray[np.float64]:
    """What the gradient of a source-weighted draw is on average, [trainable weights].

    Each source's mean over its rows, or over random ones so that `size` are used in all, weighted as it is drawn.
    """
    selection = SelectionConfig(large_batch_size=1, sub_batch_size=1)
    shares = source_probabilities(store.source_rows, selection)
    quota = -(-size // np.count_nonzero(shares))
    starts = np.concatenate([[0], np.cumsum(store.source_rows)[:-1]])
    total = np.zeros(trained_weights(model))
    for source, (start, count) in enumerate(zip(starts, store.source_rows, strict=True)):
        if not count:
            continue
        numbers = stream(_POPULATION_SEED, Purpose.DRAW, step=0, index=source)
        rows = start + numbers.permutation(count)[:quota]
        for group in by_token_budget(store.lengths(rows), budget=_TOKENS):
            total += shares[source] / len(rows) * _gradient(model, store, rows[group])
    return total


def _gradient(model: Any, store: Store, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The gradient of the sum of some rows' losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch = collate(store.rows(rows), device=parameters[0].device)
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    found = torch.autograd.grad(row_losses(logits, batch["labels"]).sum(), parameters)
    return np.asarray(torch.cat([g.reshape(-1) for g in found]).double().cpu().numpy(), dtype=np.float64)
