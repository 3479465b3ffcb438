"""DoRA in a tail: the norms that its weights are divided by, once for each version of the weights.

To DoRA's training these norms are constants (arXiv 2402.09353, §4.3), so a row's gradient is the one with the norms
held still. PEFT computes them in every forward, from what is perturbed as well: a difference of losses would measure
another gradient than what is trained with, and B would run twice.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from shared.errors import ModelError


class ConstantNorms(nn.Module):  # type: ignore[misc]
    """What a `DoraLinearLayer` adds to its base layer's result, with the norms of one version of the weights."""

    def __init__(self, ratio: Tensor) -> None:
        """Hold still what each output is multiplied by.

        Args:
            ratio: Magnitudes over norms, [d_out].
        """
        super().__init__()
        self._ratio = ratio

    def forward(self, x: Tensor, *, scaling: float, base_layer: Any, base_result: Tensor, **named: Any) -> Tensor:
        """As of `DoraLinearLayer` in eval mode, which names its other arguments in capitals."""
        plain = base_result if base_layer.bias is None else base_result - base_layer.bias
        low_rank: Tensor = named["lora_B"](named["lora_A"](x))
        return (self._ratio - 1) * plain + self._ratio * low_rank * scaling


class Norms:
    """The DoRA of one module of a tail: PEFT's own, or with constant norms in its place."""

    def __init__(self, module: Any) -> None:
        """Remember PEFT's layers.

        Args:
            module: A copy of a LoRA layer, which this may change.
        """
        self._module = module
        self._own = {name: layer for name, layer in _dora_layers(module).items()}

    @staticmethod
    def are_in(module: nn.Module) -> bool:
        """Whether a module is a LoRA layer with DoRA on a matrix."""
        return bool(_dora_layers(module))

    def hold(self) -> None:
        """Compute the norms of the weights that the module has now, and use them until `release` or the next call."""
        module = self._module
        for adapter, own in self._own.items():
            low_rank = module.lora_B[adapter].weight @ module.lora_A[adapter].weight
            weight = dequantize_module_weight(module.get_base_layer()).to(low_rank.dtype)
            norm = own.get_weight_norm(weight, low_rank, module.scaling[adapter])
            module.lora_magnitude_vector._modules[adapter] = ConstantNorms(own.weight / norm)

    def release(self) -> None:
        """Give the module PEFT's own layers back."""
        self._module.lora_magnitude_vector._modules |= self._own


def require_unpacked(model: nn.Module) -> None:
    """Refuse DoRA on weights that bitsandbytes has packed for a processor, whose norms PEFT gets wrong.

    Raises:
        ModelError: there is some.
    """
    for name, module in model.named_modules():
        if Norms.are_in(module):
            state = getattr(module.get_base_layer().weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                raise ModelError(
                    f"DoRA on {name}, whose weights are in 4 bits, packed for this processor: PEFT computes other "
                    "norms from them than when it trains: score on a GPU, or set model.load_in to '8bit' or 'full'"
                )


def _dora_layers(module: Any) -> dict[str, DoraLinearLayer]:
    layers = getattr(module, "lora_magnitude_vector", None) or {}
    return {name: layer for name, layer in layers.items() if isinstance(layer, DoraLinearLayer)}
