"""Fixtures for all tests; the world is made by the product's own demo, so it needs no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.support import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two hundred rows of fourteen sources, a tokenizer trained on them, a two-layer Phi."""
    from selector_server.prepare import prepare
    from shared.synthetic.corpus import write_corpus
    from shared.synthetic.tiny_model import make_phi, train_tokenizer

    folder = tmp_path_factory.mktemp("world")
    files = write_corpus(folder / "corpus", rows=240, heldout_per_source=2, seed=0)
    train_tokenizer(files.train, folder / "model", vocab_size=512)
    make_phi(folder / "model", vocab_size=512, layers=2, width=32, heads=4, seed=0, max_length=512)
    for name, rows in (("store", files.train), ("heldout", files.heldout)):
        prepare(str(rows), tokenizer=str(folder / "model"), out=folder / name, num_proc=1)
    return World(folder / "model", folder / "store", folder / "heldout", files.train)
