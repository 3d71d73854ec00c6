"""Do the accessor, the cards, the pictures and the command line do what the functions do?"""

from __future__ import annotations

import pickle

import dask
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from models import GRID, make_dataset, make_model

import xmosaic
from xmosaic.cli import main
from xmosaic.errors import ArgumentError, DatasetError
from xmosaic.plot import stamps

mpl.use("Agg")
MODEL = make_model()
DS = make_dataset()


@pytest.fixture(scope="module")
def fc():
    return DS.mosaic.forecast("2D", 3, model=MODEL, progress=False)


# Accessor


def test_accessor_delegates(fc):
    xr.testing.assert_identical(
        fc.drop_attrs(), xmosaic.forecast(DS, "2D", 3, model=MODEL, progress=False).drop_attrs()
    )
    assert repr(DS.mosaic.check(MODEL)) == repr(xmosaic.check(DS, MODEL))
    xr.testing.assert_identical(DS.mosaic.to_healpix(4), xmosaic.to_healpix(DS, 4))
    field = DS["2m_temperature"]
    mesh = field.mosaic.to_healpix(nside=4, method="bilinear")
    xr.testing.assert_identical(mesh, xmosaic.to_healpix(field, 4, "bilinear"))
    xr.testing.assert_identical(mesh.mosaic.to_latlon(DS), xmosaic.to_latlon(mesh, DS))
    xr.testing.assert_identical(fc.mosaic.to_dialect("climpred"), xmosaic.to_dialect(fc, "climpred"))


def test_accessor_never_raises_on_being_made():
    for obj in (xr.Dataset(), xr.Dataset({"a": 1}), xr.DataArray(1), xr.DataArray([object()]), DS.isel(time=[])):
        assert repr(obj.mosaic)


def test_accessor_survives_copies_and_dask():
    lazy = DS.chunk(time=1)
    assert repr(lazy.copy().mosaic) == repr(lazy.mosaic)
    assert pickle.loads(pickle.dumps(DS)).mosaic.check(MODEL).ok


# Cards


def test_card_of_a_dataset_says_what_was_understood():
    ds = DS.rename({"2m_temperature": "t2m"}).assign(snow=DS["2m_temperature"])
    text = repr(ds.mosaic)
    pieces = "t2m → 2m_temperature|Not used|snow|5: 2020-02-27|every 1 day|12 longitudes|bundled:|era5:"
    for piece in pieces.split("|"):
        assert piece in text, text
    assert "t2m → 2m_temperature" in ds.mosaic._repr_html_()
    sample = repr(xmosaic.open_sample().mosaic)
    assert "bundled: fits" in sample
    assert "24 members × 10 days take 49 MB" in sample


def test_card_of_a_dataset_reads_no_field():
    def fail(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=fail):
        assert "variables recognised" in repr(DS.chunk(time=1).mosaic)


def test_card_of_a_forecast(fc):
    text = repr(fc.mosaic)
    for piece in ("3-member ensemble", "2020-03-02T00", "2: 1 day to 2 days", "model tests"):
        assert piece in text, text


def test_card_of_a_model():
    text, page = repr(MODEL), MODEL._repr_html_()
    for piece in (
        f"{MODEL.num_parameters:,}",
        "24 h, from 2 times",
        "12 longitudes × 7 latitudes",
        "nside 4 → 2",
        "BSD-3-Clause",
        MODEL.sha256,
    ):
        assert piece in text, text
        assert piece in page, page
    assert "UNTRAINED" not in text
    bundled = repr(xmosaic.load_model("bundled"))
    assert "UNTRAINED" not in bundled
    for heading in ("Training", "Scores", "Limits"):
        assert f"\n{heading} " in bundled


def test_html_is_escaped():
    hostile = DS.rename({"2m_temperature": "<script>alert(1)</script>"})
    assert "<script>" not in hostile.mosaic._repr_html_()
    assert "<script>" not in hostile.mosaic.check(MODEL)._repr_html_()


# Options


