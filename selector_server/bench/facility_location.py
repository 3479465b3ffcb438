"""From features to picks: our facility location beside other libraries'.

    selector-server bench facility-location --out DIR [--quick]

A peer gets what its user would give it: similarities max(D) - D of `torch.cdist`'s L1 distances, and its own lazy
greedy. All run on one thread. Exact medians tie on a line, and each library breaks ties its own way: objectives are
compared, by one function, not sets.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from selector_server.bench.paired import median_ratio, time_in_turns, write_result
from selector_server.picks.distances import pairwise_distances
from selector_server.picks.medoids import medoids
from selector_server.picks.record import FloatArray, IntArray

_SEED = 17


@dataclass(frozen=True)
class Setting:
    """One size.

    Attributes:
        b: Rows to pick from.
        r: Rows to pick.
        probes: Probes behind the features: one makes a line, more make `_KEPT` columns.
        peers: Which peers this size is for; the others would take minutes, or more memory than there is.
        rounds: How often everything is timed.
    """

    b: int
    r: int
    probes: int
    peers: tuple[str, ...]
    rounds: int


# Coordinates of the estimates that are kept: Phi-2's width, the paper's best.
_KEPT = 2560

_BOTH = ("submodlib-py", "apricot-select")

QUICK = (
    Setting(b=128, r=64, probes=1, peers=_BOTH, rounds=5),
    Setting(b=128, r=64, probes=16, peers=_BOTH, rounds=5),
    Setting(b=4096, r=2048, probes=1, peers=_BOTH, rounds=5),
    Setting(b=4096, r=2048, probes=16, peers=_BOTH[:1], rounds=2),
    Setting(b=16384, r=8192, probes=1, peers=(), rounds=3),
)
FULL = (
    Setting(b=128, r=64, probes=1, peers=_BOTH, rounds=20),
    Setting(b=128, r=64, probes=16, peers=_BOTH, rounds=20),
    Setting(b=1024, r=512, probes=1, peers=_BOTH, rounds=10),
    Setting(b=1024, r=512, probes=16, peers=_BOTH, rounds=10),
    Setting(b=4096, r=2048, probes=1, peers=_BOTH, rounds=10),
    Setting(b=4096, r=2048, probes=16, peers=_BOTH, rounds=3),
    Setting(b=16384, r=8192, probes=1, peers=(), rounds=5),
)


def run(*, out: Path, quick: bool, console: Console) -> dict[str, Any]:
    """Time and compare, print a table of paired ratios, draw `facility-location.png`, write `result.json` under `out`.

    Raises:
        ConfigError: `out` can't be written.
    """
    settings, threads = QUICK if quick else FULL, torch.get_num_threads()
    installed = [name for name in PEERS if _installed(name, console)]
    torch.set_num_threads(1)
    try:
        compared = [row for setting in settings for row in _compare(setting, installed, console)]
    finally:
        torch.set_num_threads(threads)
    rows = [row for row, _ in compared]
    console.print(_table(compared))
    result = {"quick": quick, "rows": rows}
    write_result(out, result)
    draw(rows, out / "facility-location.png")
    console.print(f"wrote {out / 'result.json'} and {out / 'facility-location.png'}")
    return result


def submodlib_picks(features: FloatArray, budget: int) -> IntArray:
    """What a user of submodlib-py runs."""
    submodlib = importlib.import_module("submodlib")
    similarity = _similarity(features)
    function = submodlib.FacilityLocationFunction(len(features), mode="dense", separate_rep=False, sijs=similarity)
    picked = function.maximize(budget=budget, optimizer="LazyGreedy", show_progress=False)
    return np.array([row for row, _ in picked])


def apricot_picks(features: FloatArray, budget: int) -> IntArray:
    """What a user of apricot-select runs."""
    apricot = importlib.import_module("apricot")
    selection = apricot.FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy")
    return np.asarray(selection.fit(_similarity(features).astype(np.float64)).ranking)


# By the name of the package: the module that must be there, and its picks.
PEERS: dict[str, tuple[str, Callable[[FloatArray, int], IntArray]]] = {
    "submodlib-py": ("submodlib", submodlib_picks),
    "apricot-select": ("apricot", apricot_picks),
}


def objective(features: FloatArray, index: IntArray) -> float:
    """Σ_i max_{s picked} (C - |x_i - x_s|₁), C being the largest distance of all."""
    rows = torch.from_numpy(features)
    if features.shape[1] == 1:
        largest = rows.max() - rows.min()
        cover = torch.cat([(block - rows[index].T).abs().amin(dim=1) for block in rows.split(256)])
    else:
        distances = pairwise_distances(features, "l1")
        largest, cover = distances.max(), distances[:, index].amin(dim=1)
    return float((largest - cover).sum())


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds of everything that was timed, size by size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    looks = {"submodlib-py": ("#E69F00", "s"), "apricot-select": ("#009E73", "^"), "subbatch": ("#0072B2", "o")}
    sizes = list(dict.fromkeys((row["b"], row["r"], row["features"]) for row in rows))
    figure = Figure(figsize=(8, 1.8 + 0.5 * len(sizes)), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(color="#E5E5E5")
    for name, (color, marker) in looks.items():
        key = "seconds" if name == "subbatch" else "peer_seconds"
        points = {(row["b"], row["r"], row["features"]): row[key] for row in rows if name in ("subbatch", row["peer"])}
        if points:
            places = [sizes.index(size) for size in points]
            axes.plot(list(points.values()), places, marker, color=color, markersize=8, label=name)
    axes.set_yticks(range(len(sizes)), [f"{r:,} of {b:,} rows, {_columns(features)}" for b, r, features in sizes])
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.set_xlabel("seconds from features to picks, one thread")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(looks), frameon=False)
    figure.savefig(path, facecolor="white")


def _installed(name: str, console: Console) -> bool:
    try:
        importlib.import_module(PEERS[name][0])
    except ImportError as error:
        console.print(f"{name} isn't compared: it can't be imported ({error}); `pip install {name}` first")
        return False
    return True


def _compare(setting: Setting, installed: Sequence[str], console: Console) -> list[tuple[dict[str, Any], float | None]]:
    """One row of the result for each peer, or one without, and ours beside it: the median of the paired ratios."""
    features = _features(setting)
    what = f"{setting.r:,} of {setting.b:,} rows, {_columns(features.shape[1])}"
    peers = [name for name in installed if name in setting.peers]
    for name in installed:
        if name not in setting.peers:
            console.print(f"{what}: too large for {name} here")
    console.print(f"{what}: {setting.rounds} rounds")
    picked: dict[str, IntArray] = {}

    def keep(name: str, picks: Callable[[FloatArray, int], IntArray]) -> None:
        picked[name] = picks(features, setting.r)

    arms = {"subbatch": partial(keep, "subbatch", _our_picks)}
    arms |= {name: partial(keep, name, PEERS[name][1]) for name in peers}
    # Short rounds warm up, long ones hide what a first round costs.
    seconds = time_in_turns(arms, rounds=setting.rounds, warmup=int(setting.b * features.shape[1] < 1 << 20))
    objectives = {name: objective(features, index) for name, index in picked.items()}
    ours = {"b": setting.b, "r": setting.r, "features": features.shape[1]}
    ours |= {"seconds": statistics.median(seconds["subbatch"]), "objective": objectives["subbatch"]}
    if not peers:
        return [({**ours, "peer": None, "peer_seconds": None, "peer_objective": None}, None)]
    return [
        (
            {
                **ours,
                "peer": name,
                "peer_seconds": statistics.median(seconds[name]),
                "peer_objective": objectives[name],
            },
            median_ratio(seconds["subbatch"], seconds[name]),
        )
        for name in peers
    ]


def _our_picks(features: FloatArray, budget: int) -> IntArray:
    return medoids(features, budget=budget, metric="l1").index


def _features(setting: Setting) -> FloatArray:
    """Features such as scoring makes: projected gradients, which have outliers, times the kept part of the probes."""
    random = np.random.default_rng([_SEED, setting.b, setting.probes])
    c = random.standard_t(4, size=(setting.b, setting.probes))
    if setting.probes == 1:
        return c
    features: FloatArray = c @ random.standard_normal((setting.probes, _KEPT)) / setting.probes
    return features


def _similarity(features: FloatArray) -> Any:
    """max(D) - D as an array, in float32, which peers are quickest with."""
    rows = torch.from_numpy(features).to(torch.float32)
    distances = torch.cdist(rows, rows, p=1.0)
    return (distances.max() - distances).numpy()


def _columns(features: int) -> str:
    return "1 column" if features == 1 else f"{features:,} columns"


def _table(compared: Sequence[tuple[dict[str, Any], float | None]]) -> Table:
    table = Table(title="From features to picks, one thread; ratios are medians of paired rounds")
    for heading in ("b", "r", "columns", "seconds", "peer", "its seconds", "ratio", "objective above its"):
        table.add_column(heading, justify="left" if heading == "peer" else "right")
    for row, ratio in compared:
        cells = [f"{row['b']:,}", f"{row['r']:,}", f"{row['features']:,}", f"{row['seconds']:.4f}"]
        if ratio is None:
            cells += ["none", "", "", ""]
        else:
            above = row["objective"] / row["peer_objective"] - 1
            cells += [row["peer"], f"{row['peer_seconds']:.4f}", f"{ratio:.3f} (1/{1 / ratio:.1f})", f"{above:+.1e}"]
        table.add_row(*cells)
    return table
