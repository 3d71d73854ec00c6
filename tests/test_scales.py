"""Are errors measured in what they are said to be measured in?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import BASE, DS

import xmosaic
from xmosaic.errors import ArgumentError
from xmosaic.grid import LatLonGrid
from xmosaic.training import bands, scales
from xmosaic.training.samples import TrainingData
from xmosaic.variables import Schema

GRID = LatLonGrid.equiangular(12, 7)


def moving(sizes, times=9, seed=0):
    """Changes of channels whose root mean square is known: one value everywhere, of either sign."""
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], (times, *GRID.shape[::-1], 1))
    return torch.from_numpy((sign * np.asarray(sizes)).astype(np.float32))


def test_a_channel_counts_by_its_own_change():
    alpha = scales.by_change(np.array([1.0, 1.0, 3.0]), moving([0.1, 1.0, 0.5]), GRID, "crps")
    np.testing.assert_allclose(alpha / alpha[1], [10, 1, 6], rtol=1e-6)
    assert alpha.mean() == pytest.approx(1)
    squared = scales.by_change(np.ones(3), moving([0.1, 1.0, 0.5]), GRID, "mse")
    np.testing.assert_allclose(squared / squared[1], [100, 1, 4], rtol=1e-5)


@given(
    st.lists(st.floats(0.02, 1), min_size=2, max_size=5),
    st.floats(0.1, 10),
    st.sampled_from(["crps", "biased_crps", "mse"]),
)
def test_units_do_not_matter(sizes, factor, loss):
    """Errors over changes are the same numbers, whatever the fields were divided by before."""
    one = scales.by_change(np.ones(len(sizes)), moving(sizes), GRID, loss)
    other = scales.by_change(np.ones(len(sizes)), moving(np.array(sizes) * factor), GRID, loss)
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_a_channel_that_stands_still_does_not_count_for_all():
    alpha = scales.by_change(np.ones(3), moving([0.0, 1.0, 1.0]), GRID, "crps")
    np.testing.assert_allclose(alpha / alpha[1], [100, 1, 1], rtol=1e-6)


def test_changes_of_a_dataset_are_over_one_step():
    schema = Schema.from_variables(dict(BASE.variables))
    data = TrainingData(DS, schema, pd.Timedelta("1D"), 2)
    channels = len(schema.state)
    mean, std = np.linspace(-1, 1, channels), np.linspace(1, 2, channels)
    found = scales.sampled(data, BASE.train, mean, std, True)
    starts = data.windows(BASE.train, 1).starts  # fewer than are sampled: all of them
    assert found.shape == (len(starts), *data.grid.shape[::-1], channels)
    name, level = next((c.variable, c.level) for c in schema.state)
    field = DS[name] if level is None else DS[name].sel(level=level)
    after, before = (field.sel(time=t).transpose("time", "longitude", "latitude") for t in (starts + data.step, starts))
    expected = after.sortby(["longitude", "latitude"]).values - before.sortby(["longitude", "latitude"]).values
    np.testing.assert_allclose(found[..., 0].numpy(), expected / std[0], rtol=1e-4, atol=1e-5)
    states = scales.sampled(data, BASE.train, mean, std, False)
    # the change of a state is what it lacks to the next
    order = {t: i for i, t in enumerate(starts)}
    i, j = next((order[t], order[t + data.step]) for t in starts if t + data.step in order)
    np.testing.assert_allclose((states[j] - states[i]).numpy(), found[i].numpy(), rtol=1e-3, atol=1e-4)


def test_bands_are_measured_by_change_too(monkeypatch):
    given, measure = [], bands.Bands.measure
    monkeypatch.setattr(bands.Bands, "measure", lambda self, x: given.append(x) or measure(self, x))
    short = {"stages": (xmosaic.Stage(1, batch_size=2),), "bands": (1, 2), "validation_samples": 1}
    for scale in ("state", "change"):
        xmosaic.train(DS, dataclasses.replace(BASE, error_scale=scale, **short), progress=False)
    state, change = given
    assert state.shape == change.shape and not torch.equal(state, change)


def test_it_is_another_loss_and_is_written_down(tmp_path):
    short = dataclasses.replace(BASE, stages=(xmosaic.Stage(2, batch_size=2),), validation_samples=1)
    plain = xmosaic.train(DS, short, progress=False)
    config = dataclasses.replace(short, error_scale="change")
    model = xmosaic.train(DS, config, out=tmp_path / "run", progress=False)
    assert model.provenance["training"]["error_scale"] == "change"
    assert float(model.history["loss"][0]) != float(plain.history["loss"][0])
    assert xmosaic.TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ArgumentError, match="error_scale"):
        xmosaic.train(DS, short, out=tmp_path / "run", resume=True, progress=False)


def test_a_config_of_before_measures_in_states():
    old = BASE.to_dict()
    del old["error_scale"]
    assert xmosaic.TrainConfig.from_dict(old) == BASE
