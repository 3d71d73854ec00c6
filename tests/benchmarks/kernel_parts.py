"""Parts of the kernels' benchmark that compare ways of doing one thing: ``python tests/benchmarks/kernels.py NAME``."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from kernels import GPU, both, flex, forward, matrix_rate, median, relative, selecting, stage_one
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from triton.testing import do_bench

from xmosaic import load_model
from xmosaic.kernels import (
    add_norm_rows,
    gate_bound,
    gated_product,
    gated_rows,
    multiply_rows,
    ops,
    quantise_rows,
    reference,
    rows,
    selected,
)
from xmosaic.model import PUBLISHED, Mosaic

Tiles = selected._Tiles

FORWARD = (
    *(Tiles(128, 128, 4, 3, None, sample, tma) for sample in (0, 16) for tma in (False, True)),
    *(Tiles(128, 128, 8, stages, 128, sample, True) for stages in (2, 3) for sample in (16, 0)),
    *(Tiles(64, 128, 4, stages, registers, 16, True) for stages in (2, 3) for registers in (None, 168, 128)),
    *(Tiles(64, 128, 4, 2, None, sample, True) for sample in (32, 64, 128)),
    *(Tiles(128, 64, 8, stages, 128, 16, True) for stages in (3, 4)),
    Tiles(64, 64, 4, 4, None, 16, True),
)
BACKWARD = {
    "query": (
        Tiles(128, 64, 8, 3),
        *(Tiles(128, 64, 8, stages, None, 0, True) for stages in (2, 3)),
        *(Tiles(64, 64, 4, stages, registers, 0, True) for stages, registers in ((2, None), (3, None), (3, 168))),
        *(Tiles(rows, 128, warps, 2, None, 0, True) for rows, warps in ((128, 8), (64, 4))),
    ),
    "key": (
        Tiles(128, 64, 4, 2),
        Tiles(128, 64, 4, 2, None, 0, True),
        *(Tiles(64, 64, 4, stages, registers, 0, True) for stages in (2, 3) for registers in (None, 168)),
        *(Tiles(64, 128, 8, stages, registers, 0, True) for stages, registers in ((2, None), (3, None), (3, 168))),
        *(Tiles(128, keys, 8, 2, None, 0, True) for keys in (64, 128)),
    ),
}


def named(tiles: Tiles) -> str:
    words = [f"{tiles.rows} x {tiles.keys}, {tiles.warps} warps, {tiles.stages} deep"]
    words += [f"peak of {tiles.sample} keys"] * (tiles.sample > 0) + ["fetched whole"] * tiles.tma
    return ", ".join(words + ([f"{tiles.registers} registers"] if tiles.registers else []))


@contextmanager
def using(kind: str, tiles: Tiles) -> Iterator[None]:
    """Kernels of one kind with these tiles, for 16-bit heads up to 64 wide."""
    kept = selected._TILES[kind]
    selected._TILES[kind] = (tiles, *kept[1:])
    selected._tiles.cache_clear()
    try:
        yield
    finally:
        selected._TILES[kind] = kept
        selected._tiles.cache_clear()


def errors(scale: float, dtype: torch.dtype) -> tuple[list[float], list[float]]:
    """Ours and the reference's in the same precision against float64, output and gradients, at a smaller size."""
    torch.manual_seed(0)
    shapes = [(2, n, 16 * 128, 64) for n in (12, 3, 3)]
    inputs = [torch.randn(s, device=GPU).to(dtype) for s in shapes]
    inputs[0] *= scale
    picked = torch.randint(0, 16, (2, 3, 16, 5), device=GPU)
    weight = torch.randn(shapes[0], device=GPU).to(dtype)

    def everything(impl: str, precision: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(precision).requires_grad_() for x in inputs]
        out = selecting(picked, 128, *leaves, impl=impl)
        return [out.detach(), *torch.autograd.grad(out, leaves, weight.to(precision))]

    exact = everything("reference", torch.float64)
    found = [everything(impl, dtype) for impl in ("triton", "reference")]
    return tuple([relative(a, b) for a, b in zip(x, exact, strict=True)] for x in found)  # type: ignore[return-value]


