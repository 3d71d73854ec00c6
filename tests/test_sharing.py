"""Does neighbour attention by patches, whose targets share what they read, give what each target by itself does?"""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import said_by_triton

from xmosaic.kernels import Shared, neighbor_attention, share_neighbors
from xmosaic.model import Mosaic, MosaicConfig, StageConfig

pytest.importorskip("triton", reason="Triton is not installed here")

from xmosaic.kernels import patches as shared

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def case(seed, batch, sources, heads, d, targets, k):
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(targets, k, 3, generator=generator)
    table = torch.stack([torch.randperm(sources, generator=generator)[:k] for _ in range(targets)])
    values = [torch.randn(batch, sources, heads, n, generator=generator).half() for n in (3, d)]
    return [x.to(DEVICE) for x in (torch.nn.functional.normalize(direction, dim=-1), *values, table)]


def links(patches, targets):
    """Target, source and direction of every link of the tables, sorted."""
    piece, row, slot = np.nonzero((patches.links.cpu().numpy()[:, None, :] >> np.arange(16)[None, :, None]) & 1)
    patch = np.searchsorted(patches.first.cpu().numpy(), piece, side="right") - 1
    target = patches.order.cpu().numpy()[patch * 16 + row]
    assert set(target) == set(range(targets))
    found = np.column_stack(
        [target, patches.source.cpu().numpy()[piece, slot], patches.direction.cpu().numpy()[piece, :, row, slot]]
    )
    return found[np.lexsort(found.T[1::-1])]


@given(
    seed=st.integers(0, 2**31),
    targets=st.integers(1, 70),
    sources=st.integers(1, 150),
    k=st.integers(1, 30),
)
@settings(max_examples=40, deadline=None)
def test_the_patches_hold_every_link_once(seed, targets, sources, k):
    direction, _, _, table = case(seed, 1, sources, 1, 4, targets, min(k, sources))
    expected = np.column_stack(
        [
            np.repeat(np.arange(targets), table.shape[1]),
            table.flatten().cpu(),
            direction.flatten(0, 1).cpu(),
        ]
    )
    found = links(share_neighbors(direction, table), targets)
    assert np.array_equal(found, expected[np.lexsort(expected.T[1::-1])])


# several pieces and one, targets that don't fill a patch, heads that are no power of two, more heads than programs
@pytest.mark.parametrize(
    "shape", [(2, 200, 3, 64, 41, 12), (1, 33, 5, 16, 16, 5), (3, 90, 2, 20, 7, 24), (1, 1, 1, 8, 3, 1)]
)
def test_error_is_at_most_that_of_each_target_by_itself(shape):
    direction, projection, value, table = case(1, *shape)
    patches = share_neighbors(direction, table)
    exact = neighbor_attention(
        direction.double(), projection.double(), value.double(), table, scale=2.0, impl="reference"
    )
    with torch.no_grad():
        got = neighbor_attention(direction, projection, value, table, scale=2.0, patches=patches, impl="triton")
    other = neighbor_attention(direction, projection, value, table, scale=2.0, impl="reference")
    error, allowed = ((x.double() - exact).norm() for x in (got, other))
    assert got.dtype == torch.float16 and error <= max(2 * allowed, 4e-3 * exact.norm())
    with torch.no_grad():
        again = neighbor_attention(direction, projection, value, table, scale=2.0, patches=patches, impl="triton")
    assert torch.equal(got, again)


def test_large_logits_and_memory_order(monkeypatch):
    direction, projection, value, table = case(2, 2, 180, 4, 16, 40, 20)
    patches = share_neighbors(direction, table)
    projection *= 100
    joined = torch.cat([value.flatten(2), projection.flatten(2)], -1)
    strided = joined[..., :64].unflatten(-1, (4, 16)), joined[..., 64:].unflatten(-1, (4, 3))
    exact = neighbor_attention(
        direction.double(), projection.double(), value.double(), table, scale=1.0, impl="reference"
    )
    for v, p in ((value, projection), strided):
        got = shared.neighbor_attention(patches, p, v, len(table), 1.0)
        torch.testing.assert_close(got.double(), exact, rtol=2e-3, atol=2e-3)


