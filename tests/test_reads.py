"""Does a start read only what it needs of a long store, once, and all of it at the same time?"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from models import GRID, SCHEMA, make_dataset, make_model

import xmosaic

MODEL = make_model()
TIMES = 400
LEVELS = [50, 100, 250, 300, 500, 700, 850, 925, 1000]
NEEDED = {"2m_temperature": 1, "mean_sea_level_pressure": 1, "geopotential": 2, "u_component_of_wind": 1}


class Counting(zarr.storage.WrapperStore):
    """Writes down which chunks of fields are read, and how many reads wait at the same time."""

    def __init__(self, store: Any, latency: float = 0.0) -> None:
        super().__init__(store)
        self.latency, self.keys, self.waiting, self.most = latency, [], 0, 0

    def _with_store(self, store: Any) -> Counting:
        return self

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if not re.match(r"(2m|mean|geop|u_comp|z\d|u\d)[^/]*/c/", key):
            return await super().get(key, *args, **kwargs)
        self.keys.append(key)
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(self.latency)
        self.waiting -= 1
        return await super().get(key, *args, **kwargs)


def long_dataset() -> xr.Dataset:
    short = make_dataset(SCHEMA, GRID, "2019-01-01", TIMES)
    return short.reindex(level=LEVELS, fill_value=np.float32(1.0))


def stored(ds: xr.Dataset) -> zarr.storage.MemoryStore:
    store = zarr.storage.MemoryStore()
    encoding = {n: {"chunks": (1,) * (v.ndim - 2) + v.shape[-2:]} for n, v in ds.data_vars.items()}
    ds.to_zarr(store, encoding=encoding, consolidated=False)
    return store


@pytest.fixture(scope="module")
def source() -> tuple[xr.Dataset, zarr.storage.MemoryStore]:
    ds = long_dataset()
    return ds, stored(ds)


def opened(store: Any, chunks: Any, latency: float = 0.0) -> tuple[xr.Dataset, Counting]:
    counting = Counting(store, latency)
    return xr.open_zarr(counting, chunks=chunks, consolidated=False), counting


def forecast(ds: xr.Dataset, **options: Any) -> xr.Dataset:
    return xmosaic.forecast(ds, "1D", 1, model=MODEL, progress=False, **options)


def keys_of(places: list[int]) -> list[str]:
    """Chunks that starts with these histories need: two fields without levels, two levels of one, one of another."""
    found = []
    for i in places:
        found += [f"{name}/c/{i}/0/0" for name in ("2m_temperature", "mean_sea_level_pressure")]
        found += [f"geopotential/c/{i}/{LEVELS.index(p)}/0/0" for p in (500, 850)]
        found.append(f"u_component_of_wind/c/{i}/{LEVELS.index(850)}/0/0")
    return sorted(found)


@pytest.mark.parametrize("chunks", [None, {}, {"time": 1, "level": 1}])
def test_one_start_reads_its_history_alone_and_once(source, chunks):
    ds, counting = opened(source[1], chunks)
    fc = forecast(ds, time=source[0]["time"].values[250])
    assert sorted(counting.keys) == keys_of([249, 250])
    xr.testing.assert_equal(fc, forecast(source[0], time=source[0]["time"].values[250]))


def test_starts_that_follow_each_other_share_what_they_read(source):
    ds, counting = opened(source[1], None)
    forecast(ds, time=source[0]["time"].values[100:105], batch_size=1)
    assert sorted(counting.keys) == sorted(keys_of([*range(99, 105)]))


@pytest.mark.parametrize("chunks", [None, {}])
def test_looking_at_it_reads_no_field(source, chunks):
    ds, counting = opened(source[1], chunks)
    assert repr(ds.mosaic)
    forecast(ds, time=source[0]["time"].values[250], chunks={})
    assert counting.keys == []
    assert xmosaic.check(ds, MODEL, source[0]["time"].values[250]).ok
    assert sorted(counting.keys) == keys_of([249, 250])


def test_units_and_names_that_are_changed_read_no_more(source):
    """Without dask, arithmetic and joining would read all times."""
    theirs = source[0].copy()
    theirs["2m_temperature"] = (theirs["2m_temperature"] - 273.15).assign_attrs(
        units="degC", standard_name="air_temperature"
    )
    single = {f"z{p}": theirs["geopotential"].sel(level=p, drop=True) for p in (500, 850)}
    theirs = theirs.drop_vars("geopotential").assign(single).isel(latitude=slice(None, None, -1))
    ds, counting = opened(stored(theirs), None)
    fc = forecast(ds, time=theirs["time"].values[7])
    assert len(counting.keys) == len(set(counting.keys)) == 2 * sum(NEEDED.values())
    assert {int(key.split("/")[2]) for key in counting.keys} == {6, 7}
    expected = forecast(source[0], time=theirs["time"].values[7]).isel(latitude=slice(None, None, -1))
    xr.testing.assert_allclose(fc, expected, rtol=1e-3)


@pytest.mark.parametrize("chunks", [None, {}])
def test_reads_of_a_slow_store_wait_at_the_same_time(source, chunks):
    ds, counting = opened(source[1], chunks, latency=0.2)
    forecast(ds, time=source[0]["time"].values[250])
    # dask reads the levels of a variable as it likes; whatever is asked for is asked for at once
    assert counting.most >= 2 * len(NEEDED)
