"""`train-client demo`: the whole product on this machine, from making data to comparing what was learnt.

No network, no GPU, no download. Every stage is one of the product's own commands in a process of its own, just as a
user would run it; what they printed is in `logs/`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from shared.config import load_config
from shared.dataset import Store
from shared.errors import SubbatchError
from shared.synthetic.corpus import write_corpus
from shared.synthetic.tiny_model import make_phi, train_tokenizer
from train_client.demo import pictures
from train_client.demo.results import Arm, loss_table, phase_table, source_shares
from train_client.demo.timeline import draw_timeline
from train_client.outcome import phase_seconds, timeline, wait_fraction
from train_client.process import (
    Command,
    available_cores,
    count_lines,
    environment_of,
    selector_server,
    train_command,
)

_ROWS, _HELDOUT_PER_SOURCE = 6000, 8
_VOCABULARY, _LAYERS, _WIDTH, _HEADS = 1024, 4, 128, 4
_WORLD_SIZE = 2
_LARGE, _SUB = 32, 16
_SEED = 7

_CONFIG = """\
# Written by `train-client demo`: the same file serves `selector-server serve` and `train-client train`.
[model]
path = "{out}/model"

[data]
store = "{out}/store"
heldout_store = "{out}/heldout"

[selection]
preset = "paper"
large_batch_size = {large}
sub_batch_size = {sub}
sparsify_k = 512

[run]
name = "demo"
num_steps = {steps}
seed = {seed}
staleness = 1
push_every = 1

[server]
port = 0
journal = "{out}/journal"
device = "cpu"
threads = 1

