"""The benchmark: its numbers are the diagnostics', however it is cut, chunked or spread; its tables say them."""

import re
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xmosaic
from xmosaic import diagnostics as dg
from xmosaic import evaluation
from xmosaic.cli import main
from xmosaic.errors import AlignmentWarning, ArgumentError, DatasetError, StoreError
from xmosaic.grid import LatLonGrid

GRID = LatLonGrid.equiangular(12, 7)
LEADS = pd.to_timedelta([1, 2, 3], unit="D")


def _truth(times=12):
    rng = np.random.default_rng(0)
    coords = GRID.coordinates() | {
        "time": pd.date_range("2020-01-01", periods=times),
        "level": ("level", [500, 850], {"units": "hPa"}),
    }
    shape, dims = (times, *GRID.shape), ("time", *GRID.coordinates())
    upper = 5e4 + 100 * rng.normal(size=(times, 2, *GRID.shape))
    return xr.Dataset(
        {
            "geopotential": (("time", "level", *GRID.coordinates()), upper, {"units": "m2 s-2"}),
            "mean_sea_level_pressure": (dims, 1e5 + 100 * rng.normal(size=shape), {"units": "Pa"}),
        },
        coords,
    )


def _forecast(truth, members=4, starts=5, first=0, seed=1):
    rng = np.random.default_rng(seed)
    time = truth["time"].values[first : first + starts]
    valid = xr.DataArray(np.add.outer(time, LEADS.values), dims=("time", "prediction_timedelta"))
    at = truth.sel(time=valid).drop_vars("time").assign_coords(time=time, prediction_timedelta=LEADS)
    fc = at.expand_dims(number=np.arange(1, members + 1))
    return fc.map(lambda da: da + 50 * rng.normal(size=da.shape), keep_attrs=True)


TRUTH = _truth()
FORECAST = _forecast(TRUTH)


def _benchmark(forecasts=FORECAST, truth=TRUTH, **options):
    return xmosaic.benchmark(forecasts, truth, progress=False, **{"resamples": 50, **options})


RESULT = _benchmark()


# ------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("score", ["rmse", "bias", "mae", "crps", "spread", "spread_skill"])
def test_scores_are_the_diagnostics(score):
    expected = getattr(dg, score)(FORECAST, TRUTH, confidence=0.95, resamples=50)
    for name in FORECAST:
        ours = RESULT[name].sel(score=score, forecast="forecast")
        np.testing.assert_allclose(ours, expected[name].transpose(*ours.dims), rtol=1e-10)
    assert RESULT["score_units"].sel(score=score) == ("1" if score == "spread_skill" else "as the variable")


def test_spectral_ratio_is_the_diagnostics():
    expected = dg.spectral_ratio(FORECAST, TRUTH, dim=["time", "number"])
    for name in FORECAST:
        ours = RESULT[f"{name}_spectral_ratio"].sel(forecast="forecast", bound="estimate")
        np.testing.assert_allclose(ours, expected[name].transpose(*ours.dims), rtol=1e-10)
    low, high = (RESULT["geopotential_spectral_ratio"].sel(bound=b) for b in ("lower", "upper"))
    assert (low < high).all()


def test_mass_drift_is_the_diagnostics():
    drift = dg.mass_drift(FORECAST, start=TRUTH)["mass_drift"]
    ours = RESULT.sel(forecast="forecast")
    np.testing.assert_allclose(ours["mass_drift"].sel(bound="estimate"), drift.mean(("time", "number")), rtol=1e-9)
    np.testing.assert_allclose(ours["mass_drift_max"], drift.max(("time", "number")))
    assert ours["mass_drift"].attrs["units"] == "hPa"
    assert ours["mass_drift_percent"].attrs["units"] == "%"


def test_block_size_does_not_matter(monkeypatch):
    monkeypatch.setattr(evaluation, "_BLOCK_BYTES", 1)
    xr.testing.assert_allclose(_benchmark(), RESULT, rtol=1e-12)


def test_lazy_is_eager():
    lazy = _benchmark(FORECAST.chunk({"time": 1, "number": 2, "prediction_timedelta": 1}), TRUTH.chunk({"time": 3}))
    xr.testing.assert_allclose(lazy, RESULT, rtol=1e-12)


def test_distributed_is_local():
    from distributed import Client

    with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None):
        spread_out = _benchmark(FORECAST.chunk({"time": 1}), TRUTH.chunk({"time": 1}))
    xr.testing.assert_allclose(spread_out, RESULT, rtol=1e-12)


