"""Arrays are packed at the same time by several threads: are files, record, memory and errors as those of one?"""

from __future__ import annotations

import errno
import os
import random
import threading
import time

import pytest
import xarray as xr
import zarr
from models import make_dataset, make_model

import xmosaic
from xmosaic.errors import StoreError
from xmosaic.store import ZarrSink, encoding, record, sink, writer
from xmosaic.store.lock import Lock
from xmosaic.store.record import Record
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
    wrap(monkeypatch, ZarrSink, "_pack", before=lambda *_: time.sleep(rng.choice([0, 0, 0.02])))
    monkeypatch.setattr(writer, "packers", lambda: 5)
    place = tmp_path / "fc.zarr" if store == "folder" else zarr.storage.MemoryStore()
    stored = run(place, lead="7D", device=["cpu", "cpu"])
    monkeypatch.undo()
    same(stored, run(None, lead="7D"))


def test_a_region_is_recorded_after_all_its_arrays_are_on_the_disk(tmp_path, monkeypatch):
    packed, synced, rng = set(), set(), random.Random(0)

    def pack(sink, region, name, values):
        time.sleep(rng.choice([0, 0.03]))

    def commit(record, region):
        assert {(name, str(region)) for name in names} <= synced, "recorded before it lasts"
        checked.append(region)

    names, checked = set(run(None)), []
    wrap(monkeypatch, ZarrSink, "_pack", pack, lambda sink, region, name, values: packed.add((name, str(region))))
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
    wrap(monkeypatch, ZarrSink, "_pack", before=lambda *_: together.wait(20))
    monkeypatch.setattr(writer, "packers", lambda: 2)
    stored = run(tmp_path / "fc.zarr")  # arrays and regions are even in number
    assert len(stored) % 2 == 0 and not together.broken


@pytest.mark.parametrize("victim", [0, 3])
def test_one_array_that_fails_is_our_error_and_its_region_is_not_claimed(tmp_path, monkeypatch, victim):
    expected, failed, late, ended = run(None), [], [], threading.Event()
    name = list(expected)[victim]

    def pack(sink, region, array, values):
        if array == name and region[1].start == 2:
            failed.append(region)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def written(*_):
        late.append(ended.is_set())

    with monkeypatch.context() as patch:
        wrap(patch, ZarrSink, "_pack", pack, written)
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


def test_packers_report_errors_and_begin_nothing_after_the_end():
    packers, began = writer.Packers(1), []
    held = threading.Event()

    async def double(x):
        import asyncio

        began.append(await asyncio.to_thread(lambda: (2 * x, threading.current_thread().name)))

    async def fail():
        raise ValueError("mine")

    packers.submit(lambda: packers.run(double(4))).result(20)
    assert began[0][0] == 8 and began[0][1].startswith("xmosaic packer")  # in that thread, not in one beside it
    with pytest.raises(ValueError, match="mine"):
        packers.submit(lambda: packers.run(fail())).result(20)
    packers.submit(held.wait, 20)
    waiting = packers.submit(began.append, "too late")
    threading.Timer(0.2, held.set).start()
    packers.close()
    assert waiting.cancelled() and len(began) == 1


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
    wrap(monkeypatch, ZarrSink, "_pack", before=lambda *_: threads.add(threading.get_ident()))
    same(run(tmp_path / "fc.zarr"), run(None))
    assert len(threads) == 1
    monkeypatch.undo()
    monkeypatch.setattr(encoding, "SHARD_LEADS", 2)
    wrap(monkeypatch, ZarrSink, "_pack", before=lambda *_: (threads.add(threading.get_ident()), time.sleep(0.01)))
    threads.clear()
    run(tmp_path / "other.zarr")
    assert len(threads) > 1
