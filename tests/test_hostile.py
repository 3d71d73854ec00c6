"""Do damaged or hostile files, stores, clocks, seeds and networks end right or in our own error, and soon?"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from damage import DATA, checkpoints, flipped, pieces, stores
from models import make_dataset, make_model

import xmosaic
from xmosaic.cli import main
from xmosaic.errors import MosaicError, StoreError
from xmosaic.store import IncompleteForecast

MODEL = make_model()
DS = make_dataset()
CHECKPOINTS, STORES = checkpoints(), stores()


def forecast(ds: xr.Dataset = DS, lead: str = "1D", members: int = 2, **options: Any) -> xr.Dataset:
    return xmosaic.forecast(ds, lead, members, **({"model": MODEL, "progress": False} | options))


def soon(work: Any, limit: float = 30) -> Any:
    """What a call returns, or the exception that ends it; a call that hangs is left behind and fails the test."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    assert result, "it hangs"
    return result[0]


# ----------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    return MODEL.save(tmp_path_factory.mktemp("model") / "m.safetensors").read_bytes()


def test_there_are_hundreds_of_checkpoints_and_stores():
    assert len(CHECKPOINTS) >= 200
    assert len(STORES) >= 230


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_and_nothing_in_it_is_run(tmp_path, weights, name):
    path = tmp_path / "folder" / "w.safetensors"
    path.parent.mkdir()
    path.write_bytes(weights)
    before = Path.cwd()
    try:
        CHECKPOINTS[name](path)
    finally:
        os.chdir(before)
    assert not path.is_file() or path.read_bytes() != weights  # it is a change
    found = soon(lambda: xmosaic.load_model(path))
    assert isinstance(found, MosaicError), repr(found)
    assert 20 < len(str(found)) < 2000
    assert not list(tmp_path.rglob("mark"))


# ---------------------------------------------------------------------------------------------------------- stores

STARTS = ["2020-02-28", "2020-03-01"]
OPTIONS: dict[str, Any] = {"lead": "3D", "members": 3, "time": STARTS, "batch_size": 2, "variables": list(DATA)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, xr.Dataset]:
    path = tmp_path_factory.mktemp("whole") / "fc.zarr"
    return path, forecast(store=path, **OPTIONS).load()


@pytest.fixture(scope="module")
def undamaged(whole) -> dict[str, bytes | None]:
    return tree(whole[0])


def tree(path: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


@pytest.fixture
def damaged(tmp_path, whole, undamaged, request) -> Path:
    path = tmp_path / "fc.zarr"
    shutil.copytree(whole[0], path)
    STORES[request.param](path)
    assert not path.is_dir() or tree(path) != undamaged  # it is a change
    return path


def assert_right_or_refused(found: Any, expected: xr.Dataset, name: str) -> None:
    """The forecast itself, or what is left of it and said to be so, or our own error."""
    if isinstance(found, xr.Dataset):
        xr.testing.assert_equal(found.drop_vars("written", errors="ignore"), expected)
    else:
        assert isinstance(found, MosaicError), repr(found)
    # digests of inputs are of no use to whoever reads, nor is a record that a store is whole where all of it is there
    if name.startswith("bits_turned") and "record" not in name:
        assert isinstance(found, StoreError), repr(found)


GONE_ON_WITH = list(STORES)[::3]


@pytest.mark.parametrize(("damaged", "name"), [(n, n) for n in STORES if n not in GONE_ON_WITH], indirect=["damaged"])
@pytest.mark.filterwarnings("ignore:Object at .* is not recognized")
def test_a_damaged_store_opens_right_or_not_at_all(damaged, name, whole):
    def opened() -> xr.Dataset:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompleteForecast)
            ds = xmosaic.open_forecast(damaged)
        done = ds["written"] if "written" in ds.coords else True
        return ds.load().where(done, whole[1])  # what isn't written is said

    assert_right_or_refused(soon(opened), whole[1], name)