def test_error_of_a_block_reaches_the_user():
    holed = TRUTH.copy(deep=True)
    holed["geopotential"][3] = np.nan
    with pytest.raises(DatasetError, match="'geopotential' has NaN"):
        _benchmark(FORECAST, holed, nan_policy="raise")


# ---------------------------------------------------------------------------------------------- several forecasts


def test_forecasts_are_compared_on_common_starts():
    other = _forecast(TRUTH, members=3, starts=4, first=2, seed=2)
    with pytest.warns(AlignmentWarning, match="2 starts are left out"):
        both = _benchmark({"ours": FORECAST, "other": other})
    np.testing.assert_array_equal(both["members"], [4, 3])
    np.testing.assert_array_equal(both["samples"], [3, 3, 3])
    for name, fc in {"ours": FORECAST.isel(time=slice(2, None)), "other": other.isel(time=slice(0, 3))}.items():
        expected = dg.crps(fc, TRUTH)["geopotential"]
        ours = both["geopotential"].sel(forecast=name, score="crps", bound="estimate")
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_single_forecast_beside_an_ensemble():
    single = dg.persistence(TRUTH, like=FORECAST)
    both = _benchmark({"ours": FORECAST, "persistence": single})["geopotential"].sel(forecast="persistence")
    assert both.sel(score=["spread", "spread_skill"]).isnull().all()
    np.testing.assert_allclose(both.sel(score="crps"), both.sel(score="mae"))
    expected = dg.rmse(single, TRUTH)["geopotential"]
    np.testing.assert_allclose(both.sel(score="rmse", bound="estimate"), expected)


def test_one_start_has_no_interval():
    one = _benchmark(FORECAST.isel(time=0))
    assert one["geopotential"].sel(bound=["lower", "upper"]).isnull().all()
    np.testing.assert_allclose(
        one["geopotential"].sel(forecast="forecast", score="crps", bound="estimate"),
        dg.crps(FORECAST.isel(time=0), TRUTH)["geopotential"],
    )
    assert one.attrs["confidence"] == "none: one start"


def test_leads_without_truth():
    with pytest.warns(AlignmentWarning, match="2020-01-05"):
        result = _benchmark(FORECAST, TRUTH.isel(time=slice(0, 4)))
    np.testing.assert_array_equal(result["samples"], [3, 2, 1])
    expected = dg.crps(FORECAST.isel(time=slice(0, 1)), TRUTH)["geopotential"].isel(prediction_timedelta=2)
    ours = result["geopotential"].sel(forecast="forecast", score="crps", bound="estimate").isel(prediction_timedelta=2)
    np.testing.assert_allclose(ours, expected)


def test_what_can_not_be_scored():
    with pytest.raises(ArgumentError, match="nothing to score"):
        _benchmark({})
    with pytest.raises(ArgumentError, match="no score 'crp'"):
        _benchmark(scores=["crp"])
    with pytest.raises(ArgumentError, match="no option 'skipna'"):
        _benchmark(skipna=True)
    with pytest.raises(DatasetError, match="no start in common"):
        _benchmark({"a": FORECAST.isel(time=[0]), "b": FORECAST.isel(time=[1])})
    with pytest.raises(DatasetError, match="no 'prediction_timedelta'"):
        _benchmark(FORECAST.isel(prediction_timedelta=0, drop=True))


def test_grid_without_spectra_says_so_before_the_work():
    region = {"latitude": slice(2, 6), "longitude": slice(0, 6)}
    with pytest.raises(DatasetError, match=r"'forecast' has no spectra.*spectra=False"):
        _benchmark(FORECAST.isel(region), TRUTH.isel(region))


def test_parts_can_be_left_out():
    result = _benchmark(FORECAST[["geopotential"]], spectra=False)
    assert list(result) == ["geopotential"]
    result = _benchmark(spectra=False, mass=False, scores="crps", confidence=None)
    assert set(result) == set(FORECAST)
    assert result.sizes["score"] == 1


def test_progress_bar(capsys):
    _benchmark()
    assert capsys.readouterr().err == ""


def test_caller_names_of_dimensions_are_understood():
    theirs = FORECAST.rename(time="init_time", prediction_timedelta="lead_time", number="realization")
    xr.testing.assert_allclose(_benchmark(theirs), RESULT)


# ------------------------------------------------------------------------------------------------------ tables


