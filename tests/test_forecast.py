"""Is the forecast the one that the network makes, and does it say what it is?"""

from __future__ import annotations

import dataclasses
import itertools

import cf_xarray  # noqa: F401  (registers .cf)
import dask
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import GRID, SCHEMA, make_dataset, make_model

import xmosaic
from xmosaic.errors import ArgumentError, DatasetError, MosaicError
from xmosaic.forecast import clock_at, clock_fractions, forecast, member_noise
from xmosaic.grid import LatLonGrid
from xmosaic.healpix import to_healpix, to_latlon
from xmosaic.variables import Schema

MODEL = make_model()
DS = make_dataset()


def run(ds=DS, lead="2D", members=2, **options):
    return forecast(ds, lead, members, **({"model": MODEL, "progress": False} | options))


def no_compute(dsk, keys, **kwargs):
    raise AssertionError("something was computed")


# Is it the network's own rollout?


def rollout_by_hand(ds, start, members, steps, seed=0, model=MODEL):
    """Physical states (member, lead, longitude, latitude, channel) with nothing but the network's forward."""
    start = pd.Timestamp(start)
    columns = [ds[c.variable].sel(level=c.level) if c.level else ds[c.variable] for c in model.schema.state]
    fields = xr.concat(columns, "channel", coords="minimal", compat="override").transpose(
        "time", "longitude", "latitude", "channel"
    )
    normal = (fields.astype("float64") - model.mean) / model.std
    count, step = model.config.num_history, model.step
    times = [start - i * step for i in reversed(range(count))]
    history = torch.tensor(normal.sel(time=times).values, dtype=torch.float32)
    result = []
    for number in range(1, members + 1):
        x, states = history[None, None], []
        for lead in range(steps):
            noise = torch.from_numpy(member_noise(seed, start, [number], lead, model.config.noise_dim))[None]
            clock = torch.tensor([clock_fractions(start + lead * step)], dtype=torch.float32)
            y = model.network(x, clock, noise)
            x = torch.cat([x[:, :, 1:], y[:, :, None]], dim=2)
            states.append(y[0, 0].double().numpy() * model.std + model.mean)
        result.append(states)
    return np.array(result)


def test_every_field_is_that_of_a_rollout_by_hand():
    fc = run(lead="4D", members=3, batch_size=2, seed=7)
    expected = rollout_by_hand(DS, DS.time.values[-1], 3, 4, seed=7)
    for i, channel in enumerate(MODEL.schema.state):
        field = fc[channel.variable].sel(level=channel.level) if channel.level else fc[channel.variable]
        got = field.transpose("number", "prediction_timedelta", "longitude", "latitude")
        np.testing.assert_allclose(got, expected[..., i], rtol=0, atol=1e-4 * MODEL.std[i])


def test_several_starts_are_each_their_own_forecast():
    starts = ["2020-03-02", "2020-02-29", "2020-03-01"]
    fc = run(time=starts, members=3, batch_size=7)
    assert fc.time.values.astype("datetime64[D]").astype(str).tolist() == starts
    for start in starts:
        alone = run(time=start, members=3).drop_vars(["valid_time"])
        for name in fc:
            np.testing.assert_allclose(
                fc[name].sel(time=start), alone[name], rtol=0, atol=1e-3 * float(abs(alone[name]).max())
            )


def test_more_times_in_the_history_are_taken_in_order():
    model = make_model(num_history=3, step_hours=6)
    ds = make_dataset(freq="6h", periods=6)
    fc = run(ds, "12h", model=model, time="2020-02-28")
    expected = rollout_by_hand(ds, "2020-02-28", 2, 2, model=model)
    got = fc["2m_temperature"].transpose("number", "prediction_timedelta", "longitude", "latitude")
    np.testing.assert_allclose(got, expected[..., 0], atol=1e-3)