def test_they_are_taken_without_gradients_in_16_bits_alone(monkeypatch):
    direction, projection, value, table = case(3, 1, 40, 2, 16, 20, 6)
    patches = share_neighbors(direction, table)
    taken = []
    monkeypatch.setattr(shared, "neighbor_attention", lambda *a: taken.append(a))

    def call(*inputs, impl="triton"):
        neighbor_attention(direction, *inputs, table, scale=1.0, patches=patches, impl=impl)
        return len(taken)

    assert call(projection, value, impl="reference") == 0
    assert call(projection.float(), value.float()) == 0
    assert call(projection, value.clone().requires_grad_()) == 0
    assert call(projection, value) == 1


def test_a_neighbour_that_is_there_twice_is_not_shared():
    direction, _, _, table = case(4, 1, 9, 1, 4, 5, 4)
    assert share_neighbors(direction, table) is not None
    table[3, 1] = table[3, 2]
    assert share_neighbors(direction, table) is None


def test_patches_are_made_once_and_copies_begin_anew(monkeypatch):
    direction, _, _, table = case(5, 1, 30, 1, 4, 20, 6)
    kept = Shared()
    first = kept.of(direction, table)
    assert kept.of(direction, table) is first
    assert copy.deepcopy(kept).patches is None
    moved = table.clone()
    assert kept.of(direction, moved) is not first


def test_the_layers_take_them_where_there_is_no_way_back():
    heads = {"num_heads": 2, "num_kv_heads": 1, "local_size": 4, "block_size": 4, "block_count": 2}
    config = MosaicConfig(
        (StageConfig(nside=2, dim=16, **heads),),
        StageConfig(nside=1, dim=16, decoder_depth=0, **heads),
        num_variables=3,
        num_neighbors=4,
    )
    network = Mosaic(config, np.arange(6) * 60.0, np.linspace(-90, 90, 4)).half().to(DEVICE)
    for layer, sources in ((network.interp_to_hp, 24), (network.interp_to_ll, 48)):
        x = torch.randn(2, sources, 16, generator=torch.Generator().manual_seed(6)).half().to(DEVICE)
        with_gradients = layer(x, "triton").detach()
        assert layer.shared.patches is None
        with torch.no_grad():
            torch.testing.assert_close(layer(x, "triton"), with_gradients, rtol=2e-2, atol=2e-2)
            assert layer.shared.patches is not None
            assert copy.deepcopy(layer).shared.patches is None


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xmosaic.kernels import patches, selection

def made(kernel, kinds, constants, warps):
    names = kernel.arg_names
    kind = lambda n: "constexpr" if n in constants else kinds.get(n, "*bf16" if n.endswith("_ptr") else "i32")
    values = {(names.index(n),): v for n, v in constants.items()}
    source = ASTSource(kernel, {n: kind(n) for n in names}, values)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=warps))

tables = dict.fromkeys(["order_ptr", "first_ptr", "source_ptr", "links_ptr"], "*i32")
tables |= {"direction_ptr": "*fp32", "projection_ptr": "*i64", "scale_log2": "fp32"}
for length in (64, 128):
    sizes = dict(HEADS=12, D=64, WIDTH=64, ROWS=16, N=length)
    print(length, "mma" in made(patches._patched, tables, sizes, length // patches._SOURCES).asm["ptx"])
for width, count, part in ((512, 24, 32), (32, 4, 64)):
    sizes = dict(COUNT=count, GROUP=4, STRIDED=True, D=64, PART=part, ROWS=16, WIDTH=width)
    found = made(selection._select, {"out_ptr": "*i64"}, sizes, max(1, min(selection._WARPS, width // 32)))
    # more shared memory than a multiprocessor has would fail at the launch
    print(width, "mma" in found.asm["ptx"], found.metadata.shared <= 232448)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for GPUs on Linux alone")
def test_kernels_without_a_way_back_compile_for_hopper(tmp_path):
    said = said_by_triton(COMPILE, tmp_path).split("\n")[:4]
    assert said == ["64 True", "128 True", "512 True True", "32 True True"]
