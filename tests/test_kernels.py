"""Do the network's operations compute what their definitions say? Every twin below is loops or masks in float64."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic.errors import ArgumentError
from xmosaic.kernels import (
    add_norm,
    add_norm_rows,
    block_means,
    combine,
    local_attention,
    multiply_rows,
    neighbor_attention,
    norm_rows,
    quantise_rows,
    reference,
    require_float8,
    rotate,
    select_blocks,
    selected_attention,
    swiglu,
)

few = settings(max_examples=20, deadline=None)
sizes = st.tuples(
    st.integers(1, 2),  # batch
    st.integers(1, 3),  # kv heads
    st.integers(1, 3),  # group
    st.integers(1, 5),  # blocks
    st.integers(1, 4),  # block size
    st.integers(1, 5),  # d
)
seeds = st.integers(0, 2**31)


def normal(rng, *shape, dtype=torch.float64):
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


def attention_inputs(size, seed, count=None):
    batch, heads, group, blocks, block, d = size
    rng = np.random.default_rng(seed)
    q, k, v = (normal(rng, batch, n, blocks * block, d) for n in (heads * group, heads, heads))
    count = rng.integers(1, blocks + 2) if count is None else count
    picked = torch.from_numpy(rng.integers(0, blocks, (batch, heads, blocks, count)))
    return q, k, v, picked


def dense_selected(q, k, v, picked, block, scale):
    """Softmax over all points, each point's weight times the number of its block's picks."""
    batch, num_heads, points, _ = q.shape
    group = num_heads // k.shape[1]
    out = []
    for b in range(batch):
        for i in range(num_heads):
            h = i // group
            times = torch.zeros(points, points, dtype=q.dtype)
            for row in range(points):
                for j in picked[b, h, row // block].tolist():
                    times[row, j * block : (j + 1) * block] += 1
            logits = scale * q[b, i] @ k[b, h].T
            weights = times * (logits - logits.amax(-1, keepdim=True)).exp()
            out.append(weights / weights.sum(-1, keepdim=True) @ v[b, h])
    return torch.stack(out).view(q.shape)


def gradients(function, *inputs, seed=0):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    weight = normal(np.random.default_rng(seed), *out.shape).to(out.dtype)
    return (out.detach(), *torch.autograd.grad((out * weight).sum(), leaves))


def assert_same(got, expected, rtol=1e-9):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


# ---- attention over selected blocks ----


@few
@given(sizes, seeds, st.none() | st.floats(0.1, 3))
def test_selected_is_dense_attention_with_counted_blocks(size, seed, scale):
    q, k, v, picked = attention_inputs(size, seed)
    block, used = size[4], size[5] ** -0.5 if scale is None else scale
    got = gradients(lambda *x: selected_attention(*x, picked, block, scale=scale), q, k, v)
    assert_same(got, gradients(lambda *x: dense_selected(*x, picked, block, used), q, k, v))


def test_selected_passes_gradcheck():
    q, k, v, picked = attention_inputs((1, 2, 2, 2, 2, 3), 4, count=2)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: selected_attention(*x, picked, 2), inputs)


@few
@given(sizes, seeds)
def test_all_blocks_picked_is_plain_attention(size, seed):
    batch, heads, group, blocks, block, _ = size
    q, k, v, _ = attention_inputs(size, seed)
    everything = torch.arange(blocks).expand(batch, heads, blocks, blocks)

    def plain(q, k, v):
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v

    assert_same(gradients(lambda *x: selected_attention(*x, everything, block), q, k, v), gradients(plain, q, k, v))


@few
@given(sizes, seeds)
def test_order_of_picked_blocks_does_not_matter(size, seed):
    q, k, v, picked = attention_inputs(size, seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(picked.shape[-1]))
    got = gradients(lambda *x: selected_attention(*x, picked[..., order], size[4]), q, k, v)
    assert_same(got, gradients(lambda *x: selected_attention(*x, picked, size[4]), q, k, v))


def test_a_block_picked_twice_counts_twice():
    q, k = torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
    v = torch.tensor([[0.0], [0.0], [3.0], [3.0]]).expand(4, 2)[None, None]
    once = selected_attention(q, k, v, torch.tensor([0, 1]).expand(1, 1, 2, 2), 2)
    twice = selected_attention(q, k, v, torch.tensor([0, 1, 1]).expand(1, 1, 2, 3), 2)
    assert once[0, 0, 0, 0] == 1.5
    torch.testing.assert_close(twice[0, 0, 0, 0], torch.tensor(2.0))


def test_query_head_i_uses_kv_head_i_over_group():
    q, k = torch.zeros(1, 6, 2, 4), torch.zeros(1, 3, 2, 4)
    v = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 2, 4)
    out = selected_attention(q, k, v, torch.zeros(1, 3, 2, 1, dtype=torch.int64), 1)
    assert out[0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


@few
@given(sizes, seeds)
def test_far_blocks_have_no_influence(size, seed):
    q, k, v, _ = attention_inputs(size, seed)
    block = size[4]
    own = torch.arange(size[3]).view(1, 1, -1, 1).expand(size[0], size[1], -1, 1)
    before = selected_attention(q, k, v, own, block)
    k[:, :, -block:], v[:, :, -block:] = 7.0, 9.0
    after = selected_attention(q, k, v, own, block)
    assert torch.equal(before[:, :, :-block], after[:, :, :-block])


@few
@given(sizes, seeds, st.integers(1, 400))
def test_slices_are_the_whole(size, seed, elements):
    q, k, v, picked = attention_inputs(size, seed)
    whole = gradients(lambda *x: selected_attention(*x, picked, size[4]), q, k, v)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_GATHER_ELEMENTS", elements)
        sliced = gradients(lambda *x: selected_attention(*x, picked, size[4]), q, k, v)
    assert_same(sliced, whole)


def test_small_slices_are_taken(monkeypatch):
    q, k, v, picked = attention_inputs((1, 1, 1, 5, 2, 3), 0)
    calls = []
    monkeypatch.setattr(reference, "_GATHER_ELEMENTS", 1)
    plain = reference.grouped_attention
    monkeypatch.setattr(reference, "grouped_attention", lambda *x: calls.append(1) or plain(*x))
    selected_attention(q, k, v, picked, 2)
    assert len(calls) == 5


@few
@given(sizes, seeds)
def test_non_contiguous_inputs_are_the_same(size, seed):
    q, k, v, picked = attention_inputs(size, seed)
    odd = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    wide = torch.stack([picked, picked * 0], dim=-1)[..., 0]
    assert_same([selected_attention(*odd, wide, size[4])], [selected_attention(q, k, v, picked, size[4])])
    means = [x.unflatten(2, (-1, size[4])).mean(3) for x in (q, k)]
    turned = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in means]
    for grouping in ("group", "strided"):
        got, expected = (select_blocks(*x, 1, grouping=grouping) for x in (turned, means))
        assert torch.equal(got, expected)


@few
@given(sizes, seeds)
def test_float32_is_near_float64(size, seed):
    q, k, v, picked = attention_inputs(size, seed)
    exact = gradients(lambda *x: selected_attention(*x, picked, size[4]), q, k, v)
    single = gradients(lambda *x: selected_attention(*x, picked, size[4]), *(x.float() for x in (q, k, v)))
    for got, expected in zip(single, exact, strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


# ---- which blocks are picked ----


def literal_scores(q, k, grouping):
    """model.md: q̄·k̄, query head i against kv head i // G, then averaged over G heads for each kv head."""
    batch, num_heads, blocks, _ = q.shape
    kv, group = k.shape[1], num_heads // k.shape[1]
    score = torch.zeros(batch, kv, blocks, blocks, dtype=torch.float64)
    for h in range(kv):
        own, strided = [h * group + g for g in range(group)], [h + g * kv for g in range(group)]
        for i in own if grouping == "group" else strided:
            for b in range(batch):
                for m in range(blocks):
                    for n in range(blocks):
                        score[b, h, m, n] += float(q[b, i, m] @ k[b, i // group, n]) / group
    return score


def assert_best(score, picked):
    """By score, not by slot: equal scores may be picked in any way."""
    count = picked.shape[-1]
    got = score.gather(-1, picked).sort(-1, descending=True).values
    expected = score.sort(-1, descending=True).values[..., :count]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert (picked.sort(-1).values.diff(dim=-1) > 0).all()


@few
@given(sizes, seeds, st.sampled_from(["group", "strided"]), st.data())
def test_picked_blocks_have_the_largest_scores(size, seed, grouping, data):
    q, k, _, _ = attention_inputs((*size[:4], 1, size[5]), seed)
    count = data.draw(st.integers(1, size[3]))
    picked = select_blocks(q, k, count, grouping=grouping)
    assert picked.dtype == torch.int64
    assert picked.shape == (size[0], size[1], size[3], count)
    assert_best(literal_scores(q, k, grouping), picked)


@few
@given(seeds)
def test_equal_scores_are_picked_once_each(seed):
    q, k, _, _ = attention_inputs((1, 2, 2, 4, 1, 3), seed)
    k = k[:, :, :1].expand_as(k)
    assert_best(literal_scores(q, k, "group"), select_blocks(q, k, 3))


def test_groupings_differ_where_they_should():
    # heads 0, 1 belong to kv head 0 and want block 0; heads 2, 3 to kv head 1, and want block 1 ten times as much
    q = torch.tensor([[1.0, 0], [1, 0], [0, 10], [0, 10]]).view(1, 4, 1, 2).expand(1, 4, 2, 2)
    k = torch.eye(2).expand(1, 2, 2, 2)
    own = select_blocks(q, k, 1, grouping="group")
    strided = select_blocks(q, k, 1, grouping="strided")
    assert own[0, :, 0, 0].tolist() == [0, 1]
    assert strided[0, :, 0, 0].tolist() == [1, 1]
    assert torch.equal(select_blocks(q, k, 1), own)


def test_picking_has_no_gradient():
    q, k, _, _ = (x.requires_grad_() if x.is_floating_point() else x for x in attention_inputs((1, 1, 1, 3, 1, 2), 0))
    assert not select_blocks(q, k, 1).requires_grad


# ---- attention over neighbours ----


def neighbor_inputs(size, seed):
    batch, heads, d, sources, targets, k = size
    rng = np.random.default_rng(seed)
    direction = normal(rng, targets, k, 3)
    neighbors = torch.from_numpy(rng.integers(0, sources, (targets, k)))
    return direction, normal(rng, batch, sources, heads, 3), normal(rng, batch, sources, heads, d), neighbors


def looped_neighbors(direction, projection, value, neighbors, scale):
    batch, _, heads, d = value.shape
    rows = []
    for b in range(batch):
        for t, near in enumerate(neighbors.tolist()):
            for h in range(heads):
                logits = torch.stack([direction[t, j] @ projection[b, s, h] for j, s in enumerate(near)]) * scale
                weights = torch.softmax(logits, 0)
                rows.append(sum(w * value[b, s, h] for w, s in zip(weights, near, strict=True)))
    return torch.stack(rows).view(batch, len(neighbors), heads, d)


neighbor_sizes = st.tuples(*(st.integers(1, n) for n in (2, 3, 4, 6, 5, 4)))


@few
@given(neighbor_sizes, seeds, st.floats(0.1, 3))
def test_neighbors_are_attended_as_defined(size, seed, scale):
    direction, projection, value, neighbors = neighbor_inputs(size, seed)
    got, expected = (
        gradients(lambda p, v, f=f: f(p, v), projection, value)
        for f in (
            lambda p, v: neighbor_attention(direction, p, v, neighbors, scale=scale),
            lambda p, v: looped_neighbors(direction, p, v, neighbors, scale),
        )
    )
    assert_same(got, expected)


def test_neighbors_pass_gradcheck():
    direction, projection, value, neighbors = neighbor_inputs((2, 2, 3, 4, 3, 2), 1)
    inputs = (projection.requires_grad_(), value.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, v: neighbor_attention(direction, p, v, neighbors, scale=0.7), inputs)


@few
@given(neighbor_sizes, seeds)
def test_folded_key_is_the_query_key_product(size, seed):
    """The projection W_qᵀ k gives the logits of a query W_q r made for every neighbour."""
    direction, _, value, neighbors = neighbor_inputs(size, seed)
    batch, heads, d, sources = size[:4]
    rng = np.random.default_rng(seed + 1)
    weight, key = normal(rng, heads, d, 3), normal(rng, batch, sources, heads, d)
    query = torch.einsum("hdc,tkc->tkhd", weight, direction)
    logits = torch.einsum("tkhd,btkhd->bthk", query, key[:, neighbors]) * d**-0.5
    expected = torch.einsum("bthk,btkhd->bthd", logits.softmax(-1), value[:, neighbors])
    projection = torch.einsum("hdc,bshd->bshc", weight, key)
    assert_same([neighbor_attention(direction, projection, value, neighbors, scale=d**-0.5)], [expected])


@few
@given(neighbor_sizes, seeds)
def test_neighbors_in_other_memory_order_and_precision(size, seed):
    direction, projection, value, neighbors = neighbor_inputs(size, seed)
    expected = neighbor_attention(direction, projection, value, neighbors, scale=0.5)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (projection, value)]
    table = neighbors.T.contiguous().T
    assert_same([neighbor_attention(direction, *turned, table, scale=0.5)], [expected])
    single = neighbor_attention(direction.float(), projection.float(), value.float(), neighbors, scale=0.5)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-5)


