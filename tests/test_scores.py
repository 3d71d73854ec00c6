"""Scores: published numbers, closed forms, other packages, brute force, statistics of the estimators, labels."""

import itertools
import warnings
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import properscoring
import pytest
import scores as scores_package
import xarray as xr
import xskillscore
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic import diagnostics as dg
from xmosaic.errors import AlignmentWarning, ArgumentError, DatasetError
from xmosaic.grid import LatLonGrid, area_weights
from xmosaic.healpix import mesh_coordinates

DATA = Path(__file__).parents[2] / "shared" / "data"
LEADS = pd.to_timedelta([1, 2, 5], unit="D")
GRID = LatLonGrid.equiangular(8, 5)


def _file(name):
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not there")
    return DATA / name


def _truth(seed=0, times=14):
    rng = np.random.default_rng(seed)
    time = pd.date_range("2020-01-01", periods=times)
    coords = GRID.coordinates() | {"time": time, "level": ("level", [500, 850], {"units": "hPa"})}
    upper, surface = 5e4 + 100 * rng.normal(size=(times, 2, 5, 8)), 280 + rng.normal(size=(times, 5, 8))
    return xr.Dataset(
        {
            "geopotential": (("time", "level", *GRID.coordinates()), upper, {"units": "m2 s-2"}),
            "2m_temperature": (("time", *GRID.coordinates()), surface, {"units": "K"}),
        },
        coords,
    )


def _forecast(truth, members=5, starts=6, seed=1, noise=1.0):
    """Truth at the valid times and noise, laid out as a forecast."""
    rng = np.random.default_rng(seed)
    time = truth["time"].values[:starts]
    valid = xr.DataArray(np.add.outer(time, LEADS.values), dims=("time", "prediction_timedelta"))
    at = truth.sel(time=valid).drop_vars("time").assign_coords(time=time, prediction_timedelta=LEADS)
    fc = at.expand_dims(number=np.arange(1, members + 1))
    return fc.map(lambda da: da + noise * rng.normal(size=da.shape), keep_attrs=True)


TRUTH = _truth()
FORECAST = _forecast(TRUTH)
# a truth that is not what the members scatter around
OTHER = _truth(seed=5)


def _aligned(truth=OTHER, forecast=FORECAST):
    """The twin's own alignment: label by label."""
    rows = [[truth.sel(time=t + lead) for lead in LEADS.values] for t in forecast["time"].values]
    rows = [xr.concat([r.drop_vars("time") for r in row], "prediction_timedelta") for row in rows]
    return xr.concat(rows, "time").assign_coords(time=forecast["time"], prediction_timedelta=LEADS)


def _area_mean(da, dims=("time", "latitude", "longitude")):
    return da.weighted(area_weights(da)).mean(dims)


# ------------------------------------------------------------------------------------------------ published numbers


def _stations():
    table = pd.read_csv(_file("srft_ensemble_2004.csv.gz"))
    table = table[table["date"] == 2004013100].dropna()
    members = ["CMCG", "ETA", "GASP", "GFS", "JMA", "NGPS", "TCWB", "UKMO"]
    return (
        xr.DataArray(table[members].values, dims=("station", "number")),
        xr.DataArray(table["observation"].values, dims="station"),
    )


def test_published_scores_of_a_real_ensemble():
    """Of ensembleBMA's surface temperatures, to the last digit that is printed."""
    forecast, truth = _stations()
    assert f"{dg.crps(forecast, truth, fair=False).item():.6f}" == "1.590730"
    assert f"{dg.mae(forecast, truth, of='median').item():.6f}" == "1.929339"
    assert f"{dg.crps(forecast, truth).item():.7f}" == "1.5196026"


def test_identities_of_published_scores():
    """GenCast's stored scores obey the formulas that our scores combine their sums by."""
    scores = xr.open_dataset(_file("gencast_1deg_scores_2020.nc"))
    from xmosaic.diagnostics.scores import SCORES

    get = {str(m): scores.sel(metric=m).to_dataarray() for m in scores["metric"].values}
    means = {"squared_error": get["mse"], "variance": get["var"]}
    np.testing.assert_allclose(SCORES["spread_skill"].combine(means, 50), get["spskr"], rtol=1e-4)
    np.testing.assert_allclose(SCORES["fair_rmse"].combine(means, 50), get["frmse"], rtol=1e-4)
    # the fair CRPS is below the biased one by spread/M, and half the mean distance is at most σ/√π
    distance = (get["crps"] - get["fcrps"]) * 50
    assert (distance > 0).all()
    assert (distance < get["var"] ** 0.5).all()


