"""Whole values of parameters that are sharded over the ranks, by ZeRO-3 or FSDP2.

Gathering is a collective: every rank does it, at the same point of the loop and on the training thread. Only what is
asked for is gathered, so a frozen base stays in its shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_sharded(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether some of them are held in shards, so that whoever wants them whole must ask on every rank."""
    return any(_is_zero3(parameter) or isinstance(parameter, DTensor) for parameter in parameters)


@contextmanager
def whole(parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """The whole values while it is entered; where nothing is sharded they alias the model's own storage.

    The tensors stay valid afterwards. Inside, under ZeRO-3, the parameters themselves are whole too.
    """
    if not any(map(_is_zero3, parameters)):
        yield [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in parameters]
        return
    from deepspeed import zero

    with zero.GatheredParameters(parameters):
        yield [parameter.detach() for parameter in parameters]


@contextmanager
def one_whole(parameter: nn.Parameter) -> Iterator[Tensor]:
    """`whole` for a single parameter."""
    with whole([parameter]) as (tensor,):
        yield tensor


def save_pretrained(model: Any, folder: Path, *, is_first: bool) -> None:
    """Write what was trained, an adapter or a whole model, as PEFT or transformers do. Every rank calls it.

    A model in shards is gathered one parameter after another, to the memory of the processor of the rank that writes:
    with an adapter what is trained, and without one everything, frozen or not.

    Args:
        model: The bare model, sharded or not.
        folder: Where to.
        is_first: Whether this rank is the one that writes.
    """
    if not is_sharded(model.parameters()):
        if is_first:
            model.save_pretrained(folder)
        return
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not isinstance(model, PeftModel):
            with one_whole(parameter) as tensor:
                if is_first:
                    state[name] = tensor.to("cpu", copy=True)
    if is_first:
        if not isinstance(model, PeftModel):
            kept = model.state_dict()  # without buffers that aren't saved
            state |= {name: buffer for name, buffer in model.named_buffers() if name in kept}
        # Left to itself a sharded model would save its shards.
        model.save_pretrained(folder, state_dict=state)


def _is_zero3(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")
