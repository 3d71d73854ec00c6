"""The kernels on a GPU: right first, then how fast, beside what PyTorch has for the same.

``python tests/benchmarks/kernels.py NAME …``, by default check, attention, neighbors, step and training. More, of
kernel_parts.py: variants, local, feed_forward, scaling, mesh and cpu; of kernel_gate.py: gated; of kernel_eight.py:
eight; of kernel_rest.py: rest. Compiling takes most of the time: eight processes share the check, and ``check:2/4``
does the third of four parts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from triton.testing import do_bench

from xmosaic.kernels import ops, share_neighbors
from xmosaic.model import PUBLISHED, Mosaic
from xmosaic.ready import replica

GPU = "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def median(call: Callable[[], object], rep: int = 200) -> float:
    return do_bench(call, warmup=25, rep=rep, return_mode="median")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=GPU, dtype=torch.float64)


# ---- right ----

Case = tuple[str, Callable[..., object], list[torch.Tensor]]


def cases() -> Iterator[Case]:
    """Name, operation that still wants its ``impl``, and inputs in float64."""
    for b, h, g, blocks, size, d, count in [
        (2, 3, 4, 16, 128, 64, 5),
        (1, 2, 4, 24, 64, 64, 24),
        (2, 1, 1, 7, 16, 16, 3),
        (1, 2, 3, 5, 48, 40, 4),
        (1, 1, 2, 6, 128, 128, 6),
        (1, 2, 2, 4, 12, 20, 2),
        (1, 1, 4, 3, 256, 32, 3),
    ]:
        picked = torch.randint(0, blocks, (b, h, blocks, count), device=GPU)
        inputs = [normal(b, n, blocks * size, d) for n in (h * g, h, h)]
        yield (
            f"selected {(b, h, g, blocks, size, d, count)}",
            partial(selecting, picked, size),
            inputs,
        )
        more = [normal(b, blocks * size, h * g, 3), normal(b, blocks * size, h * g, d), normal(b, blocks, h * g, d)]
        name = f"sum with selected {(b, h, g, blocks, size, d, count)}"
        yield name, partial(combining, picked, size), [*inputs, *more]
        for near in (size, blocks * size):
            name = f"sum with selected and local of {near} {(b, h, g, blocks, size, d, count)}"
            yield name, partial(combining, picked, size, near=near), [*inputs, more[0], more[2]]
    for b, s, h, d, t, k in [(2, 500, 3, 64, 700, 24), (1, 33, 2, 20, 41, 7), (3, 200, 12, 64, 100, 20)]:
        direction = torch.nn.functional.normalize(torch.randn(t, k, 3, device=GPU), dim=-1)
        table = torch.rand(t, s, device=GPU).topk(k).indices
        yield (
            f"neighbor {(b, s, h, d, t, k)}",
            partial(nearby, direction, table),
            [normal(b, s, h, 3), normal(b, s, h, d)],
        )
    for width in (768, 1280, 40):
        yield f"add_norm {width}", ops.add_norm, [normal(2, 300, width) for _ in "ab"]
        for times in (1, 2):
            shapes = [(3, 301, width), (3, 301, width), (301, width)]
            for count in (1, 2, 3):
                inputs = [normal(*shape) for shape in shapes[:count]]
                yield f"sum_norm {width}, {count} summed, {times} times", partial(norming, times), inputs
    for heads, d, size in ((12, 64, 128), (3, 20, 12), (4, 128, 256)):
        angle = torch.rand(4 * size, d // 2, device=GPU)
        x, local = normal(2, 4 * size, heads, d), normal(2, 4 * size, heads, d)
        gates = [normal(2, 4 * size, heads, 3), local, normal(2, 4, heads, d), x]
        yield f"rotate {(heads, d, size)}", partial(rotating, angle, size), [x]
        yield f"block_means {(heads, d, size)}", partial(averaging, size), [x]
        yield f"combine {(heads, d, size)}", ops.combine, gates
        yield f"swiglu {heads * d}", ops.swiglu, [normal(2, 99, 2 * heads * d), normal(2, heads * d)]
    # whole tiles, torn ones, of several samples, and too small for any
    for shape in ((2, 512, 768, 3072), (1, 1000, 200, 264), (3, 333, 1280, 136), (2, 50, 40, 20)):
        b, p, width, hidden = shape
        inputs = [normal(b, p, width), normal(2 * hidden, width) * width**-0.5, normal(b, hidden)]
        yield f"gated product {shape}", gating, inputs
        yield f"gated product {shape}, no shift", gating, inputs[:2]


def selecting(picked: torch.Tensor, size: int, *x: torch.Tensor, impl: str | None) -> torch.Tensor:
    return ops.selected_attention(*x, picked, size, impl=impl)


def combining(
    picked: torch.Tensor, size: int, *x: torch.Tensor, impl: str | None, near: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """With gradients and without: the second is another kernel."""
    x = x if near is None else (*x[:4], near, *x[4:])
    with torch.no_grad():
        alone = ops.combine_selected(*x[:3], picked, size, *x[3:], impl=impl)
    return ops.combine_selected(*x[:3], picked, size, *x[3:], impl=impl), alone


def norming(times: int, *x: torch.Tensor, impl: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        alone = ops.sum_norm(*x, times=times, impl=impl)
    return ops.sum_norm(*x, times=times, impl=impl), alone


def nearby(
    direction: torch.Tensor, table: torch.Tensor, *x: torch.Tensor, impl: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """With gradients and without: the second is another kernel."""
    direction = direction.to(torch.promote_types(x[0].dtype, torch.float32))
    call = partial(ops.neighbor_attention, direction, *x, table, scale=0.125, impl=impl)
    with torch.no_grad():
        alone = call(patches=share_neighbors(direction, table))
    return call(), alone


def rotating(angle: torch.Tensor, size: int, x: torch.Tensor, impl: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    return ops.rotate(x, angle.cos(), angle.sin(), size, impl=impl)


def averaging(size: int, x: torch.Tensor, impl: str | None) -> torch.Tensor:
    return ops.block_means(x, size, impl=impl)


def gating(*x: torch.Tensor, impl: str | None) -> tuple[torch.Tensor, ...]:
    """With gradients and without: the last two may be another kernel, the last of the norm."""
    with torch.no_grad():
        alone, normed = (ops.gated_product(*x, normed=n, impl=impl) for n in (False, True))
    return ops.gated_product(*x, impl=impl), alone, normed


def run(call: Callable, inputs: list[torch.Tensor], dtype: torch.dtype, weight: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and gradients, weighted at random."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = call(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    weights = [weight[: o.numel()].view(o.shape).to(o) for o in outs]
    kept = [i for i, o in enumerate(outs) if o.requires_grad]
    gradients = torch.autograd.grad([outs[i] for i in kept], leaves, [weights[i] for i in kept])
    return [*(o.detach() for o in outs), *gradients]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    error = (got.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    return float(error) if torch.isfinite(got).all() else float("nan")


def check(part: str = "all") -> None:
    """Errors against float64, forward and every gradient, beside the reference's in the same precision."""
    if part == "all":
        # compiling takes most of the time
        count = min(8, os.cpu_count() or 1)
        commands = [[sys.executable, __file__, f"check:{i}/{count}"] for i in range(count)]
        for process in [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]:
            print(process.communicate()[0], end="", flush=True)
        return
    index, parts = map(int, part.split("/"))
    bad = 0
    print("case | worst error, reference's: float32 | float16 | bfloat16 | repeats bit for bit", flush=True)
    for name, call, inputs in list(cases())[index::parts]:
        cells, repeats = [], True
        for dtype in DTYPES:
            weight = torch.randn(4_000_000, device=GPU).to(dtype).double()
            # the inputs' own rounding is nobody's error
            exact = run(partial(call, impl="reference"), [x.to(dtype).double() for x in inputs], torch.float64, weight)
            ours, again = (run(partial(call, impl="triton"), inputs, dtype, weight) for _ in range(2))
            theirs = run(partial(call, impl="reference"), inputs, dtype, weight)
            repeats &= all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
            errors = [[relative(a, b) for a, b in zip(x, exact, strict=True)] for x in (ours, theirs)]
            least = 4 * torch.finfo(dtype).eps
            wrong = not all(a <= max(2 * b, least) for a, b in zip(*errors, strict=True))
            bad += wrong
            cells.append(f"{max(errors[0]):.1e}, {max(errors[1]):.1e}{' WRONG' if wrong else ''}")
        bad += not repeats
        print(f"{name} | {' | '.join(cells)} | {repeats}", flush=True)
    print(f"{bad} bad")


