"""Is what one kernel does at once what its steps do one by one, to twice their rounding, and only without gradients?

Triton's interpreter knows no bfloat16 products: those are checked by ``python tests/benchmarks/kernels.py check`` on a
GPU.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic.errors import ArgumentError
from xmosaic.kernels import (
    block_means,
    combine,
    combine_selected,
    local_attention,
    rotate,
    selected_attention,
    sum_norm,
)
from xmosaic.model import Mosaic, MosaicConfig, StageConfig

triton = pytest.importorskip("triton", reason="Triton is not installed here")

from xmosaic.kernels import gates, rotary, selected, selection  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16)
seeds = st.integers(0, 2**31)


def normal(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE) for s in shapes]


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that are launched and have no way back."""
    seen = []

    def watched(module, name):
        kernel = getattr(module, name)

        class Watched:
            def __getitem__(self, grid):
                return lambda *args, **options: (seen.append((name, options)), kernel[grid](*args, **options))[1]

        monkeypatch.setattr(module, name, Watched())

    watched(selected, "_forward")
    watched(selection, "_select")
    watched(gates, "_sum_norm")
    watched(gates, "_combine")
    return seen


def assert_as_good_as_reference(function, inputs, dtype):
    """Error against float64 at most twice the reference's in the same precision; every place is written."""
    rounded = [x.to(dtype) for x in inputs]
    exact = function(*(x.double() for x in rounded), impl="reference")
    other = function(*rounded, impl="reference")
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        with torch.no_grad():
            got = function(*rounded, impl="triton")
    finally:
        torch.use_deterministic_algorithms(False)
    assert (got.dtype, got.shape) == (dtype, exact.shape)
    error, allowed = ((x.double() - exact).norm() for x in (got, other))
    assert error <= max(2 * allowed, 4 * torch.finfo(dtype).eps * exact.norm())


# ---- the branches' sum where the third is made ----


def branches(seed, batch, heads, group, blocks, size, d, count):
    """Queries, keys, values, logits, local, compressed; and picked blocks."""
    many, points = heads * group, blocks * size
    shapes = [(batch, n, points, d) for n in (many, heads, heads)]
    shapes += [(batch, points, many, 3), (batch, points, many, d), (batch, blocks, many, d)]
    picked = torch.randint(0, blocks, (batch, heads, blocks, count), generator=torch.Generator().manual_seed(seed))
    return normal(seed, *shapes), picked.to(DEVICE)


def summed(picked, size, *inputs, impl, scale=0.3):
    return combine_selected(*inputs[:3], picked, size, *inputs[3:], scale=scale, impl=impl)