def test_options_last_as_long_as_they_should():
    from xmosaic.options import get_option

    with xmosaic.set_options(device="cpu", dtype="float64"):
        assert (get_option("device"), get_option("dtype")) == ("cpu", "float64")
        fc = xmosaic.forecast(DS, "1D", 1, model=MODEL, progress=False)
        assert "float64" in fc.attrs["source"]
    assert get_option("dtype") is None
    with pytest.raises(ArgumentError, match="no option 'colour'.*device"):
        xmosaic.set_options(colour="red")


# Pictures


def test_options_say_what_they_set():
    """As the last line of a notebook's cell; a model by its name, not by its card."""
    with xmosaic.set_options(progress=False) as nothing, (chosen := xmosaic.set_options(model=MODEL, device="cpu")):
        assert nothing is None
        assert repr(chosen) == f"set_options(model={MODEL.name!r}, device='cpu')"


def test_stamps_show_every_member_the_mean_and_the_spread(fc):
    figure = fc.mosaic.plot.stamps("2m_temperature")
    figure.draw_without_rendering()
    titles = [ax.get_title() for ax in figure.axes]
    assert [f"member {i}" in titles for i in (1, 2, 3)] == [True] * 3
    assert {"ensemble mean", "ensemble spread"} <= set(titles)
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert any("[K]" in label for label in labels)
    assert "2020-03-02T00 + 48 h" in figure._suptitle.get_text()
    mesh = figure.axes[0].collections[0]
    expected = fc["2m_temperature"].isel(number=0, prediction_timedelta=-1)
    np.testing.assert_allclose(np.asarray(mesh.get_array()).ravel(), expected.values.ravel())


def test_stamps_choose_what_is_asked_for(fc):
    figure = stamps(fc, "geopotential", level=850, lead="1D", members=2)
    text = figure._suptitle.get_text()
    assert "850 hPa" in text and "+ 24 h" in text
    assert sum(ax.get_title().startswith("member") for ax in figure.axes) == 2
    several = xmosaic.forecast(DS, "1D", 2, model=MODEL, progress=False, time=["2020-02-28", "2020-03-01"])
    assert "2020-03-01T00" in stamps(several, time="2020-03-01")._suptitle.get_text()
    flipped = DS.isel(latitude=slice(None, None, -1)).rename(latitude="lat", longitude="lon")
    stamps(xmosaic.forecast(flipped, "1D", 1, model=MODEL, progress=False)).draw_without_rendering()


def test_stamps_refuse_what_is_not_there(fc):
    with pytest.raises(DatasetError, match="no ensemble forecast.*number and prediction_timedelta"):
        stamps(DS)
    for options in ({"variable": "rain"}, {"variable": "geopotential", "level": 10}, {"lead": "9D"}):
        with pytest.raises(ArgumentError, match="is not in this forecast"):
            stamps(fc, **options)


# Command line


@pytest.fixture
def files(tmp_path):
    MODEL.save(tmp_path / "model.safetensors")
    DS.to_zarr(tmp_path / "in.zarr", zarr_format=3, consolidated=False)
    DS.to_netcdf(tmp_path / "in.nc")
    return tmp_path


@pytest.mark.parametrize("name", ["in.zarr", "in.nc"])
def test_forecast_command_is_the_function(files, name, capsys, fc):
    model, out = str(files / "model.safetensors"), files / "out.zarr"
    code = main(
        ["forecast", str(files / name), str(out), "--lead", "2D", "--members", "3", "--model", model, "--quiet"]
    )
    assert code == 0, capsys.readouterr().err
    got = xr.open_zarr(out, consolidated=False).load()
    xr.testing.assert_identical(got.drop_attrs(), fc.drop_attrs())
    assert "written to" in capsys.readouterr().out


def test_forecast_command_takes_every_option(files):
    model, out = str(files / "model.safetensors"), files / "out.zarr"
    options = "--lead 4D --members 2 --every 2D --seed 3 --batch-size 1 --device cpu --dtype float32 --grid input"
    more = "--quiet --time 2020-02-28 2020-03-01 --variables t2m geopotential_500 --model"
    arguments = [str(files / "in.zarr"), str(out), *options.split(), *more.split(), model]
    assert main(["forecast", *arguments]) == 0
    got = xr.open_zarr(out, consolidated=False)
    assert got["geopotential"].shape == (2, 2, 2, 1, 7, 12)
    assert got.attrs["seed"] == 3


