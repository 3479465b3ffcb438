"""Asking a server how its runs stand, from another process."""

from __future__ import annotations

import json
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from shared.config import ClientConfig
from shared.errors import from_rpc_error
from shared.pb.v1 import selector_pb2, selector_pb2_grpc
from shared.transport import call_metadata, open_channel


def ask(client: ClientConfig) -> list[selector_pb2.RunStatus]:
    """How each run of the caller's stands now, by name.

    Args:
        client: The server's address, TLS and token.

    Raises:
        SubbatchError: the server can't be reached or refuses.
    """
    request = selector_pb2.WatchRunRequest(detail=True)
    with open_channel(client.selector, client.tls) as channel:
        stub = selector_pb2_grpc.SelectorServiceStub(channel)
        try:
            return list(stub.WatchRun(request, timeout=client.call_timeout_s, metadata=call_metadata(client)))
        except grpc.RpcError as error:
            raise from_rpc_error(error, doing=f"asking {client.selector} for its status") from None


def as_dict(message: Any) -> dict[str, Any]:
    """A message as JSON takes it, with the proto's names; 64-bit integers are text, as protobuf's JSON has them."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def as_json(runs: list[selector_pb2.RunStatus]) -> str:
    """Several runs as one JSON document."""
    return json.dumps({"runs": [as_dict(run) for run in runs]}, indent=2)