def test_closed_form():
    members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    assert dg.crps(members, truth, fair=False).item() == pytest.approx(5 / 6 - 4 / 9, abs=1e-15)
    assert dg.crps(members, truth).item() == pytest.approx(5 / 6 - 4 / 6, abs=1e-15)
    assert dg.bias(members, truth).item() == 0.5
    assert dg.rmse(members, truth).item() == 0.5
    assert dg.spread(members, truth).item() == 1.0
    assert dg.spread_skill(members, truth).item() == pytest.approx((4 / 3 / 0.25) ** 0.5)
    assert dg.rmse(members, truth, fair=True).item() == 0  # 0.25 - 1/3 is below what an infinite ensemble can have
    assert dg.rmse(members, xr.DataArray(1.0), fair=True).item() == pytest.approx((1 - 1 / 3) ** 0.5)


# ------------------------------------------------------------------------------------------------ other packages


def _random(members=7, points=400, seed=0):
    rng = np.random.default_rng(seed)
    return (
        xr.DataArray(rng.normal(size=(members, points)), dims=("member", "point"), coords={"member": range(members)}),
        xr.DataArray(rng.normal(size=points), dims="point"),
    )


def test_equal_to_xskillscore_and_properscoring():
    forecast, truth = _random()
    biased = dg.crps(forecast, truth, fair=False)
    assert biased.item() == pytest.approx(xskillscore.crps_ensemble(truth, forecast).item(), rel=1e-12)
    each = dg.crps(forecast, truth, dim=[], fair=False)
    np.testing.assert_allclose(each, properscoring.crps_ensemble(truth.values, forecast.values.T), rtol=1e-10)
    counts = xskillscore.rank_histogram(truth, forecast.rename(member="member"))
    np.testing.assert_allclose(dg.rank_histogram(forecast, truth), counts / truth.size)
    assert dg.brier(forecast, truth, 0.3, fair=True).item() == pytest.approx(
        xskillscore.threshold_brier_score(truth, forecast, 0.3).item()
        - (lambda p: (p * (1 - p)).mean().item() / 6)((forecast > 0.3).mean("member"))
    )
    assert dg.brier(forecast, truth, 0.3, fair=False).item() == pytest.approx(
        properscoring.threshold_brier_score(truth.values, forecast.values.T, 0.3).mean()
    )
    assert dg.rmse(forecast, truth).item() == pytest.approx(xskillscore.rmse(forecast.mean("member"), truth).item())
    assert dg.mae(forecast, truth).item() == pytest.approx(xskillscore.mae(forecast.mean("member"), truth).item())


def test_equal_to_scores():
    forecast, truth = _random(seed=1)
    for fair, method in ((True, "fair"), (False, "ecdf")):
        theirs = scores_package.probability.crps_for_ensemble(forecast, truth, "member", method=method)
        assert dg.crps(forecast, truth, fair=fair).item() == pytest.approx(theirs.item(), rel=1e-12)
        theirs = scores_package.probability.tail_tw_crps_for_ensemble(
            forecast, truth, "member", threshold=0.4, tail="upper", method=method
        )
        ours = dg.threshold_weighted_crps(forecast, truth, 0.4, fair=fair)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    theirs = scores_package.probability.brier_score_for_ensemble(
        forecast, truth, "member", event_thresholds=0.4, event_threshold_operator=__import__("operator").gt
    )
    assert dg.brier(forecast, truth, 0.4).item() == pytest.approx(theirs.item(), rel=1e-12)


def test_reliability_is_equal_to_xskillscore():
    """With edges in quarters, which are exact: thirds of rounding move a share that lies on an edge."""
    forecast, truth = _random(members=8, points=3000, seed=2)
    edges = np.linspace(0, 1, 5)
    theirs = xskillscore.reliability(truth > 0, (forecast > 0).mean("member"), probability_bin_edges=edges)
    ours = dg.reliability(forecast, truth, 0.0, bins=4)
    np.testing.assert_allclose(ours.sel(quantity="observed_frequency"), theirs, rtol=1e-12)
    np.testing.assert_allclose(ours.sel(quantity="share"), theirs["samples"] / 3000, rtol=1e-12)


def test_reliability_against_brute_force():
    forecast, truth = _random(members=10, points=3000, seed=2)
    share = (forecast > 0).mean("member")
    ours = dg.reliability(forecast, truth, 0.0, bins=5)
    for k, (low, high) in enumerate(itertools.pairwise([0.0, 0.2, 0.4, 0.6, 0.8, 1.1])):
        here = (share >= low - 1e-9) & (share < high - 1e-9)
        assert ours.sel(quantity="observed_frequency")[k] == pytest.approx((truth > 0).where(here).mean().item())
        assert ours.sel(quantity="forecast_probability")[k] == pytest.approx(share.where(here).mean().item())
        assert ours.sel(quantity="share")[k] == pytest.approx(here.mean().item())


