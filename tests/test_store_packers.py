"""Arrays are packed at the same time by several threads: are files, record, memory and errors as those of one?"""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_dataset, make_model

import xmosaic
from xmosaic.errors import StoreError
from xmosaic.store import ZarrSink, encoding, record, sink, writer
from xmosaic.store.lock import Lock
from xmosaic.store.record import Record
from xmosaic.store.shards import Shards
from xmosaic.store.synced import SyncedStore

MODEL, DS = make_model(), make_dataset()
TWO = ["2020-02-28", "2020-03-01"]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(encoding, "SHARD_LEADS", 2)


def run(store, **options):
    options = {"lead": "5D", "members": 4, "batch_size": 2, "time": TWO, "progress": False} | options
    return xmosaic.forecast(DS, model=MODEL, store=store, **options)


def same(a, b):
    xr.testing.assert_identical(*(d.assign_attrs(history="").load() for d in (a, b)))


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("c/**/*") if p.is_file()}


def wrap(monkeypatch, owner, name, before=lambda *a: None, after=lambda *a: None):
    function = getattr(owner, name)

    def call(*args):
        before(*args)
        result = function(*args)
        after(*args)
        return result

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("time_", [TWO, "2020-03-01"])
@pytest.mark.parametrize("keep_bits", [None, 9])
def test_files_are_those_that_zarr_writes_by_itself(tmp_path, time_, keep_bits):
    """Byte for byte, of the same layout filled by a plain assignment."""
    run(tmp_path / "ours.zarr", time=time_, keep_bits=keep_bits)
    fc = run(None, time=time_)
    run(tmp_path / "twin.zarr", time=time_, keep_bits=keep_bits)
    group = zarr.open_group(tmp_path / "twin.zarr", mode="r+", use_consolidated=False)
    for name in fc:
        for file in (tmp_path / "twin.zarr" / name / "c").rglob("*"):
            file.unlink() if file.is_file() else None
        group[name][...] = encoding.round_bits(fc[name].values, keep_bits)
    assert files(tmp_path / "ours.zarr") == files(tmp_path / "twin.zarr")
    assert len(files(tmp_path / "ours.zarr")) > 4 * len(fc)


@pytest.mark.parametrize("store", ["folder", "memory"])
@pytest.mark.parametrize("seed", range(2))
def test_whatever_order_arrays_are_packed_in(tmp_path, monkeypatch, store, seed):
    """Memory is filled anew while other regions still wait: none of it may be overwritten before it is packed."""
    rng = random.Random(seed)
    for name in ("_pack", "_write_array"):
        wrap(monkeypatch, ZarrSink, name, before=lambda *_: time.sleep(rng.choice([0, 0, 0.02])))
    monkeypatch.setattr(writer, "packers", lambda: 5)
    place = tmp_path / "fc.zarr" if store == "folder" else zarr.storage.MemoryStore()
    stored = run(place, lead="7D", device=["cpu", "cpu"])
    monkeypatch.undo()
    same(stored, run(None, lead="7D"))


def test_a_region_is_recorded_after_all_its_arrays_are_on_the_disk(tmp_path, monkeypatch):
    packed, synced, rng = set(), set(), random.Random(0)

    def pack(sink, region, name, *_):
        time.sleep(rng.choice([0, 0.03]))

    def commit(record, region):
        assert {(name, str(region)) for name in names} <= synced, "recorded before it lasts"
        checked.append(region)

    names, checked = set(run(None)), []
    wrap(monkeypatch, ZarrSink, "_write_array", pack, lambda sink, region, name, *_: packed.add((name, str(region))))
    before = []
    wrap(
        monkeypatch,
        SyncedStore,
        "sync",
        lambda store: before.append(set(packed)),
        lambda store: synced.update(before.pop()),
    )
    wrap(monkeypatch, Record, "commit", commit)
    run(tmp_path / "fc.zarr", device=["cpu", "cpu"])
    assert len(checked) == 12  # two starts, two blocks of members, three shards of leads
    assert bool(xmosaic.written(tmp_path / "fc.zarr").all())


