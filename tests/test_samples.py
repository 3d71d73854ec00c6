"""Do the samples hold the right times, values and order, whatever the store, dialect, gaps, workers and ranks?"""

from __future__ import annotations

import gc
import itertools
import threading
import time
import warnings
from collections import Counter

import dask
import dask.array
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from models import GRID, SCHEMA, make_dataset

import xmosaic
from xmosaic.errors import ArgumentError, DatasetError, StoreError
from xmosaic.grid import LatLonGrid
from xmosaic.training import loader as loader_module
from xmosaic.training import normalise
from xmosaic.training.loader import Loader
from xmosaic.training.normalise import Moments, statistics
from xmosaic.training.samples import TrainingData
from xmosaic.variables import Schema

STEP = pd.Timedelta("6h")
ALWAYS = ("2020", "2020")
SMALL = Schema.from_variables({"2m_temperature": None})
TINY = LatLonGrid.equiangular(4, 3)
RICH = Schema.from_variables(
    {"2m_temperature": None, "geopotential": [500, 850]},
    static=["land_sea_mask", "geopotential_at_surface"],
    forcing=["sea_surface_temperature", "toa_incident_solar_radiation"],
)
ALL = ("longitude", "latitude")


def make(schema=SCHEMA, periods=12, times="2020-02-27", grid=GRID) -> xr.Dataset:
    return make_dataset(schema, grid, times, periods, "6h")


def rich(periods=12) -> xr.Dataset:
    """With forcings, and static fields without time."""
    ds = make(RICH, periods)
    for name in RICH.variables["static"]:
        ds[name] = ds[name].isel(time=0, drop=True)
    return ds


def data_of(ds=None, schema=SCHEMA, step=STEP, history=2) -> TrainingData:
    return TrainingData(make(schema) if ds is None else ds, schema, step, history)


def plain(ds, channels, times) -> np.ndarray:
    """Twin of the reading: float64 (time, longitude, latitude, channel) of a Dataset in our own layout."""
    fields = []
    for c in channels:
        one = ds[c.variable] if c.level is None else ds[c.variable].sel(level=c.level)
        fields.append(one.sel(time=times).transpose("time", *ALL).values.astype(np.float64))
    return np.stack(fields, axis=-1)