@few
@given(neighbor_sizes, seeds)
def test_order_of_neighbors_does_not_matter(size, seed):
    direction, projection, value, neighbors = neighbor_inputs(size, seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(size[5]))
    got = neighbor_attention(direction[:, order], projection, value, neighbors[:, order], scale=1.0)
    assert_same([got], [neighbor_attention(direction, projection, value, neighbors, scale=1.0)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_error_is_that_of_its_inputs(dtype):
    """Softmax runs in float32: the error stays within a few roundings of the result."""
    inputs = neighbor_inputs((2, 2, 8, 30, 20, 6), 5)
    half = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    exact = neighbor_attention(*(x.double() if x.is_floating_point() else x for x in half), scale=0.5)
    got = neighbor_attention(*half, scale=0.5)
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


# ---- full attention, the branch of the network that is not a public operation ----


@few
@given(sizes, seeds, st.integers(1, 4))
def test_grouped_attention_is_attention_of_each_head(size, seed, length):
    batch, heads, group, blocks, keys, d = size
    rng = np.random.default_rng(seed)
    q = normal(rng, batch, heads, blocks, group, length, d)
    k, v = normal(rng, batch, heads, blocks, keys, d), normal(rng, batch, heads, blocks, keys, d)

    def plain(q, k, v):
        logits = torch.einsum("bhngqd,bhnkd->bhngqk", q, k) * 0.3
        return torch.einsum("bhngqk,bhnkd->bhngqd", logits.exp() / logits.exp().sum(-1, keepdim=True), v)

    got = gradients(lambda *x: reference.grouped_attention(*x, 0.3), q, k, v)
    assert_same(got, gradients(plain, q, k, v))


# ---- what needs no gradient takes less memory ----


def test_the_way_without_gradients_computes_the_same_and_changes_no_input():
    rng = np.random.default_rng(4)
    joined, ab, shift = normal(rng, 2, 12, 28), normal(rng, 2, 5, 16), normal(rng, 2, 8)
    x, angle = joined[..., 3:27].unflatten(-1, (3, 8)), normal(rng, 12, 4)
    calls = [
        lambda: rotate(x, angle.cos(), angle.sin(), 4)[0],
        lambda: rotate(x.contiguous(), angle.cos(), angle.sin(), 4)[0],
        lambda: rotate(x.contiguous().float(), angle.cos(), angle.sin(), 4)[0].double(),
        lambda: swiglu(ab, shift),
        lambda: swiglu(ab),
    ]
    kept = [t.clone() for t in (joined, ab, shift)]
    for call in calls:
        expected = call()
        with torch.no_grad():
            assert torch.equal(call(), expected)
    assert all(torch.equal(a, b) for a, b in zip((joined, ab, shift), kept, strict=True))


# ---- local attention as dense attention ----


@few
@given(st.tuples(*(st.integers(1, n) for n in (2, 3, 3, 4, 5, 4))), seeds)
def test_blocks_as_samples_are_local_attention(size, seed):
    batch, heads, group, blocks, length, d = size
    q, k, v = attention_inputs((batch, heads, group, blocks, length, d), seed)[:3]
    expected = reference.local_attention(q, k, v, length)
    assert_same([reference.dense_blocks(q, k, v, length)], [expected])
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert_same([reference.dense_blocks(*turned, length)], [expected])


def test_more_blocks_than_a_launch_takes():
    q, k, v = (torch.randn(1, n, 40_000, 2) for n in (4, 2, 2))
    assert_same([reference.dense_blocks(q, k, v, 2)], [reference.local_attention(q, k, v, 2)], rtol=1e-5)


# ---- rows in 8 bits ----


def literal_e4m3(x):
    """Nearest of all 8-bit numbers with 4 bits of exponent, ties to even mantissas."""
    exponent, mantissa = np.meshgrid(np.arange(16), np.arange(8), indexing="ij")
    grid = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    grid = grid.ravel()[:-1]  # the last is NaN
    distance = np.abs(np.abs(x)[..., None] - grid)
    nearest = distance == distance.min(-1, keepdims=True)
    even = nearest & (np.arange(len(grid)) % 2 == 0)
    return np.sign(x) * grid[np.where(even.any(-1), even.argmax(-1), nearest.argmax(-1))]


@few
@given(seeds, st.integers(-60, 60))
def test_rows_are_rounded_to_the_nearest_in_units_of_their_largest(seed, exponent):
    x = (normal(np.random.default_rng(seed), 3, 16) * 2.0**exponent).float()
    rows = quantise_rows(x, impl="reference")
    assert (rows.values.dtype, rows.scale.dtype, rows.scale.shape) == (torch.float8_e4m3fn, torch.float32, (3, 1))
    torch.testing.assert_close(rows.scale[:, 0], x.abs().amax(1) / 448)
    scaled = (x * (448 / x.abs().amax(1, keepdim=True))).numpy().astype(np.float64)
    np.testing.assert_array_equal(rows.values.double().numpy(), literal_e4m3(scaled))
    error = (rows.values.double() * rows.scale - x.double()).abs()
    assert (error <= x.abs() / 16 + 2.0**-10 * 1.001 * rows.scale + 1e-6 * x.abs()).all()


@few
@given(seeds, st.integers(1, 4))
def test_products_of_rows_are_products_of_what_they_stand_for(seed, many):
    rng = np.random.default_rng(seed)
    x, w = normal(rng, 2, many, 32).float(), normal(rng, 16, 32).float()
    a, b = quantise_rows(x, impl="reference"), quantise_rows(w, impl="reference")
    got = multiply_rows(a, b, torch.float32, impl="reference")
    expected = (a.values.double() * a.scale) @ (b.values.double() * b.scale).T
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    # each factor is off by 1/16 at most, so a product by 1/8 and a bit
    assert ((got.double() - x.double() @ w.double().T).abs() <= 0.13 * (x.abs() @ w.abs().T) + 0.1).all()


def test_rows_of_nothing_of_the_most_and_of_no_numbers():
    x = torch.ones(5, 16)
    x[0], x[1, 3], x[2, 0], x[3, 0] = 0, 1e30, torch.nan, torch.inf
    weight = quantise_rows(torch.eye(16), impl="reference")
    out = multiply_rows(quantise_rows(x, impl="reference"), weight, torch.float32, impl="reference")
    assert (out[0] == 0).all()
    torch.testing.assert_close(out[1, 3:5], torch.tensor([1e30, 0.0]))  # beside it, one is nothing
    assert not torch.isfinite(out[2:4]).any()
    torch.testing.assert_close(out[4], torch.ones(16))


def test_fused_rows_are_those_of_the_plain_operation():
    rng = np.random.default_rng(3)
    x, update = (normal(rng, 2, 3, 16).float() for _ in range(2))
    total, got = add_norm_rows(x, update, impl="reference")
    assert_same([total], [x + update])
    expected = quantise_rows(add_norm(x, update)[1], impl="reference")
    torch.testing.assert_close(got.scale, expected.scale)
    assert torch.equal(got.values.float(), expected.values.float())
    alone = norm_rows(x + update, impl="reference")
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(alone, got, strict=True))


def test_eight_bits_are_never_taken_where_they_are_not():
    x = torch.ones(2, 16)
    with pytest.raises(ArgumentError, match=r"float8 can't be used. Found device cpu; .*8.9 or newer. Take bfloat16"):
        require_float8(x.device)
    if os.environ.get("TRITON_INTERPRET", "0") == "0":
        with pytest.raises(ArgumentError, match="float8 can't be used"):
            quantise_rows(x)
    with pytest.raises(ArgumentError, match="float8 has no gradient"):
        quantise_rows(x.requires_grad_(), impl="reference")
    rows = quantise_rows(torch.ones(2, 20), impl="reference")
    with pytest.raises(ArgumentError, match="can't be multiplied in 8 bits"):
        multiply_rows(rows, rows, torch.float32, impl="reference")


# ---- what is refused ----


def selected_case(**change):
    q, k, v, picked = attention_inputs((1, 2, 2, 3, 2, 4), 0, count=2)
    case = {"query": q, "key": k, "value": v, "block_indices": picked, "block_size": 2}
    return case | {n: f(case[n]) if callable(f) else f for n, f in change.items()}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"value": lambda v: v[..., :3]}, "key and value differ in shape"),
        ({"query": lambda q: q[0]}, r"query has another number of axes. Found \(4, 6, 4\); expected four axes"),
        ({"key": lambda k: k[0]}, "key has another number of axes"),
        ({"query": lambda q: q[:, :3]}, "query and key don't belong together"),
        ({"query": lambda q: q[:, :, :4]}, "query and key don't belong together"),
        ({"query": lambda q: q[..., :2]}, "query and key don't belong together"),
        ({"query": lambda q: q.repeat(2, 1, 1, 1)}, "query and key don't belong together"),
        ({"block_size": 4}, "block_size does not divide the points. Found 4; expected a divisor of 6"),
        ({"block_size": 0}, "block_size does not divide the points"),
        ({"block_size": 3}, r"block_indices has another shape. Found \(1, 2, 3, 2\); expected \(1, 2, 2, block_count"),
        ({"block_indices": lambda i: i[0]}, "block_indices has another shape"),
        ({"block_indices": lambda i: i[..., :0]}, "block_indices can't be used"),
        ({"block_indices": lambda i: i.double()}, "block_indices can't be used. Found torch.float64"),
        ({"block_indices": lambda i: i * 0 + 3}, "block_indices points outside. Found 3 to 3; expected 0 to 2"),
        ({"block_indices": lambda i: i * 0 - 1}, "block_indices points outside"),
        ({"impl": "fast"}, "impl='fast' does not exist. Expected None or 'triton' or 'reference'"),
    ],
)
def test_selected_refuses(change, text):
    with pytest.raises(ArgumentError, match=text):
        selected_attention(**selected_case(**change))
    assert selected_attention(**selected_case()).shape == (1, 4, 6, 4)


