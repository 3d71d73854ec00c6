"""The gate inside its product in 8 bits, beside the two steps: ``python tests/benchmarks/kernels.py eight``.

Nothing is timed that isn't right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from kernel_gate import Tiles, made, named, problems
from kernel_rest import STAGES
from kernels import GPU, median, relative

from xmosaic.kernels import (
    Rows,
    gate_bound,
    gated,
    gated_rows,
    multiply_rows,
    quantise_rows,
    swiglu,
)

WAYS = (
    Tiles(128, 128, 128, 8, 4),
    Tiles(128, 128, 128, 8, 3),
    Tiles(128, 128, 64, 8, 6),
    Tiles(128, 128, 128, 8, 4, 16),
    Tiles(256, 64, 128, 8, 4),
    Tiles(128, 64, 64, 4, 6, programs=2),
    Tiles(128, 128, 128, 8, 4, tanh=True),
    *(Tiles(128, 64, 128, 4, 3, programs=2, tanh=tanh) for tanh in (False, True)),
)
WIDE = torch.bfloat16


# ---- the gate inside its product ----


def ready(members: int, points: int, width: int) -> tuple[Rows, Rows, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, weights, bounds and shift of one layer."""
    x, weight, shift = made(members, points, width)
    bound = gate_bound(weight, True)
    return quantise_rows(F.rms_norm(x, (width,))), quantise_rows(weight), bound.whole, bound.growth(shift), shift


def cut(tiles: Tiles, *inputs: torch.Tensor) -> Rows:
    kept, gated._ROWS_TILES = gated._ROWS_TILES, tiles
    try:
        return gated_rows(*inputs, impl="triton")
    finally:
        gated._ROWS_TILES = kept


def two_steps(x: Rows, weight: Rows, bound: torch.Tensor, growth: torch.Tensor, shift: torch.Tensor) -> Rows:
    return quantise_rows(swiglu(multiply_rows(x, weight, WIDE), shift))


def ways() -> dict[str, Callable[..., Rows]]:
    return {named(t): partial(cut, t) for t in WAYS}


def tried(name: str) -> str:
    """What went wrong with a candidate in a process of its own; its kernels stay in Triton's cache."""
    try:
        with torch.inference_mode():
            for _, width, *_ in STAGES:
                ways()[name](*ready(1, 1024, width))
            torch.cuda.synchronize()
    except Exception as error:  # one that can't be built must not end the others
        return f"failed, {type(error).__name__}: {str(error)[:150]}"
    return ""


def gate_error(call: Callable[..., Rows], x: Rows, weight: Rows, *more: torch.Tensor, whole: bool = False) -> float:
    """Of the first and the last 256 points of every member, against the formula in float64."""
    ends = torch.arange(-256, 256, device=GPU)
    rows = call(x, weight, *more)
    got = rows.values[:, ends].double() * rows.scale[:, ends] * (1.0 if whole else more[0])
    wide = x.values[:, ends].double() * x.scale[:, ends]
    a, b = F.linear(wide, weight.values.double() * weight.scale).chunk(2, -1)
    exact = F.silu(a + more[2].double()[:, None]) * b
    return relative(got, exact) if not rows.values.view(torch.uint8).bitwise_and(127).eq(127).any() else float("nan")


def gates(members: int) -> None:
    wrong = {name: problem for name, problem in problems(ways(), tried).items() if problem}
    for name, problem in wrong.items():
        print(f"{name}: {problem}", flush=True)
    for points, width, *_ in STAGES:
        inputs, size = ready(members, points, width), f"{members} x {points} x {width}"
        work = 16.0 * members * points * width**2
        x, weight, *_ = inputs
        allowed = gate_error(two_steps, *inputs, whole=True)
        times = [median(c, 100) for c in (partial(multiply_rows, x, weight, WIDE), partial(two_steps, *inputs))]
        print(f"{size}, product in 8 bits alone {times[0]:.3f} ms, then gate {times[1]:.3f}, error {allowed:.1e}")
        print(f"{size}, bounds {median(partial(gate_bound, made(1, 128, width)[1], True), 50):.3f} ms", flush=True)
        for name, call in ways().items():
            error = float("nan") if name in wrong else gate_error(call, *inputs)
            if not error <= 1.5 * allowed:
                print(f"{size}, {name}: WRONG, error {error:.1e}", flush=True)
                continue
            taken = median(partial(call, *inputs), 100)
            print(f"{size}, {name}: {taken:.3f} ms, {work / taken / 1e9:.0f} TFLOP/s, error {error:.1e}", flush=True)
        del inputs, x, weight
        torch.cuda.empty_cache()


@torch.inference_mode()
def eight(members: str = "8") -> None:
    """The gate inside its product, beside the two steps."""
    gates(int(members))
