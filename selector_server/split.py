"""Cuts a causal language model in two: a trunk that runs once per row, a tail that runs once per perturbation.

The trunk is the model's own decoder, stopped on its way into the last layer. The tail is that layer, what the decoder
applies after it, and the head, in float32 whatever the model's dtype: at half precision rounding is larger than what
the perturbation changes. Nothing is assumed of an architecture; that the two halves make the model is verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call

from shared.errors import ModelError

_V_PROJECTIONS = ("v_proj", "value")


@dataclass(frozen=True, eq=False)
class Penultimate:
    """What the last layer is called with for one batch: what the trunk makes and the tail takes."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Tail:
    """Last layer, the modules after it, and the head, with weights of one precision.

    Attributes:
        modules: In call order; called with `weights` in place of their own, which stay untouched.
        weights: Each module's floating-point tensors by name.
        perturbed: Name of the weight to perturb, in the last layer.
        softcap: Bound of the logits, applied after the head (Gemma 2); None for most models.
    """

    modules: tuple[nn.Module, ...]
    weights: tuple[dict[str, Tensor], ...]
    perturbed: str
    softcap: float | None

    @property
    def weight(self) -> Tensor:
        """The weight to perturb: [d_out, d_in], or [d_out, rank] with LoRA."""
        return self.weights[0][self.perturbed]

    def hidden(self, penultimate: Penultimate, where: Tensor, weight: Tensor | None = None) -> Tensor:
        """What the head reads.

        Args:
            penultimate: From the trunk, at this tail's precision.
            where: Positions to go on with after the last layer, bool [m, T].
            weight: Takes the place of `self.weight`.

        Returns:
            [positions, d] in row-major order.
        """
        weights = self.weights[0] if weight is None else self.weights[0] | {self.perturbed: weight}
        output = functional_call(self.modules[0], weights, penultimate.args, penultimate.kwargs)
        hidden = (output[0] if isinstance(output, tuple) else output)[where]
        for module, weights in zip(self.modules[1:-1], self.weights[1:-1], strict=True):
            hidden = functional_call(module, weights, (hidden,))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V] of hidden states [n, d]."""
        logits = functional_call(self.modules[-1], self.weights[-1], (hidden,))
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class Split:
    """Trunk and tail of one model. The model may be in training: it is left exactly as it was found.

    Attributes:
        name: The perturbed parameter's name in `model.named_parameters()`: the weight of the last layer's V projection,
            or LoRA's B matrix of it.
        shape: Its shape.
        vocab_size: Width of the head.
        tail: The tail in float32, with the weights of the last `refresh`.
    """

    def __init__(self, model: Any) -> None:
        """Find the parts and verify that they make the model.

        Args:
            model: A Hugging Face causal language model, bare or in a PeftModel with LoRA.

        Raises:
            ModelError: not such a model; no V projection of its own in the last layer; LoRA that doesn't train it;
                a model that trunk and tail don't reproduce.
        """
        self._model = model.get_base_model() if isinstance(model, PeftModel) else model
        if not hasattr(self._model, "get_decoder") or self._model.get_output_embeddings() is None:
            raise ModelError(
                f"{type(model).__name__} isn't a Hugging Face causal language model: give one with a language-model "
                "head, bare or in a PeftModel, without other wrappers"
            )
        self._head = self._model.get_output_embeddings()
        self._kind = self._model.config.model_type
        self._decoder = self._model.get_decoder()
        self._layer = self._find_last_layer()
        self._perturbed = _find_perturbed(model, self._layer, self._kind)
        parameter = self._layer.get_parameter(self._perturbed)
        self.name: str = next(n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter)
        self.shape = tuple(parameter.shape)
        self.vocab_size = int(self._head.weight.shape[0])
        with self.quiet():
            self._after = self._find_modules_after()
            self._verify()
        self.refresh()

    def refresh(self) -> None:
        """Take the model's weights of now into the tail; call it after they changed.

        It costs nothing where the model is float32: the tail then shares its memory.
        """
        self.tail = self._tail(torch.float32)

    def trunk(self, input_ids: Tensor, *, dtype: torch.dtype | None = torch.float32) -> Penultimate:
        """Run all layers but the last. Call it inside `quiet`.

        Args:
            input_ids: Right-padded rows, int64 [m, T].
            dtype: What floating-point arguments of the last layer are cast to; None leaves them as they are.
        """
        reached: list[Penultimate] = []

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            reached.append(Penultimate(args, kwargs))
            raise _LastLayerReached

        handle = self._layer.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
        try:
            # No mask: padding is on the right, where causal attention can't see it, and attention is faster without.
            self._decoder(input_ids=input_ids, use_cache=False)
        except _LastLayerReached:
            pass
        finally:
            handle.remove()
        return Penultimate(_cast(reached[0].args, dtype), _cast(reached[0].kwargs, dtype))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Eval mode, no gradients, no autocast, true float32; on leaving, everything is as it was.

        Not inference mode: what the model caches meanwhile couldn't take part in a backward pass.
        """
        training = [(module, module.training) for module in self._model.modules()]
        device = self._head.weight.device
        try:
            for module, _ in training:
                module.training = False
            with torch.no_grad(), torch.autocast(device.type, enabled=False), _true_float32():
                yield
        finally:
            for module, was_training in training:
                module.training = was_training

    def _tail(self, dtype: torch.dtype | None) -> Tail:
        modules = (self._layer, *self._after, self._head)
        softcap = getattr(self._model.config.get_text_config(), "final_logit_softcapping", None)
        return Tail(modules, tuple(_weights(module, dtype) for module in modules), self._perturbed, softcap)

    def _find_last_layer(self) -> nn.Module:
        stacks = [child for child in self._decoder.children() if isinstance(child, nn.ModuleList) and len(child)]
        if not stacks:
            raise ModelError(
                f"{self._kind}: {type(self._decoder).__name__} has no list of layers among its children "
                f"({', '.join(name for name, _ in self._decoder.named_children())}): this architecture isn't supported"
            )
        last: nn.Module = max(stacks, key=len)[-1]
        return last

    def _find_modules_after(self) -> tuple[nn.Module, ...]:
        """The decoder's children that it calls after the last layer, in call order: as a rule, the final norm."""
        called: list[nn.Module] = []
        watched = (self._layer, *self._decoder.children())
        handles = [module.register_forward_pre_hook(lambda m, _: called.append(m)) for module in watched]
        try:
            self._decoder(input_ids=self._sample(), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(called[called.index(self._layer) + 1 :])

    def _verify(self) -> None:
        """Compare the tail's logits with the model's, in the model's own dtype, where they are equal bit for bit."""
        sample = self._sample()
        everywhere = torch.ones_like(sample, dtype=torch.bool)
        # The class's forward: an instance's may have been wrapped in autocast by Accelerate.
        expected = type(self._model).forward(self._model, input_ids=sample, use_cache=False, return_dict=True).logits
        try:
            for dtype in (torch.float32, None):
                tail = self._tail(dtype)
                logits = tail.logits(tail.hidden(self.trunk(sample, dtype=dtype), everywhere))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"{self._kind}: its last layer can't run alone in float32: {error}") from error
        off, scale = (logits.view_as(expected) - expected).abs().max().item(), expected.abs().max().item()
        if not off <= max(1e-5, 4 * torch.finfo(expected.dtype).eps) * scale:
            parts = ", ".join(type(module).__name__ for module in tail.modules)
            raise ModelError(
                f"{self._kind}: {parts} give logits that are off by {off:.3g} from the model's, which reach "
                f"{scale:.3g}: it does something else after its last layer, and isn't supported"
            )

    def _sample(self) -> Tensor:
        return torch.arange(12, device=self._head.weight.device).view(2, 6) % self.vocab_size