@pytest.mark.parametrize(
    ("shapes", "options", "text"),
    [
        (((1, 2, 3, 4), (1, 2, 3, 4)), {"block_count": 4}, "block_count can't be picked. Found 4; expected 1 to 3"),
        (((1, 2, 3, 4), (1, 2, 3, 4)), {"block_count": 0}, "block_count can't be picked"),
        (((1, 2, 3, 4), (1, 2, 3, 4)), {"grouping": "both"}, "grouping is unknown. Found 'both'"),
        (((1, 3, 3, 4), (1, 2, 3, 4)), {}, "query and key don't belong together"),
        (((2, 2, 3, 4), (1, 2, 3, 4)), {}, "query and key don't belong together"),
        (((1, 2, 3, 5), (1, 2, 3, 4)), {}, "query and key don't belong together"),
        (((2, 3, 4), (1, 2, 3, 4)), {}, "query has another number of axes"),
        (((1, 2, 3, 4), (1, 2, 3, 4)), {"impl": "fast"}, "impl='fast' does not exist"),
    ],
)
def test_select_refuses(shapes, options, text):
    with pytest.raises(ArgumentError, match=text):
        select_blocks(*(torch.zeros(s) for s in shapes), **{"block_count": 1} | options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({0: lambda r: r[..., :2]}, "direction and neighbors don't belong together"),
        ({0: lambda r: r[1:]}, "direction and neighbors don't belong together"),
        ({3: lambda n: n[0]}, "direction and neighbors don't belong together"),
        ({1: lambda p: p[:, 1:]}, "key_projection and value don't belong together"),
        ({1: lambda p: p[..., :2]}, "key_projection and value don't belong together"),
        ({2: lambda v: v[0]}, "value has another number of axes"),
    ],
)
def test_neighbors_refuse(change, text):
    inputs = list(neighbor_inputs((1, 2, 3, 4, 5, 2), 0))
    for place, function in change.items():
        inputs[place] = function(inputs[place])
    with pytest.raises(ArgumentError, match=text):
        neighbor_attention(*inputs, scale=1.0)


