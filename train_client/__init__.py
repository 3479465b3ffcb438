"""The training side: sub-batches for a loop that runs on Accelerate.

    subbatch = SubbatchPlugin(accelerator, model, config="run.toml")   # after accelerator.prepare(model, optimizer)
    for batch in subbatch:                                             # instead of a data loader
        with accelerator.accumulate(model):
            loss = subbatch.loss(model, batch)                         # instead of model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

Without `config` the environment's SUBBATCH_CONFIG names the file.

For Hugging Face's Trainer and TRL's SFTTrainer: `class SubbatchTrainer(SubbatchMixin, Trainer): ...`.

It imports `shared` and never `selector_server`; `inline` finds the selector by its entry point.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shared

if Path(str(shared.__file__)).parent != (_ours := Path(__file__).parents[1] / "shared"):
    raise ImportError(
        f"another package named 'shared' ({shared.__file__}) hides subbatch's ({_ours}): rename or remove it"
    )

if TYPE_CHECKING:
    from train_client.plugin import StepReport, SubbatchPlugin
    from train_client.trainer import SubbatchMixin

__all__ = ["StepReport", "SubbatchMixin", "SubbatchPlugin"]
_PLACES = {"StepReport": "plugin", "SubbatchMixin": "trainer", "SubbatchPlugin": "plugin"}


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import; command lines that only print help shouldn't.
    if name in _PLACES:
        return getattr(import_module(f"train_client.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'train_client' has no attribute {name!r}")
