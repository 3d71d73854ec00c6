"""Is the gate inside its product the gate after it, to twice the rounding, at any size, and only where no gradient is?

On a GPU of another kind than Hopper, and wherever the tiles don't fit, the two steps run: right all the same. Triton's
interpreter knows no bfloat16 products: those are checked by ``python tests/benchmarks/kernels.py check`` on a GPU.
"""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import said_by_triton

from xmosaic.errors import ArgumentError
from xmosaic.kernels import (
    Rows,
    gate_bound,
    gated_product,
    gated_rows,
    multiply_rows,
    quantise_rows,
    swiglu,
)
from xmosaic.kernels.rows import product_bound
from xmosaic.model import FeedForward, StageConfig

triton = pytest.importorskip("triton", reason="Triton is not installed here")

from xmosaic.kernels import gated  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE) for s in shapes]


def case(seed, batch, points, dim, hidden):
    x, weight, shift = normal(seed, (batch, points, dim), (2 * hidden, dim), (batch, hidden))
    return x, weight * dim**-0.5, shift


@pytest.fixture
def launches(monkeypatch):
    """Small tiles, so that small cases have many; and the arguments of every launch of the kernel."""
    monkeypatch.setattr(gated, "_TILES", gated._Tiles(16, 16, 16, 4, 2))
    seen, kernel = [], gated._gated

    class Watched:
        def __getitem__(self, grid):
            return lambda *args, **options: (seen.append((grid, options)), kernel[grid](*args, **options))[1]

    monkeypatch.setattr(gated, "_gated", Watched())
    return seen


def assert_as_good_as_two_steps(inputs, dtype, kernel_runs, launches, normed=False):
    """Error against float64 at most twice that of the product and the gate in the same precision; all is written."""
    rounded = [None if x is None else x.to(dtype) for x in inputs]
    wide = [None if x is None else x.double() for x in rounded]
    if normed:  # float64's own norm has another epsilon
        wide[0] = F.rms_norm(wide[0], wide[0].shape[-1:], eps=torch.finfo(torch.float32).eps)
    exact = gated_product(*wide, impl="reference")
    before = len(launches)
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        with torch.no_grad():
            got = gated_product(*rounded, normed=normed, impl="triton")
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(launches) - before == kernel_runs
    other = gated_product(*rounded, normed=normed, impl="reference")
    assert got.dtype == other.dtype == dtype
    assert got.shape == other.shape
    error, allowed = ((x.double() - exact).norm() for x in (got, other))
    assert error <= max(2 * allowed, 4 * torch.finfo(dtype).eps * exact.norm())


HOPPER = DEVICE == "cpu" or torch.cuda.get_device_capability()[0] == 9
# whole tiles; a last tile of rows, of outputs, of depth that is not full; samples of several tiles; many bands
FITTING = [(2, 32, 32, 32), (1, 39, 16, 16), (1, 16, 16, 40), (1, 16, 56, 16), (3, 48, 24, 24), (1, 160, 16, 32)]
# fewer than a tile of each axis, rows of other than 16 bytes, and a tile of two samples
OTHERS = [
    (1, 7, 16, 16),
    (1, 16, 8, 16),
    (1, 16, 16, 8),
    (1, 16, 20, 16),
    (1, 16, 16, 20),
    (2, 8, 3, 5),
    (3, 21, 16, 24),
]


@pytest.mark.parametrize("shape", FITTING)
@pytest.mark.parametrize("shifted", [True, False])
def test_tiles_whole_and_torn(shape, shifted, launches):
    x, weight, shift = case(1, *shape)
    assert_as_good_as_two_steps((x, weight, shift if shifted else None), torch.float16, int(HOPPER), launches)


