"""Public operations: documentation, checks and choice of implementation; the work is done elsewhere."""

from __future__ import annotations

import torch

from ..errors import ArgumentError, explain
from . import reference
from .choice import choose
from .sharing import Patches


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
    impl : {None, "triton", "reference"}, optional
        Implementation; None picks the fastest that can take these inputs, a name never falls back. Triton takes
        float16, bfloat16 and float32 on a GPU, all alike; its gradients repeat bit for bit.

    Returns
    -------
    Tensor, (batch, num_heads, point, d)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together or an unknown ``impl``.
    """
    _check_selected(query, key, value, block_indices, block_size)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if choose(impl, query, key, value, products=True) == "triton":
        from . import selected

        with torch.cuda.device_of(query):
            return selected.selected_attention(query, key, value, block_indices, block_size, scale)
    return reference.selected_attention(query, key, value, block_indices, block_size, scale)


def combine_selected(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_indices: torch.Tensor,
    block_size: int,
    logits: torch.Tensor,
    local: torch.Tensor | int,
    compressed: torch.Tensor,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """`combine` of two branches with `selected_attention` as the third, and the first may be made here too.

    Where no gradient is wanted, one Triton kernel makes two branches and sums them as soon as it has the last, which is
    never rounded or written by itself. With gradients, in float32 unless ``impl="triton"``, and by the reference it is
    `local_attention`, `selected_attention`, then `combine`.

    Parameters
    ----------
    query : Tensor, (batch, num_heads, point, d)
    key, value : Tensor, (batch, num_kv_heads, point, d)
    block_indices : int64 Tensor, (batch, num_kv_heads, block, block_count)
    block_size : int
        Points in a block.
    logits : Tensor, (batch, point, num_heads, 3)
        Of the gate: local, compressed, selected.
    local : Tensor, (batch, point, num_heads, d), or int
        The branch, or the `size` of `local_attention` that makes it.
    compressed : Tensor, (batch, block, num_heads, d)
    scale : float, optional
        Factor on query·key of the selected branch, by default ``d ** -0.5``.
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    Tensor, (batch, point, num_heads, d)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together or an unknown ``impl``.
    """
    _check_selected(query, key, value, block_indices, block_size)
    made, blocks = query.transpose(1, 2), query.shape[2] // block_size
    if isinstance(local, int):
        _check_local(local, query.shape[2])
    _check_gates(logits, made if isinstance(local, int) else local, compressed, made)
    require(compressed.shape[1] == blocks, "compressed has other blocks", f"{compressed.shape[1]}", f"{blocks}")
    tensors = (query, key, value, logits, compressed, *(() if isinstance(local, int) else (local,)))
    chosen = choose(impl, *tensors, products=True)
    apart = chosen == "reference" or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    if isinstance(local, int) and (apart or local % block_size or scale not in (None, query.shape[3] ** -0.5)):
        local = local_attention(query, key, value, local, impl=impl).transpose(1, 2)
    if apart:
        assert not isinstance(local, int)
        third = selected_attention(query, key, value, block_indices, block_size, scale=scale, impl=impl)
        return combine(logits, local, compressed, third.transpose(1, 2), impl=impl)
    from . import selected

    scale = query.shape[3] ** -0.5 if scale is None else scale
    with torch.cuda.device_of(query):
        return selected.combine_selected(query, key, value, block_indices, block_size, logits, local, compressed, scale)


def _check_selected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, block_indices: torch.Tensor, block_size: int
) -> None:
    _require_axes(query=query, key=key)
    batch, num_heads, points, _ = query.shape
    require(
        key.shape == value.shape,
        "key and value differ in shape",
        f"{tuple(key.shape)}, {tuple(value.shape)}",
        "equal shapes",
    )
    require(
        key.shape[0] == batch and key.shape[2:] == query.shape[2:] and _divides(key.shape[1], num_heads),
        "query and key don't belong together",
        f"{tuple(query.shape)} and {tuple(key.shape)}",
        "the same batch, point and d, and num_heads a multiple of num_kv_heads",
    )
    require(
        _divides(block_size, points),
        "block_size does not divide the points",
        f"{block_size}",
        f"a divisor of {points}",
    )
    require(
        block_indices.ndim == 4 and block_indices.shape[:3] == (batch, key.shape[1], points // block_size),
        "block_indices has another shape",
        f"{tuple(block_indices.shape)}",
        f"({batch}, {key.shape[1]}, {points // block_size}, block_count)",
    )
    _check_blocks(block_indices, points // block_size)


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
    impl : {None, "triton", "reference"}, optional
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
    require(
        (query.shape[0], query.shape[3]) == (key.shape[0], key.shape[3]) and _divides(key.shape[1], query.shape[1]),
        "query and key don't belong together",
        f"{tuple(query.shape)} and {tuple(key.shape)}",
        "the same batch and d, and num_heads a multiple of num_kv_heads",
    )
    require(
        1 <= block_count <= key.shape[2],
        "block_count can't be picked",
        f"{block_count}",
        f"1 to {key.shape[2]}",
    )
    require(grouping in ("group", "strided"), "grouping is unknown", repr(grouping), "'group' or 'strided'")
    if choose(impl, query, key) == "triton":
        from . import selection

        if selection.fits(key):
            with torch.cuda.device_of(query):
                return selection.select_blocks(query, key, block_count, grouping)
    return reference.select_blocks(query, key, block_count, grouping)


def neighbor_attention(
    direction: torch.Tensor,
    key_projection: torch.Tensor,
    value: torch.Tensor,
    neighbors: torch.Tensor,
    *,
    scale: float,
    patches: Patches | None = None,
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
    patches : Patches, optional
        Of the same directions and neighbours, by `share_neighbors`: without gradients, in 16 bits and by Triton,
        targets side by side then share what they read. A value that is no number reaches the targets beside it too.
    impl : {None, "triton", "reference"}, optional
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
    require(
        neighbors.ndim == 2 and direction.shape == (*neighbors.shape, 3),
        "direction and neighbors don't belong together",
        f"{tuple(direction.shape)} and {tuple(neighbors.shape)}",
        "(target, k, 3) and (target, k)",
    )
    require(
        key_projection.shape == (*value.shape[:3], 3),
        "key_projection and value don't belong together",
        f"{tuple(key_projection.shape)} and {tuple(value.shape)}",
        "(batch, source, num_heads, 3) and (batch, source, num_heads, d)",
    )
    if choose(impl, key_projection, value, fixed=direction) == "triton":
        wanted = torch.is_grad_enabled() and (key_projection.requires_grad or value.requires_grad)
        if patches is not None and not wanted and value.element_size() == 2:
            from . import patches as shared

            with torch.cuda.device_of(value):
                return shared.neighbor_attention(patches, key_projection, value, len(neighbors), scale)
        from . import neighbor

        with torch.cuda.device_of(value):
            return neighbor.neighbor_attention(direction, key_projection, value, neighbors, scale)
    return reference.neighbor_attention(direction, key_projection, value, neighbors, scale)


def local_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int, *, impl: str | None = None
) -> torch.Tensor:
    """Full attention inside blocks of points that lie side by side.

    Parameters
    ----------
    query : Tensor, (batch, num_heads, point, d)
    key, value : Tensor, (batch, num_kv_heads, point, d)
    size : int
        Points of a block.
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    Tensor, (batch, num_heads, point, d)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together or an unknown ``impl``.
    """
    _require_axes(query=query, key=key, value=value)
    points = query.shape[2]
    _check_local(size, points)
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    # PyTorch's dense attention is faster one way; both ways ours repeats bit for bit
    ours = differentiable or impl == "triton"
    if choose(impl, query, key, value, products=True) == "triton" and ours:
        from . import selected

        with torch.cuda.device_of(query):
            return selected.local_attention(query, key, value, size)
    return reference.local_attention(query, key, value, size)


def _check_local(size: int, points: int) -> None:
    require(_divides(size, points), "size does not divide the points", f"{size}", f"a divisor of {points}")


def add_norm(x: torch.Tensor, update: torch.Tensor, *, impl: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of two tensors and its RMS norm over the last axis, in one pass.

    Parameters
    ----------
    x, update : Tensor, (..., width)
        The second may be of a narrower dtype.
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    total, normed : Tensor, (..., width)
        In the dtypes of `x` and of `update`.

    Raises
    ------
    ArgumentError
        For shapes that differ or an unknown ``impl``.
    """
    require(
        x.shape == update.shape, "x and update differ in shape", f"{tuple(x.shape)}, {tuple(update.shape)}", "equal"
    )
    if choose(impl, x, update, alike=False) == "triton":
        from . import gates

        with torch.cuda.device_of(x):
            return gates.add_norm(x, update)
    return reference.add_norm(x, update)


