"""The loss: weights, values and gradients against sums written out."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from models import GRID, SCHEMA

from xmosaic import diagnostics
from xmosaic.errors import ArgumentError
from xmosaic.grid import LatLonGrid
from xmosaic.training.loss import channel_weights, ensemble_loss, latitude_weights
from xmosaic.variables import Channel, Schema, published_schema

AREA = latitude_weights(LatLonGrid.equiangular(4, 3))
ALPHA = np.array([0.5, 1.5])
KINDS = ("crps", "biased_crps", "mse")


def fields(members, dtype=torch.float64, seed=0, samples=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, members, 4, 3, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(samples, 4, 3, 2, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def brute_force(x, y, area, alpha, kind):
    """The formulas of the docstring, point by point."""
    x, y = x.double().numpy(), y.double().numpy()
    total, m = 0.0, x.shape[1]
    for s, i, j, c in np.ndindex(y.shape):
        at = x[s, :, i, j, c]
        pairs = sum(abs(a - b) for a, b in itertools.permutations(at, 2))
        if kind == "mse":
            point = np.mean((at - y[s, i, j, c]) ** 2)
        else:
            point = np.mean(np.abs(at - y[s, i, j, c])) - pairs / (2 * m * ((m - 1) if kind == "crps" else m))
        total += area[j] * alpha[c] * point
    return total / y.size


# ------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [2, 3, 5])
def test_is_the_sum_over_all_pairs(kind, members):
    x, y = fields(members)
    loss, by_channel = ensemble_loss(x, y, AREA, ALPHA, kind)
    assert loss.item() == pytest.approx(brute_force(x, y, AREA, ALPHA, kind), rel=1e-13)
    for c in range(2):
        only = brute_force(x, y, AREA, np.eye(2)[c] * 2, kind)
        assert by_channel[c].item() == pytest.approx(only, rel=1e-13)


def test_loss_is_the_weighted_mean_of_its_channels():
    x, y = fields(3)
    loss, by_channel = ensemble_loss(x.requires_grad_(), y, AREA, ALPHA)
    assert loss.item() == pytest.approx((by_channel * torch.from_numpy(ALPHA)).mean().item(), rel=1e-14)
    assert loss.requires_grad
    assert not by_channel.requires_grad


def test_two_members_have_a_closed_form():
    """Fair CRPS of two: the smaller error if both err to one side, 0 if the truth lies between."""
    x, y = fields(2)
    a, b = (x - y.unsqueeze(1)).unbind(1)
    expected = torch.where(a * b > 0, torch.minimum(a.abs(), b.abs()), 0.0)
    _, by_channel = ensemble_loss(x, y, np.ones(3), np.ones(2))
    torch.testing.assert_close(by_channel, expected.mean((0, 1, 2)), rtol=1e-13, atol=0)


def test_is_the_score_of_the_diagnostics():
    """Trained on is what is scored: same fields, same number, fair and biased."""
    rng = np.random.default_rng(3)
    dims = ("sample", "number", "longitude", "latitude")
    coords = GRID.coordinates() | {"number": np.arange(1, 5)}
    forecast = xr.DataArray(rng.normal(size=(2, 4, 12, 7)).astype(np.float32), dims=dims, coords=coords)
    truth = forecast.isel(number=0, drop=True) + xr.DataArray(rng.normal(size=(12, 7)), dims=dims[2:])
    for kind, fair in (("crps", True), ("biased_crps", False)):
        score = diagnostics.crps(forecast, truth, dim=["sample", "latitude", "longitude"], fair=fair)
        x, y = torch.tensor(forecast.values)[..., None], torch.tensor(truth.values).float()[..., None]
        loss, _ = ensemble_loss(x, y, latitude_weights(GRID), np.ones(1), kind)
        assert loss.item() == pytest.approx(score.item(), rel=1e-5)


def test_fair_expectation_does_not_depend_on_members():
    """Means over draws agree within 4 standard errors; those of the biased one, by 1/M of the spread, don't."""
    draws = 40_000
    means = {}
    for members in (2, 3, 8):
        x = torch.randn(draws, members, 1, 1, 1, generator=torch.Generator().manual_seed(members), dtype=torch.float64)
        y = torch.full((draws, 1, 1, 1), 0.3, dtype=torch.float64)
        for kind in ("crps", "biased_crps"):
            means[kind, members] = ensemble_loss(x, y, np.ones(1), np.ones(1), kind)[0].item()
    # E|X − 0.3| − E|X − X'| / 2 for a standard normal
    exact = 0.3 * (2 * 0.6179114221889526 - 1) + 2 * 0.38138781546052414 - 1 / np.sqrt(np.pi)
    for members in (2, 3, 8):
        assert means["crps", members] == pytest.approx(exact, abs=4 * 0.6 / np.sqrt(draws))
        expected = exact + 1 / np.sqrt(np.pi) / members
        assert means["biased_crps", members] == pytest.approx(expected, abs=4 * 0.6 / np.sqrt(draws))