@pytest.mark.parametrize("damaged", ["bits_turned: a bit of xmosaic_record/written at 1/2"], indirect=True)
def test_a_bit_that_has_turned_in_the_record_of_a_part_is_said(damaged):
    pieces(damaged, "xmosaic_record/written")[0].unlink()
    for call in (xmosaic.written, xmosaic.open_forecast, lambda path: forecast(store=path, **OPTIONS)):
        with pytest.raises(StoreError, match="checksum"):
            call(damaged)


@pytest.mark.parametrize("damaged", ["bits_turned: a bit of a piece of geopotential at 9/24"], indirect=True)
def test_a_bit_that_has_turned_is_said_with_the_place(damaged):
    with pytest.raises(StoreError, match=r"A piece of geopotential in the store .*fc.zarr can't be read.*checksum"):
        xmosaic.open_forecast(damaged).load()
    with pytest.raises(ValueError, match="checksum"):  # another reader isn't given it either
        xr.open_zarr(damaged).load()


@pytest.mark.parametrize("name", ["geopotential", "2m_temperature"])
def test_no_byte_of_a_piece_can_change_unnoticed(tmp_path, whole, name):
    path = tmp_path / "fc.zarr"
    shutil.copytree(whole[0], path)
    file = pieces(path, name)[0]
    held, rng = file.read_bytes(), np.random.default_rng(0)
    for place in rng.choice(len(held), 30, replace=False):
        file.write_bytes(flipped(held, int(place), int(rng.integers(8))))
        with pytest.raises(StoreError, match="can't be read"):
            xmosaic.open_forecast(path)[name].load(scheduler="synchronous")


def test_a_store_without_checksums_is_read_and_gone_on_with(tmp_path, whole, monkeypatch):
    """One that an earlier version began."""
    path = tmp_path / "fc.zarr"
    with monkeypatch.context() as patch:
        for module in ("encoding", "record", "sink"):
            patch.setattr(f"xmosaic.store.{module}.sealed", lambda *codecs: codecs or "auto")
        forecast(store=path, **OPTIONS)
    codecs = json.loads((path / "geopotential" / "zarr.json").read_text())["codecs"][0]["configuration"]["codecs"]
    assert [c["name"] for c in codecs] == ["bytes", "blosc"]
    for file in [*pieces(path, "xmosaic_record/written")[1:], *pieces(path, "geopotential")[1:]]:
        file.unlink()  # as a kill would have left it
    assert not xmosaic.written(path).all()
    xr.testing.assert_equal(forecast(store=path, **OPTIONS).load(), whole[1])
    xr.testing.assert_equal(xmosaic.open_forecast(path).load(), whole[1])


@pytest.mark.parametrize(("damaged", "name"), [(n, n) for n in GONE_ON_WITH], indirect=["damaged"])
@pytest.mark.filterwarnings("ignore:Object at .* is not recognized")
def test_a_damaged_store_is_gone_on_with_rightly_or_not_at_all(damaged, name, whole):
    found = soon(lambda: forecast(store=damaged, **OPTIONS).load())
    assert_right_or_refused(found, whole[1], name)
    if isinstance(found, MosaicError) and damaged.is_file():
        assert isinstance(found, StoreError)


# ------------------------------------------------------------------------------------------- files on the command line


@pytest.mark.parametrize("content", [b"", b"text", b"CDF\x01", b"\x89HDF\r\n\x1a\n" + bytes(50), b"GRIB" + bytes(50)])
@pytest.mark.parametrize("command", ["check", "forecast", "evaluate"])
def test_the_command_line_says_that_a_file_is_none(tmp_path, capsys, content, command):
    path = tmp_path / "in.nc"
    path.write_bytes(content)
    more = {
        "check": [],
        "forecast": [str(tmp_path / "out.zarr"), "--lead", "1D", "--members", "1"],
        "evaluate": ["--truth", str(path), "--out", str(tmp_path / "out")],
    }[command]
    assert main([command, str(path), *more]) == 1
    assert "can't be opened" in capsys.readouterr().err
    assert not (tmp_path / "out.zarr").exists()