def loader_of(data, rollout=1, batch_size=2, seed=0, period=ALWAYS, mean=None, std=None, **more) -> Loader:
    count = len(data.channels)
    mean, std = np.zeros(count) if mean is None else mean, np.ones(count) if std is None else std
    return Loader(data, data.windows(period, rollout), rollout, batch_size, seed, mean, std, **more)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("xmosaic-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    if threads():
        gc.collect()
    limit = time.monotonic() + 5
    while threads() and time.monotonic() < limit:
        time.sleep(0.01)
    assert threads() == []


# ------------------------------------------------------------------------------------------------------- windows


@settings(max_examples=80, deadline=None)
@given(
    st.sets(st.integers(0, 30), min_size=1),
    st.sets(st.integers(0, 15)),
    st.integers(0, 34),
    st.integers(0, 34),
    st.sampled_from([1, 2]),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_windows_are_those_of_brute_force(hours, between, low, high, stride, history, rollout):
    """Random gaps, times off the step, periods inside and beyond the data."""
    origin = pd.Timestamp("2020-03-01")
    times = sorted({origin + h * STEP for h in hours} | {origin + b * STEP + pd.Timedelta("1h") for b in between})
    first, last = origin + min(low, high) * STEP, origin + (max(low, high) + 1) * STEP
    ds = xr.Dataset(
        {"2m_temperature": (("time", "latitude", "longitude"), np.zeros((len(times), 3, 4)))},
        TINY.coordinates() | {"time": times},
    )
    data = TrainingData(ds, SMALL, stride * STEP, history)

    held = [t for t in times if first <= t <= last]
    whole, gaps = [], 0
    for now in held:
        needed = [now + k * stride * STEP for k in range(-history + 1, rollout + 1)]
        if all(t in held for t in needed):
            whole.append(now)
        elif held[0] <= needed[0] and needed[-1] <= held[-1]:
            gaps += 1
    period = (str(first), str(last))
    if not whole:
        with pytest.raises(DatasetError, match="longer than the data|no data"):
            data.windows(period, rollout)
        return
    windows = data.windows(period, rollout)
    assert windows.starts.tolist() == whole
    assert (windows.skipped, bool(windows.why)) == (gaps, gaps > 0)


def test_gaps_are_named_by_their_times():
    ds = make().drop_isel(time=5)
    windows = data_of(ds).windows(ALWAYS, 1)
    lost = [t for t in pd.date_range("2020-02-27", periods=12, freq="6h")[1:11] if t not in windows.starts]
    assert len(lost) == 3 and windows.skipped == 2  # the gap itself is no time of the data
    assert windows.why == "2 of 9 starts lack '2020-02-28 06:00:00'"


def test_last_day_of_a_period_counts_to_its_end():
    starts = data_of().windows(("2020-02-27", "2020-02-28"), 1).starts
    assert starts[-1] == pd.Timestamp("2020-02-28T12")


def test_windows_longer_than_the_data_say_by_how_much():
    with pytest.raises(DatasetError, match=r"longer than the data. Found 12 times .* expected 13 times 0 days 06:00"):
        data_of().windows(ALWAYS, 11)
    assert len(data_of().windows(ALWAYS, 10)) == 1
    with pytest.raises(DatasetError, match="whose gaps leave none whole"):
        data_of(make().isel(time=slice(None, None, 2)), step=STEP).windows(ALWAYS, 1)
    with pytest.raises(DatasetError, match="no data.*2020-02-27"):
        data_of().windows(("1999", "2001"), 1)


# ------------------------------------------------------------------------------------------------------- reading


def test_sample_holds_the_right_times_in_the_right_order():
    ds = rich()
    data = data_of(ds, RICH, history=3)
    start = pd.Timestamp("2020-02-28T06")
    sample = data.read(start, 2)
    channels = (*RICH.state, *RICH.forcing)
    past, future = (pd.date_range(start, periods=n, freq=f) for n, f in ((3, "-6h"), (3, "6h")))
    assert sample.history.dtype == sample.targets.dtype == np.float32
    np.testing.assert_array_equal(sample.history, plain(ds, channels, past[::-1]))
    np.testing.assert_array_equal(sample.targets, plain(ds, RICH.state, future[1:]))
    np.testing.assert_array_equal(sample.forcing, plain(ds, RICH.forcing, future[1:]))
    assert data_of().read(start, 1).forcing is None


def _dialect(ds: xr.Dataset) -> xr.Dataset:
    """The same data as others write them: names, units, order of everything."""
    out = ds.assign_coords(level=ds.level * 100.0).isel(latitude=slice(None, None, -1), level=slice(None, None, -1))
    out["level"].attrs["units"] = "Pa"
    out["2m_temperature"] = (out["2m_temperature"].astype(float) - 273.15).assign_attrs(units="degC")
    out["mean_sea_level_pressure"] = (out["mean_sea_level_pressure"].astype(float) / 100).assign_attrs(units="hPa")
    out = out.assign_coords(longitude=(out.longitude + 180) % 360 - 180).sortby("longitude")
    names = {"2m_temperature": "t2m", "mean_sea_level_pressure": "msl", "geopotential": "z", "u_component_of_wind": "u"}
    out = out.rename({**names, "latitude": "lat", "longitude": "lon", "time": "valid_time"})
    return out.transpose("lon", "level", "lat", "valid_time").isel(valid_time=slice(None, None, -1))


def test_dialects_units_and_orders_read_alike():
    ds = make()
    ours, theirs = data_of(ds), data_of(_dialect(ds))
    assert theirs.grid == ours.grid == GRID
    assert theirs.times.equals(ours.times)
    for start in ours.windows(ALWAYS, 2).starts:
        a, b = ours.read(start, 2), theirs.read(start, 2)
        np.testing.assert_allclose(a.history, b.history, rtol=2e-7)
        np.testing.assert_allclose(a.targets, b.targets, rtol=2e-7)


def test_a_level_of_its_own_is_found_among_others():
    """Levels that don't follow each other, schema in another order than the store, one variable per level."""
    schema = Schema.from_variables({"geopotential": [850, 300, 500], "2m_temperature": None})
    full = make(Schema.from_variables({"geopotential": [300, 400, 500, 700, 850], "2m_temperature": None}))
    single = full[["2m_temperature"]]
    for level in (300, 500, 850):
        single = single.assign({f"z{level}": full.geopotential.sel(level=level, drop=True)})
    times = full.time.values[[4, 5, 6]]
    expected = plain(full, schema.state, times)
    for ds in (full, single):
        sample = data_of(ds, schema).read(pd.Timestamp(times[1]), 1)
        np.testing.assert_array_equal(np.concatenate([sample.history, sample.targets]), expected)


def test_channels_of_a_variable_need_not_stand_together():
    whole = make()
    mixed = Schema(tuple(SCHEMA.state[i] for i in (2, 0, 3, 4, 1)))
    sample = data_of(whole, mixed).read(whole.indexes["time"][3], 1)
    np.testing.assert_array_equal(sample.history, plain(whole, mixed.state, whole.time.values[[2, 3]]))
    with loader_of(data_of(whole, mixed), batch_size=1) as loader:
        batch = next(loader.batches())
    expected = plain(whole, mixed.state, [batch.starts[0] - STEP, batch.starts[0]])
    np.testing.assert_array_equal(batch.history[0].numpy(), expected)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """One Dataset, opened in every way."""
    folder, ds = tmp_path_factory.mktemp("stores"), make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, chunk in (("ones", 1), ("fives", 5)):
            chunks = {v: {"chunks": (chunk, *ds[v].shape[1:])} for v in ds.data_vars}
            ds.to_zarr(folder / f"{name}.zarr", encoding=chunks)
        ds.to_zarr("memory://stores/ones.zarr", encoding={v: {"chunks": (1, *ds[v].shape[1:])} for v in ds.data_vars})
    packed = {v: {"dtype": "float32", "zlib": True} for v in ds.data_vars}
    ds.to_netcdf(folder / "whole.nc", encoding=packed)
    return ds, {
        "zarr": xr.open_zarr(folder / "ones.zarr"),
        "zarr, no dask": xr.open_zarr(folder / "ones.zarr", chunks=None),
        "zarr, five times a chunk": xr.open_zarr(folder / "fives.zarr"),
        "zarr, chosen": xr.open_zarr(folder / "ones.zarr").sel(time=slice("2020-02-27", "2020-03-02")),
        "remote": xr.open_zarr("memory://stores/ones.zarr"),
        "remote, no dask": xr.open_dataset("memory://stores/ones.zarr", engine="zarr"),
        "netcdf": xr.open_dataset(folder / "whole.nc"),
        "netcdf, dask": xr.open_dataset(folder / "whole.nc", chunks={"time": 12}),
        "dask": ds.chunk(time=5, latitude=3),
    }


KINDS = (
    *("zarr", "zarr, no dask", "zarr, five times a chunk", "zarr, chosen", "remote", "remote, no dask"),
    *("netcdf", "netcdf, dask", "dask"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_store_gives_the_same_batches(stores, kind):
    ds, opened = stores
    with loader_of(data_of(ds), rollout=2) as a, loader_of(data_of(opened[kind]), rollout=2) as b:
        for one, two in itertools.islice(zip(a.batches(), b.batches(), strict=False), 5):
            assert one.starts.equals(two.starts)
            assert torch.equal(one.history, two.history) and torch.equal(one.targets, two.targets)
    mean, std = statistics(data_of(ds), ALWAYS, progress=False)
    again, wide = statistics(data_of(opened[kind]), ALWAYS, progress=False)
    np.testing.assert_allclose(again, mean, rtol=1e-13)
    np.testing.assert_allclose(wide, std, rtol=1e-12)


def test_a_zarr_store_is_read_without_a_graph(stores):
    """And what has been done to it afterwards isn't lost: then dask stays."""
    opened = stores[1]["zarr"]
    ds_shape = opened["2m_temperature"].shape

    def run_dask(*_, **__):
        raise AssertionError("dask computes")

    with dask.config.set(scheduler=run_dask):
        direct = data_of(opened)
        assert all(f.variable.chunks is None for f in direct.parts[0].fields)
        direct.read(opened.indexes["time"][3], 1)

    class Wrapped:
        """Not ours to look into."""

        shape, dtype, ndim, array = ds_shape, np.dtype("float32"), 3, np.zeros(ds_shape, np.float32)

        def __getitem__(self, key):
            return self.array[key] + 1

    foreign = opened.assign({"2m_temperature": (opened["2m_temperature"].dims, dask.array.from_array(Wrapped()))})
    assert (data_of(foreign).read(opened.indexes["time"][3], 1).history[..., 0] == 1).all()
    doubled = opened.map(lambda da: (da * 2).assign_attrs(da.attrs))
    assert any(f.variable.chunks is not None for f in data_of(doubled).parts[0].fields)
    a, b = (data_of(d).read(opened.indexes["time"][3], 1) for d in (opened, doubled))
    np.testing.assert_array_equal(2 * a.history, b.history)


@pytest.mark.parametrize(("chunk", "stride", "needed"), [(1, 1, "456"), (4, 1, "1"), (1, 2, "357"), (4, 2, "01")])
def test_each_chunk_of_a_sample_is_read_once_and_no_other(tmp_path, monkeypatch, chunk, stride, needed):
    """The store is asked once per variable, and damage in the other chunks isn't met."""
    ds, keys = make(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.to_zarr(tmp_path / "a.zarr", encoding={v: {"chunks": (chunk, *ds[v].shape[1:])} for v in ds.data_vars})
    others = [p for v in ds.data_vars for p in (tmp_path / "a.zarr" / v / "c").iterdir() if p.name not in needed]
    for path in (p for other in others for p in other.rglob("*") if p.is_file()):
        path.write_bytes(b"damaged")
    assert len(others) == len(ds.data_vars) * (12 // chunk - len(needed))
    asked = xr.backends.zarr.ZarrArrayWrapper._getitem
    data = data_of(xr.open_zarr(tmp_path / "a.zarr"), step=stride * STEP)
    monkeypatch.setattr(
        xr.backends.zarr.ZarrArrayWrapper, "_getitem", lambda self, key: (keys.append(key), asked(self, key))[1]
    )
    sample = data.read(ds.indexes["time"][5], 1)
    times = ds.time.values[[5 - stride, 5, 5 + stride]]
    np.testing.assert_array_equal([*sample.history, *sample.targets], plain(ds, SCHEMA.state, times))
    assert len(keys) == len(ds.data_vars)


def test_reading_leaves_the_dataset_alone():
    ds = make()
    before = ds.copy(deep=True)
    with loader_of(data_of(ds), mean=np.full(5, 3.0), std=np.full(5, 2.0)) as loader:
        next(loader.batches())
    xr.testing.assert_identical(ds, before)


# ----------------------------------------------------------------------------------------------- several Datasets


def test_datasets_of_different_dialects_are_put_together_in_time():
    ds = make()
    parts = [_dialect(ds.isel(time=slice(7, None))), ds.isel(time=slice(0, 7))]
    whole, split = data_of(ds), data_of(parts)
    assert split.times.equals(whole.times)
    windows = split.windows(ALWAYS, 3)
    assert windows.starts.equals(whole.windows(ALWAYS, 3).starts)
    for start in windows.starts:
        a, b = whole.read(start, 3), split.read(start, 3)
        np.testing.assert_allclose(a.history, b.history, rtol=2e-7)
        np.testing.assert_allclose(a.targets, b.targets, rtol=2e-7)
    for one, two in zip(*(statistics(d, ALWAYS, progress=False) for d in (whole, split)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_a_time_in_two_datasets_is_refused_by_their_names():
    ds = make()
    second = ds.isel(time=slice(5, None))
    second.encoding["source"] = "later.zarr"
    with pytest.raises(DatasetError, match=r"Dataset 1 and Dataset 2 \(later.zarr\) .* 2 times .* 2020-02-28 06"):
        data_of([ds.isel(time=slice(0, 7)), second])


def test_datasets_on_different_grids_are_refused():
    other = make(grid=LatLonGrid.equiangular(8, 5), times="2020-05-01")
    with pytest.raises(DatasetError, match="Dataset 2 is on another grid than Dataset 1.*to_latlon"):
        data_of([make(), other])


# --------------------------------------------------------------------------------------------------------- static


def test_static_fields_are_those_of_the_dataset():
    ds = rich()
    twisted = ds.isel(latitude=slice(None, None, -1))
    twisted["land_sea_mask"] = twisted["land_sea_mask"].expand_dims(time=ds.time)  # constant in time
    expected = np.stack([ds[n].transpose(*ALL).values for n in RICH.variables["static"]], axis=-1)
    for one in (ds, twisted, [make(RICH, 3, "2021").drop_vars(RICH.variables["static"]), ds]):
        static = data_of(one, RICH).static
        assert static.dtype == np.float64
        np.testing.assert_array_equal(static, expected)
    assert data_of().static is None


def test_bad_static_fields_are_refused():
    ds = rich()
    with pytest.raises(DatasetError, match="static field 'land_sea_mask' is missing"):
        data_of(ds.drop_vars("land_sea_mask"), RICH)
    with pytest.raises(DatasetError, match="This dataset has a static field that changes with time, 'land_sea_mask'"):
        data_of(ds.assign(land_sea_mask=make(RICH).land_sea_mask), RICH)
    ds["land_sea_mask"][3, 2] = np.nan
    with pytest.raises(DatasetError, match="land_sea_mask holds NaN"):
        data_of(ds, RICH)


# ------------------------------------------------------------------------------------------------------ bad input


def test_bad_datasets_are_refused():
    ds = make()
    with pytest.raises(DatasetError, match=r"HEALPix mesh.*to_latlon"):
        data_of(xmosaic.to_healpix(ds, nside=2))
    with pytest.raises(DatasetError, match=r"no global grid.*Regrid"):
        data_of(ds.isel(longitude=slice(0, 5)))
    with pytest.raises(DatasetError, match="calendar 'noleap'"):
        data_of(ds.assign_coords(time=xr.date_range("2020-01-01", periods=12, calendar="noleap", use_cftime=True)))
    with pytest.raises(DatasetError, match=r"(?s)Dataset 2 can't be used in training.*'geopotential' is missing"):
        data_of([ds, ds.drop_vars("geopotential")])
    with pytest.raises(DatasetError, match="data lack a time"):
        data_of().read(pd.Timestamp("2020-02-27"), 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ds": []}, "no Dataset"),
        ({"history": 0}, "history"),
        ({"history": True}, "history"),
        ({"step": "6h"}, "step"),
        ({"step": pd.Timedelta(0)}, "step"),
    ],
)
def test_bad_arguments_are_refused(change, text):
    with pytest.raises(ArgumentError, match=text):
        TrainingData(**{"ds": make(), "schema": SCHEMA, "step": STEP, "history": 2} | change)
    with pytest.raises(ArgumentError, match="rollout"):
        data_of().windows(ALWAYS, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_named(value):
    ds = make()
    ds["geopotential"][6, 0, 2, 5] = value
    data = data_of(ds)
    text = r"geopotential at 500 hPa on 2020-02-28 12:00:00 holds NaN or inf.*1 of 84 points, such as -30° N 150° E"
    with pytest.raises(DatasetError, match=text):
        data.read(ds.indexes["time"][5], 1)
    data.read(ds.indexes["time"][3], 1)  # the others can be read
    with pytest.raises(DatasetError, match=text):
        statistics(data, ALWAYS, progress=False)
    with loader_of(data, workers=3) as loader, pytest.raises(DatasetError, match=text):
        for _ in zip(range(20), loader.batches(), strict=False):
            pass


def test_both_infinities_and_float64_out_of_range_are_seen():
    ds = make()
    ds["2m_temperature"] = ds["2m_temperature"].astype(float)
    ds["2m_temperature"][3, 0, 0] = 1e39
    with pytest.raises(DatasetError, match="2m_temperature on 2020-02-27 18"):
        data_of(ds).read(ds.indexes["time"][3], 1)


def test_a_large_sum_of_good_values_is_no_error():
    ds = make()
    ds["2m_temperature"][:] = np.float32(3e38)
    assert data_of(ds).read(ds.indexes["time"][3], 1).history.max() == np.float32(3e38)


def test_a_damaged_chunk_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make().to_zarr(tmp_path / "a.zarr", encoding={"geopotential": {"chunks": (1, 2, 7, 12)}})
    chunk = tmp_path / "a.zarr" / "geopotential" / "c" / "6" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with loader_of(data_of(xr.open_zarr(tmp_path / "a.zarr"))) as loader:
        with pytest.raises(DatasetError, match=r"'geopotential' can't be read on .*2020-02-28 12:00:00") as caught:
            for _ in zip(range(20), loader.batches(), strict=False):
                pass
        assert caught.value.__cause__ is not None


# ----------------------------------------------------------------------------------------------------- statistics


def _one_array(ds, area):
    values = plain(ds, SCHEMA.state, ds.time.values)
    weights = np.ones(GRID.shape[::-1])
    if area:
        edges = np.deg2rad([-90, -75, -45, -15, 15, 45, 75, 90])
        weights = np.tile(np.diff(np.sin(edges)), (12, 1))
    weights = np.broadcast_to(weights[None, ..., None], values.shape)
    mean = np.average(values, axis=(0, 1, 2), weights=weights)
    return mean, np.sqrt(np.average((values - mean) ** 2, axis=(0, 1, 2), weights=weights))


@pytest.mark.parametrize("area", [False, True])
@pytest.mark.parametrize("limit", [1, 3000, 2**25])
def test_statistics_are_those_of_one_array(monkeypatch, area, limit):
    """However the period is cut into blocks."""
    monkeypatch.setattr(normalise, "_BLOCK_BYTES", limit)
    ds = make()
    for one in (ds, ds.chunk(time=5), _dialect(ds)):
        mean, std = statistics(data_of(one), ALWAYS, area, progress=False)
        near = 1e-12 if one is not ds and "time" not in one.dims else 1e-6
        near = near if "valid_time" in one.dims else 1e-12
        np.testing.assert_allclose(mean, _one_array(ds, area)[0], rtol=near)
        np.testing.assert_allclose(std, _one_array(ds, area)[1], rtol=near)


def test_statistics_are_of_the_period_alone_and_repeat_to_the_bit(monkeypatch):
    monkeypatch.setattr(normalise, "_BLOCK_BYTES", 1)
    ds = make()
    period = ("2020-02-28", "2020-02-28")
    first, again = (statistics(data_of(ds), period, progress=False) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, _one_array(ds.sel(time="2020-02-28"), False), rtol=1e-12)
    with pytest.raises(DatasetError, match="no data"):
        statistics(data_of(ds), ("1990", "1991"), progress=False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(-1e6, 1e6), st.integers(0, 2**32))
def test_moments_combine_exactly(lengths, offset, seed):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 2, (3, 4))
    parts = [offset + rng.normal(size=(n, 2, 3, 4)) for n in lengths]
    moments = [Moments.of(p, weights) for p in parts]
    total = moments[0]
    for m in moments[1:]:
        total = total + m
    whole = np.concatenate(parts)
    w = np.broadcast_to(weights, whole.shape)
    mean = (whole * w).sum(axis=(0, 2, 3)) / w.sum(axis=(0, 2, 3))
    np.testing.assert_allclose(total.mean, mean, rtol=1e-12)
    square = (w * (whole - mean[:, None, None]) ** 2).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(total.square, square, rtol=1e-7)
    np.testing.assert_array_equal([total.low, total.high], [whole.min(axis=(0, 2, 3)), whole.max(axis=(0, 2, 3))])


@pytest.mark.parametrize("area", [False, True])
def test_a_constant_channel_is_named(area):
    """A constant whose mean isn't exact, too; a constant in one block alone is none."""
    ds = make()
    ds["geopotential"][:, 1] = 0.3
    with pytest.raises(DatasetError, match=r"^geopotential_850 has the same value everywhere.*0\.3"):
        statistics(data_of(ds), ALWAYS, area, progress=False)
    ds["geopotential"][3:, 1] = 0.2
    assert statistics(data_of(ds), ALWAYS, area, progress=False)[1][3] == pytest.approx(0.1 * np.sqrt(3 / 16))


def test_statistics_are_kept_and_found_again(tmp_path, monkeypatch):
    ds, folder = make(), tmp_path / "a" / "b"
    first = statistics(data_of(ds), ALWAYS, cache=folder, progress=False)
    other = [
        (data_of(ds), ("2020-02-27", "2020-02-28"), False),
        (data_of(ds), ALWAYS, True),
        (data_of(ds.assign({"2m_temperature": ds["2m_temperature"] + 1})), ALWAYS, False),
        (data_of(ds, SCHEMA.select(["msl", "t2m"])), ALWAYS, False),
    ]
    for data, period, area in other:
        kept = statistics(data, period, area, cache=folder, progress=False)
        np.testing.assert_array_equal(kept, statistics(data, period, area, progress=False))
    assert len(list(folder.iterdir())) == 5

    monkeypatch.setattr(normalise, "_stream", lambda *_: pytest.fail("read again"))
    for one in (ds, ds.chunk(time=3)):
        np.testing.assert_array_equal(statistics(data_of(one), ALWAYS, cache=folder, progress=False), first)


@pytest.mark.parametrize(
    "damage", [lambda text: text[:50], lambda text: text.replace("2", "3", 1), lambda _: "[]", lambda _: "{}"]
)
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    first = statistics(data_of(), ALWAYS, cache=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    good = path.read_text()
    path.write_text(damage(good))
    with pytest.warns(UserWarning, match="damaged"):
        again = statistics(data_of(), ALWAYS, cache=tmp_path, progress=False)
    np.testing.assert_array_equal(first, again)
    assert path.read_text() == good


def test_a_folder_that_cannot_be_made_is_said_before_reading(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be made"):
        statistics(data_of(), ALWAYS, cache=tmp_path / "file" / "x", progress=False)


# ---------------------------------------------------------------------------------------------------------- order


def _starts(loader, first, count):
    return [b.starts for b in itertools.islice(loader.batches(first), count)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**63), st.integers(1, 3))
def test_resumed_is_uninterrupted(first, batch_size, workers, seed, ahead):
    data = TrainingData(make(SMALL, grid=TINY), SMALL, STEP, 2)
    with loader_of(data, 1, batch_size, seed) as whole:
        everything = list(itertools.islice(whole.batches(), 15))
    with loader_of(data, 1, batch_size, seed, workers=workers, ahead=ahead) as resumed:
        for a, b in zip(everything[first:], resumed.batches(first), strict=False):
            assert a.starts.equals(b.starts) and a.positions.tolist() == b.positions.tolist()
            assert torch.equal(a.history, b.history) and torch.equal(a.targets, b.targets)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(2, 2), (4, 2), (6, 3), (3, 3), (4, 1)]), st.integers(0, 9), st.integers(0, 99))
def test_ranks_share_the_batch_of_one(shape, first, seed):
    batch_size, world = shape
    data = TrainingData(make(SMALL, grid=TINY), SMALL, STEP, 2)
    with loader_of(data, 1, batch_size, seed) as single:
        whole = next(single.batches(first))
    shares = []
    for rank in range(world):
        with loader_of(data, 1, batch_size, seed, rank=rank, world=world) as loader:
            shares.append(next(loader.batches(first)))
    assert whole.starts.tolist() == [t for s in shares for t in s.starts]
    assert whole.positions.tolist() == [p for s in shares for p in s.positions]
    assert torch.equal(whole.history, torch.cat([s.history for s in shares]))
    assert torch.equal(whole.clock, torch.cat([s.clock for s in shares], dim=1))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 23])
def test_every_epoch_is_a_permutation(batch_size):
    """Batches that straddle epochs, and such that are longer than one."""
    data = TrainingData(make(SMALL, grid=TINY), SMALL, STEP, 2)
    windows = data.windows(ALWAYS, 1)
    with loader_of(data, 1, batch_size, seed=5) as loader:
        batches = list(itertools.islice(loader.batches(), -(-40 // batch_size)))
        assert loader.updates_per_epoch == len(windows) / batch_size
    seen = [t for b in batches for t in b.starts]
    assert [p for b in batches for p in b.positions] == list(range(len(seen)))
    epochs = [seen[i : i + len(windows)] for i in range(0, 40, len(windows))]
    assert all(sorted(e) == windows.starts.tolist() for e in epochs)
    assert len({tuple(e) for e in epochs}) == len(epochs)


def test_seeds_give_orders_of_their_own_and_all_places_are_reached():
    data = TrainingData(make(SMALL, grid=TINY), SMALL, STEP, 2)
    firsts = []
    for seed in range(200):
        with loader_of(data, 1, 1, seed, workers=1) as loader:
            firsts.append(loader.starts(0)[0])
    counts = Counter(firsts)
    assert len(counts) == 10
    assert max(counts.values()) < 45  # 20 expected; the binomial's chance of 45 is 1e-6


# --------------------------------------------------------------------------------------------------------- batches


def test_batch_is_normalised_and_labelled():
    ds = rich()
    data = data_of(ds, RICH, history=3)
    channels = (*RICH.state, *RICH.forcing)
    mean, std = np.array([280.1, 54000.7, 13700.3, 290.4, 0.05]), np.array([20.3, 3300.7, 1500.1, 10.9, 1.3])
    with loader_of(data, 2, 4, mean=mean, std=std) as loader:
        batch = next(loader.batches(1))
    shapes = {"history": (4, 3, 12, 7, 5), "targets": (4, 2, 12, 7, 3), "forcing": (4, 2, 12, 7, 2), "clock": (2, 4, 2)}
    for name, shape in shapes.items():
        value = getattr(batch, name)
        assert tuple(value.shape) == shape and value.dtype == torch.float32
    for i, start in enumerate(batch.starts):
        past, future = [start + k * STEP for k in (-2, -1, 0)], [start + STEP, start + 2 * STEP]
        expected = (plain(ds, channels, past) - mean) / std
        np.testing.assert_allclose(batch.history[i].numpy(), expected, rtol=4e-7, atol=4e-7)
        expected = (plain(ds, channels, future) - mean) / std
        np.testing.assert_allclose(batch.targets[i].numpy(), expected[..., :3], rtol=4e-7, atol=4e-7)
        np.testing.assert_allclose(batch.forcing[i].numpy(), expected[..., 3:], rtol=4e-7, atol=4e-7)
        for k in range(2):
            now = start + k * STEP
            year = (now - pd.Timestamp("2020")).days / 366
            np.testing.assert_allclose(batch.clock[k, i], [now.hour / 24, year], rtol=1e-6)
    assert batch.positions.dtype == np.int64 and batch.positions.tolist() == [4, 5, 6, 7]


def test_normalising_keeps_the_digits_that_a_float32_mean_would_lose():
    """Pressure: mean 1e5 Pa, deviations of a few."""
    ds = make()
    rng = np.random.default_rng(0)
    mean, std = 101325.003, 0.25
    ds["mean_sea_level_pressure"][:] = (mean + rng.normal(size=(12, 7, 12))).astype(np.float32)
    means, stds = np.zeros(5), np.ones(5)
    means[1], stds[1] = mean, std
    with loader_of(data_of(ds), mean=means, std=stds) as loader:
        batch = next(loader.batches())
    expected = (plain(ds, SCHEMA.state[1:2], batch.starts) - mean) / std
    found = batch.history[:, 1, ..., 1:2].numpy()
    np.testing.assert_allclose(found, expected, rtol=4e-7, atol=1e-6)
    assert np.abs((plain(ds, SCHEMA.state[1:2], batch.starts) - np.float32(mean)) / std - expected).max() > 1e-3


def test_given_samples_are_loaded_in_their_order():
    data = data_of()
    starts = data.windows(ALWAYS, 1).starts[[4, 0, 2]]
    with loader_of(data) as loader:
        batch = loader.load(starts)
    assert batch.starts.equals(starts) and batch.positions.tolist() == [0, 1, 2]
    for i, start in enumerate(starts):
        np.testing.assert_array_equal(batch.targets[i].numpy(), data.read(start, 1).targets)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch_size": 3, "world": 2}, "batch_size can't be shared.*Take 2 or 4"),
        ({"batch_size": 0}, "batch_size"),
        ({"rank": 1}, "rank"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
        ({"ahead": 0}, "ahead"),
        ({"std": np.zeros(5)}, "statistics can't be used"),
        ({"mean": np.full(5, np.nan)}, "statistics can't be used"),
        ({"mean": np.zeros(4)}, r"statistics can't be used. Found mean \(4,\)"),
    ],
)
def test_bad_arguments_of_a_loader_are_refused(change, text):
    with pytest.raises(ArgumentError, match=text):
        loader_of(data_of(), **change)
    data = data_of()
    with pytest.raises(ArgumentError, match="rollout"):
        Loader(data, data.windows(ALWAYS, 1), 2, 1, 0, np.zeros(5), np.ones(5))


# --------------------------------------------------------------------------------------------------------- threads


class _Gate:
    """Reading that can be held up."""

    def __init__(self, monkeypatch, seconds=0.0):
        self.open, self.reads = threading.Event(), 0
        self.open.set()
        plain_read = loader_module.Piece.read

        def read(piece):
            self.open.wait(10)
            time.sleep(seconds)
            self.reads += 1
            return plain_read(piece)

        monkeypatch.setattr(loader_module.Piece, "read", read)


def test_batches_are_read_ahead_but_not_too_far(monkeypatch):
    gate = _Gate(monkeypatch)
    with loader_of(data_of(), batch_size=2, ahead=3) as loader:
        batches = loader.batches()
        for taken in range(1, 5):
            next(batches)
            limit = time.monotonic() + 5
            while gate.reads < (taken + 3) * 2 * 4 and time.monotonic() < limit:
                time.sleep(0.002)
            time.sleep(0.02)
            assert gate.reads == (taken + 3) * 2 * 4  # batches, samples, variables


def test_waiting_is_measured(monkeypatch):
    _Gate(monkeypatch, 0.01)
    with loader_of(data_of(), batch_size=1, workers=1, ahead=1) as loader:
        batches = loader.batches()
        next(batches)
        assert 0.04 <= loader.waited < 2  # four variables
        loader.reset_clock()
        assert loader.waited == 0
        time.sleep(0.3)
        next(batches)
        assert loader.waited < 0.04  # it was there


def test_closing_midway_leaves_no_thread(monkeypatch):
    gate = _Gate(monkeypatch, 0.002)
    loader = loader_of(data_of(), batch_size=4, workers=3, ahead=4)
    batches = loader.batches()
    next(batches)
    assert len(threads()) == 3
    loader.close()
    assert threads() == []
    done = gate.reads
    with pytest.raises(ArgumentError, match="closed"):
        list(itertools.islice(batches, 6))
    with pytest.raises(ArgumentError, match="closed"):
        next(loader.batches())
    loader.close()  # twice is once
    assert gate.reads == done


def test_closing_wakes_a_consumer_that_waits(monkeypatch):
    gate = _Gate(monkeypatch)
    gate.open.clear()
    loader = loader_of(data_of(), batch_size=4, workers=1)
    caught: list[BaseException] = []

    def consume():
        try:
            next(loader.batches())
        except ArgumentError as error:
            caught.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    time.sleep(0.05)
    threading.Timer(0.05, gate.open.set).start()
    loader.close()
    consumer.join(5)
    assert not consumer.is_alive() and len(caught) == 1


def test_a_forgotten_loader_ends_its_threads():
    loader = loader_of(data_of())
    next(loader.batches())
    assert threads()
    del loader  # the fixture looks


def test_a_forgotten_iterator_reads_no_further(monkeypatch):
    gate = _Gate(monkeypatch)
    with loader_of(data_of(), batch_size=8, workers=1, ahead=4) as loader:
        batches = loader.batches()
        next(batches)
        gate.open.clear()
        batches.close()
        gate.open.set()
        here = gate.reads
        loader.load(loader.windows.starts[:1])
        assert gate.reads - here <= 4 + 2  # its own four, and what was being read


def test_an_error_ends_with_its_batch():
    """The batches before it are good, and the loader can go on elsewhere."""
    ds = make()
    ds["2m_temperature"][6] = np.nan
    with loader_of(data_of(ds), batch_size=1, seed=3) as loader:
        spoiled = [u for u in range(10) if ds.indexes["time"][6] in loader.data.window(loader.starts(u)[0], 1)]
        assert len(spoiled) == 3
        batches = loader.batches()
        for _ in range(spoiled[0]):
            next(batches)
        with pytest.raises(DatasetError, match="2m_temperature on 2020-02-28 12"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)
        good = next(u for u in range(10) if u not in spoiled)
        assert next(loader.batches(good)).starts.equals(loader.starts(good))
