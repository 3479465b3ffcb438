"""What a server takes at most from those who call it, so that a wrong or hostile caller costs bounded memory and time.

Every limit has a name here, and a call that is refused for one names it and both values.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.branch import Branch, Positive


class LimitsConfig(Branch):
    """Limits of one server. Defaults let through what a large training job needs, with room to spare."""

    # ---- connections and calls
    # Of one message. Weights come in chunks of 1 MiB; the largest other message opens a run, with a few hundred bytes
    # for each trained tensor.
    message_bytes: Annotated[int, Field(ge=2 << 20, le=64 << 20)] = 4 << 20
    # Connections at a time.
    connections: Positive = 4096
    # Calls at a time on one of them.
    calls_per_connection: Positive = 1024
    # How long a new connection may take until it speaks TLS and HTTP/2.
    handshake_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    # How long a connection may stay without a call.
    idle_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    # Calls at a time, of which every rank's selection stream is one.
    calls: Positive = 8192
    # Of these, streams about one run.
    streams_per_run: Positive = 2048

    # ---- pushes
    # What all pushes at a time may have sent together; each takes up to three times that until it is on disk.
    push_bytes: Positive = 64 << 30
    # Pushes at a time.
    pushes_per_run: Positive = 2
    # How long a push may send nothing.
    push_stall_s: Annotated[float, Field(gt=0)] = 30.0
    # How slow a push may be on the whole.
    push_bytes_per_s: Positive = 1 << 20

    # ---- runs
    # Runs whose journals the server keeps, closed ones too; how many are open at a time is server.max_runs.
    stored_runs: Positive = 10_000
    # Of one run.
    num_steps: Positive = 10_000_000
    # Of one run.
    ranks: Positive = 4096
    # Of staleness, push_every and lookahead.
    steps_ahead: Positive = 65_536
    # Of selection.large_batch_size.
    large_batch_size: Positive = 16_384
    # Of selection.num_probes.
    probes: Positive = 4096
    # Of selection.sketch_size.
    sketch_size: Positive = 65_536
    # Of a forward's padded tokens, selection.score_tokens.
    score_tokens: Positive = 1 << 20
    # Of a LoRA adapter.
    adapter_rank: Positive = 4096
    # Of one run: trained tensors that it names when it is opened.
    trained_tensors: Positive = 16_384
