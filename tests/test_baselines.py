"""Persistence, climatology and climatological ensembles: plain twins, calendars, draws, labels, laziness, refusals."""

import datetime

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic.diagnostics import baselines as b
from xmosaic.diagnostics.layout import align
from xmosaic.errors import ArgumentError, DatasetError
from xmosaic.healpix import mesh_coordinates

SPACE = {"latitude": [-60.0, 0.0, 60.0], "longitude": [0.0, 120.0, 240.0]}


def history(start="2001-01-01", end="2004-12-31T18", every="6h", seed=0):
    """Analyses of two variables, one of them on levels, and a static one."""
    times = pd.date_range(start, end, freq=every)
    rng = np.random.default_rng(seed)
    ds = xr.Dataset(coords={"time": ("time", times, {"standard_name": "time"}), "level": [500, 850], **SPACE})
    ds["t2m"] = (("time", "latitude", "longitude"), rng.normal(280, 5, (len(times), 3, 3)).astype(np.float32))
    ds["t2m"].attrs = {"units": "K", "standard_name": "air_temperature"}
    deep = rng.normal(0, 1, (2, 3, len(times), 3)).astype(np.float32)
    ds["z"] = (("level", "latitude", "time", "longitude"), deep, {"units": "m2 s-2"})
    ds["land_sea_mask"] = (("latitude", "longitude"), np.ones((3, 3)))
    ds.attrs["source"] = "random numbers"
    return ds


def forecast(starts=("2003-02-27", "2003-12-30"), leads=("6h", "24h", "72h")):
    """A forecast to take starts, leads, variables and levels from."""
    starts, leads = pd.to_datetime(list(starts)), pd.to_timedelta(list(leads))
    shape = (len(starts), 5, len(leads), 3, 3)
    dims = ("time", "number", "prediction_timedelta", "latitude", "longitude")
    coords = {"time": starts, "number": range(1, 6), "prediction_timedelta": leads, **SPACE}
    deep = ((*dims[:3], "level", *dims[3:]), np.zeros((*shape[:3], 2, *shape[3:])))
    return xr.Dataset({"t2m": (dims, np.zeros(shape)), "z": deep}, coords | {"level": [500, 850]})


MADE = {
    "persistence": lambda ds, fc: b.persistence(ds, fc),
    "climatology": lambda ds, fc: b.climatology(ds, fc),
    "climatology without seasons": lambda ds, fc: b.climatology(ds, fc, window=None),
    "ensemble": lambda ds, fc: b.climatological_ensemble(ds, fc, members=6, window="5D"),
    "ensemble without seasons": lambda ds, fc: b.climatological_ensemble(ds, fc, members=6, window=None),
}


# ---------------------------------------------------------------------------------------------------- in our layout


@pytest.mark.parametrize("name", MADE)
def test_layout_is_that_of_a_forecast(name):
    ds, fc = history(), forecast()
    before = ds.copy(deep=True)
    made = MADE[name](ds, fc)
    xr.testing.assert_identical(ds, before)
    lead = ("number", "prediction_timedelta") if "ensemble" in name else ("prediction_timedelta",)
    assert made.t2m.dims == ("time", *lead, "latitude", "longitude")
    assert made.z.dims == ("time", *lead, "level", "latitude", "longitude")
    assert "land_sea_mask" not in made
    assert made.t2m.dtype == np.float32
    assert made.t2m.attrs["units"] == "K"
    standard = {n: made[n].attrs["standard_name"] for n in ("time", "prediction_timedelta", "valid_time")}
    assert list(standard.values()) == ["forecast_reference_time", "forecast_period", "time"]
    np.testing.assert_array_equal(made.valid_time, fc.time.values[:, None] + fc.prediction_timedelta.values)
    if "ensemble" in name:
        assert made.number.attrs["standard_name"] == "realization"
        np.testing.assert_array_equal(made.number, [1, 2, 3, 4, 5, 6])
    assert made.attrs["source"] == "random numbers"
    assert made.t2m.attrs["baseline"] and made.attrs["title"]
    # its labels are those of the forecast, so that both can be compared with the same truth
    assert align(made, ds).found.equals(align(fc, ds).found)


