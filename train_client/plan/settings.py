"""What a plan can be told, each key as an option on the command line and as a key of a TOML file.

What isn't given is arithmetic: a forward pass takes two operations per parameter and token, its backward pass two more
for the gradients of activations and two for those of the weights that are trained: with LoRA little more than a forward
pass, in full fine-tuning twice one. The defaults are the paper's run, Phi-2 with LoRA on MathInstruct, and disks and
networks of ordinary speed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from shared.branch import Branch, Positive
from shared.errors import ConfigError
from train_client.plan.costs import Costs, Layout, Noise

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Amount = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]
_PAPER_TRAINERS = 4
_BYTES_PER_WEIGHT = 4  # what is trained is float32
_PASS = 2e-12  # tera-operations per parameter and token of one pass


class CostSettings(Branch):
    """What a step costs."""

    sub_batch_size: Positive = Field(64, description="r, rows trained on")
    large_batch_size: Positive = Field(128, description="b, rows selected from")
    model_params: Amount = Field(2.78e9, description="parameters of the model")
    trained_params: Amount | None = Field(
        None, description="parameters that are trained and pushed; of the model's, the 6% that LoRA of rank 128 has"
    )
    tokens_per_row: Amount = Field(194, description="tokens of a row, on average")
    tflops: Amount = Field(150, description="10^12 operations per second that a training device sustains")
    checkpointing: bool = Field(False, description="gradient checkpointing: backward repeats the forward pass")
    forward_seconds_per_token: Amount | None = Field(None, description="measured, in place of arithmetic")
    backward_seconds_per_token: Amount | None = Field(None, description="measured, in place of arithmetic")
    score_forwards: Amount = Field(1.12, description="scoring, in forward passes of the b rows")
    score_parts: Positive | None = Field(None, description="micro-batches that scoring is dealt in; b")
    selector_speed: Amount = Field(1.0, description="of a selector device, in training devices")
    push_gigabytes_per_second: Amount = Field(0.5, description="from a snapshot to durable on the server")
    snapshot_gigabytes_per_second: Amount = Field(10.0, description="from the training device to memory")
    load_gigabytes_per_second: Amount = Field(2.0, description="from the server's disk to its devices")
    train_seconds: Amount | None = Field(None, description="forward and backward of r rows on one training device")
    train_large_seconds: Seconds | None = Field(None, description="the same of b rows")
    score_seconds: Seconds | None = Field(None, description="scoring b rows on one selector device")
    inline_score_seconds: Seconds | None = Field(None, description="the same on one training device")
    fixed_seconds: Seconds | None = Field(None, description="of every step: optimizer, collate, all-reduce; 0")
    serial_seconds: Seconds | None = Field(
        None, description="of every selection beside scoring: draw, pick, journal; 0"
    )
    snapshot_seconds: Seconds | None = Field(None, description="copying the trained weights aside")
    upload_seconds: Seconds | None = Field(None, description="from a snapshot to durable on the server")
    load_seconds: Seconds | None = Field(None, description="loading weights before a selection")
    deliver_seconds: Seconds | None = Field(None, description="from a journalled selection to every rank; 0")


class LayoutSettings(Branch):
    """Who does the work, and what may overlap."""

    trainers: int | None = Field(None, description="training devices of each run; 4, or 1 where costs are measured")
    selectors: int = Field(1, description="devices of each selector server, which share every large batch")
    runs: int = Field(1, description="runs that are served")
    servers: int = Field(1, description="selector servers that the runs are dealt to")
    staleness: int = Field(1, description="S")
    push_every: int = Field(1, description="K")
    lookahead: int | None = Field(None, description="steps the server may work ahead; S + K - 1")
    selector_price: float = Field(1.0, description="an hour of a selector device, in hours of a training device")


class NoiseSettings(Branch):
    """What --simulate adds."""

    jitter: float = Field(0.05, description="deviation of every piece's time on every device, relative to its mean")
    straggler_share: float = Field(0.0, description="probability that a device is a straggler in a step")
    straggler_slowdown: float = Field(3.0, description="how many times as long it then takes")
    steps: Annotated[int, Field(ge=20)] = Field(200, description="steps of each run")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="of the noise")


class PlanSettings(CostSettings, LayoutSettings, NoiseSettings):
    """All of it."""

    def layout(self, *, measured: bool = False) -> Layout:
        """Who does the work; where costs are measured and nothing else is said, one trainer, as in the benchmark.

        Raises:
            ConfigError: a layout that can't be.
        """
        given = {key: getattr(self, key) for key in LayoutSettings.model_fields}
        if self.trainers is None:
            given["trainers"] = 1 if measured else _PAPER_TRAINERS
        return Layout(**given)

    def noise(self) -> Noise:
        """What the simulation adds.

        Raises:
            ConfigError: noise that can't be.
        """
        return Noise(self.jitter, self.straggler_share, self.straggler_slowdown)

    def costs(self, measured: Costs | None = None) -> Costs:
        """What is given in seconds, else what was measured, else arithmetic.

        Raises:
            ConfigError: costs that can't be, or arithmetic that what was measured would hide.
        """
        given = {name: getattr(self, name) for name in Costs.__dataclass_fields__ if name in self.model_fields_set}
        if measured is None:
            return Costs(**(self._arithmetic() | self._implied() | given))
        if hidden := sorted(self.model_fields_set & _ARITHMETIC):
            raise ConfigError(
                f"{', '.join(hidden)}: costs are measured, so this would change nothing: leave it out, or leave out "
                "--measured"
            )
        return replace(measured, **given)

    def origin(self, name: str, *, measured: bool) -> str:
        """Where a cost comes from, in a word."""
        if name in self.model_fields_set:
            return "given"
        return "measured" if measured else "derived" if name in self._implied() else "arithmetic"

    @property
    def trained(self) -> float:
        """Parameters that are trained and pushed."""
        return self.trained_params or _LORA_SHARE * self.model_params

    def passes(self) -> tuple[float, float]:
        """Seconds per token of a forward and of a backward pass on one training device."""
        forward = self.forward_seconds_per_token or self.model_params * _PASS / self.tflops
        gradients = 1 + self.trained / self.model_params + (1 if self.checkpointing else 0)
        return forward, self.backward_seconds_per_token or gradients * forward

    def _implied(self) -> dict[str, float]:
        """What follows from one given cost for its like."""
        implied = {}
        if self.train_seconds is not None:
            implied["train_large_seconds"] = self.train_seconds * self.large_batch_size / self.sub_batch_size
        if self.score_seconds is not None:
            implied["inline_score_seconds"] = self.score_seconds * self.selector_speed
        return implied

    def _arithmetic(self) -> dict[str, Any]:
        if self.trained > self.model_params:
            raise ConfigError(f"trained_params {self.trained_params} are more than model_params {self.model_params}")
        forward, backward = (seconds * self.tokens_per_row for seconds in self.passes())
        score = self.score_forwards * self.large_batch_size * forward
        gigabytes = _BYTES_PER_WEIGHT * self.trained / 1e9
        return {
            "sub_batch_size": self.sub_batch_size,
            "large_batch_size": self.large_batch_size,
            "train_seconds": self.sub_batch_size * (forward + backward),
            "train_large_seconds": self.large_batch_size * (forward + backward),
            "score_seconds": score / self.selector_speed,
            "inline_score_seconds": score,
            "snapshot_seconds": gigabytes / self.snapshot_gigabytes_per_second,
            "upload_seconds": gigabytes / self.push_gigabytes_per_second,
            "load_seconds": gigabytes / self.load_gigabytes_per_second,
        }


# LoRA of rank 128 on Phi-2's q, k, v and both fully connected layers: 168 million of 2.78 billion.
_LORA_SHARE = 0.06
_ARITHMETIC = {
    "sub_batch_size", "large_batch_size",
    "model_params", "trained_params", "tokens_per_row", "tflops", "checkpointing", "forward_seconds_per_token",
    "backward_seconds_per_token", "score_forwards", "selector_speed", "push_gigabytes_per_second",
    "snapshot_gigabytes_per_second", "load_gigabytes_per_second",
}  # fmt: skip


def read_settings(path: Path | None, options: Mapping[str, Any]) -> PlanSettings:
    """Settings from a TOML file and, above it, the options that were given.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, or a value that can't be.
    """
    given: dict[str, Any] = {}
    if path is not None:
        given = _read_toml(path)
    try:
        return PlanSettings(**(given | dict(options)))
    except ValidationError as error:
        raise ConfigError("plan: " + "; ".join(_explain(each) for each in error.errors())) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--costs {path} can't be read: {error.strerror}: give the path of a TOML file") from None
    except ValueError as error:
        raise ConfigError(f"--costs {path} is not valid TOML: {error}") from None


def _explain(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; known keys are {', '.join(sorted(PlanSettings.model_fields))}"
    return f"{key}: {error['msg']} (given {error['input']!r})"
