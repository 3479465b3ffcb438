"""The end of a model, from its last layers to the logits, as a copy of our own in float32.

The copy runs the model's code and, where that is float32 already, shares the memory of its weights. Hooks, wrapped
forwards and train mode stay behind: whatever is done to the copy, the model isn't touched. Float32, since at half
precision rounding is larger than what a perturbation changes.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from selector_server.scoring.dense import Dense
from selector_server.scoring.dora import Norms
from selector_server.scoring.head import Head, LogitMap
from selector_server.scoring.v_projection import VProjection


@dataclass(frozen=True, eq=False)
class Call:
    """What a layer is called with; the first of `args` is the hidden state [m, T, d]."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Penultimate:
    """What the trunk makes of one batch and the tail takes.

    Attributes:
        calls: One for each of the tail's layers, in order.
        where: Positions that the logits are wanted of, flat in [m · T], ascending, int64; None for all.
        kept: Results of modules that no perturbation reaches, filled by the first pass of the tail.
    """

    calls: tuple[Call, ...]
    where: Tensor | None = None
    kept: dict[object, Tensor] = field(default_factory=dict)

    @property
    def hidden(self) -> Tensor:
        """The hidden state on its way into the last layer, [m, T, d]."""
        hidden: Tensor = self.calls[-1].args[0]
        return hidden


class Tail:
    """Last layers, the modules after them, and the head.

    Attributes:
        layers: The copies of the last layers; hooks on them are ours.
        v: The linear module that is perturbed, in the last of them; None where nothing is.
        v_rows: V's rows of its weight; None for all.
        logit_map: What the model does after its head, such as a soft-cap; set it before `take`.
        head: The head as a matrix, and that.
        dense: Its linear modules that are quantised in the model.
        running: What `hidden` is being called with, for modules that need to know.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        after: Sequence[nn.Module],
        head: nn.Module,
        *,
        width: int,
        v: VProjection | None,
    ) -> None:
        """Copy the modules; they have no weights before `take`.

        Args:
            layers: The model's last layers.
            after: What the decoder calls after them, in call order.
            head: Hidden states to logits.
            width: Size of a hidden state.
            v: What is perturbed in the last layer; None where nothing is.
        """
        self._pairs: dict[nn.Module, nn.Module] = {}
        self.layers = [self._copy(module) for module in layers]
        self._after, self._last = [self._copy(module) for module in after], self._copy(head)
        self.dense = Dense(self._pairs)
        self._norms = [Norms(twin) for twin in self._pairs.values() if Norms.are_in(twin)]
        self.v: nn.Module | None = None if v is None else self.layers[-1].get_submodule(v.module)
        self.v_rows = None if v is None else v.rows
        self.logit_map = LogitMap()
        self.running: Penultimate | None = None
        self._width = width

    def take(self, dtype: torch.dtype | None = torch.float32) -> None:
        """Take the model's weights of now, as `dtype`; None leaves each, and DoRA, as is. Equal ones share memory."""
        for module, twin in self._pairs.items():
            twin._parameters = {n: p if p is None else cast(p.detach(), dtype) for n, p in module._parameters.items()}
            twin._buffers = {n: b if b is None else cast(b.detach(), dtype) for n, b in module._buffers.items()}
        self.dense.use(dtype)
        for norms in self._norms:
            norms.release() if dtype is None else norms.hold()
        self.head = Head.of(self._last, self._width, self.logit_map)

    @property
    def weight(self) -> Tensor:
        """What is perturbed: V's rows of its weight, [d_v, d_in], or of LoRA's B matrix, [d_v, rank]."""
        assert self.v is not None, "a tail without a V projection has nothing to perturb"
        weight: Any = self.v.weight
        return weight if self.v_rows is None else weight[self.v_rows]

    def hidden(self, penultimate: Penultimate, weight: Tensor | None = None) -> Tensor:
        """What the head reads.

        Args:
            penultimate: From the trunk, at this tail's precision.
            weight: Takes the place of `self.weight`.

        Returns:
            [positions, d], at `penultimate.where` or, row by row, at all positions.
        """
        hidden: Tensor = penultimate.calls[0].args[0]
        with self._running(penultimate, weight):
            for layer, call in zip(self.layers, penultimate.calls, strict=True):
                output = layer(hidden, *call.args[1:], **call.kwargs)
                hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.flatten(0, 1)
        if penultimate.where is not None:
            hidden = hidden.index_select(0, penultimate.where)
        for module in self._after:
            hidden = module(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V] of hidden states [n, d], all at once."""
        return self.logit_map(self._last(hidden))

    @contextmanager
    def _running(self, penultimate: Penultimate, weight: Tensor | None) -> Iterator[None]:
        parameters: dict[str, Any] = {} if self.v is None else self.v._parameters
        own = parameters.get("weight")
        if weight is not None and own is not None:
            parameters["weight"] = weight if self.v_rows is None else own.index_copy(0, self.v_rows, weight)
        self.running = penultimate
        try:
            yield
        finally:
            self.running = None
            if own is not None:
                parameters["weight"] = own

    def _copy(self, module: nn.Module) -> nn.Module:
        if module in self._pairs:
            return self._pairs[module]
        twin = self._pairs[module] = copy.copy(module)
        for name in vars(module):
            if name.endswith("_hooks") or "_hooks_" in name:
                vars(twin)[name] = OrderedDict()
        # An instance's forward may have been wrapped in autocast by Accelerate.
        vars(twin).pop("forward", None)
        twin.training = False
        twin._modules = {name: child and self._copy(child) for name, child in module._modules.items()}
        return twin


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Floating-point tensors in `value` and its containers as `dtype`; the same tensors where they are that already."""
    if isinstance(value, Tensor):
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)([cast(item, dtype) for item in value])
    if isinstance(value, dict):
        return {key: cast(item, dtype) for key, item in value.items()}
    return value
