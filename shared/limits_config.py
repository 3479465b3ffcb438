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
    connections: Positive = 4096
    calls_per_connection: Positive = 1024
    # How long a new connection may take until it speaks TLS and HTTP/2, and how long one may stay without a call.
    handshake_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    idle_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    # Calls at a time, of which every rank's selection stream is one, and of streams those about one run.
    calls: Positive = 8192
    streams_per_run: Positive = 2048

    # ---- pushes
    # What all pushes at a time may have sent together; each takes up to three times that until it is on disk.
    push_bytes: Positive = 64 << 30
    pushes_per_run: Positive = 2
    # How long a push may send nothing, and how slow it may be on the whole.
    push_stall_s: Annotated[float, Field(gt=0)] = 30.0
    push_bytes_per_s: Positive = 1 << 20

    # ---- runs
    # Runs whose journals the server keeps, closed ones too; how many are open at a time is server.max_runs.
    stored_runs: Positive = 10_000
    num_steps: Positive = 10_000_000
    ranks: Positive = 4096
    # Of staleness, push_every and lookahead.
    steps_ahead: Positive = 65_536
    large_batch_size: Positive = 16_384
    # Of selection.num_probes and selection.sketch_size.
    probes: Positive = 4096
    sketch_size: Positive = 65_536
    # Of a forward's padded tokens, selection.score_tokens.
    score_tokens: Positive = 1 << 20
    adapter_rank: Positive = 4096
    trained_tensors: Positive = 16_384
