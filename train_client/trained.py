"""The trained tensors of a model, step after step, without asking PEFT for their names every time.

PEFT finds an adapter's names by way of the state of the whole model, which takes tens of milliseconds where there are
dozens of layers, on the thread that trains. Which parameters are trained is looked up anew each time; their names are
only asked for again where that has changed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from shared.model import trainable_tensors


class TrainedTensors:
    """`shared.model.trainable_tensors` of one model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: list[nn.Parameter] = []
        self._named: dict[str, nn.Parameter] = {}

    def now(self) -> dict[str, Tensor]:
        """Every trained tensor by its canonical name, aliasing the model's own storage, sorted by name.

        Raises:
            ModelError: nothing is trained, or the adapter's state doesn't cover everything that is trained.
        """
        trained = [p for p in self._model.parameters() if p.requires_grad]
        if self._named and len(trained) == len(self._seen) and all(map(_is, trained, self._seen)):
            return {name: parameter.detach() for name, parameter in self._named.items()}
        tensors = trainable_tensors(self._model)
        by_place = {(p.data_ptr(), p.shape): p for p in trained}
        named = {name: by_place.get((tensor.data_ptr(), tensor.shape)) for name, tensor in tensors.items()}
        known = {name: parameter for name, parameter in named.items() if parameter is not None}
        # Where names and parameters don't match one to one, they are asked for every time.
        self._named = known if len({id(p) for p in known.values()}) == len(tensors) else {}
        self._seen = trained
        return tensors


def _is(one: object, other: object) -> bool:
    return one is other
