"""Scores, spectra and long runs of one forecast, in whatever process: labelled fields in, labelled numbers out."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plans
import simulate
import xarray as xr

import xmosaic
from xmosaic import diagnostics
from xmosaic.grid import area_weights

LEAD = "prediction_timedelta"
SCORES = ("rmse", "bias", "mae", "crps", "spread", "spread_skill")
# what both engines write and read
ENGINE = "netcdf4" if importlib.util.find_spec("netCDF4") else "h5netcdf"
# of the bootstrap of spectra: neighbouring starts drawn together, and resamples
BLOCK, RESAMPLES = 4, 400

# ---------------------------------------------------------------------------------------------------------------- data


def periods_in(store: Path) -> dict[str, tuple[str, str]]:
    ds = xr.open_zarr(store, chunks=None, consolidated=False)
    return simulate.periods(len(np.unique(ds["time"].dt.year)))


def read(store: Path, period: str) -> xr.Dataset:
    """Training years, or the test year, in memory."""
    ds = xr.open_zarr(store, chunks=None, consolidated=False)[list(plans.VARIABLES)]
    return ds.sel(level=list(plans.LEVELS), time=slice(*periods_in(store)[period])).load()


def split(ds: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Training years and test year."""
    periods = simulate.periods(len(np.unique(ds["time"].dt.year)))
    return ds.sel(time=slice(*periods["train"])), ds.sel(time=slice(*periods["test"]))


def spill(ds: xr.Dataset, folder: Path, name: str) -> None:
    """A file per variable: another process loads the bytes faster than anything it would have to decode."""
    for variable in ds.data_vars:
        with open(folder / f"{name}-{variable}", "wb") as file:
            pickle.dump(ds[[variable]].load(), file, protocol=5)


def fetch(scratch: Path, name: str, variable: str) -> xr.Dataset:
    return pickle.loads((scratch / f"{name}-{variable}").read_bytes())


def write(ds: xr.Dataset, path: Path) -> None:
    # seven digits are more than sixty starts can tell
    packed = {"zlib": True, "complevel": 6, "shuffle": True, "dtype": "float32"}
    encoding = {name: packed for name in ds.data_vars if ds[name].dtype.kind == "f"}
    ds.to_netcdf(path, engine=ENGINE, encoding=encoding)
    print(path, f"{path.stat().st_size / 1e6:.1f} MB", flush=True)


# -------------------------------------------------------------------------------------------------------------- scores


def score_variable(scratch: Path, name: str, variable: str, members: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Scores, and power over the truth's by total and zonal wavenumber, of one variable of one forecast."""
    truth, fc = fetch(scratch, "truth", variable), fetch(scratch, name, variable)
    result = xmosaic.benchmark({name: fc}, truth, SCORES, progress=False)
    few = fc.isel(number=slice(members)) if "number" in fc.dims else fc
    zonal = zonal_ratio(few, truth, variable).expand_dims(forecast=[name])
    ratio = f"{variable}_spectral_ratio"
    spectra = xr.merge([result[[ratio]], zonal], compat="override")
    (scratch / f"{name}-{variable}").unlink()
    return result.drop_vars(ratio).drop_dims("total_wavenumber", errors="ignore"), spectra


def zonal_ratio(fc: xr.Dataset, truth: xr.Dataset, variable: str) -> xr.Dataset:
    """Power over the truth's by zonal wavenumber, and its interval: a bootstrap over blocks of four starts."""
    same = truth.sel(time=fc["valid_time"]).drop_vars("time", errors="ignore")
    powers = [diagnostics.spectra(d, kind="zonal", kinetic_energy=False)[variable] for d in (fc, same)]
    ours, theirs = (p.mean("number") if "number" in p.dims else p for p in powers)
    ours, theirs = (p.transpose("time", ...).drop_vars("valid_time", errors="ignore") for p in (ours, theirs))
    starts = ours.sizes["time"]
    draws = block_draws(starts, min(BLOCK, max(1, starts // 4)), RESAMPLES)
    known = theirs.mean("time")
    estimate = ours.mean("time") / known.where(known > 0)
    sums = [np.tensordot(draws, p.values, 1) for p in (ours, theirs)]
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.quantile(sums[0] / sums[1], [0.025, 0.975], axis=0)
    label = f"{variable}_zonal_ratio"
    bounds = {f"{label}_lower": estimate.copy(data=low), f"{label}_upper": estimate.copy(data=high)}
    return xr.Dataset({label: estimate, **bounds})


def block_draws(starts: int, block: int, count: int, seed: int = 0) -> np.ndarray:
    """Weights of the starts in resamples, (resample, start): blocks of neighbouring starts, drawn with replacement."""
    block = min(block, starts)
    begin = np.random.default_rng(seed).integers(starts, size=(count, -(-starts // block)))
    chosen = ((begin[..., None] + np.arange(block)) % starts).reshape(count, -1)[:, :starts]
    return np.stack([np.bincount(row, minlength=starts) for row in chosen]) / starts


def score_long(scratch: Path, name: str, store: Path) -> xr.Dataset:
    """Mass drift, variability and power of rollouts far beyond what can be predicted, over the truth's."""
    test, normal = read(store, "test"), read(store, "train").mean("time")
    fc = xr.merge([fetch(scratch, f"long {name}", str(v)) for v in test.data_vars], compat="override")
    drift = diagnostics.mass_drift(fc, start=test[["mean_sea_level_pressure"]])[["mass_drift", "mass_drift_percent"]]
    over = ["time", "number"]
    parts = {f"{n}_{how}": getattr(drift[n], how)(over) for n in drift for how in ("mean", "min", "max")}
    parts |= {
        f"{n}_variability_ratio": variability(fc[n], normal[n]) / variability(test[n], normal[n])
        for n in test.data_vars
    }
    last = fc[LEAD].values[-1]
    kept = fc.sel({LEAD: [d for d in pd.to_timedelta([10, 30], unit="D") if d < last] + [last]})
    ours = diagnostics.spectra(kept, kind="zonal", kinetic_energy=False).mean(over)
    theirs = diagnostics.spectra(test, kind="zonal", kinetic_energy=False).mean("time")
    parts |= {f"{n}_power_ratio": ours[n] / theirs[n] for n in ours}
    finite = all(bool(np.isfinite(fc[n].values).all()) for n in fc.data_vars)
    made = xr.Dataset(parts).drop_vars("valid_time", errors="ignore")
    return made.assign_attrs(starts=fc.sizes["time"], members=fc.sizes["number"], finite=int(finite))


def variability(field: xr.DataArray, normal: xr.DataArray) -> xr.DataArray:
    """Root of the area-weighted mean square anomaly over all starts and members, or over all times."""
    over = [d for d in ("time", "number", "latitude", "longitude") if d in field.dims]
    return np.sqrt(((field - normal) ** 2).weighted(area_weights(field)).mean(over))


def merged(found: Sequence[dict[str, Any]], order: Sequence[str]) -> tuple[xr.Dataset, xr.Dataset]:
    """Scores and spectra of all variables and forecasts: forecasts one after another, then variables side by side."""
    kinds = []
    for kind in (0, 1):
        by_variable = [
            xr.concat([v[n][kind] for n in order], "forecast", data_vars="all", coords="different", compat="equals")
            for v in found
        ]
        joined = xr.merge(by_variable, compat="override", join="outer", combine_attrs="override")
        kinds.append(joined.sel(forecast=list(order)).assign_attrs(by_variable[0].attrs))
    return kinds[0], kinds[1]
