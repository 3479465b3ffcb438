"""Sub-batches in a training loop that runs on Accelerate.

    subbatch = SubbatchPlugin(accelerator, model, config="run.toml")   # after accelerator.prepare(model, optimizer)
    for batch in subbatch:                                             # instead of a data loader
        with accelerator.accumulate(model):
            loss = subbatch.loss(model, batch)                         # instead of model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if batch.is_last:
            accelerator.log(subbatch.figures(), step=batch.step)

Without `config` it is made from the environment: SUBBATCH_CONFIG names the file, SUBBATCH_BRANCH__KEY sets a key.

A step's rows are divided among the ranks, so a scheduler that was prepared advances once a step, however many ranks
there are: make it for `subbatch.num_steps`. Where fp16's loss scaler skips a step, Accelerate doesn't advance it.

`accelerator.save_state` and `load_state` carry the cursor; on loading, iteration goes on at the step that follows, also
on another number of ranks.

Under DeepSpeed make the plugin before `accelerator.prepare`, which learns from it how large and how many a step's
micro-batches are, since no loader is prepared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from shared.config import Config, load_config
from shared.errors import ConfigError, CursorError, FingerprintError, LoopError
from shared.model import adapter_to_json, base_fingerprint, base_parameters
from shared.records import Fingerprints, PhaseTimes, RunInfo, Selection, TensorSpec
from shared.rowloss import row_losses
from shared.tokenizer import tokenizer_fingerprint
from shared.weights import specs_in, tensor_specs
from train_client.buckets import settle_buckets
from train_client.figures import Figures
from train_client.gradient_match import GradientMatch
from train_client.guard import Guard
from train_client.hosts import AccelerateHost, EngineHost, Host
from train_client.inline import InlineSource
from train_client.loader import Step, SubBatch, SubBatchLoader
from train_client.observing import Observe, observing
from train_client.replay import ReplaySource
from train_client.source import SelectionSource, ServerSource
from train_client.trained import TrainedTensors
from train_client.training_data import TrainingData, training_data
from train_client.whole import is_sharded, one_whole

_STATE_FORMAT = 1


@dataclass(frozen=True)
class StepReport:
    """What one step was on this rank. Seconds unless a name says otherwise.

    Attributes:
        selection: What was selected for all ranks.
        rows: The rows that this rank trained on, numbers in the store.
        loss: This rank's mean over micro-batches; its mean over ranks is the step's loss Σ w_i L_i / b.
        arrived_unix_ns: When the selection arrived, by `time.time_ns`; other times of that name are on the same clock.
        wait_started_ns: When the step began, by `time.time_ns`; it begins with the wait for its selection.
        wait_seconds: How long the training thread stood still because the selection hadn't arrived.
        prepare_seconds: And because padding and copying weren't done, which happens in the background with a server.
        train_seconds: Forward and backward, up to the optimizer's step.
        optimizer_seconds: The optimizer's step; on a GPU, asking for it.
        push_seconds: Snapshot of the weights, which are pushed in the background (on a GPU, asking for it); selecting,
            where that is inline.
        selector: The selector's own phase times of this step's selection.
    """

    selection: Selection
    rows: list[int]
    loss: float
    num_tokens: int
    wire_bytes: int
    arrived_unix_ns: int
    wait_started_ns: int
    wait_seconds: float
    prepare_seconds: float
    train_seconds: float
    optimizer_seconds: float
    push_seconds: float
    selector: PhaseTimes

    @property
    def step_seconds(self) -> float:
        """The whole step."""
        return (
            self.wait_seconds + self.prepare_seconds + self.train_seconds + self.optimizer_seconds + self.push_seconds
        )


class SubbatchPlugin:
    """Iterate over it for this rank's micro-batches; take the loss from it. One plugin is one run.

    Attributes:
        last_step: What the step before was; None before the first.
        gradient_match: How well a sub-batch stood in for its large batch, where the loop measures it; for metrics.
    """

    def __init__(
        self,
        accelerator: Any,
        model: Any,
        config: Config | Path | str | None = None,
        *,
        tokenizer: Any | None = None,
        divided_by: Literal["accelerate", "loss"] = "accelerate",
    ) -> None:
        """Check the parts against each other and register for checkpoints.

        Nothing is sent before the first batch; only where the server is to send the rows, it is asked what they are.

        Args:
            accelerator: Accelerate's, one process per rank: DDP, DeepSpeed with ZeRO 1 to 3, or FSDP2.
            model: The causal language model that is trained, bare or prepared, with or without a LoRA adapter.
            config: The tree, or the path of its TOML file; None reads the one that the environment's SUBBATCH_CONFIG
                names, if that is set. Either way SUBBATCH_BRANCH__KEY overrides a file's keys.
            tokenizer: Where given, it must be the one the store was prepared with.
            divided_by: What divides a micro-batch's loss by their number in a step: `accelerator.backward`, or `loss`
                itself, for loops that accumulate by themselves and leave Accelerate at one micro-batch a step.

        Raises:
            ConfigError: no store, a way of distributing that isn't supported, or other gradient_accumulation_steps than
                the run's.
            DataError: a store that can't be used.
            FingerprintError: another tokenizer than the store's.
            ModelError: nothing is trained, or an adapter that isn't LoRA.
        """
        self._set_up(AccelerateHost(accelerator, divided_by=divided_by), model, config, tokenizer)
        accelerator.register_for_checkpointing(self)

    @classmethod
    def for_engine(
        cls, engine: Any, config: Config | Path | str | None = None, *, tokenizer: Any | None = None
    ) -> SubbatchPlugin:
        """The same on a DeepSpeed engine without Accelerate, whose loop calls `engine.backward` and `engine.step`.

        Its checkpoints carry the cursor where they are given it, and give it back, with what every rank's random
        generators are at, dropout's for one, which DeepSpeed doesn't save; all ranks make the state:

            engine.save_checkpoint(folder, client_state={"subbatch": subbatch.state_dict()})
            _, client_state = engine.load_checkpoint(folder)
            subbatch.load_state_dict(client_state["subbatch"])

        Args:
            engine: What `deepspeed.initialize` gave for a causal language model, with or without a LoRA adapter.
            config: As for Accelerate.
            tokenizer: As for Accelerate.

        Raises:
            SubbatchError: as for Accelerate.
        """
        plugin = cls.__new__(cls)
        plugin._set_up(EngineHost(engine), engine, config, tokenizer)
        return plugin

    def _set_up(self, host: Host, model: Any, config: Config | Path | str | None, tokenizer: Any | None) -> None:
        self._config = config if isinstance(config, Config) else load_config(Path(config) if config else None)
        self._host, self._ranks = host, host.ranks
        self._data = training_data(self._config, self._ranks)
        self._model = host.bare(model)
        self._trained = TrainedTensors(self._model)
        if tokenizer is not None and tokenizer_fingerprint(tokenizer) != self._data.tokenizer:
            raise FingerprintError(
                f"the trainer's tokenizer is {tokenizer_fingerprint(tokenizer)}, {self._data.origin} was prepared with "
                f"{self._data.tokenizer}: use the store's tokenizer"
            )
        self._info = self._describe_run()
        self._source = self._make_source()
        self._loader = SubBatchLoader(
            self._source,
            self._data.store,
            self._ranks,
            micro_batch_size=self._config.train.micro_batch_size,
            device=host.device,
        )
        self._accumulate()
        self._guard: Guard | None = None
        self._is_settled = False
        self._cursor = 0
        self._step: Step | None = None
        self._losses: list[Tensor] = []
        self._loss = math.nan
        self._clock: dict[str, float] = {}
        self._figures = Figures(mean_over_ranks=self._ranks.mean)
        self._observe: Observe = lambda report: None
        self.last_step: StepReport | None = None
        self.gradient_match: GradientMatch | None = None

    @property
    def cursor(self) -> int:
        """How many steps have been attempted."""
        return self._cursor

    @property
    def selection(self) -> Selection:
        """What is trained in the step at hand.

        Raises:
            LoopError: no step has begun.
        """
        if self._step is None:
            raise LoopError("the selection is asked for before the loop began: iterate over the plugin")
        return self._step.received.selection

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Leave what happens inside, before a step's first forward, out of the step's times."""
        began = time.perf_counter()
        yield
        self._clock["train"] += time.perf_counter() - began

    @property
    def num_steps(self) -> int:
        """How many steps the run has."""
        return self._info.timing.num_steps

    @property
    def micro_batches_per_step(self) -> int:
        """How many micro-batches every rank runs in a step."""
        return self._loader.micro_batches_per_step(self._info.selection.sub_batch_size)

    @property
    def data(self) -> TrainingData:
        """What is known of the rows that are drawn from."""
        return self._data

    @property
    def info(self) -> RunInfo:
        """What decides what is selected; only rank 0's has the fingerprint of the base model."""
        return self._info

    def __iter__(self) -> Iterator[SubBatch]:
        """This rank's micro-batches from the cursor to the run's end; opens the run.

        Raises:
            SubbatchError: the run can't be opened or continued, or the loop isn't correct.
        """
        with closing(self.steps()) as steps:
            for micro_batches in steps:
                for batch in micro_batches:
                    self.begin(batch)
                    yield batch

    def steps(self) -> Generator[list[SubBatch], None, None]:
        """The same, all micro-batches of a step at a time, for loops that want them so; they call `begin` for each.

        Raises:
            SubbatchError: as of iterating.
        """
        run = self._config.run
        if self._cursor >= self.num_steps:
            return
        if self._guard is not None:
            raise LoopError(
                f"run {run.name!r}: the plugin is iterated over a second time at step {self._cursor} of "
                f"{self.num_steps}: one loop trains all steps; to go on later, resume from a checkpoint"
            )
        self._ranks.agree_on_cursor(run.name, self._cursor)
        self._accumulate()
        self._guard = self._host.guard(before_step=self._optimizer_begins, attempted=self._attempted)
        # DeepSpeed may have cast what is trained, since the plugin was made.
        self._info = replace(self._info, trainable=self._pushed_specs())
        if self._config.client.selector == "inline" and is_sharded(self._model.parameters()):
            raise ConfigError(
                'client.selector = "inline" scores with the model of one rank, which holds only a shard: use a server'
            )
        with self._observed() as self._observe:
            self._source.open(self._info, cursor=self._cursor, restart=run.restart)
            self._loader.start(self._cursor, self.num_steps)
            try:
                while self._cursor < self.num_steps:
                    yield self._next_step()
                    self._guard.end()
                self._source.finish()
            finally:
                self._guard.remove()
                self._loader.close()

    def _next_step(self) -> list[SubBatch]:
        self._step = self._loader.step(self._cursor)
        self._losses = []
        self._host.begin_step()
        self._clock = {"train": time.perf_counter()}
        return self._step.micro_batches

    def begin(self, batch: SubBatch) -> None:
        """A micro-batch of `steps` is at hand: its loss and its backward come next.

        Raises:
            LoopError: the one before hasn't had its backward.
        """
        if self._guard is None:
            raise LoopError("a micro-batch is begun before the loop: iterate over the plugin")
        self._guard.begin(batch)

    def loss(self, model: Any, batch: SubBatch) -> Tensor:
        """Run the model on a micro-batch and give the loss that `accelerator.backward` expects.

        A row's loss is the mean over its answer tokens, whatever its batch-mates; rows are weighted as the selection
        says. The mean over a step's micro-batches and ranks is Σ w_i L_i / b; where `divided_by` is `loss`, that over
        ranks of the sum over micro-batches.

        Args:
            model: As prepared.
            batch: The micro-batch at hand.

        Returns:
            A scalar, float32.
        """
        if self._host.bare(model) is not self._model or not self._host.is_prepared(model):
            raise LoopError(
                f"step {batch.step}: the loss is asked of another model than accelerator.prepare or "
                "deepspeed.initialize gave, so its gradients would not be averaged over the ranks: pass that one"
            )
        if not self._is_settled:
            settle_buckets(model)
            self._is_settled = True
        return self.loss_from_logits(model(**batch, use_cache=False).logits, batch)

    def loss_from_logits(self, logits: Tensor, batch: SubBatch) -> Tensor:
        """The same for a loop that runs the model itself.

        Args:
            logits: The model's output for the micro-batch, [m, T, vocabulary].
            batch: The micro-batch at hand.
        """
        if self._guard is None:
            raise LoopError("the loss is asked for before the loop began: iterate over the plugin")
        self._guard.require_current(batch)
        loss = (row_losses(logits, batch.row_labels) * batch.scale).sum()
        self._losses.append(loss.detach())
        if not self._host.divides_loss:
            loss = loss / self.micro_batches_per_step
        return self._guard.made_loss(loss)

    def figures(self) -> dict[str, float]:
        """Means over the steps since it was asked last, for `accelerator.log`; every rank asks for them, as it logs.

        Returns:
            By name, empty where no step was attempted: `loss`, the step's Σ w_i L_i / b; `seconds/step` and what it was
            spent on (`seconds/wait` for selections); `tokens`, of this rank; `selector/score_seconds` and the like; the
            last selection's `weights_version`. `train_client.figures` lists them; all but the loss are this rank's.
        """
        return self._figures.take()

    # ---- checkpoints, called by accelerator.save_state and load_state

    def state_dict(self) -> dict[str, Any]:
        """The cursor and what it belongs to; returns once the server has every weights version it may need."""
        return {
            "format": _STATE_FORMAT,
            "run": self._config.run.name,
            "cursor": self._cursor,
            "weights_version": self._cursor,
            "fingerprints": asdict(self._info.fingerprints),
            "source": self._source.state(),
            **self._host.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was made.

        Raises:
            CursorError: another run's checkpoint, one of another format, or one made with other data or another model.
        """
        name = self._config.run.name
        if state.get("format") != _STATE_FORMAT:
            raise CursorError(f"checkpoint has format {state.get('format')}, this release reads {_STATE_FORMAT}")
        if state["run"] != name:
            raise CursorError(f"checkpoint belongs to run {state['run']!r}, run.name is {name!r}: set run.name to it")
        if self._ranks.is_first and state["fingerprints"] != asdict(self._info.fingerprints):
            raise CursorError(
                f"checkpoint of run {name!r} was made with {state['fingerprints']}, the trainer has "
                f"{asdict(self._info.fingerprints)}: use the same store and base model"
            )
        self._cursor = int(state["cursor"])
        self._source.load_state(state["source"])
        self._host.load_state(state)

    def close(self) -> None:
        """Let go of threads and connections; iterating to the end or leaving the loop does it too."""
        self._loader.close()

    # ---- one step's bookkeeping

    def _optimizer_begins(self) -> None:
        self._source.before_step()
        # On a GPU this waits for forward and backward, whose time it then is; so it stands before the clock.
        self._loss = float(torch.stack(self._losses).mean())
        self._clock["optimizer"] = time.perf_counter()

    def _attempted(self) -> None:
        """The optimizer has stepped, or its scaler skipped: the model is at the next weights version either way."""
        assert self._step is not None
        stepped = time.perf_counter()
        self._cursor += 1
        self._source.attempted(self._cursor)
        step = self._step
        self.last_step = StepReport(
            selection=step.received.selection,
            rows=step.rows,
            loss=self._loss,
            num_tokens=step.num_tokens,
            wire_bytes=step.received.num_bytes,
            arrived_unix_ns=step.received.arrived_unix_ns,
            wait_started_ns=step.wait_started_ns,
            wait_seconds=step.wait_seconds,
            prepare_seconds=step.prepare_seconds,
            train_seconds=self._clock["optimizer"] - self._clock["train"],
            optimizer_seconds=stepped - self._clock["optimizer"],
            push_seconds=time.perf_counter() - stepped,
            selector=step.received.times,
        )
        self._figures.add(self.last_step)
        self._observe(self.last_step)

    def _observed(self) -> AbstractContextManager[Observe]:
        return observing(
            self._config.client,
            self._config.trace,
            self._info,
            self._data,
            self._source,
            rank=self._ranks.rank,
            first_step=self._cursor,
            device=self._host.device,
            gradient_match=lambda: self.gradient_match,
        )

    # ---- construction

    def _accumulate(self) -> None:
        count = self._loader.micro_batches_per_step(self._config.selection.sub_batch_size)
        self._host.accumulate(count, micro_batch_size=self._config.train.micro_batch_size)

    def _describe_run(self) -> RunInfo:
        run, selection = self._config.run, self._config.selection
        fingerprints = Fingerprints(
            dataset=self._data.fingerprint,
            tokenizer=self._data.tokenizer,
            base_model=self._base_fingerprint(),
        )
        return RunInfo(
            name=run.name,
            seed=run.seed,
            timing=run.timing(scores=selection.scores),
            world_size=self._ranks.world_size,
            selection=selection,
            adapter_json=adapter_to_json(self._model),
            trainable=self._pushed_specs(),
            fingerprints=fingerprints,
        )

    def _pushed_specs(self) -> tuple[TensorSpec, ...]:
        return specs_in(tensor_specs(self._trained.now()), self._config.run.pushed_dtype)

    def _base_fingerprint(self) -> dict[str, str]:
        """Only rank 0 opens runs; the others spare themselves the hashing, unless they hold shards."""
        takes_part = self._ranks.is_first or is_sharded(base_parameters(self._model).values())
        fingerprint = base_fingerprint(self._model, one_whole) if takes_part else {}
        return fingerprint if self._ranks.is_first else {}

    def _make_source(self) -> SelectionSource:
        client, store = self._config.client, self._data.store
        if client.selector == "inline":
            if dtype := self._config.run.pushed_dtype:
                raise ConfigError(
                    f'client.selector = "inline" scores with the weights as they are trained, run.push_dtype is '
                    f"{dtype!r}: leave it at 'trained', or use a server"
                )
            assert store
            return InlineSource(self._model, store, self._ranks)
        if client.replay is not None:
            assert store
            return ReplaySource(client.replay, store)
        return ServerSource(client, self._model, self._data, self._ranks, run=self._config.run)
