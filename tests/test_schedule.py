"""The rate at every border, the running mean against its sum, and early stopping."""

import json
import math

import numpy as np
import pytest
import torch
from models import make_model
from torch import nn

from xmosaic.errors import ArgumentError
from xmosaic.training.config import Stage
from xmosaic.training.schedule import EarlyStopping, Ema, learning_rate


def copies(network):
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


# ------------------------------------------------------------------------------------------------------- the rate


def test_rate_at_every_border():
    stage = Stage(updates=1500, warmup=500, learning_rate=0.02, final_rate=0.25)
    assert learning_rate(stage, 0) == 0.02 * 1e-6
    assert learning_rate(stage, 250) == pytest.approx(0.02 * (1e-6 + 1) / 2, rel=1e-12)
    assert learning_rate(stage, 500) == 0.02
    assert learning_rate(stage, 1499) == 0.02 * 0.25
    middle = (learning_rate(stage, 999) + learning_rate(stage, 1000)) / 2
    assert middle == pytest.approx(0.02 * (0.25 + 0.75 / 2), rel=1e-12)
    rates = [learning_rate(stage, place) for place in range(1500)]
    assert np.all(np.diff(rates[:501]) > 0) and np.all(np.diff(rates[500:]) < 0)
    np.testing.assert_allclose(np.diff(rates[:501]), rates[1] - rates[0], rtol=1e-9)
    places = np.arange(1000) / 999
    np.testing.assert_allclose(rates[500:], 0.02 * (0.25 + 0.75 * (1 + np.cos(np.pi * places)) / 2), rtol=1e-12)


def test_rate_without_warmup_begins_at_its_highest():
    stage = Stage(updates=3, learning_rate=0.02)
    assert [learning_rate(stage, p) for p in range(3)] == [0.02, pytest.approx(0.01), 0.0]
    assert [learning_rate(Stage(updates=4, final_rate=1.0), p) for p in range(4)] == [0.02] * 4


def test_rate_of_the_shortest_stages():
    assert learning_rate(Stage(updates=1), 0) == 0.02
    assert [learning_rate(Stage(updates=2, warmup=1), p) for p in range(2)] == [2e-8, 0.02]


@pytest.mark.parametrize("place", [-1, 3])
def test_rate_beyond_the_stage(place):
    with pytest.raises(ArgumentError, match="0 to 2"):
        learning_rate(Stage(updates=3), place)


# --------------------------------------------------------------------------------------------------- running mean


def test_running_mean_is_its_sum():
    """Σ w_s (1 − d_s) Π d_{t > s}, written out in float64, from start-up to constant decay."""
    network, decay = nn.Linear(3, 2), 0.5
    ema = Ema(network, decay)
    values = [copies(network)]
    for update in range(20):
        with torch.no_grad():
            generator = torch.Generator().manual_seed(update)
            for weight in network.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator))
        ema.update(network)
        values.append(copies(network))
    d = [1.0] + [min(decay, (1 + t) / (10 + t)) for t in range(20)]
    assert d[1] == 0.1 and d[-1] == 0.5
    for name, mean in ema.state_dict()["mean"].items():
        shares = [(1 - d[s] if s else 1.0) * math.prod(d[s + 1 :]) for s in range(21)]
        assert sum(shares) == pytest.approx(1)
        expected = sum(share * value[name].double() for share, value in zip(shares, values, strict=True))
        torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6)


def test_running_mean_is_float32_at_least():
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        network = nn.Linear(3, 2, dtype=dtype)
        ema = Ema(network, 0.9)
        ema.update(network)
        assert {v.dtype for v in ema.state_dict()["mean"].values()} == {wide}
        with ema.applied(network):
            assert network.weight.dtype == dtype


def test_applied_swaps_in_and_back():
    network = make_model().network
    ema, mean = Ema(network, 0.9), copies(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3.0)
    own, tensors = copies(network), [id(w) for w in network.parameters()]
    with ema.applied(network):
        assert all(torch.equal(mean[n], w) for n, w in network.named_parameters())
        with pytest.raises(ArgumentError, match="Leave"):
            ema.update(network)
    assert all(torch.equal(own[n], w) for n, w in network.named_parameters())
    with pytest.raises(ZeroDivisionError), ema.applied(network):
        raise ZeroDivisionError
    assert all(torch.equal(own[n], w) for n, w in network.named_parameters())
    assert [id(w) for w in network.parameters()] == tensors
    ema.update(network)  # free again


@pytest.mark.parametrize("decay", [0.0, 1.0, math.nan])
def test_decay_that_cannot_be_used(decay):
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        Ema(nn.Linear(1, 1), decay)


# ------------------------------------------------------------------------------------------------- early stopping


def test_stops_after_patience_and_counts_afresh():
    stopper = EarlyStopping(2)
    values = [5.0, math.nan, 4.0, 4.0, 3.0, 3.5, 3.2]
    assert [stopper.update(v) for v in values] == [False, False, False, False, False, False, True]
    assert stopper.best == 3.0 and stopper.waited == 2


def test_nan_from_the_start_stops():
    stopper = EarlyStopping(2)
    assert [stopper.update(math.nan) for _ in range(2)] == [False, True]
    assert stopper.best == math.inf


def test_no_patience_never_stops():
    assert not any(EarlyStopping(None).update(1.0) for _ in range(100))
    with pytest.raises(ArgumentError, match="1 or more"):
        EarlyStopping(0)


def test_stopping_goes_on_after_an_interruption():
    values = [3.0, 2.0, 2.5, 2.5, 2.5]
    whole = EarlyStopping(3)
    expected = [whole.update(v) for v in values]
    first = EarlyStopping(3)
    found = [first.update(v) for v in values[:3]]
    later = EarlyStopping(3)
    later.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert found + [later.update(v) for v in values[3:]] == expected == [False, False, False, False, True]
