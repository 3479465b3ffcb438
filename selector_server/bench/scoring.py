"""Selection beside a bare forward pass of the same rows, and beside its own parts.

    selector-server bench scoring --out DIR [--quick]

The model is a small Phi with random weights, on a GPU one of Phi-2's size in bfloat16; the rows have MathInstruct's
lengths (`bench.workload`). A selection is a whole step of the engine: draw, score, features, picks. The forward is
plain but mindful of time: rows sorted by length, no mask, inference mode, the head on answer tokens alone, no loss.
Torch runs on one thread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from selector_server.bench.paired import median_ratio, time_in_turns, write_result
from selector_server.bench.peak_memory import peak_bytes
from selector_server.bench.stages import stage_seconds
from selector_server.bench.workload import PHI2, SMALL, ModelSize, make_model, make_store, plain_forward
from selector_server.engine import SelectionEngine
from shared.sampler import draw_large_batch
from shared.selection_config import SelectionConfig

_LAST_BLOCKS = {"estimator": "exact", "gradient_of": "last_blocks"}

# How gradients are estimated: the paper's way, its limit, the same in reverse mode, and the preset `matched`.
ESTIMATORS: dict[str, dict[str, Any]] = {
    "central": {},
    "jvp": {"estimator": "jvp"},
    "exact": {"estimator": "exact"},
    "central, 16 probes": {"num_probes": 16},
    "exact, 16 probes": {"estimator": "exact", "num_probes": 16},
    "last block": {"preset": "matched"},
}

# Padded tokens of a plain forward, the fastest of the powers of two.
_CPU_TOKENS, _GPU_TOKENS = 1024, 16384


@dataclass(frozen=True)
class Setting:
    """One model, and what is timed on it.

    Attributes:
        vocab_size: Of the model.
        lora_rank: LoRA on all linear modules; None for full fine-tuning.
        estimators: Keys of `ESTIMATORS`.
        rounds: How often everything is timed.
        size: Of the model.
    """

    vocab_size: int
    lora_rank: int | None
    estimators: tuple[str, ...]
    rounds: int
    size: ModelSize = SMALL

    @property
    def name(self) -> str:
        """Its key in the result."""
        return f"vocab_{self.vocab_size}" + ("" if self.lora_rank is None else f"_lora_{self.lora_rank}")


_BRIEF = ("central", "last block")
QUICK = (
    Setting(4096, None, ("central", "exact", "last block"), rounds=3),
    Setting(51200, None, _BRIEF, rounds=3),
)
FULL = (
    Setting(4096, None, tuple(ESTIMATORS), rounds=10),
    Setting(51200, None, ("central", "jvp", "exact", "last block"), rounds=10),
    Setting(4096, 16, _BRIEF, rounds=10),
    Setting(51200, 16, _BRIEF, rounds=10),
)
# A small model leaves a GPU waiting for the next kernel, so there it is the paper's.
QUICK_ON_GPU = (Setting(51200, 128, _BRIEF, rounds=5, size=PHI2),)
FULL_ON_GPU = (
    Setting(51200, None, _BRIEF, rounds=10, size=PHI2),
    Setting(51200, 128, ("central", "jvp", "exact", "central, 16 probes", "last block"), rounds=10, size=PHI2),
)
# Vocabulary, LoRA rank and rows of the measurements of memory.
QUICK_MEMORY = ((4096, 8, 64), (4096, 128, 64), (51200, 8, 64))
FULL_MEMORY = ((4096, 8, 128), (4096, 128, 128), (4096, 128, 512), (51200, 8, 128), (51200, 128, 128))
QUICK_MEMORY_ON_GPU = ((51200, 128, 128),)
FULL_MEMORY_ON_GPU = ((51200, 8, 128), (51200, 128, 128), (51200, 128, 512))


def run(*, out: Path, quick: bool, console: Console) -> dict[str, Any]:
    """Time and measure, print tables, draw `scoring.png`, write `result.json` under `out`.

    Raises:
        ConfigError: `out` can't be written.
    """
    device, threads = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.get_num_threads()
    named = torch.cuda.get_device_name() if device.type == "cuda" else "one CPU thread"
    console.print(f"on {named}")
    settings, sizes = _plan(device, quick=quick)
    torch.set_num_threads(1)
    try:
        timed = {setting.name: _time(setting, device, console) for setting in settings}
        memory = [_measure(*size, device, settings[0].size, console) for size in sizes]
    finally:
        torch.set_num_threads(threads)
    result = {
        "quick": quick,
        "device": named,
        "ratio_to_forward": {name: each["ratio_to_forward"] for name, each in timed.items()},
        "seconds": {name: each["seconds"] for name, each in timed.items()},
        "stage_seconds": {name: each["stage_seconds"] for name, each in timed.items()},
        "peak_bytes": memory,
    }
    for table in _tables(result):
        console.print(table)
    write_result(out, result)
    draw(result, out / "scoring.png")
    return result


def _plan(device: torch.device, *, quick: bool) -> tuple[Sequence[Setting], Sequence[tuple[int, int, int]]]:
    """What is timed, and the sizes whose memory is measured."""
    if device.type == "cuda":
        return (QUICK_ON_GPU, QUICK_MEMORY_ON_GPU) if quick else (FULL_ON_GPU, FULL_MEMORY_ON_GPU)
    return (QUICK, QUICK_MEMORY) if quick else (FULL, FULL_MEMORY)


def _time(setting: Setting, device: torch.device, console: Console) -> dict[str, Any]:
    """Ratios, seconds and stages by estimator."""
    console.print(f"{setting.name}: {setting.rounds} rounds of a forward and {', '.join(setting.estimators)}")
    model = make_model(vocab_size=setting.vocab_size, lora_rank=setting.lora_rank, device=device, size=setting.size)
    store = make_store(num_rows=2000, vocab_size=setting.vocab_size)
    configs = {name: SelectionConfig(**ESTIMATORS[name]) for name in setting.estimators}
    engines = {name: SelectionEngine(model, store, each, run=name, seed=0) for name, each in configs.items()}
    arms = {name: _synchronised(partial(engine.select, 0, 0), device) for name, engine in engines.items()}
    rows = store.rows(draw_large_batch(store.source_rows, configs["central"], seed=0, step=0))
    tokens = _GPU_TOKENS if device.type == "cuda" else _CPU_TOKENS
    forward = _synchronised(partial(plain_forward, model, rows, device=device, tokens=tokens), device)
    # Warmed up by what else they are run for.
    stages = {name: stage_seconds(arm) for name, arm in arms.items()}
    forward()
    seconds = time_in_turns({"forward": forward, **arms}, rounds=setting.rounds, warmup=0)
    return {
        "ratio_to_forward": {name: median_ratio(seconds[name], seconds["forward"]) for name in arms},
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "stage_seconds": stages,
    }


def _measure(
    vocab_size: int, lora_rank: int, rows: int, device: torch.device, size: ModelSize, console: Console
) -> dict[str, Any]:
    """Peak memory of scoring, beside the sizes of what is never held."""
    console.print(f"memory: vocabulary {vocab_size:,}, LoRA rank {lora_rank}, {rows} rows")
    sizes = {"vocab_size": vocab_size, "lora_rank": lora_rank, "rows": rows, "width": size.width}
    found = {
        name: peak_bytes(
            SelectionConfig(large_batch_size=rows, **ESTIMATORS[name]),
            vocab_size=vocab_size,
            lora_rank=lora_rank,
            device=device,
            size=size,
        )
        for name in _BRIEF
    }
    return {**sizes, **found}


def _synchronised(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """`run`, finished on the device too when it returns."""

    def finished() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return finished


def _tables(result: Mapping[str, Any]) -> list[Table]:
    ratios = Table(title=f"A selection of 64 of 128 rows beside a bare forward of the 128, on {result['device']}")
    for heading in ("model", "estimator", "seconds", "ratio to forward", "where the time goes"):
        ratios.add_column(heading, justify="left" if heading in ("model", "estimator") else "right")
    for setting, by_estimator in result["ratio_to_forward"].items():
        seconds, stages = result["seconds"][setting], result["stage_seconds"][setting]
        ratios.add_row(setting, "(forward)", f"{seconds['forward']:.2f}", "1.00", "")
        for name, ratio in by_estimator.items():
            total = sum(stages[name].values())
            largest = sorted(stages[name], key=stages[name].__getitem__, reverse=True)[:4]
            parts = ", ".join(f"{stage} {stages[name][stage] / total:.0%}" for stage in largest)
            ratios.add_row("", name, f"{seconds[name]:.2f}", f"{ratio:.2f}", parts)
    memory = Table(title="Peak memory of scoring, MiB")
    for heading in ("vocabulary", "LoRA rank", "rows", *_BRIEF, "rows × rank × width", "rows' logits"):
        memory.add_column(heading, justify="right")
    for row in result["peak_bytes"]:
        # What a published implementation holds: every row's estimate, and the logits of 4 rows of 512 tokens.
        never = (row["rows"] * row["lora_rank"] * row["width"] * 4, 4 * 512 * row["vocab_size"] * 4)
        cells = [
            "unknown" if size is None else f"{size / 2**20:.0f}" for size in (*(row[name] for name in _BRIEF), *never)
        ]
        memory.add_row(f"{row['vocab_size']:,}", str(row["lora_rank"]), str(row["rows"]), *cells)
    return [ratios, memory]


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Stages of every selection in units of the bare forward, which ends at the line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [(setting, name) for setting, names in result["ratio_to_forward"].items() for name in names]
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(bars)), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#E5E5E5")
    colors = {"trunk": "#56B4E9", "tail": "#0072B2", "head": "#E69F00", "tail back": "#009E73", "sketch": "#CC79A7"}
    left = [0.0] * len(bars)
    for stage in (*colors, "the rest"):
        widths = []
        for setting, name in bars:
            stages, ratio = result["stage_seconds"][setting][name], result["ratio_to_forward"][setting][name]
            total = sum(stages.values())
            part = stages[stage] if stage in colors else total - sum(stages[each] for each in colors)
            widths.append(ratio * part / total)
        axes.barh(range(len(bars)), widths, left=left, color=colors.get(stage, "#999999"), label=stage, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, end in enumerate(left):
        axes.text(end + 0.02, place, f"{end:.2f}", va="center")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(bars)), [f"{setting.replace('_', ' ')}, {name}" for setting, name in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1.1 * max(left))
    axes.set_xlabel(f"time of a selection, in plain forward passes of the same rows ({result['device']})")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, facecolor="white")
