"""Is every problem of a Dataset named, with its fix, and is nothing else in its way?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from models import GRID, SCHEMA, make_dataset, make_model

import xmosaic
from xmosaic.errors import ArgumentError, DatasetError
from xmosaic.grid import LatLonGrid
from xmosaic.state import Fields, State, parse_times
from xmosaic.variables import Schema

MODEL = make_model()
DS = make_dataset()
SHARED = Path(__file__).parents[2] / "shared" / "data"


def report(ds, **options):
    return xmosaic.check(ds, MODEL, **options)


def edited(name, function, **attrs):
    """The dataset with one variable changed, which keeps its attributes but for `attrs`."""
    return DS.assign({name: function(DS[name]).assign_attrs(DS[name].attrs | attrs)})


def without_units(ds):
    for name in ds.data_vars:
        ds[name].attrs.pop("units", None)
    return ds


# What is wrong is named, and what to do

BAD = {
    "no level dimension": (
        lambda: DS.isel(level=0, drop=True),
        [
            "'geopotential' has no level dimension",
            "'u_component_of_wind' has no level dimension",
            "dimension 'level' in hPa",
        ],
    ),
    "geopotential height, by its attributes": (
        lambda: edited("geopotential", lambda z: z / 9.80665, units="m", standard_name="geopotential_height"),
        ["geopotential height, not geopotential", "Multiply by 9.80665"],
    ),
    "geopotential height, by its values": (
        lambda: edited("geopotential", lambda z: 54000 + 0 * z, units="m2 s-2").pipe(
            lambda ds: ds.assign(geopotential=(ds.geopotential / 9.80665).assign_attrs(ds.geopotential.attrs))
        ),
        ["geopotential_500", "geopotential height"],
    ),
    "hPa given as Pa": (
        lambda: edited("mean_sea_level_pressure", lambda p: p / 100),
        ["mean_sea_level_pressure at", "hPa where Pa is meant", "Multiply it by 100"],
    ),
    "degrees Celsius": (
        lambda: edited("2m_temperature", lambda t: t - 273.15),
        ["2m_temperature at", "°C where K is meant", "Add 273.15"],
    ),
    "missing levels": (
        lambda: DS.sel(level=[850]),
        ["'geopotential' lacks levels 500 hPa"],
    ),
    "missing variables": (
        lambda: DS.drop_vars(["2m_temperature", "geopotential"]),
        ["'2m_temperature' is missing", "'geopotential' is missing", "rename it"],
    ),
    "repeated time": (
        lambda: xr.concat([DS, DS.isel(time=[-1])], "time"),
        ["repeated times", "2020-03-02", "drop_duplicates"],
    ),
    "gap in the history": (
        lambda: DS.isel(time=[0, 1, 2, 4]),
        ["2020-03-01 00:00:00 missing", "time='2020-02-29 00:00:00'"],
    ),
    "no history at all": (
        lambda: DS.isel(time=[4]),
        ["history of the start 2020-03-02", "No start has a complete history", "every 24 h"],
    ),
    "no time": (lambda: DS.isel(time=0, drop=True), ["There is no time", "expand_dims"]),
    "NaN in one channel": (
        lambda: edited(
            "geopotential", lambda z: z.where((z.time != DS.time[3]) | (z.level != 850) | (z.latitude < 80))
        ),
        ["geopotential_850 at 2020-03-01 00:00:00 holds NaN", "12 of 84 points", "Fill the gaps"],
    ),
    "infinite values": (
        lambda: edited("2m_temperature", lambda t: t.where(t.latitude < 80, np.inf)),
        ["2m_temperature at", "infinite values"],
    ),
    "regional": (lambda: DS.isel(longitude=slice(0, 5)), ["go around the globe", "Take a global field"]),
    "members of an ensemble": (lambda: DS.expand_dims(number=[1, 2]), ["number", "isel(number=0)"]),
    "no variables": (lambda: xr.Dataset(), ["There is no time", "'2m_temperature' is missing"]),
}


@pytest.mark.parametrize("case", BAD)
def test_problem_is_named_with_its_fix(case):
    make, texts = BAD[case]
    ds = make()
    found = report(ds)
    assert not found.ok
    for text in texts:
        assert text in repr(found), repr(found)
    # a forecast refuses with the same words, and the text form and the HTML form both list them
    with pytest.raises(DatasetError) as error:
        xmosaic.forecast(ds, "1D", 1, model=MODEL, progress=False)
    assert texts[0] in str(error.value)
    assert found._repr_html_().count("<tr>") == len(found._entries())


def test_vertical_velocity_in_metres_per_second_is_refused():
    schema = Schema.from_variables({"vertical_velocity": [500]})
    ds = xr.Dataset(
        {"w": (("time", "level", "latitude", "longitude"), np.zeros((2, 1, *GRID.shape)), {"units": "m s-1"})},
        coords=GRID.coordinates() | {"level": [500], "time": pd.date_range("2020", periods=2)},
    )
    found = xmosaic.check(ds, make_model(schema))
    assert not found.ok
    assert "Pa s-1" in repr(found) and "m s-1" in repr(found)
    assert xmosaic.check(ds.assign(w=ds.w.assign_attrs(units="Pa s-1")), make_model(schema)).ok


def test_all_problems_are_listed_at_once():
    ds = (
        edited("2m_temperature", lambda t: t, units="kg").drop_vars("mean_sea_level_pressure").isel(time=[4], level=[1])
    )
    found = report(ds)
    subjects = " ".join(p.subject for p in found.problems)
    assert len(found.problems) == 4
    for word in ("2m_temperature", "mean_sea_level_pressure", "geopotential", "time"):
        assert word in subjects


def test_infinite_values_on_another_grid_are_named():
    ds = make_dataset(grid=LatLonGrid.equiangular(24, 13))
    ds["2m_temperature"][-1, 3, 4] = np.inf
    (problem,) = report(ds).problems
    assert problem.subject == "2m_temperature"
    assert "NaN or infinite" in str(problem)


def test_problems_of_values_are_listed_beside_those_of_metadata():
    ds = edited("2m_temperature", lambda t: t - 273.15).drop_vars("mean_sea_level_pressure").isel(time=[0, 1, 2, 4])
    ds = ds.assign(geopotential=ds.geopotential.where(ds.latitude < 80))
    subjects = [p.subject for p in report(ds).problems]
    assert subjects == ["mean_sea_level_pressure", "time", "2m_temperature", "geopotential_500", "geopotential_850"]


def test_what_a_fix_says_makes_it_work():
    hpa = edited("mean_sea_level_pressure", lambda p: p / 100)
    assert report(edited("mean_sea_level_pressure", lambda p: p / 100, units="hPa")).ok
    assert not report(hpa).ok
    celsius = edited("2m_temperature", lambda t: t - 273.15, units="degC")
    assert report(celsius).ok
    xr.testing.assert_allclose(
        xmosaic.forecast(celsius, "1D", 1, model=MODEL, progress=False).drop_attrs(),
        xmosaic.forecast(DS, "1D", 1, model=MODEL, progress=False).drop_attrs(),
        rtol=1e-4,
    )
    gap = DS.isel(time=[0, 1, 2, 4])
    assert report(gap, time="2020-02-29 00:00:00").ok


def test_a_report_says_each_thing_once():
    """A variable that isn't there, levels that several lack, and longitudes that are turned."""
    west = DS.assign_coords(longitude=(DS["longitude"] + 180) % 360 - 180).sortby("longitude")
    turned = report(west)
    assert len([note for note in turned.notes if "180" in note or "360" in note]) == 1
    (problem,) = report(DS.sel(level=[500])).problems
    assert str(problem).startswith("'geopotential', 'u_component_of_wind' lack levels 850 hPa")
    missing = report(DS.drop_vars("geopotential"))
    (line,) = [row for row in repr(missing).splitlines() if "geopotential" in row and "←" in row]
    assert line.endswith("← not found")


