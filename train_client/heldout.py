"""Held-out loss by source and in the mean: row losses, as the selector and the trainer define them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shared.dataset import Store
from shared.partition import by_token_budget
from shared.rowloss import collate, row_losses
from train_client.training_data import TrainingData
from train_client.whole import is_sharded

_TOKENS_PER_FORWARD = 8192


@dataclass(frozen=True)
class HeldoutLoss:
    """What a model loses on rows that it wasn't trained on.

    Attributes:
        balanced: The mean over sources.
        natural: The mean over sources, each weighted by its share of the training rows; None where no source is among
            them.
        by_source: Source name → mean row loss.
    """

    balanced: float
    natural: float | None
    by_source: dict[str, float]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off inside; then every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def heldout_loss(accelerator: Any, model: Any, store: Store, training: Store | TrainingData) -> HeldoutLoss:
    """Mean row losses of a store, the work divided among the ranks; the model's mode stays.

    Args:
        accelerator: Accelerate's.
        model: As prepared.
        store: Held-out rows.
        training: The rows that are trained on, for the sources' shares.

    Returns:
        The same on every rank.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    index = np.arange(len(store), dtype=np.int64)
    lengths, sources = store.lengths(index), store.sources_of(index)
    total = torch.zeros(len(store.source_names), 2, dtype=torch.float64, device=accelerator.device)
    bare = accelerator.unwrap_model(model)
    with evaluating(bare), torch.no_grad():
        groups = by_token_budget(lengths, budget=_TOKENS_PER_FORWARD)
        # A forward of a sharded model is a collective, so all ranks run as many, some of them for nothing.
        turns = -(-len(groups) // world_size) * world_size if is_sharded(bare.parameters()) else len(groups)
        for turn in range(rank, turns, world_size):
            group = groups[turn % len(groups)]
            rows = collate(store.rows(group), device=accelerator.device)
            logits = bare(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], use_cache=False).logits
            losses = row_losses(logits, rows["labels"]).double()
            if turn >= len(groups):
                break
            at = torch.from_numpy(sources[group].astype(np.int64)).to(accelerator.device)
            total[:, 0].index_add_(0, at, losses)
            total[:, 1].index_add_(0, at, torch.ones_like(losses))
    total = accelerator.reduce(total, reduction="sum")
    losses = {name: float(loss / n) for name, (loss, n) in zip(store.source_names, total.tolist(), strict=True)}
    rows = dict(zip(training.source_names, training.source_rows, strict=True))
    known = sum(rows.get(name, 0) for name in losses)
    natural = sum(loss * rows.get(name, 0) for name, loss in losses.items()) / known if known else None
    return HeldoutLoss(sum(losses.values()) / len(losses), natural, losses)
