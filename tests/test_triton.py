"""Do the Triton kernels compute what their references do, and give back gradients that repeat?

On a GPU they run there; elsewhere in Triton's interpreter, which knows no bfloat16 products (conventions.md): those are
checked by ``python tests/benchmarks/kernels.py check`` on a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic.errors import ArgumentError
from xmosaic.kernels import (
    add_norm,
    block_means,
    combine,
    local_attention,
    neighbor_attention,
    rotate,
    selected_attention,
    swiglu,
)
from xmosaic.kernels.choice import choose
from xmosaic.model import Mosaic, MosaicConfig, StageConfig

pytest.importorskip("triton", reason="Triton is not installed here")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16)
few = settings(max_examples=4, deadline=None)
seeds = st.integers(0, 2**31)


def normal(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE) for s in shapes]


def run(function, inputs, dtype):
    """Outputs and gradients, with weights that depend on the place."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = function(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    weights = [torch.linspace(-1, 1, o.numel(), device=o.device).view(o.shape).to(o) for o in outs]
    return [o.detach() for o in outs], list(torch.autograd.grad(outs, leaves, weights))


def assert_as_good_as_reference(function, inputs, dtype):
    """Error against float64 at most twice that of the reference in the same precision."""
    rounded = [x.to(dtype).double() for x in inputs]

    def everything(impl, given, precision):
        outs, gradients = run(lambda *x: function(*x, impl), given, precision)
        return outs + gradients

    exact = everything("reference", rounded, torch.float64)
    ours, theirs = (everything(impl, inputs, dtype) for impl in ("triton", "reference"))
    for value, got, other in zip(exact, ours, theirs, strict=True):
        assert got.dtype == dtype
        error, allowed = ((x.double() - value).norm() for x in (got, other))
        assert error <= max(2 * allowed, 4 * torch.finfo(dtype).eps * value.norm())


def attention_case(seed, batch, heads, group, blocks, size, d, count):
    points = blocks * size
    inputs = normal(seed, (batch, heads * group, points, d), (batch, heads, points, d), (batch, heads, points, d))
    picked = torch.randint(0, blocks, (batch, heads, blocks, count), generator=torch.Generator().manual_seed(seed))
    return inputs, picked.to(DEVICE)


# sizes that fill tiles, that don't, smaller than a tile, larger than one; heads that are no power of two
SHAPES = [(2, 2, 2, 3, 16, 16, 2), (1, 2, 3, 4, 12, 20, 5), (1, 1, 1, 3, 5, 3, 2), (1, 1, 2, 2, 160, 64, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_selected_attention(shape, dtype):
    inputs, picked = attention_case(1, *shape)
    assert_as_good_as_reference(
        lambda q, k, v, impl: selected_attention(q, k, v, picked, shape[4], scale=0.3, impl=impl), inputs, dtype
    )


@few
@given(seeds)
def test_all_blocks_picked_is_dense_attention_and_doubles_count_twice(seed):
    inputs, _ = attention_case(seed, 1, 2, 2, 3, 8, 16, 1)
    blocks = torch.tensor([0, 1, 2], device=DEVICE).expand(1, 2, 3, 3)
    q, k, v = (x.float() for x in inputs)
    got = selected_attention(q, k, v, blocks, 8, impl="triton")
    dense = torch.nn.functional.scaled_dot_product_attention(q, *(x.repeat_interleave(2, 1) for x in (k, v)))
    torch.testing.assert_close(got, dense, rtol=1e-5, atol=1e-5)
    twice = torch.cat([blocks, blocks], -1)
    torch.testing.assert_close(selected_attention(q, k, v, twice, 8, impl="triton"), got, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [16, 12])
def test_local_attention(size):
    inputs, _ = attention_case(2, 2, 2, 2, 3, size, 16, 1)
    assert_as_good_as_reference(lambda q, k, v, impl: local_attention(q, k, v, size, impl=impl), inputs, torch.float32)


def test_gradients_repeat_and_every_place_is_written():
    inputs, picked = attention_case(3, 2, 2, 2, 4, 12, 20, 3)

    def once():
        out, gradients = run(lambda *x: selected_attention(*x, picked, 12, impl="triton"), inputs, torch.float32)
        return [*out, *gradients]

    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        poisoned, again = once(), once()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.isfinite(x).all() for x in poisoned)
    assert all(torch.equal(a, b) for a, b in zip(poisoned, again, strict=True))


def test_memory_order_does_not_matter():
    inputs, picked = attention_case(4, 1, 2, 2, 3, 16, 16, 2)
    plain = [x.float() for x in inputs]
    expected = selected_attention(*plain, picked, 16, impl="triton")
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in plain]
    strided = [torch.cat([x, x], -1)[..., :16] for x in plain]
    last = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in plain]
    for other in (turned, strided, last):
        assert torch.equal(selected_attention(*other, picked, 16, impl="triton"), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 9, 3, 16, 20, 5), (1, 30, 2, 20, 33, 24), (1, 5, 1, 3, 7, 1)])