[train]
output = "{out}/selected"
device = "cpu"
threads = 1
micro_batch_size = 4
learning_rate = 3e-3
eval_every = {eval_every}
trackers = ["tensorboard"]
lora = {{ rank = 16, alpha = 32, dropout = 0.0 }}
"""


@dataclass(frozen=True)
class Demo:
    """Where the demo runs and how it talks."""

    out: Path
    steps: int
    console: Console

    @property
    def selector_cores(self) -> list[int]:
        """The selector's device: one core of its own, where there are two."""
        return available_cores()[-1:]

    @property
    def trainer_cores(self) -> list[int]:
        """The trainers' devices: the other cores."""
        return available_cores()[:-1] or available_cores()

    @property
    def config(self) -> Path:
        """The configuration that all processes share."""
        return self.out / "run.toml"

    def stage(self, text: str) -> None:
        """Say what comes next."""
        self.console.print(f"[bold]•[/] {text}")

    def command(self, name: str, *arguments: object) -> None:
        """Run one of the product's commands to its end, its output in logs/NAME.log.

        Raises:
            SubbatchError: it failed; the message ends with what it said last.
        """
        with self._start(name, *arguments) as command:
            command.wait()

    def train(self, name: str, title: str, *overrides: str, steps: int, cores: Sequence[int]) -> Path:
        """Train one arm on these cores, with a progress bar; gives the folder of what it left."""
        output = self.out / name
        arguments = train_command(self.config, "--train.output", str(output), *overrides, num_processes=_WORLD_SIZE)
        columns = (SpinnerColumn(), TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn())
        with (
            Progress(*columns, TimeElapsedColumn(), console=self.console) as bar,
            self._start(name, *arguments, cores=cores) as command,
        ):
            task = bar.add_task(title, total=steps)
            while command.running:
                bar.update(task, completed=count_lines(output / "steps-rank0.jsonl"))
                time.sleep(0.3)
            bar.update(task, completed=count_lines(output / "steps-rank0.jsonl"))
            command.wait()
        return output

    def _start(self, name: str, *arguments: object, cores: Sequence[int] = ()) -> Command:
        return Command(f"the demo's {name}", *arguments, log=self.log(name), cores=cores, environment=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """Of every process: nothing is looked for on the network."""
        return environment_of(HF_HUB_OFFLINE="1")

    def log(self, name: str) -> Path:
        """Where a command's output goes."""
        return self.out / "logs" / f"{name}.log"


def run_demo(out: Path, *, steps: int, inputs_only: bool = False) -> None:
    """Run the demo into `out`, replacing an earlier one's results.

    Args:
        out: The folder for everything.
        steps: Steps of each arm.
        inputs_only: Stop once the model, the stores and the configuration are there, for a server and trainers that
            something else starts.

    Raises:
        SubbatchError: a stage failed, or `out` holds something that no demo wrote.
    """
    out = out.resolve()
    marker = out / "run.toml"
    is_demo = marker.is_file() and marker.read_text().startswith(_CONFIG.splitlines()[0])
    if out.exists() and any(out.iterdir()) and not is_demo:
        raise SubbatchError(f"{out} holds files that no demo wrote: choose another --out, or empty it")
    # DeepSpeed, where it is installed, would look for a GPU and complain that there is none.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    shutil.rmtree(out, ignore_errors=True)
    (out / "logs").mkdir(parents=True)
    demo = Demo(out, steps, Console())
    demo.config.write_text(
        _CONFIG.format(out=out, large=_LARGE, sub=_SUB, steps=steps, seed=_SEED, eval_every=max(1, steps // 4))
    )
    _make_inputs(demo)
    if inputs_only:
        demo.console.print(f"model, stores and {demo.config} are there")
        return
    arms = _train_arms(demo)
    _report(demo, arms)


def _make_inputs(demo: Demo) -> None:
    out = demo.out
    demo.stage(f"writing {_ROWS:,} rows of 14 sources, every answer checked, every program executed")
    corpus = write_corpus(out / "corpus", rows=_ROWS, heldout_per_source=_HELDOUT_PER_SOURCE, seed=_SEED)
    demo.stage("training a tokenizer on them and making a small Phi")
    train_tokenizer(corpus.train, out / "model", vocab_size=_VOCABULARY)
    make_phi(
        out / "model",
        vocab_size=_VOCABULARY,
        layers=_LAYERS,
        width=_WIDTH,
        heads=_HEADS,
        seed=_SEED,
        max_length=512,
    )
    demo.stage("preparing stores: selector-server prepare")
    for name, rows in (("store", corpus.train), ("heldout", corpus.heldout)):
        prepare = ("-m", "selector_server", "prepare", rows, "--tokenizer", out / "model", "--out", out / name)
        demo.command(f"prepare-{name}", *prepare)


def _train_arms(demo: Demo) -> list[Arm]:
    inline = ("--client.selector", "inline", "--selection.pick", "random")
    demo.stage("pre-training the base model a little, all weights, rows drawn uniformly")
    demo.train(
        "pretrained",
        "pre-training",
        *(*inline, "--run.num_steps", str(demo.steps), "--selection.sampling", "uniform"),
        *("--selection.sub_batch_size", str(_LARGE), "--train.lora", "false", "--train.learning_rate", "2e-3"),
        *("--train.eval_every", "0", "--run.name", "pretraining", "--train.trackers", "[]"),
        steps=demo.steps,
        cores=available_cores(),
    )
    for file in (demo.out / "pretrained" / "model").iterdir():
        shutil.copy(file, demo.out / "model")
    demo.stage(
        f"training LoRA adapters, {demo.steps} steps each; {_WORLD_SIZE} ranks share core "
        f"{_listed(demo.trainer_cores)}, the selector has core {_listed(demo.selector_cores)}"
    )
    all_rows = ("--selection.sub_batch_size", str(_LARGE))
    place: dict[str, Any] = {"steps": demo.steps, "cores": demo.trainer_cores}
    titles = (f"selected {_SUB} of {_LARGE}", f"random {_SUB}", f"random {_LARGE}")
    own: dict[str, Any] = {"log": demo.log("server"), "cores": demo.selector_cores, "environment": demo.environment}
    with selector_server(demo.config, **own) as address:
        selected = demo.train("selected", titles[0], "--client.selector", address, **place)
    random_r = demo.train("random-r", titles[1], *inline, **place)
    random_b = demo.train("random-b", titles[2], *inline, *all_rows, **place)
    return [Arm.read(title, output) for title, output in zip(titles, (selected, random_r, random_b), strict=True)]


def _report(demo: Demo, arms: list[Arm]) -> None:
    out, (selected, *_) = demo.out, arms
    config = load_config(demo.config)
    warm_up = config.run.staleness + 2
    waited, phases = wait_fraction(selected.ranks, warm_up=warm_up), phase_seconds(selected.ranks, warm_up=warm_up)
    shares = source_shares(Store.open(out / "store"), config, selected)
    # Past the held-out evaluation in the middle, which lets the selector get ahead.
    first = min(demo.steps // 2 + 3, max(0, demo.steps - 5))
    draw_timeline(
        timeline(selected.ranks), out / "timeline.png", first_step=first, last_step=min(first + 4, demo.steps - 1)
    )
    pictures.draw_loss_curves({arm.title: arm.curve for arm in arms}, out / "loss.png")
    pictures.draw_loss_by_source({arm.title: arm.final_loss for arm in arms}, out / "loss-by-source.png")
    pictures.draw_source_shares(shares, out / "source-shares.png")
    summary = {
        "steps": demo.steps,
        "world_size": _WORLD_SIZE,
        "large_batch_size": _LARGE,
        "sub_batch_size": _SUB,
        "staleness": config.run.staleness,
        "push_every": config.run.push_every,
        "wait_fraction": waited,
        "step_seconds": phases,
        "loss": {arm.title: {"mean": arm.curve[-1][1], "by_source": arm.final_loss} for arm in arms},
        "source_share": {
            source: dict(zip(("file", "large_batches", "sub_batches"), share, strict=True))
            for source, share in shares.items()
        },
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    demo.console.print(loss_table(arms))
    demo.console.print(phase_table(phases, waited))
    demo.console.print(f"pictures, summary.json and logs are in {out}")


def _listed(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores)) or "any"