# ---------------------------------------------------------------------------------------------- brute-force twins


def _crps_by_hand(x, y, fair):
    m = len(x)
    pairs = sum(np.abs(x[i] - x[j]) for i in range(m) for j in range(m))
    return sum(np.abs(x[i] - y) for i in range(m)) / m - pairs / (2 * m * (m - 1) if fair else 2 * m * m)


def _expected(name):
    x, y = FORECAST, _aligned()
    mean = x.mean("number")
    variance = ((x - mean) ** 2).sum("number") / 4
    error = mean - y
    if name == "crps":
        return _area_mean(xr.Dataset({n: _crps_by_hand(list(x[n]), y[n], True) for n in x}))
    if name == "biased_crps":
        return _area_mean(xr.Dataset({n: _crps_by_hand(list(x[n]), y[n], False) for n in x}))
    return {
        "rmse": lambda: _area_mean(error**2) ** 0.5,
        "fair_rmse": lambda: (_area_mean(error**2) - _area_mean(variance) / 5) ** 0.5,
        "bias": lambda: _area_mean(error),
        "mae": lambda: _area_mean(np.abs(error)),
        "median": lambda: _area_mean(np.abs(x.median("number") - y)),
        "spread": lambda: _area_mean(variance) ** 0.5,
        "spread_skill": lambda: (6 / 5 * _area_mean(variance) / _area_mean(error**2)) ** 0.5,
        "members": lambda: _area_mean((x - y) ** 2) ** 0.5,
        "threshold_weighted": lambda: _area_mean(
            xr.Dataset(
                {n: _crps_by_hand(list(np.maximum(x[n], 280.0)), np.maximum(y[n], 280.0), True) for n in x.data_vars}
            )
        ),
    }[name]()


OURS = {
    "rmse": lambda x, y, **k: dg.rmse(x, y, **k),
    "fair_rmse": lambda x, y, **k: dg.rmse(x, y, fair=True, **k),
    "bias": lambda x, y, **k: dg.bias(x, y, **k),
    "mae": lambda x, y, **k: dg.mae(x, y, **k),
    "median": lambda x, y, **k: dg.mae(x, y, of="median", **k),
    "spread": lambda x, y, **k: dg.spread(x, y, **k),
    "spread_skill": lambda x, y, **k: dg.spread_skill(x, y, **k),
    "members": lambda x, y, **k: dg.rmse(x, y, of="members", **k),
    "crps": lambda x, y, **k: dg.crps(x, y, **k),
    "biased_crps": lambda x, y, **k: dg.crps(x, y, fair=False, **k),
    "threshold_weighted": lambda x, y, **k: dg.threshold_weighted_crps(x, y, 280.0, **k),
}


@pytest.mark.parametrize("name", OURS)
def test_against_brute_force(name):
    ours = OURS[name](FORECAST, OTHER)
    expected = _expected(name)
    for variable in FORECAST:
        dims = ours[variable].dims
        np.testing.assert_allclose(ours[variable], expected[variable].transpose(*dims), rtol=1e-9, err_msg=variable)


def test_acc_against_brute_force():
    normal = TRUTH.mean("time")
    x, y = FORECAST.mean("number") - normal, _aligned() - normal
    expected = _area_mean(x * y) / (_area_mean(x**2) * _area_mean(y**2)) ** 0.5
    xr.testing.assert_allclose(dg.acc(FORECAST, OTHER, normal).drop_vars("samples"), expected)
    mx, my = _area_mean(x), _area_mean(y)
    centred = _area_mean((x - mx) * (y - my)) / (_area_mean((x - mx) ** 2) * _area_mean((y - my) ** 2)) ** 0.5
    xr.testing.assert_allclose(dg.acc(FORECAST, OTHER, normal, centred=True).drop_vars("samples"), centred)
    of_members = dg.acc(FORECAST, OTHER, normal, of="members")["2m_temperature"]
    one = dg.acc(FORECAST.isel(number=2), OTHER, normal)["2m_temperature"]
    np.testing.assert_allclose(of_members.isel(number=2), one)


def test_acc_of_the_truth_itself_is_one():
    perfect = _forecast(TRUTH, noise=0.0)
    assert np.allclose(dg.acc(perfect, TRUTH, TRUTH.mean("time")).to_dataarray(), 1)


