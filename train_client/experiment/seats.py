"""Which devices a run may use: cores of this machine's processor, or CUDA devices."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import Config
from shared.errors import ConfigError
from train_client.process import available_cores


@dataclass(frozen=True)
class Seat:
    """The devices of both sides of one run; none given: any."""

    trainer: tuple[int, ...]
    selector: tuple[int, ...]
    on_cores: bool

    @property
    def all(self) -> tuple[int, ...]:
        """The devices of both sides."""
        return tuple(sorted({*self.trainer, *self.selector})) if self.trainer and self.selector else ()


def seats(config: Config) -> tuple[Seat, list[Seat]]:
    """The seat of a run that scores, and the seats of runs that don't, as many as may run at a time.

    Raises:
        ConfigError: cores that this process may not use.
    """
    settings = config.experiment
    on_cores = config.train.device == "cpu"
    if not on_cores:
        seat = Seat(settings.trainer_devices, settings.selector_devices, on_cores=False)
        return seat, [seat]
    cores = tuple(available_cores())
    if absent := sorted({*settings.trainer_devices, *settings.selector_devices} - set(cores)):
        raise ConfigError(f"experiment: cores {absent} can't be used, this process has {list(cores)}: name those")
    seat = Seat(settings.trainer_devices or cores[:-1] or cores, settings.selector_devices or cores[-1:], on_cores=True)
    if not settings.parallel or settings.num_processes > 1 or len(seat.all) < 2:
        return seat, [seat]
    # Neither has a selector at work, so both share all cores as the system sees fit.
    shared = Seat(seat.all, seat.all, on_cores=True)
    return seat, [shared, shared]