def ones(*shape):
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: local_attention(ones(1, 2, 6, 4), ones(1, 2, 6, 4), ones(1, 2, 6, 4), 4), "expected a divisor of 6"),
        (lambda: add_norm(ones(2, 3), ones(2, 4)), "x and update differ in shape"),
        (lambda: rotate(ones(1, 6, 2, 4), ones(6, 4), ones(6, 4), 2), "angles don't belong to x"),
        (lambda: rotate(ones(1, 6, 2, 3), ones(6, 1), ones(6, 1), 2), "angles don't belong to x"),
        (lambda: rotate(ones(1, 6, 2, 4), ones(6, 2), ones(6, 2), 4), "size does not divide the points"),
        (lambda: block_means(ones(1, 6, 2, 4), 0), "size does not divide the points"),
        (
            lambda: combine(ones(1, 6, 2, 2), ones(1, 6, 2, 4), ones(1, 3, 2, 4), ones(1, 6, 2, 4)),
            "branches and gate don't belong together",
        ),
        (
            lambda: combine(ones(1, 6, 2, 3), ones(1, 6, 2, 4), ones(1, 4, 2, 4), ones(1, 6, 2, 4)),
            "branches and gate don't belong together",
        ),
        (lambda: swiglu(ones(1, 6, 5)), "ab has another shape"),
        (lambda: swiglu(ones(1, 6, 4), ones(1, 3)), "shift has another shape"),
    ],
)
def test_the_rest_refuses_shapes_that_do_not_belong_together(call, text):
    with pytest.raises(ArgumentError, match=text):
        call()


CALLS = {
    "selected_attention": lambda impl: selected_attention(**selected_case(), impl=impl),
    "select_blocks": lambda impl: select_blocks(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 1, impl=impl),
    "neighbor_attention": lambda impl: neighbor_attention(
        *neighbor_inputs((1, 2, 3, 4, 5, 2), 0), scale=1.0, impl=impl
    ),
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_named_implementation_is_the_one_that_runs(name, monkeypatch):
    with pytest.raises(ArgumentError, match="does not exist"):
        CALLS[name]("nonsense")
    assert torch.equal(CALLS[name]("reference"), CALLS[name](None))

    def fail(*_):
        raise NotImplementedError("broken on purpose")

    monkeypatch.setattr(reference, name, fail)
    with pytest.raises(NotImplementedError, match="on purpose"):
        CALLS[name]("reference")