def test_forcing_of_a_valid_time_enters_the_step_after_it():
    schema = Schema.from_variables({"2m_temperature": None}, forcing=["sea_surface_temperature"])
    model, ds = make_model(schema), make_dataset(schema, periods=6)
    start = ds.time.values[1]
    base = run(ds, "4D", 1, model=model, time=start)
    assert list(base) == ["2m_temperature"]
    for changed, first in ((1, 1), (2, 2), (3, 3), (4, 4), (5, None)):
        other = ds.copy(deep=True)
        other["sea_surface_temperature"][changed] += 5.0
        differs = [
            bool((a != b).any())
            for a, b in zip(
                base["2m_temperature"][0],
                run(other, "4D", 1, model=model, time=start)["2m_temperature"][0],
                strict=True,
            )
        ]
        # the forcing of the start enters lead 1; that of a lead's valid time the lead after
        assert differs == [first is not None and lead >= first for lead in range(1, 5)]


def test_the_state_is_not_looked_at_where_only_the_forcing_is_needed():
    schema = Schema.from_variables({"2m_temperature": None}, forcing=["sea_surface_temperature"])
    model, ds = make_model(schema), make_dataset(schema)
    known = ds.assign({"2m_temperature": ds["2m_temperature"].where(ds.time <= ds.time[1])})
    options = {"model": model, "time": ds.time.values[1]}
    xr.testing.assert_equal(run(known, "3D", 1, **options), run(ds, "3D", 1, **options))


def test_missing_forcing_is_named():
    schema = Schema.from_variables({"2m_temperature": None}, forcing=["sea_surface_temperature"])
    with pytest.raises(DatasetError, match="forcing of 2020-03-03.*missing.*sea_surface_temperature"):
        run(make_dataset(schema), "3D", 1, model=make_model(schema))


def test_a_deterministic_model_makes_one_member():
    model = make_model(noise_dim=0)
    assert run(members=1, model=model).sizes["number"] == 1
    with pytest.raises(ArgumentError, match="members=2 of a model without noise"):
        run(model=model)


# Is member i the same member whatever else is asked for?


def test_noise_depends_on_seed_start_member_and_step_alone():
    start = pd.Timestamp("2020-01-01")
    together = member_noise(3, start, [1, 2, 3], 5, 32)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together[1:2], member_noise(3, start, [2], 5, 32))
    np.testing.assert_array_equal(together[::-1], member_noise(3, start, [3, 2, 1], 5, 32))
    keys = itertools.product(
        (0, 1, 2**64 - 1), (start, start + pd.Timedelta("6h"), pd.Timestamp("1950-01-01")), (1, 2), (0, 1)
    )
    draws = {member_noise(seed, at, [number], step, 4).tobytes() for seed, at, number, step in keys}
    assert len(draws) == 3 * 3 * 2 * 2


