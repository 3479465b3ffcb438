"""What one micro-batch says of its rows' gradients: the estimators, all on one trunk pass, each a function.

Every estimator returns what it found by the names of `Scores`' fields. Rows don't mix: a row whose values aren't finite
leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from selector_server.scoring.head import token_gradients, token_losses
from selector_server.scoring.probes import Probes
from selector_server.scoring.tail import Penultimate, Tail
from shared.errors import ModelError
from shared.rowloss import Answers, row_means

# Blocks of gradients and probes are made so that they hold about this many values (16 MiB in float32).
_BLOCK_VALUES = 1 << 22

Found = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows on their way through the tail.

    Attributes:
        penultimate: From the trunk; it wants the answers' positions.
        answers: Where and what they are.
    """

    penultimate: Penultimate
    answers: Answers


class PlacedProbes:
    """Probes on the device that scores. The last one drawn is kept: one probe, the usual case, is drawn once a step."""

    def __init__(self, probes: Probes, device: torch.device | str) -> None:
        """Draws nothing yet."""
        self.probes, self.count, self._device = probes, probes.count, device
        self._last: tuple[int, Tensor] | None = None

    def draw(self, index: int) -> Tensor:
        """Probe `index`, float32, in the shape of what is perturbed."""
        if self._last is None or self._last[0] != index:
            self._last = index, torch.from_numpy(self.probes.draw(index)).to(self._device)
        return self._last[1]

    def blocks(self, num_rows: int) -> Iterator[Tensor]:
        """All probes side by side, `num_rows` rows of the weight at a time, float32 [n, <= num_rows · d_in]."""
        size = num_rows * self.probes.shape[1]
        if self.count == 1:
            yield from self.draw(0).view(1, -1).split(size, dim=1)
        else:
            yield from (torch.from_numpy(block).to(self._device) for block in self.probes.blocks(size))


class Estimator(Protocol):
    """From a micro-batch to its rows' losses and projected gradients."""

    def __call__(self, tail: Tail, batch: MicroBatch, probes: PlacedProbes, *, epsilon: float) -> Found:
        """`loss` float64 [m] and `c` float64 [m, n]."""


def losses(tail: Tail, batch: MicroBatch, weight: Tensor | None = None) -> Tensor:
    """Losses with `weight` in place of the perturbed one, float64 [m]."""
    hidden = tail.hidden(batch.penultimate, weight)
    return row_means(token_losses(hidden, tail.head, batch.answers.targets), batch.answers)


def central(tail: Tail, batch: MicroBatch, probes: PlacedProbes, *, epsilon: float) -> Found:
    """c_ij = (L_i(θ + ε z_j) - L_i(θ - ε z_j)) / 2ε; the loss is the mean of all perturbed ones.

    Cost: 2n passes of the tail.
    Source: paper §4.2, Eq. (7) and (8), Algorithm 1.
    """
    c, middle = [], []
    for j in range(probes.count):
        offset = epsilon * probes.draw(j)
        plus, minus = losses(tail, batch, tail.weight + offset), losses(tail, batch, tail.weight - offset)
        c.append((plus - minus) / (2 * epsilon))
        middle.append((plus + minus) / 2)
    return {"loss": torch.stack(middle).mean(dim=0), "c": torch.stack(c, dim=1)}


def jvp(tail: Tail, batch: MicroBatch, probes: PlacedProbes, *, epsilon: float) -> Found:
    """c_ij = <∇L_i, z_j> in forward mode: what the central difference tends to, without an ε.

    Cost: n passes of the tail that compute twice as much, and the head there and back once, whatever n. Attention in
        its plain form, since the fused one has no forward mode on a CPU: O(m · heads · T²) memory.
    """
    tangents, values, upstream = [], torch.empty(0), torch.empty(0)
    for j in range(probes.count):
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            dual = tail.hidden(batch.penultimate, forward_ad.make_dual(tail.weight, probes.draw(j)))
            hidden, tangent = forward_ad.unpack_dual(dual)
        if j == 0:
            values, upstream = token_gradients(hidden, tail.head, batch.answers.targets)
        tangents.append(row_means((upstream * tangent).sum(dim=1), batch.answers))
    return {"loss": row_means(values, batch.answers), "c": torch.stack(tangents, dim=1)}