# ---- fast ----


def stage_one(
    batch: int = 8, points: int = 49152, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Queries, keys and values of the network's first stage, and 24 picked blocks of 128."""
    inputs = [
        torch.randn(batch, points, n, 64, device=GPU, dtype=dtype).transpose(1, 2).requires_grad_() for n in (12, 3, 3)
    ]
    return inputs, torch.rand(batch, 3, points // 128, points // 128, device=GPU).topk(24).indices


def forward(call: Callable, inputs: list[torch.Tensor]) -> float:
    detached = [x.detach() for x in inputs]
    return median(lambda: call(*detached))


def both(call: Callable, inputs: list[torch.Tensor]) -> float:
    grad = torch.randn_like(call(*inputs))
    return median(lambda: torch.autograd.grad(call(*inputs), inputs, grad))


def matrix_rate() -> float:
    a, b = (torch.randn(8192, 8192, device=GPU, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / median(lambda: a @ b) / 1e9


def attention() -> None:
    inputs, picked = stage_one()
    work, rate = 4.0 * inputs[0].numel() * 24 * 128, matrix_rate()
    floor = work / rate / 1e9
    print(f"matrix product {rate:.0f} TFLOP/s; floor {floor:.2f} ms forward, {3.5 * floor:.2f} forward + backward")
    for name, call in (("ours", partial(selecting, picked, 128, impl="triton")), ("flex_attention", flex(picked))):
        ahead, total = forward(call, inputs), both(call, inputs)
        print(f"{name}: forward {ahead:.2f} ms ({work / ahead / 1e9:.0f} TFLOP/s), forward + backward {total:.2f} ms")
    blocks = [x.detach().unflatten(2, (-1, 1024)).transpose(1, 2).flatten(0, 1).contiguous() for x in inputs]
    dense = forward(partial(torch.nn.functional.scaled_dot_product_attention, enable_gqa=True), blocks)
    ours = forward(partial(ops.local_attention, size=1024, impl="triton"), inputs)
    print(f"local, blocks of 1024, forward: ours {ours:.2f} ms, PyTorch's dense attention {dense:.2f} ms")


def flex(picked: torch.Tensor) -> Callable:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    indices = picked.sort().values.repeat_interleave(4, 1).int()
    counts = torch.full(indices.shape[:3], indices.shape[3], device=GPU, dtype=torch.int32)
    padded = torch.nn.functional.pad(indices, (0, picked.shape[2] - picked.shape[3]))
    mask = BlockMask.from_kv_blocks(torch.zeros_like(counts), torch.zeros_like(padded), counts, padded, BLOCK_SIZE=128)
    return partial(torch.compile(flex_attention), block_mask=mask, enable_gqa=True)


def era5() -> Mosaic:
    longitude, latitude = np.arange(240) * 1.5, np.linspace(-90, 90, 121)
    static = np.random.default_rng(0).normal(size=(240, 121, 3))
    return Mosaic(PUBLISHED["era5"], longitude, latitude, static).to(GPU)


def neighbors() -> None:
    def alone(direction: torch.Tensor, table: torch.Tensor, *x: torch.Tensor, **options: object) -> torch.Tensor:
        return ops.neighbor_attention(direction, *x, table, scale=0.125, **options)

    network = era5()
    for name, module in (("to the mesh", network.interp_to_hp), ("to the grid", network.interp_to_ll)):
        table = module.neighbors
        sources = int(table.max()) + 1
        inputs = [torch.randn(8, sources, 12, n, device=GPU, dtype=torch.bfloat16, requires_grad=True) for n in (3, 64)]
        for impl in ("triton", "reference"):
            call = partial(alone, module.direction, table, impl=impl)
            words = f"forward {forward(call, inputs):.2f} ms, forward + backward {both(call, inputs):.2f} ms"
            if impl == "triton":
                call = partial(call, patches=module.shared.of(module.direction, table))
                with torch.no_grad():
                    words += f", with shared sources forward {forward(call, inputs):.2f} ms"
            print(f"neighbours {name}, 8 members, {impl}: {words}", flush=True)


def step() -> None:
    network = era5().requires_grad_(False).eval()
    for impl, dtype, members, eight in (
        (None, torch.float16, 8, False),
        (None, torch.bfloat16, 8, False),
        (None, torch.bfloat16, 8, True),
        (None, torch.float16, 24, False),
        (None, torch.bfloat16, 24, True),
        ("reference", torch.float16, 8, False),
        (None, torch.float32, 2, False),
        ("triton", torch.float32, 2, False),
        ("reference", torch.float32, 2, False),
    ):
        network.use_float8(eight).impl = impl
        # as forecasts do: weights rounded once
        half = None if dtype == torch.float32 else dtype
        used = replica(network, next(network.parameters()).device, half)
        used.keep_float8(network)
        history = torch.randn(1, members, 2, 240, 121, 82, device=GPU)
        call = partial(used, history, torch.rand(1, 2, device=GPU), torch.randn(1, members, 32, device=GPU))
        torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode(), torch.autocast(GPU, dtype, enabled=dtype != torch.float32):
            began = time.perf_counter()
            good = bool(torch.isfinite(call()).all())
            first = time.perf_counter() - began
            taken = [t / members for t in do_bench(call, warmup=200, rep=1500, quantiles=[0.5, 0.0, 1.0])]
            name = "float8" if eight else str(dtype)[6:]
            print(
                f"{impl or 'default':9s} {name:8s} {members:2d} members: {taken[0]:.1f} ms per member-step "
                f"({taken[1]:.1f} … {taken[2]:.1f}), {torch.cuda.max_memory_allocated() / 1e9:.1f} GB, "
                f"first call {first:.1f} s, finite {good}",
                flush=True,
            )
            if impl is None and members == 8 and dtype == torch.bfloat16:
                profile(call)


def profile(call: Callable[[], object]) -> None:
    """Where the time goes, by kernel, and how long the GPU waits between them."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as seen:
        call()
        torch.cuda.synchronize()
    events = sorted(
        (e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA), key=lambda e: e.time_range.start
    )
    span = events[-1].time_range.end - events[0].time_range.start
    busy = sum(e.time_range.elapsed_us() for e in events)
    print(f"  {span / 1e3:.1f} ms from first to last, {busy / 1e3:.1f} ms busy")
    gaps = [(b.time_range.start - a.time_range.end, a.name[:50], b.name[:50]) for a, b in zip(events, events[1:])]  # noqa: RUF007, B905
    for gap, before, after in sorted(gaps, reverse=True)[:6]:
        print(f"  waits {gap:.0f} us between {before} and {after}")
    for row in sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)[:16]:
        print(f"  {row.self_device_time_total / 1e3:8.2f} ms {row.count:5d}x {row.key[:90]}")
    waiting = [r for r in seen.key_averages() if "ynchronize" in r.key or "Memcpy" in r.key or r.key == "aten::item"]
    for row in waiting:
        print(f"  {row.count:5d}x {row.key}, {row.self_cpu_time_total / 1e3:.2f} ms of the CPU")


def training() -> None:
    """Forward and backward of two members in bfloat16, with and without computing activations again."""
    network = era5()
    history = torch.randn(1, 2, 2, 240, 121, 82, device=GPU)
    args = (history, torch.rand(1, 2, device=GPU), torch.randn(1, 2, 32, device=GPU))
    for impl in (None, "reference"):
        for recompute in (False, "feed_forward", True):
            network.impl, network.recompute = impl, recompute
            torch.cuda.reset_peak_memory_stats()

            def update() -> None:
                network.zero_grad(set_to_none=True)
                with torch.autocast(GPU, torch.bfloat16):
                    out = network(*args)
                out.square().mean().backward()

            update()
            taken = [t / 2 for t in do_bench(update, warmup=200, rep=1500, quantiles=[0.5, 0.0, 1.0])]
            print(
                f"{impl or 'triton':9s} training, 2 members, recompute {recompute}: {taken[0]:.0f} ms per member "
                f"({taken[1]:.0f} … {taken[2]:.0f}), {torch.cuda.max_memory_allocated() / 1e9:.1f} GB",
                flush=True,
            )


def main() -> None:
    import kernel_eight
    import kernel_gate
    import kernel_parts as more
    import kernel_rest
    import triton

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"torch {torch.__version__}, triton {triton.__version__}, {where}")
    parts = {more.variants, more.local, more.feed_forward, more.scaling, more.mesh, more.cpu}
    known = {f.__name__: f for f in (check, attention, neighbors, step, training, *parts)}
    known |= {"gated": kernel_gate.gated_product, "eight": kernel_eight.eight, "rest": kernel_rest.rest}
    for word in sys.argv[1:] or ["check", "attention", "neighbors", "step", "training"]:
        name, *rest = word.split(":")
        known[name](*rest)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
