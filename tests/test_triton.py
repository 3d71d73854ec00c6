"""Do the Triton kernels compute what their references do, and give back gradients that repeat?

On a GPU they run there; elsewhere in Triton's interpreter, which knows no bfloat16 products (conventions.md): those are
checked by ``python tests/benchmarks/kernels.py check`` on a GPU.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import said_by_triton

from xmosaic.errors import ArgumentError
from xmosaic.kernels import (
    add_norm,
    add_norm_rows,
    block_means,
    combine,
    local_attention,
    neighbor_attention,
    norm_rows,
    quantise_rows,
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
        # what is nothing, as the gradient of a single weight, is a difference of numbers of about one
        size = value.norm() if value.any() else 1.0
        assert error <= max(2 * allowed, 4 * torch.finfo(dtype).eps * size)


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


@pytest.fixture
def tiles():
    """Sets how a kernel works, for every width and precision, until the test ends."""
    from xmosaic.kernels import selected

    kept = dict(selected._TILES)

    def change(kind="forward", **options):
        selected._TILES[kind] = tuple(t._replace(**options) for t in kept[kind])
        selected._tiles.cache_clear()

    yield change
    selected._TILES.update(kept)
    selected._tiles.cache_clear()


WAYS = [
    {"sample": 0, "tma": False},
    {"sample": 16, "tma": False},
    {"sample": 0, "tma": True},
    {"sample": 16, "tma": True},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("scale", [0.3, 20.0])
def test_ways_to_make_the_weights(way, scale, tiles):
    """With large logits later keys pass the first ones by more than float16 holds."""
    tiles(**way)
    for kind in ("query", "key"):
        tiles(kind, rows=16, keys=16, tma=way["tma"])
    inputs, picked = attention_case(1, 1, 1, 2, 4, 32, 32, 3)
    assert_as_good_as_reference(
        lambda q, k, v, impl: selected_attention(q, k, v, picked, 32, scale=scale, impl=impl), inputs, torch.float16
    )


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_key_that_is_no_number_reaches_all_who_picked_it(way, tiles):
    tiles(**way)
    inputs, _ = attention_case(1, 1, 1, 2, 3, 16, 16, 1)
    q, k, v = (x.half() for x in inputs)
    k[0, 0, 20] = torch.nan
    blocks = torch.tensor([[0, 1], [0, 2], [1, 2]], device=DEVICE)[None, None]
    out = selected_attention(q, k, v, blocks, 16, impl="triton").unflatten(2, (3, 16))
    assert [bool(out[:, :, i].isnan().all()) for i in range(3)] == [True, False, True]
    assert torch.isfinite(out[:, :, 1]).all()


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
@pytest.mark.parametrize("shape", [(2, 9, 3, 16, 20, 5), (1, 30, 2, 20, 17, 24), (1, 5, 1, 3, 7, 1)])
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


def assert_same_rows(got, expected):
    """But for where the interpreter rounds up to the next power of two and forgets to carry."""
    torch.testing.assert_close(got.scale, expected.scale, rtol=1e-6, atol=0, equal_nan=True)
    a, b = got.values.float(), expected.values.float()
    power = (b.abs().log2() % 1 == 0) & (a == b / 2)
    near = (a - b).abs() <= b.abs() / 8 + 2**-9  # one step of e4m3, where float32 rounds otherwise
    assert (near | power | (a.isnan() & b.isnan()) | expected.scale.isnan()).all()
    assert (a == b)[expected.scale.isfinite().expand_as(a)].float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [16, 48])
def test_rows_in_eight_bits(width, dtype):
    x, update = (t.to(dtype) for t in normal(17, (2, 9, width), (2, 9, width)))
    x[0, 1], x[0, 2] = 0, x[0, 2] * 1000
    x[1, 3, 1] = torch.nan
    kinds = ("triton", "reference")
    assert_same_rows(*(quantise_rows(x, impl=impl) for impl in kinds))
    (total, got), (same, expected) = (add_norm_rows(x, update, impl=impl) for impl in kinds)
    torch.testing.assert_close(total, same, equal_nan=True)
    assert_same_rows(got, expected)
    assert_same_rows(*(norm_rows(x, impl=impl) for impl in kinds))


def test_the_network_is_the_same_either_way():
    """Output and every gradient, with activations kept and computed again."""
    stage = StageConfig(2, 8, 2, 1, local_size=16, block_size=8, block_count=2)
    coarse = StageConfig(1, 16, 2, 1, 12, 4, 2, decoder_depth=0)
    config = MosaicConfig((stage,), coarse, num_variables=3, num_neighbors=4)
    network = Mosaic(config, np.arange(6) * 60.0, np.linspace(-90, 90, 4)).to(DEVICE)
    history, clock, noise = (x.float() for x in normal(12, (1, 1, 2, 6, 4, 3), (1, 2), (1, 1, 32)))

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


def test_kernels_run_on_the_device_of_their_tensors(monkeypatch):
    """Several GPUs of one process, each with a thread of its own: the current one may be another."""
    inputs, picked = attention_case(14, 1, 1, 1, 2, 16, 16, 1)
    q, k, v = (x.float() for x in inputs)
    x, cos = q.transpose(1, 2), torch.ones(32, 8, device=DEVICE)
    table = torch.zeros(3, 2, dtype=torch.int64, device=DEVICE)
    calls = {
        selected_attention: (q, k, v, picked, 16),
        local_attention: (q, k, v, 16),
        neighbor_attention: (torch.ones(3, 2, 3, device=DEVICE), x[..., :3], x, table),
        add_norm: (q, q),
        rotate: (x, cos, cos, 16),
        block_means: (x, 16),
        combine: (x[..., :3], x, x[:, :2], x),
        swiglu: (q[0],),
        quantise_rows: (q,),
        add_norm_rows: (q, q),
    }
    entered, kept = [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: entered.append(x.device) or kept(x))
    for count, (function, args) in enumerate(calls.items(), 1):
        options = {"scale": 1.0} if function is neighbor_attention else {}
        function(*args, impl="triton", **options)
        assert entered == [q.device] * count, function.__name__


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
from xmosaic.kernels import float8, selected, neighbor

def compiled(kernel, dtype, constants, described=(), length=0, **options):
    kinds = dict.fromkeys(["idx_ptr", "order_ptr", "first_ptr", "pickers_ptr", "neighbors_ptr", "links_ptr"], "*i32")
    kinds |= dict.fromkeys(["lse_ptr", "total_ptr", "delta_ptr", "direction_ptr"], "*fp32")
    kinds |= dict.fromkeys(described, f"tensordesc<bf16[1,1,{length},64]>")
    if "q_ptr" in described:
        kinds |= dict.fromkeys(["lse_ptr", "delta_ptr"], f"tensordesc<fp32[1,1,{length}]>")
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
    for whole in (False, True):
        tiles = selected._tiles(name, 2, 64, 512, 128, whole)
        options = dict(num_warps=tiles.warps, num_stages=tiles.stages)
        options |= dict(maxnreg=tiles.registers) if tiles.registers else {}
        more = dict(SAMPLE=tiles.sample, GATED=False, NEAR=0) if name == "forward" else {}
        more |= dict(M=tiles.rows, N=tiles.keys, TMA=tiles.tma)
        fetched = () if not tiles.tma else ("q_ptr", "grad_ptr") if name == "key" else ("k_ptr", "v_ptr")
        length = tiles.rows if name == "key" else tiles.keys
        made = compiled(kernel, "*bf16", sizes | more, fetched, length, **options)
        print(name, whole, "wgmma" in made.asm["ptx"], ("cp.async.bulk.tensor" in made.asm["ptx"]) == tiles.tma)
made = compiled(neighbor._forward, "*bf16", dict(HEADS=12, K=24, K_WIDTH=32, D=64, WIDTH=64, TARGETS=8), num_warps=1)
print("neighbors", len(made.asm["cubin"]) > 0)
kinds = dict(x_ptr="*bf16", values_ptr="*fp8e4nv", scale_ptr="*fp32", D="constexpr", WIDTH="constexpr")
names = float8._quantise.arg_names
values = {(names.index("D"),): 3072, (names.index("WIDTH"),): 4096}
source = ASTSource(float8._quantise, {n: kinds[n] for n in names}, values)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8))
print("rows", "cvt.rn.satfinite.e4m3x2" in made.asm["ptx"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for GPUs on Linux alone")
def test_they_compile_for_hopper_and_use_its_matrix_units(tmp_path):
    said = said_by_triton(COMPILE, tmp_path)
    attention = [f"{name} {whole} True True" for name in ("forward", "query", "key") for whole in (False, True)]
    assert said.split("\n")[:8] == [*attention, "neighbors True", "rows True"]
