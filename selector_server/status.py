"""What a running server is doing, for the command line."""

from __future__ import annotations

import grpc
from rich.table import Table

from selector_server.leases import ranks_in_words
from shared.config import ClientConfig
from shared.errors import from_rpc_error
from shared.pb.v1 import selector_pb2, selector_pb2_grpc
from shared.transport import call_metadata, open_channel

_COLUMNS = (
    "run", "incarnation", "selected", "fallback", "completed by rank", "ranks", "weights kept", "scoring processes",
    "waits for",
)  # fmt: skip
# More than these are told as a range.
_MOST_LISTED_RANKS = 8


def status_table(client: ClientConfig) -> Table:
    """One row per run: selected and fallback steps, ranks and since when they are gone, weights, and who is waited for.

    Raises:
        SubbatchError: the server can't be reached or refuses.
    """
    metadata = call_metadata(client)
    table = Table(title=f"runs on {client.selector}")
    for column in _COLUMNS:
        table.add_column(column)
    with open_channel(client.selector, client.tls) as channel:
        stub = selector_pb2_grpc.SelectorServiceStub(channel)
        try:
            for status in stub.WatchRun(
                selector_pb2.WatchRunRequest(), timeout=client.call_timeout_s, metadata=metadata
            ):
                table.add_row(
                    status.run,
                    str(status.incarnation),
                    f"{status.next_step}/{status.num_steps}",
                    str(status.num_fallback),
                    _completed(status),
                    _ranks(status),
                    " ".join(map(str, status.weights_versions)) or "–",
                    str(status.scoring_processes),
                    status.waits_for,
                )
        except grpc.RpcError as error:
            raise from_rpc_error(error, doing=f"asking {client.selector} for its status") from None
    return table


def _completed(status: selector_pb2.RunStatus) -> str:
    """How many steps each rank has completed; of many ranks, the fewest and the most."""
    completed = sorted(status.completed.items())
    if len(completed) <= _MOST_LISTED_RANKS:
        return " ".join(f"{rank}:{steps}" for rank, steps in completed)
    steps = status.completed.values()
    return f"{min(steps)} to {max(steps)}"


def _ranks(status: selector_pb2.RunStatus) -> str:
    """How many ranks are there, and which are gone since when."""
    there = f"{len(status.completed) - len(status.gone_ranks)} of {len(status.completed)}"
    if not status.gone_ranks:
        return there
    longest = max(status.silent_seconds[rank] for rank in status.gone_ranks)
    return f"{there}; {ranks_in_words(status.gone_ranks)} gone for {longest:.0f} s"