def sum_norm(
    x: torch.Tensor,
    update: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    *,
    times: int = 1,
    impl: str | None = None,
) -> torch.Tensor:
    """RMS norm over the last axis of a sum, or the norm of that norm.

    Where no gradient is wanted, one Triton kernel makes all of it in one pass and rounds nothing in between. With
    gradients it is PyTorch's own operations.

    Parameters
    ----------
    x : Tensor, (..., point, width)
    update : Tensor, (..., point, width), optional
        Added to it.
    position : Tensor, (point, width), optional
        Added to it first, the same for all samples.
    times : {1, 2}, optional
        How often it is normalised: the second time changes rows alone whose mean square is next to nothing.
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    Tensor, (..., point, width)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together, another number of ``times`` or an unknown ``impl``.
    """
    require(x.ndim >= 2, "x has another number of axes", f"{tuple(x.shape)}", "two axes or more")
    require(times in (1, 2), "times can't be that many", f"{times}", "1 or 2")
    tensors = [x]
    for name, added, shape in (("update", update, x.shape), ("position", position, x.shape[-2:])):
        if added is not None:
            require(added.shape == shape, f"{name} has another shape", f"{tuple(added.shape)}", f"{tuple(shape)}")
            tensors.append(added)
    chosen = choose(impl, *tensors)
    if chosen == "reference" or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return reference.sum_norm(x, update, position, times)
    from . import gates

    with torch.cuda.device_of(x):
        return gates.sum_norm(x, update, position, times)


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, size: int, *, impl: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary positions, and the means of what was rotated over blocks of points, in one pass.

    Parameters
    ----------
    x : Tensor, (batch, point, num_heads, d)
    cos, sin : Tensor, (point, d / 2)
        Of the angles by which adjacent pairs are rotated.
    size : int
        Points of a block.
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    rotated : Tensor, (batch, point, num_heads, d)
    means : Tensor, (batch, point / size, num_heads, d)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together or an unknown ``impl``.
    """
    _require_axes(x=x)
    points, d = x.shape[1], x.shape[3]
    require(
        cos.shape == sin.shape == (points, d // 2) and d % 2 == 0,
        "angles don't belong to x",
        f"{tuple(cos.shape)}, {tuple(sin.shape)} and {tuple(x.shape)}",
        "(point, d / 2) and (batch, point, num_heads, d)",
    )
    require(_divides(size, points), "size does not divide the points", f"{size}", f"a divisor of {points}")
    if choose(impl, x) == "triton":
        from . import rotary

        with torch.cuda.device_of(x):
            return rotary.rotate(x, cos, sin, size)
    return reference.rotate(x, cos, sin, size)


def block_means(x: torch.Tensor, size: int, *, impl: str | None = None) -> torch.Tensor:
    """Means over blocks of points.

    Parameters
    ----------
    x : Tensor, (batch, point, num_heads, d)
    size : int
        Points of a block.
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    Tensor, (batch, point / size, num_heads, d)

    Raises
    ------
    ArgumentError
        For a size that doesn't divide the points or an unknown ``impl``.
    """
    _require_axes(x=x)
    require(_divides(size, x.shape[1]), "size does not divide the points", f"{size}", f"a divisor of {x.shape[1]}")
    if choose(impl, x) == "triton":
        from . import rotary

        with torch.cuda.device_of(x):
            return rotary.block_means(x, size)
    return reference.block_means(x, size)


def combine(
    logits: torch.Tensor,
    local: torch.Tensor,
    compressed: torch.Tensor,
    selected: torch.Tensor,
    *,
    impl: str | None = None,
) -> torch.Tensor:
    """Sum of three branches, weighted by the softmax of a gate.

    Parameters
    ----------
    logits : Tensor, (batch, point, num_heads, 3)
    local, selected : Tensor, (batch, point, num_heads, d)
    compressed : Tensor, (batch, block, num_heads, d)
        One value for each of the equal blocks into which the points fall.
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    Tensor, (batch, point, num_heads, d)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together or an unknown ``impl``.
    """
    _check_gates(logits, local, compressed, selected)
    if choose(impl, logits, local, compressed, selected) == "triton":
        from . import gates

        with torch.cuda.device_of(logits):
            return gates.combine(logits, local, compressed, selected)
    return reference.combine(logits, local, compressed, selected)


def _check_gates(logits: torch.Tensor, local: torch.Tensor, compressed: torch.Tensor, selected: torch.Tensor) -> None:
    _require_axes(logits=logits, local=local, compressed=compressed)
    batch, points, heads, d = local.shape
    require(
        selected.shape == local.shape
        and logits.shape == (batch, points, heads, 3)
        and (compressed.shape[0], *compressed.shape[2:]) == (batch, heads, d)
        and _divides(compressed.shape[1], points),
        "branches and gate don't belong together",
        ", ".join(str(tuple(x.shape)) for x in (logits, local, compressed, selected)),
        "(batch, point, num_heads, 3), (batch, point, num_heads, d), (batch, block, num_heads, d) and as the second",
    )


def swiglu(ab: torch.Tensor, shift: torch.Tensor | None = None, *, impl: str | None = None) -> torch.Tensor:
    """SiLU(a + shift) · b of the two halves of a tensor.

    Parameters
    ----------
    ab : Tensor, (batch, point, 2·hidden)
    shift : Tensor, (batch, hidden), optional
        Added at every point: the learned functional perturbation.
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    Tensor, (batch, point, hidden)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together or an unknown ``impl``.
    """
    check_gate(ab, shift)
    if choose(impl, ab, *(() if shift is None else (shift,))) == "triton":
        from . import gates

        with torch.cuda.device_of(ab):
            return gates.swiglu(ab, shift)
    return reference.swiglu(ab, shift)


def gated_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None = None,
    *,
    normed: bool = False,
    impl: str | None = None,
) -> torch.Tensor:
    """`swiglu` of a linear map without bias: SiLU(a + shift) · b of the two halves of x·weightᵀ.

    On Hopper, in 16 bits and where no gradient is wanted, one Triton kernel keeps the product to itself: it is never
    rounded to 16 bits, and never written. In float32, with gradients and for sizes without a whole tile, or whose rows
    are no multiples of 16 bytes, it is `torch.nn.functional.linear`, then `swiglu`. Under autocast all inputs are cast
    first.

    Parameters
    ----------
    x : Tensor, (batch, point, dim)
    weight : Tensor, (2·hidden, dim)
    shift : Tensor, (batch, hidden), optional
        Added at every point: the learned functional perturbation.
    normed : bool
        Whether it is the RMS norm of x that is multiplied: the kernel multiplies x, and the product with what
        the norm would have multiplied each point with, so that the norm is never written.
    impl : {None, "triton", "reference"}, optional
        Implementation, as in `selected_attention`.

    Returns
    -------
    Tensor, (batch, point, hidden)

    Raises
    ------
    ArgumentError
        For shapes that don't belong together or an unknown ``impl``.
    """
    _check_gated(x, weight, shift)
    if torch.is_autocast_enabled(x.device.type):
        narrow = torch.get_autocast_dtype(x.device.type)
        x, weight = (t if t.dtype == torch.float64 else t.to(narrow) for t in (x, weight))
        shift = shift if shift is None or shift.dtype == torch.float64 else shift.to(narrow)
    if choose(impl, x, weight, *(() if shift is None else (shift,))) == "triton":
        from . import gated

        with torch.cuda.device_of(x):
            return gated.gated_product(x, weight, shift, normed)
    return reference.gated_product(reference.sum_norm(x, None, None, 1) if normed else x, weight, shift)


def _check_gated(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None) -> None:
    require(
        x.ndim == 3 and weight.ndim == 2 and weight.shape[1] == x.shape[2] and weight.shape[0] % 2 == 0,
        "x and weight don't belong together",
        f"{tuple(x.shape)} and {tuple(weight.shape)}",
        "(batch, point, dim) and (2·hidden, dim)",
    )
    _check_shift(shift, (x.shape[0], weight.shape[0] // 2))


def check_gate(ab: torch.Tensor, shift: torch.Tensor | None) -> None:
    """Raise `ArgumentError` where a gate's shapes don't belong together."""
    require(ab.ndim == 3 and ab.shape[2] % 2 == 0, "ab has another shape", f"{tuple(ab.shape)}", "(…, …, 2·hidden)")
    _check_shift(shift, (ab.shape[0], ab.shape[2] // 2))


def _check_shift(shift: torch.Tensor | None, expected: tuple[int, int]) -> None:
    require(
        shift is None or shift.shape == expected,
        "shift has another shape",
        f"{None if shift is None else tuple(shift.shape)}",
        f"{expected}",
    )


def require(condition: bool, what: str, got: str, expected: str) -> None:
    """Raise `ArgumentError` unless a condition holds."""
    if not condition:
        raise ArgumentError(explain(what, got=got, expected=expected))


def _require_axes(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        require(tensor.ndim == 4, f"{name} has another number of axes", str(tuple(tensor.shape)), "four axes")


def _divides(divisor: int, number: int) -> bool:
    return divisor >= 1 and number % divisor == 0


def _check_blocks(indices: torch.Tensor, blocks: int) -> None:
    whole = not (indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool)
    require(
        whole and indices.shape[-1] >= 1,
        "block_indices can't be used",
        f"{indices.dtype}, {indices.shape[-1]} blocks each",
        "integers, at least one block each",
    )
    # on other devices looking at the values would wait for them
    if indices.device.type == "cpu" and indices.numel():
        low, high = int(indices.min()), int(indices.max())
        require(low >= 0 and high < blocks, "block_indices points outside", f"{low} to {high}", f"0 to {blocks - 1}")