def test_energy_score_against_brute_force():
    x, y = FORECAST["2m_temperature"], _aligned()["2m_temperature"]
    w = area_weights(x) / area_weights(x).sum()

    def distance(a, b):
        return ((a - b) ** 2 * w).sum(("latitude", "longitude")) ** 0.5

    m = 5
    to_truth = sum(distance(x[i], y) for i in range(m)) / m
    pairs = sum(distance(x[i], x[j]) for i in range(m) for j in range(m))
    for fair, count in ((True, m * (m - 1)), (False, m * m)):
        expected = (to_truth - pairs / 2 / count).mean("time")
        np.testing.assert_allclose(dg.energy_score(x, OTHER["2m_temperature"], fair=fair), expected, rtol=1e-10)


def test_energy_score_of_one_point_is_the_crps():
    forecast, truth = _random(points=1)
    assert dg.energy_score(forecast, truth, over="point").item() == pytest.approx(dg.crps(forecast, truth).item())


def test_rank_histogram_against_brute_force():
    x, y = FORECAST["geopotential"], _aligned()["geopotential"]
    ranks = (x < y).sum("number")
    w = area_weights(x)
    for rank in range(6):
        expected = _area_mean((ranks == rank).astype(float))
        np.testing.assert_allclose(dg.rank_histogram(x, OTHER["geopotential"]).sel(rank=rank), expected, atol=1e-15)
    assert w.sum().item() == pytest.approx(4 * np.pi)


def test_ties_are_shared_among_their_ranks():
    members = xr.DataArray([1.0, 2.0, 2.0, 3.0], dims="number")
    np.testing.assert_allclose(dg.rank_histogram(members, xr.DataArray(2.0)), [0, 1 / 3, 1 / 3, 1 / 3, 0], atol=1e-15)


# ---------------------------------------------------------------------------- what the estimators are good for


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**16))
def test_expectation_of_fair_crps_does_not_depend_on_members(members, seed):
    """Of standard normal members and truth it is 1/√π for every M; the biased one is higher by 1/(M√π)."""
    rng = np.random.default_rng(seed)
    points = 20_000
    x = xr.DataArray(rng.normal(size=(members, points)), dims=("number", "point"))
    y = xr.DataArray(rng.normal(size=points), dims="point")
    each = dg.crps(x, y, dim=[])
    error = each.std().item() / points**0.5
    assert abs(each.mean().item() - np.pi**-0.5) < 5 * error
    assert abs(dg.crps(x, y, fair=False).item() - np.pi**-0.5 * (1 + 1 / members)) < 5 * error


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**16))
def test_members_alike_with_the_truth(members, seed):
    """Spread/skill is 1, the rank histogram flat, the fair Brier score that of the climatological share."""
    rng = np.random.default_rng(seed)
    points = 20_000
    x = xr.DataArray(rng.normal(size=(members, points)), dims=("number", "point"))
    y = xr.DataArray(rng.normal(size=points), dims="point")
    assert abs(dg.spread_skill(x, y).item() - 1) < 5 / points**0.5
    flat = 1 / (members + 1)
    assert np.abs(dg.rank_histogram(x, y) - flat).max().item() < 5 * (flat / points) ** 0.5
    assert abs(dg.brier(x, y, 0.0).item() - 0.25) < 5 * 0.5 / points**0.5


def test_confidence_interval_covers():
    """Of 200 samples of independent starts, the 90 % interval holds the true mean error in about 90 %."""
    rng = np.random.default_rng(0)
    inside = 0
    for k in range(200):
        x = xr.DataArray(
            rng.normal(size=(40, 1)), dims=("time", "point"), coords={"time": pd.date_range("2020", periods=40)}
        )
        y = xr.zeros_like(x)
        _, low, high = dg.bias(x, y, confidence=0.9, resamples=300, block=1, seed=k).values
        inside += low <= 0 <= high
    assert 0.80 <= inside / 200 <= 0.97


def test_confidence_needs_starts():
    with pytest.raises(ArgumentError, match="at least two starts"):
        dg.crps(FORECAST.isel(time=0), TRUTH, confidence=0.9)
    with pytest.raises(ArgumentError, match="averaged over"):
        dg.crps(FORECAST, TRUTH, dim="latitude", confidence=0.9)


def test_confidence_is_repeatable_and_holds_the_estimate():
    first, again = (dg.crps(FORECAST, OTHER, confidence=0.8, seed=3) for _ in range(2))
    xr.testing.assert_identical(first, again)
    plain = dg.crps(FORECAST, OTHER)
    xr.testing.assert_allclose(first.sel(bound="estimate", drop=True), plain)
    field = first["geopotential"]
    assert (field.sel(bound="lower") < field.sel(bound="upper")).all()


