"""The server of a measurement, in a process of its own: `python -m selector_server.bench.subscribers.serving`.

A real host, journal and guarded service; selections come from a real engine that scores nothing. It prints its address,
serves until its input ends, and prints when each selection was durable and how much memory it has held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from selector_server.bench.peak_memory import reset_peak, resident_bytes
from selector_server.bench.subscribers.order import FINGERPRINTS, VOCABULARY, Order
from selector_server.bench.workload import make_store
from selector_server.host import Host
from selector_server.journal import Journal
from selector_server.listening import listen
from selector_server.run_engine import build_engine
from selector_server.server import add_service
from shared.config import ServerConfig
from shared.pb.v1 import journal_pb2


class TimedJournal(Journal):
    """A journal that notes when selections became durable."""

    durable_unix_ns: dict[int, int]

    def append(self, record: journal_pb2.JournalRecord, attachment: bytes = b"") -> int:
        """As of `Journal`."""
        offset = super().append(record, attachment)
        if record.WhichOneof("kind") == "selection":
            self.durable_unix_ns[record.selection.step] = time.time_ns()
        return offset


async def serve(order: Order, folder: Path) -> int | None:
    """Serve one run until the input ends; the resident memory before it."""
    TimedJournal.durable_unix_ns = {}
    store = make_store(num_rows=4 * order.sub_batch, vocab_size=VOCABULARY)
    config = ServerConfig(port=0)
    # Of a model that doesn't score, only the device is asked for.
    build = partial(build_engine, torch.nn.Linear(1, 1), store)
    host = Host(
        store,
        FINGERPRINTS,
        folder,
        build=build,
        max_runs=1,
        rank_lease_s=config.rank_lease_s,
        open_journal=TimedJournal,
    )
    server, address = listen(config)
    add_service(server, host, config)
    await server.start()
    scheduler = asyncio.create_task(host.schedule())
    start = _start()
    print(address, flush=True)  # noqa: T201 - for who started this
    await asyncio.to_thread(sys.stdin.read)
    await host.stop()
    await scheduler
    await server.stop(1.0)
    host.close()
    return start


def main() -> None:
    """Serve, and say how it went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("order", type=Order.from_json)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="subbatch-") as folder:
        start = asyncio.run(serve(parser.parse_args().order, Path(folder)))
    told = {
        "durable_unix_ns": TimedJournal.durable_unix_ns,
        "start_bytes": start,
        "peak_bytes": None if start is None else resident_bytes("VmHWM"),
    }
    print(json.dumps(told))  # noqa: T201 - the answer


def _start() -> int | None:
    """Resident memory, whose peak is counted from here; None where the system doesn't tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    reset_peak()
    return resident_bytes("VmRSS")


if __name__ == "__main__":
    main()
