"""Are the picked blocks those of the largest scores, whatever the scores are?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic.kernels import reference, select_blocks

pytest.importorskip("triton", reason="Triton is not installed here")

from xmosaic.kernels import selection

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GROUPINGS = ("group", "strided")


def means(seed, batch, heads, kv_heads, blocks, d, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    # as they come: heads before blocks, or after
    q, k = (torch.randn(batch, blocks, n, d, generator=generator).to(DEVICE, dtype) for n in (heads, kv_heads))
    return q.transpose(1, 2), k.transpose(1, 2).contiguous()


def scores(q, k, grouping):
    """Mean product of each query block with each key block, written out."""
    q, k = (x.double().cpu().numpy() for x in (q, k))
    heads, kv_heads = q.shape[1], k.shape[1]
    group = heads // kv_heads
    out = np.zeros((q.shape[0], kv_heads, q.shape[2], k.shape[2]))
    for head in range(heads):
        product = np.einsum("bqd,bkd->bqk", q[:, head], k[:, head // group])
        out[:, head // group if grouping == "group" else head % kv_heads] += product / group
    return out


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(
    "shape", [(2, 6, 3, 40, 64, 7), (1, 2, 2, 5, 20, 5), (1, 1, 1, 1, 16, 1), (1, 4, 2, 130, 16, 24)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_they_are_the_largest(shape, grouping, dtype):
    *rest, count = shape
    q, k = means(1, *rest, dtype)
    picked = select_blocks(q, k, count, grouping=grouping, impl="triton").cpu().numpy()
    expected = np.sort(np.argsort(-scores(q, k, grouping), axis=-1)[..., :count], axis=-1)
    assert picked.dtype == np.int64 and np.array_equal(picked, expected)  # in the order of the blocks


@given(seed=st.integers(0, 2**31), blocks=st.integers(1, 40), data=st.data())
@settings(max_examples=25, deadline=None)
def test_of_equal_scores_the_first_and_always_as_many(seed, blocks, data):
    """Whole numbers make many scores equal, some of them of both signs of zero."""
    count = data.draw(st.integers(1, blocks))
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randint(-1, 2, (1, 2, blocks, 4), generator=generator).float().to(DEVICE) for _ in "qk")
    got = select_blocks(q, k, count, impl="triton").cpu().numpy()
    assert np.array_equal(got, np.sort(np.argsort(-scores(q, k, "group"), -1, kind="stable")[..., :count], -1))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_no_number_comes_first_and_infinities_have_their_place():
    q = torch.ones(1, 1, 3, 16, device=DEVICE)
    k = torch.zeros(1, 1, 6, 16, device=DEVICE)
    k[0, 0, :, 0] = torch.tensor([-torch.inf, 1.0, torch.nan, -3e38, torch.inf, -torch.nan])
    for count, expected in ((2, [2, 5]), (3, [2, 4, 5]), (4, [1, 2, 4, 5]), (5, [1, 2, 3, 4, 5])):
        assert select_blocks(q, k, count, impl="triton")[0, 0].tolist() == [expected] * 3


def test_more_blocks_than_a_program_holds_are_left_to_the_steps(monkeypatch):
    monkeypatch.setattr(selection, "_MOST", 20)
    launched = []
    monkeypatch.setattr(selection, "_select_op", lambda *a: launched.append(a))
    q, k = means(2, 1, 2, 1, 21, 16)
    expected = reference.select_blocks(q, k, 4, "group")
    assert torch.equal(select_blocks(q, k, 4, impl="triton").sort().values, expected.sort().values) and not launched
    select_blocks(q[:, :, :20], k[:, :, :20], 4, impl="triton")
    assert len(launched) == 1


def test_they_have_no_gradient():
    q, k = (x.requires_grad_() for x in means(3, 1, 2, 1, 9, 16))
    assert not select_blocks(q, k, 3, impl="triton").requires_grad