def test_noise_is_standard_normal_and_white():
    draws = member_noise(0, pd.Timestamp("2020-01-01"), range(1, 2001), 0, 32)
    assert scipy.stats.kstest(draws.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(draws.T) - np.eye(32)
    assert abs(correlation).max() < 5 / np.sqrt(2000)
    other = member_noise(0, pd.Timestamp("2020-01-01"), range(1, 2001), 1, 32)
    assert abs(np.mean(draws * other)) < 5 / np.sqrt(draws.size)


def test_noise_of_a_seed_never_changes():
    # Pinned: another value means that nobody's forecast can be made again.
    got = member_noise(42, pd.Timestamp("2020-01-01T06"), [1, 7], 3, 3)
    np.testing.assert_allclose(got, PINNED, rtol=1e-6)


PINNED = [[-0.4342912, -2.207371, 0.1943451], [1.8809429, -1.6611482, -0.343493]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_members_do_not_depend_on_batch_size(batch_size):
    whole, parts = run(members=5, lead="10D", batch_size=5), run(members=5, lead="10D", batch_size=batch_size)
    for name in whole:
        scale = float(whole[name].std())
        np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=1e-4 * scale)


def test_members_do_not_depend_on_the_size_of_the_ensemble_or_the_order_of_starts():
    times = ["2020-03-02", "2020-02-28"]
    few, many = run(members=2, batch_size=2, time=times[::-1]), run(members=6, batch_size=2, time=times)
    # the same shape of batch, so the same bits
    for name in few:
        xr.testing.assert_equal(few[name].sortby("time"), many[name].sel(number=[1, 2]).sortby("time"))


def test_bundled_members_agree_to_rounding_for_the_first_days():
    """Not for ever: once rounding makes the attention pick another block, weather goes its own way (docs/beware.md)."""
    ds = xmosaic.open_sample()
    options = {"model": "bundled", "progress": False}
    one, four = (forecast(ds, "2D", 4, batch_size=n, **options) for n in (1, 4))
    model = xmosaic.load_model("bundled")
    for channel, std in zip(model.schema.state, model.std, strict=True):
        at = {"level": channel.level} if channel.level else {}
        difference = abs(one[channel.variable].sel(at) - four[channel.variable].sel(at))
        assert float(difference.max()) < 1e-3 * std, channel.name


def test_seeds_differ_and_members_differ():
    a, b = run(seed=0), run(seed=1)
    assert (a["2m_temperature"] != b["2m_temperature"]).mean() > 0.9
    assert (a["2m_temperature"].sel(number=1) != a["2m_temperature"].sel(number=2)).mean() > 0.9
    xr.testing.assert_equal(a.drop_attrs(), run(seed=0).drop_attrs())


# Is the clock right?


def test_clock_of_the_calendar():
    assert clock_fractions(pd.Timestamp("2019-01-01T06")) == (0.25, 0.0)
    assert clock_fractions(pd.Timestamp("2019-12-31")) == (0.0, 364 / 365)
    assert clock_fractions(pd.Timestamp("2020-12-31T12")) == (0.5, 365 / 366)
    model = make_model(step_hours=6)
    assert clock_at(model, pd.Timestamp("2019-12-31T18"), 1) == (0.0, 0.0)


def test_clock_of_the_release_advances_by_fixed_increments():
    start = pd.Timestamp("2020-06-01T06")
    for hours in (6, 24):
        model = make_model(step_hours=hours, clock="release")
        day, year = clock_at(model, start, 3)
        first = clock_fractions(start)
        assert clock_at(model, start, 0) == first
        # stride in units of six hours: a quarter of a day, but a whole day of the year
        assert day - first[0] == pytest.approx(3 * (hours / 6) / 4)
        assert year - first[1] == pytest.approx(3 * (hours / 6) / 365.25)


def test_both_clocks_reach_the_network():
    calendar, release = make_model(), make_model(clock="release")
    a, b = run(model=calendar, lead="3D"), run(model=release, lead="3D")
    at = {"prediction_timedelta": 0}
    xr.testing.assert_equal(a["2m_temperature"].isel(at), b["2m_temperature"].isel(at))
    assert (a["2m_temperature"].isel(prediction_timedelta=2) != b["2m_temperature"].isel(prediction_timedelta=2)).any()


# Does the result say what it is?


def test_layout_of_one_start():
    fc = run(lead="3D")
    assert fc["geopotential"].dims == ("number", "prediction_timedelta", "level", "latitude", "longitude")
    assert fc["2m_temperature"].dims == ("number", "prediction_timedelta", "latitude", "longitude")
    assert fc["time"].shape == () and fc["time"].values == DS.time.values[-1]
    assert fc["number"].values.tolist() == [1, 2]
    assert (fc["prediction_timedelta"].values == pd.to_timedelta(["1D", "2D", "3D"])).all()
    assert (fc["valid_time"] == fc["time"] + fc["prediction_timedelta"]).all()
    assert fc["level"].values.tolist() == [500, 850]
    assert all(fc[name].dtype == np.float32 for name in fc)


def test_layout_of_several_starts():
    fc = run(time=["2020-02-28", "2020-03-01"])
    assert fc["geopotential"].dims[:4] == ("time", "number", "prediction_timedelta", "level")
    assert fc["valid_time"].dims == ("time", "prediction_timedelta")
    assert run(time=["2020-03-01"]).sizes["time"] == 1
    assert run(time=slice("2020-02-28", None)).sizes["time"] == 4


def test_attributes_follow_cf():
    fc = run()
    assert fc.attrs["Conventions"] == "CF-1.13"
    assert fc.attrs["seed"] == 0
    assert fc.attrs["license"] == "BSD-3-Clause"
    for piece in (xmosaic.__version__, "tests", MODEL.sha256, "cpu", "float32"):
        assert piece in fc.attrs["source"]
    for name in fc:
        assert {"standard_name", "long_name", "units"} <= set(fc[name].attrs), name
    standard_names = {
        "time": "forecast_reference_time",
        "prediction_timedelta": "forecast_period",
        "valid_time": "time",
        "number": "realization",
        "level": "air_pressure",
        "latitude": "latitude",
        "longitude": "longitude",
    }
    assert {name: fc[name].attrs["standard_name"] for name in standard_names} == standard_names
    assert all("units" not in fc[name].attrs for name in ("time", "valid_time", "prediction_timedelta"))
    assert (fc["level"].attrs["positive"], fc["level"].attrs["axis"]) == ("down", "Z")


def test_cf_xarray_finds_every_coordinate():
    fc = run()
    field = fc["geopotential"]
    assert field.cf.mean("realization").dims == field.dims[1:]
    found = fc.cf.standard_names
    assert found["forecast_period"] == ["prediction_timedelta"] and found["realization"] == ["number"]
    assert fc.cf["latitude"].name == "latitude" and fc.cf["vertical"].name == "level"


def test_levels_that_are_not_predicted_are_nan_and_said():
    fc = run()
    assert fc["u_component_of_wind"].sel(level=500).isnull().all()
    assert fc["u_component_of_wind"].sel(level=850).notnull().all()
    assert "850 hPa only" in fc["u_component_of_wind"].attrs["comment"]
    assert "comment" not in fc["geopotential"].attrs


def test_an_untrained_model_says_so():
    fc = forecast(xmosaic.open_sample(), "1D", 1, model="bundled", progress=False)
    if xmosaic.load_model("bundled").untrained:
        assert "UNTRAINED" in fc.attrs["comment"] and "untrained" in fc.attrs["title"]
    else:
        assert "UNTRAINED" not in str(fc.attrs)


def test_opens_again_unchanged_from_zarr_and_netcdf(tmp_path):
    for k, fc in enumerate([run(), run(time=["2020-02-28", "2020-03-01"], variables="geopotential_500")]):
        fc.to_zarr(tmp_path / f"{k}.zarr", zarr_format=3, consolidated=False)
        xr.testing.assert_identical(xr.open_zarr(tmp_path / f"{k}.zarr", consolidated=False).load(), fc)
        fc.to_netcdf(tmp_path / f"{k}.nc")
        with xr.open_dataset(tmp_path / f"{k}.nc") as again:
            xr.testing.assert_identical(again.load(), fc)


def test_the_input_is_not_changed():
    before = DS.copy(deep=True)
    run()
    xr.testing.assert_identical(DS, before)


# Does the caller get their own order and names back?


@st.composite
def disguises(draw):
    """The same fields in another order of rows, columns and dimensions, with other names."""
    return {
        "flip": draw(st.booleans()),
        "west": draw(st.booleans()),
        "repeat": draw(st.booleans()),
        "short": draw(st.booleans()),
        "dims": draw(st.permutations(["time", "level", "latitude", "longitude"])),
        "unsorted": draw(st.booleans()),
    }


def disguise(ds, flip, west, repeat, short, dims, unsorted):
    if west:
        ds = ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180).sortby("longitude")
    if repeat:
        again = ds.isel(longitude=[0]).assign_coords(longitude=ds.longitude[[0]] + 360)
        ds = xr.concat([ds, again], "longitude")
    if flip:
        ds = ds.isel(latitude=slice(None, None, -1), level=slice(None, None, -1))
    if unsorted:
        ds = ds.isel(latitude=[3, 0, 6, 1, 2, 5, 4], time=[1, 0, 3, 2, 4])
    ds = ds.transpose(*dims)
    return ds.rename({"latitude": "lat", "longitude": "lon", "2m_temperature": "t2m"}) if short else ds


