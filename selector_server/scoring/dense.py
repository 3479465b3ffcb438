"""Quantised linear modules of a tail in full: as they compute for the model, or as matrices that can be differentiated.

In the trunk a base of 8 or 4 bits computes as it does for the trainer. In the tail its rounding of activations would
be larger than what a perturbation changes, and not every estimator has a derivative of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_QUANTISED = ("Params4bit", "Int8Params")


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is linear with a weight that bitsandbytes quantised."""
    return isinstance(module, nn.Linear) and type(module.weight).__name__ in _QUANTISED


class Dense:
    """The quantised modules of a tail."""

    def __init__(self, pairs: Mapping[nn.Module, nn.Module]) -> None:
        """Find them.

        Args:
            pairs: The model's modules and the tail's copies.
        """
        places = [
            (twin, name, module.get_submodule(name))
            for module, twin in pairs.items()
            for name, child in module.named_children()
            if is_quantised(child)
        ]
        self._places = [(parent, name, module, pairs[module]) for parent, name, module in places]
        self._dense: dict[nn.Module, nn.Module] = {}

    def __bool__(self) -> bool:
        return bool(self._places)

    def use(self, dtype: torch.dtype | None) -> None:
        """Let the tail compute with dequantised weights of a dtype; as the model does where that is None.

        Cost: once, memory for these weights in full; what is quantised is never trained.
        """
        for parent, name, module, twin in self._places:
            if dtype is None:
                twin._parameters = module._parameters  # which hold how they were quantised, too
                parent._modules[name] = twin
            else:
                parent._modules[name] = self._dequantised(module, dtype)

    def _dequantised(self, module: Any, dtype: torch.dtype) -> nn.Module:
        if module not in self._dense:
            dense = nn.Linear(0, 0, device="meta")
            bias = None if module.bias is None else module.bias.detach().to(dtype)
            # What it computes with is what it says of unit vectors, however its weights are packed for this processor.
            units = torch.eye(module.in_features, device=module.weight.device, dtype=dtype)
            weight: Tensor = module(units).T
            weight = weight if bias is None else weight - bias[:, None]
            dense._parameters = {"weight": weight.detach().to(dtype).contiguous(), "bias": bias}
            dense.in_features, dense.out_features = module.in_features, module.out_features
            self._dense[module] = dense.eval()
        return self._dense[module]
