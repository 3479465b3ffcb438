"""True gradients of rows over all trainable weights, by back-propagation through the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shared.dataset import Store
from shared.partition import by_token_budget
from shared.rowloss import collate, row_losses
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig

_POPULATION_SEED = 12
_TOKENS = 4096


def row_gradients(model: Any, store: Store, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Each row's gradient, [b, trainable weights]; the model is in eval mode."""
    return np.stack([_gradient(model, store, rows[i : i + 1]).astype(np.float32) for i in range(len(rows))])


def population_gradient(model: Any, store: Store, size: int) -> npt.NDArray[np.float64]:
    """The mean gradient of `size` source-weighted rows, [trainable weights]: what a draw's gradient is on average."""
    size = min(size, len(store))
    selection = SelectionConfig(large_batch_size=size, sub_batch_size=1)
    rows = draw_large_batch(store.source_rows, selection, seed=_POPULATION_SEED, step=0)
    groups = by_token_budget(store.lengths(rows), budget=_TOKENS)
    total: npt.NDArray[np.float64] = np.sum([_gradient(model, store, rows[group]) for group in groups], axis=0)
    return total / size


def _gradient(model: Any, store: Store, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The gradient of the sum of some rows' losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch = collate(store.rows(rows), device=parameters[0].device)
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    found = torch.autograd.grad(row_losses(logits, batch["labels"]).sum(), parameters)
    return np.asarray(torch.cat([g.reshape(-1) for g in found]).double().cpu().numpy(), dtype=np.float64)
