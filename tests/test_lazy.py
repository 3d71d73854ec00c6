"""Is a lazy forecast the eager one, computed block by block, wherever and whenever?"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import warnings

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import make_dataset, make_model

import xmosaic
from xmosaic import lazy
from xmosaic.errors import ArgumentError, CheckpointError, DatasetError
from xmosaic.healpix import to_healpix
from xmosaic.lazy import Weights, gpu_of
from xmosaic.variables import Schema

MODEL, DS = make_model(), make_dataset()
STARTS = ["2020-02-28", "2020-03-01", "2020-02-29"]


def run(ds=DS, lead="3D", members=5, **options):
    return xmosaic.forecast(ds, lead, members, **({"model": MODEL, "progress": False, "batch_size": 2} | options))


def same(lazily, eager):
    """Bit for bit, with every label; only the device isn't known before."""
    said = lazily.attrs["source"].replace("device of the worker", "device cpu")
    xr.testing.assert_identical(lazily.assign_attrs(history="", source=said).load(), eager.assign_attrs(history=""))


def no_compute(dsk, keys, **kwargs):
    raise AssertionError("something was computed")


def count_steps(monkeypatch):
    made, forward = [], type(MODEL.network).forward
    monkeypatch.setattr(
        type(MODEL.network), "forward", lambda net, h, *a: made.append(h.shape[:2]) or forward(net, h, *a)
    )
    return made


# Lazy = eager


