"""Muon for matrices whose rows lie on several ranks: whole again for the Newton–Schulz steps, one rank for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .shards import group_of, local, rows_of

# Muon rounds to it before its first product, so nothing is lost on the way.
EXCHANGED = torch.bfloat16


class ShardedMuon(torch.optim.Optimizer):
    """`torch.optim.Muon` on matrices in shards: the same numbers for the same gradients, bit for bit.

    Left alone with shards, torch's own makes each of its 15 products per matrix a collective of its own, with partial
    sums in bfloat16. Here momentum and weights stay in shards; the directions go to one rank each, which makes them
    orthogonal whole, and come back: two collectives per update, 4 bytes per weight over all ranks.

    Parameters
    ----------
    weights : sequence of Parameter
        Matrices, cut by rows over one process group.
    weight_decay, momentum : float
        See `Optimiser`.
    """

    def __init__(self, weights: Sequence[nn.Parameter], weight_decay: float, momentum: float) -> None:
        super().__init__(weights, {"lr": 1e-3, "weight_decay": weight_decay, "momentum": momentum})
        self._group = group_of(weights)
        self._world, self._rank = dist.get_world_size(self._group), dist.get_rank(self._group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the weights by their gradients; every rank takes part."""
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            directions = [self._direction(w, group["momentum"]) for w in weights]
            for w, update in zip(weights, self._orthogonal(weights, directions), strict=True):
                mine, (rows, columns) = local(w), w.shape
                mine.mul_(1 - group["lr"] * group["weight_decay"])
                mine.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))

    def _direction(self, weight: nn.Parameter, momentum: float) -> torch.Tensor:
        """Own rows of the direction, with Nesterov's look ahead."""
        assert weight.grad is not None
        gradient, buffer = local(weight.grad), local(self.state[weight]["momentum_buffer"])
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum).to(EXCHANGED)

    def _orthogonal(self, weights: list[Any], directions: list[torch.Tensor]) -> list[torch.Tensor]:
        """Rows of the orthogonal matrices that belong to this rank."""
        shapes = [tuple(w.shape) for w in weights]
        owned = share_out(shapes, self._world)
        mine = owned[self._rank]
        # numbers of values: what I have of each owner's matrices, and what each has of mine
        parts = [sum(directions[i].numel() for i in some) for some in owned]
        counts = [rows_of(shapes[i][0], self._world) for i in mine]
        theirs = [sum(n[r] * shapes[i][1] for i, n in zip(mine, counts, strict=True)) for r in range(self._world)]
        sent = torch.cat([directions[i].flatten() for some in owned for i in some])
        pieces = self._exchange(sent, theirs, parts).split(
            [n[r] * shapes[i][1] for r in range(self._world) for i, n in zip(mine, counts, strict=True)]
        )
        made = [orthogonal(torch.cat(pieces[k :: len(mine)]).view(shapes[i])) for k, i in enumerate(mine)]
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


def orthogonal(direction: torch.Tensor) -> torch.Tensor:
    """Newton–Schulz steps of `torch.optim.Muon` on a matrix, and nothing else of it.

    Its steps are no public function. So a matrix of zeros takes one update at a rate that undoes its factor: what it is
    then is the orthogonal direction, negative.

    Parameters
    ----------
    direction : Tensor, (row, column)
        Used up.

    Returns
    -------
    Tensor, (row, column)
    """
    rows, columns = direction.shape
    scratch = nn.Parameter(torch.zeros_like(direction))
    scratch.grad = direction
    rate = 1 / math.sqrt(max(1, rows / columns))
    torch.optim.Muon([scratch], lr=rate, weight_decay=0.0, momentum=0.0, nesterov=False, adjust_lr_fn="original").step()
    return scratch.detach().neg_()


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