@pytest.mark.parametrize("shape", FITTING + OTHERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_of_the_norm_that_is_never_written(shape, dtype, launches):
    """Rows of all sizes, and one of next to nothing, where the norm's epsilon counts."""
    x, weight, shift = case(16, *shape)
    x = x * torch.logspace(-3, 3, shape[1], dtype=x.dtype, device=DEVICE)[:, None]
    x[0, 1] *= 1e-3
    runs = int(HOPPER and shape in FITTING and dtype == torch.float16)
    assert_as_good_as_two_steps((x, weight, shift), dtype, runs, launches, normed=True)


def test_gradients_of_the_norm_are_those_of_the_steps(launches):
    inputs = [t.float().requires_grad_() for t in case(17, 2, 32, 32, 32)]
    out = gated_product(*inputs, normed=True, impl="triton")
    expected = swiglu(F.linear(F.rms_norm(inputs[0], (32,)), inputs[1]), inputs[2], impl="reference")
    weight = torch.linspace(-1, 1, out.numel(), device=DEVICE).view(out.shape)
    for a, b in zip(*(torch.autograd.grad(o, inputs, weight) for o in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not launches


@pytest.mark.parametrize("shape", FITTING[:4])
def test_the_gate_of_a_tangent(shape, launches, monkeypatch):
    """The hardware's own on a GPU, and what it stands for in the interpreter."""
    monkeypatch.setattr(gated, "_TILES", gated._TILES._replace(tanh=True))
    assert_as_good_as_two_steps(case(14, *shape), torch.float16, int(HOPPER), launches)
    x, weight, shift = case(15, *shape)
    assert_as_good_as_two_steps((20 * x, weight, shift), torch.float16, int(HOPPER), launches)
    assert all(options["TANH"] == (1 if DEVICE == "cuda" else 2) for _, options in launches)


def test_tiles_of_several_samples_without_a_shift(launches):
    assert_as_good_as_two_steps((*case(12, 3, 21, 16, 24)[:2], None), torch.float16, int(HOPPER), launches)


@pytest.mark.parametrize("shape", OTHERS)
def test_what_does_not_fit_takes_two_steps(shape, launches):
    assert_as_good_as_two_steps(case(2, *shape), torch.float16, 0, launches)


@pytest.mark.parametrize("shape", [FITTING[0], FITTING[4], OTHERS[-1]])
def test_float32_stays_float32(shape, launches):
    assert_as_good_as_two_steps(case(3, *shape), torch.float32, 0, launches)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 70), st.integers(1, 7), st.integers(1, 7))
def test_any_size_is_the_two_steps(seed, batch, points, dim, hidden):
    kept, gated._TILES = gated._TILES, gated._Tiles(16, 16, 16, 4, 2)
    try:
        assert_as_good_as_two_steps(case(seed, batch, points, 8 * dim, 8 * hidden), torch.float16, 0, [])
    finally:
        gated._TILES = kept


@pytest.mark.parametrize("band", [1, 2, 8])
def test_order_of_tiles_does_not_matter(band, launches, monkeypatch):
    x, weight, shift = (t.half() for t in case(4, 1, 90, 16, 48))
    expected = gated_product(x, weight, shift, impl="triton")
    monkeypatch.setattr(gated, "_TILES", gated._TILES._replace(band=band))
    assert torch.equal(gated_product(x, weight, shift, impl="triton"), expected)


def test_a_shift_reaches_its_own_sample_alone(launches):
    x, weight, shift = (t.half() for t in case(5, 3, 32, 16, 16))
    plain = gated_product(x, weight, impl="triton")
    shift[0], shift[2] = 0, 0
    got = gated_product(x, weight, shift, impl="triton")
    assert torch.equal(got[::2], plain[::2])
    assert (got[1] != plain[1]).float().mean() > 0.9
    assert len(launches) == 2 * HOPPER


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")  # numpy's, of the interpreter
def test_large_small_and_no_numbers(launches):
    """SiLU of far negative ones is nothing, of far positive ones the identity; NaN stays where it is."""
    x = torch.zeros(1, 16, 16, device=DEVICE, dtype=torch.float16)
    x[0, :, 0] = torch.linspace(-300, 300, 16)
    x[0, :, 1] = 1
    weight = torch.zeros(32, 16, device=DEVICE, dtype=torch.float16)
    weight[:16, 0], weight[16:, 1] = 1, 1
    # of one output alone, the neighbour of those that share its special instructions
    weight[5, 2], x[0, 3, 2] = 1, torch.nan
    got = gated_product(x, weight, impl="triton")[0]
    expected = F.silu(x[0, :, :1].float()).expand(16, 16).clone()
    # a product is a sum over all inputs, and nothing times NaN is NaN
    assert got.isnan().any(1).nonzero().flatten().tolist() == [3]
    expected[3] = torch.nan
    torch.testing.assert_close(got.float(), expected, rtol=1e-3, atol=1e-6, equal_nan=True)
    assert len(launches) == HOPPER


@pytest.mark.skipif(
    DEVICE == "cpu" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9),
    reason="the interpreter of Triton before 3.9 lets NaN through tl.minimum; GPUs don't",
)
def test_no_number_in_a_shift_stays_in_its_output(launches):
    x, weight, shift = (t.half() for t in case(11, 1, 16, 16, 16))
    expected = gated_product(x, weight, shift, impl="triton")
    shift[0, 5] = torch.nan
    got = gated_product(x, weight, shift, impl="triton")
    assert got[..., 5].isnan().all()
    others = [i for i in range(16) if i != 5]
    assert torch.equal(got[..., others], expected[..., others])