def verdict() -> str:
    """The worst error over the reference's, with logits of common size and with ones that pass the first by far."""
    worst = 0.0
    for scale, dtype in itertools.product((1.0, 30.0), (torch.bfloat16, torch.float16)):
        ours, theirs = errors(scale, dtype)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        worst = max([worst, *ratios]) if all(r == r for r in ratios) else float("nan")
    return f"{worst:.2f} times the reference's error{'' if worst <= 2 else ' WRONG'}"


def variants(what: str = "all") -> None:
    """Ways to make the weights and to cut the tiles, each checked and timed at the sizes of stage 1."""
    inputs, picked = stage_one()
    q, k, v = (x.detach() for x in inputs)
    floor = 4.0 * q.numel() * 24 * 128 / matrix_rate() / 1e9
    picked32, grad = picked.int(), torch.randn_like(q)
    print(f"floor {floor:.2f} ms forward; flex_attention {forward(flex(picked), inputs):.2f} ms", flush=True)
    ahead = partial(selected._attend, q, k, v, picked32, 128, 0.125)
    back = partial(selected._attend_backward, grad, q, k, v, picked32, *ahead(), 128, 0.125)
    kinds = {"forward": FORWARD} | BACKWARD
    chosen = [(kind, t) for kind, ts in kinds.items() for t in ts if what in ("all", kind, CALLS[kind])]
    # compiling takes most of the time, and can be shared; the kernels are found again in Triton's cache
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        verdicts = list(pool.map(judge, *zip(*chosen, strict=True)))
    for (kind, tiles), words in zip(chosen, verdicts, strict=True):
        with using(kind, tiles):
            taken = "" if "failed" in words else f"{median(ahead if kind == 'forward' else back, 150):.2f} ms, "
        print(f"{kind} {named(tiles)}: {taken}{words}", flush=True)


CALLS = {"forward": "forward", "query": "backward", "key": "backward"}


def judge(kind: str, tiles: Tiles) -> str:
    """The verdict on a kernel with these tiles, in a process of its own."""
    with using(kind, tiles):
        try:
            return verdict()
        except Exception as error:  # one that can't be built must not end the others
            return f"failed, {type(error).__name__}: {str(error)[:120]}"


def local() -> None:
    """Attention in blocks of 1024 points: ours, and PyTorch's dense attention by backend."""
    inputs, _ = stage_one()
    q, k, v = (x.detach() for x in inputs)
    exact = reference.local_attention(*(x[:1].double() for x in (q, k, v)), 1024)
    views = {"ours": partial(ops.local_attention, size=1024, impl="triton")}
    views["as the network does"] = partial(ops.local_attention, size=1024)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        views[str(backend).split(".")[1]] = partial(dense, backend)
    for name, call in views.items():
        try:
            error = relative(call(q[:1], k[:1], v[:1]), exact)
            line = f"local, {name}: forward {median(lambda c=call: c(q, k, v)):.2f} ms, error {error:.1e}"
            print(f"{line}, forward + backward {both(call, inputs):.2f} ms", flush=True)
        except RuntimeError as problem:
            print(f"local, {name}: {str(problem).splitlines()[0][:150]}", flush=True)