class _LastLayerReached(Exception):  # noqa: N818 - not an error, it stops a forward
    """Carries control out of the decoder."""


def _find_perturbed(model: Any, layer: nn.Module, kind: str) -> str:
    """The name, in the last layer, of the weight to perturb (paper §4.2, Eq. 8)."""
    found = [(name, m) for name, m in layer.named_modules() if name.rpartition(".")[2] in _V_PROJECTIONS]
    if len(found) != 1:
        raise ModelError(
            f"{kind}: the last layer has {len(found) or 'no'} V projections of its own (looked for "
            f"{' or '.join(_V_PROJECTIONS)}, its linear modules are {', '.join(_linear_modules(layer))}): fused "
            "projections aren't supported yet, use a model that has one such as Llama, Phi or Qwen"
        )
    name, projection = found[0]
    if hasattr(projection, "lora_B"):
        adapters = [adapter for adapter in projection.active_adapters if adapter in projection.lora_B]
        if len(adapters) != 1 or projection.merged or projection.disable_adapters:
            raise ModelError(
                f"{kind}: {name} of the last layer has LoRA adapters {sorted(projection.lora_B)}, active are "
                f"{adapters}, merged {projection.merged_adapters}, disabled {projection.disable_adapters}: "
                "keep exactly one active, unmerged and enabled"
            )
        name = f"{name}.lora_B.{adapters[0]}"
    elif isinstance(model, PeftModel) or any(hasattr(module, "lora_B") for module in model.modules()):
        configs = getattr(model, "peft_config", {})
        targets = {adapter: getattr(config, "target_modules", None) for adapter, config in configs.items()}
        raise ModelError(
            f"{kind}: the adapter doesn't train {name} of the last layer (its target_modules: {targets}): use LoRA, "
            f"add {name.rpartition('.')[2]!r} to target_modules, and leave layers_to_transform unset"
        )
    weight = layer.get_submodule(name).weight
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ModelError(
            f"{kind}: {name} of the last layer has a weight of shape {list(weight.shape)} and {weight.dtype}: scoring "
            "needs it whole and in floating point, neither sharded nor quantised"
        )
    return f"{name}.weight"


def _linear_modules(layer: nn.Module) -> list[str]:
    """Names of the modules that hold a matrix, adapters left out."""
    matrices = (name.rpartition(".")[0] for name, p in layer.named_parameters() if p.dim() == 2 and "lora_" not in name)
    return [name.removesuffix(".base_layer") for name in matrices]


def _weights(module: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors = chain(module.named_parameters(), module.named_buffers())
    return {name: _cast(tensor.detach(), dtype) for name, tensor in tensors if tensor.is_floating_point()}


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Floating-point tensors in `value` and its containers as `dtype`; the same tensors where they are that already."""
    if isinstance(value, Tensor):
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)([_cast(item, dtype) for item in value])
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value


@contextmanager
def _true_float32() -> Iterator[None]:
    """Keep TF32 and bfloat16 out of float32 products, where a trainer has let them in."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    reduced = [(backend, backend.fp32_precision) for backend in backends if backend.fp32_precision in ("tf32", "bf16")]
    try:
        for backend, _ in reduced:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in reduced:
            backend.fp32_precision = precision