def test_memory_order_and_place_do_not_matter(launches):
    x, weight, shift = (t.half() for t in case(6, 2, 32, 16, 32))
    expected = gated_product(x, weight, shift, impl="triton")
    moved = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in (x, weight, shift)]
    turned = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (x, weight, shift)]
    for other in (moved, turned):
        assert torch.equal(gated_product(*other, impl="triton"), expected)


def test_gradients_are_those_of_the_two_steps(launches):
    inputs = [t.float() for t in case(7, 2, 32, 16, 16)]

    def gradients(function):
        leaves = [t.clone().requires_grad_() for t in inputs]
        function(*leaves).square().sum().backward()
        return [t.grad for t in leaves]

    expected = gradients(lambda x, w, s: swiglu(F.linear(x, w), s, impl="reference"))
    for impl in ("triton", "reference"):
        for a, b in zip(gradients(partial(gated_product, impl=impl)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not launches


@pytest.mark.parametrize("noise", [0, 8])
def test_the_layer_takes_it_without_gradients_alone(noise, launches):
    stage = StageConfig(2, 16, 2, 1, local_size=16, block_size=8, block_count=2)
    layer = FeedForward(stage, noise).to(DEVICE, torch.float16)
    x, z = (t.half() for t in normal(8, (2, 48, 16), (2, 8)))
    with_gradients = layer(x, z, impl="triton")
    assert with_gradients.requires_grad
    assert not launches
    with torch.inference_mode():
        got = layer(x, z, impl="triton")
    assert len(launches) == HOPPER
    torch.testing.assert_close(got, with_gradients.detach(), rtol=1e-2, atol=1e-2 * float(got.abs().max()))


def test_autocast_narrows_all_inputs(launches):
    x, weight, shift = (t.float() for t in case(9, 2, 32, 16, 32))
    with torch.no_grad(), torch.autocast(DEVICE, torch.float16):
        got = gated_product(x, weight, shift, impl="triton")
        assert gated_product(x, weight, shift, impl="reference").dtype == torch.float16
    assert torch.equal(got, gated_product(x.half(), weight.half(), shift.half(), impl="triton"))
    assert len(launches) == 2 * HOPPER


def test_it_stands_in_a_compiled_graph(launches):
    """As one operation, whose result's shape and dtype are known without running it."""
    x, weight, shift = (t.half() for t in case(10, 2, 32, 16, 32))
    torch.library.opcheck(gated._gated_op, (x, weight, shift), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(gated._gated_op, (x, weight, None), test_utils=("test_schema", "test_faketensor"))
    compiled = torch.compile(gated._gated_op, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x, weight, shift), gated_product(x, weight, shift, impl="triton"))


def test_it_runs_on_the_device_of_its_tensors(launches, monkeypatch):
    """Several GPUs of one process, each with a thread of its own: the current one may be another."""
    x, weight, shift = (t.half() for t in case(13, 1, 16, 16, 16))
    entered, kept = [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda t: entered.append(t.device) or kept(t))
    gated_product(x, weight, shift, impl="triton")
    assert entered == [x.device]


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (((1, 6, 4), (6, 5), None), "x and weight don't belong together"),
        (((1, 6, 4), (5, 4), None), "x and weight don't belong together"),
        (((6, 4), (6, 4), None), "x and weight don't belong together"),
        (((2, 6, 4), (6, 4), (1, 3)), "shift has another shape"),
    ],
)
def test_shapes_that_do_not_belong_together(shapes, text):
    with pytest.raises(ArgumentError, match=text):
        gated_product(*(None if s is None else torch.ones(s) for s in shapes))
    with pytest.raises(ArgumentError, match="does not exist"):
        gated_product(torch.ones(1, 6, 4), torch.ones(6, 4), impl="nonsense")


COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xmosaic.kernels import gated

def made(kernel, tiles, dtype):
    names = kernel.arg_names
    fixed = dict(DIM=768, HIDDEN=3072, M=tiles.rows, N=tiles.cols, K=tiles.depth, BAND=tiles.band)
    fixed |= dict(SHIFT=True, TANH=int(tiles.tanh)) | (dict(SCALED=True) if kernel is gated._gated else {})
    blocks = dict(x_ptr=f"{tiles.rows},{tiles.depth}", weight_ptr=f"2,{tiles.cols},{tiles.depth}")
    blocks |= dict(out_ptr=f"{tiles.rows},{tiles.cols}")
    kinds = {n: f"tensordesc<{dtype}[{b}]>" for n, b in blocks.items()}
    kinds |= dict(shift_ptr="*bf16", rows="i32", points="i32", growth_ptr="*fp32")
    kinds |= dict.fromkeys(["row_scale_ptr", "col_scale_ptr"], "*fp32") | dict.fromkeys(fixed, "constexpr")
    source = ASTSource(kernel, {n: kinds[n] for n in names}, {(names.index(n),): v for n, v in fixed.items()})
    options = dict(num_warps=tiles.warps, num_stages=tiles.stages)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

kernels = {"f32.bf16.bf16": (gated._gated, gated._TILES, "bf16")}
kernels |= {"f32.e4m3.e4m3": (gated._gated_rows, gated._ROWS_TILES, "fp8e4nv")}
for unit, args in kernels.items():
    ptx, whole = (compiled := made(*args)).asm["ptx"], compiled.asm["ttgir"]
    for word in (unit, "wgmma.mma_async", "cp.async.bulk.tensor.3d.shared", "cp.async.bulk.tensor.2d.global"):
        print(word in ptx)
    # a multiprocessor's shared memory, of which a program has all but a kilobyte
    print(compiled.metadata.shared + 1024 <= 228 * 1024)
    # no tile goes through shared memory; the scales of its rows may
    print(".local" not in ptx and not re.search(r"convert_layout .*tensor<\\d+x\\d+x", whole))
    print(ptx.count("tanh.approx.f32") == 64, "ex2" not in ptx and "rsqrt" not in ptx)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for GPUs on Linux alone")
def test_it_compiles_for_hopper_and_uses_its_matrix_units(tmp_path):
    said = said_by_triton(COMPILE, tmp_path)
    assert said.split() == ["True"] * 16


# ---- in 8 bits ----


@pytest.fixture
def row_launches(monkeypatch):
    """As `launches`, of the kernel of rows in 8 bits."""
    monkeypatch.setattr(gated, "_ROWS_TILES", gated._Tiles(16, 16, 32, 4, 2, programs=2))
    seen, kernel = [], gated._gated_rows

    class Watched:
        def __getitem__(self, grid):
            return lambda *args, **options: (seen.append(grid), kernel[grid](*args, **options))[1]

    monkeypatch.setattr(gated, "_gated_rows", Watched())
    return seen


