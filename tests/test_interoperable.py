"""Do other tools open what is written here, as it is, and get the right numbers from it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scores.continuous
import scores.probability
import xarray as xr
import xskillscore
from models import make_dataset, make_model

import xmosaic
from xmosaic import diagnostics as dg

DS = make_dataset(periods=8)
MODEL = make_model()
NAMES = ("time", "number", "prediction_timedelta", "level", "latitude", "longitude")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """Forecasts of several starts, of one, and on HEALPix, as netCDF files; the first as a Zarr store too."""
    folder = tmp_path_factory.mktemp("written")
    paths = {name: folder / f"{name}.nc" for name in ("several", "one", "mesh")} | {"store": folder / "fc.zarr"}
    several = forecast(time=slice("2020-02-28", "2020-03-02"), store=paths["store"])
    several.to_netcdf(paths["several"])
    one = forecast()
    one.to_netcdf(paths["one"])
    one.mosaic.to_healpix(nside=4).to_netcdf(paths["mesh"])
    return paths


def forecast(**options: Any) -> xr.Dataset:
    return xmosaic.forecast(DS, "3D", 4, model=MODEL, progress=False, **options)


@pytest.fixture(params=["several", "store"])
def fc(request, written) -> xr.Dataset:
    path = written[request.param]
    return xr.open_zarr(path) if path.suffix == ".zarr" else xr.open_dataset(path, decode_timedelta=True)


def truth_of(fc: xr.Dataset) -> xr.Dataset:
    """Truth at the valid times, label by label."""
    return DS.sel(time=fc["valid_time"]).drop_vars("time").assign_coords(time=fc["time"])


# ------------------------------------------------------------------------------------------------------ cf-xarray


def test_cf_xarray_finds_every_axis_and_field(fc):
    import cf_xarray  # noqa: F401

    standard = ("forecast_reference_time", "realization", "forecast_period", "air_pressure", "latitude", "longitude")
    for name, ours in zip(standard, NAMES, strict=True):
        assert fc.cf.standard_names[name] == [ours]
    assert {k: fc.cf.axes[k] for k in "ZYX"} == {"Z": ["level"], "Y": ["latitude"], "X": ["longitude"]}
    xr.testing.assert_identical(fc.cf["geopotential"].cf.mean("realization"), fc["geopotential"].mean("number"))
    assert fc.cf["air_temperature"].name == "2m_temperature"


# --------------------------------------------------------------------------------------------------- the checker


def findings(path: Path) -> set[str]:
    """Findings of high priority of the IOOS compliance-checker's suite for CF 1.11."""
    pytest.importorskip("compliance_checker", reason="pip install xmosaic[interop] brings it")
    from compliance_checker.base import BaseCheck
    from compliance_checker.runner import CheckSuite

    CheckSuite.load_all_available_checkers()
    suite = CheckSuite()
    with suite.load_dataset(str(path)) as dataset:
        groups, broken = suite.run_all(dataset, ["cf:1.11"])["cf:1.11"]
    assert not broken
    assert sum(len(g.children) + 1 for g in groups) > 10  # it has looked
    return {text for g in groups if g.weight >= BaseCheck.HIGH and g.value[0] != g.value[1] for text in g.msgs}


def test_compliance_checker_has_nothing_against_a_forecast(written):
    assert findings(written["one"]) == set()


def test_compliance_checker_minds_only_what_a_start_is_called(written, tmp_path):
    """It goes by the dimension's name "time" alone, which CF doesn't; WeatherBench2's layout has it.

    Neither units, axis nor other coordinates matter to that rule (docs/large.md); another dialect's name does.
    """
    expected = "Coordinate variable 'time' should have standard_name='time', found: 'forecast_reference_time'"
    assert findings(written["several"]) == {expected}
    with xr.open_dataset(written["several"], decode_timedelta=True) as fc:
        renamed = fc.mosaic.to_dialect("weatherbenchx")
        for name in ("latitude", "longitude"):
            renamed[name].encoding = {"_FillValue": None}
        renamed.to_netcdf(tmp_path / "renamed.nc")
    assert findings(tmp_path / "renamed.nc") == set()


def test_compliance_checker_knows_no_healpix_yet(written):
    """Which is new in CF 1.13."""
    found = findings(written["mesh"])
    new = ("healpix_index is not defined", "healpix is not a valid grid_mapping_name", "recommended for variable crs")
    assert found and all(any(part in text for part in new) for text in found), found


def test_the_checker_would_find_what_is_wrong(written, tmp_path):
    with xr.open_dataset(written["one"], decode_timedelta=True) as fc:
        bad = fc.load()
    bad["geopotential"].attrs["units"] = "K"
    bad.to_netcdf(tmp_path / "bad.nc")
    assert findings(tmp_path / "bad.nc")


