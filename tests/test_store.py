"""Is a stored forecast whole, bounded in memory and files, written meanwhile, and never mixed with another?"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_dataset, make_model

import xmosaic
from xmosaic.errors import ArgumentError, MosaicError, StoreError
from xmosaic.store import IncompleteForecast, ZarrSink, open_forecast
from xmosaic.store.encoding import round_bits
from xmosaic.store.record import _files

MODEL = make_model()
DS = make_dataset()


def run(store, lead="3D", members=5, **options):
    return xmosaic.forecast(DS, lead, members, **({"model": MODEL, "progress": False, "store": store} | options))


def break_off(monkeypatch, after):
    """Stop the next forecast at a step, as Ctrl-C does."""
    calls, forward = [], type(MODEL.network).forward

    def stop(*args):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(type(MODEL.network), "forward", stop)


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
        f"file://{tmp_path}/d.zarr",
        f"memory://{tmp_path.name}/e.zarr",
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
    from xmosaic.store import encoding

    state = 4 * 12 * 7
    monkeypatch.setattr(encoding, "SHARD_BYTES", 2 * state * 3)  # two members, three leads
    stored = run(tmp_path / "fc.zarr", lead="8D", members=4, batch_size=2, variables=["2m_temperature"])
    assert zarr.open_group(tmp_path / "fc.zarr")["2m_temperature"].shards == (2, 3, 7, 12)
    same(stored, run(None, lead="8D", members=4, variables=["2m_temperature"], batch_size=2))
    assert bool(xmosaic.written(tmp_path / "fc.zarr").all())


def test_what_waits_to_be_written_does_not_grow_with_lead(tmp_path, monkeypatch):
    """However slow the store: a piece is written, one waits, and one is filled."""
    alive, most, piece = weakref.WeakSet(), [], 10 * 4 * 4 * 7 * 12 * (1 + 1 + 2 + 2)
    store = ZarrSink._store

    class Fields(dict):
        __hash__ = object.__hash__

    def slow(sink, *piece):
        time.sleep(0.02)
        return store(sink, *piece)

    def watch(sink, region):
        fields = sink._filling.fields = Fields(sink._filling.fields)
        alive.add(fields)
        del fields
        hand_over(sink, region)
        most.append(sum(v.nbytes for f in alive for v in f.values()))

    hand_over = ZarrSink._hand_over
    monkeypatch.setattr(ZarrSink, "_store", slow)
    monkeypatch.setattr(ZarrSink, "_hand_over", watch)
    for lead in ("40D", "160D"):
        most.clear()
        run(tmp_path / f"{lead}.zarr", lead=lead, members=4, batch_size=4)
        assert len(most) == int(lead[:-1]) // 10
        assert piece <= max(most) <= 3 * piece


@pytest.mark.parametrize("kind", ["folder", "memory", "url"])
@given(shape=st.tuples(*[st.integers(1, 4)] * 3), shards=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=4, deadline=None)
def test_files_are_counted(kind, shape, shards, seed):
    """Those of an array and of no other, also of one below the root and of one whose name begins alike."""
    with tempfile.TemporaryDirectory() as folder:
        store = {
            "folder": lambda: folder,
            "memory": zarr.storage.MemoryStore,
            "url": lambda: f"memory://{folder}",
        }[kind]()
        group = zarr.open_group(store, mode="a")
        for path in ("z", "z2"):
            how = {"chunks": (1, 1, 1), "shards": (1, 2, 2) if shards else None, "fill_value": 0}
            array = group.create_array(f"in.ner/{path}", shape=shape, dtype="float32", **how)
            assert _files(array) == 0
            array[...] = np.random.default_rng([seed, len(path)]).integers(0, 2, shape)
        for path in ("z", "z2"):
            array = group[f"in.ner/{path}"]
            whole = np.pad(array[...], [(0, 0), *[(0, n % 2) for n in shape[1:]]]) if shards else array[...]
            pieces = whole.reshape(shape[0], -1, 2, whole.shape[2] // 2, 2).any((2, 4)) if shards else whole
            assert _files(array) == np.count_nonzero(pieces)  # what is 0 everywhere isn't stored


def test_the_next_steps_are_made_while_one_is_written(tmp_path, monkeypatch):
    """The second piece is computed although the first can't be written before it is."""
    computed = threading.Event()
    store, calls = ZarrSink._store, []
    forward = type(MODEL.network).forward

    def wait(sink, *piece):
        assert computed.wait(20), "the forecast waits for the writer"
        return store(sink, *piece)

    def count(*args):
        calls.append(threading.current_thread().name)
        if len(calls) == 15:
            computed.set()
        return forward(*args)

    monkeypatch.setattr(ZarrSink, "_store", wait)
    monkeypatch.setattr(type(MODEL.network), "forward", count)
    stored = run(tmp_path / "fc.zarr", lead="20D", members=1)
    monkeypatch.undo()
    same(stored, run(None, lead="20D", members=1))


