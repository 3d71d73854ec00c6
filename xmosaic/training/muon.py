"""Muon: directions with momentum made orthogonal, matrices of one shape together; also where ranks have parts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..graph import Captured, Inputs
from .shards import group_of, local, rows_of

# What the products are made in, and what ranks exchange.
ARITHMETIC = torch.bfloat16
# Of the Newton–Schulz step x ← a x + b (x xᵀ) x + c (x xᵀ)² x: the slope at 0 is steep, and five steps take singular
# values between 0.001 and 1 to between 0.7 and 1.2 (Jordan et al. 2024).
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
_TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov's look ahead, as `torch.optim.Muon` does it with ``"original"`` rates.

    Torch's own goes matrix by matrix, about 25 launches each: 2000 for the 83 matrices of the bundled network, more
    time on a GPU than the network itself takes. Here matrices of one shape are one product.

    Parameters
    ----------
    weights : sequence of Parameter
        Matrices; either all whole, or all cut by rows over one process group. Of those that are cut, momentum and
        weights stay in shards; the directions go to one rank each, which makes them orthogonal whole, and come back:
        two collectives per update, 4 bytes per weight over all ranks.
    weight_decay, momentum : float
        See `Optimiser`.
    captured : bool
        Whether the products are one CUDA graph.

    References
    ----------
    Jordan, K. et al. (2024). Muon: an optimizer for hidden layers in neural networks. kellerjordan.github.io/posts/muon
    """

    def __init__(
        self, weights: Sequence[nn.Parameter], weight_decay: float, momentum: float, captured: bool = False
    ) -> None:
        super().__init__(weights, {"lr": 1e-3, "weight_decay": weight_decay, "momentum": momentum})
        self._orthogonal = Captured(_of_named).__call__ if captured else _of_named
        self._group = group_of(weights)
        if self._group is not None:
            self._world, self._rank = dist.get_world_size(self._group), dist.get_rank(self._group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the weights by their gradients; of weights in shards every rank takes part."""
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            shapes = [tuple(w.shape) for w in weights]
            own = [local(w) for w in weights]
            directions = self._directions(weights, group["momentum"])
            updates = self._whole(directions) if self._group is None else self._exchanged(shapes, directions)
            torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
            for (rows, columns), some in _alike(shapes).items():
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                torch._foreach_add_([own[i] for i in some], [updates[i] for i in some], alpha=-rate)

    def _directions(self, weights: list[nn.Parameter], momentum: float) -> list[torch.Tensor]:
        """Own rows of the directions."""
        gradients = [local(w.grad) for w in weights if w.grad is not None]
        buffers = [local(self.state[w]["momentum_buffer"]) for w in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, buffers, momentum))

    def _whole(self, directions: list[torch.Tensor]) -> list[torch.Tensor]:
        return self._orthogonal({str(i): d for i, d in enumerate(directions)})

    def _exchanged(self, shapes: list[tuple[int, ...]], directions: list[torch.Tensor]) -> list[torch.Tensor]:
        """Rows of the orthogonal matrices that belong to this rank."""
        owned = share_out(shapes, self._world)
        mine = owned[self._rank]
        # numbers of values: what I have of each owner's matrices, and what each has of mine
        parts = [sum(directions[i].numel() for i in some) for some in owned]
        counts = [rows_of(shapes[i][0], self._world) for i in mine]
        theirs = [sum(n[r] * shapes[i][1] for i, n in zip(mine, counts, strict=True)) for r in range(self._world)]
        sent = torch.cat([directions[i].flatten() for some in owned for i in some]).to(ARITHMETIC)
        pieces = self._exchange(sent, theirs, parts).split(
            [n[r] * shapes[i][1] for r in range(self._world) for i, n in zip(mine, counts, strict=True)]
        )
        made = orthogonal([torch.cat(pieces[k :: len(mine)]).view(shapes[i]) for k, i in enumerate(mine)])
        rows = [m.split(n) for m, n in zip(made, counts, strict=True)]
        back = [some[r].flatten() for r in range(self._world) for some in rows]
        received = self._exchange(torch.cat(back) if back else sent[:0], parts, theirs)
        order = [i for some in owned for i in some]
        found = dict(zip(order, received.split([directions[i].numel() for i in order]), strict=True))
        return [found[i].view_as(d) for i, d in enumerate(directions)]

    def _exchange(self, values: torch.Tensor, arriving: list[int], leaving: list[int]) -> torch.Tensor:
        found = values.new_empty(sum(arriving))
        dist.all_to_all_single(found, values, arriving, leaving, group=self._group)
        return found


def orthogonal(directions: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Newton–Schulz steps on matrices, those of one shape at once: all singular values near 1.

    Parameters
    ----------
    directions : sequence of Tensor, each (row, column)

    Returns
    -------
    list of Tensor, each (row, column)
        In `ARITHMETIC`.
    """
    made: list[torch.Tensor] = [torch.empty(0)] * len(directions)
    for (rows, columns), some in _alike([tuple(d.shape) for d in directions]).items():
        x = torch.stack([directions[i] for i in some]).to(ARITHMETIC)
        tall = rows > columns
        x = _newton_schulz(x.mT if tall else x)
        for i, one in zip(some, (x.mT if tall else x).unbind(), strict=True):
            made[i] = one
    return made


def _of_named(directions: Inputs) -> list[torch.Tensor]:
    return orthogonal([d for d in directions.values() if d is not None])


def _newton_schulz(x: torch.Tensor) -> torch.Tensor:
    """(matrix, row, column), not taller than wide."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_TINY)  # no singular value above 1
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _alike(shapes: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """Places of each shape."""
    found = defaultdict(list)
    for place, shape in enumerate(shapes):
        found[shape].append(place)
    return found


def share_out(shapes: Sequence[tuple[int, ...]], world: int) -> list[list[int]]:
    """Which matrices each rank makes orthogonal, so that all have about as much to do: the costly ones first.

    Examples
    --------
    >>> share_out([(8, 8), (64, 64), (8, 16), (32, 64)], 2)
    [[1], [3, 2, 0]]
    """
    costs = [min(s) ** 2 * (2 * max(s) + min(s)) for s in shapes]
    owned: list[list[int]] = [[] for _ in range(world)]
    load = [0] * world
    for i in sorted(range(len(shapes)), key=lambda i: (-costs[i], i)):
        rank = load.index(min(load))
        owned[rank].append(i)
        load[rank] += costs[i]
    return owned