@pytest.mark.parametrize("name", MADE)
def test_netcdf_and_back(name, tmp_path):
    made = MADE[name](history(), forecast())
    made.to_netcdf(tmp_path / "baseline.nc")
    with xr.open_dataset(tmp_path / "baseline.nc", decode_timedelta=True) as read:
        xr.testing.assert_equal(read.load(), made)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("chunks", [{"time": 1}, {"time": 1000, "latitude": 2, "level": 1}])
def test_lazy_is_eager(name, chunks):
    import dask

    def refuse(*args, **kwargs):
        raise RuntimeError("computed")

    ds, fc = history("2002-12-01", "2005-04-01T18", every="24h"), forecast(leads=["24h", "72h"])
    with dask.config.set(scheduler=refuse):
        lazy = MADE[name](ds.chunk(chunks), fc)
    assert lazy.t2m.chunks and lazy.z.chunks
    xr.testing.assert_allclose(lazy.compute(scheduler="synchronous"), MADE[name](ds, fc), rtol=1e-6)
    if "ensemble" in name:
        assert set(lazy.chunksizes["number"]) == {1}


@pytest.mark.parametrize("name", MADE)
def test_names_orders_and_arrays_of_the_caller(name):
    ds, fc = history("2002-12-01", "2005-04-01T18"), forecast()
    expected = MADE[name](ds, fc)
    other = ds.rename(latitude="lat", level="plev", time="valid_time").isel(lat=[2, 1, 0])
    made = MADE[name](other, fc.rename(time="init_time", prediction_timedelta="lead_time", number="member"))
    back = {"init_time": "time", "lead_time": "prediction_timedelta", "lat": "latitude", "plev": "level"}
    back |= {"member": "number"} if "ensemble" in name else {}
    xr.testing.assert_equal(made.rename(back).isel(latitude=[2, 1, 0]), expected)
    array = MADE[name](ds.z, fc)
    xr.testing.assert_equal(array, expected.z)
    assert array.name == "z"


@pytest.mark.parametrize("name", MADE)
def test_one_start_and_one_lead_are_scalars(name):
    ds = history("2002-12-01", "2005-04-01T18")
    whole, one = MADE[name](ds, forecast()), MADE[name](ds, forecast().isel(time=0))
    xr.testing.assert_equal(one, whole.isel(time=0)) if "ensemble" not in name else None
    assert one.time.ndim == 0
    lead = MADE[name](ds, forecast().isel(prediction_timedelta=1))
    assert lead.prediction_timedelta.ndim == 0 and lead.valid_time.dims == ("time",)


@pytest.mark.parametrize("name", MADE)
def test_a_mesh_keeps_its_description(name):
    times = pd.date_range("2002-12-01", "2005-04-01")
    values = np.random.default_rng(0).normal(size=(12, len(times)))
    mesh = xr.Dataset({"t2m": (("cell", "time"), values)}, {"time": times}).assign_coords(mesh_coordinates(1))
    mesh.t2m.attrs["grid_mapping"] = "crs"
    made = MADE[name](mesh, forecast(leads=["24h"]))
    assert made.t2m.dims[-1] == "cell" and made.t2m.attrs["grid_mapping"] == "crs"
    assert made.crs.attrs == mesh.crs.attrs
    xr.testing.assert_identical(made.cell, mesh.cell)


@pytest.mark.parametrize("name", MADE)
def test_variables_and_levels_are_those_of_the_forecast(name):
    """As far as they are there, in its order, by whatever names and units of levels; and nothing else is read."""
    ds, fc = history("2002-12-01", "2005-04-01T18"), forecast()
    whole = MADE[name](ds, fc)
    xr.testing.assert_equal(MADE[name](ds, fc[["t2m"]]), whole[["t2m"]])
    xr.testing.assert_equal(MADE[name](ds, fc[["z"]].isel(level=[1, 0])), whole[["z"]].isel(level=[1, 0]))
    xr.testing.assert_equal(MADE[name](ds, fc.sel(level=850)), whole.sel(level=850))
    theirs = fc[["z"]].sel(level=[850]).rename(z="geopotential", level="pressure_level")
    theirs["pressure_level"] = ("pressure_level", [85000.0], {"units": "Pa"})
    xr.testing.assert_equal(MADE[name](ds, theirs), whole[["z"]].sel(level=[850]))
    more = fc.assign(rain=fc["t2m"]).reindex(level=[300, 500])
    xr.testing.assert_equal(MADE[name](ds, more), whole.sel(level=[500]))
    xr.testing.assert_equal(MADE[name](ds, fc["z"].rename(None)), whole)
    xr.testing.assert_equal(
        MADE[name](ds["z"].rename("mine"), fc["z"].sel(level=[500])).rename("z"), whole.z.sel(level=[500])
    )
    assert list(MADE[name](ds, fc[["z", "t2m"]])) == ["z", "t2m"]


