"""Is a forecast that several devices share the one that a single device makes, and does it end well when one fails?

CPUs stand for GPUs: ``["cpu", "cpu"]`` are two threads with all that two GPUs have but weights of their own.
"""

from __future__ import annotations

import hashlib
import itertools
import signal
import sys
import threading
import time

import faults
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_dataset, make_model

import xmosaic
from xmosaic.choices import check_devices, check_dtype
from xmosaic.errors import ArgumentError, DatasetError, MosaicError, StoreError
from xmosaic.plan import default_gpu_batch
from xmosaic.store import encoding
from xmosaic.variables import Schema

MODEL, DS = make_model(), make_dataset()
TWO, THREE = ["cpu", "cpu"], ["cpu", "cpu", "cpu"]


def run(ds=DS, device=TWO, **options):
    usual = {"lead": "3D", "members": 5, "time": ["2020-02-28", "2020-03-01"], "batch_size": 2, "progress": False}
    return xmosaic.forecast(ds, device=device, **({"model": MODEL} | usual | options))


def same(a, b):
    xr.testing.assert_identical(*(d.assign_attrs(history="").load() for d in (a, b)))


def chunks(store):
    """Digest of every piece of data in a store, and of its record."""
    files = [p for p in store.rglob("*") if p.is_file() and "c" in p.relative_to(store).parts]
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def on_forward(monkeypatch, action):
    """Do something before every step, from the thread that makes it; returns the threads that made steps."""
    seen, forward, number = [], type(MODEL.network).forward, itertools.count(1)

    def step(*args):
        seen.append(threading.current_thread().name)
        action(next(number))  # one thread has each
        return forward(*args)

    monkeypatch.setattr(type(MODEL.network), "forward", step)
    return seen


def no_thread_is_left():
    return not [t for t in threading.enumerate() if t.name.startswith("xmosaic")]