def row_case(seed, batch, points, dim, hidden):
    x, weight, shift = (t.float() for t in case(seed, batch, points, dim, hidden))
    x = F.rms_norm(x, (dim,))
    return quantise_rows(x, impl="reference"), quantise_rows(weight, impl="reference"), weight, shift


def bounds(weight, shift):
    bound = gate_bound(weight, shift is not None)
    return bound.whole, bound.growth(shift)


def meant(rows, bound):
    return rows.values.double() * rows.scale * bound


@pytest.mark.parametrize(
    "shape", [(2, 32, 64, 32), (1, 39, 32, 16), (3, 48, 48, 48), (1, 160, 32, 32), (2, 21, 32, 16)]
)
@pytest.mark.parametrize(("shifted", "tanh"), [(True, False), (False, False), (True, True)])
def test_rows_are_those_of_the_formula(shape, shifted, tanh, row_launches, monkeypatch):
    """Rounding included, but for where sums of float32 in another order round to the other neighbour."""
    monkeypatch.setattr(gated, "_ROWS_TILES", gated._ROWS_TILES._replace(tanh=tanh))
    x, first, weight, shift = row_case(20, *shape)
    shift = shift if shifted else None
    bound, growth = bounds(weight, shift)
    got = gated_rows(x, first, bound, growth, shift, impl="triton")
    assert len(row_launches) == (HOPPER and shape[1] != 21)
    other = gated_rows(x, first, bound, growth, shift, impl="reference")
    assert (got.values.dtype, got.values.shape) == (torch.float8_e4m3fn, (*shape[:2], shape[3]))
    torch.testing.assert_close(got.scale, other.scale)
    a, b = got.values.float(), other.values.float()
    # Triton's interpreter rounds up to the next power of two and forgets to carry, and cuts the smallest numbers off
    power = (b.abs().log2() % 1 == 0) & (a == b / 2) & (DEVICE == "cpu")
    # a GPU rounds a product by itself to bfloat16
    between = DEVICE == "cuda" and not row_launches
    assert between or (((a - b).abs() <= b.abs() / 8 + (2**-6 if DEVICE == "cpu" else 2**-9)) | power).all()
    assert (a == b).float().mean() > 0.9
    plain = (x.values.double() * x.scale) @ (first.values.double() * first.scale).T
    exact = swiglu(plain, None if shift is None else shift.double(), impl="reference")
    assert (meant(got if DEVICE == "cuda" else other, bound) - exact).norm() <= 0.04 * exact.norm()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.floats(-4, 4), st.booleans())
def test_no_gated_output_passes_its_bound(seed, dim, power, aligned):
    """Not even where a row is the weights of an output; and no bound is larger than Cauchy's inequality needs."""
    x, weight, shift = (t.float() for t in case(seed, 2, 8, 16 * dim, 16))
    if aligned:
        weight[16:] = weight[:16]
        x[:, :8] = weight[:8]
    x, shift = F.rms_norm(x, x.shape[-1:]), shift * 10**power
    bound, growth = bounds(weight, shift)
    exact = swiglu(x.double() @ weight.double().T, shift.double(), impl="reference")
    assert (exact.abs() <= bound * growth.view(-1, 1, 1)).all()
    assert (product_bound(weight) <= 1.13 * weight.norm(dim=1) * (16 * dim) ** 0.5).all()
    rows = gated_rows(
        quantise_rows(x, impl="reference"),
        quantise_rows(weight, impl="reference"),
        bound,
        growth,
        shift,
        impl="reference",
    )
    assert (rows.values.float().abs() < 448).all()


