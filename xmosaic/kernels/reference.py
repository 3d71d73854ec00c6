"""PyTorch reference of every operation: any device, any float dtype, differentiable; it defines what is correct."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

# Gathered keys and values of one slice of query blocks stay below this many elements (256 MB in float32).
_GATHER_ELEMENTS = 32 * 1024 * 1024

FLOAT8_MAX = 448.0
"""The largest number of e4m3."""


def grouped_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Full attention of (..., kv_head, group, query, d) over (..., kv_head, key, d)."""
    *batch, group, length, d = query.shape
    # Without a mask the queries of a group are just more queries, so keys are never repeated.
    folded = query.reshape(-1, 1, group * length, d)
    key, value = key.reshape(-1, 1, *key.shape[-2:]), value.reshape(-1, 1, *value.shape[-2:])
    out = F.scaled_dot_product_attention(folded, key, value, scale=scale)
    return out.reshape(*batch, group, length, d)


def selected_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_indices: torch.Tensor,
    block_size: int,
    scale: float,
) -> torch.Tensor:
    batch, num_heads, points, d = query.shape
    num_kv_heads = key.shape[1]
    blocks, count = block_indices.shape[2:]
    query = query.reshape(batch, num_kv_heads, num_heads // num_kv_heads, blocks, block_size, d)
    query = query.transpose(2, 3)  # (batch, kv_head, block, group, query, d)
    key, value = (x.reshape(batch, num_kv_heads, blocks, block_size * d) for x in (key, value))
    step = max(1, _GATHER_ELEMENTS // (batch * num_kv_heads * count * block_size * d))
    slices = []
    for start in range(0, blocks, step):
        picked = block_indices[:, :, start : start + step]
        width = (*picked.shape[:3], count * block_size, d)
        keys, values = (_gather_blocks(x, picked).reshape(width) for x in (key, value))
        slices.append(grouped_attention(query[:, :, start : start + step], keys, values, scale))
    out = torch.cat(slices, dim=2) if len(slices) > 1 else slices[0]
    return out.transpose(2, 3).reshape(batch, num_heads, points, d)


def local_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int) -> torch.Tensor:
    if query.device.type == "cuda" and query.element_size() == 2:
        return dense_blocks(query, key, value, size)
    key, value = (x.unflatten(2, (-1, size)) for x in (key, value))
    query = query.unflatten(2, (-1, size)).unflatten(1, (key.shape[1], -1)).transpose(2, 3)
    out = grouped_attention(query, key, value, query.shape[-1] ** -0.5)
    return out.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def dense_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int) -> torch.Tensor:
    """Local attention as dense attention with the blocks as samples; nothing is copied if points stand before heads."""
    batch, heads = query.shape[:2]
    blocks = [x.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    # a launch takes no more samples times heads than that
    parts = zip(*(x.split(max(1, 65535 // heads)) for x in blocks), strict=True)
    outs = [F.scaled_dot_product_attention(q, k, v, enable_gqa=True) for q, k, v in parts]
    out = torch.cat(outs) if len(outs) > 1 else outs[0]
    return out.transpose(1, 2).unflatten(0, (batch, -1)).flatten(1, 2).transpose(1, 2)


def _gather_blocks(blocks: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    batch, heads, number, width = blocks.shape
    base = torch.arange(batch * heads, device=blocks.device).view(batch, heads, 1, 1) * number
    return blocks.reshape(-1, width).index_select(0, (base + indices).flatten())


def select_blocks(query: torch.Tensor, key: torch.Tensor, count: int, grouping: str) -> torch.Tensor:
    batch, num_heads, blocks, _ = query.shape
    num_kv_heads = key.shape[1]
    group = num_heads // num_kv_heads
    per_head = torch.einsum("bhgqd,bhkd->bhgqk", query.view(batch, num_kv_heads, group, blocks, -1), key)
    if grouping == "strided":
        # head index split the other way round: heads {h, h + H_kv, h + 2 H_kv, ...} are averaged
        score = per_head.reshape(batch, group, num_kv_heads, blocks, -1).mean(1)
    else:
        score = per_head.mean(2)
    return score.topk(count, dim=-1, sorted=False).indices


def neighbor_attention(
    direction: torch.Tensor,
    key_projection: torch.Tensor,
    value: torch.Tensor,
    neighbors: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    batch, sources, heads, d = value.shape
    targets, k = neighbors.shape
    gathered = key_projection.index_select(1, neighbors.flatten()).view(batch, targets, k, heads, 3)
    logits = torch.einsum("tkc,btkhc->bthk", direction.to(gathered.dtype), gathered)
    weights = (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).mul(scale).softmax(-1)
    # A weighted sum of table rows is exactly what embedding_bag does, without materialising the gathered values. On
    # CUDA its way back to the weights doesn't exist in bfloat16, and counts in 32 bits what it has gathered.
    table = value.float() if value.dtype == torch.bfloat16 and torch.is_grad_enabled() else value
    rows = neighbors.view(targets, 1, k) * heads + torch.arange(heads, device=value.device).view(1, heads, 1)
    first = torch.arange(batch, device=value.device) * (sources * heads)
    many = max(1, (2**31 - 1) // (targets * heads * k * d))
    parts = []
    for part, weight in zip(table.split(many), weights.split(many), strict=True):
        bags = (first[: len(part), None, None, None] + rows).reshape(-1, k)
        samples = weight.reshape(-1, k).to(part.dtype)
        parts.append(F.embedding_bag(bags, part.reshape(-1, d), mode="sum", per_sample_weights=samples))
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    return out.view(batch, targets, heads, d).to(value.dtype)


def add_norm(x: torch.Tensor, update: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + update
    return total, F.rms_norm(total, total.shape[-1:])


def sum_norm(x: torch.Tensor, update: torch.Tensor | None, position: torch.Tensor | None, times: int) -> torch.Tensor:
    total = x if position is None else x + position
    total = total if update is None else total + update
    for _ in range(times):
        total = F.rms_norm(total, total.shape[-1:])
    return total


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    # the floor keeps rows of zeros from dividing by zero
    peak = wide.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    return (wide * (FLOAT8_MAX / peak)).to(torch.float8_e4m3fn), peak / FLOAT8_MAX


def bounded_rows(x: torch.Tensor, bound: torch.Tensor, growth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in units of each column's bound, times that of the sample: (batch,)."""
    growth = growth.view(-1, *(1,) * (x.ndim - 1))
    # torch makes NaN of what is more than the largest, GPUs stop there
    values = (x.float() / growth * (FLOAT8_MAX / bound)).clamp(-FLOAT8_MAX, FLOAT8_MAX)
    return values.to(torch.float8_e4m3fn), (growth / FLOAT8_MAX).expand(*x.shape[:-1], 1)


def gated_rows(
    ab: torch.Tensor, bound: torch.Tensor, growth: torch.Tensor, shift: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return bounded_rows(swiglu(ab, None if shift is None else shift.float()), bound, growth)


def add_norm_rows(x: torch.Tensor, update: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    total = x + update
    return total, norm_rows(total)


def norm_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # rounded once, from float32
    return quantise_rows(F.rms_norm(x.float(), x.shape[-1:]))


def multiply_rows(
    values: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor
) -> torch.Tensor:
    with torch.autocast(values.device.type, enabled=False):
        return F.linear(values.float(), weight.float()) * scale * weight_scale.squeeze(-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # pairs are complex numbers, turned in one pass
    turn = torch.complex(cos.to(wide.dtype), sin.to(wide.dtype)).unsqueeze(1)
    dense = wide.contiguous()
    pairs = torch.view_as_complex(dense.unflatten(-1, (-1, 2)))
    ours = dense is not x and not torch.is_grad_enabled()
    pairs = pairs.mul_(turn) if ours else pairs * turn
    rotated = torch.view_as_real(pairs).flatten(-2).to(x.dtype)
    return rotated, block_means(rotated, size)


def block_means(x: torch.Tensor, size: int) -> torch.Tensor:
    return x.unflatten(1, (-1, size)).mean(2)


def combine(
    logits: torch.Tensor, local: torch.Tensor, compressed: torch.Tensor, selected: torch.Tensor
) -> torch.Tensor:
    size = local.shape[1] // compressed.shape[1]
    return gated_sum(logits, (local, compressed.repeat_interleave(size, dim=1), selected))


def gated_sum(logits: torch.Tensor, branches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of any number of (batch, point, head, d) branches with the softmax of the logits as weights."""
    # few branches, many points: a softmax over the first axis runs over points side by side
    wide = logits.movedim(-1, 0).to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    gates = wide.softmax(0).to(branches[0].dtype).unsqueeze(-1)
    total = branches[0] * gates[0]
    for branch, gate in zip(branches[1:], gates[1:], strict=True):
        total = torch.addcmul(total, branch, gate)
    return total


def swiglu(ab: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    a, b = ab.chunk(2, dim=-1)
    if torch.is_grad_enabled():
        return F.silu(a if shift is None else a + shift.unsqueeze(1)) * b
    # without a gradient one fresh tensor is enough: on a CPU, asking for memory takes as long as filling it
    return (F.silu(a) if shift is None else F.silu(a + shift.unsqueeze(1), inplace=True)).mul_(b)


def gated_product(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return swiglu(F.linear(x, weight), shift)
