"""What moves memory and computes little, in one kernel and in steps: ``python tests/benchmarks/kernels.py rest``.

Each line: time and bandwidth of the steps, time and bandwidth of the kernel, where bandwidth counts what has to be read
and written once, in both. Nothing is timed that isn't right.
"""

# Triton's own language has no annotations for most of what stands in a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from kernels import GPU, median, relative

from xmosaic.kernels import (
    add_norm,
    block_means,
    combine,
    combine_selected,
    gates,
    reference,
    rotary,
    rotate,
    select_blocks,
    selected_attention,
    selection,
    sum_norm,
)

Call = Callable[..., torch.Tensor]
STAGES = ((49152, 768, 12, 3, 24), (12288, 1024, 16, 4, 12), (3072, 1280, 20, 5, 4))
"""Points, width, heads, key heads and picked blocks of the stages of the published networks."""
GRID = 29040


def made(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=GPU, dtype=torch.bfloat16)


def told(name: str, inputs: list[torch.Tensor], before: Call, after: Call, exact: Call, plain: Call) -> None:
    """Both timed, if the kernel's error is at most twice that of PyTorch's own operations."""
    few = [x[:1] if len(x) == len(inputs[0]) and x.ndim > 2 else x for x in inputs]
    expected = exact(*(x.double() for x in few))
    error, allowed = (relative(call(*few), expected) for call in (after, plain))
    if not error <= 2 * allowed:
        print(f"{name}: WRONG, error {error:.1e}, of PyTorch's operations {allowed:.1e}", flush=True)
        return
    out = after(*inputs)
    moved = sum(x.numel() * x.element_size() for x in (*inputs, out)) / 1e9
    times = [median(partial(call, *inputs), 100) for call in (before, after)]
    cells = [f"{t:.3f} ms ({moved / t:.2f} TB/s)" for t in times]
    print(f"{name}: {cells[0]} before, {cells[1]} now, error {error:.1e} ({allowed:.1e})", flush=True)


# ---- norms ----


