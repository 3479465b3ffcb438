"""Who is told of every step besides the loop itself: metrics, where they are asked for.

What is off costs nothing, not even the import of its libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared.config import ClientConfig

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
    info: RunInfo,
    data: TrainingData,
    source: SelectionSource,
    *,
    is_first: bool,
    first_step: int,
    device: torch.device,
    gradient_match: Callable[[], GradientMatch | None],
) -> Iterator[Observe]:
    """While a run trains, what to call after each of its steps.

    Args:
        client: How selections come, and where metrics are read.
        info: The run.
        data: Its rows.
        source: Of its selections, which is open.
        is_first: Whether this is rank 0, which alone has metrics.
        first_step: At which this job begins.
        device: This rank's.
        gradient_match: The newest one that was measured, if any.

    Raises:
        ConfigError: a port that can't be used, or may not without protection.
    """
    if not is_first or client.metrics.port is None:
        yield lambda report: None
        return
    from train_client.collect import Collector, open_metrics_port
    from train_client.tally import Tally

    tally = Tally(len(data.source_rows))
    collect = Collector(
        client, info, data, source, tally, first_step=first_step, device=device, gradient_match=gradient_match
    )
    port = open_metrics_port(client.metrics, collect)
    try:
        yield tally.add
    finally:
        port.close()
