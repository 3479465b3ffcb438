"""Every metric of a training job, by name: rank 0 exports them. `train-client metrics` lists them.

All have the label `run`. Where a job's ranks differ (times, loss), they are those of rank 0.
"""

from __future__ import annotations

from shared.metric import Metric

PARTS = ("wait", "prepare", "train", "optimizer", "push")
# What a rank that stood still for its selection waited for, by the selector's own account of that selection.
CAUSES = (
    "start",  # the server hadn't begun: it waited for weights or a rank, or worked for another run
    "load",  # the server was loading weights
    "draw",
    "score",
    "pick",
    "journal",  # the selection was being made durable
    "delivery",  # it was durable, and on its way
    "away",  # the server was away, and the ranks agreed to go on without it
)
CALLS = ("open", "stream", "push", "report", "close")

BUILD = Metric(
    "subbatch_trainer_build_info",
    "gauge",
    "1, of this version, way of selecting and kind of device.",
    ("run", "version", "selector", "device"),
)
STEPS = Metric("subbatch_trainer_run_steps", "gauge", "Steps that the run has.", ("run",))
COMPLETED = Metric("subbatch_trainer_completed_steps", "gauge", "Steps that were attempted.", ("run",))
RESUMED_FROM = Metric("subbatch_trainer_resumed_from_step", "gauge", "The step at which this job began.", ("run",))
RANKS = Metric("subbatch_trainer_ranks", "gauge", "Ranks of the job.", ("run",))
LOSS = Metric("subbatch_trainer_loss", "gauge", "Rank 0's share of the newest step's loss.", ("run",))

# ---- time
STEP_SECONDS = Metric("subbatch_trainer_step_seconds", "histogram", "How long a step took, waiting included.", ("run",))
PART_SECONDS = Metric(
    "subbatch_trainer_step_part_seconds_total",
    "counter",
    "How long steps took, by part; waiting / all parts is the wait fraction.",
    ("run", "part"),
    {"part": PARTS},
)
WAIT_SECONDS = Metric(
    "subbatch_trainer_wait_seconds_total",
    "counter",
    "How long rank 0 stood still because a selection hadn't arrived, by cause.",
    ("run", "cause"),
    {"cause": CAUSES},
)
AWAY_SECONDS = Metric(
    "subbatch_trainer_server_away_seconds", "gauge", "How long the server hasn't answered; 0 while it does.", ("run",)
)
STEPS_AHEAD = Metric(
    "subbatch_trainer_steps_ahead", "gauge", "Selections that have arrived and aren't trained on yet.", ("run",)
)
STALENESS = Metric(
    "subbatch_trainer_staleness_steps",
    "gauge",
    "How many steps old the weights behind the newest step's selection were.",
    ("run",),
)

# ---- work
ROWS = Metric("subbatch_trainer_rows_total", "counter", "Rows trained on, over all ranks.", ("run",))
TOKENS = Metric("subbatch_trainer_tokens_total", "counter", "Their tokens, padding left out.", ("run",))
SOURCE_ROWS = Metric(
    "subbatch_trainer_source_rows_total", "counter", "Rows trained on, over all ranks, by source.", ("run", "source")
)
FALLBACKS = Metric("subbatch_trainer_fallback_steps_total", "counter", "Steps trained without a selection.", ("run",))
GRADIENT_ERROR = Metric(
    "subbatch_trainer_gradient_error_ratio",
    "gauge",
    "Error of the sub-batch's gradient relative to the large batch's, where train.gradient_check_every measures it.",
    ("run",),
)
GRADIENT_COSINE = Metric(
    "subbatch_trainer_gradient_cosine_ratio", "gauge", "Cosine of the two gradients, measured with it.", ("run",)
)
GRADIENT_BIAS = Metric(
    "subbatch_trainer_gradient_bias_ratio",
    "gauge",
    "Bias of the sub-batches' gradients over the checks so far.",
    ("run",),
)

# ---- the wire
RECEIVED_BYTES = Metric(
    "subbatch_trainer_received_bytes_total", "counter", "Bytes of selections, rank 0's copy.", ("run",)
)
RETRIES = Metric(
    "subbatch_trainer_retries_total",
    "counter",
    "Calls that failed and were made again.",
    ("run", "call"),
    {"call": CALLS},
)
PUSHES = Metric("subbatch_trainer_pushes_total", "counter", "Weights versions that the server confirmed.", ("run",))
PUSH_BYTES = Metric("subbatch_trainer_push_bytes_total", "counter", "Their bytes.", ("run",))
PUSH_SECONDS = Metric(
    "subbatch_trainer_push_seconds_total", "counter", "How long their uploads took, in the background.", ("run",)
)
PUSHES_UNDER_WAY = Metric(
    "subbatch_trainer_pushes_under_way", "gauge", "Weights versions that the server hasn't confirmed.", ("run",)
)

# ---- the device
DEVICE_MEMORY = Metric(
    "subbatch_trainer_device_memory_bytes",
    "gauge",
    "Bytes of rank 0's accelerator that PyTorch holds for tensors.",
    ("run", "device"),
)
DEVICE_MEMORY_PEAK = Metric(
    "subbatch_trainer_device_memory_peak_bytes", "gauge", "The most it has held so far.", ("run", "device")
)
DEVICE_MEMORY_SIZE = Metric(
    "subbatch_trainer_device_memory_size_bytes", "gauge", "All memory of the accelerator.", ("run", "device")
)
DEVICE_BUSY = Metric(
    "subbatch_trainer_device_busy_ratio",
    "gauge",
    "Share of the time that the accelerator was computing, as its driver says (needs nvidia-ml-py).",
    ("run", "device"),
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