def test_neighbor_attention(shape, dtype):
    batch, sources, heads, d, targets, k = shape
    direction, *inputs = normal(5, (targets, k, 3), (batch, sources, heads, 3), (batch, sources, heads, d))
    table = torch.randint(0, sources, (targets, k), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    direction = direction.float()

    def attend(p, v, impl):
        return neighbor_attention(
            direction.to(torch.promote_types(p.dtype, torch.float32)), p, v, table, scale=0.5, impl=impl
        )

    # the reference multiplies in 16 bits too, so it is allowed more than it needs
    assert_as_good_as_reference(attend, inputs, dtype)


def test_a_source_that_nobody_uses_has_no_gradient():
    direction, projection, value = normal(6, (4, 2, 3), (1, 3, 1, 3), (1, 3, 1, 4))
    table = torch.tensor([[0, 2]] * 4, device=DEVICE)
    attend = lambda p, v: neighbor_attention(direction.float(), p, v, table, scale=1.0, impl="triton")  # noqa: E731
    _, gradients = run(attend, [projection, value], torch.float32)
    assert all((g[:, 1] == 0).all() and (g[:, 0] != 0).any() for g in gradients)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 40, 3])
def test_add_norm(width, dtype):
    inputs = normal(7, (2, 5, width), (2, 5, width))
    assert_as_good_as_reference(lambda x, u, impl: add_norm(x, u, impl=impl), inputs, dtype)


