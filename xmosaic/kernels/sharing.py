"""Tables for targets that share their neighbours: which targets make a patch, and which sources it reads."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# Targets of a patch: a bit each in `Patches.links`, and the rows of a matrix product.
TARGETS = 16
# Sources of a piece: the fewer, if so large a share of all patches is a single one then. That is read fastest.
_FEW, _MANY, _SHARE = 64, 128, 0.75


class Patches(NamedTuple):
    """Targets in patches, and the sources of each patch in pieces.

    Parameters
    ----------
    order : int32 Tensor, (patch · 16)
        Targets, -1 where there are no more.
    first : int32 Tensor, (patch + 1)
        Where the pieces of each patch begin.
    source : int32 Tensor, (piece, n)
        n is 64 or 128, whichever makes most patches a single piece.
    links : int32 Tensor, (piece, n)
        A bit for each target of the patch that has the source as a neighbour.
    direction : float32 Tensor, (piece, 3, 16, n)
        From each source to each target; 0 where there is no link.
    """

    order: torch.Tensor
    first: torch.Tensor
    source: torch.Tensor
    links: torch.Tensor
    direction: torch.Tensor


def share_neighbors(direction: torch.Tensor, neighbors: torch.Tensor) -> Patches | None:
    """Put targets that share neighbours into patches, for `neighbor_attention`.

    Worth it for tables that are used many times. Targets are taken in their own order or in that of their first
    neighbours, whichever makes fewer pieces: one of the two follows the sphere where a mesh in nested order meets a
    grid.

    Parameters
    ----------
    direction : Tensor, (target, k, 3)
    neighbors : integer Tensor, (target, k)

    Returns
    -------
    Patches or None
        On the device of the neighbours; None where a target has a neighbour twice.
    """
    ordered = neighbors.sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return None
    orders = torch.arange(len(neighbors), device=neighbors.device), neighbors[:, 0].argsort(stable=True)
    return min((_patches(direction, neighbors.long(), o) for o in orders), key=lambda p: p.source.numel())


def _patches(direction: torch.Tensor, neighbors: torch.Tensor, order: torch.Tensor) -> Patches:
    targets, device = len(neighbors), neighbors.device
    count = -(-targets // TARGETS)
    place = torch.empty_like(order)
    place[order] = torch.arange(targets, device=device)
    patch, row = place // TARGETS, place % TARGETS
    sources = int(neighbors.max()) + 1
    pairs, where = (patch[:, None] * sources + neighbors).unique(return_inverse=True)  # of a patch and a source
    owner = pairs // sources
    sizes = owner.bincount(minlength=count)
    length = _FEW if (sizes <= _FEW).double().mean() >= _SHARE else _MANY
    first = torch.nn.functional.pad((-(-sizes // length)).cumsum(0), (1, 0))
    within = torch.arange(len(pairs), device=device) - (sizes.cumsum(0) - sizes)[owner]
    slot = first[owner] * length + within
    pieces = int(first[-1])
    source, links = (torch.zeros(pieces * length, dtype=torch.int32, device=device) for _ in "ab")
    source[slot] = (pairs % sources).int()
    link = slot[where]
    bits = (1 << row).int()[:, None].expand_as(link)
    links.index_add_(0, link.flatten(), bits.flatten())
    dense = torch.zeros(pieces, 3, TARGETS, length, device=device)
    rows = row[:, None].expand_as(link)
    dense.permute(0, 2, 3, 1)[link // length, rows, link % length] = direction.float()
    padded = torch.nn.functional.pad(order, (0, count * TARGETS - targets), value=-1)
    return Patches(padded.int(), first.int(), source.view(-1, length), links.view(-1, length), dense)


class Shared:
    """Keeps the patches of tables, which are made when they are first wanted; copies begin with none."""

    def __init__(self) -> None:
        self._of: Callable[[], torch.Tensor | None] = lambda: None
        self.patches: Patches | None = None

    def of(self, direction: torch.Tensor, neighbors: torch.Tensor) -> Patches | None:
        """Those of tables that stay what they are, as `share_neighbors` makes them."""
        if self._of() is not neighbors:
            self.patches, self._of = share_neighbors(direction, neighbors), weakref.ref(neighbors)
        return self.patches

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, ()