@given(seed=st.integers(0, 10**6), members=st.integers(2, 6), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_moves_scales_and_permutes(seed, members, shift, scale):
    x, y = fields(members, seed=seed)
    loss = ensemble_loss(x, y, AREA, ALPHA)[0].item()
    assert ensemble_loss(x + shift, y + shift, AREA, ALPHA)[0].item() == pytest.approx(loss, rel=1e-9, abs=1e-12)
    assert ensemble_loss(x * scale, y * scale, AREA, ALPHA)[0].item() == pytest.approx(loss * scale, rel=1e-9)
    assert ensemble_loss(x.flip(1), y, AREA, ALPHA)[0].item() == pytest.approx(loss, rel=1e-12, abs=1e-14)
    assert ensemble_loss(x, y, AREA, ALPHA, "biased_crps")[0].item() > loss


def test_perfect_members_cost_nothing():
    _, y = fields(2)
    for kind in KINDS:
        assert ensemble_loss(y.unsqueeze(1).expand(-1, 3, -1, -1, -1), y, AREA, ALPHA, kind)[0].item() == 0


def test_nan_is_not_hidden():
    x, y = fields(3)
    x[0, 1, 2, 1, 1] = np.nan
    loss, by_channel = ensemble_loss(x, y, AREA, ALPHA)
    assert loss.isnan() and by_channel.isnan().tolist() == [False, True]


# ------------------------------------------------------------------------------------------------ gradients, dtypes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [2, 3, 5])
def test_gradient_is_that_of_finite_differences(kind, members):
    x, y = (t.requires_grad_() for t in fields(members, samples=1))
    assert torch.autograd.gradcheck(lambda x, y: ensemble_loss(x, y, AREA, ALPHA, kind)[0], (x, y), eps=1e-7)


def test_gradient_of_two_members_has_a_closed_form():
    """Only the nearer of two members on one side is moved; with the truth between them neither is."""
    x, y = fields(2)
    loss, _ = ensemble_loss(x.requires_grad_(), y, AREA, ALPHA)
    loss.backward()
    error = (x - y.unsqueeze(1)).detach()
    nearer = error.abs() < error.abs().flip(1)
    slope = torch.where((error.prod(1, keepdim=True) > 0) & nearer, error.sign(), 0.0)
    weights = torch.from_numpy(AREA)[:, None] * torch.from_numpy(ALPHA) / y.numel()
    torch.testing.assert_close(x.grad, slope * weights, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("members", [2, 4])
def test_tied_members_are_treated_alike(members):
    """All tied: each has the slope of its error alone. A member on the truth that is tied has none."""
    y = torch.zeros(1, 1, 1, 2)
    x = torch.tensor([1.0, 0.0]).expand(1, members, 1, 1, 2).clone().requires_grad_()
    ensemble_loss(x, y, np.ones(1), np.ones(2))[0].backward()
    expected = torch.tensor([1.0, 0.0]).expand(1, members, 1, 1, 2) / members / 2
    torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_computed_in_float32(kind):
    x, y = fields(3, torch.bfloat16)
    loss, by_channel = ensemble_loss(x.requires_grad_(), y, AREA, ALPHA, kind)
    assert loss.dtype == by_channel.dtype == torch.float32
    assert loss.item() == pytest.approx(brute_force(x.detach(), y, AREA, ALPHA, kind), rel=1e-5)
    loss.backward()
    assert x.grad.dtype == torch.bfloat16
    assert ensemble_loss(x.detach(), y.double(), AREA, ALPHA, kind)[0].dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind):
    x, y = fields(3, torch.float32)
    plain = ensemble_loss(x, y, AREA, ALPHA, kind)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ensemble_loss(x, y, AREA, ALPHA, kind)[0], plain)