def test_coordinates_have_no_fill_value(written):
    """Which CF forbids and xarray adds to floats unless told."""
    import netCDF4

    for name in ("several", "one", "mesh"):
        with netCDF4.Dataset(written[name]) as file:
            axes = [file[n] for n in file.dimensions if n in file.variables]
            assert axes and not any("_FillValue" in v.ncattrs() for v in axes)


# ------------------------------------------------------------------------------------------------------- meshes


def test_xdggs_understands_the_mesh(written):
    xdggs = pytest.importorskip("xdggs")
    with xr.open_dataset(written["mesh"], decode_timedelta=True, decode_coords="all") as mesh:
        decoded = xdggs.decode(mesh.load(), convention="cf")
        assert (decoded.dggs.grid_info.level, decoded.dggs.grid_info.indexing_scheme) == (2, "nested")
        centres = decoded.dggs.cell_centers()
    from xmosaic.healpix import cell_centres

    longitude, latitude = cell_centres(4)
    np.testing.assert_allclose(centres["latitude"], latitude, atol=1e-9)
    np.testing.assert_allclose(centres["longitude"] % 360, longitude % 360, atol=1e-9)


# ------------------------------------------------------------------------------------------------------- scores


def test_xskillscore_scores_it(fc):
    ours = dg.crps(fc, DS, fair=False, weights=None)
    theirs = xskillscore.crps_ensemble(
        truth_of(fc)["2m_temperature"],
        fc.mosaic.to_dialect("xskillscore")["2m_temperature"].load(),
        dim=["time", "latitude", "longitude"],
    )
    np.testing.assert_allclose(ours["2m_temperature"], theirs, rtol=1e-5)


def test_scores_scores_it(fc):
    fields = fc["geopotential"].load(), truth_of(fc)["geopotential"]
    keep = ["prediction_timedelta", "level"]
    theirs = scores.probability.crps_for_ensemble(*fields, "number", method="fair", preserve_dims=keep)
    ours = dg.crps(fc, DS, weights=None)["geopotential"]
    np.testing.assert_allclose(ours.transpose(*keep), theirs.transpose(*keep), rtol=1e-5)
    rmse = scores.continuous.rmse(fields[0].mean("number"), fields[1], preserve_dims=keep)
    np.testing.assert_allclose(dg.rmse(fc, DS, weights=None)["geopotential"].transpose(*keep), rmse, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of its own and its dependencies' making
def test_climpred_verifies_it(fc, monkeypatch):
    climpred = pytest.importorskip("climpred", reason="pip install xmosaic[interop] brings it")
    checker = pytest.importorskip("compliance_checker")
    import pooch

    # it asks the network for CF's table of names; the checker brings one
    table = Path(checker.__file__).parent / "data" / "cf-standard-name-table.xml"
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: str(table))
    renamed = fc.mosaic.to_dialect("climpred")[["2m_temperature"]].load()
    hindcast = climpred.HindcastEnsemble(renamed).add_observations(DS[["2m_temperature"]])
    options: dict[str, Any] = {"alignment": "same_inits", "dim": "init"}
    theirs = hindcast.verify(metric="rmse", comparison="e2o", **options)["2m_temperature"]
    ours = dg.rmse(fc, DS, dim="time")["2m_temperature"]
    np.testing.assert_allclose(ours.transpose("prediction_timedelta", ...), theirs.transpose("lead", ...), rtol=1e-4)


# ------------------------------------------------------------------------------------------------ WeatherBenchX


def test_weatherbenchx_layout_after_one_rename(fc):
    """Its documented names: init_time and lead_time (timedelta64), number, level, latitude, longitude.

    The package itself is not on PyPI.
    """
    renamed = fc.mosaic.to_dialect("weatherbenchx")
    assert renamed["geopotential"].dims == ("init_time", "number", "lead_time", "level", "latitude", "longitude")
    assert renamed["init_time"].dtype.kind == "M" and renamed["lead_time"].dtype.kind == "m"
    assert {"geopotential", "2m_temperature", "u_component_of_wind"} <= {*renamed.data_vars}
    # predictions and targets meet at init_time + lead_time
    valid = renamed["init_time"] + renamed["lead_time"]
    np.testing.assert_array_equal(valid.values, renamed["valid_time"].values)
    target = DS["2m_temperature"].sel(time=valid)
    error = (renamed["2m_temperature"].mean("number") - target) ** 2
    ours = dg.rmse(fc, DS, weights=None)["2m_temperature"]
    np.testing.assert_allclose(error.mean(["init_time", "latitude", "longitude"]) ** 0.5, ours, rtol=1e-5)
