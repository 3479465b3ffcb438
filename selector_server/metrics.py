"""Every metric of a selector server, by name.

Those with label `run` are of runs that are open; they go when a run is closed. `selector-server metrics` lists them.
"""

from __future__ import annotations

from shared.metric import Metric

PHASES = ("load", "draw", "score", "pick", "journal")
# What a run that is open is at: each second is one of these.
STATES = (
    "selecting",  # the server works on its next step
    "queued",  # the next step could be selected; the server works for another run
    "rank",  # it is as far ahead of its slowest rank as it may be: nobody waits
    "weights",  # the trainer hasn't pushed the weights that the next step needs
    "disk",  # no room to make the next selection durable
    "failed",  # an error stopped it, until the run is opened again
    "done",  # every step is selected
)
RANK_STATES = ("here", "gone")

# ---- the server
BUILD = Metric(
    "subbatch_selector_build_info", "gauge", "1, of this version on this kind of device.", ("version", "device")
)
READY = Metric(
    "subbatch_selector_ready",
    "gauge",
    "1 if trainers can be served: everything is loaded, and the journal can be written.",
)
OPEN_RUNS = Metric("subbatch_selector_open_runs", "gauge", "Runs that are open.")
MAX_RUNS = Metric("subbatch_selector_max_open_runs", "gauge", "Most runs that may be open: server.max_runs.")
SCORING_PROCESSES = Metric("subbatch_selector_scoring_processes", "gauge", "Processes that score, this one included.")
REFUSED_CALLS = Metric(
    "subbatch_selector_refused_calls_total",
    "counter",
    "Calls that were refused, by method and gRPC status.",
    ("method", "code"),
)
DISK_FREE = Metric("subbatch_selector_journal_disk_free_bytes", "gauge", "Free bytes of the journal's disk.")
DISK_SIZE = Metric("subbatch_selector_journal_disk_size_bytes", "gauge", "Size of the journal's disk.")
DEVICE_MEMORY = Metric(
    "subbatch_selector_device_memory_bytes",
    "gauge",
    "Bytes of the accelerator that PyTorch holds for tensors.",
    ("device",),
)
DEVICE_MEMORY_PEAK = Metric(
    "subbatch_selector_device_memory_peak_bytes", "gauge", "The most it has held so far.", ("device",)
)
DEVICE_MEMORY_SIZE = Metric(
    "subbatch_selector_device_memory_size_bytes", "gauge", "All memory of the accelerator.", ("device",)
)
DEVICE_BUSY = Metric(
    "subbatch_selector_device_busy_ratio",
    "gauge",
    "Share of the time that the accelerator was computing, as its driver says (needs nvidia-ml-py).",
    ("device",),
)

# ---- a run's pace
STEPS = Metric("subbatch_selector_run_steps", "gauge", "Steps that the run has.", ("run",))
NEXT_STEP = Metric("subbatch_selector_next_step", "gauge", "The first step without a selection.", ("run",))
STEPS_AHEAD = Metric(
    "subbatch_selector_steps_ahead", "gauge", "Selections there are past the slowest rank that is there.", ("run",)
)
LOOKAHEAD = Metric("subbatch_selector_lookahead_steps", "gauge", "Most steps it may be ahead: run.lookahead.", ("run",))
RANKS = Metric(
    "subbatch_selector_ranks",
    "gauge",
    "Ranks that are here, and that are gone.",
    ("run", "state"),
    {"state": RANK_STATES},
)
RANK_COMPLETED = Metric(
    "subbatch_selector_rank_completed_steps", "gauge", "Steps that a rank has completed.", ("run", "rank")
)
RANK_SILENT = Metric(
    "subbatch_selector_rank_silent_seconds",
    "gauge",
    "How long a rank hasn't been heard; 0 while its stream of selections is open.",
    ("run", "rank"),
)
STATE = Metric(
    "subbatch_selector_run_state",
    "gauge",
    "1 for what the run is at, 0 for the others.",
    ("run", "state"),
    {"state": STATES},
)
STATE_SECONDS = Metric(
    "subbatch_selector_run_state_seconds_total",
    "counter",
    "How long the run was at that.",
    ("run", "state"),
    {"state": STATES},
)

# ---- its selections
SELECTIONS = Metric("subbatch_selector_selections_total", "counter", "Selections that were made durable.", ("run",))
SELECTION_SECONDS = Metric(
    "subbatch_selector_selection_seconds", "histogram", "From beginning a selection until it is durable.", ("run",)
)
PHASE_SECONDS = Metric(
    "subbatch_selector_phase_seconds_total",
    "counter",
    "How long selections took, by phase.",
    ("run", "phase"),
    {"phase": PHASES},
)
ROWS_DRAWN = Metric("subbatch_selector_drawn_rows_total", "counter", "Rows of large batches.", ("run",))
TOKENS_DRAWN = Metric("subbatch_selector_drawn_tokens_total", "counter", "Tokens of large batches.", ("run",))
ROWS_PICKED = Metric("subbatch_selector_picked_rows_total", "counter", "Rows of sub-batches.", ("run",))
TOKENS_PICKED = Metric("subbatch_selector_picked_tokens_total", "counter", "Tokens of sub-batches.", ("run",))
ROWS_SKIPPED = Metric(
    "subbatch_selector_skipped_rows_total", "counter", "Rows of large batches whose loss wasn't finite.", ("run",)
)
SOURCE_DRAWN = Metric(
    "subbatch_selector_source_drawn_rows_total", "counter", "Rows of large batches, by source.", ("run", "source")
)
SOURCE_PICKED = Metric(
    "subbatch_selector_source_picked_rows_total", "counter", "Rows of sub-batches, by source.", ("run", "source")
)
STALENESS = Metric(
    "subbatch_selector_staleness_steps",
    "gauge",
    "How many steps old the weights behind the newest selection are.",
    ("run",),
)
SENT = Metric("subbatch_selector_sent_selections_total", "counter", "Selections sent, over all ranks.", ("run",))
SENT_BYTES = Metric("subbatch_selector_sent_bytes_total", "counter", "Their bytes, and those of rows.", ("run",))

# ---- its weights, and what went wrong
PUSHES = Metric("subbatch_selector_pushes_total", "counter", "Weights versions that were made durable.", ("run",))
PUSH_BYTES = Metric("subbatch_selector_push_bytes_total", "counter", "Their bytes.", ("run",))
PUSH_SECONDS = Metric(
    "subbatch_selector_push_seconds_total", "counter", "From their first byte until they are durable.", ("run",)
)
OPENINGS = Metric(
    "subbatch_selector_openings_total", "counter", "How often the run was opened, as its journal tells.", ("run",)
)
REWOUND = Metric(
    "subbatch_selector_set_aside_selections_total",
    "counter",
    "Selections that rewinds, restarts and fallbacks took back, as its journal tells.",
    ("run",),
)
FALLBACKS = Metric(
    "subbatch_selector_fallback_steps_total",
    "counter",
    "Steps that were trained without a selection, as its journal tells.",
    ("run",),
)
JOURNAL_BYTES = Metric("subbatch_selector_journal_bytes", "gauge", "Bytes of the run's journal file.", ("run",))
WEIGHTS_BYTES = Metric("subbatch_selector_weights_bytes", "gauge", "Bytes of its weights on disk.", ("run",))

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
