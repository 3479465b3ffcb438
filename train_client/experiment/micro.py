"""The `micro` scale: a world that two cores can experiment in, made from nothing by the product's own commands.

A small Phi is pre-trained, all weights, on a balanced mixture; LoRA then adapts it to an imbalanced one (see
`shared.synthetic.mixture`). Variants differ in the rows that are adapted to, and share everything else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from shared.errors import ConfigError
from shared.synthetic.corpus import write_corpus
from shared.synthetic.mixture import Blemishes, write_balanced, write_mixture
from shared.synthetic.tiny_model import make_phi, train_tokenizer
from train_client.process import Command, train_command

_SEED = 7
_VOCABULARY, _LAYERS, _WIDTH, _HEADS, _MAX_LENGTH = 768, 4, 96, 4, 512

# The empty name is the base; the others change one thing of it, `clean` all.
VARIANTS: Mapping[str, Blemishes] = {
    "": Blemishes(restated=0.2, mastered=0.4, wrong=0.05),
    "clean": Blemishes(restated=0.0, mastered=0.0, wrong=0.0),
    "duplicates": Blemishes(restated=0.45, mastered=0.4, wrong=0.05),
    "wrong": Blemishes(restated=0.2, mastered=0.4, wrong=0.2),
}

_CONFIG = """\
# Written by `train-client experiment --scale micro`.
[model]
path = "{model}"

[data]
store = "{here}/store"
heldout_store = "{here}/heldout"

[selection]
large_batch_size = 32
sub_batch_size = 16
sparsify_k = 512

[run]
num_steps = {steps}
staleness = 1

[server]
port = 0
device = "cpu"
threads = 1

[train]
device = "cpu"
threads = 1
micro_batch_size = 16
learning_rate = 1e-3
eval_every = {eval_every}
gradient_check_every = {check_every}
lora = {{ rank = 16, alpha = 64, dropout = 0.0 }}

[experiment]
questions = ["{here}/corpus/questions.jsonl"]
ask = "plain"
max_new_tokens = 96
"""

_PRETRAINING = """\
[model]
path = "{model}"

[data]
store = "{store}"

[selection]
large_batch_size = 32
sub_batch_size = 32
sampling = "uniform"
pick = "random"

[run]
name = "pretraining"
num_steps = {steps}

[client]
selector = "inline"

[train]
output = "{output}"
device = "cpu"
micro_batch_size = 32
learning_rate = 2e-3
lora = false
"""


@dataclass(frozen=True)
class _Size:
    rows: int
    learnt_per_source: int
    pretraining_steps: int
    heldout_per_source: int
    questions_per_source: int
    steps: int


_FULL = _Size(6000, 150, 600, 16, 6, 150)
_SMOKE = _Size(2000, 60, 60, 4, 2, 10)


def make_micro_world(folder: Path, *, smoke: bool, console: Console, variant: str = "") -> Path:
    """Make a world, or what it lacks of one; everything is the same each time.

    Args:
        folder: Where worlds are; variants of one size share its base model.
        smoke: Make a smaller one, which learns nothing.
        console: Told what happens.
        variant: Which of `VARIANTS`.

    Returns:
        The configuration for server, trainers and experiment.

    Raises:
        ConfigError: no such variant.
        SubbatchError: a command failed.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"the micro scale has no variant {variant!r}: there are {', '.join(filter(None, VARIANTS))}")
    size = _SMOKE if smoke else _FULL
    folder = folder.resolve() / ("smoke" if smoke else "full")
    here = folder / (variant or "base")
    config = here / "experiment.toml"
    if config.is_file():
        return config
    counts = {"heldout_per_source": size.heldout_per_source, "questions_per_source": size.questions_per_source}
    clean = write_corpus(folder / "clean-corpus", rows=size.rows, seed=_SEED, **counts)
    kept_back = _texts(clean.heldout, "instruction") | _texts(clean.questions, "question")
    learnt = folder / "learnt.jsonl"
    rows = write_balanced(learnt, rows_per_source=size.learnt_per_source, seed=_SEED, avoid=kept_back)
    blemishes = VARIANTS[variant]
    console.print(
        f"making {size.rows:,} rows of 14 sources: {blemishes.restated:.0%} restate another row, "
        f"{blemishes.mastered:.0%} are learnt already, {blemishes.wrong:.0%} have a wrong answer"
    )
    files = write_mixture(here / "corpus", rows=size.rows, blemishes=blemishes, learnt=rows, seed=_SEED, **counts)
    model = folder / "model"
    if not (model / "config.json").is_file():
        _make_model(folder, model, [learnt, clean.train], size.pretraining_steps, console)
    _prepare({files.train: here / "store", files.heldout: here / "heldout"}, model)
    settings = {"steps": size.steps, "eval_every": max(1, size.steps // 5), "check_every": max(1, size.steps // 15)}
    config.write_text(_CONFIG.format(model=model, here=here, **settings))
    return config


def _make_model(folder: Path, model: Path, texts: list[Path], steps: int, console: Console) -> None:
    """A tokenizer for all texts, and a small Phi that has learnt the first of them."""
    console.print(f"pre-training a Phi of {_LAYERS} layers, width {_WIDTH}, for {steps} steps on the balanced mixture")
    raw, text = folder / "untrained", folder / "text.jsonl"
    text.write_bytes(b"".join(path.read_bytes() for path in texts))
    train_tokenizer(text, raw, vocab_size=_VOCABULARY)
    make_phi(
        raw, vocab_size=_VOCABULARY, layers=_LAYERS, width=_WIDTH, heads=_HEADS, seed=_SEED, max_length=_MAX_LENGTH
    )
    _prepare({texts[0]: folder / "learnt"}, raw)
    config, output = folder / "pretraining.toml", folder / "pretraining"
    config.write_text(_PRETRAINING.format(model=raw, store=folder / "learnt", output=output, steps=steps))
    _run("pretraining", *train_command(config, num_processes=1), log=folder / "logs" / "pretraining.log")
    for source in (raw, output / "model"):
        shutil.copytree(source, model, dirs_exist_ok=True)


def _prepare(stores: Mapping[Path, Path], tokenizer: Path) -> None:
    for rows, out in stores.items():
        arguments = ("-m", "selector_server", "prepare", rows, "--tokenizer", tokenizer, "--out", out)
        _run(f"preparing {out.name}", *arguments, log=out.parent / "logs" / f"prepare-{out.name}.log")


def _run(name: str, *arguments: object, log: Path) -> None:
    with Command(name, *arguments, log=log) as command:
        command.wait()


def _texts(path: Path, key: str) -> set[str]:
    return {json.loads(line)[key] for line in path.read_text().splitlines()}