def test_a_store_that_holds_another_forecast_is_refused_and_left_alone(tmp_path):
    first = run(tmp_path / "fc.zarr").load()
    with pytest.raises(StoreError, match=r"another forecast: seed differs\. Found seed 1; expected seed 0"):
        run(tmp_path / "fc.zarr", seed=1)
    same(xr.open_zarr(tmp_path / "fc.zarr", consolidated=False), first)


def test_a_zarr_store_of_something_else_is_refused_and_left_alone(tmp_path):
    mine = DS.assign_attrs(title="analyses")
    mine.to_zarr(tmp_path / "mine.zarr")
    with pytest.raises(StoreError, match="mine.zarr already holds something else. Found analyses"):
        run(tmp_path / "mine.zarr")
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "mine.zarr").load(), mine)
    zarr.open_group(tmp_path / "old.zarr", mode="w").create_group("xmosaic_record")
    with pytest.raises(StoreError, match="another version of this package. Found record format 1"):
        run(tmp_path / "old.zarr")


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
    break_off(monkeypatch, 8)
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


def test_unwritten_is_told_from_nan(tmp_path, monkeypatch):
    """A reader of this package is warned and told where; any other finds it in the attributes, until it is whole."""
    for time_, path in ((None, tmp_path / "one.zarr"), (["2020-02-28", "2020-03-01"], tmp_path / "two.zarr")):
        break_off(monkeypatch, 8)
        with pytest.raises(KeyboardInterrupt):
            run(path, batch_size=2, time=time_)
        monkeypatch.undo()
        with pytest.warns(IncompleteForecast, match="fields of the forecast .* aren't written yet"):
            ds = open_forecast(path)
        np.testing.assert_array_equal(ds["written"].values, xmosaic.written(path).values.reshape(ds["written"].shape))
        # NaN although it was written: the level that is not predicted
        wind = ds["u_component_of_wind"].sel(level=500).isnull().all(["latitude", "longitude"])
        assert bool((wind & ds.written).any()) and not bool((~wind & ~ds.written).any())
        assert xr.open_zarr(path).attrs["status"].startswith("incomplete: NaN also stands for what isn't written yet")
        whole = run(path, batch_size=2, time=time_)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            same(open_forecast(path), whole)
        assert "status" not in xr.open_zarr(path).attrs and "written" not in whole.coords


@pytest.mark.parametrize("time", ["2020-03-01", ["2020-02-28", "2020-03-01"]])
def test_asking_while_the_store_is_laid_out(tmp_path, monkeypatch, time):
    """At every stage of it: nothing is written yet, of the forecast that comes."""
    from xmosaic.store import record

    seen, path = [], tmp_path / "fc.zarr"

    def asking(name):
        made = getattr(record, name)

        def ask(*args, **kwargs):
            made(*args, **kwargs)
            seen.append(xmosaic.written(path))
            with pytest.raises(StoreError, match="only just been begun"):
                open_forecast(path)

        return ask

    for name in ("create_record", "create_arrays", "mark"):
        monkeypatch.setattr(record, name, asking(name))
    layouts = xmosaic.store.sink.layouts
    monkeypatch.setattr(xmosaic.store.sink, "layouts", lambda *a: [seen.append(xmosaic.written(path)), layouts(*a)][1])
    break_off(monkeypatch, after=0)
    with pytest.raises(KeyboardInterrupt):
        run(path, time=time, batch_size=2)
    assert len(seen) == 4
    monkeypatch.undo()
    whole = run(path, time=time, batch_size=2)
    for asked in seen:
        xr.testing.assert_identical(asked, xr.zeros_like(xmosaic.written(path)))
    assert whole.sizes["number"] == 5


def test_asking_before_anything_is_there(tmp_path):
    """A folder that only holds the lock."""
    (tmp_path / "xmosaic_record" / "written").mkdir(parents=True)
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StoreError, match="holds no record.*ask again in a moment"):
            xmosaic.written(path)