# ------------------------------------------------------------------------------------------------ clocks and seeds


@pytest.mark.parametrize("first", ["1678-01-01", "1899-12-30", "1969-12-30", "2020-02-27", "2100-02-26", "2262-03-01"])
def test_every_year_that_nanoseconds_hold_has_its_own_labels(first):
    """Across leap days, 1970 and years that look like leap years."""
    fc = forecast(make_dataset(times=first, periods=3), "3D")
    start = np.datetime64(first, "D") + 2
    assert fc["time"].values == start
    np.testing.assert_array_equal(fc["valid_time"].values, start + np.arange(1, 4).astype("timedelta64[D]"))
    assert all(np.isfinite(fc[name]).any() for name in fc.data_vars)


@pytest.mark.parametrize(
    ("first", "lead"), [("1677-09-22", "3D"), ("2262-04-08", "1D"), ("2262-04-09", "3D"), ("2262-04-08", "9D")]
)
def test_labels_at_the_border_are_right_or_refused(first, lead):
    ds = make_dataset(times=first, periods=3)
    try:
        fc = forecast(ds, lead, variables="t2m")
    except MosaicError as error:
        assert "nanoseconds" in str(error)
    else:
        steps = np.arange(1, fc.sizes["prediction_timedelta"] + 1).astype("timedelta64[D]")
        expected = np.datetime64(first, "s") + np.timedelta64(2, "D") + steps
        np.testing.assert_array_equal(fc["valid_time"].values.astype("datetime64[s]"), expected)


@pytest.mark.parametrize("shift", ["1ns", "1us", "500ms", "1s", "90s", "11h59min59.999999s"])
def test_times_keep_their_fractions_of_a_second(shift):
    time = DS.indexes["time"].as_unit("ns") + pd.Timedelta(shift)
    fc = forecast(DS.assign_coords(time=time))
    assert fc["time"].values.astype("datetime64[ns]") == time[-1].to_datetime64()
    assert fc["valid_time"].values[0].astype("datetime64[ns]") == (time[-1] + pd.Timedelta("1D")).to_datetime64()


def test_a_start_is_only_what_it_says():
    with pytest.raises(MosaicError, match="history of the start 2020-03-02 00:00:00.000001"):
        forecast(time="2020-03-02T00:00:00.000001")


@pytest.mark.parametrize(
    "seed", [-1, 2**64, 10**30, 1.0, True, False, "0", None, np.int64(-1), np.float64(1), [0], np.nan]
)
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(MosaicError, match="seed=.*Expected a whole number from 0 to"):
        forecast(seed=seed)


@pytest.mark.parametrize("seed", [np.int8(5), np.uint64(5), np.int32(5)])
def test_seeds_of_any_whole_number_are_the_same(seed):
    xr.testing.assert_equal(forecast(seed=seed), forecast(seed=5))


@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 - 1])
def test_large_seeds_are_written_as_they_are(tmp_path, seed):
    fc = forecast(seed=seed, store=tmp_path / "fc.zarr")
    assert int(fc.attrs["seed"]) == seed
    fc.to_netcdf(tmp_path / "fc.nc")
    with xr.open_dataset(tmp_path / "fc.nc", decode_timedelta=True) as read:
        assert int(read.attrs["seed"]) == seed


# --------------------------------------------------------------------------------------------------------- secrets

SECRET = "hunter2TOKEN"


def everything(path: Path) -> bytes:
    return b"".join(p.read_bytes() for p in path.rglob("*") if p.is_file())


