"""The feed-forward gate inside its product, by how tiles are cut: ``python tests/benchmarks/kernels.py gated``."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from kernels import GPU, median, relative

from xmosaic.kernels import gated, reference, swiglu

Tiles = gated._Tiles
Call = Callable[..., torch.Tensor]

WAYS = (
    Tiles(128, 128, 64, 8, 4),
    Tiles(128, 128, 128, 8, 2),
    Tiles(256, 64, 64, 8, 4),
    Tiles(128, 128, 64, 8, 4, tanh=True),
    *(Tiles(128, 64, 64, 4, 3, programs=2, tanh=tanh) for tanh in (False, True)),
)
STAGES = ((49152, 768), (12288, 1024), (3072, 1280))
"""Points and width of the feed-forward layers of the published networks, hidden four times as wide."""


def named(tiles: Tiles) -> str:
    size = f"{tiles.rows} x (2 x {tiles.cols}) x {tiles.depth}"
    words = [f"{size}, {tiles.warps} warps, {tiles.stages} deep, bands of {tiles.band}"]
    words += [w for w, on in ((f"{tiles.programs} at once", tiles.programs > 1), ("tangent", tiles.tanh)) if on]
    return ", ".join(words)


@contextmanager
def using(tiles: Tiles) -> Iterator[None]:
    kept, gated._TILES = gated._TILES, tiles
    try:
        yield
    finally:
        gated._TILES = kept


def made(members: int, points: int, width: int) -> list[torch.Tensor]:
    """Rows, weights and shift, drawn anew."""
    shapes = (members, points, width), (8 * width, width), (members, 4 * width)
    x, weight, shift = (torch.randn(s, device=GPU, dtype=torch.bfloat16) for s in shapes)
    return [x, weight * width**-0.5, shift]


def two_steps(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return swiglu(F.linear(x, weight), shift, impl="triton")


def cut(tiles: Tiles, *inputs: torch.Tensor) -> torch.Tensor:
    with using(tiles):
        return gated._gated_op(*inputs)


def ways() -> dict[str, Call]:
    """Every candidate by name."""
    return {named(tiles): partial(cut, tiles) for tiles in WAYS}


def tried(name: str) -> str:
    """What went wrong with a candidate in a process of its own; its kernels stay in Triton's cache."""
    try:
        with torch.inference_mode():
            for _, width in STAGES:
                ways()[name](*made(1, 1024, width))
            torch.cuda.synchronize()
    except Exception as error:  # one that can't be built must not end the others
        return f"failed, {type(error).__name__}: {str(error)[:150]}"
    return ""


def problems(names: Iterable[str], trial: Callable[[str], str] = tried, seconds: float = 60.0) -> dict[str, str]:
    """Of all candidates at once, and of one that never ends too: then its process is."""
    end = time.monotonic() + seconds
    with multiprocessing.get_context("spawn").Pool(min(8, os.cpu_count() or 1)) as pool:
        waiting = {name: pool.apply_async(trial, (name,)) for name in names}
        found = {}
        for name, result in waiting.items():
            try:
                found[name] = result.get(max(0.1, end - time.monotonic()))
            except multiprocessing.TimeoutError:
                found[name] = f"failed, no end within {seconds:.0f} s"
    return found


class Stage:
    """One layer's product and gate for all members, and the error of the two steps on some of the points."""

    def __init__(self, members: int, points: int, width: int) -> None:
        self.inputs = made(members, points, width)
        self.picked = torch.cat([torch.randperm(points, device=GPU)[:400], torch.tensor([0, points - 1], device=GPU)])
        x, weight, shift = (t.double() for t in self.some())
        self.exact = reference.gated_product(x, weight, shift)
        self.allowed = relative(two_steps(*self.some()), self.exact)
        self.name, self.work = f"{members} x {points} x {width}", 16.0 * members * points * width**2

    def some(self) -> list[torch.Tensor]:
        return [self.inputs[0][:, self.picked].contiguous(), *self.inputs[1:]]

    def told(self, name: str, taken: float, words: str = "") -> None:
        print(f"{self.name}, {name}: {taken:.3f} ms, {self.work / taken / 1e9:.0f} TFLOP/s{words}", flush=True)

    def time_two_steps(self) -> float:
        x, weight, shift = self.inputs
        product = F.linear(x, weight)
        self.told("product alone", median(partial(F.linear, x, weight), 100))
        print(f"{self.name}, gate alone: {median(partial(swiglu, product, shift), 100):.3f} ms", flush=True)
        del product
        taken = median(partial(two_steps, *self.inputs), 100)
        self.told("product, then gate", taken, f", error {self.allowed:.1e}")
        return taken

    def verdict(self, call: Call) -> str:
        """The error, and whether it is too large."""
        torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
        try:
            out = call(*self.inputs)
        finally:
            torch.use_deterministic_algorithms(False)
        error = relative(out[:, self.picked], self.exact)
        if not all(bool(torch.isfinite(member).all()) for member in out):
            return "WRONG: places that nobody wrote, or that are no numbers"
        return f"error {error:.1e}" + ("" if error <= 2 * self.allowed else " WRONG")

    def time(self, name: str, call: Call) -> float:
        verdict = self.verdict(call)
        if "WRONG" in verdict:
            print(f"{self.name}, {name}: {verdict}", flush=True)
            return float("nan")
        taken = median(partial(call, *self.inputs), 100)
        self.told(name, taken, f", {verdict}")
        return taken


@torch.inference_mode()
def gated_product(members: str = "8") -> None:
    """Every candidate, checked and timed beside cuBLAS and the gate as a kernel of its own."""
    wrong = {name: problem for name, problem in problems(ways()).items() if problem}
    for name, problem in wrong.items():
        print(f"{name}: {problem}", flush=True)
    for points, width in STAGES:
        stage = Stage(int(members), points, width)
        before = stage.time_two_steps()
        found = {name: stage.time(name, call) for name, call in ways().items() if name not in wrong}
        right = {name: taken for name, taken in found.items() if taken == taken}
        if right:
            best = min(right, key=right.__getitem__)
            print(f"{stage.name}: best {right[best]:.3f} of {before:.3f} ms, {best}", flush=True)
        del stage
        torch.cuda.empty_cache()
