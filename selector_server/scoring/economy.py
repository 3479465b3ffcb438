"""Spares the tail what doesn't matter, whatever the architecture: which modules these are is found by experiment.

Losses are read at the answers alone. So a module whose results elsewhere don't reach them (queries, the output
projection, the MLP) is run on the answers' positions alone. And a module that a perturbed V doesn't reach (norms,
queries, keys, the MLP of a parallel block) runs once for all perturbations of a batch.

NaN shows the way: it survives sums and products, also with a weight that is zero now and won't be after some training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from selector_server.scoring.tail import Penultimate, Tail

_Forward = Callable[[Tensor], Tensor]


def economise(tail: Tail, sample: Penultimate) -> None:
    """Replace the forwards of the tail's modules where that spares work.

    Args:
        tail: Not economised yet.
        sample: Several rows; some positions are wanted, and before each of them one that isn't.
    """
    assert sample.where is not None
    layer = tail.layers[-1]
    plain = _record(tail, sample)
    at_answers = list(_outermost(layer, lambda module: module in plain and _matters_at_answers(tail, module, sample)))
    kept: list[nn.Module] = []
    if tail.v is not None:
        reached = _record(tail, sample, torch.full_like(tail.weight, torch.nan))
        kept = list(_outermost(layer, lambda module: module in plain and torch.equal(plain[module], reached[module])))
    for module in at_answers:
        module.forward = _at_answers(tail, module.forward)
    for module in kept:
        module.forward = _kept(tail, module.forward)


def _at_answers(tail: Tail, forward: _Forward) -> _Forward:
    """`forward`, [m, T, d] to [m, T, d'], at the wanted positions; zero elsewhere."""

    def run(x: Tensor) -> Tensor:
        assert tail.running is not None
        where = tail.running.where
        if where is None:
            return forward(x)
        result = forward(x.flatten(0, 1).index_select(0, where)[None])[0]
        everywhere = result.new_zeros(x.shape[0] * x.shape[1], result.shape[1])
        return everywhere.index_copy(0, where, result).view(*x.shape[:2], -1)

    return run


def _kept(tail: Tail, forward: _Forward) -> _Forward:
    """`forward`, run once for a batch."""

    def run(x: Tensor) -> Tensor:
        assert tail.running is not None
        kept = tail.running.kept
        if run not in kept:
            kept[run] = forward(x)
        return kept[run]

    return run


def _record(tail: Tail, sample: Penultimate, weight: Tensor | None = None) -> dict[nn.Module, Tensor]:
    """What the last layer's modules return: those that hold weights, take and return one tensor and are called once."""
    outputs: dict[nn.Module, list[Tensor | None]] = {}

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        simple = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        outputs.setdefault(module, []).append(output if simple else None)

    modules = [module for module in tail.layers[-1].modules() if any(True for _ in module.parameters())]
    handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        tail.hidden(sample, weight)
    finally:
        for handle in handles:
            handle.remove()
    return {module: calls[0] for module, calls in outputs.items() if len(calls) == 1 and calls[0] is not None}


def _matters_at_answers(tail: Tail, module: nn.Module, sample: Penultimate) -> bool:
    """Whether a module's results reach the wanted positions from these positions alone, and can be had there alone."""
    if all(parameter.dim() < 2 for parameter in module.parameters()):
        return False  # costs no more than picking positions
    m, length = sample.hidden.shape[:2]
    wanted = torch.zeros(m * length, dtype=torch.bool, device=sample.hidden.device)
    wanted[sample.where] = True
    elsewhere, forward, alone = ~wanted.view(m, length, 1), module.forward, []

    def poisoned(x: Tensor) -> Tensor:
        result: Tensor = forward(x)
        if x.dim() == result.dim() == 3 and x.shape[:2] == result.shape[:2] == (m, length):
            inside = forward(x.masked_fill(elsewhere, torch.nan)).flatten(0, 1)[wanted]
            picked = forward(x.flatten(0, 1)[wanted][None])[0]
            alone.append(torch.allclose(inside, picked, rtol=1e-4, atol=1e-5))
        return result.masked_fill(elsewhere, torch.nan)

    module.forward = poisoned
    try:
        clean = bool(tail.hidden(sample).isfinite().all())
    except (RuntimeError, ValueError):
        return False
    finally:
        del module.forward
    return clean and alone == [True]


def _outermost(module: nn.Module, fits: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    """The modules below `module` that fit, none inside another."""
    for child in module.children():
        if fits(child):
            yield child
        else:
            yield from _outermost(child, fits)
