"""Is a forecast that broke off, however it did, gone on with to the same bits, and never with another or by two?"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import threading
import time
import warnings

import faults
import numpy as np
import pytest
import xarray as xr
import zarr
from faults import forecast
from models import SCHEMA, make_dataset, make_model

import xmosaic
from xmosaic.errors import StoreError
from xmosaic.store import encoding
from xmosaic.store import lock as locks
from xmosaic.store.owner import HELD, Owner
from xmosaic.store.record import Record
from xmosaic.store.synced import SyncedStore
from xmosaic.variables import Schema

MODEL, DS = make_model(), make_dataset()
KEY = "xmosaic_record/written/lock"


@pytest.fixture(scope="module")
def expected():
    return forecast(None)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(encoding, "SHARD_LEADS", faults.SHARD)


def run(store, ds=DS, **options):
    return xmosaic.forecast(ds, model=options.pop("model", MODEL), store=store, **(faults.OPTIONS | options))


def same(a, b):
    xr.testing.assert_identical(*(d.assign_attrs(history="").load() for d in (a, b)))


def is_honest(store, expected):
    """Whether everything that the record calls complete is there and right. Returns how much that is."""
    try:
        done = xmosaic.written(store)
    except StoreError:
        return 0  # killed before there was a record
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stored = xmosaic.store.open_forecast(store).load()
        except StoreError as error:  # killed while the store was laid out
            assert "only just been begun" in str(error) and not done.any()
            return 0
    for name in expected:
        np.testing.assert_array_equal(stored[name].values[done.values], expected[name].values[done.values])
    return int(done.sum())


def steps_made(monkeypatch, action=None):
    """Counts the members that pass through the network from now on."""
    made, forward = [], type(MODEL.network).forward

    def count(network, history, *args):
        if action is not None:
            action(len(made))
        made.append(history.shape[0] * history.shape[1])
        return forward(network, history, *args)

    monkeypatch.setattr(type(MODEL.network), "forward", count)
    return made


def break_off(store, ds=DS, after=0, **options):
    """A forecast that is interrupted, as by Ctrl-C, in the step after so many."""

    def stop(made):
        if made == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        steps_made(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            run(store, ds, **options)


# Interrupted = uninterrupted


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8, 11])
def test_interrupted_is_uninterrupted_and_nothing_complete_is_computed_again(tmp_path, monkeypatch, expected, after):
    break_off(tmp_path / "fc.zarr", after=after)
    kept = is_honest(tmp_path / "fc.zarr", expected)
    # blocks of 2, 1, 2 and 1 members, three steps each, in shards of two leads
    sizes = [2, 1, 2, 1]
    assert kept == sum(m * (3 if after >= 3 * (i + 1) else 2 * (after - 3 * i >= 2)) for i, m in enumerate(sizes))
    made = steps_made(monkeypatch)
    same(run(tmp_path / "fc.zarr"), expected)
    assert sum(made) == sum(3 * m for i, m in enumerate(sizes) if after < 3 * (i + 1))


def test_many_breaks(tmp_path, expected):
    for _ in range(3):
        break_off(tmp_path / "fc.zarr", after=4)
    same(run(tmp_path / "fc.zarr"), expected)


def test_of_a_block_that_broke_off_only_what_is_missing_is_written_again(tmp_path, monkeypatch, expected):
    break_off(tmp_path / "fc.zarr", after=2)
    shard = tmp_path / "fc.zarr" / "2m_temperature" / "c" / "0" / "0" / "0" / "0" / "0"
    before = shard.stat()
    same(run(tmp_path / "fc.zarr"), expected)
    assert (shard.stat().st_mtime_ns, shard.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_the_same_call_on_a_whole_store_returns_at_once(tmp_path, monkeypatch, expected):
    run(tmp_path / "fc.zarr")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "fc.zarr").rglob("*") if p.is_file()}
    made = steps_made(monkeypatch)
    same(run(tmp_path / "fc.zarr"), expected)
    assert made == []
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "fc.zarr").rglob("*") if p.is_file()} == before


def test_the_batch_of_the_first_call_is_kept(tmp_path, monkeypatch):
    """Whatever memory is free when it goes on: other batches would give other bits."""
    import sys

    plan, sizes = sys.modules["xmosaic.plan"], []
    monkeypatch.setattr(plan, "_CPU_BATCH", 3)

    break_off(tmp_path / "fc.zarr", batch_size=None, after=4)
    whole = run(None, batch_size=3)
    monkeypatch.setattr(plan, "_CPU_BATCH", 1)
    sizes = steps_made(monkeypatch)
    same(run(tmp_path / "fc.zarr", batch_size=None), whole)
    assert set(sizes) == {3}


def test_the_shards_of_the_first_call_are_kept(tmp_path, monkeypatch, expected):
    break_off(tmp_path / "fc.zarr", after=2)
    monkeypatch.setattr(encoding, "SHARD_LEADS", 10)
    same(run(tmp_path / "fc.zarr"), expected)


@pytest.mark.parametrize("options", [{"keep_bits": 9}, {"variables": ["t2m"]}, {"time": None}, {"dtype": "bfloat16"}])
def test_stores_that_lack_the_full_state_go_on_too(tmp_path, monkeypatch, options):
    break_off(tmp_path / "fc.zarr", **options, after=2)
    same(run(tmp_path / "fc.zarr", **options), run(tmp_path / "whole.zarr", **options))


def test_forcing_goes_on_too(tmp_path, monkeypatch):
    schema = Schema.from_variables({"2m_temperature": None}, forcing=["sea_surface_temperature"])
    model, ds = make_model(schema), make_dataset(schema, periods=20)

    break_off(tmp_path / "fc.zarr", ds, model=model, after=5)
    same(run(tmp_path / "fc.zarr", ds, model=model), run(None, ds, model=model))
    other = ds.copy(deep=True)
    other["sea_surface_temperature"][2] += 1.0
    with pytest.raises(StoreError, match="input of the start 2020-02-28T00:00:00 differs"):
        run(tmp_path / "fc.zarr", other, model=model)


# Killed


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_points_it_goes_on_to_the_same_bits(tmp_path, expected, seed):
    """Three kills each: in a step, before, in the middle of or after a write, or between a write and the disk."""
    rng = np.random.default_rng(seed)
    kept = []
    for k in range(3):
        point = faults.POINTS[(3 * seed + k) % len(faults.POINTS)]
        # the first dies while the store is laid out or filled, the others further on
        process = faults.start(tmp_path / "fc.zarr", point, int(rng.integers(0, 12 if point == "step" else 45)))
        process.join(60)
        assert process.exitcode in (-signal.SIGKILL, 0), "neither killed nor finished"
        kept.append(is_honest(tmp_path / "fc.zarr", expected))
    assert kept == sorted(kept)
    same(forecast(tmp_path / "fc.zarr"), expected)
    assert not list((tmp_path / "fc.zarr").rglob("*.partial"))


@pytest.mark.parametrize(
    ("point", "count"),
    [("half a write", 0), ("before a write", 3), ("before a write", 11), ("before a write", 19)],
)
def test_killed_while_the_store_is_laid_out(tmp_path, expected, point, count):
    process = faults.start(tmp_path / "fc.zarr", point, count)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    same(forecast(tmp_path / "fc.zarr"), expected)


# A full disk, a broken one


def broken(monkeypatch, number, count):
    """Writes from the count-th on fail, as on a full or broken disk."""
    import zarr.storage._local as local

    put, fill, left = local._put, SyncedStore.fill, [count]

    def tick():
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))

    def failing_put(path, value, exclusive=False):
        tick()
        return put(path, value, exclusive)

    def failing_fill(store, key):
        tick()
        return fill(store, key)

    monkeypatch.setattr(local, "_put", failing_put)
    monkeypatch.setattr(SyncedStore, "fill", failing_fill)


@pytest.mark.parametrize(
    ("number", "count"),
    [(errno.ENOSPC, 0), (errno.EIO, 17), (errno.ENOSPC, 22), (errno.EIO, 25), (errno.ENOSPC, 28), (errno.EIO, 33)],
)
def test_a_full_or_broken_disk_is_our_error_and_nothing_is_lost(tmp_path, monkeypatch, expected, number, count):
    with monkeypatch.context() as patch:
        broken(patch, number, count)
        with pytest.raises(StoreError, match=f"can't be written. Found .*{os.strerror(number)}"):
            run(tmp_path / "fc.zarr")
    is_honest(tmp_path / "fc.zarr", expected)
    assert not (tmp_path / "fc.zarr" / KEY).exists()
    same(run(tmp_path / "fc.zarr"), expected)


@pytest.mark.parametrize("count", [0, 40, 80])
def test_a_disk_that_fails_to_sync_is_our_error_and_claims_nothing(tmp_path, monkeypatch, expected, count):
    fsync, left = os.fsync, [count]

    def fail(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="can't be written. Found .*Input/output error"):
            run(tmp_path / "fc.zarr")
    is_honest(tmp_path / "fc.zarr", expected)
    same(run(tmp_path / "fc.zarr"), expected)


@pytest.mark.parametrize("left", ["empty", "nothing"])
def test_what_a_machine_without_power_leaves_is_honest_and_gone_on_with(tmp_path, monkeypatch, expected, left):
    """Files that the disk wasn't waited for are empty afterwards, or not there, though others that came later are."""
    lasting, ends, fsync, rng = set(), [], os.fsync, np.random.default_rng(len(left))
    moments = {*rng.choice(100, 2, replace=False), *rng.choice(np.arange(100, 190), 2, replace=False)}
    store = tmp_path / "fc.zarr"

    def identity(status):
        return status.st_ino, status.st_mtime_ns

    def cut():
        """The store as it would be found."""
        end = tmp_path / f"end{len(ends)}.zarr"
        for file in store.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # others write on
                kept = file.is_dir() or identity(file.stat()) in lasting
                to = end / file.relative_to(store)
                to.mkdir(parents=True, exist_ok=True) if file.is_dir() else None
                if not file.is_dir() and (kept or left == "empty"):
                    to.write_bytes(file.read_bytes() if kept else b"")
        ends.append(end)

    def note(handle):
        fsync(handle)
        lasting.add(identity(os.fstat(handle)))
        count[0] += 1
        if count[0] in moments:
            cut()

    count = [0]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note)
        run(store)
    assert len(ends) == len(moments)
    kept = []
    for end in ends:
        end.mkdir(exist_ok=True)
        kept.append(is_honest(end, expected))
        same(run(end), expected)
        assert not list(end.rglob("*.partial"))
    assert kept == sorted(kept) and kept[-1] > 0


