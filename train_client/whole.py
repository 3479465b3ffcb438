"""Whole values of parameters that are sharded over the ranks, by ZeRO-3 or FSDP2.

Gathering is a collective: every rank does it, at the same point of the loop and on the training thread. Only what is
asked for is gathered, so a frozen base stays in its shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

    Args:
        model: The bare model, sharded or not.
        folder: Where to.
        is_first: Whether this rank is the one that writes.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with whole(list(trained.values())) as tensors:
        if is_first:
            # Left to itself a sharded model would save its shards.
            state = dict(zip(trained, tensors, strict=True)) if is_sharded(trained.values()) else None
            model.save_pretrained(folder, state_dict=state)


def _is_zero3(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")
