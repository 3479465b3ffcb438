"""What a layout takes per step, in closed form: no jitter, every device as fast as its like.

With K = 1 the pace is the slowest of five loops (`event_graph.py` finds it for any K):

    trainers    train + snapshot
    selector    runs of a server · (load + select)
    upload      upload
    round trip  (train + snapshot + upload + load + select + deliver) / (S + 1)
    lookahead   (train + snapshot + load + select + deliver) / (lookahead + 1)

So with S = 0 nothing overlaps, and with S = 1 a selector is hidden where a push, a selection and its delivery take no
longer than a training step; where they do, trainers wait for half of the excess. A step's time can alternate around
this mean, which is over many steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from train_client.plan.costs import Costs, Layout
from train_client.plan.event_graph import Pieces, arcs, slowest_loop

ARMS = ("floor", "large_batch", "inline", "staleness_0", "staleness_1", "staleness_2")
# Trainers that wait no more than this part of their time count as never waiting.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Prediction:
    """What one layout is expected to do.

    Attributes:
        step_seconds: Mean seconds from one step to the next of a run.
        busy_seconds: What a step takes trainers that never wait.
        wait_fraction: The part of their time in which a run's trainers stand still.
        selector_seconds: A selection with its share of loading, on the server's devices; 0 without a server.
        selector_fraction: The part of its time in which the server selects.
        device_seconds: Per step of one run, in seconds of a training device; selector devices count at their price.
        bottleneck: What sets the pace: trainers, selector, upload, round trip or lookahead.
        pieces: What the bottleneck's loop holds, in seconds per step; they sum to `step_seconds`.
    """

    step_seconds: float
    busy_seconds: float
    wait_fraction: float
    selector_seconds: float
    selector_fraction: float
    device_seconds: float
    bottleneck: str
    pieces: Mapping[str, float]


def predict(costs: Costs, layout: Layout) -> Prediction:
    """Training on sub-batches that a server selects, with the layout's S and K.

    Several runs take a server's time in turns; beyond that they are taken not to disturb each other, which the
    simulation bears out but for bursts: with S = 0 and K > 1 runs that share a server can be some percent slower.
    """
    timing = layout.timing(num_steps=1)
    pieces = _pieces(costs, layout)
    loop = slowest_loop(arcs(timing), pieces)
    step, bottleneck = loop.seconds_per_step, _name(loop.pieces)
    parts = {name: count * getattr(pieces, name) / loop.steps for name, count in loop.pieces.items()}
    share = costs.load_seconds / layout.push_every
    selector = pieces.select + share
    busy = pieces.train + pieces.snapshot / layout.push_every
    if layout.runs_per_server * selector > step:
        step, bottleneck = layout.runs_per_server * selector, "selector"
        parts = {"select": layout.runs_per_server * pieces.select, "load": layout.runs_per_server * share}
    return Prediction(
        step_seconds=step,
        busy_seconds=busy,
        wait_fraction=max(0.0, 1 - busy / step),
        selector_seconds=selector,
        selector_fraction=layout.runs_per_server * selector / step,
        device_seconds=step * (layout.trainers + layout.selector_price * layout.selectors_per_run),
        bottleneck=bottleneck,
        pieces=parts,
    )


def predict_arms(costs: Costs, layout: Layout) -> dict[str, Prediction]:
    """Each arm of `train-client bench overlap` by name; those with a server have the layout's K and devices."""
    trainers = layout.trainers
    train, large, select = (
        costs.train_step(trainers),
        costs.train_large_step(trainers),
        costs.select_inline(trainers),
    )
    arms = {
        "floor": _alone(trainers, {"train": train}),
        "large_batch": _alone(trainers, {"train": large}),
        "inline": _alone(trainers, {"train": train, "select": select}),
    }
    for staleness in (0, 1, 2):
        arms[f"staleness_{staleness}"] = predict(costs, layout.with_staleness(staleness))
    return arms


def selectors_needed(costs: Costs, layout: Layout) -> int | None:
    """The fewest devices of each server with which trainers never wait; None where no number suffices.

    No number suffices where something that they don't shorten is in the way: the upload, the serial part of the
    selections of all runs, or S = 0.
    """
    most = costs.score_parts or costs.large_batch_size

    def suffices(selectors: int) -> bool:
        return predict(costs, layout.with_selectors(selectors)).wait_fraction <= _NEGLIGIBLE

    if not suffices(most):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return low


def break_even_price(costs: Costs, layout: Layout) -> float:
    """The price of a selector device, in training devices, at which a server costs as much as selection inline.

    Negative where a server loses even if its devices are free.
    """
    inline = predict_arms(costs, layout)["inline"]
    served = predict(costs, layout)
    spared = layout.trainers * (inline.step_seconds - served.step_seconds)
    return spared / (layout.selectors_per_run * served.step_seconds)


def _pieces(costs: Costs, layout: Layout) -> Pieces:
    return Pieces(
        train=costs.train_step(layout.trainers),
        snapshot=costs.snapshot_seconds,
        upload=costs.upload_seconds,
        load=costs.load_seconds,
        select=costs.select(layout.selectors),
        deliver=costs.deliver_seconds,
    )


def _name(pieces: Mapping[str, int]) -> str:
    """What a loop is called, by who has a part in it."""
    has_trainers, has_selector, has_upload = (piece in pieces for piece in ("train", "select", "upload"))
    if has_upload and has_trainers:
        return "round trip"
    if has_trainers and has_selector:
        return "lookahead"
    return "trainers" if has_trainers else "selector" if has_selector else "upload"


def _alone(trainers: int, pieces: Mapping[str, float]) -> Prediction:
    """Trainers without a server, which never wait."""
    step = sum(pieces.values())
    return Prediction(
        step_seconds=step,
        busy_seconds=step,
        wait_fraction=0.0,
        selector_seconds=0.0,
        selector_fraction=0.0,
        device_seconds=trainers * step,
        bottleneck="trainers",
        pieces=pieces,
    )
