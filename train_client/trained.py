"""The trained tensors of a model, step after step, without asking PEFT for their names every time.

PEFT finds an adapter's names by looking at every module, which takes tens of milliseconds where there are dozens of
layers, on the thread that trains. Which parameters are trained is looked up anew each time; their names are only asked
for again where that has changed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from shared.model import trainable_parameters
from train_client.whole import is_sharded, whole


class TrainedTensors:
    """`shared.model.trainable_tensors` of one model, whole where the model is sharded."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: list[nn.Parameter] = []
        self._named: dict[str, nn.Parameter] = {}

    @property
    def is_sharded(self) -> bool:
        """Whether `now` is a collective, which every rank must call."""
        return is_sharded(p for p in self._model.parameters() if p.requires_grad)

    def now(self) -> dict[str, Tensor]:
        """Every trained tensor by its canonical name, sorted by name; aliases the model's storage unless sharded.

        Raises:
            ModelError: nothing is trained, or the adapter's state doesn't cover everything that is trained.
        """
        trained = [p for p in self._model.parameters() if p.requires_grad]
        if len(trained) != len(self._seen) or not all(map(_is, trained, self._seen)):
            self._named = trainable_parameters(self._model)
            self._seen = trained
        with whole(list(self._named.values())) as tensors:
            return dict(zip(self._named, tensors, strict=True))


def _is(one: object, other: object) -> bool:
    return one is other
