"""Fixtures for all tests; the world is made by the product's own demo, so it needs no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest

from tests.support import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small world of `tests.world`, made once."""
    from tests.world import make_world

    return make_world(tmp_path_factory.mktemp("world"))
