"""Lines of steps as trainers write them, of arms that never were: with times that one can reckon with in one's head."""

from __future__ import annotations

from typing import Any

from train_client.bench.arms import ARMS

TRAIN, LARGE, SCORE = 1.0, 2.0, 0.8
_REST = {"optimizer": 0.04, "push": 0.01, "prepare": 0.0}
_DRAW, _PICK, _JOURNAL, _SEND, _RECEIVE, _LOAD = 0.01, 0.03, 0.02, 0.005, 0.03, 0.01
SELECTION = SCORE + _DRAW + _PICK + _JOURNAL + _SEND + _RECEIVE + _LOAD


def lines_of(name: str, *, steps: int, began_s: float = 1000.0, score: float = SCORE) -> list[dict[str, Any]]:
    """So many steps of an arm, one after the other, each selection begun when its weights are there."""
    arm = ARMS[name]
    train = LARGE if name == "large_batch" else TRAIN
    rows, clock, ready = [], began_s, began_s
    for step in range(steps):
        made, arrived = _selection(name, ready, clock, score)
        wait = max(0.0, arrived - clock) if arm.served else 0.0
        push = score + _PICK + _DRAW if name == "inline" else _REST["push"] * arm.served
        length = wait + train + _REST["optimizer"] + push
        rows.append(
            {
                "step": step,
                "weights_version": 0,
                "wait_started_ns": round(clock * 1e9),
                "wait_seconds": wait,
                "prepare_seconds": 0.0,
                "train_seconds": train,
                "optimizer_seconds": _REST["optimizer"],
                "push_seconds": push,
                "step_seconds": length,
                "wire_bytes": 2000 if arm.served else 0,
                "arrived_unix_ns": round(arrived * 1e9),
                "rows": [step, step + 1],
                "selector": made,
            }
        )
        # With S = 0 a selection begins once the weights of the step before have arrived, else a step earlier.
        staleness = arm.timing[0] if arm.timing else 0
        ready = clock + length + _RECEIVE if staleness == 0 else clock + wait + _RECEIVE
        clock += length
    return rows


def _selection(name: str, ready: float, clock: float, score: float) -> tuple[dict[str, Any], float]:
    """A selection's phase times, and when it arrives."""
    nothing = dict.fromkeys(("load", "draw", "score", "pick", "journal", "receive"), 0.0)
    served = ARMS[name].served
    if name == "inline":
        phases = nothing | {"draw": _DRAW, "score": score, "pick": _PICK}
        began = clock - sum(phases.values())
    elif served:
        phases = nothing | {"load": _LOAD, "draw": _DRAW, "score": score, "pick": _PICK, "journal": _JOURNAL}
        began = ready
    else:
        phases, began = nothing, clock
    made = began + sum(phases.values())
    phases["receive"] = _RECEIVE * served
    times = {f"{phase}_seconds": seconds for phase, seconds in phases.items()}
    return times | {"started_unix_ns": round(began * 1e9), "peak_bytes": 0}, made + _SEND * served