@pytest.mark.parametrize("name", MADE)
def test_a_forecast_of_other_variables_or_levels_is_refused(name):
    ds, fc = history("2002-12-01", "2005-04-01T18"), forecast()
    with pytest.raises(DatasetError, match=r"none of the forecast's variables.*'t2m'.*'rain'.*time= and lead="):
        MADE[name](ds, fc[["t2m"]].rename(t2m="rain"))
    with pytest.raises(DatasetError, match="none of the forecast's levels. Found 500, 850 hPa.*300 hPa"):
        MADE[name](ds, fc.reindex(level=[300]))


def test_a_fitted_climatology_is_cut_to_the_forecast_too():
    ds, fc = history("2002-12-01", "2005-04-01T18"), forecast()
    fitted = b.fit_climatology(ds)
    xr.testing.assert_equal(
        b.climatology(fitted, fc[["z"]].sel(level=850)), b.climatology(ds, fc)[["z"]].sel(level=850)
    )


# -------------------------------------------------------------------------------------------------------- persistence


def test_persistence_is_the_analysis_of_the_start_at_every_lead():
    ds, fc = history(), forecast()
    still = b.persistence(ds.isel(time=np.random.default_rng(0).permutation(ds.sizes["time"])), fc)
    for start in fc.time.values:
        for lead in fc.prediction_timedelta.values:
            np.testing.assert_array_equal(still.t2m.sel(time=start, prediction_timedelta=lead), ds.t2m.sel(time=start))
    given = b.persistence(ds, time=list(fc.time.values), lead=["6h", pd.Timedelta("1D"), np.timedelta64(72, "h")])
    xr.testing.assert_identical(given, still)


def test_starts_can_be_a_slice_and_lead_a_single_one():
    ds = history(every="12h")
    still = b.persistence(ds, time=slice("2002-05-01", "2002-05-03"), lead="12h")
    assert still.sizes["time"] == 6 and still.sizes["prediction_timedelta"] == 1
    np.testing.assert_array_equal(still.t2m.isel(prediction_timedelta=0), ds.t2m.sel(time=still.time))


def test_persistence_takes_no_memory_per_lead():
    still = b.persistence(history(every="24h"), time="2002-05-01", lead=pd.timedelta_range("1D", "40D"))
    assert still.t2m.values.strides[0] == 0


def test_persistence_of_real_wind_has_the_known_error(shared):
    gfs = xr.open_dataset(shared / "data" / "gfs_uv10m_1deg_2018_6hourly.nc")
    analysed = gfs.where(gfs.step == 0, drop=True)[["u10"]]
    for hours, known in ((6, 2.36), (24, 4.23)):
        lead = pd.Timedelta(hours=hours)
        starts = [t for t in analysed.time.to_index() if t + lead in analysed.time.to_index()]
        still = b.persistence(analysed, time=starts, lead=[lead]).u10.isel(prediction_timedelta=0)
        error = (still - analysed.u10.sel(time=still.valid_time).drop_vars("time")) ** 2
        weights = np.cos(np.deg2rad(error.latitude))
        found = float(np.sqrt(error.weighted(weights).mean()))
        plain = float(np.sqrt(error.mean()))
        assert min(abs(found - known), abs(plain - known)) < 0.01


# -------------------------------------------------------------------------------------------------------- climatology


def plain_climatology(field, day, hour, width, shape):
    """One mean, state by state with dates alone; years are circles of their own length."""
    total = weight = 0.0
    for time, value in zip(field.time.to_index(), field.values, strict=True):
        if time.hour != hour:
            continue
        length = (datetime.date(time.year + 1, 1, 1) - datetime.date(time.year, 1, 1)).days
        of_year = (time.date() - datetime.date(time.year, 1, 1)).days + 1
        apart = min(abs(day - of_year + turn * length) for turn in (-1, 0, 1))
        w = max(0.0, 1 - apart / (width / 2)) if shape == "triangle" else float(apart <= width / 2)
        total, weight = total + w * float(value), weight + w
    return total / weight


