"""Is a stored forecast whole, bounded in memory and files, and never mixed with another?"""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr
from models import make_dataset, make_model

import xmosaic
from xmosaic.errors import MosaicError, StoreError

MODEL = make_model()
DS = make_dataset()


def run(store, lead="3D", members=5, **options):
    return xmosaic.forecast(DS, lead, members, **({"model": MODEL, "progress": False, "store": store} | options))


def same(a, b):
    xr.testing.assert_identical(*(d.assign_attrs(history="").load() for d in (a, b)))


@pytest.mark.parametrize("time", [None, ["2020-02-28", "2020-03-01"]])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 20])
def test_stored_is_what_memory_holds(tmp_path, time, batch_size):
    options = {"time": time, "batch_size": batch_size, "variables": ["2m_temperature", "geopotential"]}
    stored = run(tmp_path / "fc.zarr", **options)
    same(stored, run(None, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(xr.open_zarr(tmp_path / "fc.zarr"), run(None, **options))


def test_stores_of_every_kind(tmp_path):
    expected = run(None)
    for store in (
        str(tmp_path / "a.zarr"),
        tmp_path / "b.zarr",
        zarr.storage.LocalStore(tmp_path / "c.zarr"),
        zarr.storage.MemoryStore(),
    ):
        same(run(store), expected)
    (tmp_path / "empty.zarr").mkdir()
    same(run(tmp_path / "empty.zarr"), expected)


def test_one_chunk_is_one_sphere_of_one_time_member_and_lead(tmp_path):
    run(tmp_path / "fc.zarr", time=["2020-02-28", "2020-03-01"], batch_size=2)
    group = zarr.open_group(tmp_path / "fc.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    assert group["geopotential"].chunks == (1, 1, 1, 2, 7, 12)
    assert group["2m_temperature"].chunks == (1, 1, 1, 7, 12)
    assert group["geopotential"].shards == (1, 2, 3, 2, 7, 12)
    assert np.isnan(group["geopotential"].fill_value)


def test_files_stay_bounded(tmp_path):
    run(tmp_path / "fc.zarr", lead="20D", members=8, batch_size=4, variables=["2m_temperature"])
    files = [f for _, _, names in os.walk(tmp_path / "fc.zarr" / "2m_temperature") for f in names]
    assert len(files) == 4 + 1  # shards of four members and ten leads, and zarr.json


def test_leads_go_to_several_shards_when_one_would_be_large(tmp_path, monkeypatch):
    from xmosaic import store

    state = 4 * 12 * 7
    monkeypatch.setattr(store, "_SHARD_BYTES", 2 * state * 3)  # two members, three leads
    stored = run(tmp_path / "fc.zarr", lead="8D", members=4, batch_size=2, variables=["2m_temperature"])
    assert zarr.open_group(tmp_path / "fc.zarr")["2m_temperature"].shards == (2, 3, 7, 12)
    same(stored, run(None, lead="8D", members=4, variables=["2m_temperature"], batch_size=2))
    assert bool(xmosaic.written(tmp_path / "fc.zarr").all())


def test_what_waits_to_be_written_does_not_grow_with_lead(tmp_path, monkeypatch):
    from xmosaic import store

    waiting, flush = [], store.ZarrSink._flush

    def watch(sink):
        waiting.append(sum(values.nbytes for values in sink._buffer.values()))
        return flush(sink)

    monkeypatch.setattr(store.ZarrSink, "_flush", watch)
    most = []
    for lead in ("20D", "160D"):
        waiting.clear()
        run(tmp_path / f"{lead}.zarr", lead=lead, members=4, batch_size=4)
        most.append(max(waiting))
    assert 0 < most[0] == most[1] == 10 * 4 * 4 * 7 * 12 * (1 + 1 + 2 + 2)


def test_a_store_that_holds_a_forecast_is_refused_and_left_alone(tmp_path):
    first = run(tmp_path / "fc.zarr").load()
    with pytest.raises(StoreError, match="already holds another forecast.*5-member.*Choose another path, or delete"):
        run(tmp_path / "fc.zarr", seed=1)
    same(xr.open_zarr(tmp_path / "fc.zarr", consolidated=False), first)


def test_a_path_that_is_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for name in ("notes.txt", "folder"):
        with pytest.raises(StoreError, match="exists and is no Zarr store"):
            run(tmp_path / name)
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "folder" / "notes.txt").read_text() == "mine"


def test_a_read_only_store_is_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(type(MODEL.network), "forward", lambda *a: pytest.fail("a step was made"))
    with pytest.raises(StoreError, match="can't be written.*read-only"):
        run(zarr.storage.LocalStore(tmp_path / "ro.zarr", read_only=True))
    # no permissions: nobody, not even root, makes folders under /proc; elsewhere a file stands in the way
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        run(tmp_path / "file" / "fc.zarr")


def test_what_was_written_before_a_break_is_recorded(tmp_path, monkeypatch):
    calls = []
    forward = type(MODEL.network).forward

    def break_off(*args):
        calls.append(1)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(type(MODEL.network), "forward", break_off)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "fc.zarr", batch_size=2)
    record = xmosaic.written(tmp_path / "fc.zarr")
    assert record.dims == ("time", "number", "prediction_timedelta")
    # three steps a block of two members: two blocks done, the third broken off
    assert record.sel(number=[1, 2, 3, 4]).all()
    assert not record.sel(number=5).any()
    stored = xr.open_zarr(tmp_path / "fc.zarr", consolidated=False)
    whole = stored["2m_temperature"].notnull().all(["latitude", "longitude"])
    np.testing.assert_array_equal(whole, record.values[0])
    with pytest.raises(StoreError, match="already holds"):
        run(tmp_path / "fc.zarr")


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    import errno

    def full(self, key, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    array = zarr.Array
    monkeypatch.setattr(array, "__setitem__", full)
    with pytest.raises(StoreError, match="can't be written.*No space left on device"):
        run(tmp_path / "fc.zarr")


def test_record_of_no_forecast(tmp_path):
    with pytest.raises(MosaicError, match="no record of a forecast"):
        xmosaic.written(tmp_path / "nothing.zarr")