def test_odd_but_possible_values_are_a_note_not_a_problem():
    found = report(edited("u_component_of_wind", lambda u: u + 200))
    assert found.ok
    assert any("standard deviations" in note for note in found.notes)


def test_missing_units_are_noted():
    found = report(without_units(DS.copy(deep=True)))
    assert found.ok
    assert any("units" in note for note in found.notes)


def test_starts_of_a_report():
    assert report(DS).starts.tolist() == [pd.Timestamp("2020-03-02")]
    assert len(report(DS, time=slice("2020-02-28", None)).starts) == 4
    several = report(DS, time=slice(None, None))
    assert not several.ok
    assert "2020-02-26" in repr(several)


def test_only_values_of_the_needed_times_are_looked_at():
    ds = edited("2m_temperature", lambda t: t.where(t.time >= DS.time[3]))
    assert report(ds).ok
    assert not report(ds, time="2020-03-01").ok


@pytest.mark.parametrize(
    ("time", "scalar", "count"),
    [
        (None, True, 1),
        ("2020-03-01", True, 1),
        (np.datetime64("2020-03-01"), True, 1),
        (pd.Timestamp("2020-03-01"), True, 1),
        (DS.time[2], True, 1),
        (["2020-03-01"], False, 1),
        (DS.time[2:4], False, 2),
        (pd.date_range("2020-02-28", periods=3), False, 3),
        (slice("2020-02-28", "2020-03-01"), False, 3),
        (slice(None, None, 2), False, 3),
    ],
)
def test_times_are_read_in_any_form(time, scalar, count):
    got = parse_times(time, DS.indexes["time"])
    assert (got[0], len(got[1])) == (scalar, count)


def test_times_that_are_none_are_refused():
    for time in ("soon", object(), pd.NaT, [["2020-01-01"], ["2020-01-02"]]):
        with pytest.raises(ArgumentError):
            parse_times(time, DS.indexes["time"])