# sizes that fill tiles, that don't, smaller than a tile, tiles of several heads; heads that are no power of two
SHAPES = [(2, 2, 2, 3, 16, 16, 2), (1, 2, 3, 4, 12, 20, 5), (1, 1, 1, 3, 5, 3, 2), (1, 1, 2, 2, 160, 64, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_of_the_branches(shape, dtype, launches):
    inputs, picked = branches(1, *shape)
    assert_as_good_as_reference(partial(summed, picked, shape[4]), inputs, dtype)
    assert [(name, options["GATED"]) for name, options in launches] == [("_forward", True)]


WAYS = [{"sample": n, "tma": t} for n in (0, 16) for t in (False, True)]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_to_make_the_weights_ends_in_the_same_sum(way, monkeypatch):
    """With large logits too: then the kernel begins anew, and must not sum twice."""
    monkeypatch.setitem(selected._TILES, "forward", tuple(t._replace(**way) for t in selected._TILES["forward"]))
    selected._tiles.cache_clear()
    try:
        inputs, picked = branches(2, 1, 1, 2, 4, 32, 32, 3)
        for scale in (0.3, 20.0):
            assert_as_good_as_reference(partial(summed, picked, 32, scale=scale), inputs, torch.float16)
    finally:
        selected._tiles.cache_clear()


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_a_gate_that_takes_one_branch_gives_that_branch(seed):
    inputs, picked = branches(seed, 2, 1, 2, 3, 8, 16, 2)
    q, k, v, logits, local, compressed = (x.float() for x in inputs)
    third = selected_attention(q, k, v, picked, 8, impl="triton").transpose(1, 2)
    for i, expected in enumerate((local, compressed.repeat_interleave(8, 1), third)):
        logits = torch.zeros_like(logits)
        logits[..., i] = 200
        got = combine_selected(q, k, v, picked, 8, logits, local, compressed, impl="triton")
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


NEAR = [(SHAPES[0], 48), (SHAPES[1], 24), (SHAPES[2], 5), (SHAPES[3], 160), ((1, 1, 2, 4, 16, 16, 2), 32)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "size"), [*NEAR, (SHAPES[1], 16)], ids=str)
def test_the_local_branch_is_made_beside_the_selected_one(shape, size, dtype, launches):
    """Blocks of one, two and all blocks of keys; and, in a kernel of its own, of parts of such."""
    (q, k, v, logits, _, compressed), picked = branches(24, *shape)

    def both(q, k, v, logits, compressed, impl):
        return combine_selected(q, k, v, picked, shape[4], logits, size, compressed, impl=impl)

    assert_as_good_as_reference(both, [q, k, v, logits, compressed], dtype)
    found = [(options["GATED"], options["NEAR"]) for _, options in launches]
    assert found == ([(True, size // shape[4])] if size % shape[4] == 0 else [(False, 0), (True, 0)])
    half = [x.half() for x in (q, k, v, logits, compressed)]
    local = local_attention(*half[:3], size, impl="reference").transpose(1, 2)
    given = combine_selected(*half[:3], picked, shape[4], half[3], local, half[4], impl="reference")
    torch.testing.assert_close(both(*half, impl="reference"), given, rtol=0, atol=0)


def test_large_logits_of_near_keys_begin_the_kernel_anew(monkeypatch):
    (q, k, v, logits, _, compressed), picked = branches(25, 1, 1, 2, 4, 32, 32, 3)
    for sample in (0, 16):
        tiles = tuple(t._replace(sample=sample) for t in selected._TILES["forward"])
        monkeypatch.setitem(selected._TILES, "forward", tiles)
        selected._tiles.cache_clear()
        try:
            inputs = [30 * q, k, v, logits, compressed]
            call = lambda q, k, v, g, c, impl: combine_selected(q, k, v, picked, 32, g, 64, c, impl=impl)  # noqa: E731
            assert_as_good_as_reference(call, inputs, torch.float16)
        finally:
            selected._tiles.cache_clear()


def test_memory_order_does_not_matter():
    """Logits beside queries in one product, as the network has them; heads before points; nothing dense."""
    inputs, picked = branches(4, 2, 1, 2, 3, 16, 16, 2)
    q, k, v, logits, local, compressed = (x.half() for x in inputs)
    expected = combine_selected(q, k, v, picked, 16, logits, local, compressed, impl="triton")
    assert expected.is_contiguous()
    beside = torch.cat([torch.zeros_like(local).flatten(2), logits.flatten(2)], -1)[..., -6:].unflatten(-1, (2, 3))
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (logits, local, compressed)]
    spread = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in (logits, local, compressed)]
    last = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (logits, local, compressed)]
    for other in ((beside, local, compressed), turned, spread, last):
        assert torch.equal(combine_selected(q, k, v, picked, 16, *other, impl="triton"), expected)


def test_no_number_in_a_branch_stays_at_its_points():
    inputs, picked = branches(5, 1, 1, 1, 3, 16, 16, 1)
    q, k, v, logits, local, compressed = (x.half() for x in inputs)
    local[0, 3, 0, 5], compressed[0, 1, 0, 7], logits[0, 40, 0, 1] = torch.nan, torch.nan, torch.nan
    got = combine_selected(q, k, v, picked, 16, logits, local, compressed, impl="triton")
    expected = torch.zeros(1, 48, 1, 16, dtype=torch.bool, device=DEVICE)
    expected[0, 3, 0, 5] = expected[0, 16:32, 0, 7] = expected[0, 40] = True
    assert torch.equal(got.isnan(), expected)


def test_with_gradients_the_branches_are_summed_after(launches):
    inputs, picked = branches(6, 1, 1, 2, 3, 16, 16, 2)

    def gradients(function):
        leaves = [x.float().requires_grad_() for x in inputs]
        out = function(*leaves)
        return [
            out.detach(),
            *torch.autograd.grad(out, leaves, torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)),
        ]

    def steps(q, k, v, logits, local, compressed):
        third = selected_attention(q, k, v, picked, 16, scale=0.3, impl="triton").transpose(1, 2)
        return combine(logits, local, compressed, third, impl="triton")

    expected = gradients(steps)
    got = gradients(partial(summed, picked, 16, impl="triton"))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert [(name, options.get("GATED")) for name, options in launches] == [("_forward", False), ("_combine", None)] * 2


