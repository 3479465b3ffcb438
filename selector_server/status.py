"""What a running server is doing, for the command line."""

from __future__ import annotations

import grpc
from rich.table import Table

from shared.config import ClientConfig
from shared.errors import from_rpc_error
from shared.pb.v1 import selector_pb2, selector_pb2_grpc
from shared.transport import TOKEN_KEY, open_channel, read_token


def status_table(client: ClientConfig) -> Table:
    """One row per run: steps selected, ranks, weights, and who is waited for.

    Raises:
        SubbatchError: the server can't be reached or refuses.
    """
    token = read_token(client.token_file)
    metadata = ((TOKEN_KEY, f"Bearer {token}"),) if token else ()
    table = Table(title=f"runs on {client.selector}")
    for column in ("run", "incarnation", "selected", "completed by rank", "weights kept", "waits for"):
        table.add_column(column)
    with open_channel(client.selector, client.tls) as channel:
        stub = selector_pb2_grpc.SelectorServiceStub(channel)
        try:
            for status in stub.WatchRun(
                selector_pb2.WatchRunRequest(), timeout=client.call_timeout_s, metadata=metadata
            ):
                completed = " ".join(f"{rank}:{steps}" for rank, steps in sorted(status.completed.items()))
                table.add_row(
                    status.run,
                    str(status.incarnation),
                    f"{status.next_step}/{status.num_steps}",
                    completed,
                    " ".join(map(str, status.weights_versions)) or "–",
                    status.waits_for,
                )
        except grpc.RpcError as error:
            raise from_rpc_error(error, doing=f"asking {client.selector} for its status") from None
    return table