def test_a_forecast_that_broke_off_at_its_very_last_writes_ends_up_like_any_other(tmp_path, monkeypatch, expected):
    fill, left, commit, commits = SyncedStore.fill, [], Record.commit, []

    def failing(store, key):
        if key == "zarr.json" and len(commits) == 8:  # two starts, two blocks of members, two shards of leads
            left.append(key)
            if len(left) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fill(store, key)

    for at in (1, 2):
        left.clear()
        commits.clear()
        with monkeypatch.context() as patch:
            patch.setattr(SyncedStore, "fill", failing)
            patch.setattr(Record, "commit", lambda *given: (commit(*given), commits.append(given)))
            with pytest.raises(StoreError, match="No space left"):
                run(tmp_path / f"{at}.zarr")
        assert len(left) == at
        same(run(tmp_path / f"{at}.zarr"), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of metadata that aren't consolidated
            same(xr.open_zarr(tmp_path / f"{at}.zarr"), expected)


def test_half_written_metadata_are_nothing_to_warn_a_reader_of(tmp_path, expected):
    run(tmp_path / "fc.zarr")
    (tmp_path / "fc.zarr" / "zarr.0123abcd.partial").write_bytes(b"{")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert xmosaic.written(tmp_path / "fc.zarr").all()
        same(xmosaic.open_forecast(tmp_path / "fc.zarr"), expected)


class Flaky(zarr.storage.WrapperStore):
    """A store of any kind whose writes fail, from some time on, as no OSError."""

    left = 10**9

    async def set(self, key, value):
        type(self).left -= 1
        if type(self).left < 0:
            raise RuntimeError("connection reset by peer\ntoken=secret")
        await super().set(key, value)


def test_any_stores_own_exceptions_are_our_error(expected):
    memory = zarr.storage.MemoryStore()
    for count in (5, 30, 45):
        Flaky.left = count
        with pytest.raises(StoreError, match="can't be written. Found connection reset by peer") as caught:
            run(Flaky(memory))
        assert "secret" not in str(caught.value)
        is_honest(memory, expected)
    Flaky.left = 10**9
    same(run(Flaky(memory)), expected)


def test_the_error_says_what_is_kept_and_comes_at_once(tmp_path, monkeypatch):
    from xmosaic.store.sink import ZarrSink

    store, stored = ZarrSink._store, threading.Event()
    calls = []

    def fail(sink, *piece):
        calls.append(1)
        if len(calls) == 3:
            stored.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        return store(sink, *piece)

    def wait(count):
        if count == 8:
            assert stored.wait(20)  # the writer has failed by now
            time.sleep(0.1)

    made = steps_made(monkeypatch, wait)
    monkeypatch.setattr(ZarrSink, "_store", fail)
    with pytest.raises(StoreError, match=r"No space left.*\d+ of 18 fields are kept; make room .* repeat the call"):
        run(tmp_path / "fc.zarr")
    assert len(made) <= 9


# Another forecast


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed differs. Found seed 1; expected seed 0"),
        ({"members": 4}, "members differs. Found members 4; expected members 3"),
        ({"lead": "4D"}, "leads differs. Found leads 4 in all, 4 days of them here alone"),
        ({"time": ["2020-02-28"]}, "starts differs.*expected starts 2 in all, 2020-03-01T00:00:00 of them"),
        ({"time": ["2020-03-01", "2020-02-28"]}, "starts differs. Found starts in another order"),
        ({"variables": ["t2m"]}, "variables differs"),
        ({"dtype": "bfloat16"}, "dtype differs. Found dtype bfloat16; expected dtype float32"),
        ({"batch_size": 3}, r"batch differs. Found batch \[1, 3\]; expected batch \[1, 2\]"),
        ({"keep_bits": 12}, "keep_bits differs"),
        ({"model": make_model(SCHEMA, num_neighbors=5)}, "checkpoint sha256 differs"),
        ({"ds": DS.isel(latitude=slice(None, None, -1))}, "grid, points differ"),
        ({"ds": DS + 0.01}, "input of the start 2020-02-28T00:00:00 differs"),
        ({"ds": DS.where(DS.time != DS.time[2], DS * 1.0001)}, "input of the start 2020-03-01T00:00:00 differs"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_another_forecast_is_refused_with_the_difference(tmp_path_factory, request, options, message, whole):
    path = begun(request.config, tmp_path_factory, whole)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    if not whole and "input of the start 2020-03-01" in message:
        pytest.skip("that start has not been begun: its input is free to change")
    with pytest.raises(StoreError, match=message):
        run(path, **options)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def begun(config, factory, whole):
    """A store made once: whole, or broken off in the first start."""
    held = config.__dict__.setdefault("_begun", {})
    if whole not in held:
        held[whole] = factory.mktemp("begun") / "fc.zarr"

        run(held[whole]) if whole else break_off(held[whole], after=4)
    return held[whole]


def test_another_version_is_refused(tmp_path, monkeypatch):
    import torch

    run(tmp_path / "fc.zarr")
    ours = torch.__version__
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    monkeypatch.setattr(xmosaic, "__version__", "9.9.8")
    with pytest.raises(StoreError) as caught:
        run(tmp_path / "fc.zarr")
    assert "xmosaic, torch differ. Found xmosaic 9.9.8; torch 9.9.9; expected xmosaic" in str(caught.value)
    assert f"torch {ours}" in str(caught.value)


def test_weights_count_not_the_name_of_the_model(tmp_path):
    run(tmp_path / "fc.zarr")
    network = make_model().network
    network.postprocess[3].weight.data[0, 0] += 1e-3
    other = dataclasses.replace(MODEL, network=network, sha256="")
    with pytest.raises(StoreError, match="checkpoint sha256 differs"):
        run(tmp_path / "fc.zarr", model=other)


# Two processes


def test_two_processes_are_refused_and_a_killed_ones_lock_is_free(tmp_path, expected):
    path = tmp_path / "fc.zarr"
    context = faults.context()
    ready = context.Event()
    process = context.Process(target=hold, args=(str(path), ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(StoreError, match=rf"written by another process. Found process {process.pid} on .*Wait for it"):
        run(path)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert (path / KEY).exists()
    began = time.monotonic()
    same(run(path), expected)
    assert time.monotonic() - began < 10
    assert not (path / KEY).exists()


def hold(path, ready):
    from xmosaic.store.place import Place

    held = locks.Lock(Place(path))
    held.acquire()
    ready.set()
    time.sleep(60)


def test_two_threads_are_refused(tmp_path, monkeypatch, expected):
    errors = []

    def meanwhile(made):
        if made == 2:
            try:
                run(tmp_path / "fc.zarr")
            except StoreError as error:
                errors.append(str(error))

    steps_made(monkeypatch, meanwhile)
    same(run(tmp_path / "fc.zarr"), expected)
    assert len(errors) == 1 and f"process {os.getpid()}" in errors[0]


@pytest.fixture(params=["folder", "object"])
def place(request, tmp_path):
    return tmp_path / "fc.zarr" if request.param == "folder" else zarr.storage.MemoryStore()


def put_lock(place, owner):
    if isinstance(place, zarr.storage.MemoryStore):
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        sync(place.set(KEY, default_buffer_prototype().buffer.from_bytes(owner.text())))
    else:
        (place / KEY).parent.mkdir(parents=True, exist_ok=True)
        (place / KEY).write_bytes(owner.text())


def test_locks_of_the_dead_are_recognised(place, expected):
    """No such process; one whose number was used again; one of this process that a call left."""
    me = Owner.me()
    for pid, began in ((2**22 + 5, "1"), (1, "0"), (os.getpid(), me.began)):
        put_lock(place, dataclasses.replace(me, token="gone", pid=pid, began=began))
        began = time.monotonic()
        same(run(place), expected)
        assert time.monotonic() - began < 10


def test_a_lock_of_another_machine_is_watched(place, monkeypatch, expected):
    monkeypatch.setattr(locks, "PATIENCE", 1.0)
    far = dataclasses.replace(Owner.me(), token="far", host="elsewhere", boot="another")
    put_lock(place, far)
    over = threading.Event()

    def beat():
        while not over.wait(0.1):
            put_lock(place, far.beating())

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(StoreError, match="written by another process. Found process .* on elsewhere"):
        run(place)
    over.set()
    thread.join()
    same(run(place), expected)  # it beats no more


def test_a_process_that_lost_its_lock_stops(place, monkeypatch):
    """One that was suspended for so long that another took over."""
    other = dataclasses.replace(Owner.me(), token="other")
    steps_made(monkeypatch, lambda made: put_lock(place, other) if made == 2 else None)
    with pytest.raises(StoreError, match="Another process has gone on with the store"):
        run(place)
    assert not HELD


def test_the_lock_beats(tmp_path, monkeypatch):
    from xmosaic.store.place import Place

    monkeypatch.setattr(locks, "BEAT", 0.05)
    held = locks.Lock(Place(tmp_path / "fc.zarr"))
    held.acquire()
    seen = set()
    until = time.monotonic() + 20
    while len(seen) < 3 and time.monotonic() < until:
        seen.add(Owner.read((tmp_path / "fc.zarr" / KEY).read_bytes()).beat)
        time.sleep(0.02)
    held.release()
    assert len(seen) >= 3
    assert not (tmp_path / "fc.zarr" / KEY).exists()


# An icechunk repository


def test_icechunk(tmp_path, monkeypatch, expected):
    icechunk = pytest.importorskip("icechunk", reason="icechunk is not installed")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))

    break_off(repository, after=7)
    # a commit per block: two of two and one member, the third never seen
    assert is_honest(repository, expected) == 9
    same(run(repository), expected)
    messages = [snapshot.message for snapshot in repository.ancestry(branch="main")]
    assert messages[0] == "a forecast, whole" and messages.count("a block of a forecast") == 4
    made = steps_made(monkeypatch)
    same(run(repository), expected)
    assert made == []
    with pytest.raises(StoreError, match="seed differs"):
        run(repository, seed=1)
    with pytest.raises(StoreError, match="session ends with its first commit.*store=repository"):
        run(repository.writable_session("main").store)
