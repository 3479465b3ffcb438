"""A real server on a free port, in a thread of the test's process, and trainers reduced to their calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from selector_server.host import Host
from selector_server.journal import Journal
from selector_server.listening import listen
from selector_server.readiness import Readiness
from selector_server.run_engine import build_engine
from selector_server.server import add_service, add_standard_services
from shared.addresses import with_port
from shared.config import Config, ModelConfig, SelectionConfig, ServerConfig
from shared.dataset import Store
from shared.model import adapter_to_json, base_fingerprint, load_base_model, trainable_tensors
from shared.records import Fingerprints, RunInfo
from shared.timing import Timing
from shared.weights import tensor_specs
from tests.support import World
from train_client.train import make_model


class LiveServer:
    """Serves a world's model and store from `folder`; `stop` and `start` again resume from its journals."""

    def __init__(
        self,
        world: World,
        folder: Path,
        *,
        max_runs: int = 4,
        rank_lease_s: float = 60.0,
        open_journal: Callable[[Path], Journal] = Journal,
        **settings: object,
    ) -> None:
        """`settings` are of ServerConfig."""
        self.model = load_base_model(ModelConfig(path=str(world.model)), torch.device("cpu"))
        self.store = Store.open(world.store)
        self.fingerprints = Fingerprints(
            self.store.fingerprint, self.store.manifest.tokenizer.fingerprint, base_fingerprint(self.model)
        )
        self._folder, self._max_runs = folder, max_runs
        self._config = {"host": "localhost", "max_weights_bytes": 1 << 30, **settings}
        self._open_journal, self._rank_lease_s = open_journal, rank_lease_s
        self._port = 0
        self.start()

    @property
    def address(self) -> str:
        return with_port(str(self._config["host"]), self._port)

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(30)

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.stop()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.host = Host(
            self.store,
            self.fingerprints,
            self._folder,
            build=partial(build_engine, self.model, self.store),
            max_runs=self._max_runs,
            rank_lease_s=self._rank_lease_s,
            open_journal=self._open_journal,
        )
        config = ServerConfig.model_validate(self._config | {"port": self._port})
        server, address = listen(config)
        self._port = int(address.rpartition(":")[2])
        add_service(server, self.host, config)
        self.readiness = Readiness(self._folder)
        add_standard_services(server, self.readiness)
        metrics = None
        if config.metrics.port is not None:
            from selector_server.metrics_port import open_metrics_port

            cpu = torch.device("cpu")
            metrics = open_metrics_port(config, self.host, self.readiness, self.store, cpu, address=address)
            self.metrics_address = metrics.address
        await self.readiness.begin()
        await server.start()
        scheduler = asyncio.create_task(self.host.schedule())
        ready.set()
        await self._stopping.wait()
        await self.host.stop()
        await scheduler
        await server.stop(1.0)
        if metrics:
            await asyncio.to_thread(metrics.close)
        self.host.close()


class Job:
    """What rank 0 of a small LoRA job would open a run with, and the weights it would push."""

    def __init__(self, world: World, fingerprints: Fingerprints) -> None:
        config = Config(
            model=ModelConfig(path=str(world.model)),
            train={"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}},  # type: ignore[arg-type]
        )
        torch.manual_seed(0)
        self.model = make_model(config, torch.device("cpu"))
        self._fingerprints = fingerprints

    def info(
        self, name: str = "run", *, num_steps: int = 6, staleness: int = 1, push_every: int = 1, **selection: Any
    ) -> RunInfo:
        settings: dict[str, Any] = {"large_batch_size": 8, "sub_batch_size": 4, "sparsify_k": 16, **selection}
        return RunInfo(
            name=name,
            seed=3,
            timing=Timing(num_steps, staleness, push_every, staleness + push_every - 1),
            world_size=1,
            selection=SelectionConfig(**settings),
            adapter_json=adapter_to_json(self.model),
            trainable=tensor_specs(self.weights(0)),
            fingerprints=self._fingerprints,
        )

    def weights(self, version: int) -> dict[str, torch.Tensor]:
        """Different weights for every version, the same at every call."""
        generator = torch.Generator().manual_seed(version)
        return {
            name: 0.1 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in trainable_tensors(self.model).items()
        }