def dense(backend: SDPBackend, *x: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(backend):
        return reference.dense_blocks(*x, 1024)


STAGES = ((49152, 768, 12), (12288, 1024, 12), (3072, 1280, 4))
"""Points, width and how many feed-forward layers a step has there."""


def feed_forward(members: str = "8") -> None:
    """The feed-forward layers in 16 and in 8 bits."""
    for points, width, _ in STAGES:
        Layer(int(members), points, width).compare()


class Layer:
    """One feed-forward layer with its residual and norm, in bfloat16."""

    def __init__(self, members: int, points: int, width: int) -> None:
        def made(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=GPU, dtype=torch.bfloat16)

        self.x, self.update = made(members, points, width), made(members, points, width)
        self.first, self.second = made(8 * width, width) * width**-0.5, made(width, 4 * width) * (4 * width) ** -0.5
        self.shift, self.name = made(members, 4 * width), f"feed-forward {members} x {points} x {width}"
        self.work = 2.0 * members * points * 12 * width * width

    @torch.inference_mode()
    def compare(self) -> None:
        times = [median(call, 100) for call in (self.sixteen, self.eight)]
        print(
            f"{self.name}: bfloat16 {times[0]:.3f} ms, float8 {times[1]:.3f} ms; "
            f"{self.work / times[0] / 1e9:.0f} and {self.work / times[1] / 1e9:.0f} TFLOP/s",
            flush=True,
        )
        exact = self.exact()
        rows.FAST_SUMS = False
        slow, slow_ms = relative(self.eight()[:1], exact), median(self.eight, 100)
        rows.FAST_SUMS = True
        near = [relative(x[:1], exact) for x in (self.sixteen(), self.eight())]
        print(
            f"{self.name}, error against float64: bfloat16 {near[0]:.1e}, float8 {near[1]:.1e}, with float32 sums "
            f"{slow:.1e} in {slow_ms:.3f} ms",
            flush=True,
        )

    def exact(self) -> torch.Tensor:
        x, update, first, second = (t.double() for t in (self.x[:1], self.update[:1], self.first, self.second))
        normed = reference.add_norm(x, update)[1]
        return F.linear(reference.swiglu(F.linear(normed, first), self.shift[:1].double()), second)

    def sixteen(self) -> torch.Tensor:
        return F.linear(gated_product(self.x + self.update, self.first, self.shift, normed=True), self.second)

    def eight(self) -> torch.Tensor:
        normed, bound = add_norm_rows(self.x, self.update)[1], gate_bound(self.first, True)
        gated = gated_rows(normed, quantise_rows(self.first), bound.whole, bound.growth(self.shift), self.shift)
        return multiply_rows(gated, quantise_rows(self.second * bound.whole), torch.bfloat16)


NSIDES = {64: 49152, 128: 196608, 256: 786432}


def scaling(path: str = "scaling.csv") -> None:
    """Time against points, one sample with the heads of stage 1: ours, flex_attention and dense attention."""
    with open(path, "w") as file:
        print("points,kind,milliseconds", file=file)
        for points in (16384, 49152, 131072, 196608, 524288, 786432, 1048576):
            inputs, picked = stage_one(1, points)
            q, k, v = (x.detach() for x in inputs)
            calls = {"ours": partial(selecting, picked, 128, q, k, v, impl="triton")}
            # flex_attention's mask has a place for every pair of blocks: 2.4 GB for a million points
            calls["flex_attention"] = partial(flex(picked), q, k, v)
            if points <= 524288:
                # 1.7 s a call at 524 288 points
                dense = torch.nn.functional.scaled_dot_product_attention
                calls["dense"] = partial(dense, *(x.contiguous() for x in (q, k, v)), enable_gqa=True)
            for kind, call in calls.items():
                taken = once(call) if kind == "dense" and points > 200_000 else median(call, 50)
                print(f"{points},{kind},{taken:.4f}", file=file, flush=True)
                print(f"{points} points, {kind}: {taken:.3f} ms, {1e6 * taken / points:.2f} ns per point", flush=True)
            del inputs, picked, q, k, v, calls, call
            torch.cuda.empty_cache()


def once(call: Callable[[], object]) -> float:
    """Milliseconds of a call that takes seconds, after one that isn't counted."""
    call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began)


def mesh(path: str = "mesh.csv") -> None:
    """One whole forward, one member, of the published network on finer meshes than its own, and the memory it takes."""
    with open(path, "w") as file:
        print("points,milliseconds,gigabytes", file=file)
        for nside in NSIDES:
            taken, memory = fine(nside)
            points = NSIDES[nside]
            print(f"{points},{taken:.2f},{memory:.2f}", file=file, flush=True)
            print(
                f"nside {nside}: {taken:.1f} ms, {1e6 * taken / points:.0f} ns per point, {memory:.1f} GB", flush=True
            )
            torch.cuda.empty_cache()


