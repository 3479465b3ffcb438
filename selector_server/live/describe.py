"""How a run stands, as the message that status, terminal view and web page show."""

from __future__ import annotations

import time

from selector_server.hosted_run import HostedRun
from selector_server.live.verdict import verdict
from shared.pb.v1 import selector_pb2 as pb
from shared.source_labels import SourceLabels


def run_status(hosted: HostedRun, *, scoring_processes: int) -> pb.RunStatus:
    """How a run stands; the caller holds its lock.

    Args:
        hosted: The run.
        scoring_processes: Of the server.
    """
    run = hosted.run
    return pb.RunStatus(
        run=run.info.name,
        incarnation=run.incarnation,
        num_steps=run.info.timing.num_steps,
        next_step=run.next_step,
        completed=run.completed,
        weights_versions=run.weights_versions,
        waits_for=hosted.waits_for() or "scoring",
        closed=run.closed,
        silent_seconds=hosted.leases.silent_seconds(time.monotonic()),
        gone_ranks=hosted.leases.away,
        scoring_processes=scoring_processes,
        num_fallback=run.num_fallback,
        sent_bytes=hosted.tally.sent_bytes,
    )


def add_detail(status: pb.RunStatus, hosted: HostedRun, *, sources: SourceLabels, is_shared: bool) -> None:
    """Add what people look at: the newest steps, the sources, and who waits for whom.

    Args:
        status: Of the run, as `run_status` gave it.
        hosted: The run.
        sources: Names of its sources.
        is_shared: Whether the server has other open runs to select for.
    """
    run, now = hosted.run, time.time_ns()
    status.detail.CopyFrom(
        pb.RunDetail(
            unix_ns=now,
            lookahead=run.info.timing.lookahead,
            staleness=run.info.timing.staleness,
            large_batch_size=run.info.selection.large_batch_size,
            sub_batch_size=run.info.selection.sub_batch_size,
            steps=hosted.recent.steps(),
        )
    )
    tally = hosted.tally
    if tally.drawn is not None and tally.picked is not None:
        picked = sources.label(tally.picked)
        for name, drawn in sources.label(tally.drawn).items():
            status.detail.sources[name].CopyFrom(pb.SourceRows(drawn=drawn, picked=picked[name]))
    told = verdict(
        status,
        now_unix_ns=now,
        failure=str(run.failure or ""),
        held=str(run.held or ""),
        missing=hosted.recent.missing(),
        is_shared=is_shared,
    )
    status.detail.verdict.CopyFrom(told)