@given(disguises())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_disguise_gives_the_same_forecast_in_the_callers_order(how):
    plain, ds = run(members=1, lead="1D"), disguise(DS, **how)
    fc = run(ds, members=1, lead="1D")
    lat, lon = ("lat", "lon") if how["short"] else ("latitude", "longitude")
    np.testing.assert_array_equal(fc[lat], ds[lat])
    np.testing.assert_array_equal(fc[lon], ds[lon][:12])
    last_two = [d for d in ds["mean_sea_level_pressure"].dims if d in (lat, lon)]
    assert list(fc["mean_sea_level_pressure"].dims[-2:]) == last_two
    back = fc.rename({lat: "latitude", lon: "longitude"}).assign_coords(longitude=fc[lon].values % 360)
    for name in plain:
        # bit for bit: whatever the order outside, the tensor inside is the same
        xr.testing.assert_equal(
            back[name].sortby("longitude").sortby("latitude").transpose(*plain[name].dims), plain[name]
        )


# Another grid


@pytest.mark.parametrize("nlon_nlat", [(24, 13), (8, 5)])
def test_another_grid_is_regridded_conservatively_and_said(nlon_nlat):
    other = LatLonGrid.equiangular(*nlon_nlat)
    ds = make_dataset(grid=other).isel(latitude=slice(None, None, -1))
    fc = run(ds)
    assert (fc.sizes["longitude"], fc.sizes["latitude"]) == (12, 7)
    assert fc["latitude"].values[0] == 90  # as the caller has it: from north to south
    assert "regridded conservatively" in fc.attrs["comment"]
    expected = run(to_latlon(ds, GRID))
    for name in fc:
        scale = float(abs(expected[name]).max())
        np.testing.assert_allclose(fc[name].sortby("latitude"), expected[name], atol=1e-5 * scale)