@given(
    time=st.sampled_from([None, STARTS[:1], STARTS]),
    sizes=st.tuples(st.sampled_from([-1, 1, 2]), st.sampled_from([-1, 2, 4])),
    choice=st.sampled_from([{}, {"variables": ["z500", "t2m"]}, {"levels": 850, "leads": ["3D"]}, {"every": "2D"}]),
    chunked=st.booleans(),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_lazy_is_eager(time, sizes, choice, chunked):
    ds = DS.chunk(time=2, latitude=3) if chunked else DS
    options = {"time": time, **choice}
    with dask.config.set(scheduler=no_compute):
        fc = run(ds, chunks=dict(zip(("time", "number"), sizes, strict=True)), **options)
    same(fc, run(**options))


def test_the_defaults_are_the_same_bits_too():
    """Whatever batch an eager forecast takes here, where it divides the chunk."""
    same(run(chunks={"number": 4}, members=8, batch_size=None), run(members=8, batch_size=None))
    same(run(chunks={}, batch_size=None), run(batch_size=None))


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_schedulers(scheduler):
    fc = run(chunks={"number": 2}, members=4, time=STARTS[:2])
    with dask.config.set(scheduler=scheduler, num_workers=2):
        same(fc, run(members=4, time=STARTS[:2]))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_arithmetic(dtype):
    same(run(chunks={"number": 2}, dtype=dtype, time=STARTS), run(dtype=dtype, time=STARTS))
    assert next(MODEL.network.parameters()).dtype == torch.float32


def test_forcing_comes_with_the_input():
    schema = Schema.from_variables({"2m_temperature": None}, forcing=["sea_surface_temperature"])
    model, ds = make_model(schema), make_dataset(schema, periods=9)
    for given_ds in (ds, ds.chunk(time=1)):
        same(run(given_ds, model=model, chunks={"number": 2}, time=STARTS), run(ds, model=model, time=STARTS))


def test_other_grids_names_and_orders():
    other = DS.isel(latitude=slice(None, None, -1)).rename({"2m_temperature": "t2m", "longitude": "lon"})
    ds = other.transpose("lon", "latitude", "level", "time").isel(time=[3, 0, 2, 1, 4])
    for chunked in (ds, ds.chunk(time=1)):
        same(run(chunked, chunks={}, time=STARTS), run(ds, time=STARTS))
    fine = xmosaic.to_latlon(DS, xmosaic.LatLonGrid.equiangular(24, 13))
    same(run(fine.chunk(time=1), chunks={}, grid="input"), run(fine, grid="input"))
    mesh = to_healpix(DS, 8)
    same(run(mesh.chunk(time=1), chunks={}), run(mesh))


def test_stored_lazily(tmp_path):
    fc, eager = run(chunks={"number": 2}, time=STARTS), run(time=STARTS)
    fc.to_zarr(tmp_path / "fc.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "fc.zarr", consolidated=False)
    assert stored["geopotential"].encoding["chunks"] == (1, 1, 1, 2, 7, 12)
    same(stored, eager)
    fc.isel(number=0, time=slice(1, 3)).to_zarr(tmp_path / "part.zarr", consolidated=False)
    part = xr.open_zarr(tmp_path / "part.zarr", consolidated=False)
    np.testing.assert_array_equal(part["geopotential"], eager["geopotential"][1:, 0])
    fc.to_zarr(tmp_path / "two.zarr", zarr_format=2)
    fc.to_netcdf(tmp_path / "fc.nc")
    with xr.open_dataset(tmp_path / "fc.nc", decode_timedelta=True) as read:
        np.testing.assert_array_equal(read["geopotential"], eager["geopotential"])


def layout_of(path):
    ds = xr.open_zarr(path)
    return {n: {k: v.encoding[k] for k in ("chunks", "shards", "compressors", "_FillValue")} for n, v in ds.items()}


@pytest.mark.parametrize("time", [None, STARTS])
def test_written_in_the_layout_of_a_store(tmp_path, time):
    """The same chunks, shards, packing and numbers; lazily and from memory, whole and in part."""
    fc, eager = run(chunks={"number": 2}, time=time), run(time=time)
    run(time=time, store=tmp_path / "store.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fc.mosaic.to_zarr(tmp_path / "lazy.zarr")
        same(xr.open_zarr(tmp_path / "lazy.zarr"), eager)
    assert str(layout_of(tmp_path / "lazy.zarr")) == str(layout_of(tmp_path / "store.zarr"))
    parts = {
        "one": lambda fc: fc.isel(number=0),
        "from 2 on": lambda fc: fc.isel(number=slice(1, None), prediction_timedelta=[0, 2]),
        "turned": lambda fc: fc.transpose("latitude", ...),
        "in pieces": lambda fc: fc.chunk(latitude=2, number=1, prediction_timedelta=2),
    }
    if time:  # as with a single start
        del parts["one"], parts["turned"]
    ways = {name: (part(fc), part(eager)) for name, part in parts.items()}
    ways["in memory"] = eager, eager
    again = xr.open_zarr(tmp_path / "store.zarr")
    ways["read again"] = (ds.isel(number=slice(1, 4)) for ds in (again, eager))
    for name, (lazily, expected) in ways.items():
        lazily.mosaic.to_zarr(tmp_path / f"{name}.zarr")
        xr.testing.assert_equal(xr.open_zarr(tmp_path / f"{name}.zarr").load(), expected.compute())
    assert layout_of(tmp_path / "in memory.zarr")["geopotential"]["shards"][-5:-3] == (5, 3)


def test_writing_waits_where_it_is_asked_to(tmp_path, monkeypatch):
    made = count_steps(monkeypatch)
    later = run(chunks={"number": 2}).mosaic.to_zarr(tmp_path / "fc.zarr", compute=False)
    assert not made
    later.compute()
    same(xr.open_zarr(tmp_path / "fc.zarr"), run())


@pytest.mark.parametrize(
    ("ds", "options", "error", "message"),
    [
        (DS, {}, DatasetError, "This is no forecast.*'time'.*xmosaic.forecast"),
        (None, {"encoding": {}}, ArgumentError, "encoding= can't be chosen here.*own to_zarr"),
        (None, {"zarr_format": 2}, ArgumentError, "zarr_format= can't be chosen here"),
    ],
)
def test_writing_refuses(tmp_path, ds, options, error, message):
    with pytest.raises(error, match=message):
        (run(chunks={}) if ds is None else ds).mosaic.to_zarr(tmp_path / "fc.zarr", **options)
    assert not (tmp_path / "fc.zarr").exists()


# One task per block, where and when it is needed


def test_a_block_is_computed_once_for_all_its_variables_and_only_if_asked_for(monkeypatch):
    fc, made = run(chunks={"number": 2}, time=STARTS), count_steps(monkeypatch)
    assert fc["geopotential"].data.numblocks[:3] == (3, 3, 1)
    fc.compute()
    assert len(made) == 3 * 3 * 3 and set(made) == {(1, 2), (1, 1)}
    made.clear()
    fc["2m_temperature"].sel(time="2020-03-01", number=3).compute()
    assert made == [(1, 2)] * 3
    tasks = {k for k in dask.optimize(fc)[0].__dask_graph__() if str(k).startswith("('block-")}
    assert len(tasks) == 9


def test_only_the_history_of_a_start_is_read():
    touched = set()

    def watch(block, block_info=None):
        if block_info:
            touched.add(block_info[0]["array-location"][0][0])
        return block

    ds = DS.chunk(time=1).map(
        lambda a: a.copy(data=a.data.map_blocks(watch, dtype=a.dtype, meta=np.empty((0,) * a.ndim, a.dtype)))
    )
    fc = run(ds, chunks={"number": 2}, time=STARTS)
    touched.clear()
    fc.sel(time="2020-02-29").compute()
    assert touched == {1, 2}


def test_a_dataset_opened_without_dask_is_read_by_the_task(tmp_path):
    DS.to_netcdf(tmp_path / "ds.nc")
    with xr.open_dataset(tmp_path / "ds.nc") as ds:
        fc = run(ds, chunks={"number": 2}, time=STARTS)
        copy = pickle.loads(pickle.dumps(fc))
        same(copy, run(time=STARTS))


def test_calls_on_one_model_take_turns(monkeypatch):
    inside, most, forward = [], [], type(MODEL.network).forward

    def slow(*args):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.005)
        result = forward(*args)
        inside.pop()
        return result

    monkeypatch.setattr(type(MODEL.network), "forward", slow)
    with dask.config.set(scheduler="threads", num_workers=4):
        run(chunks={"number": 1}, time=STARTS, members=3).compute()
    assert max(most) == 1


def test_what_is_wrong_with_values_is_said_by_the_task():
    ds = DS.copy(deep=True)
    ds["2m_temperature"][3, 2, 2] = np.nan
    fc = run(ds.chunk(time=1), chunks={}, time=STARTS)
    fc.sel(time="2020-02-28").compute()
    with pytest.raises(DatasetError, match="2m_temperature at 2020-03-01.*NaN"):
        fc.compute()


# The model


def test_weights_travel_by_name_or_path_and_are_opened_once(tmp_path, monkeypatch):
    path = MODEL.save(tmp_path / "model.safetensors")
    model = xmosaic.load_model(path)
    assert len(pickle.dumps(Weights(model, path))) < 500 < 50_000 < len(pickle.dumps(Weights(model, model)))
    opened, load = [], lazy.load_model
    monkeypatch.setattr(lazy, "load_model", lambda source: opened.append(source) or load(source))
    monkeypatch.setattr(lazy, "_MODELS", {})
    copies = [pickle.loads(pickle.dumps(Weights(model, path))) for _ in range(3)]
    assert len({id(w.model()) for w in copies}) == 1 and opened == [str(path)]
    whole = pickle.loads(pickle.dumps(Weights(MODEL, MODEL)))
    monkeypatch.setattr(lazy, "_MODELS", {})
    threads = [threading.Thread(target=copies[0].model) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert whole.model().sha256 == MODEL.sha256


def test_another_file_at_the_same_path_is_refused(tmp_path, monkeypatch):
    path = MODEL.save(tmp_path / "model.safetensors")
    sent = pickle.dumps(Weights(xmosaic.load_model(path), path))
    make_model(num_neighbors=5).save(path)
    monkeypatch.setattr(lazy, "_MODELS", {})
    with pytest.raises(CheckpointError, match="is not the one that the forecast was asked of"):
        pickle.loads(sent).model()


def test_no_more_than_two_models_are_held(monkeypatch):
    monkeypatch.setattr(lazy, "_MODELS", {})
    for k in (4, 5, 6):
        model = make_model(num_neighbors=k)
        assert Weights(model, model).model() is model
    assert len(lazy._MODELS) == 2


@pytest.mark.parametrize(
    ("worker", "visible", "count", "gpu"),
    [
        (None, None, 4, 0),  # no worker
        (2, None, 4, 2),  # LocalCluster
        (5, "0,1,2,3", 4, 1),
        ("SLURMCluster-3", None, 2, 1),
        (1, "1,2,3,0", 4, 0),  # dask-cuda: its own comes first
        (0, "0,1,2,3", 4, 0),
        (3, "GPU-5a,GPU-77", 2, 1),
        ("tcp://10.0.0.1:4711", None, 4, 0),
    ],
)
def test_gpus_are_shared_out(worker, visible, count, gpu):
    assert gpu_of(worker, visible, count) == gpu


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": {"level": 1}}, "chunks= names 'level'.*'time' and 'number'"),
        ({"chunks": {"number": 0}}, "whole numbers, or -1"),
        ({"chunks": {"number": 2.0}}, "whole numbers"),
        ({"chunks": {"time": True}}, "whole numbers"),
        ({"chunks": {}, "store": "fc.zarr"}, "Leave one of them out.*fc.to_zarr"),
        ({"chunks": {}, "device": "tpu"}, "device='tpu' can't be used"),
    ],
)
def test_bad_chunks_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        run(**options)


def test_a_worker_takes_one_gpu_of_its_own(monkeypatch):
    """Whether any GPU was asked for or none named; elsewhere a forecast would take them all."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, gpu in ((None, 0), (0, 0), (3, 1)):
        monkeypatch.setattr(lazy, "_worker_name", lambda name=name: name)
        assert lazy.worker_device(None) == lazy.worker_device("cuda") == torch.device("cuda", gpu)
    assert lazy.worker_device("cpu") == torch.device("cpu")


def test_gpus_may_be_elsewhere():
    """A cluster's GPUs can be asked for where there is none; a worker without one says so."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    fc = run(chunks={}, device="cuda")
    with pytest.raises(ArgumentError, match="device='cuda' can't be used"):
        fc.compute()


# A cluster


def slow_down(seconds):
    """On a worker: every step takes so long."""
    from xmosaic.model import Mosaic

    forward = Mosaic.forward

    def slow(*args):
        time.sleep(seconds)
        return forward(*args)

    Mosaic.forward = slow


def opened():
    """On a worker: the models it holds."""
    from xmosaic import lazy

    return list(lazy._MODELS)


def test_a_cluster_and_a_killed_worker(tmp_path):
    """Two processes, one killed in the middle: the result is that of one call, and each worker has opened one model."""
    distributed = pytest.importorskip("distributed")
    path = MODEL.save(tmp_path / "model.safetensors")
    sha256 = xmosaic.load_model(path).sha256
    DS.to_zarr(tmp_path / "ds.zarr", consolidated=False)
    ds = xr.open_zarr(tmp_path / "ds.zarr", consolidated=False)
    eager = run(members=4, model=path, time=STARTS, batch_size=1)
    with (
        distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        fc = run(ds, members=4, model=path, chunks={"number": 1}, time=STARTS, batch_size=1)
        client.run(slow_down, 0.1)
        future = client.compute(fc)
        pids = client.run(os.getpid)
        until = time.monotonic() + 15
        while not any(client.run(opened).values()) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        got = future.result(timeout=60)
        held = [models for models in client.run(opened).values() if models]
        assert held and all(models == [sha256] for models in held)
        assert set(pids.values()) != set(client.run(os.getpid).values()), "no worker died"
    same(got, eager)
