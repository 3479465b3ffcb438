"""Starts what `selector-server serve` asks for: a server, or this process's part of one with several processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import torch

from selector_server.scale_out.place import Place
from selector_server.scale_out.team import Member, join
from selector_server.scale_out.worker import Worker
from selector_server.server import serve
from shared.config import Config
from shared.dataset import Store
from shared.errors import ConfigError
from shared.model import base_fingerprint, load_base_model
from shared.records import Fingerprints


def launch(config: Config, *, on_ready: Callable[[str], None]) -> None:
    """Serve, or score for rank 0, until told to stop.

    Args:
        config: The same for all processes.
        on_ready: As in `serve`; called on rank 0 alone.

    Raises:
        SubbatchError: what keeps this process from it.
    """
    place = Place.of()
    device = place.device(config.server.device)
    if config.server.threads:
        torch.set_num_threads(config.server.threads)
    if place.size == 1:
        asyncio.run(serve(config, device, on_ready=on_ready))
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    team = join(place, timeout_s=config.server.worker_timeout_s)
    if isinstance(team, Member):
        _work(config, device, team)
    else:
        asyncio.run(serve(config, device, on_ready=on_ready, team=team))


def _work(config: Config, device: torch.device, member: Member) -> None:
    if config.data.store is None:
        raise ConfigError("data.store is not set: give the folder that `selector-server prepare` wrote")
    store = Store.open(config.data.store)
    model = load_base_model(config.model, device)
    # Of the tokenizer, rank 0 has compared the model's with the store's.
    fingerprints = Fingerprints(store.fingerprint, store.manifest.tokenizer.fingerprint, base_fingerprint(model))
    Worker(member, model, store, fingerprints).work()