def test_several_arrays_are_packed_at_the_same_time(tmp_path, monkeypatch):
    """Each waits for another one to be packed beside it."""
    together = threading.Barrier(2)
    wrap(monkeypatch, ZarrSink, "_write_array", before=lambda *_: together.wait(20))
    monkeypatch.setattr(writer, "packers", lambda: 2)
    stored = run(tmp_path / "fc.zarr")  # arrays and regions are even in number
    assert len(stored) % 2 == 0 and not together.broken


def test_a_lead_is_packed_while_the_next_is_made(tmp_path, monkeypatch):
    """The second of a region comes once the first is packed."""
    packed = threading.Semaphore(0)

    def wait(sink, starts, members, lead, fields):
        for _ in fields if lead % 2 else ():
            assert packed.acquire(timeout=20)

    wrap(monkeypatch, ZarrSink, "write", before=wait)
    wrap(monkeypatch, ZarrSink, "_pack", after=lambda *_: packed.release())
    run(tmp_path / "fc.zarr", lead="4D", members=2, time="2020-03-01")
    assert packed._value == 2 * len(run(None))  # of the last lead of either region


@pytest.mark.parametrize("lead", [0, 3])
def test_a_lead_that_cannot_be_packed_is_our_error_and_its_region_is_not_claimed(tmp_path, monkeypatch, lead):
    expected, calls = run(None), itertools.count()

    def fail(*_):
        if next(calls) == lead * len(expected) + 2:
            raise MemoryError("no more")

    with monkeypatch.context() as patch:
        wrap(patch, Shards, "pack", fail)
        with pytest.raises(StoreError, match="can't be written. Found .*no more"):
            run(tmp_path / "fc.zarr")
    done = xmosaic.written(tmp_path / "fc.zarr").values
    assert next(calls) > lead * len(expected) + 2 and done.sum() == 2 * (lead // 2) * 2
    same(run(tmp_path / "fc.zarr"), expected)


@pytest.mark.parametrize("victim", [0, 3])
def test_one_array_that_fails_is_our_error_and_its_region_is_not_claimed(tmp_path, monkeypatch, victim):
    expected, failed, late, ended = run(None), [], [], threading.Event()
    name = list(expected)[victim]

    def pack(sink, region, array, *_):
        if array == name and region[1].start == 2:
            failed.append(region)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def written(*_):
        late.append(ended.is_set())

    with monkeypatch.context() as patch:
        wrap(patch, ZarrSink, "_write_array", pack, written)
        wrap(patch, Lock, "check", after=lambda lock: time.sleep(0.05))  # in the middle of packing
        wrap(patch, Lock, "release", lambda lock: ended.set())
        with pytest.raises(StoreError, match="can't be written. Found .*No space left.*fields are kept"):
            run(tmp_path / "fc.zarr")
        time.sleep(0.2)
    assert not any(late), "something was written after the lock was given back"
    done = xmosaic.written(tmp_path / "fc.zarr").values
    assert done[0, :2].all() and failed
    for region in failed:
        assert not done[region].any()
    same(run(tmp_path / "fc.zarr"), expected)


def test_threads_end_with_the_forecast(tmp_path):
    """No thread, and none of the files that event loops hold, outlives a forecast."""
    run(tmp_path / "first.zarr")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for k in range(2):
        run(tmp_path / f"{k}.zarr")
    assert not [t.name for t in threading.enumerate() if t.name.startswith("xmosaic")]
    assert not before or len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(("cores", "count"), [(1, 2), (2, 2), (12, 3), (32, 8), (64, 16), (256, 16)])
def test_a_quarter_of_the_cores_pack(monkeypatch, cores, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert writer.packers() == count


def test_memory_is_filled_anew_if_it_fits(tmp_path, monkeypatch):
    """Eleven regions in the memory of three, and of one more for the last, which has fewer leads."""
    filled, blank = [], ZarrSink._blank

    def note(sink, shapes):
        fields = blank(sink, shapes)
        assert {name: v.shape for name, v in fields.items()} == shapes
        filled.append(fields)
        return fields

    monkeypatch.setattr(ZarrSink, "_blank", note)
    stored = run(tmp_path / "fc.zarr", lead="21D", members=2, time="2020-03-01")
    assert len(filled) == 11 and len({id(next(iter(fields.values()))) for fields in filled}) <= 4
    same(stored, run(None, lead="21D", members=2, time="2020-03-01"))


def test_a_layout_that_broke_off_may_have_been_for_other_shards(tmp_path, monkeypatch):
    """Shards follow the package's constants; of two threads that fill one, each would undo the other's work."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(record, "mark", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "fc.zarr")
    held = zarr.open_group(tmp_path / "fc.zarr", mode="r", use_consolidated=False)["xmosaic_record"]
    assert held["written"].chunks[2] == 2 and not held.attrs["ready"]
    monkeypatch.setattr(encoding, "SHARD_LEADS", 10)
    same(run(tmp_path / "fc.zarr"), run(None))
    group = zarr.open_group(tmp_path / "fc.zarr", mode="r", use_consolidated=False)
    assert group["geopotential"].shards[1:3] == group["xmosaic_record/written"].chunks[1:] == (2, 2)


def test_regions_that_share_a_file_are_written_by_one_thread(tmp_path, monkeypatch):
    """As no call of ours lays them out: what begins a store so, another must still end right."""
    plain, threads = encoding.layouts, set()
    monkeypatch.setattr(sink, "layouts", lambda v, members, leads, bits: plain(v, members, 5, bits))
    wrap(monkeypatch, ZarrSink, "_write_array", before=lambda *_: threads.add(threading.get_ident()))
    same(run(tmp_path / "fc.zarr"), run(None))
    assert len(threads) == 1
    monkeypatch.undo()
    monkeypatch.setattr(encoding, "SHARD_LEADS", 2)
    wrap(
        monkeypatch, ZarrSink, "_write_array", before=lambda *_: (threads.add(threading.get_ident()), time.sleep(0.01))
    )
    threads.clear()
    run(tmp_path / "other.zarr")
    assert len(threads) > 1


# Shards that are packed without zarr


CODECS = encoding.compressor(None)


def lay_out(folder, shape, shard, compressors=CODECS, **options):
    """An array of a start, members, leads, levels and points, chunked as a forecast is."""
    options = {
        "chunks": (1, 1, 1, *shape[3:]),
        "shards": (1, *shard, *shape[3:]),
        "fill_value": np.float32("nan"),
    } | options
    store = zarr.storage.MemoryStore() if folder is None else SyncedStore(folder)
    return zarr.create_group(store).create_array("z", shape=shape, dtype="float32", compressors=compressors, **options)


@given(
    st.tuples(*(st.integers(1, n) for n in (3, 9, 9))),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from([(2, 3, 4), (5, 7)]),
    st.sampled_from([CODECS, CODECS[:1], encoding.compressor(12)]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_a_shard_has_the_bytes_that_zarr_gives_it(tmp_path_factory, front, shard, points, codecs, seed):
    """Whatever the numbers of members and leads, also of shards that the array ends in, with checksums and without."""
    values = np.random.default_rng(seed).normal(size=(*front, *points)).astype(np.float32)
    if seed % 2:
        values[:, :, :, 0] = np.nan  # a level that isn't predicted
    if seed % 3:
        values[np.random.default_rng(seed + 1).random(front) < 0.5] = np.nan  # chunks, and shards, that aren't stored
    theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
    lay_out(theirs, values.shape, shard, codecs)[...] = values
    array = lay_out(ours, values.shape, shard, codecs)
    shards, store = Shards.of(array), SyncedStore(ours)
    for member in range(0, front[1], shard[0]):  # region by region, as a forecast comes
        region = (slice(0, front[0]), slice(member, min(member + shard[0], front[1])), slice(0, front[2]))
        assert shards.take(region)
        leads = [shards.pack(values[*region[:2], k : k + 1]) for k in range(front[2])]  # lead by lead too
        shards.write(store, region, np.concatenate(leads, axis=2))
    assert not any(path.suffix != ".partial" for path in files(ours)), "named before it is on the disk"
    store.sync()
    assert files(ours) == files(theirs) and (files(ours) or np.isnan(values).all())
    np.testing.assert_array_equal(array[...], values)


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": [zarr.codecs.ZstdCodec()]},
        {"compressors": [*CODECS, zarr.codecs.GzipCodec()]},
        {"compressors": None},
        {"fill_value": np.float32(0)},
        {"shards": None},
        {"chunks": (1, 1, 1, 2, 3), "shards": (1, 2, 2, 4, 6)},
        {"chunk_key_encoding": {"name": "default", "separator": "."}},
        {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"serializer": zarr.codecs.BytesCodec(endian="big")},
        {"filters": [zarr.codecs.TransposeCodec(order=(0, 1, 2, 4, 3))]},
    ],
)
def test_what_is_laid_out_in_another_way_is_left_to_zarr(options):
    assert Shards.of(lay_out(None, (1, 4, 4, 4, 6), (2, 2))) is not None
    assert Shards.of(lay_out(None, (1, 4, 4, 4, 6), (2, 2), **options)) is None


def test_an_index_that_comes_first_is_left_to_zarr():
    codec = zarr.codecs.ShardingCodec(
        chunk_shape=(1, 2, 3), codecs=[zarr.codecs.BytesCodec(), *CODECS], index_location="start"
    )
    options = {"shape": (4, 2, 3), "chunks": (2, 2, 3), "dtype": "float32", "fill_value": np.float32("nan")}
    array = zarr.create(**options, codecs=[codec], zarr_format=3, store=zarr.storage.MemoryStore(), path="z")
    assert array.shards == (2, 2, 3) and Shards.of(array) is None


def test_parts_of_shards_are_left_to_zarr():
    """They would undo what others wrote."""
    shards = Shards.of(lay_out(None, (1, 4, 5, 2, 3), (2, 2)))
    members, leads = slice(2, 4), slice(2, 4)
    assert shards.take((slice(0, 1), members, leads))
    assert shards.take((slice(0, 1), members, slice(4, 5)))  # the last lead
    assert not shards.take((slice(0, 1), members, slice(3, 5)))
    assert not shards.take((slice(0, 1), slice(2, 3), leads))


def test_a_shard_of_nan_takes_the_place_of_one_that_was_there(tmp_path):
    array = lay_out(tmp_path, (1, 2, 2, 2, 3), (2, 2))
    shards, region = Shards.of(array), (slice(0, 1), slice(0, 2), slice(0, 2))
    for value in (1, np.nan):
        store = SyncedStore(tmp_path)
        shards.write(store, region, shards.pack(np.full(array.shape, value, np.float32)))
        store.sync()
        np.testing.assert_array_equal(array[...], np.full(array.shape, value))
    assert not files(tmp_path)


def test_the_curve_is_the_one_in_the_book():
    """A Z of Zs (Morton 1966), the first dimension fastest; what lies outside is passed over."""
    from xmosaic.store.shards import _morton

    square = [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert _morton((2, 2)) == square
    assert _morton((4, 4)) == [(2 * a + c, 2 * b + d) for a, b in square for c, d in square]
    assert _morton((3, 2)) == [*square, (2, 0), (2, 1)]


@pytest.mark.parametrize("count", [0, 20])
def test_a_disk_that_is_full_in_the_middle_of_a_shard(tmp_path, monkeypatch, count):
    """Neither the shard nor a half of it is there, nothing is claimed, and the call goes on."""
    plain, left = SyncedStore.fill, [count]

    @contextmanager
    def fill(store, key):
        with plain(store, key) as file:
            yield Full(file) if "/c/" in key and "record" not in key else file

    class Full:
        def __init__(self, file):
            self._file = file

        def write(self, data):
            left[0] -= 1
            if left[0] < 0:
                self._file.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(SyncedStore, "fill", fill)
        with pytest.raises(StoreError, match=re.escape("can't be written. Found [Errno 28] No space left")):
            run(tmp_path / "fc.zarr")
    assert left[0] < 0 and not list((tmp_path / "fc.zarr").rglob("*.partial"))
    assert not xmosaic.written(tmp_path / "fc.zarr").all()
    same(run(tmp_path / "fc.zarr"), run(None))


def test_a_forecast_into_a_folder_is_packed_without_zarr(tmp_path, monkeypatch):
    """All of its shards, so that the test of bytes above is one of ours against zarr's."""
    written = []
    wrap(monkeypatch, Shards, "write", after=lambda shards, *_: written.append(shards.name))
    stored = run(tmp_path / "fc.zarr")
    assert sorted(written) == sorted([*stored] * 12)  # two starts, two blocks of members, three shards of leads
