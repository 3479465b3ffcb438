"""Who is told of every step besides the loop itself: metrics and traces, where they are asked for.

What is off costs nothing, not even the import of its libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from shared.config import ClientConfig
from shared.telemetry_config import TraceConfig
from train_client.source import ServerSource

if TYPE_CHECKING:
    import torch

    from shared.records import RunInfo
    from train_client.gradient_match import GradientMatch
    from train_client.plugin import StepReport
    from train_client.source import SelectionSource
    from train_client.training_data import TrainingData

Observe = Callable[["StepReport"], None]


@contextmanager
def observing(
    client: ClientConfig,
    trace: TraceConfig,
    info: RunInfo,
    data: TrainingData,
    source: SelectionSource,
    *,
    rank: int,
    first_step: int,
    device: torch.device,
    gradient_match: Callable[[], GradientMatch | None],
) -> Iterator[Observe]:
    """While a run trains, what to call after each of its steps.

    Args:
        client: How selections come, and where metrics are read.
        trace: Where traces go.
        info: The run.
        data: Its rows.
        source: Of its selections, which isn't closed before this ends.
        rank: This rank; the first alone has metrics.
        first_step: At which this job begins.
        device: This rank's.
        gradient_match: The newest one that was measured, if any.

    Raises:
        ConfigError: what is asked for can't be used.
    """
    observers: list[Observe] = []
    with ExitStack() as open_ones:
        if rank == 0 and client.metrics.port is not None:
            from train_client.collect import Collector, open_metrics_port
            from train_client.tally import Tally

            tally = Tally(len(data.source_rows))
            collect = Collector(
                client, info, data, source, tally, first_step=first_step, device=device, gradient_match=gradient_match
            )
            open_ones.enter_context(closing(open_metrics_port(client.metrics, collect)))
            observers.append(tally.add)
        if trace.export != "off":
            from shared.tracing import open_traces
            from train_client.step_trace import StepTrace, instance

            traces = open_ones.enter_context(closing(open_traces(trace, service="trainer", instance=instance(rank))))
            selects = rank == 0 and not isinstance(source, ServerSource)
            steps = StepTrace(traces, run=info.name, rank=rank, selects=selects)
            observers.append(steps.step)
            if isinstance(source, ServerSource):
                source.connection().traffic.on_pushed = steps.pushed

        def observe(report: StepReport) -> None:
            for observer in observers:
                observer(report)

        yield observe