def test_labels_of_a_store_are_in_memory(tmp_path):
    """Those that say what to read are at hand without dask; fields stay lazy."""
    fc = run(tmp_path / "fc.zarr", time=["2020-02-28", "2020-03-01"])
    for opened in (fc, open_forecast(tmp_path / "fc.zarr")):
        assert not any(coord.chunks for coord in opened.coords.values())
        assert all(field.chunks for field in opened.data_vars.values())
        expected = np.add.outer(fc["time"].values, fc["prediction_timedelta"].values)
        np.testing.assert_array_equal(opened["valid_time"], expected)


def test_record_of_no_forecast(tmp_path):
    with pytest.raises(MosaicError, match="no record of a forecast"):
        xmosaic.written(tmp_path / "nothing.zarr")


@pytest.mark.parametrize("nonsense", [3, {}, b"fc.zarr"])
def test_what_is_no_store_is_refused(nonsense):
    with pytest.raises(ArgumentError, match="can't be used.*a path, a URL, a zarr Store or an icechunk Repository"):
        run(nonsense)


def test_secrets_of_a_url_are_not_repeated():
    from xmosaic.store.place import label

    assert label("s3://key:secret@bucket/fc.zarr?token=secret") == "s3://bucket/fc.zarr"
    with pytest.raises(StoreError) as caught:
        run("nosuch://key:secret@bucket/fc.zarr")
    assert "secret" not in str(caught.value)


# What is kept


def test_selected_levels_and_leads(tmp_path):
    whole = run(None, lead="6D", batch_size=2)
    options = {"levels": 850, "leads": ["5D", "2D"], "variables": ["t2m", "geopotential"], "batch_size": 2}
    for store in (None, tmp_path / "fc.zarr"):
        part = run(store, lead="6D", **options)
        assert list(part) == ["2m_temperature", "geopotential"]
        leads = np.array([2, 5], "timedelta64[D]")
        expected = whole[list(part)].sel(level=[850], prediction_timedelta=leads)
        xr.testing.assert_equal(part.load(), expected)
    steps = []
    forward = type(MODEL.network).forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(MODEL.network), "forward", lambda *a: steps.append(1) or forward(*a))
        run(None, lead="6D", members=1, leads="2D")
    assert len(steps) == 2  # nothing is computed that nobody wants


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [500, 300]}, "levels=.* can't be used. Found 300; expected .*500, 850"),
        ({"levels": "500 hPa"}, "levels='500 hPa' can't be used"),
        ({"leads": ["4D"]}, "leads=.*up to lead='3D'"),
        ({"leads": ["36h"]}, "leads='36h' is no multiple"),
        ({"leads": []}, "one or more"),
        ({"leads": ["1D"], "every": "1D"}, "both say which leads"),
        ({"keep_bits": 12}, "keep_bits= is for what is stored"),
        ({"keep_bits": 0}, "keep_bits=0"),
        ({"keep_bits": 24}, "1 to 23"),
    ],
)
def test_bad_choices_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        run(None, **options)


@pytest.mark.parametrize("keep_bits", [1, 7, 12, 22, 23, None])
def test_rounding_keeps_so_many_bits_to_nearest(keep_bits):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=2000) * 10.0 ** rng.integers(-30, 30, 2000)).astype(np.float32)
    got = round_bits(values, keep_bits)
    bits = keep_bits or 23
    mantissa, exponent = np.frexp(values.astype(np.float64))
    # the mantissa of frexp begins at 1/2: one bit more before the point; rint rounds halves to even
    expected = np.ldexp(np.rint(np.ldexp(mantissa, bits + 1)), exponent - bits - 1).astype(np.float32)
    np.testing.assert_array_equal(got, expected)
    assert (abs(got.astype(np.float64) - values) <= 2.0 ** -(bits + 1) * abs(values.astype(np.float64))).all()
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    np.testing.assert_array_equal(round_bits(special, keep_bits), special)


def test_rounded_stores_are_smaller_and_rounded(tmp_path):
    size = {}
    for bits in (None, 8):
        stored = run(tmp_path / f"{bits}.zarr", lead="10D", keep_bits=bits)
        folder = tmp_path / f"{bits}.zarr" / "mean_sea_level_pressure" / "c"
        size[bits] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    np.testing.assert_array_equal(stored["geopotential"], round_bits(run(None, lead="10D")["geopotential"].values, 8))
    assert "Rounded to 8 bits" in stored.attrs["comment"]
    assert size[8] < 0.7 * size[None]
