"""The values of a training job's metrics at one moment, and the port where they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch

from shared.accelerator import accelerator_use
from shared.config import ClientConfig, MetricsConfig
from shared.durations import Durations
from shared.metric import Metric
from shared.records import RunInfo
from shared.sample import Sample
from shared.scrape import routes
from shared.scrape_port import Reader, ScrapePort
from shared.source_labels import SourceLabels
from shared.tokens import TokenFile
from train_client import metrics as m
from train_client.gradient_match import GradientMatch
from train_client.source import SelectionSource, ServerSource
from train_client.tally import Tally
from train_client.training_data import TrainingData


class Collector:
    """Reads one job, in any thread."""

    def __init__(
        self,
        client: ClientConfig,
        info: RunInfo,
        data: TrainingData,
        source: SelectionSource,
        tally: Tally,
        *,
        first_step: int,
        device: torch.device,
        gradient_match: Callable[[], GradientMatch | None],
    ) -> None:
        """Prepare.

        Args:
            client: How selections come.
            info: The run.
            data: Its rows.
            source: Of its selections.
            tally: Of its steps.
            first_step: At which this job began.
            device: Rank 0's.
            gradient_match: The newest one that was measured, if any.
        """
        self._info, self._source, self._tally = info, source, tally
        self._labels = SourceLabels(data.source_names, data.source_rows)
        self._first_step, self._device, self._gradient_match = first_step, device, gradient_match
        self._selector = client.selector if client.selector in ("inline", "replay") else "server"

    def __call__(self) -> list[Sample]:
        """All values."""
        run = self._info.name
        with self._tally.lock:
            samples = list(self._of_the_steps(run, self._tally))
            completed = self._first_step + self._tally.steps
        if isinstance(self._source, ServerSource):
            samples += self._of_the_wire(self._source, run, completed)
        return [*samples, *self._of_the_device(run)]

    def _of_the_steps(self, run: str, tally: Tally) -> Iterator[Sample]:
        yield Sample(m.BUILD, 1, (run, version("subbatch"), self._selector, self._device.type))
        values: dict[Metric, float | Durations] = {
            m.STEPS: self._info.timing.num_steps,
            m.COMPLETED: self._first_step + tally.steps,
            m.RESUMED_FROM: self._first_step,
            m.RANKS: self._info.world_size,
            m.STEP_SECONDS: tally.step_seconds,
            m.ROWS: tally.rows,
            m.TOKENS: tally.tokens,
            m.FALLBACKS: tally.fallbacks,
            m.RECEIVED_BYTES: tally.received_bytes,
        }
        if tally.steps:
            values |= {m.LOSS: tally.loss, m.STALENESS: tally.staleness}
        if match := self._gradient_match():
            values |= {m.GRADIENT_ERROR: match.error, m.GRADIENT_COSINE: match.cosine, m.GRADIENT_BIAS: match.bias}
        for metric, value in values.items():
            yield Sample(metric, value, (run,))
        for by, counts in ((m.PART_SECONDS, tally.parts), (m.WAIT_SECONDS, tally.causes)):
            for label, seconds in counts.items():
                yield Sample(by, seconds, (run, label))
        for source, rows in self._labels.label(tally.sources).items():
            yield Sample(m.SOURCE_ROWS, rows, (run, source))

    def _of_the_wire(self, source: ServerSource, run: str, completed: int) -> Iterator[Sample]:
        connection = source.connection()
        traffic = connection.traffic
        yield Sample(m.AWAY_SECONDS, connection.away_s, (run,))
        yield Sample(m.STEPS_AHEAD, max(0, connection.next_to_arrive - completed), (run,))
        yield Sample(m.PUSHES_UNDER_WAY, connection.pushes_under_way, (run,))
        yield Sample(m.PUSHES, traffic.pushes, (run,))
        yield Sample(m.PUSH_BYTES, traffic.push_bytes, (run,))
        yield Sample(m.PUSH_SECONDS, traffic.push_seconds, (run,))
        for call, count in traffic.retries.items():
            yield Sample(m.RETRIES, count, (run, call))

    def _of_the_device(self, run: str) -> Iterator[Sample]:
        use = accelerator_use(self._device)
        if use is None:
            return
        yield Sample(m.DEVICE_MEMORY, use.held_bytes, (run, use.name))
        yield Sample(m.DEVICE_MEMORY_PEAK, use.peak_bytes, (run, use.name))
        yield Sample(m.DEVICE_MEMORY_SIZE, use.size_bytes, (run, use.name))
        if use.busy_ratio is not None:
            yield Sample(m.DEVICE_BUSY, use.busy_ratio, (run, use.name))


def open_metrics_port(config: MetricsConfig, collect: Collector) -> ScrapePort:
    """Serve rank 0's metrics on the port that is set for them; who trains is ready.

    Raises:
        ConfigError: a port that can't be used, or may not without protection.
    """
    reader = Reader()
    if config.token_file:
        tokens = TokenFile(config.token_file)
        reader = Reader(lambda token: bool(tokens.owner(token)))
    return ScrapePort(config, routes(collect, not_ready=str), reader, branch="client.metrics")
