"""Is a product that is rotated and averaged where it is made the steps, to twice their rounding, at any size?

On a GPU of another kind than Hopper, and wherever a block is no tile, the steps run. Triton's interpreter knows no
bfloat16 products: those are checked by ``python tests/benchmarks/kernels.py check`` on a GPU.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import said_by_triton

from xmosaic.errors import ArgumentError
from xmosaic.kernels import rotated_product
from xmosaic.model import Mosaic, MosaicConfig, StageConfig

pytest.importorskip("triton", reason="Triton is not installed here")

from xmosaic.kernels import gated, projected

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def launches(monkeypatch):
    """Small tiles, so that small cases have many; and the constants of every launch of the kernel."""
    monkeypatch.setattr(projected, "_TILES", gated._Tiles(16, 16, 16, 4, 2))
    seen, kernel = [], projected._projected

    class Watched:
        def __getitem__(self, grid):
            return lambda *args, **options: (seen.append(options), kernel[grid](*args, **options))[1]

    monkeypatch.setattr(projected, "_projected", Watched())
    return seen


def case(seed, batch, points, dim, outputs, d):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, points, dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, dim, generator=generator, dtype=torch.float64) * dim**-0.5
    angle = 6 * torch.rand(points, d // 2, generator=generator)
    return [t.to(DEVICE) for t in (x, weight, angle.cos(), angle.sin())]


def narrowed(inputs):
    return [*(x.half() for x in inputs[:2]), *inputs[2:]]


# tiles whole and torn, the halves' border in a head and between heads, all and not all heads turned, several samples
SHAPES = [(2, 32, 32, 96, 16, 3, 5), (1, 48, 40, 112, 20, 2, 4), (3, 16, 16, 64, 16, 2, 2), (2, 16, 24, 80, 8, 1, 10)]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_at_most_twice_that_of_the_steps(shape, normed, launches):
    *sizes, d, turned, averaged = shape
    inputs = case(1, *sizes, d)
    rounded = narrowed(inputs)
    wide = [x.double() for x in rounded]
    wide[0] = F.rms_norm(wide[0], wide[0].shape[-1:], eps=torch.finfo(torch.float32).eps) if normed else wide[0]
    exact = rotated_product(*wide, averaged, 16, turned=turned, impl="reference")
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        with torch.no_grad():
            got, again = (
                rotated_product(*rounded, averaged, 16, turned=turned, normed=normed, impl="triton") for _ in "ab"
            )
    finally:
        torch.use_deterministic_algorithms(False)
    steps = rotated_product(*rounded, averaged, 16, turned=turned, normed=normed, impl="reference")
    assert len(launches) == 2 and launches[0]["SCALED"] == normed
    for value, ours, same, theirs in zip(exact, got, again, steps, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == torch.float16 and torch.equal(ours, same)
        error, allowed = ((x.double() - value).norm() for x in (ours, theirs))
        assert error <= max(2 * allowed, 1e-3 * value.norm())


def test_what_is_not_turned_is_the_product_and_what_is_keeps_its_length(launches):
    x, weight, cos, sin = narrowed(case(2, 1, 32, 32, 96, 16))
    with torch.no_grad():
        rotated, rest, means = rotated_product(x, weight, cos, sin, 5, 16, turned=3, impl="triton")
    product = F.linear(x.double(), weight.double())
    torch.testing.assert_close(rest.double(), product[..., 48:], rtol=2e-3, atol=2e-3)
    length = product[..., :48].unflatten(-1, (3, 8, 2)).norm(dim=-1)
    torch.testing.assert_close(rotated.double().unflatten(-1, (8, 2)).norm(dim=-1), length, rtol=2e-3, atol=2e-3)
    heads = torch.cat([rotated, rest[..., :32].unflatten(-1, (2, 16))], 2)
    torch.testing.assert_close(means.double(), heads.double().unflatten(1, (2, 16)).mean(2), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("change", ["float32", "gradient", "size", "narrow"])
def test_what_does_not_fit_takes_the_steps(change, launches):
    inputs = narrowed(case(3, 1, 32, 8 if change == "narrow" else 32, 96, 16))
    if change == "float32":
        inputs = [x.float() for x in inputs]
    elif change == "gradient":
        inputs[1].requires_grad_()
    size = 8 if change == "size" else 16
    got = rotated_product(*inputs, 5, size, turned=3, normed=True, impl="triton")
    steps = rotated_product(*inputs, 5, size, turned=3, normed=True, impl="reference")
    assert not launches
    for ours, theirs in zip(got, steps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
        assert ours.requires_grad == (change == "gradient")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weight": (96, 24)}, "x and weight don't belong together"),
        ({"angles": (16, 8)}, "angles don't belong to x"),
        ({"averaged": 7}, "there are not as many heads"),
        ({"turned": 0}, "there are not as many heads"),
        ({"size": 5}, "size does not divide the points"),
    ],
)
def test_shapes_that_do_not_belong_together(change, text):
    weight, angles = torch.ones(change.get("weight", (96, 32))), torch.ones(change.get("angles", (32, 8)))
    with pytest.raises(ArgumentError, match=text):
        rotated_product(
            torch.ones(1, 32, 32),
            weight,
            angles,
            angles,
            change.get("averaged", 5),
            change.get("size", 16),
            turned=change.get("turned", 3),
        )


@pytest.mark.parametrize("order", ["nested", "rows"])
def test_the_network_takes_it_where_there_is_no_way_back(order, launches):
    # as many that there are no columns to add, which a CPU leaves out
    heads = {"num_heads": 8, "num_kv_heads": 1, "block_count": 2}
    config = MosaicConfig(
        (StageConfig(nside=2, dim=32, local_size=16, block_size=16, **heads),),
        StageConfig(nside=1, dim=32, local_size=4, block_size=4, decoder_depth=0, **heads),
        num_variables=3,
        num_neighbors=4,
        block_order=order,
    )
    network = Mosaic(config, np.arange(6) * 60.0, np.linspace(-90, 90, 4)).half().to(DEVICE)
    inputs = [x.to(DEVICE).half() for x in (torch.randn(1, 2, 2, 6, 4, 3), torch.rand(1, 2), torch.randn(1, 2, 32))]
    network.impl = "triton"
    with_gradients = network(*inputs).detach()
    assert not launches
    with torch.no_grad():
        torch.testing.assert_close(network(*inputs), with_gradients, rtol=3e-2, atol=3e-2)
    assert [launch["SCALED"] for launch in launches] == [True] * 2  # the coarse stage's blocks are smaller than a tile


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xmosaic.kernels import projected

kernel, tiles = projected._projected, projected._TILES
for dim, hidden, turned, averaged in ((768, 608, 15, 18), (1024, 800, 20, 24)):
    sizes = dict(DIM=dim, HIDDEN=hidden, TURNED=turned, AVERAGED=averaged, D=64)
    sizes |= dict(M=tiles.rows, N=tiles.cols, K=tiles.depth, BAND=tiles.band, SCALED=True)
    kinds = dict(x_ptr=f"tensordesc<bf16[{tiles.rows},{tiles.depth}]>", mean_ptr="*bf16")
    kinds |= dict(weight_ptr=f"tensordesc<bf16[2,{tiles.cols},{tiles.depth}]>")
    kinds |= dict(out_ptr=f"tensordesc<bf16[{tiles.rows},1,{tiles.cols}]>")
    names = kernel.arg_names
    kind = lambda n: "constexpr" if n in sizes else kinds.get(n, "*fp32" if n.endswith("_ptr") else "i32")
    values = {(names.index(n),): v for n, v in sizes.items()}
    options = dict(num_warps=tiles.warps, num_stages=tiles.stages)
    source = ASTSource(kernel, {n: kind(n) for n in names}, values)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    # more shared memory than a multiprocessor has would fail at the launch
    print("wgmma" in made.asm["ptx"], made.metadata.shared <= 232448)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for GPUs on Linux alone")
def test_it_compiles_for_hopper_and_uses_its_matrix_units(tmp_path):
    assert said_by_triton(COMPILE, tmp_path).split("\n")[:2] == ["True True"] * 2
