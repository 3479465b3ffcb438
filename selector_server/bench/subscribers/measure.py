"""One measurement: a server and its subscribers, each side a process, and what both say afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from selector_server.bench.subscribers import clients, serving
from selector_server.bench.subscribers.order import Order
from shared.errors import SelectionError


@dataclass(frozen=True, eq=False)
class Measured:
    """How it went.

    Attributes:
        server_start_bytes: Resident memory of the server's process before the run; None where the system doesn't tell
            it, Linux does.
        server_peak_bytes: The most since.
        seconds: From the first selection's being durable to the last one's arrival.
        delay_ms: From durable to received, float64 [ranks, steps]; on one machine both clocks are the same.
        content: A hash of all selections in their order, which every rank has received.
        received_bytes: What the ranks' connections received together, without the headers of TCP and IP; None where the
            system doesn't tell it, Linux does.
    """

    server_start_bytes: int | None
    server_peak_bytes: int | None
    seconds: float
    delay_ms: npt.NDArray[np.float64]
    content: str
    received_bytes: int | None

    @property
    def messages_per_s(self) -> float:
        """Selections received, of all ranks together."""
        return self.delay_ms.size / self.seconds


def measure(order: Order) -> Measured:
    """Serve a run to its subscribers.

    Raises:
        SelectionError: a selection was lost, repeated, out of order, or not the same on every rank.
    """
    with tempfile.TemporaryDirectory(prefix="subbatch-") as folder:
        out = Path(folder) / "arrived.npy"
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", serving.__name__, order.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            client = subprocess.run(
                [sys.executable, "-m", clients.__name__, address, order.to_json(), str(out)],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            said, _ = server.communicate()
        if client.returncode or server.returncode:
            raise SelectionError(
                f"subscribers ended with {client.returncode}, their server with {server.returncode}: see above"
            )
        arrived = np.load(out)
    received = json.loads(client.stdout)
    content, *others = set(received["hashes"])
    if others:
        raise SelectionError(f"{order.ranks} ranks received {1 + len(others)} different runs")
    told = json.loads(said)
    durable = np.array([told["durable_unix_ns"][str(step)] for step in range(order.steps)])
    return Measured(
        server_start_bytes=told["start_bytes"],
        server_peak_bytes=told["peak_bytes"],
        seconds=(arrived.max() - durable.min()) / 1e9,
        delay_ms=(arrived - durable) / 1e6,
        content=content,
        received_bytes=received["received_bytes"],
    )
