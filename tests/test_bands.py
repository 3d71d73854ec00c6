"""Are scales cut where they should be, and is each band's loss that of the band?"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import sph_harm_y

from xmosaic.errors import ArgumentError
from xmosaic.grid import LatLonGrid
from xmosaic.training.bands import Bands
from xmosaic.training.loss import latitude_weights

GRID = LatLonGrid.equiangular(48, 25)
CUTS = (5, 11, 17)
GENERATOR = torch.Generator().manual_seed(0)


def bands_of(kind="crps"):
    return Bands(GRID, CUTS, kind).double()


def harmonic(degree, order):
    latitude, longitude = (np.deg2rad(np.array(v)) for v in (GRID.latitude, GRID.longitude))
    values = sph_harm_y(degree, order, np.pi / 2 - latitude[None, :], longitude[:, None]).real
    return torch.from_numpy(values)[None, ..., None]


def power(field):
    return float((field.square() * torch.from_numpy(latitude_weights(GRID))[:, None]).mean())


@pytest.mark.parametrize("degree", [0, 1, 5, 6, 11, 12, 17, 18, 22])
def test_a_spherical_harmonic_lies_in_its_own_band(degree):
    """To 0.2 % of its power; the area weights of 25 rows are no exact quadrature."""
    place = sum(degree > cut for cut in CUTS)
    for order in sorted({0, degree // 2, degree}):
        field = harmonic(degree, order)
        share = np.array([power(part) for part in bands_of().split(field)]) / power(field)
        assert share[place] > 0.998, (order, share)
        assert np.delete(share, place).max() < 2e-3, (order, share)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1,), (3, 9), (2, 4, 8, 16)]))
def test_bands_add_up_to_the_field_and_are_linear(seed, cuts):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, *GRID.shape[::-1], 3, generator=generator, dtype=torch.float64) for _ in range(2))
    bands = Bands(GRID, cuts).double()
    assert len(bands.split(a)) == len(cuts) + 1
    assert torch.allclose(sum(bands.split(a)), a, atol=1e-12)
    for one, other, both in zip(bands.split(a), bands.split(b), bands.split(2 * a - b), strict=True):
        assert torch.allclose(2 * one - other, both, atol=1e-12)


def test_a_band_that_is_cut_again_stays():
    bands = bands_of()
    field = torch.randn(1, *GRID.shape[::-1], 2, generator=GENERATOR, dtype=torch.float64)
    for number, part in enumerate(bands.split(field)):
        again = bands.split(part)
        assert torch.allclose(again[number], part, atol=1e-6)


@pytest.mark.parametrize("kind", ["crps", "biased_crps", "mse"])
def test_loss_is_the_mean_of_the_bands_own(kind):
    """Each pair of members by hand, on bands of the members and not of their errors."""
    bands, count = bands_of(kind), 3
    shape = (*GRID.shape[::-1], 2)
    members = torch.randn(2, count, *shape, generator=GENERATOR, dtype=torch.float64)
    truth = torch.randn(2, *shape, generator=GENERATOR, dtype=torch.float64)
    alpha = torch.tensor([0.5, 1.5], dtype=torch.float64)
    bands.measure(torch.randn(9, *shape, generator=GENERATOR, dtype=torch.float64) * torch.tensor([1.0, 5.0]))
    area = torch.from_numpy(latitude_weights(GRID))[:, None]
    found = []
    for x, y, size in zip(bands.split(members), bands.split(truth), bands.size, strict=True):
        if kind == "mse":
            score = ((x - y[:, None]) / size).square().mean(1)
        else:
            pairs = sum((x[:, i] - x[:, j]).abs() for i in range(count) for j in range(count))
            score = (x - y[:, None]).abs().mean(1) - pairs / (2 * count * (count - (kind == "crps")))
            score = score / size
        found.append((score * area * alpha).mean())
    assert float(bands(members, truth, alpha)) == pytest.approx(float(sum(found) / 4), rel=1e-6)


def test_sizes_are_those_of_the_bands_without_the_mean_state():
    """A wave of amplitude 3 in the second band, random phases, on a mean of 100 with a wave in the third."""
    turns = [harmonic(8, 8).roll(k, dims=1)[0] for k in (0, 1, 2, 4, 5, 7)]
    mean = 100 + 10 * harmonic(14, 3)[0]
    states = torch.stack([mean + 3 * t for t in turns])
    bands = bands_of()
    bands.measure(states)
    varying = torch.stack(turns) - torch.stack(turns).mean(0)
    expected = 3 * np.sqrt(power(varying) * 1.0)
    assert float(bands.size[1, 0]) == pytest.approx(expected, rel=2e-3)
    assert float(bands.size[2, 0]) < 0.01 * expected


def test_too_much_power_at_small_scales_costs_more_than_at_points():
    """Members whose smallest scales are ten times too strong: the field's own score hardly changes."""
    from xmosaic.training.loss import ensemble_loss

    large, wave = harmonic(3, 2), harmonic(20, 7)
    wave = 0.01 * wave * (large.square().mean() / wave.square().mean()).sqrt()
    phases = [wave.roll(7 * k, dims=1) for k in range(9)]
    bands, alpha = bands_of(), torch.ones(1, dtype=torch.float64)
    bands.measure(torch.cat([f * large + p for f, p in zip((1, -1, 2, -2), phases[1:], strict=False)]))
    area, truth = torch.from_numpy(latitude_weights(GRID)), large + phases[0]
    factors = 1 + 0.3 * torch.linspace(-1, 1.5, 8, dtype=torch.float64)

    def scores(strength):
        members = torch.stack([f * large + strength * p for f, p in zip(factors, phases[1:], strict=True)], dim=1)
        return float(ensemble_loss(members, truth, area, alpha)[0]), float(bands(members, truth, alpha))

    right, wrong = scores(1.0), scores(10.0)
    assert wrong[0] < 1.5 * right[0] and wrong[1] > 4 * right[1]


def test_gradients_flow_in_mixed_precision_and_nothing_is_rounded_to_16_bits():
    bands, alpha = Bands(GRID, CUTS), torch.ones(2)
    shape = (*GRID.shape[::-1], 2)
    members = torch.randn(1, 2, *shape, generator=GENERATOR, requires_grad=True)
    truth = torch.randn(1, *shape, generator=GENERATOR)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = bands(members, truth, alpha)
    mixed.backward()
    assert float(mixed.detach()) == pytest.approx(float(bands(members, truth, alpha).detach()), rel=1e-5)
    assert torch.isfinite(members.grad).all() and float(members.grad.abs().sum()) > 0


@pytest.mark.parametrize("cuts", [(5, 5), (9, 3), (0, 4), (24,)])
def test_cuts_that_can_not_be_made(cuts):
    with pytest.raises(ArgumentError, match="ascending numbers from 1 to 23"):
        Bands(GRID, cuts)


def test_training_with_bands():
    """The loss is the field's and the bands'; the history's is by channel without them."""
    from test_training import BASE, _train

    plain = _train(dataclasses.replace(BASE, stages=BASE.stages[:1]))
    with_bands = _train(dataclasses.replace(BASE, stages=BASE.stages[:1], bands=(2, 4), band_weight=0.5))
    first, second = plain.history, with_bands.history
    assert float(second["loss"][0]) > float(first["loss"][0]) + 0.05
    by_channel = [name for name in first.data_vars if "channel" in first[name].dims and "update" in first[name].dims]
    assert by_channel
    for name in by_channel:
        assert np.allclose(first[name][0], second[name][0], rtol=1e-5)
    assert with_bands.provenance["training"]["bands"] == [2, 4]