@pytest.mark.parametrize("shape", ["triangle", "box"])
@pytest.mark.parametrize("width", [1, 2, 31, 61])
def test_climatology_is_the_plain_weighted_mean(shape, width):
    ds = history(every="12h").t2m.isel(latitude=1, longitude=2)
    fitted = b.fit_climatology(ds, f"{width}D", shape)
    assert fitted.dims == ("dayofyear", "hour")
    np.testing.assert_array_equal(fitted.hour, [0, 12])
    for day in (1, 2, 59, 60, 61, 180, 365, 366):
        expected = plain_climatology(ds, day, 12, width, shape)
        np.testing.assert_allclose(fitted.sel(dayofyear=day, hour=12), expected, rtol=1e-6)


@given(st.floats(-100, 100), st.floats(1, 300), st.sampled_from(["triangle", "box"]))
@settings(max_examples=15, deadline=None)
def test_mean_of_a_constant_is_the_constant(value, width, shape):
    ds = xr.full_like(history(every="24h").t2m.isel(latitude=0, longitude=0), value)
    fitted = b.fit_climatology(ds, pd.Timedelta(width, "D"), shape)
    np.testing.assert_allclose(fitted, np.float32(value), rtol=1e-6)


def test_new_year_joins_the_ends_of_the_year():
    """States of 31 December and 1 January alone: each is one day from the other in every year."""
    ds = history(every="24h").t2m.isel(latitude=0, longitude=0).astype(float)
    days = ds.time.dt
    last, first = (days.month == 12) & (days.day == 31), (days.month == 1) & (days.day == 1)
    ds = xr.where(last, 10.0, xr.where(first, 20.0, 0.0)).where((days.month == 12) | (days.month == 1), drop=True)
    fitted = b.climatology(ds, time="2010-12-30", lead=["1D", "2D"], window="3D", shape="box").values
    # 31 December of a common year: 30 and 31 December of four years, 1 January of four; of 2004 days 364 to 366
    np.testing.assert_allclose(fitted[1], (4 * 10 + 4 * 20 + 0) / 12)
    np.testing.assert_allclose(fitted[0], plain_climatology(ds, 365, 0, 3, "box"))


def test_leap_days_count_as_the_day_of_the_year():
    days = pd.date_range("2001-01-01", "2008-12-31")
    number = xr.DataArray(days.day_of_year.astype(float), {"time": days}, name="t")
    fitted = b.fit_climatology(number, "1D")
    np.testing.assert_allclose(fitted.isel(hour=0)[:365], np.arange(1, 366))
    # day 366 is 31 December of leap years (366), or 1 January of the others' next year (1): two and six of them
    np.testing.assert_allclose(fitted.sel(dayofyear=366, hour=0), (2 * 366 + 6 * 1) / 8)
    at = b.climatology_at(fitted, ["2004-02-29", "2003-03-01", "2004-12-30"])
    np.testing.assert_allclose(at, [60, 60, 365])


def test_fitted_once_is_the_same_as_raw_and_can_be_saved(tmp_path):
    ds, fc = history(), forecast()
    raw = b.climatology(ds, fc, window="31D")
    fitted = b.fit_climatology(ds, "31D")
    xr.testing.assert_allclose(b.climatology(fitted, fc), raw, rtol=1e-6)
    fitted.to_netcdf(tmp_path / "normal.nc")
    with xr.open_dataset(tmp_path / "normal.nc") as read:
        xr.testing.assert_allclose(b.climatology(read, fc), raw, rtol=1e-6)
        assert "triangle window of 31 days" in b.climatology(read, fc).t2m.attrs["baseline"]
    xr.testing.assert_equal(b.climatology(fitted.chunk({"dayofyear": 50}), fc).compute(), b.climatology(fitted, fc))
    at = b.climatology_at(fitted, raw.valid_time)
    np.testing.assert_allclose(at.t2m, raw.t2m, rtol=1e-6)
    assert at.t2m.dims == raw.t2m.dims


