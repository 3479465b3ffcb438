"""`train-client train --dry-run`: all that is checked before training begins, what a step takes, and who will wait.

Nothing is bound, written, loaded or called; `doctor` asks the server, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shared.config import Config
from shared.dataset import Store
from shared.doctor.inputs import model as check_model
from shared.partition import micro_batches_per_step, rows_per_rank
from shared.scrape_port import require_usable
from shared.sizes import Sizes, in_words, mean_tokens, selection_bytes, sizes
from shared.tokenizer import load_tokenizer
from shared.tokens import TokenFile
from shared.transport import call_metadata, open_channel
from train_client.plan.measured import measured_costs, read_result
from train_client.plan.plan import make_plan
from train_client.plan.sentences import sentences
from train_client.plan.settings import PlanSettings
from train_client.train import check_inputs, open_heldout

_NO_SERVER = ("inline", "replay")
_BYTES_PER_TOKEN = 4


def plan_training(config: Config, *, measured: Path | None) -> Iterator[str]:
    """Check what `train` checks, and say in lines what it will take.

    Args:
        config: The run's.
        measured: The folder of a `train-client bench overlap`, for the wait; None: arithmetic.

    Raises:
        SubbatchError: what would keep a job from training.
    """
    resume = check_inputs(config)
    holds_rows = config.client.payload != "records"
    list(check_model(config.model, config.data if holds_rows else None))
    open_heldout(config, load_tokenizer(config.model.path, config.model.revision))
    if config.client.selector not in _NO_SERVER:
        call_metadata(config.client)
        open_channel(config.client.selector.split(",")[0], config.client.tls).close()
    metrics = config.client.metrics
    if metrics.port is not None:
        has_tokens = metrics.token_file is not None and not TokenFile(metrics.token_file).is_empty
        require_usable(metrics, has_tokens=has_tokens, branch="client.metrics")
    found = sizes(config)
    world, selection, train = int(os.environ.get("WORLD_SIZE", "1")), config.selection, config.train
    r = selection.sub_batch_size
    rows = rows_per_rank(r, world)
    passes = micro_batches_per_step(r, world_size=world, micro_batch_size=train.micro_batch_size)
    yield f"begins: {f'from {resume}' if resume else 'at step 0'}, to step {config.run.num_steps}"
    yield f"a step: {r} of {selection.large_batch_size} rows; {world} ranks, {rows} rows each in {passes} passes"
    if found:
        yield (
            f"memory of a rank, unless DeepSpeed or FSDP divide it: the model {in_words(found.model_bytes)}, gradients "
            f"and AdamW {in_words(found.training_bytes)} ({found.trained:,} of {found.parameters:,} parameters are "
            "trained), a snapshot for each push, and activations"
        )
        yield f"bytes per push: {in_words(found.push_bytes)}, every {config.run.push_every} steps"
    yield f"bytes per selection: {in_words(selection_bytes(config))} to each rank"
    tokens = mean_tokens(Store.open(config.data.store)) if config.data.store and holds_rows else None
    if not holds_rows:
        yield f"bytes per step's rows: about {_BYTES_PER_TOKEN} for each token of a rank's {rows} rows"
    yield from _wait(config, found, tokens, world, measured)


def _wait(
    config: Config, found: Sizes | None, tokens: float | None, world: int, measured: Path | None
) -> Iterator[str]:
    """What `train-client plan` predicts."""
    if config.client.selector in _NO_SERVER:
        yield f"wait: client.selector is {config.client.selector!r}, there is no server to wait for"
        return
    run = config.run
    layout = {"trainers": world, "staleness": run.staleness, "push_every": run.push_every, "lookahead": run.lookahead}
    if measured:
        settings = PlanSettings(**layout)
        plan = make_plan(settings.costs(measured_costs(read_result(measured))), settings.layout(measured=True))
        yield f"wait, by what {measured} measured, on {world} training devices and one selector device:"
        yield from sentences(plan)
        return
    how = "`train-client bench overlap --out DIR --config FILE`, then --measured DIR"
    if found is None or tokens is None:
        lacks = "the model's size" if found is None else "the rows' lengths, which the server has"
        yield f"wait: can't be predicted without {lacks}; measure: {how}"
        return
    settings = PlanSettings(
        sub_batch_size=config.selection.sub_batch_size,
        large_batch_size=config.selection.large_batch_size,
        model_params=found.parameters,
        trained_params=min(found.trained, found.parameters),
        tokens_per_row=tokens,
        checkpointing=config.train.gradient_checkpointing,
        **layout,
    )
    plan = make_plan(settings.costs(), settings.layout())
    yield (
        f"wait, by arithmetic for devices of {settings.tflops:g} TFLOP/s on either side (shares hold better than "
        f"seconds; to measure: {how}):"
    )
    yield from sentences(plan)