# ---- the norm of a sum ----

KINDS = [(False, False), (True, False), (False, True), (True, True)]


def normed(update, position, times, *inputs, impl):
    x, *more = inputs
    first = more.pop(0) if update else None
    return sum_norm(x, first, more.pop(0) if position else None, times=times, impl=impl)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("update", "position"), KINDS)
def test_norm_of_a_sum(update, position, times, dtype, launches):
    """Widths that are a power of two, that aren't, and of one row a program; an odd number of points."""
    for batch, points, width in ((3, 5, 48), (1, 1, 3), (2, 3, 1280)):
        shapes = [(batch, points, width)] * (1 + update) + [(points, width)] * position
        inputs = [x * 3 for x in normal(7, *shapes)]
        assert_as_good_as_reference(partial(normed, update, position, times), inputs, dtype)
    assert len(launches) == 3


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 7), st.integers(1, 70), st.integers(0, 4))
def test_norm_is_the_formula_and_its_norm_that_of_small_rows(seed, batch, points, width, power):
    """Mean squares from 1 down to far below epsilon: there the norm of the norm is another."""
    x, update, position = normal(seed, (batch, points, width), (batch, points, width), (points, width))
    scale = 10.0 ** (-2 * power)
    x, update, position = ((t * scale).float() for t in (x, update, position))
    total, eps = x.double() + update.double() + position.double(), torch.finfo(torch.float32).eps
    for times in (1, 2):
        total = total / (total.square().mean(-1, keepdim=True) + eps).sqrt()
        got = sum_norm(x, update, position, times=times, impl="triton")
        torch.testing.assert_close(got.double(), total, rtol=2e-5, atol=1e-5 * float(total.abs().max()))


def test_norm_of_more_axes_and_of_what_is_not_dense():
    x, update, position = (t.half() for t in normal(8, (2, 3, 5, 16), (2, 3, 5, 16), (5, 16)))
    expected = sum_norm(x, update, position, impl="triton")
    flat = sum_norm(x.flatten(0, 1), update.flatten(0, 1), position, impl="triton").view(x.shape)
    assert torch.equal(expected, flat)
    turned = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (x, update, position)]
    assert torch.equal(sum_norm(*turned, impl="triton"), expected)
    assert torch.equal(sum_norm(x[0, 0], update[0, 0], position, impl="triton"), expected[0, 0])


def test_norm_of_zeros_and_of_no_numbers():
    x = torch.zeros(1, 4, 16, device=DEVICE)
    x[0, 1, 3], x[0, 2] = torch.nan, 1e18  # the sum of its squares is still a number
    for times in (1, 2):
        got = sum_norm(x, times=times, impl="triton")[0]
        assert (got[0] == 0).all()
        assert (got[3] == 0).all()
        assert got[1].isnan().all()
        torch.testing.assert_close(got[2], torch.ones(16, device=DEVICE))


def test_norm_with_gradients_is_that_of_pytorch(launches):
    inputs = [x.float().requires_grad_() for x in normal(9, (2, 3, 16), (2, 3, 16), (3, 16))]
    x, update, position = inputs
    got = torch.autograd.grad(sum_norm(*inputs, times=2, impl="triton").square().sum(), inputs)
    total = x + position + update
    for _ in range(2):
        total = torch.nn.functional.rms_norm(total, (16,))
    assert all(torch.equal(a, b) for a, b in zip(got, torch.autograd.grad(total.square().sum(), inputs), strict=True))
    assert not launches


# ---- rotation ----


