"""Datasets as they come: the tests' Dataset renamed, reordered, rescaled, damaged; each with what must become of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dask.array
import numpy as np
import pandas as pd
import xarray as xr
from models import make_dataset

from xmosaic.variables import ROWS

DS = make_dataset()
Z, U, T, P = "geopotential", "u_component_of_wind", "2m_temperature", "mean_sea_level_pressure"
SPACE = ("latitude", "longitude")
UNNEEDED = slice(0, 3)  # the last start needs the last two of five times


class Mutant(NamedTuple):
    """A changed Dataset; the outcome is "same" (to the bit), "close" (to rounding) or "refused"."""

    outcome: str
    make: Callable[[], Any]


def mutants() -> dict[str, Mutant]:
    """Every mutant by name."""
    found: dict[str, Mutant] = {}
    for family in FAMILIES:
        for name, outcome, change in family():
            key = f"{family.__name__}: {name}"
            assert key not in found, key
            found[key] = Mutant(outcome, lambda change=change: change(DS.copy(deep=True)))
    return found


Rows = Iterator[tuple[str, str, Callable[[xr.Dataset], Any]]]


def field(name: str, change: Callable[[xr.DataArray], xr.DataArray], **attrs: Any) -> Callable[[xr.Dataset], Any]:
    """Change one variable, which keeps its attributes but for `attrs`."""
    return lambda ds: ds.assign({name: change(ds[name]).assign_attrs(ds[name].attrs | attrs)})


def attrs(name: str, **change: Any) -> Callable[[xr.Dataset], Any]:
    """Change attributes of one variable or coordinate; None takes one away."""

    def make(ds: xr.Dataset) -> xr.Dataset:
        kept = {k: v for k, v in {**ds[name].attrs, **change}.items() if v is not None}
        if name in ds.indexes:
            return ds.assign_coords({name: (ds[name].dims, ds[name].values, kept)})
        ds[name].attrs = kept
        return ds

    return make


def coords(**values: Any) -> Callable[[xr.Dataset], Any]:
    """Replace the values of one-dimensional coordinates, which keep their attributes."""
    return lambda ds: ds.assign_coords({n: (n, v(ds[n].values), ds[n].attrs) for n, v in values.items()})


# ------------------------------------------------------------------------------------------------------- names


def names_of_variables() -> Rows:
    for row in (row for row in ROWS if row.name in DS):
        for name in dict.fromkeys([*row.names, row.name.upper()]):
            if name != row.name:
                yield f"{row.name} as {name}", "same", lambda ds, a=row.name, b=name: ds.rename({a: b})
        yield f"{row.name} under another name", "same", lambda ds, a=row.name: renamed_by_standard_name(ds, a)
        yield f"{row.name} gone", "refused", lambda ds, a=row.name: ds.drop_vars(a)
        yield f"{row.name} misspelt", "refused", lambda ds, a=row.name: ds.rename({a: a[:-1]}).drop_attrs()
        yield f"{row.name} as a number", "refused", lambda ds, a=row.name: ds.rename({a: 7}).drop_attrs()
    for a, b in itertools.combinations((Z, U, T, P), 2):
        yield f"{a} and {b} swapped", "refused", lambda ds, a=a, b=b: ds.rename({a: b, b: a})
    yield "one variable per level", "same", per_level
    yield "all ECMWF's", "same", lambda ds: ds.rename({Z: "z", U: "u", T: "2t", P: "msl"})
    yield "all CDS's", "same", lambda ds: ds.rename({Z: "z", U: "u", T: "t2m", P: "msl", "time": "valid_time"})
    yield "temperature twice", "same", lambda ds: ds.assign(t2m=ds[T] + 50)
    yield "temperature twice by other names", "refused", lambda ds: ds.assign(t2m=ds[T]).rename({T: "2t"})
    for name in ("precipitation", 5, ("a", "b"), "", "ÅΩ ", "x" * 300, "time_bnds", "crs"):
        yield f"{str(name)[:20]!r} beside", "same", lambda ds, n=name: ds.assign({n: 3.0})
        yield f"{str(name)[:20]!r} beside on the grid", "same", lambda ds, n=name: ds.assign({n: ds[T].drop_attrs()})


def renamed_by_standard_name(ds: xr.Dataset, name: str) -> xr.Dataset:
    """Known by standard_name alone, and by height where that is needed."""
    ds = ds.rename({name: "field"})
    return ds.assign(field=ds["field"].assign_coords(height=2.0)) if name == T else ds


def per_level(ds: xr.Dataset) -> xr.Dataset:
    single = {f"z{p}": ds[Z].sel(level=p, drop=True) for p in (500, 850)}
    return ds[[T, P]].assign(single | {"u850": ds[U].sel(level=850, drop=True)})


def names_of_axes() -> Rows:
    for name in ("valid_time", "date", "datetime", "Time"):
        yield f"time as {name}", "same", lambda ds, n=name: ds.rename(time=n)
    for name in ("pressure_level", "isobaricInhPa", "plev", "pressure", "lev", "levels", "PLEV"):
        yield f"level as {name}", "same", lambda ds, n=name: ds.rename(level=n)
    for lat, lon in itertools.product(("lat", "latitude", "LAT", "y"), ("lon", "longitude", "LON", "x")):
        if (lat, lon) != SPACE:
            yield f"{lat} and {lon}", "same", lambda ds, a=lat, b=lon: ds.rename(latitude=a, longitude=b)
    for name in ("time", "level", *SPACE):
        # CF's attributes say what a name doesn't
        known = "refused" if name == "level" else "same"  # which has none
        yield f"{name} as foo", known, lambda ds, n=name: ds.rename({n: "foo"})
        bare = "same" if name == "time" else "refused"
        yield f"{name} as foo, bare", bare, lambda ds, n=name: attrs("foo", **BARE)(ds.rename({n: "foo"}))
    yield "latitude called longitude and back", "refused", swapped_names


BARE = dict.fromkeys(("standard_name", "units", "axis", "long_name", "positive"))


def swapped_names(ds: xr.Dataset) -> xr.Dataset:
    ds = ds.rename(latitude="longitude", longitude="latitude")
    return ds.assign_coords({n: (n, ds[n].values) for n in SPACE})


# ------------------------------------------------------------------------------------------------------- order


def order_of_dimensions() -> Rows:
    dims = ("time", "level", *SPACE)
    for order in itertools.permutations(dims):
        if order != dims:
            yield " ".join(order), "same", lambda ds, o=order: ds.transpose(*o)
    for name in (Z, U, T, P):
        yield f"{name} alone", "same", lambda ds, n=name: ds.assign({n: ds[n].transpose(*ds[n].dims[::-1])})


def order_of_places() -> Rows:
    orders = {
        "reversed": lambda n: np.arange(n)[::-1],
        "shuffled": lambda n: np.random.default_rng(3).permutation(n),
        "rolled": lambda n: np.roll(range(n), 2),
    }
    for (how, order), dim in itertools.product(orders.items(), ("latitude", "longitude", "level", "time")):
        # the start is named by its value, so any order of times is the same forecast
        if dim != "level" or how == "reversed":  # there are but two
            yield f"{dim} {how}", "same", lambda ds, d=dim, o=order: ds.isel({d: o(ds.sizes[d])})
    yield "all reversed", "same", lambda ds: ds.isel({d: slice(None, None, -1) for d in ds.dims})
    yield "−180…180", "same", lambda ds: coords(longitude=west)(ds).sortby("longitude")
    yield "−180…180 unsorted", "same", coords(longitude=west)
    yield "180 and not −180", "same", coords(longitude=lambda v: np.where(v > 180, v - 360, v))
    yield "−360…0", "same", coords(longitude=lambda v: v - 360)
    yield "720…", "same", coords(longitude=lambda v: v + 720)
    yield "360 beside 0", "same", meridian_twice
    yield "−180 beside 180", "same", lambda ds: meridian_twice(coords(longitude=west)(ds).sortby("longitude"))
    yield "float32 places", "same", coords(latitude=np.float32, longitude=np.float32)
    yield "whole places", "same", coords(latitude=lambda v: v.astype(int), longitude=lambda v: v.astype("int16"))
    yield "places a little off", "same", coords(latitude=lambda v: v + 1e-5 * np.sign(v) * (abs(v) < 90))


def west(values: np.ndarray) -> np.ndarray:
    return (values + 180) % 360 - 180


def meridian_twice(ds: xr.Dataset) -> xr.Dataset:
    first = ds.isel(longitude=[0])
    last = first.assign_coords(longitude=("longitude", first["longitude"].values + 360, ds["longitude"].attrs))
    return xr.concat([ds, last], "longitude", data_vars="minimal")


# ------------------------------------------------------------------------------------------------------- units

CONVERSIONS = {
    T: {"degC": (1, 273.15), "celsius": (1, 273.15), "°C": (1, 273.15), "degF": (5 / 9, 255.3722222222222)},
    P: {"hPa": (100, 0), "mbar": (100, 0), "mb": (100, 0), "kPa": (1000, 0), "bar": (1e5, 0), "atm": (101325, 0)},
    Z: {"km2 s-2": (1e6, 0), "J kg-1": (1, 0), "J g-1": (1e3, 0), "cm2 s-2": (1e-4, 0)},
    U: {"knots": (1852 / 3600, 0), "km h-1": (1 / 3.6, 0), "cm/s": (0.01, 0), "mph": (0.44704, 0)},
}
# one of each, as a unit, a factor and an offset
PACKED_UNITS = {name: next((u, *change) for u, change in known.items()) for name, known in CONVERSIONS.items()}
SPELLINGS = {
    T: ("kelvin", "K ", "degK", "Kelvin"),
    P: ("Pascal", "pa", "N m-2", "kg m-1 s-2"),
    Z: ("m**2 s**-2", "m2/s2", "m^2 s^-2", "J/kg"),
    U: ("m s**-1", "m/s", "m s^-1", "meter second-1"),
}


def units() -> Rows:
    for name, known in CONVERSIONS.items():
        for unit, (factor, offset) in known.items():
            yield (
                f"{name} in {unit}",
                "close",
                field(name, lambda x, f=factor, o=offset: (x.astype(float) - o) / f, units=unit),
            )
        for unit in SPELLINGS[name]:
            yield f"{name} in {unit!r}", "same", attrs(name, units=unit)
        for unit in ("furlong", "kg", "s", "W m-2", "☃", "K K", "1"):
            yield f"{name} said to be in {unit}", "refused", attrs(name, units=unit)
        for unit in (None, "", " "):
            yield f"{name} without units {unit!r}", "same", attrs(name, units=unit)
        for unit in (3, np.array([1, 2]), ["K"], float("nan"), b"K"):
            outcome = "refused"
            yield f"{name} with units {unit!r}", outcome, attrs(name, units=unit)
    # values and units that contradict each other
    yield "Pa said to be hPa", "refused", attrs(P, units="hPa")
    yield "Pa said to be bar", "refused", attrs(P, units="bar")
    yield "hPa said to be Pa", "refused", field(P, lambda x: x / 100)
    yield "K said to be degC", "refused", attrs(T, units="degC")
    yield "degC said to be K", "refused", field(T, lambda x: x - 273.15)
    yield "degC without units", "refused", field(T, lambda x: x - 273.15, units="")
    yield "height said to be geopotential", "refused", field(Z, lambda x: x / 9.80665)
    yield "height in m", "refused", field(Z, lambda x: x / 9.80665, units="m")
    yield "height in gpm", "refused", field(Z, lambda x: x / 9.80665, units="gpm")
    yield "m2 s-2 said to be km2 s-2", "refused", attrs(Z, units="km2 s-2")
    for unit, factor in (("Pa", 100), ("kPa", 0.1), ("mbar", 1), ("hectopascal", 1), ("", 1)):
        yield (
            f"levels in {unit!r}",
            "same",
            lambda ds, u=unit, f=factor: attrs("level", units=u)(coords(level=lambda v: v * f)(ds)),
        )
    yield (
        "levels of isobaricInPa",
        "same",
        lambda ds: attrs("isobaricInPa", units=None)(coords(level=lambda v: v * 100)(ds).rename(level="isobaricInPa")),
    )
    for unit in ("m", "1", "K", "sigma", "foo"):
        yield f"levels in {unit}", "refused", attrs("level", units=unit)
    yield "hPa levels said to be Pa", "refused", attrs("level", units="Pa")


# ------------------------------------------------------------------------------------------------------- dtypes


def dtypes() -> Rows:
    for name in (Z, U, T, P):
        for dtype in ("float64", ">f4", ">f8", "longdouble"):
            yield f"{name} {dtype}", "same", field(name, lambda x, d=dtype: x.astype(d))
        for dtype in ("object", "complex64", "U12", "S12", "datetime64[ns]", "timedelta64[s]", "bool"):
            yield f"{name} {dtype}", "refused", field(name, lambda x, d=dtype: x.fillna(0).astype(d))
        yield f"{name} packed", "refused", lambda ds, n=name: packed(ds, n)
        yield f"{name} packed and decoded", "rounded", lambda ds, n=name: xr.decode_cf(packed(ds, n))
        yield f"{name} packed big-endian and decoded", "rounded", lambda ds, n=name: xr.decode_cf(packed(ds, n, ">i2"))
    for name in (Z, U, T):
        yield f"{name} float16", "rounded", field(name, lambda x: x.astype("float16"))
    yield "pressure in float16, which can't hold it", "refused", field(P, quiet_half)
    for name, dtype in ((Z, "int32"), (T, "int64"), (P, "uint32"), (P, ">i4")):
        yield f"{name} {dtype}", "rounded", field(name, lambda x, d=dtype: x.fillna(0).round().astype(d))
    for name, dtype in (
        ("latitude", ">f8"),
        ("longitude", ">f4"),
        ("level", ">i4"),
        ("level", "float32"),
        ("level", "uint16"),
    ):
        yield f"{name} {dtype}", "same", coords(**{name: lambda v, d=dtype: v.astype(d)})
    for name, dtype in itertools.product(
        ("latitude", "longitude", "level"), ("U8", "object", "complex128", "datetime64[ns]")
    ):
        yield f"{name} {dtype}", "refused", coords(**{name: lambda v, d=dtype: v.astype("int64").astype(d)})


def quiet_half(x: xr.DataArray) -> xr.DataArray:
    with np.errstate(over="ignore"):
        return x.astype("float16")


def packed(ds: xr.Dataset, name: str, dtype: str = "int16") -> xr.Dataset:
    """As files hold it: whole numbers, scale, offset and a fill value."""
    low, high = float(ds[name].min()), float(ds[name].max())
    scale = (high - low) / 60000
    whole = ((ds[name] - (low + high) / 2) / scale).round().fillna(-32767).astype(dtype)
    extra = {"scale_factor": scale, "add_offset": (low + high) / 2, "_FillValue": np.array(-32767, dtype)[()]}
    return ds.assign({name: whole.assign_attrs(ds[name].attrs | extra)})


# ------------------------------------------------------------------------------------------------------- values


def values() -> Rows:
    for name, bad in itertools.product((Z, U, T, P), (np.nan, np.inf, -np.inf)):
        yield f"{bad} at a point of {name}", "refused", lambda ds, n=name, b=bad: put(ds, n, b)
        yield f"{bad} in {name} long before", "same", lambda ds, n=name, b=bad: put(ds, n, b, UNNEEDED)
    for name in (Z, U, T, P):
        yield f"{name} all NaN", "refused", field(name, lambda x: x * np.nan)
        yield f"{name} huge", "refused", field(name, lambda x: x * np.float32(1e30))
        yield f"{name} beyond float32", "refused", field(name, lambda x: x.astype(float) * 1e300)
        for fill in (9.969209968386869e36, 1e20, -32767.0, -999.0):
            yield f"{fill:g} as undecoded fill in {name}", "refused", lambda ds, n=name, f=fill: undecoded(ds, n, f)
        yield f"1e20 without a word in {name}", "refused", lambda ds, n=name: put(ds, n, 1e20)
        yield f"9.97e36 without a word in {name}", "refused", lambda ds, n=name: put(ds, n, 9.969209968386869e36)
        yield f"a fill value of {name} that isn't there", "same", attrs(name, missing_value=np.float32(1e20))
        yield f"a NaN fill value of {name}", "same", attrs(name, _FillValue=np.float32("nan"))
    yield "infinite at a level that is not wanted", "same", lambda ds: put(ds, U, np.inf, level=500)
    yield "NaN in another variable", "same", lambda ds: ds.assign(sst=ds[T] * np.nan)
    yield "negative zero", "same", lambda ds: ds.assign(junk=ds[T] * -0.0)


def put(ds: xr.Dataset, name: str, value: float, times: Any = slice(-1, None), level: int = 850) -> xr.Dataset:
    place: dict[str, Any] = {"time": ds["time"][times], "latitude": ds["latitude"][3], "longitude": ds["longitude"][4]}
    if "level" in ds[name].dims:
        place["level"] = level
    ds[name].loc[place] = value
    return ds


def undecoded(ds: xr.Dataset, name: str, fill: float) -> xr.Dataset:
    return attrs(name, missing_value=np.float32(fill))(put(ds, name, fill))


# ------------------------------------------------------------------------------------------------------- times


def cf_times(calendar: str) -> Callable[[xr.Dataset], Any]:
    def make(ds: xr.Dataset) -> xr.Dataset:
        start = {"360_day": "2020-02-26", "noleap": "2020-02-27"}.get(calendar, "2020-02-27")
        return ds.assign_coords(time=xr.date_range(start, periods=5, calendar=calendar, use_cftime=True))

    return make


def numbers(units: str | None) -> Callable[[xr.Dataset], Any]:
    return lambda ds: ds.assign_coords(time=("time", np.arange(5), {} if units is None else {"units": units}))


def times() -> Rows:
    for calendar in ("standard", "proleptic_gregorian"):
        yield f"cftime {calendar}", "same", cf_times(calendar)
    for calendar in ("noleap", "360_day", "all_leap", "julian"):
        yield f"cftime {calendar}", "refused", cf_times(calendar)
    for unit in ("s", "ms", "us", "ns"):
        yield f"datetime64[{unit}]", "same", coords(time=lambda v, u=unit: v.astype(f"datetime64[{u}]"))
    for unit in ("days since 2020-02-27", "hours since 1900-01-01", "fortnights", None):
        yield f"numbers with units {unit}", "refused", numbers(unit)
    yield "decoded numbers", "same", lambda ds: xr.decode_cf(numbers("days since 2020-02-27")(ds))
    yield "strings", "refused", lambda ds: ds.assign_coords(time=ds["time"].dt.strftime("%Y-%m-%d").values)
    yield "years", "refused", lambda ds: ds.assign_coords(time=range(2000, 2005))
    yield "periods", "refused", lambda ds: ds.assign_coords(time=pd.period_range("2020-02-27", periods=5))
    yield "a zone", "refused", lambda ds: ds.assign_coords(time=ds.indexes["time"].tz_localize("Asia/Tokyo"))
    yield "NaT first", "refused", coords(time=lambda v: np.where(np.arange(5) == 0, np.datetime64("NaT", "ns"), v))
    yield "all NaT", "refused", coords(time=lambda v: np.full(5, np.datetime64("NaT", "ns")))
    yield "twice", "refused", lambda ds: ds.isel(time=[0, 1, 2, 3, 4, 4])
    yield "twice long before", "refused", lambda ds: ds.isel(time=[0, 1, 1, 2, 3, 4])
    yield "a gap in the history", "refused", lambda ds: ds.isel(time=[0, 1, 2, 4])
    yield "a gap long before", "same", lambda ds: ds.isel(time=[0, 2, 3, 4])
    yield (
        "six-hourly",
        "same",
        lambda ds: (
            ds.sel(time=pd.date_range(*ds.indexes["time"][[0, -1]], freq="6h"), method="ffill")
            .assign_coords(time=pd.date_range(*ds.indexes["time"][[0, -1]], freq="6h"))
            .sortby("time")
        ),
    )
    yield "half a day off", "refused", coords(time=lambda v: v + (np.arange(5) == 3) * np.timedelta64(12, "h"))
    yield "the two that are needed", "same", lambda ds: ds.isel(time=slice(3, None))
    yield "one time", "refused", lambda ds: ds.isel(time=[4])
    yield "a scalar time", "refused", lambda ds: ds.isel(time=4)
    yield "called a start", "same", attrs("time", standard_name="forecast_reference_time")
    yield (
        "a start with a lead of nothing",
        "same",
        lambda ds: attrs("time", standard_name="forecast_reference_time")(ds).assign_coords(
            step=np.timedelta64(0, "h")
        ),
    )
    yield (
        "a start a day before",
        "same",
        lambda ds: attrs("time", standard_name="forecast_reference_time")(
            coords(time=lambda v: v - np.timedelta64(1, "D"))(ds)
        ).assign_coords(step=np.timedelta64(24, "h")),
    )
    yield (
        "a start and a lead without units",
        "refused",
        lambda ds: attrs("time", standard_name="forecast_reference_time")(ds).assign_coords(step=24),
    )
    yield (
        "cfgrib's two",
        "same",
        lambda ds: ds.assign_coords(
            valid_time=("time", ds["time"].values),
            time=ds["time"].values - np.timedelta64(6, "h"),
            step=np.timedelta64(6, "h"),
        ),
    )
    yield "attributes of another axis", "same", attrs("time", axis="X", long_name="longitude")
    yield "attributes of an altitude", "refused", attrs("time", standard_name="altitude", units="m")
    yield "far ahead", "refused", coords(time=lambda v: v.astype("datetime64[s]") + np.timedelta64(400000, "D"))


# ------------------------------------------------------------------------------------------------------- sizes


def sizes() -> Rows:
    for dim in ("time", "level", *SPACE):
        yield f"{dim} empty", "refused", lambda ds, d=dim: ds.isel({d: slice(0, 0)})
        yield f"{dim} of one", "refused", lambda ds, d=dim: ds.isel({d: slice(0, 1)})
        yield f"{dim} gone", "refused", lambda ds, d=dim: ds.isel({d: -1}, drop=True)
        yield f"{dim} scalar", "refused", lambda ds, d=dim: ds.isel({d: 0})
        yield f"{dim} averaged", "refused", lambda ds, d=dim: ds.mean(d, keep_attrs=True)
        yield f"{dim} without values", "refused", lambda ds, d=dim: ds.drop_vars(d)
        index = "same"
        yield f"{dim} without index", index, lambda ds, d=dim: ds.drop_indexes(d)
        yield f"{dim} a variable", "refused", lambda ds, d=dim: ds.reset_index(d).reset_coords(d)
        yield f"{dim} twice", "refused", lambda ds, d=dim: ds.isel({d: [0, *range(ds.sizes[d])]})
        yield f"{dim} constant", "refused", coords(**{dim: lambda v: np.full_like(v, v[0])})
    for name, some in {
        "northern half": {"latitude": slice(4, None)},
        "southern half": {"latitude": slice(0, 4)},
        "tropics": {"latitude": slice(2, 5)},
        "eastern half": {"longitude": slice(0, 7)},
        "a row missing": {"latitude": [0, 1, 2, 4, 5, 6]},
        "a column missing": {"longitude": [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]},
    }.items():
        yield name, "refused", lambda ds, s=some: ds.isel(s)
    yield "no variables", "refused", lambda ds: ds.drop_vars(list(ds.data_vars))
    yield "nothing", "refused", lambda ds: xr.Dataset()
    yield "all coordinates gone", "refused", lambda ds: ds.drop_vars(list(ds.coords))
    for name in (Z, U, T, P):
        yield f"{name} without time", "refused", lambda ds, n=name: ds.assign({n: ds[n].isel(time=0, drop=True)})
        yield f"{name} a coordinate", "refused", lambda ds, n=name: ds.set_coords(n)
        yield f"{name} a number", "refused", lambda ds, n=name: ds.assign({n: 3.0})
        yield (
            f"{name} zonal means",
            "refused",
            lambda ds, n=name: ds.assign({n: ds[n].mean("longitude", keep_attrs=True)}),
        )
    yield "stacked", "refused", lambda ds: ds.stack(point=SPACE)
    yield "times and levels stacked", "refused", lambda ds: ds.stack(sample=("time", "level"))


# ------------------------------------------------------------------------------------------------------- chunks


def chunked() -> Rows:
    for name, chunks in {
        "ones": {"time": 1, "level": 1, "latitude": 1},
        "all in one": -1,
        "irregular": {"time": (1, 3, 1), "latitude": (2, 1, 4), "longitude": (5, 7)},
        "single longitudes": {"longitude": 1},
    }.items():
        yield name, "same", lambda ds, c=chunks: ds.chunk(c)
    yield "each its own", "same", lambda ds: ds.assign({n: ds[n].chunk(time=k + 1) for k, n in enumerate(ds.data_vars)})
    yield (
        "coordinates too",
        "same",
        lambda ds: (
            ds.chunk(time=1)
            .drop_indexes("time")
            .assign_coords(time=("time", dask.array.from_array(ds["time"].values, chunks=2)))
            .set_xindex("time")
        ),
    )
    yield "a chunk that can't be read", "refused", lambda ds: ds.assign({T: broken(ds[T], OSError("disk on fire"))})
    yield "a chunk of another shape", "refused", lambda ds: ds.assign({T: misshapen(ds[T])})
    yield (
        "a chunk that isn't wanted can't be read",
        "same",
        lambda ds: ds.assign(
            {
                T: xr.concat(
                    [broken(ds[T].isel(time=UNNEEDED), OSError("gone")), ds[T].isel(time=slice(3, None)).chunk(time=1)],
                    "time",
                )
            }
        ),
    )


def broken(da: xr.DataArray, error: Exception) -> xr.DataArray:
    def fail(block: np.ndarray) -> np.ndarray:
        raise error

    return da.copy(
        data=dask.array.from_array(da.values, chunks=(1, -1, -1)).map_blocks(
            fail, dtype=da.dtype, meta=np.empty((0, 0, 0), da.dtype)
        )
    )


def misshapen(da: xr.DataArray) -> xr.DataArray:
    data = dask.array.from_array(da.values, chunks=(1, -1, -1))
    return da.copy(
        data=data.map_blocks(
            lambda b: b[..., :-1], dtype=da.dtype, chunks=data.chunks, meta=np.empty((0, 0, 0), da.dtype)
        )
    )


# -------------------------------------------------------------------------------------------------- more dimensions


def further_dimensions() -> Rows:
    kinds = (
        "number",
        "realization",
        "member",
        "step",
        "prediction_timedelta",
        "height",
        "depth",
        "band",
        "cell_type",
        "hybrid",
        "surface",
        "expver",
    )
    for name in kinds:
        yield f"{name} of one", "same", lambda ds, n=name: ds.expand_dims({n: 1})
        yield f"{name} of two", "refused", lambda ds, n=name: ds.expand_dims({n: 2})
        yield f"{name} of none", "refused", lambda ds, n=name: ds.expand_dims({n: 0})
        lead = "refused" if name in ("step", "prediction_timedelta") else "same"
        yield f"{name} behind, with a value", lead, lambda ds, n=name: ds.expand_dims({n: [3]}, axis=-1)
        yield f"{name} a scalar", lead, lambda ds, n=name: ds.assign_coords({n: 3})
    yield "bounds", "same", lambda ds: ds.assign_coords(latitude_bnds=(("latitude", "nv"), np.zeros((7, 2))))
    yield "two-dimensional places beside", "same", lambda ds: ds.assign_coords(lat2d=(SPACE, np.zeros((7, 12))))
    yield "a mask on the grid", "same", lambda ds: ds.assign_coords(mask=(SPACE, np.zeros((7, 12), bool)))
    yield "a label per time", "same", lambda ds: ds.assign_coords(season=("time", list("abcde")))
    yield "cells beside", "refused", lambda ds: ds.assign({T: (("time", "cell"), np.zeros((5, 48)))})


# ------------------------------------------------------------------------------------------------------- attributes


def attributes() -> Rows:
    wrong = {T: "eastward_wind", P: "air_temperature", Z: "eastward_wind", U: "northward_wind"}
    for name, standard in wrong.items():
        yield f"{name} says {standard}", "refused", attrs(name, standard_name=standard)
        yield f"{name} says nothing", "same", attrs(name, standard_name=None, long_name=None)
        yield (
            f"{name} says nonsense",
            "same",
            attrs(
                name,
                long_name=object(),
                cell_methods=3,
                grid_mapping="nowhere",
                coordinates="a b",
                valid_range=[0, 1],
                history=None,
            ),
        )
    for name, axis in itertools.product(("latitude", "longitude", "level", "time"), "XYZT"):
        yield f"{name} with axis {axis}", "same", attrs(name, axis=axis)
    yield "latitude says longitude", "refused", attrs("latitude", standard_name="longitude")
    yield "longitude says latitude", "refused", attrs("longitude", standard_name="latitude")
    yield "latitude in degrees_east", "same", attrs("latitude", units="degrees_east", standard_name=None)
    yield (
        "each says the other",
        "refused",
        lambda ds: attrs("latitude", standard_name="longitude", units="degrees_east")(
            attrs("longitude", standard_name="latitude", units="degrees_north")(ds)
        ),
    )
    yield "level says altitude", "refused", attrs("level", standard_name="altitude", units="m")
    yield "level says sigma", "refused", attrs("level", standard_name="atmosphere_sigma_coordinate")
    yield "level says model levels", "refused", attrs("level", standard_name="model_level_number", units="1")
    yield "level counts from below", "same", attrs("level", positive="up")
    for name in ("latitude", "longitude", "level"):
        yield f"{name} says nothing", "same", attrs(name, **BARE)
    yield "radians", "refused", coords(latitude=np.deg2rad, longitude=np.deg2rad)
    yield (
        "radians that say so",
        "refused",
        lambda ds: attrs("latitude", units="radians")(
            attrs("longitude", units="radians")(coords(latitude=np.deg2rad, longitude=np.deg2rad)(ds))
        ),
    )
    yield "latitudes beyond the poles", "refused", coords(latitude=lambda v: v * 1.1)
    yield "colatitudes", "refused", coords(latitude=lambda v: 90 - v)
    yield "NaN latitude", "refused", coords(latitude=lambda v: np.where(v == 0, np.nan, v))
    yield "infinite longitude", "refused", coords(longitude=lambda v: np.where(v == 0, np.inf, v))
    yield "NaN level", "refused", coords(level=lambda v: np.where(v == 500, np.nan, v))
    yield "negative levels", "refused", coords(level=lambda v: -v)
    yield (
        "attributes of the Dataset",
        "same",
        lambda ds: ds.assign_attrs(Conventions=3, title=object(), time="x", level=None),
    )
    yield "encoding", "same", encoded
    yield (
        "a healpix mapping on a grid",
        "same",
        lambda ds: attrs(T, grid_mapping="crs")(ds.assign_coords(crs=((), 0, {"grid_mapping_name": "healpix"}))),
    )


def encoded(ds: xr.Dataset) -> xr.Dataset:
    for name in ds.variables:
        ds[name].encoding = {
            "dtype": "int16",
            "scale_factor": 0.0,
            "_FillValue": -1,
            "units": "K",
            "chunks": (1,),
            "junk": object(),
        }
    return ds


# ------------------------------------------------------------------------------------------------ no Dataset at all


def no_dataset() -> Rows:
    for thing in (None, 3, "data.nc", b"", [], {}, np.zeros(3), pd.DataFrame(), object()):
        yield f"{type(thing).__name__}", "refused", lambda ds, t=thing: t
    yield "a class", "refused", lambda ds: xr.Dataset
    yield "a DataArray", "refused", lambda ds: ds[T]
    yield "a stack of variables", "refused", lambda ds: ds[[T, P]].to_dataarray()
    yield "a tree", "refused", lambda ds: xr.DataTree(ds)
    yield "groups", "refused", lambda ds: ds.groupby("time.month")
    yield "a list", "refused", lambda ds: [ds]


FAMILIES = (
    names_of_variables,
    names_of_axes,
    order_of_dimensions,
    order_of_places,
    units,
    dtypes,
    values,
    times,
    sizes,
    chunked,
    further_dimensions,
    attributes,
    no_dataset,
)
