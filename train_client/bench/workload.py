"""What `bench overlap` trains where it isn't given a configuration: a small Phi on rows of MathInstruct's lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from shared.dataset import SourceInfo, TokenizerInfo
from shared.store_writer import write_store
from shared.synthetic.corpus import write_corpus
from shared.synthetic.random_rows import MAX_TOKENS, random_rows
from shared.synthetic.tiny_model import make_phi, train_tokenizer
from shared.tokenizer import load_tokenizer, tokenizer_fingerprint

_ROWS, _SOURCES, _SEED = 4000, 10, 7
_CORPUS_ROWS = 200

_CONFIG = """\
# Written by `train-client bench overlap`.
[model]
path = "{here}/model"

[data]
store = "{here}/store"

[selection]
large_batch_size = {large}
sub_batch_size = {sub}
sparsify_k = 512

[server]
threads = 1

[train]
threads = 1
micro_batch_size = {micro}
lora = {{ rank = 16, alpha = 32, dropout = 0.0 }}
"""


@dataclass(frozen=True)
class Size:
    """Of the model, and of a step; micro-batches divide what both kinds of step train on."""

    vocab_size: int
    layers: int
    width: int
    sub_batch_size: int
    micro_batch_size: int


FULL = Size(vocab_size=4096, layers=4, width=256, sub_batch_size=16, micro_batch_size=8)
QUICK = Size(vocab_size=1024, layers=2, width=128, sub_batch_size=16, micro_batch_size=8)


def make_workload(folder: Path, size: Size) -> Path:
    """Make model and store in a new folder; gives the configuration that names them.

    The model's weights and the rows' tokens are random: a step takes as long whatever there is to learn.
    """
    folder.mkdir(parents=True)
    model = folder / "model"
    corpus = write_corpus(folder / "corpus", rows=_CORPUS_ROWS, heldout_per_source=1, seed=_SEED)
    train_tokenizer(corpus.train, model, vocab_size=size.vocab_size)
    make_phi(
        model,
        vocab_size=size.vocab_size,
        layers=size.layers,
        width=size.width,
        heads=size.width // 32,
        seed=_SEED,
        max_length=MAX_TOKENS,
    )
    _write_rows(folder / "store", model, size.vocab_size)
    config = folder / "run.toml"
    r = size.sub_batch_size
    config.write_text(_CONFIG.format(here=folder, large=2 * r, sub=r, micro=size.micro_batch_size))
    return config


def _write_rows(folder: Path, model: Path, vocab_size: int) -> None:
    tokenizer = load_tokenizer(str(model))
    rows = random_rows(_ROWS, vocab_size=vocab_size, seed=_SEED)
    write_store(
        folder,
        [rows],
        sources=list(_sources(rows)),
        tokenizer=TokenizerInfo(
            name="random tokens",
            fingerprint=tokenizer_fingerprint(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        template="none",
        max_length=MAX_TOKENS,
        prepared_from="random tokens with MathInstruct's lengths",
    )


def _sources(rows: pa.RecordBatch) -> Iterable[SourceInfo]:
    """Ten sources of one size, in the order of the rows."""
    lengths = np.asarray(rows.column("input_ids").value_lengths())
    for number, mine in enumerate(np.array_split(lengths, _SOURCES)):
        yield SourceInfo(name=f"source {number}", rows=len(mine), mean_tokens=float(mine.mean()), dropped=0)