def test_rows_of_no_numbers_and_outputs_without_weights(row_launches):
    x, _, weight, shift = row_case(21, 1, 32, 32, 32)
    weight[3], weight[32 + 5] = 0, 0
    values = (x.values.float() * x.scale).clone()
    values[0, 4, 1], values[0, 9, 2] = torch.nan, torch.inf
    x, first = quantise_rows(values, impl="reference"), quantise_rows(weight, impl="reference")
    bound, growth = bounds(weight, shift)
    # Triton's interpreter makes numbers of NaN
    for impl in ("triton", "reference") if DEVICE == "cuda" else ("reference",):
        got = gated_rows(x, first, bound, growth, shift, impl=impl).values.float()
        assert got.isnan().any(-1)[0].nonzero().flatten().tolist() == [4, 9]
        good = [i for i in range(32) if i not in (4, 9)]
        assert (got[0, good][:, 5] == 0).all()
        assert (got[0, good][:, 3] != 0).any()  # what is left is the shift


def test_rows_of_a_sample_do_not_know_the_others(row_launches):
    x, first, weight, shift = row_case(22, 3, 16, 32, 16)
    shift[1] *= 50
    bound, growth = bounds(weight, shift)
    together = gated_rows(x, first, bound, growth, shift, impl="triton")
    for i in range(3):
        one = bounds(weight, shift[i : i + 1])
        part = Rows(x.values[i : i + 1], x.scale[i : i + 1])
        alone = gated_rows(part, first, *one, shift[i : i + 1], impl="triton")
        assert torch.equal(alone.values.float(), together.values[i : i + 1].float())
        assert torch.equal(alone.scale, together.scale[i : i + 1])


def test_the_layer_in_eight_bits_is_as_exact_with_bounds_as_with_largest_numbers(row_launches):
    stage = StageConfig(2, 64, 2, 1, local_size=16, block_size=8, block_count=2)
    layer, impl = FeedForward(stage, 8).to(DEVICE), "triton" if DEVICE == "cuda" else "reference"
    x, z = (t.float() for t in normal(23, (2, 48, 64), (2, 8)))
    x = F.rms_norm(x, (64,))
    with torch.inference_mode():
        exact = layer.double()(x.double(), z.double(), "reference")
        layer.float()
        rows = quantise_rows(x, impl=impl)
        # each row of the gate with a scale of its own, as wide as its largest needs
        ab = multiply_rows(rows, quantise_rows(layer.w13.weight, impl=impl), torch.float32, impl=impl)
        inner = quantise_rows(swiglu(ab, layer.noise_bias(z)), impl=impl)
        other = multiply_rows(inner, quantise_rows(layer.w2.weight, impl=impl), torch.float32, impl=impl)
        errors = [float((got - exact).norm() / exact.norm()) for got in (layer.from_rows(rows, z, impl), other)]
        layer.from_rows(quantise_rows(x, impl="triton"), z, "triton")
    assert len(row_launches) == HOPPER * (1 + (DEVICE == "cuda"))
    assert 0.01 <= errors[0] <= 1.1 * errors[1] <= 0.1


def test_rows_stand_in_a_compiled_graph(row_launches):
    """Their schema is not checked: that needs arithmetic, which PyTorch lacks for 8 bits on a CPU."""
    x, first, weight, shift = row_case(24, 2, 16, 32, 16)
    growth = 1 / bounds(weight, shift)[1]
    for one in (shift, None):
        args = (x.values, first.values, x.scale, first.scale, growth, one)
        torch.library.opcheck(gated._gated_rows_op, args, test_utils="test_faketensor")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bound": torch.ones(8)}, "bound and growth don't belong"),
        ({"growth": torch.ones(3)}, "bound and growth don't belong"),
        ({"shift": torch.ones(1, 8)}, "shift has another shape"),
        ({"weight": Rows(torch.ones(32, 32).to(torch.float8_e4m3fn), torch.ones(32, 1))}, "can't be multiplied"),
    ],
)
def test_rows_that_do_not_belong_together(change, text):
    x, weight = (quantise_rows(torch.ones(*s), impl="reference") for s in ((2, 4, 16), (32, 16)))
    inputs = {"x": x, "weight": weight, "bound": torch.ones(16), "growth": torch.ones(2)} | change
    with pytest.raises(ArgumentError, match=text):
        gated_rows(**inputs, impl="reference")
