"""Public operations: documentation, checks and choice of implementation; the work is done elsewhere."""

from __future__ import annotations

import torch

from ..errors import ArgumentError, explain
from . import reference

IMPLEMENTATIONS = ("reference",)


def selected_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_indices: torch.Tensor,
    block_size: int,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Attention of each block of queries over all points of the key blocks picked for it.

    Query head ``i`` uses key/value head ``i // group`` with ``group = num_heads / num_kv_heads``. A block that is
    picked twice counts twice in the softmax.

    Parameters
    ----------
    query : Tensor, (batch, num_heads, point, d)
    key, value : Tensor, (batch, num_kv_heads, point, d)
    block_indices : int64 Tensor, (batch, num_kv_heads, block, block_count)
        For each block of queries the key blocks it attends to; ``block = point / block_size``.
    block_size : int
        Points in a block; blocks are contiguous.
    scale : float, optional
        Factor on query·key, by default ``d ** -0.5``.
    impl : {None, "reference"}, optional
        Implementation; None picks the fastest that can take these inputs, a name never falls back.

    Returns
    -------
    Tensor, (batch, num_heads, point, d)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together or an unknown ``impl``.
    """
    _require_axes(query=query, key=key)
    batch, num_heads, points, d = query.shape
    _require(
        key.shape == value.shape,
        "key and value differ in shape",
        f"{tuple(key.shape)}, {tuple(value.shape)}",
        "equal shapes",
    )
    _require(
        key.shape[0] == batch and key.shape[2:] == query.shape[2:] and _divides(key.shape[1], num_heads),
        "query and key don't belong together",
        f"{tuple(query.shape)} and {tuple(key.shape)}",
        "the same batch, point and d, and num_heads a multiple of num_kv_heads",
    )
    _require(
        _divides(block_size, points),
        "block_size does not divide the points",
        f"{block_size}",
        f"a divisor of {points}",
    )
    _require(
        block_indices.ndim == 4 and block_indices.shape[:3] == (batch, key.shape[1], points // block_size),
        "block_indices has another shape",
        f"{tuple(block_indices.shape)}",
        f"({batch}, {key.shape[1]}, {points // block_size}, block_count)",
    )
    _check_blocks(block_indices, points // block_size)
    _check_impl(impl)
    return reference.selected_attention(
        query, key, value, block_indices, block_size, d**-0.5 if scale is None else scale
    )


@torch.no_grad()
def select_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    block_count: int,
    *,
    grouping: str = "group",
    impl: str | None = None,
) -> torch.Tensor:
    """Pick for each query block and key/value head the key blocks with the largest score.

    The score is the unscaled product of block means, averaged over the query heads of the group; it has no gradient.

    Parameters
    ----------
    query : Tensor, (batch, num_heads, block, d)
        Means of the queries over each block.
    key : Tensor, (batch, num_kv_heads, block, d)
        Means of the keys over each block.
    block_count : int
        Number of blocks to pick; at most all.
    grouping : {"group", "strided"}, optional
        "group" averages the heads ``h·G … h·G + G − 1`` of key/value head ``h``; "strided" the heads
        ``h, h + H_kv, h + 2·H_kv, …``, as the published weights were trained with.
    impl : {None, "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    int64 Tensor, (batch, num_kv_heads, block, block_count)
        In no particular order.

    Raises
    ------
    ArgumentError
        For shapes that don't belong together, an unknown ``grouping`` or an unknown ``impl``.
    """
    _require_axes(query=query, key=key)
    _require(
        (query.shape[0], query.shape[3]) == (key.shape[0], key.shape[3]) and _divides(key.shape[1], query.shape[1]),
        "query and key don't belong together",
        f"{tuple(query.shape)} and {tuple(key.shape)}",
        "the same batch and d, and num_heads a multiple of num_kv_heads",
    )
    _require(
        1 <= block_count <= key.shape[2],
        "block_count can't be picked",
        f"{block_count}",
        f"1 to {key.shape[2]}",
    )
    _require(grouping in ("group", "strided"), "grouping is unknown", repr(grouping), "'group' or 'strided'")
    _check_impl(impl)
    return reference.select_blocks(query, key, block_count, grouping)


def neighbor_attention(
    direction: torch.Tensor,
    key_projection: torch.Tensor,
    value: torch.Tensor,
    neighbors: torch.Tensor,
    *,
    scale: float,
    impl: str | None = None,
) -> torch.Tensor:
    """Attention of each target point over its nearest source points, with queries made from directions.

    The query of a neighbour is linear in its direction r (three numbers), so the logit (W_q r)·k is r·(W_qᵀ k):
    the keys enter through three numbers per head and source point.

    Parameters
    ----------
    direction : Tensor, (target, k, 3)
        Unit direction from each neighbour to the target.
    key_projection : Tensor, (batch, source, num_heads, 3)
        W_qᵀ k of each source point.
    value : Tensor, (batch, source, num_heads, d)
    neighbors : int64 Tensor, (target, k)
        Source points of each target.
    scale : float
        Factor on the logits.
    impl : {None, "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    Tensor, (batch, target, num_heads, d)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together or an unknown ``impl``.
    """
    _require_axes(value=value)
    _require(
        neighbors.ndim == 2 and direction.shape == (*neighbors.shape, 3),
        "direction and neighbors don't belong together",
        f"{tuple(direction.shape)} and {tuple(neighbors.shape)}",
        "(target, k, 3) and (target, k)",
    )
    _require(
        key_projection.shape == (*value.shape[:3], 3),
        "key_projection and value don't belong together",
        f"{tuple(key_projection.shape)} and {tuple(value.shape)}",
        "(batch, source, num_heads, 3) and (batch, source, num_heads, d)",
    )
    _check_impl(impl)
    return reference.neighbor_attention(direction, key_projection, value, neighbors, scale)


def _require(condition: bool, what: str, got: str, expected: str) -> None:
    if not condition:
        raise ArgumentError(explain(what, got=got, expected=expected))


def _require_axes(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        _require(tensor.ndim == 4, f"{name} has another number of axes", str(tuple(tensor.shape)), "four axes")


def _divides(divisor: int, number: int) -> bool:
    return divisor >= 1 and number % divisor == 0


def _check_blocks(indices: torch.Tensor, blocks: int) -> None:
    whole = not (indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool)
    _require(
        whole and indices.shape[-1] >= 1,
        "block_indices can't be used",
        f"{indices.dtype}, {indices.shape[-1]} blocks each",
        "integers, at least one block each",
    )
    # on other devices looking at the values would wait for them
    if indices.device.type == "cpu" and indices.numel():
        low, high = int(indices.min()), int(indices.max())
        _require(low >= 0 and high < blocks, "block_indices points outside", f"{low} to {high}", f"0 to {blocks - 1}")


def _check_impl(impl: str | None) -> None:
    if impl is not None and impl not in IMPLEMENTATIONS:
        raise ArgumentError(
            explain(f"impl={impl!r} does not exist", expected=" or ".join(map(repr, (None, *IMPLEMENTATIONS))))
        )