def test_another_climatology_of_this_layout_is_understood():
    """WeatherBench2's: hour before dayofyear, six-hourly, no attributes."""
    own = b.fit_climatology(history())[["t2m"]]
    other = own.transpose("hour", "dayofyear", ...).drop_attrs()
    xr.testing.assert_equal(b.climatology(other, forecast()), b.climatology(own, forecast()))


def test_without_seasons_it_is_one_mean():
    ds = history()
    flat = b.climatology(ds, forecast(), window=None)
    np.testing.assert_allclose(flat.t2m.std(["time", "prediction_timedelta"]), 0, atol=1e-4)
    np.testing.assert_allclose(flat.t2m[1, 2], ds.t2m.astype(float).mean("time"), rtol=1e-6)
    fitted = b.fit_climatology(ds, None)
    assert fitted.t2m.dims == ("latitude", "longitude")
    xr.testing.assert_equal(b.climatology(fitted, forecast()), flat)
    xr.testing.assert_equal(b.climatology(fitted.t2m, forecast()), flat.t2m)


def test_nan_reaches_the_days_with_weight_in_it_and_no_others():
    ds = history(every="24h").t2m
    ds[{"time": 100, "latitude": 1, "longitude": 1}] = np.nan  # 11 April, day 101
    expected = abs(np.arange(1, 367) - 101) < 5.5
    for field in (ds, ds.chunk({"time": 200})):
        fitted = b.fit_climatology(field, "11D").compute()
        np.testing.assert_array_equal(fitted.isnull().isel(hour=0, latitude=1, longitude=1), expected)
        assert int(fitted.isnull().sum()) == expected.sum()


def test_a_short_history_serves_the_days_that_it_has():
    ds = history("2001-01-01", "2001-01-20")
    assert np.isfinite(b.climatology(ds, time="2005-01-08", lead=["6h"], window="5D").t2m).all()
    message = r"The history is too short: a day of the year has no state .*none near day 23 at 00 UTC.*wider window"
    with pytest.raises(DatasetError, match=message):
        b.climatology(ds, time="2005-01-21", lead=["48h"], window="3D")
    with pytest.raises(DatasetError, match="The history is too short"):
        b.fit_climatology(ds)


def test_an_hour_that_the_history_lacks_is_no_other_hour():
    ds = history(every="24h")
    with pytest.raises(DatasetError, match=r"The climatology lacks a hour of the day\. Found 0; expected 6\."):
        b.climatology(ds, forecast())
    with pytest.raises(DatasetError, match="Times are not at whole hours"):
        b.fit_climatology(ds.assign_coords(time=ds.time + np.timedelta64(1, "m")))


# ---------------------------------------------------------------------------------------------- climatological ensemble


def test_members_are_the_history_from_their_start_on():
    ds, fc = history(), forecast()
    drawn = b.climatological_ensemble(ds, fc, members=7, window="11D", seed=3)
    for start in fc.time.values:
        for number in drawn.number.values:
            origin = drawn.history_start.sel(time=start, number=number)
            states = ds.t2m.sel(time=(origin.values + fc.prediction_timedelta.values))
            np.testing.assert_array_equal(drawn.t2m.sel(time=start, number=number), states)