@pytest.mark.parametrize(("tile", "programs"), [(64, 1), (512, 12), (8192, 1), (8192, 8), (8192, 2048)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "blocks", "size", "heads", "d"), [(1, 2, 64, 6, 16), (1, 3, 20, 1, 12), (2, 1, 7, 5, 2)]
)
def test_rotation_in_one_chunk_and_in_many(batch, blocks, size, heads, d, dtype, tile, programs, monkeypatch):
    """Angles are kept for all heads where a block is one tile, and else fetched again; heads may be dealt out."""
    monkeypatch.setattr(rotary, "_TILE", tile)
    monkeypatch.setattr(rotary, "_PROGRAMS", programs)
    x, angle = normal(10, (batch, blocks * size, heads, d), (blocks * size, d // 2))
    cos, sin = angle.cos().float(), angle.sin().float()
    for part in (0, 1):
        call = lambda x, impl, part=part: rotate(x, cos, sin, size, impl=impl)[part]  # noqa: E731
        assert_as_good_as_reference(call, [x], dtype)
    assert_as_good_as_reference(lambda x, impl: block_means(x, size, impl=impl), [x], dtype)


@given(st.integers(1, 64), st.integers(1, 5000))
def test_heads_are_dealt_evenly_and_no_finer_than_it_takes(heads, blocks):
    parts = rotary._parts(heads, blocks)
    assert heads % parts == 0
    assert parts == heads or parts * blocks >= rotary._PROGRAMS
    assert not [n for n in range(1, parts) if heads % n == 0 and n * blocks >= rotary._PROGRAMS]


def test_rotation_of_part_of_a_wider_row():
    """As the network has it: queries, keys and values side by side in one product."""
    (joined,), (angle,) = normal(11, (2, 24, 5 * 16 + 7)), normal(12, (24, 8))
    joined, cos, sin = joined.half(), angle.cos().float(), angle.sin().float()
    for first, heads in ((0, 3), (48, 2), (51, 1)):
        part = joined[..., first : first + 16 * heads].unflatten(-1, (heads, 16))
        expected = rotate(part.contiguous(), cos, sin, 8, impl="triton")
        for got, dense in zip(rotate(part, cos, sin, 8, impl="triton"), expected, strict=True):
            # a GPU fetches what begins elsewhere otherwise, and sums in another order
            torch.testing.assert_close(got, dense, rtol=0, atol=0.0 if DEVICE == "cpu" else 2e-3)


# ---- the network ----


def network(dims=(16, 24), **change):
    heads = {"num_heads": 2, "num_kv_heads": 1, "block_size": 8, "block_count": 2}
    stage = StageConfig(2, dims[0], local_size=16, encoder_depth=2, decoder_depth=1, **heads)
    coarse = StageConfig(1, dims[1], **heads | {"local_size": 12, "block_size": 4}, decoder_depth=0)
    config = MosaicConfig((stage,), coarse, num_variables=3, num_neighbors=4, **change)
    net = Mosaic(config, np.arange(6) * 60.0, np.linspace(-90, 90, 4))
    return net.init_weights(torch.Generator().manual_seed(22)).to(DEVICE)


@pytest.mark.parametrize("change", [{}, {"branches": ("local", "selected")}, {"block_order": "rows"}], ids=str)
def test_the_network_is_that_of_the_steps(change, launches):
    net = network(**change)
    inputs = [x.float() for x in normal(13, (1, 1, 2, 6, 4, 3), (1, 2), (1, 1, 32))]
    net.impl = "reference"
    expected = net(*inputs).detach()
    with torch.inference_mode():
        torch.testing.assert_close(net(*inputs), expected, rtol=1e-5, atol=1e-5)
        assert not launches
        net.impl = "triton"
        torch.testing.assert_close(net(*inputs), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    found = [(name, options.get("GATED")) for name, options in launches]
    blocks, whole = 2 + 1 + 1, "branches" not in change
    # local attention is this kernel too where it is asked for by name, and made beside the selected one
    assert found.count(("_forward", True)) == blocks * whole
    assert found.count(("_forward", False)) == 2 * blocks * (not whole)
    assert found.count(("_combine", None)) == 0
    # before each attention, before each feed-forward layer, since no tile fits such small ones, three of the input and
    # the output, one way down, one up, and before the way back
    assert found.count(("_sum_norm", None)) == 2 * blocks + 3 + 2 + 1
    assert found.count(("_select", None)) == blocks


@pytest.mark.parametrize("change", [{}, {"branches": ("local", "selected")}, {"block_order": "rows"}], ids=str)
def test_the_network_in_eight_bits_is_near_that_in_more(change, launches):
    """The error is of the size of the rounding; and switched off it is gone."""
    net = network(dims=(32, 48), **change)
    inputs = [x.float() for x in normal(19, (1, 1, 2, 6, 4, 3), (1, 2), (1, 1, 32))]
    net.impl = "reference"
    with torch.inference_mode():
        expected = net(*inputs)
        got = net.use_float8()(*inputs)
        assert 0.001 <= (got - expected).norm() / expected.norm() <= 0.12
        if not change:  # the interpreter is slow
            net.keep_float8(net)
            net.impl = "triton"
            assert 0.001 <= (net(*inputs) - expected).norm() / expected.norm() <= 0.12
            net.impl = "reference"
        assert torch.equal(net.use_float8(False)(*inputs), expected)


@pytest.mark.parametrize("change", [{}, {"branches": ("local", "selected")}, {"block_order": "rows"}], ids=str)
def test_products_that_add_give_the_sums(change, monkeypatch):
    """With skips, which hold what the products add to; rounded once less in 16 bits; never with gradients."""
    net, added, kept = network(**change), [], torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda x, *args: added.append(x.dtype) or kept(x, *args))
    inputs = [x.float() for x in normal(20, (1, 2, 2, 6, 4, 3), (1, 2), (1, 2, 32))]
    before = [x.clone() for x in inputs]
    net.impl = "reference"
    with torch.inference_mode():
        exact = copy.deepcopy(net).double()(*(x.double() for x in inputs))
    added.clear()
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            errors = []
            for gradients in (True, False):  # with gradients nothing is added where it lies
                with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32), torch.set_grad_enabled(gradients):
                    errors.append(float((net(*inputs) - exact).detach().norm() / exact.norm()))
                # attention and feed-forward of each block
                assert added == [dtype] * 2 * 4 * (not gradients)
                added.clear()
            assert errors[1] <= max(1.5 * errors[0], 4 * torch.finfo(torch.float32).eps)
        if not change:  # the interpreter is slow
            net.impl = "triton"
            torch.testing.assert_close(net(*inputs).double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
            assert len(added) == 8
            net.impl = "reference"
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_a_stage_without_blocks_hands_on_what_it_got():
    net = network()
    bare = network()
    bare.decoder_stages[0].blocks = torch.nn.ModuleList()
    bare.load_state_dict({n: p for n, p in net.state_dict().items() if not n.startswith("decoder_stages")})
    inputs = [x.float() for x in normal(14, (1, 1, 2, 6, 4, 3), (1, 2), (1, 1, 32))]
    outs = []
    for impl in ("triton", "reference"):
        bare.impl = impl
        with torch.inference_mode():
            outs.append(bare(*inputs))
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)


# ---- around it ----


def test_they_stand_in_a_compiled_graph():
    """As one operation each, whose result's shape, order in memory and dtype are known without running it."""
    inputs, picked = branches(15, 1, 1, 2, 3, 16, 16, 2)
    q, k, v, *rest = (x.half() for x in inputs)
    attention = (q, k, v, picked.int(), *rest, 16, 0.25)
    norm = (rest[1], rest[1], None, 2, 1e-6)
    made_here = (*attention[:5], None, *attention[6:], 1)
    operations = [(selected._combine_selected, attention), (selected._combine_selected, made_here)]
    operations += [(gates._sum_norm_op, norm), (gates._inverse_root_op, (rest[1], 1e-6))]
    for op, args in operations:
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))
        compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            assert torch.equal(compiled(*args), op(*args))