# Tensors and fields


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_dataset_to_tensor_to_dataset_is_the_identity(seed, flip, west):
    rng = np.random.default_rng(seed)
    ds = DS.map(lambda a: a.copy(data=(a.values * rng.uniform(0.99, 1.01, a.shape)).astype("f4")))
    ds = ds.isel(latitude=slice(None, None, -1)) if flip else ds
    ds = ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180).sortby("longitude") if west else ds
    state = State(ds, MODEL)
    normal = state.history(state.starts[0])
    assert normal.shape == (2, 12, 7, 5)
    fields = Fields(MODEL, Schema(SCHEMA.state), state, False, torch.device("cpu"))
    got = fields.physical(torch.from_numpy(normal[-1:]))
    for name, values in got.items():
        expected = ds[name].isel(time=-1).values
        kept = ~np.isnan(values[0])
        # a float32 round trip through the normalised value: one unit in the last place of the larger of value and std
        np.testing.assert_allclose(values[0][kept], expected[kept], rtol=3e-7, atol=3e-7 * MODEL.std.max())
    assert fields.coordinates()["latitude"].values.tolist() == ds.latitude.values.tolist()


def test_normalised_values_are_the_definition():
    state = State(DS, MODEL)
    got = state.history(state.starts[0])
    want = (DS["geopotential"].sel(level=850).isel(time=-2).astype("f8") - MODEL.mean[3]) / MODEL.std[3]
    np.testing.assert_allclose(got[0, ..., 3], want.transpose("longitude", "latitude"), rtol=1e-6)


# Real data


def published_like(**config):
    """The published schema and grid, with the published statistics, on a small network."""
    schema = xmosaic.published_schema()
    with np.load(SHARED / "mosaic_norm_stats_era5.npz") as file:
        mean, std = file["state_mean"], file["state_std"]
    small = make_model(schema, LatLonGrid.equiangular(240, 121), **config)
    return type(small)(small.network, schema, small.grid, mean, std, small.static, {"name": "published-like"})


needs_data = pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")


@needs_data
def test_the_real_82_channels_start_a_forecast():
    ds = xr.open_dataset(SHARED / "gfs_82channels_20111008T00_f072_1p5deg.nc")
    start = pd.Timestamp("2011-10-11")
    twice = xr.concat([ds, ds], "time").assign_coords(time=[start - pd.Timedelta("1D"), start])
    model = published_like()
    found = xmosaic.check(twice, model)
    assert found.ok, repr(found)
    fc = xmosaic.forecast(twice, "1D", 1, model=model, progress=False)
    assert sum(v.sizes.get("level", 1) for v in fc.values()) == 82
    alone = xmosaic.check(ds, model)
    assert [p.subject for p in alone.problems] == ["time"]


@needs_data
def test_real_winds_at_one_degree_are_regridded_and_gaps_are_named():
    ds = xr.open_dataset(SHARED / "gfs_uv10m_1deg_2018_6hourly.nc")
    analyses = ds.isel(time=(ds.step == 0).values)
    schema = Schema.from_variables({"10m_u_component_of_wind": None, "10m_v_component_of_wind": None})
    model = make_model(schema, LatLonGrid.equiangular(64, 33), step_hours=6)
    model.mean[:], model.std[:] = 0.0, 5.0
    times = analyses.indexes["time"]
    whole = [t for t in times if t - pd.Timedelta("6h") in times]
    gap = next(t for t in times[1:] if t - pd.Timedelta("6h") not in times)
    fc = xmosaic.forecast(analyses, "6h", 1, model=model, time=whole[5], progress=False)
    assert fc["latitude"].values[0] == 90  # descending, as in the file
    assert "regridded" in fc.attrs["comment"]
    assert "missing" in repr(xmosaic.check(analyses, model, time=gap))


@needs_data
def test_gaussian_era5_is_read_on_its_own_grid():
    ds = xr.open_dataset(SHARED / "era5_tl31_19590102T00.nc")
    twice = xr.concat([ds.drop_vars("time"), ds.drop_vars("time")], "time").assign_coords(
        time=pd.date_range("1959-01-01", periods=2)
    )
    schema = Schema.from_variables({"geopotential": [500, 850], "temperature": [850]})
    model = make_model(schema, LatLonGrid.equiangular(32, 17))
    model.mean[:], model.std[:] = [54000, 13700, 274], [3300, 1500, 16]
    found = xmosaic.check(twice, model)
    assert found.ok, repr(found)
    state = State(twice, model)
    mean = state.normalised(state.starts[0]).mean((0, 1))
    assert np.all(abs(mean) < 1)


@given(
    st.sampled_from(["time", "latitude", "longitude", "level", "2m_temperature", "geopotential"]),
    st.sampled_from(["units", "standard_name", "axis", "long_name", "grid_mapping", "bounds", "grid_name"]),
    st.sampled_from([None, [], 1, 2.5, np.arange(2), "", "K", "ß∂", b"x", True]),
)
@settings(max_examples=60, deadline=None)
def test_strange_attributes_never_crash(name, key, value):
    ds = DS.copy()
    ds[name].attrs[key] = value
    try:
        report(ds)
        repr(ds.mosaic)
        ds["2m_temperature"].mosaic.to_healpix(4)
    except xmosaic.MosaicError as error:
        assert str(error)