def test_markdown_says_the_numbers():
    text = xmosaic.to_markdown(RESULT, scores="crps", leads=["2D"])
    middle, low, high = (
        RESULT["geopotential"].sel(score="crps", level=500, forecast="forecast").isel(prediction_timedelta=1).values
    )
    (row,) = [line for line in text.splitlines() if line.startswith("| geopotential 500 hPa [m2 s-2]")]
    assert row.split("|")[3].strip() == f"{middle:#.4g} ({low:#.4g} … {high:#.4g})"
    assert "**Drift of area-mean pressure since the start**" in text
    assert "4" in re.search(r"members: (.*)", text)[1]


def test_markdown_tables_are_well_formed():
    lines = [line for line in xmosaic.to_markdown(RESULT).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 8 * 2 + 6 * 2 + 2 + 2  # tables of six scores, of power and of mass; two fields or units each


def test_what_is_not_in_a_benchmark():
    for options, text in (
        ({"scores": "acc"}, "'acc'"),
        ({"leads": ["9D"]}, "9 days"),
        ({"rows": [("geopotential", None)]}, "level None"),
    ):
        with pytest.raises(ArgumentError, match=text):
            xmosaic.to_markdown(RESULT, **options)
    with pytest.raises(DatasetError, match="no benchmark"):
        xmosaic.to_markdown(FORECAST)


def test_report_is_one_file(tmp_path):
    named = RESULT.assign_coords(forecast=["<ours> & theirs"])
    page = xmosaic.write_report(named, tmp_path / "report.html").read_text()
    assert page.count("<img") == page.count("data:image/png;base64,") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<ours>" not in page
    assert "&lt;ours&gt; &amp; theirs" in page
    with pytest.raises(StoreError, match="can't be written"):
        xmosaic.write_report(RESULT, tmp_path / "nowhere" / "report.html")


# ------------------------------------------------------------------------------------------------ command line


def _stores(folder):
    FORECAST.to_zarr(folder / "fc.zarr")
    FORECAST.isel(number=slice(0, 2)).to_netcdf(folder / "small.nc")
    TRUTH.to_zarr(folder / "truth.zarr")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_evaluate_command(tmp_path, capsys):
    _stores(tmp_path)
    out = tmp_path / "out"
    given = [str(tmp_path / "fc.zarr"), f"two={tmp_path / 'small.nc'}", "--truth", str(tmp_path / "truth.zarr")]
    assert main(["evaluate", *given, "--out", str(out), "--persistence", "--climatology", given[-1], "--quiet"]) == 0
    assert {p.name for p in out.iterdir()} == {"scores.nc", "scores.md", "report.html"}
    with xr.open_dataset(out / "scores.nc", decode_timedelta=True) as stored:
        assert stored["forecast"].values.tolist() == ["fc", "two", "persistence", "climatology"]
        expected = dg.crps(FORECAST, TRUTH)["geopotential"]
        ours = stored["geopotential"].sel(forecast="fc", score="crps", bound="estimate")
        np.testing.assert_allclose(ours, expected)
    printed = capsys.readouterr()
    assert "| geopotential 500 hPa [m2 s-2] | two |" in printed.out
    assert printed.err == ""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_evaluate_command_says_what_is_wrong(tmp_path, capsys):
    _stores(tmp_path)
    fc, truth = str(tmp_path / "fc.zarr"), str(tmp_path / "truth.zarr")
    for arguments, text in (
        ([fc, fc, "--truth", truth], "called 'fc'"),
        ([fc, "--truth", str(tmp_path / "none.zarr")], "There is no"),
        ([fc, "--truth", truth, "--scores", "crp"], "no score 'crp'"),
        ([fc, "--truth", truth, "--out", str(tmp_path / "small.nc")], "can't be made"),
    ):
        assert main(["evaluate", *arguments, "--quiet"]) == 1
        assert text in capsys.readouterr().err
    shutil.rmtree(tmp_path / "fc.zarr")


def test_no_warning_without_cause():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _benchmark()


def test_one_start_opened_from_a_store_scores_like_the_one_in_memory(tmp_path):
    """Its valid times lie in one chunk, its fields in one for each lead."""
    one = FORECAST.isel(time=0)
    valid = one["time"] + one["prediction_timedelta"]
    one.chunk(prediction_timedelta=1).assign_coords(valid_time=valid).to_zarr(tmp_path / "fc.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "fc.zarr", consolidated=False, decode_timedelta=True)
    with pytest.raises(ValueError, match="inconsistent chunks"):
        _ = stored.chunks
    xr.testing.assert_allclose(dg.rmse(stored, TRUTH).compute(), dg.rmse(one, TRUTH))