def test_regridding_back_gives_the_callers_grid_and_keeps_the_integral():
    other = LatLonGrid.equiangular(24, 13)
    ds = make_dataset(grid=other).rename(latitude="lat", longitude="lon")
    ours, back = run(ds), run(ds, grid="input")
    assert (back.sizes["lon"], back.sizes["lat"]) == (24, 13)
    assert "back" in back.attrs["comment"]
    for name in ("2m_temperature", "mean_sea_level_pressure"):
        area, fine = (
            GRID.cell_area().rename(latitude="lat", longitude="lon"),
            other.cell_area().rename(latitude="lat", longitude="lon"),
        )
        np.testing.assert_allclose(
            (back[name].astype("f8") * fine).sum(["lat", "lon"]),
            (ours[name].astype("f8") * area).sum(["lat", "lon"]),
            rtol=1e-6,
        )


def test_names_of_the_models_grid_play_no_part():
    renamed = LatLonGrid(GRID.latitude, GRID.longitude, "lat", "lon")
    ds = make_dataset(grid=LatLonGrid.equiangular(24, 13))
    for grid in ("model", "input"):
        fc = run(ds, model=dataclasses.replace(MODEL, grid=renamed), grid=grid)
        xr.testing.assert_equal(fc.drop_attrs(), run(ds, grid=grid).drop_attrs())


def test_a_grid_that_fits_is_left_alone():
    nearly = DS.assign_coords(longitude=DS.longitude.astype("float32"), latitude=DS.latitude.astype("float32"))
    assert "regridded" not in run(nearly).attrs.get("comment", "")
    assert (run(nearly)["2m_temperature"].values == run()["2m_temperature"].values).all()


def test_a_healpix_dataset_starts_a_forecast():
    on_mesh = to_healpix(DS, 8)
    fc = run(on_mesh)
    expected = run(to_latlon(on_mesh, GRID))
    np.testing.assert_allclose(fc["geopotential"], expected["geopotential"], rtol=1e-6)
    assert "HEALPix" in fc.attrs["comment"]
    with pytest.raises(ArgumentError, match="grid='input' does not lead back to a HEALPix mesh.*to_healpix"):
        run(on_mesh, grid="input")
    assert fc.mosaic.to_healpix(nside=8).sizes["cell"] == 768


# Lazy = eager