def steps(times: int, position: bool, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    """Sums and norms one by one; the position, if any, is the last, and lies as parents have it."""
    if position:
        wide = x.shape[-1] * (4 if len(more) > 1 else 1)
        x = (x.view(len(x), -1, wide) + more[-1].view(-1, wide)).view(x.shape)
    for update in more[: len(more) - position]:
        x = x + update
    for _ in range(times):
        x = F.rms_norm(x, x.shape[-1:])
    return x


def together(times: int, position: bool, impl: str, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    update = more[0] if len(more) > position else None
    return sum_norm(x, update, more[-1] if position else None, times=times, impl=impl)


def norm(name: str, times: int, inputs: list[torch.Tensor], position: bool = False) -> None:
    exact = partial(together, times, position, "reference")
    told(name, inputs, partial(steps, times, position), partial(together, times, position, "triton"), exact, exact)


def norms(members: int) -> None:
    sizes = [(points, width) for points, width, *_ in STAGES]
    for points, width in (*sizes, (GRID, 768)):
        norm(f"norm {members} x {points} x {width}", 1, [made(members, points, width)])
    points, width = sizes[0]
    shape = (members, points, width)
    norm(f"end of the last stage {shape}: sum, norm, norm", 2, [made(*shape), made(*shape)])
    for points, width in sizes[1:]:
        inputs = [made(members, points, width), made(points, width)]
        norm(f"way down to {members} x {points} x {width}: position, norm", 1, inputs, True)
    for points, width in sizes[:2]:
        inputs = [made(members, points, width), made(members, points, width), made(points, width)]
        norm(f"way up to {members} x {points} x {width}: position, skip, norm", 1, inputs, True)
    x, kept = made(members, *sizes[0]), gates._ROWS
    for rows in (1, 2, 4):
        gates._ROWS = rows
        taken = median(partial(sum_norm, x, impl="triton"), 100)
        print(f"  norm {tuple(x.shape)}, {rows} rows a program: {taken:.3f} ms", flush=True)
    gates._ROWS = kept
    taken = median(x.clone, 100)
    print(f"  a copy of the same: {taken:.3f} ms ({4e-9 * x.numel() / taken:.2f} TB/s)", flush=True)


# ---- rotation ----


@triton.jit
def _rotate_by_head(
    x_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    mean_ptr,
    x_b,
    x_p,
    x_h,
    points,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
):
    """As it was before: each head a program of its own, which fetches the angles too, and sums after every chunk."""
    head, block, batch = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS, tl.program_id(1).to(tl.int64)
    cols, pair = tl.arange(0, D), tl.arange(0, D // 2)
    mean = tl.zeros((D,), tl.float32)
    x_ptr += batch * x_b + head * x_h
    for start in range(0, SIZE, CHUNK):
        point = (block * SIZE + start + tl.arange(0, CHUNK)).to(tl.int64)
        x = tl.load(x_ptr + (point * x_p)[:, None] + cols[None, :]).to(tl.float32)
        angle = point[:, None] * (D // 2) + pair[None, :]
        cos, sin = tl.load(cos_ptr + angle), tl.load(sin_ptr + angle)
        x = rotary._turned(x, cos, sin, CHUNK, D).to(out_ptr.dtype.element_ty)
        row = ((batch * points + point) * HEADS + head) * D
        tl.store(out_ptr + row[:, None] + cols[None, :], x)
        mean += tl.sum(x.to(tl.float32), 0)
    row = ((batch * (points // SIZE) + block) * HEADS + head) * D
    tl.store(mean_ptr + row + cols, (mean / SIZE).to(mean_ptr.dtype.element_ty))


def by_head(cos: torch.Tensor, sin: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    batch, points, heads, d = x.shape
    out, mean = x.new_empty(x.shape), x.new_empty(batch, points // 128, heads, d)
    args = (x, cos, sin, out, mean, *x.stride()[:3], points)
    _rotate_by_head[(heads * (points // 128), batch)](*args, HEADS=heads, SIZE=128, CHUNK=32, D=d, num_warps=4)
    return out


def rotations(members: int) -> None:
    for points, _, heads, kv_heads, _ in STAGES:
        angle = torch.rand(points, 32, device=GPU) * 6
        cos, sin = angle.cos(), angle.sin()
        # queries, keys, values and gates side by side, as the network has them
        count = heads + 2 * kv_heads
        rows = made(members, points, 64 * count + (3 * heads + 63) // 64 * 64)[..., : 64 * count].unflatten(
            -1, (-1, 64)
        )

        def now(x: torch.Tensor, impl: str = "triton", cos: Any = cos, sin: Any = sin) -> torch.Tensor:
            return rotate(x, cos, sin, 128, impl=impl)[0]

        exact = partial(now, impl="reference")
        for name, part in (("queries", rows[:, :, :heads]), ("keys", rows[:, :, heads : heads + kv_heads])):
            told(f"rotation, {name} {tuple(part.shape)}", [part], partial(by_head, cos, sin), now, exact, exact)
            parts(now, part)
        values = partial(block_means, size=128, impl="triton")
        parts(values, rows[:, :, heads + kv_heads :], "means of values")
        if points == STAGES[0][0]:
            cuts(now, rows[:, :, :heads])


def parts(call: Call, x: torch.Tensor, name: str = "rotation") -> None:
    """By how many programs there are at least: heads are dealt to several where blocks are too few."""
    kept, cells, (members, points, heads, _) = rotary._PROGRAMS, {}, x.shape
    for programs in (1, 1024, 2048, 4096, 8192, 1 << 30):
        rotary._PROGRAMS = programs
        count = rotary._parts(heads, members * points // 128)
        if count not in cells:
            cells[count] = f"{count}: {median(partial(call, x), 100):.3f} ms"
    rotary._PROGRAMS = kept
    taken = rotary._parts(heads, members * points // 128)
    print(f"  {name} {tuple(x.shape)}, heads in so many parts: {', '.join(cells.values())}; taken {taken}", flush=True)


def cuts(call: Call, x: torch.Tensor) -> None:
    kept = rotary._TILE, rotary._WARPS, rotary._STAGES
    for cut in (kept, (8192, 8, 1), (8192, 8, 2), (8192, 8, 4), (8192, 4, 3)):
        rotary._TILE, rotary._WARPS, rotary._STAGES = cut
        words = f"tiles of {cut[0]}, {cut[1]} warps, {cut[2]} deep"
        print(f"  rotation, queries, {words}: {median(partial(call, x), 100):.3f} ms", flush=True)
    rotary._TILE, rotary._WARPS, rotary._STAGES = kept


# ---- the residual inside products ----


def product_sum_norm(weight: torch.Tensor, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return add_norm(x, F.linear(rows, weight), impl="triton")[1]


def sum_in_product_norm(weight: torch.Tensor, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    x.view(-1, x.shape[-1]).addmm_(rows.flatten(0, -2), weight.t())
    return sum_norm(x, impl="triton")


def residuals(members: int) -> None:
    """The last product of attention and of the feed-forward layer, the sum with the residual, and the next norm."""
    for points, width, *_ in STAGES:
        for depth in (width, 4 * width):
            name = f"product {members} x {points} x {depth} -> {width}, residual, norm"
            x, rows, weight = made(members, points, width), made(members, points, depth), made(width, depth)
            weight *= depth**-0.5
            before, after = partial(product_sum_norm, weight), partial(sum_in_product_norm, weight)
            one, some = x[:1].double(), rows[:1]
            total = one + F.linear(some.double(), weight.double())
            exact = F.rms_norm(total, (width,))
            errors = [relative(call(x[:1].clone(), some), exact) for call in (after, before)]
            if not errors[0] <= 1.2 * errors[1]:
                print(f"{name}: WRONG, error {errors[0]:.1e}, of the steps {errors[1]:.1e}", flush=True)
                continue
            # what is added again and again must not grow; zeros would take less power, and so less time
            weight *= 1e-9
            alone = median(partial(F.linear, rows, weight), 100)
            adding = median(partial(x.view(-1, width).addmm_, rows.flatten(0, -2), weight.t()), 100)
            times = [median(partial(call, x, rows), 100) for call in (before, after)]
            print(
                f"{name}: {times[0]:.3f} ms before (product {alone:.3f}), {times[1]:.3f} ms now (product "
                f"{adding:.3f}), error {errors[0]:.1e} ({errors[1]:.1e})",
                flush=True,
            )


# ---- branches ----


def branches(members: int) -> None:
    for points, _, heads, kv_heads, count in STAGES:
        blocks = points // 128
        picked = torch.rand(members, kv_heads, blocks, blocks, device=GPU).topk(count).indices
        shapes = [(n, 64) for n in (heads, kv_heads, kv_heads)]
        q, k, v = (made(members, points, *s).transpose(1, 2) for s in shapes)
        # the gate's logits end a wider row
        logits = made(members, points, 64 + 3 * heads + -(3 * heads) % 64)[..., 64 : 64 + 3 * heads].unflatten(
            -1, (-1, 3)
        )
        rest = [logits, made(members, points, heads, 64), made(members, blocks, heads, 64)]
        name = f"attention over picked blocks and sum of the branches {members} x {points} x {heads}"
        wide = [x[:1].double() for x in (q, k, v, *rest)]
        exact = combine_selected(*wide[:3], picked[:1], 128, *wide[3:], impl="reference")
        few = [x[:1] for x in (q, k, v, picked, *rest)]
        error, allowed = (
            relative(combine_selected(*few[:4], 128, *few[4:], impl=impl), exact) for impl in ("triton", "reference")
        )
        if not error <= 2 * allowed:
            print(f"{name}: WRONG, error {error:.1e}, of the reference {allowed:.1e}", flush=True)
            continue
        alone = partial(selected_attention, q, k, v, picked, 128, impl="triton")
        third = alone().transpose(1, 2)
        times = [median(alone, 150), median(partial(combine, *rest, third, impl="triton"), 100)]
        times.append(median(partial(combine_selected, q, k, v, picked, 128, *rest, impl="triton"), 150))
        print(
            f"{name}: {times[0]:.3f} + {times[1]:.3f} = {times[0] + times[1]:.3f} ms before, {times[2]:.3f} ms now, "
            f"error {error:.1e} ({allowed:.1e})",
            flush=True,
        )


# ---- choice of blocks ----


def choices(members: int) -> None:
    """Scores, their mean over the group and the largest of them, in steps and in one kernel, cut in several ways."""
    for points, _, heads, kv_heads, count in STAGES:
        means = [made(members, points // 128, n, 64).transpose(1, 2) for n in (heads, kv_heads)]
        exact = reference.select_blocks(*(x.double() for x in means), count, "strided").sort(-1).values
        before = partial(reference.select_blocks, *means, count, "strided")
        now = partial(select_blocks, *means, count, grouping="strided", impl="triton")
        same = float((now() == exact).float().mean())
        if same < 0.999:
            print(f"choice of blocks, {points} points: WRONG, {same:.1%} are those of float64", flush=True)
            continue
        kept = selection._WARPS, selection._KEYS
        cells = []
        for warps in (2, 4, 8):
            for keys in (16384, 32768, 65536):
                selection._WARPS, selection._KEYS = warps, keys
                cells.append(f"{warps} warps, {keys // 1024} kB {median(now, 100):.3f}")
        selection._WARPS, selection._KEYS = kept
        words = f"{median(before, 100):.3f} ms before, {median(now, 100):.3f} now"
        print(
            f"choice of blocks, {points} points: {words}, {same:.2%} those of float64; {'; '.join(cells)}", flush=True
        )


@torch.inference_mode()
def rest(members: str = "8") -> None:
    """Every step of a forecast that was bound by memory, as it was and as it is, at the sizes of the `era5` network."""
    for part in (norms, rotations, residuals, branches, choices):
        part(int(members))
        torch.cuda.empty_cache()
