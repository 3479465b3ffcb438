"""What a trainer knows of the rows that are trained on: from its own store, or from the server that sends them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from shared.config import CONFIG_VARIABLE, ClientConfig, Config
from shared.dataset import Store
from shared.errors import ConfigError
from shared.pb.v1 import selector_pb2 as pb
from train_client.calls import Calls
from train_client.ranks import Ranks


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
        fingerprint: Of the store's content.
        tokenizer: The fingerprint of what made the token ids.
        max_token_id: The largest of them.
        source_names: By source number.
        source_rows: How many rows each source has.
        store: The rows; None where they come from the server.
        origin: Where all this was learnt, for errors.
    """

    fingerprint: str
    tokenizer: str
    max_token_id: int
    source_names: tuple[str, ...]
    source_rows: tuple[int, ...]
    store: Store | None
    origin: str


def training_data(config: Config, ranks: Ranks) -> TrainingData:
    """Open the store, or let rank 0 ask the server what it is.

    Raises:
        ConfigError: no store is named and none is asked for; or a server that sends no rows.
        DataError: a store that can't be used.
        SubbatchError: the server can't be reached, or refuses; the same on every rank.
    """
    if config.client.payload == "records":
        described = ranks.on_first(lambda: _described(config.client, run=config.run.name).SerializeToString())
        return _of_server(pb.DescribeStoreReply.FromString(described), config.client)
    if config.data.store is None:
        raise ConfigError(
            "data.store is not set: give the folder that `selector-server prepare` wrote, in the file that `config` or "
            f"{CONFIG_VARIABLE} names, or as SUBBATCH_DATA__STORE; or let the server send the rows, with "
            "client.payload 'records'"
        )
    return of_store(config.data.store)


def of_store(path: Path) -> TrainingData:
    """What a trainer's own store says.

    Raises:
        DataError: a store that can't be used.
    """
    store = Store.open(path)
    return TrainingData(
        fingerprint=store.fingerprint,
        tokenizer=store.manifest.tokenizer.fingerprint,
        max_token_id=store.manifest.max_token_id,
        source_names=store.source_names,
        source_rows=store.source_rows,
        store=store,
        origin=f"store {path}",
    )


def _of_server(reply: pb.DescribeStoreReply, client: ClientConfig) -> TrainingData:
    return TrainingData(
        fingerprint=reply.dataset,
        tokenizer=reply.tokenizer,
        max_token_id=reply.max_token_id,
        source_names=tuple(source.name for source in reply.sources),
        source_rows=tuple(source.rows for source in reply.sources),
        store=None,
        origin=f"the store of {client.selector}",
    )


def _described(client: ClientConfig, *, run: str) -> pb.DescribeStoreReply:
    calls = Calls(client)

    def describe(timeout_s: float) -> pb.DescribeStoreReply:
        try:
            reply: pb.DescribeStoreReply = calls.stub.DescribeStore(
                pb.DescribeStoreRequest(), timeout=timeout_s, metadata=calls.metadata
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ConfigError(
                    f"run {run!r}: client.payload is 'records', and the server on {client.selector} doesn't know how "
                    "to send rows: run the same subbatch release on server and trainers, or set client.payload to "
                    "'indices' and data.store"
                ) from None
            raise
        return reply

    try:
        return calls.call(
            f"run {run!r}: asking {client.selector} what its store is",
            describe,
            kind="open",
            patience_s=client.connect_timeout_s,
            remedy="start the server, or correct client.selector",
        )
    finally:
        calls.close()
