"""Sub-batches in Hugging Face's Trainer and in what derives from it, such as TRL's SFTTrainer.

    class SubbatchTrainer(SubbatchMixin, Trainer): ...                 # or (SubbatchMixin, SFTTrainer)

    trainer = SubbatchTrainer(model=model, args=args, subbatch="run.toml")   # and no train_dataset
    trainer.train(resume_from_checkpoint=True)

The loop stays the Trainer's. Its batches, its loss and the state in its checkpoint folders come from the plugin, whose
guard sees every backward pass and every optimizer step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback

from shared.config import Config, load_config
from shared.errors import CursorError
from train_client.checkpoint import latest_checkpoint
from train_client.loader import SubBatch
from train_client.plugin import SubbatchPlugin
from train_client.trainer_arguments import adopt_run, refuse_keywords, require_usable, with_micro_batch_size
from train_client.trainer_state import STATE_FILE, load_state, save_state


class SubbatchMixin(Trainer):  # type: ignore[misc]
    """A Trainer that trains a run's sub-batches; it comes first among the bases, before any other Trainer.

    Attributes:
        subbatch: The plugin; `subbatch.last_step` says what the step before was, for callbacks.
    """

    model_accepts_loss_kwargs: bool

    def __init__(self, *args: Any, subbatch: Config | Path | str | None = None, **kwargs: Any) -> None:
        """Build the Trainer as usual, then the run.

        `max_steps` and `gradient_accumulation_steps` follow from the run, and `per_device_train_batch_size` is how many
        rows one forward pass holds.

        Args:
            *args: The Trainer's own.
            subbatch: The configuration tree, or the path of its TOML file; None reads the one that the environment's
                SUBBATCH_CONFIG names, if that is set.
            **kwargs: The Trainer's own, without a training set: rows come from `data.store`.

        Raises:
            ConfigError: an argument that can't work beside selection, or no store.
            SubbatchError: as of `SubbatchPlugin`.
        """
        config = subbatch if isinstance(subbatch, Config) else load_config(Path(subbatch) if subbatch else None)
        refuse_keywords(kwargs)
        # SFTTrainer demands a training set and looks at its first row; this one is never trained on.
        super().__init__(*args, train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}), **kwargs)
        self.train_dataset = None
        require_usable(self.args)
        tokenizer = self.processing_class if isinstance(self.processing_class, PreTrainedTokenizerFast) else None
        self.subbatch = SubbatchPlugin(
            self.accelerator,
            self.model,
            with_micro_batch_size(config, self.args),
            tokenizer=tokenizer,
            divided_by="loss",
        )
        adopt_run(self.args, num_steps=self.subbatch.num_steps, micro_batches=self.subbatch.micro_batches_per_step)
        self._batches = SubBatches(self.subbatch)
        self.add_callback(_Epoch())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train the run's steps, from its start or from a checkpoint of this Trainer.

        Args:
            resume_from_checkpoint: A checkpoint folder, or True for the newest whole one in `args.output_dir`; one that
                a killed job left behind half-written is passed over.
            *args: The Trainer's own.
            **kwargs: The Trainer's own.

        Raises:
            CursorError: a checkpoint without the run's state, or with another run's.
            SubbatchError: the run can't be opened or continued.
        """
        if resume_from_checkpoint is True:
            whole = latest_checkpoint(Path(self.args.output_dir), holding=STATE_FILE)
            resume_from_checkpoint = str(whole) if whole else True
        try:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
            self._batches.finish()
        finally:
            self._batches.close()
        return result

    # ---- what the Trainer's loop asks for

    def get_train_dataloader(self) -> Any:
        """The run's micro-batches of this rank, which Accelerate never sees."""
        return self._batches

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> tuple[list[Any], Any]:
        """A step's micro-batches, and b, which the loss of their rows is divided by."""
        if self.state.global_step != self.subbatch.cursor:
            raise CursorError(
                f"the Trainer stands at step {self.state.global_step}, the run at {self.subbatch.cursor}: a Trainer "
                f"trains its run once; to go on, build a new one and resume from a checkpoint whose {STATE_FILE} and "
                "trainer_state.json were written together"
            )
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, *args)
        return samples, torch.tensor(self.subbatch.info.selection.large_batch_size, device=self.args.device)

    def _prepare_inputs(self, inputs: Any) -> Any:
        # They are on their device already, and the mapping carries what the loss needs.
        return inputs if isinstance(inputs, SubBatch) else super()._prepare_inputs(inputs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, which doesn't divide a loss that knows the number of items in its whole step."""
        models_own, self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs, True
        try:
            return super().training_step(*args, **kwargs)
        finally:
            self.model_accepts_loss_kwargs = models_own

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The plugin's loss of a micro-batch; of anything else, such as a batch of an evaluation, the Trainer's own."""
        if not isinstance(inputs, SubBatch):
            return super().compute_loss(model, inputs, *args, **kwargs)
        self.subbatch.begin(inputs)
        return self.subbatch.loss(model, inputs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the plugin's figures since the last log to those of training."""
        if "loss" in logs:
            logs.update({name: value for name, value in self.subbatch.figures().items() if name not in logs})
        super().log(logs, *args, **kwargs)

    # ---- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        state = self.subbatch.state_dict()
        super()._save_checkpoint(model, trial, *args, **kwargs)
        if self.args.save_only_model:  # which can't be resumed from
            return
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            # Written last, when every rank's part is there: a folder without it isn't whole.
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            save_state(folder, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.subbatch.load_state_dict(load_state(Path(checkpoint)))


class SubBatches:
    """What the Trainer takes for its data loader: the micro-batches of all steps, as one epoch."""

    def __init__(self, subbatch: SubbatchPlugin) -> None:
        self._subbatch = subbatch
        self._running: Generator[SubBatch, None, None] | None = None

    def __len__(self) -> int:
        return self._subbatch.num_steps * self._subbatch.micro_batches_per_step

    def __iter__(self) -> Iterator[SubBatch]:
        self._running = self._micro_batches()
        return self._running

    def _micro_batches(self) -> Generator[SubBatch, None, None]:
        with closing(self._subbatch.steps()) as steps:
            for micro_batches in steps:
                yield from micro_batches

    def finish(self) -> None:
        """Close the run if every step was trained; the Trainer asks for no more than these."""
        if self._running and self._subbatch.cursor == self._subbatch.num_steps:
            next(self._running, None)

    def close(self) -> None:
        """Let go of threads and connections."""
        if self._running:
            self._running.close()


class _Epoch(TrainerCallback):  # type: ignore[misc]
    """Counts the epoch, which the Trainer begins anew where a run is resumed."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.epoch = state.global_step / state.max_steps