def test_no_secret_is_logged_printed_raised_or_stored(tmp_path, monkeypatch, caplog, capsys):
    """Of URLs, storage options, encodings and the environment."""
    import fsspec

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    fsspec.filesystem("memory", token=SECRET)  # as s3fs and gcsfs keep theirs
    source = f"memory://user:{SECRET}@host/in.zarr"
    ds = DS.copy()
    for name in ds.variables:
        ds[name].encoding["source"] = f"s3://key:{SECRET}@bucket/in.zarr"
    ds.encoding["source"], ds.attrs["source"] = source, source
    said = []
    fc = forecast(ds, store=tmp_path / "fc.zarr")
    said += [repr(fc), str(fc.attrs), repr(xmosaic.check(ds, MODEL)), repr(fc.mosaic)]
    for url in (
        f"s3://k:{SECRET}@nowhere/fc.zarr",
        f"https://u:{SECRET}@localhost:1/fc?sig={SECRET}",
        f"nosuch://a:{SECRET}@b/c",
    ):
        for call in (lambda u=url: forecast(store=u), lambda u=url: xmosaic.open_forecast(u)):
            error = soon(call)
            assert isinstance(error, MosaicError), repr(error)
            said.append(str(error))
    out = capsys.readouterr()
    said += [out.out, out.err, caplog.text]
    assert not [text for text in said if SECRET in text]
    assert SECRET.encode() not in everything(tmp_path)


def test_the_command_line_repeats_no_secret(capsys):
    assert main(["check", f"nosuch://a:{SECRET}@b/c.zarr?token={SECRET}"]) == 1
    assert SECRET not in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- network

_GUARD = """
import socket, sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        if not (event == "socket.connect" and isinstance(args[1], (str, bytes))):
            raise SystemExit(f"the network was asked for: {event} {args[1:]}")
sys.addaudithook(refuse)
import os
os.environ["XMOSAIC_OFFLINE"] = sys.argv[1]
"""


def guarded(code: str, offline: str = "0") -> str:
    """What a process prints that ends as soon as it asks for the network."""
    done = subprocess.run(
        [sys.executable, "-c", _GUARD + textwrap.dedent(code), offline], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_no_network_unless_asked_for(tmp_path):
    """Import, a forecast into a store, its scores, a report and what the command line says."""
    out = guarded(f"""
    import xmosaic
    from xmosaic.cli import main
    ds = xmosaic.open_sample()
    fc = ds.mosaic.forecast("2D", 2, time=ds.time.values[-5], store={str(tmp_path / "fc.zarr")!r}, progress=False)
    print(xmosaic.open_forecast({str(tmp_path / "fc.zarr")!r}).mosaic)
    print(float(fc.mosaic.rmse(ds)["2m_temperature"].mean()))
    xmosaic.write_report(xmosaic.benchmark(fc, ds, progress=False), {str(tmp_path / "r.html")!r})
    xmosaic.load_model("bundled")
    assert main(["demo", "--out", {str(tmp_path)!r}, "--members", "2", "--lead", "1D", "--quiet"]) == 0
    """)
    assert "forecast.png" in out
    # and what it wrote asks a browser for nothing
    page = (tmp_path / "r.html").read_text()
    assert 'src="http' not in page and "@import" not in page and "<link" not in page


def test_the_guard_would_notice():
    with pytest.raises(AssertionError, match="the network was asked for"):
        guarded("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')")


def test_offline_forbids_the_hub():
    out = guarded(
        """
        import xmosaic
        try:
            xmosaic.load_model("era5")
        except xmosaic.CheckpointError as error:
            print(error)
        """,
        offline="1",
    )
    assert "can't be fetched" in out


@pytest.mark.parametrize("url", ["s3://bucket/fc.zarr", "https://host/fc.zarr", "simplecache::gs://bucket/fc.zarr"])
def test_offline_forbids_stores_behind_the_network(monkeypatch, url):
    monkeypatch.setenv("XMOSAIC_OFFLINE", "1")
    for call in (lambda: forecast(store=url), lambda: xmosaic.open_forecast(url), lambda: xmosaic.written(url)):
        with pytest.raises(StoreError, match="which XMOSAIC_OFFLINE=1 forbids"):
            call()
