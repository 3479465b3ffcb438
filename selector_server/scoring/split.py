"""Cuts a causal language model in two: a trunk that runs once per row, a tail that runs once per perturbation.

The trunk is the model's own decoder, stopped on its way into the last layer. The tail is a copy of the last layers, of
what the decoder applies after them, and of the head. Nothing is assumed of an architecture but where a fused projection
keeps V; that the two halves make the model, and that V is there, is verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from selector_server.scoring.dora import require_unpacked
from selector_server.scoring.economy import economise
from selector_server.scoring.head import LogitMap, token_losses
from selector_server.scoring.tail import Call, Penultimate, Tail, cast
from selector_server.scoring.v_projection import find_v_projection
from shared.errors import ModelError


class Split:
    """Trunk and tail of one model. The model may be in training: it is left exactly as it was found.

    Attributes:
        layers: The model's last layers, those that the tail copies.
        name: The perturbed parameter's name in `model.named_parameters()`: the weight of the last layer's V projection,
            or LoRA's B matrix of it; empty where nothing is perturbed.
        shape: Shape of what is perturbed of it: V's rows; empty where nothing is.
        vocab_size: Width of the head.
        tail: The tail in float32, with the weights of the last `refresh`.
    """

    def __init__(self, model: Any, *, num_layers: int = 1, perturb: bool = True) -> None:
        """Find the parts and verify that they make the model.

        Args:
            model: A Hugging Face causal language model, bare or in a PeftModel with LoRA.
            num_layers: How many layers belong to the tail, >= 1.
            perturb: Whether the last layer's V projection will be perturbed or differentiated; it needn't have one
                otherwise.

        Raises:
            ModelError: not such a model; fewer layers; no V projection in the last layer; LoRA that doesn't train it;
                a model that trunk and tail don't reproduce, or whose DoRA PEFT gets wrong here.
        """
        self._model = model.get_base_model() if isinstance(model, PeftModel) else model
        if not hasattr(self._model, "get_decoder") or self._model.get_output_embeddings() is None:
            raise ModelError(
                f"{type(model).__name__} isn't a Hugging Face causal language model: give one with a language-model "
                "head, bare or in a PeftModel, without other wrappers"
            )
        self._head = self._model.get_output_embeddings()
        self._config = self._model.config.get_text_config()
        self._kind = self._model.config.model_type
        self._decoder = self._model.get_decoder()
        self.layers = self._find_last_layers(num_layers)
        v = find_v_projection(model, self.layers[-1], self._config) if perturb else None
        self.name, self.shape = "", tuple[int, ...]()
        if v is not None:
            parameter = self.layers[-1].get_parameter(f"{v.module}.weight")
            self.name = next(n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter)
            self.shape = (len(parameter) if v.rows is None else len(v.rows), parameter.shape[1])
        self.vocab_size = int(self._head.weight.shape[0])
        with self.quiet():
            self.tail = Tail(self.layers, self._find_modules_after(), self._head, width=self._head.weight.shape[1], v=v)
            self._verify()
            require_unpacked(self._model)
            if v is not None and v.fused is not None and v.rows is not None:
                self._verify_fused(v.fused, v.rows)
            self._economise()

    def refresh(self) -> None:
        """Take the model's weights of now into the tail; call it after they changed.

        It costs nothing where the model is float32: the tail then shares its memory.
        """
        self.tail.take()

    def trunk(
        self, input_ids: Tensor, *, where: Tensor | None = None, dtype: torch.dtype | None = torch.float32
    ) -> Penultimate:
        """Run all layers that the tail hasn't. Call it inside `quiet`.

        Args:
            input_ids: Right-padded rows, int64 [m, T].
            where: Positions whose logits will be wanted, flat, ascending, int64; None for all.
            dtype: What floating-point arguments of the tail's layers are cast to; None leaves them as they are.

        Cost: of all layers but the last; where the tail has more, they run here too, for the arguments of the last.
        """
        calls: list[Call] = []

        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(Call(cast(args, dtype), cast(kwargs, dtype)))
            if layer is self.layers[-1]:
                raise _LastLayerReached

        handles = [layer.register_forward_pre_hook(note, prepend=True, with_kwargs=True) for layer in self.layers]
        try:
            # No mask: padding is on the right, where causal attention can't see it, and attention is faster without.
            self._decoder(input_ids=input_ids, use_cache=False)
        except _LastLayerReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return Penultimate(tuple(calls), where)

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

    def _find_last_layers(self, count: int) -> list[nn.Module]:
        stacks = [child for child in self._decoder.children() if isinstance(child, nn.ModuleList) and len(child)]
        if not stacks:
            raise ModelError(
                f"{self._kind}: {type(self._decoder).__name__} has no list of layers among its children "
                f"({', '.join(name for name, _ in self._decoder.named_children())}): this architecture isn't supported"
            )
        layers: list[nn.Module] = max((list(stack) for stack in stacks), key=len)
        if count > len(layers):
            raise ModelError(f"{self._kind}: num_blocks {count} is more than the {len(layers)} layers it has: lower it")
        return layers[-count:]

    def _find_modules_after(self) -> list[nn.Module]:
        """The decoder's children that it calls after the last layer, in call order: as a rule, the final norm."""
        called: list[nn.Module] = []
        watched = (self.layers[-1], *self._decoder.children())
        handles = [module.register_forward_pre_hook(lambda m, _: called.append(m)) for module in watched]
        try:
            self._decoder(input_ids=self._sample(), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return called[called.index(self.layers[-1]) + 1 :]

    def _verify(self) -> None:
        """Compare the tail's logits with the model's, in the model's own dtype, where they are equal bit for bit.

        The tail in float32 is compared, too, where that is the model's dtype and nothing is quantised: DoRA is computed
        in another way there.
        """
        sample = self._sample()
        # The class's forward: an instance's may have been wrapped in autocast by Accelerate.
        expected = type(self._model).forward(self._model, input_ids=sample, use_cache=False, return_dict=True).logits
        expected = expected.flatten(0, 1)
        found = []
        try:
            for dtype in (torch.float32, None):
                self.tail.take(dtype)
                found.append(self.tail.logits(self.tail.hidden(self.trunk(sample, dtype=dtype))))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(f"{self._kind}: its last layer can't run alone in float32: {error}") from error
        maps = _logit_maps(self._config)
        compared = found if expected.dtype == torch.float32 and not self.tail.dense else found[1:]
        off = [max((logit_map(plain) - expected).abs().max().item() for plain in compared) for logit_map in maps]
        best, scale = min(range(len(maps)), key=off.__getitem__), expected.abs().max().item()
        if not off[best] <= max(1e-5, 4 * torch.finfo(expected.dtype).eps) * scale:
            raise ModelError(
                f"{self._kind}: trunk and tail give logits that are off by {off[best]:.3g} from the model's, which "
                f"reach {scale:.3g}: it does something else after its last layer, and isn't supported"
            )
        self.tail.logit_map = maps[best]
        self.tail.take()

    def _verify_fused(self, fused: str, rows: Tensor) -> None:
        """Without its values, attention says the same everywhere: so V's rows of a fused projection can't be others."""
        layer, outputs = self.tail.layers[-1], []
        attention = layer.get_submodule(fused.rpartition(".")[0])

        def note(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        handles = [attention.register_forward_hook(note)]
        sample = self.trunk(self._sample())
        try:
            self.tail.hidden(sample)
            silence = layer.get_submodule(fused)
            handles.append(silence.register_forward_hook(lambda _, __, output: output.index_fill(-1, rows, 0.0)))
            self.tail.hidden(sample)
        except IndexError as error:
            raise ModelError(f"{self._kind}: {fused} is smaller than its heads: {error}") from error
        finally:
            for handle in handles:
                handle.remove()
        with_v, without = (output.sub(output[:1, :1]).abs().max().item() for output in outputs)
        if not without <= 1e-5 * with_v:
            raise ModelError(
                f"{self._kind}: without rows {int(rows[0])} to {int(rows[-1])} of {fused} attention still varies "
                f"by {without:.3g} ({with_v:.3g} with them): V is elsewhere, and this architecture isn't supported"
            )

    def _economise(self) -> None:
        """Spare the tail what doesn't matter, and verify that nothing else was lost."""
        sample = self._sample()
        where = torch.tensor([1, 4, 9], device=sample.device)
        targets = sample.flatten()[where + 1]
        weight = self.tail.weight * 1.5 + 0.1 if self.tail.v is not None else None
        everywhere = self.tail.logits(self.tail.hidden(self.trunk(sample), weight))
        expected = F.cross_entropy(everywhere[where], targets, reduction="none")
        economise(self.tail, self.trunk(sample, where=where))
        wanted = self.trunk(sample, where=where)
        self.tail.hidden(wanted)
        found = token_losses(self.tail.hidden(wanted, weight), self.tail.head, targets)
        if not torch.allclose(found.float(), expected, rtol=1e-4, atol=1e-4):
            raise ModelError(
                f"{self._kind}: losses are {found.tolist()} when the tail runs where they are wanted alone, and "
                f"{expected.tolist()} when it runs everywhere: this architecture isn't supported"
            )

    def _sample(self) -> Tensor:
        return torch.arange(12, device=self._head.weight.device).view(2, 6) % self.vocab_size


class _LastLayerReached(Exception):  # noqa: N818 - not an error, it stops a forward
    """Carries control out of the decoder."""


def _logit_maps(config: Any) -> list[LogitMap]:
    """What models are known to do after their head, by what their configs call it; the plain head first."""
    maps = [LogitMap()]
    if cap := getattr(config, "final_logit_softcapping", None):
        maps.append(LogitMap(cap=cap))  # Gemma 2
    if divisor := getattr(config, "logits_scaling", None):
        maps.append(LogitMap(factor=1 / divisor))  # Granite
    if factor := getattr(config, "logit_scale", None):
        maps.append(LogitMap(factor=factor))  # Cohere
    return maps


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