def fine(nside: int) -> tuple[float, float]:
    """Milliseconds and gigabytes of a forward; grid and mesh grow together, neighbours are any points."""
    config = PUBLISHED["era5"]
    stages = tuple(replace(s, nside=nside >> i) for i, s in enumerate(config.stages))
    config = replace(config, stages=stages, bottleneck=replace(config.bottleneck, nside=nside >> 2))
    width, height = 240 * nside // 64, 120 * nside // 64 + 1
    longitude, latitude = np.arange(width) * (360 / width), np.linspace(-90, 90, height)
    rng, points = np.random.default_rng(0), NSIDES[nside]
    # near in memory as on the sphere: a search for the true ones would take minutes, and no other time on the GPU
    near = [
        (np.arange(t)[:, None] * s // t + rng.integers(-500, 500, (t, config.num_neighbors))) % s
        for t, s in ((points, width * height), (width * height, points))
    ]
    static = rng.normal(size=(width, height, 3))
    network = Mosaic(config, longitude, latitude, static, (near[0], near[1])).to(GPU).requires_grad_(False).eval()
    history = torch.randn(1, 1, 2, width, height, 82, device=GPU)
    call = partial(network, history, torch.rand(1, 2, device=GPU), torch.randn(1, 1, 32, device=GPU))
    with torch.inference_mode(), torch.autocast(GPU, torch.bfloat16):
        call()
        torch.cuda.reset_peak_memory_stats()
        taken = do_bench(call, warmup=100, rep=500, return_mode="median")
    return taken, torch.cuda.max_memory_allocated() / 1e9


class Products(TorchDispatchMode):
    """Notes the shapes of all matrix products that run under it; attention is two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "linear"):
            a, b = (tuple(x.shape) for x in args[:2])
            self.shapes.append((a, b) if name != "linear" else ((math.prod(a[:-1]), a[-1]), b[::-1]))
        elif name == "addmm_":
            self.shapes.append((tuple(args[1].shape), tuple(args[2].shape)))
        elif "scaled_dot_product" in name:
            q, k = ((math.prod(x.shape[:-2]), *x.shape[-2:]) for x in args[:2])
            self.shapes += [(q, (k[0], k[2], k[1])), ((*q[:2], k[1]), k)]
        return func(*args, **(kwargs or {}))


def cpu(members: str = "4") -> None:
    """A step of the bundled network on the CPU, beside its matrix products alone, in time that all threads computed:
    both in turn, so that both see the same other work on the machine."""
    network, count = load_model("bundled").network.eval(), int(members)
    history = torch.randn(1, count, network.config.num_history, *network.grid_shape, network.config.num_channels)
    call = partial(network, history, torch.rand(1, 2), torch.randn(1, count, network.config.noise_dim))
    with torch.inference_mode():
        with Products() as seen:
            call()
        # weights and keys lie in memory as the network has them; asking for memory isn't part of a product
        pairs = [(torch.randn(a), torch.randn(*b[:-2], b[-1], b[-2]).mT) for a, b in seen.shapes]
        outs = [a @ b for a, b in pairs]
        work = sum(2.0 * a.numel() * b.shape[-1] for a, b in pairs)

        def products() -> None:
            for (a, b), out in zip(pairs, outs, strict=True):
                torch.matmul(a, b, out=out)

        taken: dict[str, list[float]] = {"step": [], "products": []}
        for _ in range(12):
            for name, part in (("step", call), ("products", products)):
                began = time.process_time()
                part()
                taken[name].append(1e3 * (time.process_time() - began))
    step, alone = (np.array(x[2:]) for x in taken.values())
    ratio = np.sort(step / alone)
    print(
        f"{count} members, {torch.get_num_threads()} threads: step {np.median(step):.0f} ms ({step.min():.0f} … "
        f"{step.max():.0f}), its {len(pairs)} products alone {np.median(alone):.0f} ms ({work / 1e9:.1f} GFLOP); "
        f"ratio {np.median(ratio):.2f} ({ratio[0]:.2f} … {ratio[-1]:.2f}), of the least times "
        f"{step.min() / alone.min():.2f}"
    )