def test_paired_comparison_is_sharper_than_its_parts():
    """The skill against a copy with a small known loss is told apart from 0, though both scores vary a lot."""
    scale = xr.DataArray(np.geomspace(0.2, 5, 6), dims="time", coords={"time": FORECAST["time"]})
    x = (FORECAST["2m_temperature"] - 280) * scale
    y = _aligned()["2m_temperature"] * 0.0
    skill = dg.crps_skill(x, y, x * 1.1, confidence=0.9)
    assert (skill.sel(bound="lower") > 0).all()
    np.testing.assert_allclose(skill.sel(bound="estimate"), 1 - 1 / 1.1, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------- sums


def test_streamed_is_the_same_as_at_once():
    """Sums of single starts, added, give the scores of all."""
    names = ["rmse", "crps", "spread_skill", "bias"]
    parts = [dg.score_sums(FORECAST.isel(time=[k]), OTHER, names) for k in range(6)]
    total = sum(parts[1:], parts[0])
    together = dg.scores_from(total, names)
    for name in names:
        expected = getattr(dg, name)(FORECAST, OTHER)
        got = together.sel(score=name)
        for variable in FORECAST:
            np.testing.assert_allclose(got[variable], expected[variable], rtol=1e-12)


def test_sums_of_parts_of_the_sphere_keep_the_weights_they_are_given():
    tropics = xr.DataArray([0.0, 1.0, 5.0, 2.0, 0.5], dims="latitude", coords={"latitude": FORECAST["latitude"]})
    parts = [
        dg.score_sums(
            FORECAST.isel(latitude=rows), OTHER.isel(latitude=rows), "crps", weights=tropics.isel(latitude=rows)
        )
        for rows in (slice(0, 2), slice(2, 5))
    ]
    whole = dg.scores_from(parts[0] + parts[1], "crps").squeeze("score")
    for name, expected in dg.crps(FORECAST, OTHER, weights=tropics).data_vars.items():
        np.testing.assert_allclose(whole[name], expected, rtol=1e-12)


@pytest.mark.parametrize("name", [*OURS, "rank_histogram", "reliability", "brier", "energy_score", "acc", "crps_skill"])
def test_lazy_is_eager(name):
    """On dask nothing is computed before it is asked for, and any chunks give the same."""
    more = {
        "rank_histogram": dg.rank_histogram,
        "reliability": lambda x, y: dg.reliability(x[["2m_temperature"]], y, 280.0),
        "brier": lambda x, y: dg.brier(x[["2m_temperature"]], y, 280.0),
        "energy_score": dg.energy_score,
        "acc": lambda x, y: dg.acc(x, y, TRUTH.mean("time")),
        "crps_skill": lambda x, y: dg.crps_skill(x, y, FORECAST.isel(number=slice(3)) + 1),
    }
    function = {**OURS, **more}[name]
    chunked = FORECAST.chunk({"time": 4, "number": 2, "latitude": 3})

    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        lazy = function(chunked, OTHER)
    assert all(v.chunks for v in lazy.data_vars.values())
    eager = function(FORECAST, OTHER)
    xr.testing.assert_allclose(lazy.compute(), eager, rtol=1e-9)
    assert lazy["2m_temperature"].attrs == eager["2m_temperature"].attrs


# ------------------------------------------------------------------------------------------------ alignment


def test_truth_is_found_by_label():
    """Shuffled times, other latitude order, other longitudes, other level order and other units change nothing."""
    shuffled = OTHER.isel(time=np.random.default_rng(0).permutation(14), latitude=slice(None, None, -1), level=[1, 0])
    east = (shuffled["longitude"] + 180) % 360 - 180
    shuffled = shuffled.assign_coords(longitude=east).sortby("longitude").rename(latitude="lat", longitude="lon")
    celsius = (shuffled["2m_temperature"] - 273.15).assign_attrs(units="degC")
    xr.testing.assert_allclose(
        dg.crps(FORECAST, shuffled.assign({"2m_temperature": celsius})), dg.crps(FORECAST, OTHER)
    )


def test_names_of_other_dialects():
    """Variables, dimensions and leads of ECMWF and WeatherBenchX; the result has the forecast's names."""
    ecmwf = OTHER.rename(geopotential="z", time="valid_time")
    ecmwf = ecmwf.rename({"2m_temperature": "t2m", "level": "isobaricInhPa"})
    theirs = FORECAST.rename(time="init_time", prediction_timedelta="lead_time", number="realization", latitude="lat")
    hours = (LEADS / pd.Timedelta("1h")).astype(int)
    theirs = theirs.assign_coords(lead_time=("lead_time", hours, {"units": "hours"}))
    result = dg.crps(theirs, ecmwf)
    assert result["geopotential"].dims == ("lead_time", "level")
    np.testing.assert_allclose(result["geopotential"], dg.crps(FORECAST, OTHER)["geopotential"])
    assert dg.rmse(theirs, ecmwf, dim="lat", of="members")["2m_temperature"].dims == (
        "realization", "init_time", "lead_time", "longitude",
    )  # fmt: skip


def test_what_does_not_align_is_named():
    short = OTHER.isel(time=slice(0, 8)).drop_vars("geopotential")
    with pytest.warns(AlignmentWarning, match=r"'geopotential'.*2020-01-09T00") as caught:
        result = dg.crps(FORECAST, short)
    assert caught[0].filename == __file__
    assert list(result) == ["2m_temperature"]
    np.testing.assert_array_equal(result["samples"], [6, 6, 3])
    kept = dg.crps(FORECAST.isel(time=slice(0, 3)), OTHER)["2m_temperature"].sel(prediction_timedelta="5D")
    assert result["2m_temperature"].sel(prediction_timedelta="5D").item() == pytest.approx(kept.item(), rel=1e-12)


def test_samples_and_scores_of_leads_without_any_truth():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AlignmentWarning)
        result = dg.crps(FORECAST, OTHER.isel(time=slice(0, 3)))
    np.testing.assert_array_equal(result["samples"], [2, 1, 0])
    assert np.isnan(result["2m_temperature"].isel(prediction_timedelta=2))