def test_check_command_lists_problems_and_fails(files, capsys):
    model = str(files / "model.safetensors")
    assert main(["check", str(files / "in.zarr"), "--model", model]) == 0
    assert "ready" in capsys.readouterr().out
    DS.drop_vars("2m_temperature").to_netcdf(files / "bad.nc")
    assert main(["check", str(files / "bad.nc"), "--model", model]) == 1
    assert "'2m_temperature' is missing" in capsys.readouterr().out


def test_errors_go_to_standard_error_in_words(files, capsys):
    (files / "junk.nc").write_bytes(b"junk")
    model, known, new = (str(files / name) for name in ("model.safetensors", "in.zarr", "o.zarr"))
    for command, text in (
        (f"check {files}/none.zarr", "There is no"),
        (f"check {files}/junk.nc", "can't be opened"),
        (f"check {files}", "can't be opened"),
        (f"check {known} --model gfs", "There is no model 'gfs'"),
        (f"forecast {known} {known} --lead 1D --members 1 --model {model}", "already holds"),
        (f"forecast {known} {new} --lead 10 --members 1 --model {model}", "no units"),
        (f"convert {files} {new}", "does not say which model"),
    ):
        assert main(command.split()) == 1, command
        captured = capsys.readouterr()
        assert captured.err.startswith("xmosaic: ")
        assert text in captured.err
        assert "Traceback" not in captured.err


def test_explore_command_writes_the_page_of_the_method(files, capsys):
    DS.mosaic.forecast("2D", 3, model=MODEL, time="2020-02-29", progress=False).to_netcdf(files / "fc.nc")
    page = files / "page.html"
    arguments = ["--variables", "msl", "--members", "2", "--leads", "1D", "--quiet"]
    command = ["explore", str(files / "fc.nc"), "--truth", str(files / "in.zarr"), "--html", str(page), *arguments]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("0.1 MB written to ")
    options = {"variables": "msl", "members": 2, "leads": "1D", "progress": False}
    truth = xr.open_zarr(files / "in.zarr", consolidated=False)
    stored = xr.open_dataset(files / "fc.nc")
    assert page.read_text(encoding="utf-8") == stored.mosaic.explore(truth, **options).html
    assert stored["geopotential"].mosaic.explore(members=1, progress=False).nbytes < 200_000
    assert main([*command, "--max-bytes", "1e4"]) == 1
    assert "too large" in capsys.readouterr().err


def test_demo_writes_a_store_and_a_picture_and_verifies(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "new"), "--members", "2", "--lead", "3D", "--quiet"]) == 0
    fc = xr.open_zarr(tmp_path / "new" / "forecast.zarr", consolidated=False)
    assert fc.sizes["number"] == 2
    assert (tmp_path / "new" / "forecast.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    # its last valid time is the sample's last
    assert fc["valid_time"].values[-1] == xmosaic.open_sample()["time"].values[-1]
    rows = [line.split() for line in printed.splitlines() if "temperature 850 hPa [K]" in line]
    shown = {row[4]: [float(cell) for cell in row[5:]] for row in rows[:3]}
    assert set(shown) == {"forecast", "persistence", "climatology"}
    found = fc[["temperature"]].load().mosaic.rmse(xmosaic.open_sample())["temperature"].sel(level=850)
    assert np.allclose(shown["forecast"], found[[0, 2]], rtol=1e-3)
    assert main(["demo", "--out", str(tmp_path / "new"), "--members", "3", "--quiet"]) == 1
    assert "already holds" in capsys.readouterr().err


def test_demo_refuses_a_lead_that_the_sample_cannot_verify(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--members", "1", "--lead", "39D", "--quiet"]) == 1
    assert "at most 38D" in capsys.readouterr().err


def test_sample_is_what_the_bundled_model_needs():
    ds = xmosaic.open_sample()
    assert ds.mosaic.check("bundled").ok
    assert not ds.mosaic.check("bundled").notes
    assert not xmosaic.load_model("bundled").untrained
    assert xmosaic.load_model("bundled").grid.shape == (33, 64)
    assert GRID.shape == (7, 12)