@given(st.integers(0, 2**63), st.sampled_from(["1D", "5D", "21D"]), st.integers(0, 1400), st.sampled_from([1, 3, 20]))
@settings(max_examples=40, deadline=None)
def test_draws_are_of_the_season_of_other_years_and_never_twice(seed, window, into, last):
    ds = history(every="24h")[["t2m"]].isel(latitude=0, longitude=0)
    start = pd.Timestamp("2001-01-01") + pd.Timedelta(days=into)
    half = int(pd.Timedelta(window).days // 2)
    drawn = b.climatological_ensemble(ds, time=start, lead=[f"{last}D"], window=window, seed=seed)
    origins = pd.DatetimeIndex(drawn.history_start.values)
    assert len(set(origins)) == len(origins) == drawn.sizes["number"]
    years = set()
    for origin in origins:
        centres = [pd.Timestamp(year=y, month=1, day=1) + (start - pd.Timestamp(year=start.year, month=1, day=1))
                   for y in range(2000, 2006) if y != start.year]  # fmt: skip
        near = [c for c in centres if abs(origin - c) <= pd.Timedelta(days=half)]
        assert len(near) == 1
        years.add(near[0].year)
        assert abs(origin - start) > pd.Timedelta(days=last)
        assert origin + pd.Timedelta(days=last) <= pd.Timestamp("2004-12-31")
    assert len(years) == len(origins)  # each year once before any is drawn twice


def test_a_member_does_not_depend_on_how_many_there_are_or_on_other_starts():
    ds, fc = history(every="24h"), forecast(leads=["24h"])
    many = b.climatological_ensemble(ds, fc, members=20, window="11D", seed=5)
    few = b.climatological_ensemble(ds, fc.isel(time=[1]), members=4, window="11D", seed=5)
    xr.testing.assert_identical(few, many.isel(time=[1], number=slice(4)))
    other = b.climatological_ensemble(ds, fc, members=20, window="11D", seed=6)
    assert (other.history_start != many.history_start).any()
    assert (many.history_start[0] - many.time[0] != many.history_start[1] - many.time[1]).any()


def test_every_candidate_is_as_likely():
    """300 seeds, three years: each is first about 100 times (standard deviation 8)."""
    ds = history(every="24h").t2m.isel(latitude=0, longitude=0)
    plan = {"time": "2003-06-01", "lead": ["1D"], "members": 1, "window": "1D"}
    years = [int(b.climatological_ensemble(ds, **plan, seed=s).history_start.dt.year[0]) for s in range(300)]
    counts = [years.count(y) for y in (2001, 2002, 2004)]
    assert sum(counts) == 300 and min(counts) > 60


def test_number_of_members_by_default_is_that_of_years():
    ds = history(every="24h")
    assert b.climatological_ensemble(ds, forecast(leads=["24h"])).sizes["number"] == 3
    # from 30 December 2004 on, or from its day of the year in 2000, the history doesn't hold both leads
    late = b.climatological_ensemble(ds, forecast(leads=["24h", "240h"]), window="1D")
    assert late.sizes["number"] == 2


def test_without_seasons_any_time_outside_the_own_period_is_drawn():
    ds = history("2001-01-01", "2001-03-01").t2m.isel(latitude=0, longitude=0)
    start, last = pd.Timestamp("2001-01-20T06"), pd.Timedelta("3D")
    usable = [t for t in ds.time.to_index() if abs(t - start) > last and t + last in ds.time.to_index()]
    drawn = b.climatological_ensemble(ds, time=start, lead=["6h", "3D"], members=len(usable), window=None)
    assert set(pd.DatetimeIndex(drawn.history_start.values)) == set(usable)
    with pytest.raises(DatasetError, match=r"too short .* start 2001-01-20 06:00:00 has \d+ to draw from"):
        b.climatological_ensemble(ds, time=start, lead=["6h", "3D"], members=len(usable) + 1, window=None)
    with pytest.raises(ArgumentError, match=r"window=None needs members="):
        b.climatological_ensemble(ds, time=start, lead=["6h"], window=None)


def test_the_29_february_has_days_in_common_years():
    drawn = b.climatological_ensemble(history(every="24h"), time="2004-02-29", lead=["1D"], window="1D")
    assert sorted(str(t)[:10] for t in drawn.history_start.values) == ["2001-03-01", "2002-03-01", "2003-03-01"]


def test_a_history_without_other_years_or_without_the_leads_is_too_short():
    with pytest.raises(DatasetError, match="The history is too short for a climatological ensemble"):
        b.climatological_ensemble(history("2003-01-01", "2003-12-31"), forecast())
    with pytest.raises(DatasetError, match="0 to draw from, with states at all leads"):
        b.climatological_ensemble(history(every="24h"), forecast(leads=["6h"]))


# ------------------------------------------------------------------------------------------------------------- refusals

BAD = {
    "both": (lambda ds, fc: b.persistence(ds, fc, lead="1D"), ArgumentError, "Both like= and time= or lead="),
    "neither": (lambda ds, fc: b.persistence(ds), ArgumentError, "Starts and leads are not given"),
    "lead without units": (lambda ds, fc: b.persistence(ds, time="2003-01-01", lead=[24]), ArgumentError, "no units"),
    "lead text": (
        lambda ds, fc: b.persistence(ds, time="2003-01-01", lead="24"),
        ArgumentError,
        "lead='24' has no units",
    ),
    "lead back": (lambda ds, fc: b.persistence(ds, time="2003-01-01", lead="-1D"), ArgumentError, "from 0 up"),
    "lead twice": (
        lambda ds, fc: b.persistence(ds, time="2003-01-01", lead=["1D", "24h"]),
        ArgumentError,
        "lead appears twice",
    ),
    "lead none": (lambda ds, fc: b.persistence(ds, time="2003-01-01", lead=[]), ArgumentError, "lead= is empty"),
    "time number": (lambda ds, fc: b.persistence(ds, time=2003, lead="1D"), ArgumentError, "time=2003 is no time"),
    "time text": (lambda ds, fc: b.persistence(ds, time="now and then", lead="1D"), ArgumentError, "is no time"),
    "slice": (lambda ds, fc: b.persistence(ds, time=slice("2020", None), lead="1D"), ArgumentError, "selects no start"),
    "start absent": (
        lambda ds, fc: b.persistence(ds, time=["2003-01-01", "2013-01-01"], lead="1D"),
        DatasetError,
        r"don't have all starts\. Found .*2001-01-01.*; expected 2013-01-01",
    ),
    "members": (lambda ds, fc: b.persistence(ds.expand_dims(number=2), fc), DatasetError, "these have members"),
    "forecasts": (lambda ds, fc: b.climatology(b.persistence(ds, fc), fc), DatasetError, "these have forecasts"),
    "no time": (lambda ds, fc: b.persistence(ds.isel(time=0), fc), DatasetError, "needs analyses along time"),
    "time twice": (lambda ds, fc: b.persistence(ds.isel(time=[0, 0]), fc), DatasetError, "appears twice"),
    "static": (
        lambda ds, fc: b.persistence(ds[["land_sea_mask", "time"]], fc),
        DatasetError,
        "No variable of the analyses",
    ),
    "integers": (
        lambda ds, fc: b.persistence(ds.assign_coords(time=range(ds.sizes["time"])), fc),
        DatasetError,
        "no dates",
    ),
    "like": (
        lambda ds, fc: b.persistence(ds, ds),
        DatasetError,
        "like= is no forecast: it has no prediction_timedelta",
    ),
    "window": (lambda ds, fc: b.climatology(ds, fc, window=61), ArgumentError, "window=61 has no units"),
    "window text": (
        lambda ds, fc: b.climatology(ds, fc, window="wide"),
        ArgumentError,
        "window='wide' is no time span",
    ),
    "window 0": (lambda ds, fc: b.climatology(ds, fc, window="0D"), ArgumentError, "more than 0, at most 365 days"),
    "shape": (lambda ds, fc: b.climatology(ds, fc, shape="bell"), ArgumentError, "shape='bell' is not known"),
    "count": (lambda ds, fc: b.climatological_ensemble(ds, fc, members=0), ArgumentError, "members=0 can't be used"),
    "seed": (lambda ds, fc: b.climatological_ensemble(ds, fc, seed=-1), ArgumentError, "seed=-1 can't be used"),
    "fitted slice": (
        lambda ds, fc: b.climatology(b.fit_climatology(ds.t2m), time=slice("2003"), lead="6h"),
        ArgumentError,
        "A fitted climatology has no times|time= is a slice",
    ),
    "array": (lambda ds, fc: b.persistence(np.ones(3), fc), ArgumentError, "no xarray object"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make(history(every="12h"), forecast())


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_other_calendars_are_refused_by_name(calendar):
    cftime = pytest.importorskip("cftime")
    times = [cftime.datetime(2001, 1, day, calendar=calendar) for day in (1, 2, 3)]
    ds = xr.Dataset({"t": ("time", [1.0, 2.0, 3.0])}, {"time": times})
    with pytest.raises(DatasetError, match=f"Times are of calendar '{calendar}'.*convert_calendar"):
        b.persistence(ds, time="2001-01-01", lead="1D")


def test_gregorian_cftime_is_understood():
    ds = history("2001-01-01", "2002-12-31", every="24h")
    other = ds.convert_calendar("proleptic_gregorian", use_cftime=True)
    expected = b.climatology(ds, time="2005-05-01", lead="1D")
    xr.testing.assert_equal(b.climatology(other, time="2005-05-01", lead="1D"), expected)
