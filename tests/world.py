"""A small world of data and model, made by the product's own demo, so that it needs no network."""

from __future__ import annotations

from pathlib import Path

from selector_server.prepare import prepare
from shared.synthetic.corpus import write_corpus
from shared.synthetic.tiny_model import make_phi, train_tokenizer
from tests.support import World


def make_world(folder: Path) -> World:
    """Two hundred rows of fourteen sources, a tokenizer trained on them, a two-layer Phi."""
    files = write_corpus(folder / "corpus", rows=240, heldout_per_source=2, seed=0)
    train_tokenizer(files.train, folder / "model", vocab_size=512)
    make_phi(folder / "model", vocab_size=512, layers=2, width=32, heads=4, seed=0, max_length=512)
    for name, rows in (("store", files.train), ("heldout", files.heldout)):
        prepare(str(rows), tokenizer=str(folder / "model"), out=folder / name, num_proc=1)
    return World(folder / "model", folder / "store", folder / "heldout", files.train)