def exact(tail: Tail, batch: MicroBatch, probes: PlacedProbes, *, epsilon: float) -> Found:
    """c_ij = <∇L_i, z_j> in reverse mode: a row's gradient G_i = Σ_t δ_it x_itᵀ, then all probes at once.

    Here x_it goes into the perturbed weight and δ_it is the derivative of L_i by what comes out. G_i is made in blocks
    of the weight's rows, for one micro-batch.

    Cost: one pass of the tail there and back, whatever n; then n · m multiplications per coordinate.
    """
    assert tail.v is not None
    loss, (flow,) = flows(tail, batch, [tail.v])
    m, width = len(flow), tail.weight.shape[1]
    c = loss.new_zeros(m, probes.count)
    num_rows = max(1, _BLOCK_VALUES // (width * (m + probes.count)))
    deltas = [delta if tail.v_rows is None else delta[:, tail.v_rows] for delta, _ in flow]
    for i, z in enumerate(probes.blocks(num_rows)):
        part = slice(i * num_rows, (i + 1) * num_rows)
        gradients = torch.stack([(d[:, part].T @ x).flatten() for d, (_, x) in zip(deltas, flow, strict=True)])
        c += gradients @ z.T
    return {"loss": loss, "c": c}


ESTIMATORS: dict[str, Estimator] = {"central": central, "jvp": jvp, "exact": exact}

# For each row of a micro-batch: δ [tokens, d_out] and x [tokens, d_in].
Flow = list[tuple[Tensor, Tensor]]


def flows(tail: Tail, batch: MicroBatch, modules: list[nn.Module]) -> tuple[Tensor, list[Flow]]:
    """Back-propagate each row's loss through the tail alone.

    Args:
        tail: Its weights are constants.
        batch: Rows.
        modules: Linear modules of the tail's layers.

    Returns:
        Losses, float64 [m], and for each module what its weight's gradient Σ_t δ_t x_tᵀ is made of, row by row.

    Raises:
        ModelError: a module that isn't called once with all rows.

    Cost: on a GPU, O(m · heads · T²) memory.
    """
    # On a GPU the fused kernels add up in an order that changes from run to run.
    reproducible = nullcontext() if batch.answers.targets.device.type == "cpu" else sdpa_kernel(SDPBackend.MATH)
    with torch.enable_grad(), reproducible, _watched(modules) as seen:
        hidden = tail.hidden(batch.penultimate)
    missing = [module for module in modules if len(seen.get(module, ())) != 1]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(modules)} trained linear modules are called {len(seen.get(missing[0], ()))} times "
            "in a forward, not once: their rows' gradients can't be told apart, use estimator 'central'"
        )
    inputs, outputs = zip(*(seen[module][0] for module in modules), strict=True)
    values, upstream = token_gradients(hidden.detach(), tail.head, batch.answers.targets)
    share = batch.answers.counts.repeat_interleave(batch.answers.counts).reciprocal()
    deltas = torch.autograd.grad(hidden, outputs, upstream * share[:, None], materialize_grads=True)
    return row_means(values, batch.answers), [
        list(zip(_rows(delta, batch), _rows(x.detach(), batch), strict=True))
        for delta, x in zip(deltas, inputs, strict=True)
    ]


@contextmanager
def _watched(modules: list[nn.Module]) -> Iterator[dict[nn.Module, list[tuple[Tensor, Tensor]]]]:
    """What goes into the modules and comes out, by module; derivatives by what comes out can be taken."""
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        seen.setdefault(module, []).append((args[0], output))
        return output

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _rows(tokens: Tensor, batch: MicroBatch) -> list[Tensor]:
    """[m, T, d], or [1, num_answers, d] of a module that runs at the answers alone, by row."""
    m, length = batch.penultimate.hidden.shape[:2]
    if tokens.shape[:2] == (m, length):
        return list(tokens)
    if tokens.shape[:2] == (1, len(batch.answers.targets)):
        return list(tokens[0].split(batch.answers.counts.tolist()))
    raise ModelError(
        f"a trained linear module is called with {list(tokens.shape)} in a batch of {m} rows and {length} tokens: its "
        "rows' gradients can't be told apart, use estimator 'central'"
    )
