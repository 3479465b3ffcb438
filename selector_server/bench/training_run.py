"""A training run to measure at: a model that has learnt something, adapted with LoRA, stopped at several steps.

Without a config the world is made from nothing: rows in MathInstruct's shape, a tokenizer, and a small Phi that is
pre-trained here. With one it is the user's model and store.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from selector_server.prepare import prepare
from shared.config import Config, LoraSettings
from shared.dataset import Store
from shared.errors import ConfigError
from shared.model import load_base_model, new_adapter
from shared.rowloss import collate, row_losses
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig
from shared.synthetic.corpus import write_corpus
from shared.synthetic.tiny_model import make_phi, train_tokenizer

_PRETRAIN_RATE, _BATCH = 2e-3, 16
_PRETRAIN_SEED, _TRAIN_SEED = 1, 2


@dataclass(frozen=True)
class World:
    """What is trained on what.

    Attributes:
        model: The base, already able to do something.
        store: The rows.
        lora: The adapter; False trains every weight.
        learning_rate: Of the run that is measured.
    """

    model: Any
    store: Store
    lora: LoraSettings | bool
    learning_rate: float


def synthetic_world(folder: Path, *, quick: bool, console: Console) -> World:
    """A store, a tokenizer and a small pre-trained Phi in `folder`."""
    rows, width, pretrain = (3_000, 64, 120) if quick else (16_000, 96, 800)
    console.print(f"making {rows:,} rows and a Phi of 4 layers, width {width}, pre-trained for {pretrain} steps")
    files = write_corpus(folder / "corpus", rows=rows, heldout_per_source=2, seed=0)
    train_tokenizer(files.train, folder / "model", vocab_size=768)
    model: Any = make_phi(folder / "model", vocab_size=768, layers=4, width=width, heads=4, seed=0, max_length=512)
    prepare(str(files.train), tokenizer=str(folder / "model"), out=folder / "store", num_proc=1)
    store = Store.open(folder / "store")
    for _ in _steps(model, store, range(pretrain), rate=_PRETRAIN_RATE, seed=_PRETRAIN_SEED):
        pass
    lora = LoraSettings(rank=8, alpha=32, dropout=0.0)
    return World(model, store, lora, learning_rate=1e-3)


def users_world(config: Config) -> World:
    """The model, store and adapter of a config.

    Raises:
        ConfigError: no store is named.
        ModelError, DataError: they can't be loaded.
    """
    if config.data.store is None:
        raise ConfigError("data.store is not set: give the folder that `selector-server prepare` wrote")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_base_model(config.model, device)
    return World(model, Store.open(config.data.store), config.train.lora, config.train.learning_rate)


def points(world: World, steps: list[int]) -> Iterator[tuple[int, Any]]:
    """The model after each of `steps` training steps, in ascending order, in eval mode; the next one trains it on."""
    torch.manual_seed(_TRAIN_SEED)
    model = copy.deepcopy(world.model)
    model = new_adapter(model, world.lora) if isinstance(world.lora, LoraSettings) else model.requires_grad_()
    trained = 0
    for done in _steps(model, world.store, range(steps[-1]), rate=world.learning_rate, seed=_TRAIN_SEED):
        while trained < len(steps) and steps[trained] == done:
            model.eval()
            yield done, model
            trained += 1


def _steps(model: Any, store: Store, steps: range, *, rate: float, seed: int) -> Iterator[int]:
    """Train on source-weighted random rows; yields how many steps are done, before the first one and after each."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    selection, device = SelectionConfig(large_batch_size=_BATCH, sub_batch_size=_BATCH), parameters[0].device
    yield 0
    for step in steps:
        rows = store.rows(draw_large_batch(store.source_rows, selection, seed=seed, step=step))
        batch = collate(rows, device=device)
        model.train()
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        row_losses(logits, batch["labels"]).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1