@pytest.mark.parametrize("members", [2, 8])
def test_keeps_members_and_truth_alone_for_the_way_back(members):
    """M = 8 would otherwise keep 28 differences per point."""
    x, y = fields(members, torch.float32)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ensemble_loss(x.requires_grad_(), y, AREA, ALPHA)
    small = 4 * (len(AREA) + len(ALPHA))
    assert sum(kept.values()) <= x.nbytes + y.nbytes + small


# -------------------------------------------------------------------------------------------------------- weights


def test_level_weights_of_the_published_channels():
    schema = published_schema()
    alpha = channel_weights(schema, "level")
    assert alpha.shape == (82,) and alpha.mean() == pytest.approx(1, abs=1e-14)
    # GraphCast: 1, 0.1, 0.1, 0.1, and level / mean level
    mean = np.mean([50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000])
    raw = np.array([1, 0.1, 0.1, 0.1] + [c.level / mean for c in schema.state[4:]])
    np.testing.assert_allclose(alpha / alpha[0], raw, rtol=1e-13)


def test_weights_by_name():
    alpha = channel_weights(SCHEMA, {"geopotential": 3.0, "geopotential_850": 0.0})
    raw = [3.0 if c.name == "geopotential_500" else 0.0 if c.name == "geopotential_850" else 1.0 for c in SCHEMA.state]
    np.testing.assert_allclose(alpha, np.array(raw) / np.mean(raw), rtol=1e-14)
    assert alpha.dtype == np.float64
    np.testing.assert_array_equal(channel_weights(SCHEMA, "uniform"), np.ones(len(SCHEMA.state)))


def test_weights_count_the_state_alone():
    schema = Schema.from_variables({"10m_wind_speed": None}, static=["land_sea_mask"], forcing=["sea_ice_cover"])
    np.testing.assert_array_equal(channel_weights(schema), [1.0])
    own = Schema((Channel("ozone"), Channel.known("temperature", 850)))
    np.testing.assert_allclose(channel_weights(own), np.array([0.1, 1.0]) / 0.55, rtol=1e-14)


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"geopotential_50": 1.0}, "'geopotential_500'"),
        ({"temprature": 1.0}, "'2m_temperature'"),
        ({"geopotential": -1.0}, "0 or more"),
        ({"geopotential": float("inf")}, "finite"),
        ({c.variable: 0.0 for c in SCHEMA.state}, "nothing to train"),
        ("levels", "'level', 'uniform'"),
    ],
)
def test_weights_that_cannot_be_used(choice, text):
    with pytest.raises(ArgumentError, match=text):
        channel_weights(SCHEMA, choice)


def test_latitude_weights_are_exact_areas():
    weights = latitude_weights(GRID)
    edges = np.deg2rad([-90, -75, -45, -15, 15, 45, 75, 90])
    area = np.diff(np.sin(edges))
    np.testing.assert_allclose(weights, area / area.mean(), rtol=1e-13)
    assert weights.mean() == pytest.approx(1, abs=1e-15)


def test_latitude_weights_know_float32_longitudes_and_refuse_uneven_ones():
    rounded = tuple((np.arange(3600) * np.float32(0.1)).astype(np.float32).astype(float))
    assert latitude_weights(LatLonGrid((-45.0, 45.0), rounded)) == pytest.approx([1, 1])
    with pytest.raises(ArgumentError, match="unevenly"):
        latitude_weights(LatLonGrid((-45.0, 45.0), (0.0, 100.0, 200.0, 290.0)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"members": torch.zeros(1, 1, 4, 3, 2)}, "2 or more"),
        ({"members": torch.zeros(1, 2, 4, 3)}, r"\(sample, member, longitude, latitude, channel\)"),
        ({"truth": torch.zeros(1, 1, 4, 3, 2)}, "truth"),
        ({"truth": torch.zeros(1, 3, 4, 2)}, "truth"),
        ({"area": torch.ones(4)}, "area"),
        ({"area": torch.ones(1)}, "area"),
        ({"alpha": torch.ones(1)}, "alpha"),
        ({"kind": "mae"}, "'mae'"),
    ],
)
def test_arguments_that_do_not_fit(change, text):
    good = {"members": torch.zeros(1, 2, 4, 3, 2), "truth": torch.zeros(1, 4, 3, 2), "area": AREA, "alpha": ALPHA}
    with pytest.raises(ArgumentError, match=text):
        ensemble_loss(**(good | change))