def test_truth_laid_out_as_the_forecast():
    xr.testing.assert_allclose(dg.crps(FORECAST, _aligned()), dg.crps(FORECAST, OTHER))
    part = _aligned().isel(time=[4, 1, 3])
    with pytest.warns(AlignmentWarning, match="9 of 18"):
        result = dg.crps(FORECAST, part)
    xr.testing.assert_allclose(
        result.drop_vars("samples"), dg.crps(FORECAST.isel(time=[1, 3, 4]), OTHER).drop_vars("samples")
    )


@pytest.mark.parametrize("which", [{"time": 2}, {"prediction_timedelta": 1}, {"time": 2, "prediction_timedelta": 1}])
def test_single_starts_and_leads(which):
    """Scalar time and lead coordinates align as dimensions do."""
    one, all_ = (
        dg.crps(FORECAST.isel(which), OTHER, dim=["latitude", "longitude"]),
        dg.crps(FORECAST, OTHER, dim=["latitude", "longitude"]),
    )
    xr.testing.assert_allclose(one, all_.isel(which))


def test_many_starts_and_leads_have_the_truth_of_their_own():
    """A forecast that is the truth scores 0 at every start, lead, level and place."""
    perfect = _forecast(TRUTH, noise=0.0)
    assert float(np.abs(dg.crps(perfect, TRUTH, dim=[]).to_dataarray()).max()) == 0