def test_add_norm_of_a_wide_sum_and_a_narrow_update():
    x, update = (
        t.to(d) for t, d in zip(normal(8, (2, 5, 16), (2, 5, 16)), (torch.float32, torch.float16), strict=True)
    )
    total, normed = add_norm(x, update, impl="triton")
    assert (total.dtype, normed.dtype) == (torch.float32, torch.float16)
    torch.testing.assert_close(total, x + update)
    torch.testing.assert_close(normed.float(), torch.nn.functional.rms_norm(total, (16,)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("blocks", "size", "heads", "d"), [(2, 4, 2, 8), (3, 5, 3, 20), (2, 64, 1, 64)])
def test_rotation_means_and_gates(blocks, size, heads, d, dtype):
    points = blocks * size
    (angle,) = normal(9, (points, d // 2))
    shape = (2, points, heads, d)
    x, local, logits, compressed = normal(10, shape, shape, (2, points, heads, 3), (2, blocks, heads, d))
    cos, sin = angle.cos().float(), angle.sin().float()
    # float32 angles in both, or float64 would see others
    assert_as_good_as_reference(lambda x, impl: rotate(x, cos, sin, size, impl=impl), [x], dtype)
    assert_as_good_as_reference(lambda x, impl: block_means(x, size, impl=impl), [x], dtype)
    assert_as_good_as_reference(
        lambda g, a, b, c, impl: combine(g, a, b, c, impl=impl), [logits, local, compressed, x], dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [5, 40, 1100])
def test_swiglu(hidden, dtype):
    inputs = normal(11, (2, 3, 2 * hidden), (2, hidden))
    assert_as_good_as_reference(lambda x, z, impl: swiglu(x, z, impl=impl), inputs, dtype)
    assert_as_good_as_reference(lambda x, impl: swiglu(x, impl=impl), inputs[:1], dtype)


def test_the_network_is_the_same_either_way():
    """Output and every gradient, with activations kept and computed again."""
    stage = StageConfig(2, 8, 2, 1, local_size=16, block_size=8, block_count=2)
    coarse = StageConfig(1, 16, 2, 1, 12, 4, 2, decoder_depth=0)
    config = MosaicConfig((stage,), coarse, num_variables=3, num_neighbors=4)
    network = Mosaic(config, np.arange(6) * 60.0, np.linspace(-90, 90, 4)).to(DEVICE)
    history, clock, noise = (x.float() for x in normal(12, (1, 2, 2, 6, 4, 3), (1, 2), (1, 2, 32)))

    def once(impl, recompute=False):
        network.impl, network.recompute = impl, recompute
        network.zero_grad()
        out = network(history, clock, noise)
        (out * torch.linspace(-1, 1, out.numel(), device=DEVICE).view(out.shape)).sum().backward()
        return [out.detach(), *(p.grad for p in network.parameters())]

    expected = once("reference")
    kept = once("triton")
    for a, b in zip(kept, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    assert all(torch.equal(a, b) for a, b in zip(once("triton", recompute=True), kept, strict=True))


def test_what_triton_refuses(monkeypatch):
    inputs, picked = attention_case(13, 1, 1, 1, 2, 16, 16, 1)
    q, k, v = (x.float() for x in inputs)
    with pytest.raises(ArgumentError, match=r"impl='triton' can't take these inputs. Found torch.float64"):
        selected_attention(*inputs, picked, 16, impl="triton")
    with pytest.raises(ArgumentError, match="torch.float16, torch.float32; expected .* all alike"):
        selected_attention(q, k.half(), v.half(), picked, 16, impl="triton")
    direction = torch.zeros(1, 1, 3, device=DEVICE, requires_grad=True)
    with pytest.raises(ArgumentError, match="directions that need a gradient"):
        choose("triton", q, fixed=direction)
    with pytest.raises(ArgumentError, match="tensors on cpu, meta"):
        choose("triton", q.cpu(), k.to("meta"))
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(ArgumentError, match="impl='triton' can't take these inputs"):
            choose("triton", q)
        assert choose(None, q) == "reference"


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xmosaic.kernels import selected, neighbor

def compiled(kernel, dtype, constants, **options):
    kinds = dict.fromkeys(["idx_ptr", "order_ptr", "first_ptr", "pickers_ptr", "neighbors_ptr", "links_ptr"], "*i32")
    kinds |= dict.fromkeys(["lse_ptr", "total_ptr", "delta_ptr", "direction_ptr"], "*fp32")
    def kind(name):
        if name in constants:
            return "constexpr"
        default = dtype if name.endswith("_ptr") else "fp32" if name.startswith("scale") else "i32"
        return kinds.get(name, default)
    names = kernel.arg_names
    source = ASTSource(kernel, {n: kind(n) for n in names}, {(names.index(n),): v for n, v in constants.items()})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

sizes = dict(GROUP=4, SIZE=128, D=64, WIDTH=64, PRECISION="ieee", EXACT=False)
for name in ("forward", "query", "key"):
    kernel = {"forward": selected._forward, "query": selected._backward_query, "key": selected._backward_key}[name]
    tiles = selected._tiles(name, 2, 64, 512, 128)
    options = dict(num_warps=tiles.warps, num_stages=tiles.stages)
    made = compiled(kernel, "*bf16", sizes | dict(M=tiles.rows, N=tiles.keys), **options)
    print(name, "wgmma" in made.asm["ptx"])
made = compiled(neighbor._forward, "*bf16", dict(HEADS=12, K=24, K_WIDTH=32, D=64, WIDTH=64, TARGETS=8), num_warps=1)
print("neighbors", len(made.asm["cubin"]) > 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for GPUs on Linux alone")
def test_they_compile_for_hopper_and_use_its_matrix_units(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:4] == ["forward True", "query True", "key True", "neighbors True"]
