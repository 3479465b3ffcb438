"""A folder of results that no experiment gave, with numbers that are known and text that is ugly."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from shared.config import Config
from train_client.experiment.arms import ARMS, Arm, resolve
from train_client.experiment.plan import portable

STEPS = 100
SOURCES = [f"data/{kind}/{name}.json" for kind in ("CoT", "PoT") for name in ("gsm_train", "MATH_train", "aqua_rat")]
UGLY = "</script><b>&amp; \"quoted\" 'single' <img src=x onerror=alert(1)> {{ 7*7 }} é 数 ∑"
SIX_SETS = ("gsm8k", "math", "numglue", "svamp", "mathematics", "simuleq")
# Balanced loss at the end; random r is at 1.40 and random b at 1.20.
LOSSES = {"random_r": 1.40, "random_b": 1.20, "random_r_uniform": 1.60, "random_b_uniform": 1.45, "paper": 1.38,
          "colm": 1.47, "paper_exact": 1.25, "matched": 1.29, "pivotal": 1.32, "hardest": 1.22}  # fmt: skip
_SETS = {"heldout": 112, "gsm8k": 200}


def write_results(
    folder: Path,
    *,
    arms: Sequence[str] = tuple(LOSSES),
    seeds: Collection[int] = range(5),
    scale: str = "micro",
    accuracy: bool = True,
    noise: float = 0.004,
    text: str = UGLY,
    missing: Collection[tuple[str, int]] = (),
    large_batch_size: int = 12,
) -> Path:
    """Write experiment.json and one result for every arm and seed that isn't missing."""
    base = Config.model_validate(
        {
            "selection": {"large_batch_size": large_batch_size, "sub_batch_size": large_batch_size // 2},
            "run": {"num_steps": STEPS},
            "model": {"path": "OUT/world/full/model"},
        }
    )
    chosen = [ARMS[name] for name in arms]
    about = {
        "format": 1, "name": "paper", "scale": scale, "smoke": False, "seeds": list(seeds),
        "arms": [_record(arm) for arm in chosen], "config": portable(base, folder),
        "versions": {"python": "3.11.7", "subbatch": "0.1.0", "torch": "2.9.0"},
    }  # fmt: skip
    _write(folder / "experiment.json", about)
    for arm in chosen:
        for seed in seeds:
            if (arm.name, seed) not in missing:
                sets = dict.fromkeys(SIX_SETS, 100) if scale == "phi2" else _SETS
                config = resolve(base, arm, seed=seed)
                result = _result(arm, seed, config, noise=noise, sets=sets if accuracy else None)
                if seed == min(seeds):
                    result |= {"timeline": _timeline(scores=config.selection.scores), "gallery": _gallery(config, text)}
                _write(folder / "arms" / arm.name / f"seed-{seed}.json", result)
    return folder


def end_loss(name: str) -> float:
    """The loss that an arm ends with, apart from the seeds' noise."""
    return LOSSES.get(name) or LOSSES.get(_method(name), 1.3) - (0.05 if name.endswith("_2x") else 0.0)


def edit(folder: Path, arm: str, seed: int, **changes: Any) -> None:
    """Replace parts of a result; allows what JSON has no word for."""
    path = folder / "arms" / arm / f"seed-{seed}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _method(name: str) -> str:
    return max((known for known in LOSSES if name.startswith(known)), key=len, default=name)


def _record(arm: Arm) -> dict[str, Any]:
    return {
        "name": arm.name, "title": arm.title, "group": arm.groups[0], "groups": list(arm.groups),
        "references": list(arm.references), "variant": arm.variant, "overrides": {},
    }  # fmt: skip


def _result(arm: Arm, seed: int, config: Config, *, noise: float, sets: dict[str, int] | None) -> dict[str, Any]:
    draw = random.Random(f"{arm.name} {seed}")
    of_seed = random.Random(seed).gauss(0, 0.03)  # what a seed does to all arms alike
    end = end_loss(arm.name) + of_seed + draw.gauss(0, noise)
    steps, selection = config.run.num_steps, config.selection
    bias = 0.35 if "paper" in arm.name else 0.2
    drawn, trained = selection.large_batch_size * steps, selection.sub_batch_size * steps
    scored = drawn if selection.scores else 0
    train_s, select_s = trained * 0.02, scored * 0.01
    heldout = []
    for step in range(0, steps + 1, max(1, steps // 5)):
        loss = end + (3.4 + of_seed - end) * (1 - step / steps) ** 3
        by_source = {name: loss + 0.3 * (i - 2.5) for i, name in enumerate(SOURCES)}
        heldout.append({"step": step, "balanced": loss, "natural": loss + 0.35, "by_source": by_source})
    right = max(0.0, 1.9 - end)
    gradient = [
        {"step": step, "error": 0.5 + draw.gauss(0, 0.05), "cosine": 0.88, "bias": bias + 0.3 / (1 + step / 10),
         "bias_floor": 0.2 + 0.3 / (1 + step / 10), "large_batch_norm": 1.0}
        for step in range(0, steps, 10)
    ]  # fmt: skip
    return {
        "format": 1, "arm": arm.name, "seed": seed, "variant": arm.variant,
        "config": portable(config, Path("none")), "initial_weights": "ab" * 32, "fingerprints": {},
        "heldout": heldout,
        "accuracy": sets and {
            "sets": {name: {"correct": round(right * total), "total": total} for name, total in sets.items()},
            "by_source": {name: {"correct": round(right * 20), "total": 20} for name in SOURCES},
        },
        "gradient": gradient if selection.sub_batch_size < selection.large_batch_size else [],
        "seconds": {"wall": train_s, "trainer_busy": train_s, "selector_busy": select_s, "waited": 0.01 * train_s},
        "device_seconds": {"held": train_s * (1 + selection.scores), "busy": train_s + select_s},
        "wait_fraction": 0.01,
        "peak_memory_bytes": {"trainer": int(2e8 + 1e7 * selection.sub_batch_size),
                              "selector": 390_000_000 if selection.scores else None},
        "rows": {"drawn": drawn, "scored": scored, "trained": trained, "distinct": trained // 2},
        "phases": {"selector": {"load": 0.0, "draw": 0.0, "score": 0.1, "pick": 0.0, "journal": 0.0},
                   "trainer": {"wait": 0.0, "prepare": 0.0, "train": 0.1, "optimizer": 0.0, "push": 0.0},
                   "step": train_s / steps},
        "timeline": [], "gallery": [],
    }  # fmt: skip


def _timeline(*, scores: bool) -> list[dict[str, Any]]:
    spans = []
    for step in range(40, 45):
        at = float(step - 40)
        lengths = (("wait", 0.02), ("prepare", 0.05), ("train", 0.8), ("optimizer", 0.08), ("push", 0.05))
        for phase, length in lengths:
            spans.append({"lane": "rank 0", "phase": phase, "step": step, "start": at, "end": at + length})
            at += length
        at = step - 40 + 0.1
        for phase, length in (("load", 0.05), ("score", 0.5 if scores else 0.0), ("pick", 0.1), ("journal", 0.01)):
            spans.append({"lane": "selector", "phase": phase, "step": step + 1, "start": at, "end": at + length})
            at += length
    return spans


def _gallery(config: Config, text: str) -> list[dict[str, Any]]:
    size, budget = config.selection.large_batch_size, config.selection.sub_batch_size
    batches = []
    for step in (3, 50):
        chosen = set(
            random.Random(f"{step} {config.selection.pick} {config.selection.preset}").sample(range(size), budget)
        )
        rows = [
            {
                "row": 100 * step + i, "source": SOURCES[i % len(SOURCES)],
                "instruction": f"Question {i} of step {step}: {text} " + "How many are left? " * 12,
                "output": f"print({i})\n{text}", "picked": i in chosen,
                "weight": 0.5 + i / size if i in chosen else 0.0, "gain": float(i in chosen),
            }
            for i in range(size)
        ]  # fmt: skip
        batches.append({"step": step, "rows": rows})
    return batches


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