def test_dask_gives_the_same_and_only_the_needed_times_are_read():
    lazy = DS.chunk(time=1, latitude=3)
    xr.testing.assert_identical(run(lazy).drop_attrs(), run().drop_attrs())
    poisoned = xr.concat(
        [DS.isel(time=slice(0, 3)).chunk(time=1) * np.nan, DS.isel(time=slice(3, None)).chunk(time=1)], "time"
    )
    touched = []

    def watch(block, block_info=None):
        touched.append(block_info[0]["array-location"][0] if block_info else None)
        return block

    watched = DS.chunk(time=1).map(
        lambda a: a.copy(data=a.data.map_blocks(watch, dtype=a.dtype, meta=np.empty((0,) * a.ndim, a.dtype)))
    )
    touched.clear()
    run(watched)
    assert touched and all(place[0] >= 3 for place in touched if place)
    assert run(poisoned)["2m_temperature"].notnull().all()


def test_checks_of_metadata_compute_nothing():
    from xmosaic.state import State

    with dask.config.set(scheduler=no_compute):
        State(DS.chunk(time=1), MODEL, None).report(values=False)


# Which model?


def test_model_of_the_options_is_used():
    with xmosaic.set_options(model=MODEL, progress=False):
        assert "model tests" in forecast(DS, "1D", 1).attrs["source"]
    with pytest.raises(DatasetError, match="None of the known models fit"):
        forecast(DS, "1D", 1)


def test_the_one_model_that_fits_is_chosen_and_said(capsys):
    fc = forecast(xmosaic.open_sample(), "1D", 1, progress=True)
    assert "model bundled" in fc.attrs["source"]
    assert "model 'bundled': its channels and grid are those of the dataset" in capsys.readouterr().err
    forecast(xmosaic.open_sample(), "1D", 1, progress=False)
    forecast(xmosaic.open_sample(), "1D", 1, model="bundled", progress=True)
    assert "are those of the dataset" not in capsys.readouterr().err


def test_none_and_several_models_are_listed():
    with pytest.raises(DatasetError, match=r"(?s)None of the known.*bundled: .*not found.*era5: .*hres: "):
        forecast(DS, "1D", 1)
    from xmosaic.variables import published_schema

    whole = xr.Dataset(
        {
            v: xr.DataArray(
                dask.array.zeros((5, *([13] if c[0].level else []), 121, 240), chunks=-1),
                dims=("time", *(["level"] if c[0].level else []), "latitude", "longitude"),
            )
            for role, v, c in published_schema().groups()
            if role == "state"
        },
        coords=LatLonGrid.equiangular(240, 121).coordinates()
        | {"time": DS.time.values, "level": list(published_schema().levels)},
    )
    with (
        dask.config.set(scheduler=no_compute),
        pytest.raises(DatasetError, match=r"(?s)Several.*era5: fits.*hres: fits"),
    ):
        forecast(whole, "1D", 1)


# Bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lead": 10}, "lead=10 has no units.*lead='10D'"),
        ({"lead": "240"}, "has no units"),
        ({"lead": 2.5}, "has no units"),
        ({"lead": "soon"}, "is no time span"),
        ({"lead": "-1D"}, "can't be used"),
        ({"lead": pd.NaT}, "can't be used"),
        ({"lead": "36h"}, r"no multiple of the step.*24 h, such as 1 day or 2 days"),
        ({"members": 0}, "members=0 can't be used"),
        ({"members": -3}, "members=-3"),
        ({"members": 2.0}, "whole number"),
        ({"members": True}, "whole number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed="),
        ({"seed": 1.5}, "seed=1.5"),
        ({"every": "36h"}, "every='36h' is no multiple"),
        ({"every": "5D"}, "every is longer than lead"),
        ({"variables": ["geopotential", "wind"]}, "'wind' is not in this schema"),
        ({"variables": []}, "names nothing|least one"),
        ({"device": "tpu"}, "device='tpu' can't be used"),
        ({"device": "cuda:99"}, "device='cuda:99' can't be used"),
        ({"dtype": "int8"}, "dtype='int8' can't be used"),
        ({"grid": "mine"}, "grid='mine'"),
        ({"time": "someday"}, "is no time"),
        ({"time": ["2020-03-01", "2020-03-01"]}, "names a start twice"),
        ({"time": pd.Timestamp("2020-03-01", tz="UTC")}, "without zone"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        run(**options)


def test_timedeltas_of_every_kind_are_leads():
    for lead in ("2D", "48h", pd.Timedelta("2D"), np.timedelta64(2, "D"), np.timedelta64(48, "h")):
        assert run(lead=lead).sizes["prediction_timedelta"] == 2


def test_unknown_model():
    with pytest.raises(MosaicError, match="no model 'gfs'.*'bundled', 'era5', 'hres'"):
        run(model="gfs")


def test_a_result_larger_than_memory_is_refused_before_anything_runs(monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["xmosaic.plan"], "available_memory", lambda: 1000)
    with pytest.raises(ArgumentError, match="GB of memory.*store='forecast.zarr'"):
        run()


def test_default_batch_leaves_room_in_memory(monkeypatch):
    import sys

    seen = []
    forward = type(MODEL.network).forward
    monkeypatch.setattr(
        type(MODEL.network), "forward", lambda net, h, *a: seen.append(h.shape[1]) or forward(net, h, *a)
    )
    for members_that_fit, expected in ((0, 1), (2.5, 2), (100, 4)):
        room = int(MODEL.member_bytes() * members_that_fit / 0.6) + 4 * 10**6 * (members_that_fit == 100)
        monkeypatch.setattr(sys.modules["xmosaic.plan"], "available_memory", lambda room=room: room or None)
        seen.clear()
        run(members=4, lead="1D")
        assert seen[0] == expected


def test_a_forecast_that_blows_up_is_stopped_and_named():
    model = make_model()
    with torch.no_grad():
        model.network.postprocess[3].weight[2] = float("inf")
    with pytest.raises(MosaicError, match=r"no longer finite after 1 day.*geopotential_500"):
        run(model=model)


def test_kept_leads_and_variables():
    whole, part = run(lead="6D"), run(lead="6D", every="2D", variables=["t2m", "geopotential_850"])
    assert list(part) == ["2m_temperature", "geopotential"]
    assert part["level"].values.tolist() == [850]
    assert (part["prediction_timedelta"].values == pd.to_timedelta(["2D", "4D", "6D"])).all()
    xr.testing.assert_equal(
        part["geopotential"], whole["geopotential"].sel(level=[850], prediction_timedelta=part.prediction_timedelta)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-4), ("bfloat16", 0.2), ("float16", 0.05)])
def test_other_arithmetic_gives_the_same_forecast_to_its_precision(dtype, tolerance):
    single, other = run(lead="1D"), run(lead="1D", dtype=dtype)
    for i, c in enumerate(SCHEMA.state):
        a, b = (f[c.variable].sel(level=c.level) if c.level else f[c.variable] for f in (single, other))
        assert float(abs(a - b).max()) < tolerance * MODEL.std[i]
    assert dtype in other.attrs["source"]
    assert next(MODEL.network.parameters()).dtype == torch.float32


def test_progress_bar_is_shown_when_asked_for(capsys, monkeypatch):
    import sys

    module = sys.modules["xmosaic.run"]
    shown = []
    monkeypatch.setattr(
        module, "tqdm", lambda **kw: shown.append(kw) or __import__("tqdm").tqdm(**kw | {"disable": True})
    )
    run(progress=True)
    run(progress=False)
    with xmosaic.set_options(progress=False):
        forecast(DS, "2D", 2, model=MODEL)
    assert [kw["disable"] for kw in shown] == [False, True, True]
    assert shown[0]["total"] == 4 and "tests" in shown[0]["desc"]


def test_eight_bits_need_a_gpu_that_has_them():
    with pytest.raises(ArgumentError, match="float8 can't be used") as error:
        forecast(DS, "1D", 1, model=MODEL, dtype="float8", device="cpu")
    assert "device cpu" in str(error.value) and "bfloat16" in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_eight_bits_are_near_sixteen_and_are_switched_off_again():
    half, eight, again = (
        forecast(xmosaic.open_sample(), "1D", 2, model="bundled", dtype=d, device="cuda", progress=False)
        for d in ("bfloat16", "float8", "bfloat16")
    )
    assert not half.identical(eight)
    assert all(np.array_equal(half[v], again[v]) for v in half.data_vars)
    for name in half.data_vars:
        off, size = (float(np.sqrt((x**2).mean())) for x in (half[name] - eight[name], half[name] - half[name].mean()))
        assert 1e-4 * size < off < 0.3 * size, name
