"""What the arms' turns and runs left → one result: figures of every arm, ratios between them, and the bound.

Everything is paired: a ratio is made of two arms' means in one round, in which both trained the same steps, and what is
told is the median of these ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from train_client.bench.arms import ARMS, DEFAULT, FLOOR, INLINE, LARGE_BATCH
from train_client.bench.interleave import Turns
from train_client.bench.measure import (
    CONFIDENCE,
    PHASES,
    Estimate,
    Step,
    estimate,
    mean_of,
    quantile,
    selection_seconds,
)
from train_client.bench.memory import Peaks
from train_client.plan.costs import Costs
from train_client.plan.measured import predict_measured

# The paper's ratio of the large batch's memory to the sub-batch's, and what selection may cost at most.
PAPER_MEMORY_RATIO = 2.0
LIMIT = 1.05
Rounds = Sequence[Sequence[Step]]


def summarise(
    turns: Mapping[str, Turns],
    peaks: Mapping[str, Peaks],
    *,
    sizes: tuple[int, int],
    weights_bytes: int,
    counts_push: bool,
) -> dict[str, Any]:
    """The result of one set of arms.

    Args:
        turns: By arm; `FLOOR`, `LARGE_BATCH`, `INLINE` and `DEFAULT` at least.
        peaks: By arm, of those whose memory was measured.
        sizes: Rows of a sub-batch and of a large batch, r and b.
        weights_bytes: Of one version of the weights, as it is sent.
        counts_push: Whether snapshot and upload belong to what the bound allows, as in full fine-tuning.
    """
    rounds = {name: each.steps for name, each in turns.items()}
    seconds = {name: [mean_of(steps, "seconds") for steps in each] for name, each in rounds.items()}
    selecting = [selection_seconds(steps) for steps in rounds[DEFAULT]]
    arms = {name: _figures(name, rounds[name], seconds, peaks.get(name), weights_bytes) for name in turns}
    result: dict[str, Any] = {
        "sub_batch_size": sizes[0],
        "large_batch_size": sizes[1],
        "arms": arms,
        "selector_seconds": statistics.median(selecting),
        "selector_phases": {phase: _median(rounds[DEFAULT], phase) for phase in PHASES},
        "bound": _bound(rounds, seconds, selecting, counts_push=counts_push),
        "selector_to_floor": asdict(_ratios(selecting, seconds[FLOOR])),
        "memory": _memory(peaks),
    }
    return result | {"plan": _plan(rounds, seconds, sizes)}


def _figures(
    name: str, rounds: Rounds, seconds: Mapping[str, Sequence[float]], peaks: Peaks | None, weights_bytes: int
) -> dict[str, Any]:
    arm, mine = ARMS[name], seconds[name]
    steps = [step for each in rounds for step in each]
    step, middle = estimate(mine), statistics.median(mine)
    selections = statistics.fmean(each.wire_bytes for each in steps) if arm.served else 0.0
    pushes = weights_bytes / arm.push_every if arm.served else 0.0
    return {
        "title": arm.title,
        "step_seconds": middle,
        "step_seconds_interval": asdict(step),
        "step_seconds_p95": quantile([each.seconds for each in steps], 0.95),
        "wait_fraction": sum(each.waited for each in steps) / sum(each.seconds for each in steps),
        "device_seconds": arm.devices * middle,
        "trainer_peak_bytes": peaks.trainer if peaks else None,
        "selector_peak_bytes": peaks.selector if peaks else None,
        "wire_bytes": round(selections + pushes),
        "selection_bytes": round(selections),
        "pushed_bytes": round(pushes),
        "ratio_to_floor": asdict(_ratios(mine, seconds[FLOOR])),
        "ratio_to_large_batch": asdict(_ratios(mine, seconds[LARGE_BATCH])),
        "rounds": list(mine),
        "steps_measured": len(steps),
    }


def _bound(
    rounds: Mapping[str, Rounds],
    seconds: Mapping[str, Sequence[float]],
    selecting: Sequence[float],
    *,
    counts_push: bool,
) -> dict[str, Any]:
    """The default arm's step against the larger of the floor's step and the selector's time."""
    allowed = [max(pair) for pair in zip(seconds[FLOOR], selecting, strict=True)]
    if counts_push:
        snapshots = [mean_of(steps, "pushed") for steps in rounds[DEFAULT]]
        received = [mean_of(steps, "receive") for steps in rounds[DEFAULT]]
        uploads = [mean_of(steps, "upload") for steps in rounds.get("staleness_0", rounds[DEFAULT])]
        allowed = [
            snapshot + max(floor, select - receive + upload)
            for snapshot, floor, select, receive, upload in zip(
                snapshots, seconds[FLOOR], selecting, received, uploads, strict=True
            )
        ]
    ratio = _ratios(seconds[DEFAULT], allowed)
    return {
        "limit": LIMIT,
        "counts_push": counts_push,
        "allowed_seconds": statistics.median(allowed),
        "ratio": asdict(ratio),
        "verdict": _verdict(ratio),
    }


