"""`selector-server serve --dry-run`: all that is checked before serving begins, and what a run will take.

Nothing is bound, written or loaded; `doctor` looks further, at journals, disks and clocks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from selector_server.doctor.journals import is_held, needed_bytes
from selector_server.listening import require_listenable
from selector_server.scale_out.place import Place
from selector_server.scoring.scorer import CPU_TOKENS
from shared.addresses import with_port
from shared.config import Config, ModelConfig, ServerConfig
from shared.dataset import Store
from shared.doctor.inputs import model as check_model
from shared.errors import ConfigError, JournalError
from shared.scrape_port import require_usable
from shared.sizes import in_words, mean_tokens, selection_bytes, sizes
from shared.tokens import TokenFile


def plan_serving(config: Config) -> Iterator[str]:
    """Check what `serve` checks, and say in lines what it will take.

    Raises:
        SubbatchError: what would keep a server from serving.
    """
    place = Place.of()
    device = place.device(config.server.device)
    list(check_model(config.model, config.data))
    require_listenable(config.server)
    metrics = config.server.metrics
    if metrics.port is not None:
        readers = TokenFile(metrics.token_file or config.server.token_file)
        require_usable(metrics, has_tokens=not readers.is_empty, branch="server.metrics")
    _require_free_ports(config.server)
    _require_journal(config.server.journal)
    assert config.data.store  # looked at with the model
    store = Store.open(config.data.store)
    yield f"store: {len(store):,} rows of {len(store.source_rows)} sources, {mean_tokens(store):.0f} tokens a row"
    processes = f"each of {place.size} scoring processes" if place.size > 1 else "one scoring process"
    found = sizes(config)
    selection = config.selection
    if found is None:
        yield f"memory of {processes} on {device}: a .gguf file tells its size when it is loaded"
    else:
        tokens = min(selection.score_tokens, CPU_TOKENS) if device.type == "cpu" else selection.score_tokens
        hidden = in_words(tokens * found.width * 4)
        yield (
            f"memory of {processes} on {device}: the model {in_words(found.model_bytes)} ({found.parameters:,} "
            f"parameters, {_held(config.model)}), {in_words(found.push_bytes)} of weights for each run, and what a "
            f"forward pass of {tokens} tokens (selection.score_tokens) takes: {hidden} for one layer's "
            "hidden states in float32, several of them at a time"
        )
        yield f"bytes per push: {in_words(found.push_bytes)}, every {config.run.push_every} steps, by this [train]"
    yield f"bytes per selection: {in_words(selection_bytes(config))} to each rank"
    yield f"journal: about {in_words(needed_bytes(config))} for {config.run.num_steps} steps, weights of LoRA apart"
    yield "wait: depends on the trainers: `train-client train --dry-run`, or `train-client plan`"


def _held(config: ModelConfig) -> str:
    return config.dtype if config.load_in == "full" else f"{config.load_in} and {config.dtype}"


def _require_free_ports(config: ServerConfig) -> None:
    """Ask whether somebody answers there already.

    Raises:
        ConfigError: somebody does.
    """
    wanted = {"server.port": (config.host, config.port)}
    if config.health_port is not None:
        wanted["server.health_port"] = (config.host, config.health_port)
    if config.metrics.port is not None:
        wanted["server.metrics.port"] = (config.metrics.host, config.metrics.port)
    for key, (host, port) in wanted.items():
        if port and _answers(host.strip("[]"), port):
            raise ConfigError(
                f"{with_port(host, port)} of {key} is taken: end what listens there, or choose another {key}"
            )


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _require_journal(folder: Path) -> None:
    if is_held(folder):
        raise JournalError(
            f"journal folder {folder} belongs to a server that is running: stop it, or choose another server.journal"
        )
    where = folder.absolute()
    while not where.exists():
        where = where.parent
    if not where.is_dir() or not os.access(where, os.W_OK | os.X_OK):
        raise JournalError(
            f"journal folder {folder} can't be used: {where} can't be written: make it one that this server may write "
            "to, or choose another server.journal"
        )