LATER = OTHER.assign_coords(time=OTHER["time"] + np.timedelta64(365, "D"))
METRES = OTHER.assign({"2m_temperature": OTHER["2m_temperature"].assign_attrs(units="m")})
BAD = {
    "other grid": (FORECAST, OTHER.isel(longitude=slice(None, None, 2)), "to_latlon"),
    "no common time": (FORECAST, LATER, "none of the forecast's valid times"),
    "no common variable": (
        FORECAST,
        OTHER.rename({"geopotential": "a", "2m_temperature": "b"}),
        "no variable in common",
    ),
    "units": (FORECAST, METRES, "other units"),
    "members in the truth": (FORECAST, OTHER.expand_dims(number=[1]), "has members"),
    "twice the same time": (FORECAST, xr.concat([OTHER, OTHER], "time"), "appears twice"),
    "no common level": (FORECAST, OTHER.assign_coords(level=[100, 200]), "no level in common"),
    "no labels": (FORECAST, OTHER.drop_vars("time"), "no labels"),
    "no start": (FORECAST.drop_vars("time"), OTHER, "no labels"),
    "a dimension too many": (FORECAST, OTHER.expand_dims(experiment=2), "further dimension 'experiment'"),
    "integer leads without units": (FORECAST.assign_coords(prediction_timedelta=[1, 2, 5]), OTHER, "units"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_compared(case):
    forecast, truth, text = BAD[case]
    with pytest.raises(DatasetError, match=text):
        dg.crps(forecast, truth)


def test_what_is_no_dataset():
    with pytest.raises(ArgumentError, match="no xarray object"):
        dg.crps(FORECAST, 1.0)


def test_arguments_that_can_not_be_used():
    for function, text in (
        (lambda: dg.crps(FORECAST, OTHER, dim="lattitude"), "no dimension to average over"),
        (lambda: dg.crps(FORECAST, OTHER, nan_policy="skip"), "'omit'"),
        (lambda: dg.crps(FORECAST, OTHER, weights="cos"), "'area'"),
        (lambda: dg.crps(FORECAST, OTHER, confidence=95), "0.95"),
        (lambda: dg.crps(FORECAST, OTHER, skipna=True), "no option 'skipna'"),
        (lambda: dg.rmse(FORECAST, OTHER, of="median"), "'mean' or 'members'"),
        (lambda: dg.rmse(FORECAST, OTHER, of="members", fair=True), "fair"),
        (lambda: dg.brier(FORECAST, OTHER, {"geopotential": 1.0}), "No threshold is given for '2m_temperature'"),
        (lambda: dg.brier(FORECAST, OTHER, np.nan), "threshold"),
        (lambda: dg.reliability(FORECAST, OTHER, 1.0, bins=1), "bins=1"),
        (lambda: dg.rank_histogram(FORECAST, OTHER, confidence=0.9), "confidence"),
        (lambda: dg.energy_score(FORECAST, OTHER, over="time"), "different dimensions"),
        (lambda: dg.energy_score(FORECAST, OTHER, nan_policy="omit"), "omit"),
        (lambda: dg.crps(FORECAST, OTHER, weights=-area_weights(OTHER)), "negative"),
    ):
        with pytest.raises(ArgumentError, match=text):
            function()


def test_one_member_has_no_fair_score():
    one = FORECAST.isel(number=[0])
    with pytest.raises(DatasetError, match="fair=False"):
        dg.crps(one, OTHER)
    xr.testing.assert_allclose(dg.crps(one, OTHER, fair=False), dg.mae(one, OTHER))
    single = FORECAST.isel(number=0, drop=True)
    xr.testing.assert_allclose(dg.crps(single, OTHER), dg.mae(single, OTHER))
    with pytest.raises(DatasetError, match="ensemble"):
        dg.spread_skill(single, OTHER)


# --------------------------------------------------------------------------------- NaN, weights, grids, labels


def _with_hole(ds, value=np.nan):
    hole = ds["2m_temperature"].copy()
    hole[{"time": 3, "latitude": 2, "longitude": 4}] = value
    return ds.assign({"2m_temperature": hole})


def test_nan_policy():
    holed = _with_hole(OTHER)  # 4 January: lead 1 of the third start and lead 2 of the second
    result = dg.crps(FORECAST, holed)["2m_temperature"]
    np.testing.assert_array_equal(np.isnan(result), [True, True, False])
    with pytest.raises(DatasetError, match=r"'2m_temperature' has NaN.*2 of 720 points"):
        dg.crps(FORECAST, holed, nan_policy="raise")
    x, y = FORECAST["2m_temperature"], _aligned(holed)["2m_temperature"]
    by_hand = _area_mean(_crps_by_hand(list(x), y, True))  # xarray's weighted mean leaves NaN out
    np.testing.assert_allclose(dg.crps(FORECAST, holed, nan_policy="omit")["2m_temperature"], by_hand, rtol=1e-12)
    assert result.attrs["nan_policy"] == "propagate"


def test_nan_in_histograms():
    holed = _with_hole(OTHER)
    histogram = dg.rank_histogram(FORECAST, holed)["2m_temperature"]
    np.testing.assert_array_equal(np.isnan(histogram).all("rank"), [True, True, False])
    assert np.allclose(dg.rank_histogram(FORECAST, holed, nan_policy="omit")["2m_temperature"].sum("rank"), 1)
    with pytest.raises(DatasetError, match="2 of 720"):
        dg.rank_histogram(FORECAST, holed, nan_policy="raise")
    shares = dg.reliability(FORECAST[["2m_temperature"]], holed, 280.0, nan_policy="omit")["2m_temperature"]
    assert np.allclose(shares.sel(quantity="share").sum("bin"), 1)


def test_nan_of_a_member_leaves_the_point_out():
    fc = FORECAST[["2m_temperature"]].copy(deep=True)
    fc["2m_temperature"][{"number": 1, "time": 0, "prediction_timedelta": 0, "latitude": 0, "longitude": 0}] = np.nan
    point = dg.crps(fc, OTHER, dim=[])["2m_temperature"]
    assert int(np.isnan(point).sum()) == 1
    for of in ("mean", "median"):
        assert int(np.isnan(dg.mae(fc, OTHER, dim=[], of=of)["2m_temperature"]).sum()) == 1


def test_weights():
    """Exact areas unless told otherwise; one's own; none."""
    x, y = FORECAST["2m_temperature"], OTHER["2m_temperature"]
    each = dg.crps(x, y, dim=[])
    xr.testing.assert_allclose(
        dg.crps(x, y, weights=None).drop_vars("samples"), each.mean(("time", "latitude", "longitude"))
    )
    tropics = xr.DataArray(
        (np.abs(x["latitude"]) < 50).astype(float), dims="latitude", coords={"latitude": x["latitude"]}
    )
    expected = each.weighted(tropics).mean(("time", "latitude", "longitude"))
    xr.testing.assert_allclose(dg.crps(x, y, weights=tropics).drop_vars("samples"), expected)
    zonal = dg.crps(x, y, dim=("time", "longitude"))
    xr.testing.assert_allclose(zonal.drop_vars("samples"), each.mean(("time", "longitude")))


def test_on_healpix():
    """Cells weigh the same; another order of the truth's cells is put right by their numbers."""
    rng = np.random.default_rng(0)
    mesh = {**mesh_coordinates(2), "time": pd.date_range("2020", periods=3)}
    truth = xr.Dataset({"t": (("time", "cell"), rng.normal(size=(3, 48)), {"grid_mapping": "crs"})}, mesh)
    fc = xr.Dataset({"t": (("number", "time", "cell"), rng.normal(size=(4, 3, 48)))}, mesh)
    expected = np.mean(_crps_by_hand(list(fc["t"].values), truth["t"].values, True))
    assert dg.crps(fc, truth)["t"].item() == pytest.approx(expected, rel=1e-12)
    assert dg.crps(fc, truth.isel(cell=rng.permutation(48)))["t"].item() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(DatasetError, match="to_healpix"):
        dg.crps(fc, truth.isel(cell=slice(12)).drop_vars(["cell", "crs"]).assign_coords(mesh_coordinates(1)))


def test_thresholds_of_each_variable_and_place():
    names = {"geopotential": 5e4, "2m_temperature": 280.0}
    both = dg.brier(FORECAST, OTHER, names)
    for name, value in names.items():
        np.testing.assert_allclose(both[name], dg.brier(FORECAST[name], OTHER[name], value))
    field = TRUTH["2m_temperature"].quantile(0.9, "time").drop_vars("quantile").isel(latitude=slice(None, None, -1))
    x, y = FORECAST["2m_temperature"], _aligned()["2m_temperature"]
    p, o = (x > field).mean("number"), (y > field).astype(float)
    expected = _area_mean((p - o) ** 2 - p * (1 - p) / 4)
    np.testing.assert_allclose(dg.brier(x, OTHER["2m_temperature"], field), expected)


def test_event_below_is_the_complement():
    x, y = FORECAST["2m_temperature"], OTHER["2m_temperature"]
    np.testing.assert_allclose(dg.brier(x, y, 280.0), dg.brier(x, y, 280.0, event="below"))
    above, below = (dg.reliability(x, y, 280.0, event=e).sel(quantity="share") for e in ("above", "below"))
    np.testing.assert_allclose(above, below[:, ::-1])


def test_labels():
    result = dg.crps(FORECAST, OTHER, confidence=0.9, resamples=20)["2m_temperature"]
    assert result.attrs["units"] == "K"
    assert {k: result.attrs[k] for k in ("score", "fair", "members", "weights", "averaged_over")} == {
        "score": "crps",
        "fair": "true",
        "members": 5,
        "weights": "exact cell areas",
        "averaged_over": "time, latitude, longitude",
    }
    assert "20 resamples of 6 starts" in result.attrs["confidence"]
    assert dg.spread_skill(FORECAST, OTHER)["2m_temperature"].attrs["units"] == "1"
    array = dg.crps(FORECAST["2m_temperature"], OTHER["2m_temperature"])
    assert isinstance(array, xr.DataArray)
    assert array.name == "2m_temperature"


def test_arguments_are_not_changed():
    before = FORECAST.copy(deep=True), OTHER.copy(deep=True)
    dg.crps_skill(FORECAST, OTHER, FORECAST + 1)
    xr.testing.assert_identical(FORECAST, before[0])
    xr.testing.assert_identical(OTHER, before[1])


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_order_of_dimensions_does_not_matter(data):
    dims = data.draw(st.permutations(list(FORECAST["geopotential"].dims)))
    shuffled = FORECAST[["geopotential"]].transpose(*dims)
    result = dg.crps(shuffled, OTHER)["geopotential"].transpose("prediction_timedelta", "level")
    np.testing.assert_allclose(result, dg.crps(FORECAST, OTHER)["geopotential"], rtol=1e-12)
    ranks = dg.rank_histogram(shuffled, OTHER)["geopotential"].transpose("prediction_timedelta", "level", "rank")
    np.testing.assert_allclose(ranks, dg.rank_histogram(FORECAST, OTHER)["geopotential"], atol=1e-15)