def _verdict(ratio: Estimate) -> str:
    """Whether a ratio is within the limit, as far as its rounds can tell."""
    if ratio.confidence < CONFIDENCE:
        return "open"
    return "holds" if ratio.high <= LIMIT else "fails" if ratio.low > LIMIT else "open"


def _memory(peaks: Mapping[str, Peaks]) -> dict[str, float | None]:
    """Ratios of the trainers' peaks; None where they aren't known."""
    known = {name: peak.trainer for name, peak in peaks.items() if peak.trainer}
    default, floor, large = (known.get(name) for name in (DEFAULT, FLOOR, LARGE_BATCH))
    return {
        "default_to_floor": default / floor if default and floor else None,
        "large_batch_to_default": large / default if large and default else None,
        "paper": PAPER_MEMORY_RATIO,
    }


def costs_of(rounds: Mapping[str, Rounds], seconds: Mapping[str, Sequence[float]], sizes: tuple[int, int]) -> Costs:
    """What the arms say about the pieces of a step; no piece is taken from the steps that are to be predicted."""
    default = rounds[DEFAULT]
    fixed = _median(rounds[FLOOR], "optimizer")
    serial = sum(_median(default, phase) for phase in ("draw", "pick", "journal"))
    inline = sum(_median(rounds[INLINE], phase) for phase in ("score", "pick", "draw"))
    return Costs(
        sub_batch_size=sizes[0],
        large_batch_size=sizes[1],
        train_seconds=statistics.median(seconds[FLOOR]) - fixed,
        train_large_seconds=statistics.median(seconds[LARGE_BATCH]) - fixed,
        score_seconds=_median(default, "score"),
        inline_score_seconds=max(0.0, inline - serial),
        fixed_seconds=fixed,
        serial_seconds=serial,
        snapshot_seconds=_median(default, "pushed"),
        upload_seconds=_median(rounds.get("staleness_0", default), "upload"),
        load_seconds=_median(default, "load"),
        deliver_seconds=_median(default, "send"),
    )


def _plan(
    rounds: Mapping[str, Rounds], seconds: Mapping[str, Sequence[float]], sizes: tuple[int, int]
) -> dict[str, Any]:
    """What `train-client plan` expects of every arm, beside what was measured."""
    costs = costs_of(rounds, seconds, sizes)
    expected = {name: each.step_seconds for name, each in predict_measured(costs, seconds).items()}
    measured = {name: statistics.median(mine) for name, mine in seconds.items()}
    margin = _ratios(seconds[INLINE], seconds[DEFAULT])
    return {
        "costs": asdict(costs),
        "step_seconds": {name: expected[name] for name in seconds},
        "difference": {name: expected[name] / measured[name] - 1 for name in seconds},
        "margin_measured": asdict(margin),
        "margin_expected": expected[INLINE] / expected[DEFAULT],
    }


def _ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    return estimate([a / b for a, b in zip(numerator, denominator, strict=True)])


def _median(rounds: Rounds, name: str) -> float:
    """The median of the rounds' means."""
    return statistics.median(mean_of(steps, name) for steps in rounds)
