"""Forecasts as others write and damage them: renamed, reordered, rescaled, cut; each with what must become of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array
import numpy as np
import xarray as xr
from models import make_dataset, make_model
from mutants import PACKED_UNITS, Mutant, P, Rows, T, U, Z, attrs, broken, coords, field, no_dataset, west

import xmosaic

TRUTH = make_dataset(periods=8)
MODEL = make_model()
FORECAST = xmosaic.forecast(TRUTH, "3D", 3, model=MODEL, time=["2020-02-29", "2020-03-02"], progress=False)
DIMS = ("time", "number", "prediction_timedelta", "level", "latitude", "longitude")
START, MEMBER, LEAD, LEVEL, LAT, LON = DIMS


def forecast_mutants() -> dict[str, Mutant]:
    """Every mutant by name; the outcome is "same", "refused", or "either" where it depends on what is asked."""
    found: dict[str, Mutant] = {}
    for family in (names, order, units, kinds, values, leads, sizes, doubles, chunks, more, labels, no_dataset):
        for name, outcome, change in family():
            key = f"{family.__name__}: {name}"
            assert key not in found, key
            outcome = "either" if "DataArray" in name or "stack of" in name else outcome  # which scores take
            found[key] = Mutant(outcome, lambda change=change: change(FORECAST.copy(deep=True)))
    return found


def names() -> Rows:
    for old, others in {
        MEMBER: ("member", "realization", "ensemble"),
        LEAD: ("step", "lead_time", "lead"),
        START: ("init_time", "init", "forecast_reference_time"),
        LEVEL: ("pressure_level", "plev", "isobaricInhPa"),
        LAT: ("lat", "y"),
        LON: ("lon", "x"),
    }.items():
        for new in others:
            yield f"{old} as {new}", "same", lambda ds, a=old, b=new: ds.rename({a: b})
        yield f"{old} as foo", "either", lambda ds, a=old: ds.rename({a: "foo"})
        yield f"{old} as foo, bare", "either", lambda ds, a=old: ds.rename({a: "foo"}).drop_attrs()
    for dialect in ("weatherbenchx", "climpred", "xskillscore", "ecmwf"):
        yield f"{dialect}'s", "same", lambda ds, d=dialect: xmosaic.to_dialect(ds, d)
    for name, short in {T: "t2m", P: "msl", Z: "z", U: "u"}.items():
        yield f"{name} as {short}", "same", lambda ds, a=name, b=short: ds.rename({a: b})
        yield f"{name} gone", "either", lambda ds, a=name: ds.drop_vars(a)
    yield "a variable called 7", "either", lambda ds: ds.rename({T: 7})
    yield "temperature twice", "either", lambda ds: ds.assign(t2m=ds[T] + 50)
    yield "temperature and pressure swapped", "either", lambda ds: ds.rename({T: P, P: T})
    yield "another variable beside", "either", lambda ds: ds.assign(foo=ds[T].drop_attrs())
    yield "a number beside", "either", lambda ds: ds.assign(foo=3.0)
    yield "nothing known", "either", lambda ds: ds.rename({n: f"field {n}" for n in ds.data_vars}).drop_attrs()


def order() -> Rows:
    for k in range(1, 6):
        yield f"dimensions turned by {k}", "same", lambda ds, k=k: ds.transpose(*DIMS[k:], *DIMS[:k])
    yield "dimensions backwards", "same", lambda ds: ds.transpose(*DIMS[::-1])
    for dim in DIMS:
        yield f"{dim} backwards", "same", lambda ds, d=dim: ds.isel({d: slice(None, None, -1)})
    shuffled = (LEAD, MEMBER, LAT, LON)
    for dim in shuffled:
        mixed = np.random.default_rng(1).permutation
        yield f"{dim} shuffled", "same", lambda ds, d=dim, m=mixed: ds.isel({d: m(ds.sizes[d])})
    yield "−180…180", "same", lambda ds: coords(longitude=west)(ds).sortby(LON)
    yield "−180…180 unsorted", "same", coords(longitude=west)
    yield "float32 places", "same", coords(latitude=np.float32, longitude=np.float32)
    yield "rolled", "same", lambda ds: ds.roll(longitude=5, roll_coords=True)


def units() -> Rows:
    for name, (unit, factor, offset) in PACKED_UNITS.items():
        told = {"units": unit}
        change = lambda x, f=factor, o=offset: (x.astype(float) - o) / f  # noqa: E731
        yield f"{name} in {unit}", "same", field(name, change, **told)
        yield f"{name} said to be in furlongs", "either", attrs(name, units="furlong")
        yield f"{name} without units", "same", attrs(name, units=None)
        yield f"{name} with units 3", "either", attrs(name, units=3)
    yield "levels in Pa", "same", lambda ds: attrs(LEVEL, units="Pa")(coords(level=lambda v: v * 100)(ds))
    yield "levels in m", "either", attrs(LEVEL, units="m")


def kinds() -> Rows:
    for dtype in ("float64", ">f4", "longdouble"):
        yield f"all {dtype}", "same", lambda ds, d=dtype: ds.astype(d)
    for dtype in ("object", "complex64", "U12", "bool", "datetime64[ns]", "float16", "int64"):
        yield f"temperature {dtype}", "either", field(T, lambda x, d=dtype: x.astype(d))
    for dim in (LAT, LON, LEVEL, MEMBER):
        for dtype in ("U8", "object", "complex128"):
            yield f"{dim} {dtype}", "either", coords(**{dim: lambda v, d=dtype: v.astype(d)})
    yield "numbers as floats", "same", coords(number=lambda v: v.astype(float))
    yield "names of members", "same", coords(number=lambda v: np.array(["a", "b", "c"]))


def values() -> Rows:
    for name in (T, P, Z):
        for bad in (np.nan, np.inf, -np.inf):
            yield f"{bad} at a point of {name}", "either", field(name, lambda x, b=bad: holed(x, b))
        yield f"{name} all NaN", "either", field(name, lambda x: x * np.nan)
        yield f"{name} huge", "either", field(name, lambda x: x * np.float32(1e30))
        yield f"{name} constant", "either", field(name, lambda x: x * 0)
    yield "a member all NaN", "either", field(T, lambda x: x.where(x["number"] != 2))
    yield "a lead all NaN", "either", field(T, lambda x: x.where(x[LEAD] != x[LEAD][1]))
    yield "a start all NaN", "either", field(T, lambda x: x.where(x["time"] != x["time"][1]))


def holed(x: xr.DataArray, bad: float) -> xr.DataArray:
    x = x.copy(deep=True)
    x[dict.fromkeys(x.dims, 1)] = bad
    return x


def leads() -> Rows:
    hours = FORECAST[LEAD].values / np.timedelta64(1, "h")
    for unit, factor in (("hours", 1), ("days", 1 / 24), ("seconds", 3600)):
        kind = int if unit != "days" else float
        told = (LEAD, (hours * factor).astype(kind), {"units": unit})
        yield f"numbers of {unit}", "same", lambda ds, t=told: ds.assign_coords({LEAD: t})
    for unit in (None, "fortnights", "K"):
        told = (LEAD, hours, {} if unit is None else {"units": unit})
        yield f"numbers with units {unit}", "either", lambda ds, t=told: ds.assign_coords({LEAD: t})
    for unit in ("s", "ms", "us"):
        yield f"timedelta64[{unit}]", "same", coords(prediction_timedelta=lambda v, u=unit: v.astype(f"m8[{u}]"))
    yield "NaT", "either", coords(prediction_timedelta=lambda v: np.where(v == v[1], np.timedelta64("NaT"), v))
    yield "negative", "either", coords(prediction_timedelta=lambda v: -v)
    yield "text", "either", coords(prediction_timedelta=lambda v: v.astype(str))
    yield "a start NaT", "either", coords(time=lambda v: np.where(v == v[1], np.datetime64("NaT"), v))
    yield "starts as numbers", "either", coords(time=lambda v: np.arange(v.size))
    yield "starts as text", "either", coords(time=lambda v: v.astype(str))
    # in nanoseconds nothing is longer than 292 years
    yield (
        "starts of 1700",
        "either",
        coords(time=lambda v: v - np.timedelta64(160 * 365, "D") - np.timedelta64(160 * 365, "D")),
    )
    yield (
        "starts of another calendar",
        "either",
        lambda ds: ds.assign_coords(time=xr.date_range("2020-02-28", periods=2, calendar="360_day", use_cftime=True)),
    )
    yield (
        "starts in cftime",
        "same",
        lambda ds: ds.assign_coords(time=xr.date_range("2020-02-29", periods=2, freq="2D", use_cftime=True)),
    )
    yield (
        "another valid_time",
        "either",
        lambda ds: ds.assign_coords(valid_time=ds["valid_time"] + np.timedelta64(1, "D")),
    )
    yield "no valid_time", "same", lambda ds: ds.drop_vars("valid_time")
    yield (
        "valid_time NaT",
        "either",
        lambda ds: ds.assign_coords(valid_time=ds["valid_time"].where(ds["number"].size > 9)),
    )


def sizes() -> Rows:
    for dim in DIMS:
        yield f"{dim} empty", "either", lambda ds, d=dim: ds.isel({d: slice(0, 0)})
        yield f"{dim} of one", "either", lambda ds, d=dim: ds.isel({d: slice(0, 1)})
        yield f"{dim} scalar", "either", lambda ds, d=dim: ds.isel({d: 0})
        yield f"{dim} gone", "either", lambda ds, d=dim: ds.isel({d: 0}, drop=True)
        yield f"{dim} without values", "either", lambda ds, d=dim: ds.drop_vars(d)
        yield f"{dim} without index", "either", lambda ds, d=dim: ds.drop_indexes(d)
    yield "no variables", "either", lambda ds: ds.drop_vars(list(ds.data_vars))
    yield "nothing", "either", lambda ds: xr.Dataset()
    yield "no coordinates", "either", lambda ds: ds.drop_vars(list(ds.coords))
    yield "half a sphere", "either", lambda ds: ds.isel(latitude=slice(0, 4))
    yield "a column missing", "either", lambda ds: ds.isel(longitude=slice(0, 11))
    yield "stacked", "either", lambda ds: ds.stack(point=(LAT, LON))
    yield "starts and members stacked", "either", lambda ds: ds.stack(sample=(START, MEMBER))
    yield "zonal means", "either", lambda ds: ds.mean(LON, keep_attrs=True)
    yield "one variable without members", "either", lambda ds: ds.assign({T: ds[T].isel(number=0, drop=True)})
    yield "one variable without leads", "either", lambda ds: ds.assign({T: ds[T].isel({LEAD: 0}, drop=True)})


def doubles() -> Rows:
    for dim in DIMS:
        yield f"{dim} twice", "either", lambda ds, d=dim: ds.isel({d: [0, *range(ds.sizes[d])]})
        yield f"{dim} constant", "either", coords(**{dim: lambda v: np.full_like(v, v[0])})


def chunks() -> Rows:
    yield "all in one", "same", lambda ds: ds.chunk()
    yield "ones", "same", lambda ds: ds.chunk(dict.fromkeys(DIMS[:4], 1))
    yield "through the sphere", "same", lambda ds: ds.chunk(latitude=3, longitude=5, prediction_timedelta=(1, 2))
    yield "one that can't be read", "either", lambda ds: ds.assign({T: unreadable(ds[T])})


def unreadable(da: xr.DataArray) -> xr.DataArray:
    flat = broken(da.isel(number=0, prediction_timedelta=0, drop=True), xmosaic.StoreError("A piece can't be read"))
    return da.copy(data=dask.array.broadcast_to(flat.data[:, None, None], da.shape))


def more() -> Rows:
    for name in ("height", "band", "expver"):
        yield f"{name} of one", "either", lambda ds, n=name: ds.expand_dims({n: 1})
        yield f"{name} of two", "either", lambda ds, n=name: ds.expand_dims({n: 2})
    yield "a mask on the grid", "same", lambda ds: ds.assign_coords(mask=((LAT, LON), np.zeros((7, 12), bool)))
    yield "a label per start", "same", lambda ds: ds.assign_coords(season=(START, ["a", "b"]))


def labels() -> Rows:
    yield "no attributes", "either", lambda ds: ds.drop_attrs()
    yield "odd attributes", "same", lambda ds: ds.assign_attrs(title=object(), Conventions=3, license=None, seed=[])
    for name, standard in {T: "eastward_wind", P: "air_temperature"}.items():
        yield f"{name} says {standard}", "either", attrs(name, standard_name=standard)
    yield "latitude says longitude", "either", attrs(LAT, standard_name="longitude")
    yield "a start says altitude", "either", attrs(START, standard_name="altitude", units="m")
    yield "a lead says nothing", "either", attrs(LEAD, standard_name=None, long_name=None)
    yield "NaN latitude", "either", coords(latitude=lambda v: np.where(v == 0, np.nan, v))
    yield "latitudes beyond the poles", "either", coords(latitude=lambda v: v * 1.1)
    yield "infinite longitude", "either", coords(longitude=lambda v: np.where(v == 0, np.inf, v))
    yield "NaN level", "either", coords(level=lambda v: np.where(v == 500, np.nan, v))
    yield "negative levels", "either", coords(level=lambda v: -v)


Change = Callable[[xr.Dataset], Any]