# The same numbers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device": THREE, "batch_size": 1},
        {"batch_size": 10},  # both starts at once: one block, so one device has nothing to do
        {"time": None, "members": 1},
        {"every": "2D", "dtype": "float64"},
        {"dtype": "bfloat16", "variables": ["t2m"]},
    ],
)
def test_bits_do_not_depend_on_the_number_of_devices(options):
    same(run(**options), run(**options | {"device": "cpu"}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: ['cpu', 'cpu'] stands for two")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_bits_do_not_depend_on_the_number_of_gpus(dtype):
    one = run(device="cuda:0", dtype=dtype)
    same(one, run(device=["cuda:0", "cuda:0"], dtype=dtype))
    same(one, run(device="cuda", dtype=dtype))
    MODEL.network.cpu()


def test_stores_do_not_either(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "SHARD_LEADS", 2)
    one = run(device="cpu", store=tmp_path / "one.zarr")
    two = run(device=TWO, store=tmp_path / "two.zarr")
    same(one, two)
    assert chunks(tmp_path / "one.zarr") == chunks(tmp_path / "two.zarr")
    assert len(chunks(tmp_path / "one.zarr")) > 20


def test_forcing_and_a_store_that_knows_commits(tmp_path):
    icechunk = pytest.importorskip("icechunk")
    schema = Schema.from_variables({"2m_temperature": None}, forcing=["sea_surface_temperature"])
    model, ds = make_model(schema), make_dataset(schema, periods=8)
    options = {"model": model, "members": 3}
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    same(run(ds, store=repository, **options), run(ds, device="cpu", **options))
    blocks = [s for s in repository.ancestry(branch="main") if "block" in s.message]
    # a block that ends while another's is committed may be in the same commit
    assert 2 <= len(blocks) <= 4


def test_blocks_are_shared_out(monkeypatch):
    """Both threads are in the network at the same time: each waits there for the other."""
    both = threading.Barrier(2)
    seen = on_forward(monkeypatch, lambda count: both.wait(20) if count <= 2 else None)
    run()
    assert len(set(seen)) == 2 and all(name.startswith("xmosaic device") for name in seen)
    assert no_thread_is_left()


def test_a_start_is_read_once_for_all_devices(monkeypatch):
    state = sys.modules["xmosaic.state"].State
    read, history = [], state.history
    monkeypatch.setattr(state, "history", lambda self, start: read.append(start) or history(self, start))
    run(batch_size=1, device=THREE)
    assert len(read) == 2


def test_a_replica_has_weights_and_tables_of_its_own():
    from xmosaic.ready import replica

    assert replica(MODEL.network, torch.device("cpu")) is MODEL.network
    away = replica(MODEL.network, torch.device("meta"))
    here, there = (dict(n.named_parameters()) | dict(n.named_buffers()) for n in (MODEL.network, away))
    assert {n: t.shape for n, t in here.items()} == {n: t.shape for n, t in there.items()}
    assert {t.device.type for t in there.values()} == {"meta"} and {t.device.type for t in here.values()} == {"cpu"}
    assert not away.training and away.config == MODEL.config


# Going on


@pytest.mark.parametrize(("first", "then", "after"), [(TWO, "cpu", 3), ("cpu", TWO, 8), (TWO, THREE, 11)])
def test_what_some_devices_began_others_go_on_with(tmp_path, first, then, after):
    expected = run(device="cpu")

    def stop(count):
        if count > after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        on_forward(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            run(device=first, store=tmp_path / "fc.zarr")
    assert no_thread_is_left()
    done = xmosaic.written(tmp_path / "fc.zarr")
    assert not done.all()
    with pytest.warns(xmosaic.store.IncompleteForecast):
        partly = xmosaic.store.open_forecast(tmp_path / "fc.zarr").load()
    for name in expected:
        np.testing.assert_array_equal(partly[name].values[done.values], expected[name].values[done.values])
    same(run(device=then, store=tmp_path / "fc.zarr"), expected)


@pytest.mark.parametrize(("point", "count"), [("step", 5), ("half a write", 14), ("sync", 30)])
def test_killed_with_two_devices_and_gone_on_with_by_one(tmp_path, point, count):
    store = tmp_path / "fc.zarr"
    process = faults.context().Process(target=_forecast_and_die, args=(str(store), point, count))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    same(faults.forecast(store, device="cpu"), faults.forecast(None, device="cpu"))


def _forecast_and_die(store, point, count):
    torch.set_num_threads(1)
    encoding.SHARD_LEADS = faults.SHARD
    faults.arm(point, count)
    faults.forecast(store, device=TWO)


# One that fails


@pytest.mark.parametrize(("stored", "count"), [(False, 1), (False, 9), (True, 4)])
def test_an_error_on_one_device_stops_all_and_is_raised_once(tmp_path, monkeypatch, stored, count):
    def fail(number):
        if number == count:
            raise RuntimeError("CUDA error: out of luck")
        time.sleep(0.002)

    seen = on_forward(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="out of luck") as caught:
        run(store=tmp_path / "fc.zarr" if stored else None, lead="9D", device=THREE)
    assert caught.value.__cause__ is None
    assert len(seen) < count + 20  # of 54 steps
    assert no_thread_is_left()


def test_an_input_that_is_bad_stops_all():
    ds = DS.copy(deep=True)
    ds["2m_temperature"][4, 2, 2] = np.nan
    with pytest.raises(DatasetError, match="2m_temperature at 2020-03-02.*NaN"):
        run(ds, time=["2020-02-28", "2020-02-29", "2020-03-02"])
    assert no_thread_is_left()


def test_a_store_that_fails_stops_all(tmp_path, monkeypatch):
    sink, calls = xmosaic.store.ZarrSink, []
    store = sink._store

    def full(*args):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return store(*args)

    monkeypatch.setattr(sink, "_store", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        run(store=tmp_path / "fc.zarr", device=THREE)
    assert isinstance(caught.value.__cause__, OSError)
    assert no_thread_is_left()
    monkeypatch.undo()
    same(run(store=tmp_path / "fc.zarr"), run(device="cpu"))


def test_ctrl_c_while_devices_work(monkeypatch):
    """A real signal, in the thread that waits for the others."""
    on_forward(monkeypatch, lambda count: signal.raise_signal(signal.SIGINT) if count == 4 else time.sleep(0.01))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs beside itself ignores it
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(lead="300D", every="300D", batch_size=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 10
    assert no_thread_is_left()


# Never a field that isn't finite


@pytest.mark.parametrize("device", ["cpu", TWO])
@pytest.mark.parametrize("bad", [2, 5, 6])
def test_a_field_that_is_not_finite_is_never_written(tmp_path, monkeypatch, device, bad):
    """The check comes a step late; what it finds must still not be in the store, in whatever shard."""
    monkeypatch.setattr(encoding, "SHARD_LEADS", 2)
    expected = run(device="cpu", lead="6D")
    forward, made = type(MODEL.network).forward, threading.local()

    def spoil(network, history, *args):
        state = forward(network, history, *args)
        made.count = getattr(made, "count", 0) + 1
        return state * torch.nan if made.count % 6 == bad % 6 else state

    monkeypatch.setattr(type(MODEL.network), "forward", spoil)
    message = rf"no longer finite after {bad} day.*2m_temperature"
    with pytest.raises(MosaicError, match=message):
        run(store=tmp_path / "fc.zarr", lead="6D", device=device)
    done = xmosaic.written(tmp_path / "fc.zarr").values
    kept = xr.open_zarr(tmp_path / "fc.zarr", consolidated=False).load()
    assert done.sum() % 2 == 0 and not done[:, :, (bad - 1) // 2 * 2 :].any()
    for name in expected:
        np.testing.assert_array_equal(kept[name].values[done], expected[name].values[done])


def test_a_step_that_is_not_kept_is_looked_at_too(monkeypatch):
    forward = type(MODEL.network).forward
    monkeypatch.setattr(type(MODEL.network), "forward", lambda *args: forward(*args) * torch.inf)
    with pytest.raises(MosaicError, match="no longer finite after 1 day"):
        run(leads=["3D"])


# Which devices, and how many members at once


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cpu", 1), (["cpu"], 1), (TWO, 2), ("cpu,cpu", 2), ((torch.device("cpu"), "cpu"), 2), (torch.device("cpu"), 1)],
)
def test_devices_that_are_asked_for(device, expected):
    assert check_devices(device) == (torch.device("cpu"),) * expected


def test_all_gpus_are_the_default(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    every = tuple(torch.device("cuda", i) for i in range(3))
    assert check_devices(None) == check_devices("cuda") == check_devices(torch.device("cuda")) == every
    assert check_devices("cpu") == (torch.device("cpu"),)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ([], "device=.. can't be used. Found none; expected one or more devices"),
        (["cpu", "meta"], "all of one kind"),
        (["cpu", "tpu"], "device='tpu' can't be used"),
        (["cpu", None], "device=None can't be used"),
        ({"cpu", "meta"}, "can't be used"),
        ("cpu,", "device='' can't be used"),
        (3.5, "device='3.5' can't be used"),
    ],
)
def test_devices_that_make_no_sense(device, message):
    with pytest.raises(ArgumentError, match=message):
        run(device=device)


def test_a_task_of_a_lazy_forecast_runs_on_one_device():
    with pytest.raises(ArgumentError, match=r"doesn't go with chunks=.*one device"):
        run(device=TWO, chunks={})
    xr.testing.assert_equal(run(device=["cpu"], chunks={"number": 2}).load(), run(device="cpu"))


@given(
    st.integers(1, 200),
    st.integers(1, 200).map(lambda g: g * 10**9),
    st.floats(0.01, 20).map(lambda g: int(g * 1e9)),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=300, deadline=None)
def test_blocks_of_a_gpu_fit_and_are_even(members, free, member_bytes, dtype):
    size = default_gpu_batch(free, member_bytes, dtype, members)
    each = member_bytes * dtype.itemsize // 4
    assert size == 1 or size * each <= min(0.6 * free, 16e9)
    blocks = -(-members // size)
    assert size * blocks - members < max(blocks, size)  # no block is filled up with nothing but what rounding leaves


@pytest.mark.parametrize(("members", "blocks"), [(24, 4), (48, 8), (16, 4), (8, 2), (10, 2), (4, 1), (1, 1)])
def test_blocks_of_the_full_network_divide_over_two_and_four_gpus(members, blocks):
    size = default_gpu_batch(140 * 10**9, 3_863_305_728, torch.bfloat16, members)
    assert -(-members // size) == blocks


def test_a_small_network_runs_its_members_at_once():
    assert default_gpu_batch(140 * 10**9, 20 * 10**6, torch.bfloat16, 24) >= 24


@pytest.mark.parametrize(
    ("devices", "newest", "expected"),
    [
        (["cpu"], (9, 0), torch.float32),
        (["cuda:0", "cuda:1"], (9, 0), torch.bfloat16),
        (["cuda:0"], (7, 5), torch.float32),
        (["cuda:0", "cpu"], (9, 0), torch.float32),
    ],
)
def test_16_bits_by_default_where_every_device_has_them(devices, newest, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: newest)
    there = [torch.device(d) for d in devices]
    assert check_dtype(None, there) == expected
    assert check_dtype("float32", there) == torch.float32