def test_they_run_on_the_device_of_their_tensors(monkeypatch):
    """Several GPUs of one process, each with a thread of its own: the current one may be another."""
    inputs, picked = branches(16, 1, 1, 2, 3, 16, 16, 2)
    half = [x.half() for x in inputs]
    entered, kept = [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: entered.append(x.device) or kept(x))
    summed(picked, 16, *half, impl="triton")
    sum_norm(half[0], impl="triton")
    assert entered == [half[0].device] * 2


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: combine_selected(*x[:3], x[6], 16, x[3][..., :2], *x[4:6]), "branches and gate don't belong"),
        (lambda x: combine_selected(*x[:3], x[6], 16, *x[3:5], x[5][:, :1]), "compressed has other blocks"),
        (lambda x: combine_selected(*x[:3], x[6], 7, *x[3:6]), "block_size does not divide"),
        (lambda x: combine_selected(*x[:3], x[6], 16, x[3], 20, x[5]), "size does not divide the points"),
        (lambda x: combine_selected(*x[:3], x[6], 16, *x[3:6], impl="nonsense"), "does not exist"),
        (lambda x: sum_norm(x[0], x[1]), "update has another shape"),
        (lambda x: sum_norm(x[0], position=x[0]), "position has another shape"),
        (lambda x: sum_norm(x[0][0, 0, 0]), "another number of axes"),
        (lambda x: sum_norm(x[0], times=3), "times can't be that many"),
        (lambda x: sum_norm(x[0], x[0].half(), impl="triton"), "all alike"),
    ],
)
def test_what_does_not_belong_together(call, text):
    inputs, picked = branches(17, 1, 1, 2, 3, 16, 16, 2)
    with pytest.raises(ArgumentError, match=text):
        call([*(x.float() for x in inputs), picked])


COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xmosaic.kernels import gates, rotary, selected

def made(kernel, fixed, known=(), **options):
    kinds = dict.fromkeys(["lse_ptr", "total_ptr", "cos_ptr", "sin_ptr"], "*fp32") | {"idx_ptr": "*i32", "eps": "fp32"}
    kinds |= dict(known) | dict.fromkeys(fixed, "constexpr")
    names = kernel.arg_names
    kind = lambda n: kinds.get(n, "*bf16" if n.endswith("_ptr") else "fp32" if n.startswith("scale") else "i32")
    # sizes of the network: tensors and rows begin at whole cache lines, but for the gate
    aligned = [n for n in names if re.search("_ptr$|_[bhp]$|^points$", n) and n not in fixed and n != "logits_ptr"]
    hints = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned if "tensordesc" not in kind(n)}
    values = {(names.index(n),): v for n, v in fixed.items()}
    source = ASTSource(kernel, {n: kind(n) for n in names}, values, hints)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

tiles = selected._tiles("forward", 2, 64, 512, 128, True)
fixed = dict(GROUP=4, SIZE=128, D=64, WIDTH=64, PRECISION="ieee", EXACT=False, SAMPLE=tiles.sample, TMA=tiles.tma)
fixed |= dict(M=tiles.rows, N=tiles.keys)
known = dict.fromkeys(["k_ptr", "v_ptr"], f"tensordesc<bf16[1,1,{tiles.keys},64]>")
plain, sums = (
    made(
        selected._forward,
        fixed | dict(GATED=gated, NEAR=8 * gated),
        known,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    for gated in (False, True)
)
print(plain.metadata.shared == sums.metadata.shared, ".local" not in sums.asm["ptx"])

fixed = dict(D=768, WIDTH=1024, ROWS=2, UPDATE=True, POSITION=True, TWICE=True)
norm = made(gates._sum_norm, fixed, num_warps=1).asm["ptx"]
# 16 bytes at a time, and no warp waits for another
print(norm.count("ld.global") == norm.count("ld.global.v4") > 0, norm.count("st.global") == norm.count("st.global.v4"))
print("bar.sync" not in norm)

fixed = dict(HEADS=12, SIZE=128, CHUNK=128, D=64, WIDTH=64, ROTATE=True)
turn, alone = (
    made(rotary._rotate, fixed | more, num_warps=rotary._WARPS).asm["ptx"]
    for more in (dict(PARTS=1, STAGES=rotary._STAGES), dict(PARTS=12, STAGES=1))
)
# angles once, what is turned in the background, 16 bytes at a time
print(turn.count("ld.global") == turn.count("ld.global.v4") == 8, "cp.async.cg" in turn)
# a single head is fetched with its angles, without a loop
print(alone.count("ld.global") == alone.count("ld.global.v4") == 12, "cp.async" not in alone, "bra" not in alone)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for GPUs on Linux alone")
def test_they_compile_for_hopper_into_wide_loads(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["True"] * 10
