"""Score the bundled model on the test year: ``python evaluate.py STORE OUT``.

Reads OUT/bundled.safetensors and those of the other variants that are there, and writes OUT/scores.nc, spectra.nc and
long.nc. Forecasts run on the GPU; then each variable is scored by a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import pickle
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import train
import xarray as xr
from variants import VARIANTS

import xmosaic
from xmosaic import diagnostics
from xmosaic.grid import area_weights

LEAD = "prediction_timedelta"
SCORES = ("rmse", "bias", "mae", "crps", "spread", "spread_skill")
# what both engines write and read
ENGINE = "netcdf4" if importlib.util.find_spec("netCDF4") else "h5netcdf"


def spaced(times: pd.DatetimeIndex, count: int, after: int) -> pd.DatetimeIndex:
    """Starts spread evenly over a year: with a day of history before, and `after` days after them."""
    last = len(times) - 1 - after
    if last < 1:
        raise SystemExit(f"{len(times)} times are too few for {after} days of forecast")
    return times[np.unique(np.linspace(1, last, count).round().astype(int))]


def split(ds: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Training years and test year."""
    periods = train.periods_of(ds)
    return tuple(ds.sel(time=slice(*periods[name])) for name in ("train", "test"))


def forecasts(test: xr.Dataset, history: xr.Dataset, out: Path, starts: pd.DatetimeIndex, days: int, members: int):
    """Forecasts by name, one after another: models, persistence, climatology as a mean and as an ensemble."""
    ours = None
    for name in [v for v in VARIANTS if (out / f"{v}.safetensors").exists()]:
        model = xmosaic.load_model(out / f"{name}.safetensors")
        fc = _forecast(test, model, starts, days, members if model.config.noise_dim else 1)
        ours = fc if ours is None else ours
        yield name, fc if model.config.noise_dim else fc.isel(number=0, drop=True)
    yield "persistence", diagnostics.persistence(test, like=ours)
    yield "climatology", diagnostics.climatology(history, like=ours, window=None)
    yield "climatology_ensemble", diagnostics.climatological_ensemble(history, like=ours, members=members, window=None)


def _forecast(ds: xr.Dataset, model: xmosaic.Model, starts: pd.DatetimeIndex, days: int, members: int) -> xr.Dataset:
    return xmosaic.forecast(ds, f"{days}D", members, model=model, time=starts, batch_size=members)


# ------------------------------------------------------------------------------------------------------------- scores


def score(test: xr.Dataset, history: xr.Dataset, out: Path, starts: int, members: int, days: int, workers: int):
    """Scores and spectral ratios of all forecasts; one process for each variable."""
    times = spaced(pd.DatetimeIndex(test["time"].values), starts, days)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        names = []
        for name, ds in forecasts(test, history, out, times, days, members):
            names.append(name)
            _spill(ds, Path(scratch), name)
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        _spill(test, Path(scratch), "truth")
        jobs = [(scratch, str(v), tuple(names)) for v in test.data_vars]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            found = list(pool.map(score_variable, jobs))
        print(f"scored: {time.perf_counter() - began:.0f} s", flush=True)
    scores, spectra = (
        xr.merge(part, compat="override", join="outer", combine_attrs="override") for part in zip(*found, strict=True)
    )
    _write(scores.assign_attrs(found[0][0].attrs), out / "scores.nc")
    _write(spectra.assign_attrs(found[0][0].attrs), out / "spectra.nc")


def _spill(ds: xr.Dataset, folder: Path, name: str) -> None:
    """A file per variable: another process loads the bytes faster than anything it would have to decode."""
    for variable in ds.data_vars:
        with open(folder / f"{name}-{variable}", "wb") as file:
            pickle.dump(ds[[variable]].load(), file, protocol=5)


def score_variable(job: tuple[str, str, tuple[str, ...]]) -> tuple[xr.Dataset, xr.Dataset]:
    """Scores, and power over the truth's by total and zonal wavenumber, of one variable."""
    folder, variable, names = job
    os.environ["OMP_NUM_THREADS"] = "1"
    load = {name: pickle.loads((Path(folder) / f"{name}-{variable}").read_bytes()) for name in (*names, "truth")}
    truth = load.pop("truth")
    result = xmosaic.benchmark(load, truth, SCORES, progress=False)
    zonal = [diagnostics.spectral_ratio(load[name], truth, kind="zonal") for name in names]
    zonal = xr.concat(zonal, pd.Index(names, name="forecast"), coords="minimal", compat="override", join="override")
    ratio = f"{variable}_spectral_ratio"
    spectra = xr.merge([result[[ratio]], zonal.rename({variable: f"{variable}_zonal_ratio"})], compat="override")
    return result.drop_vars(ratio).drop_dims("total_wavenumber", errors="ignore"), spectra


def _write(ds: xr.Dataset, path: Path) -> None:
    encoding = {name: {"zlib": True, "complevel": 4} for name in ds.data_vars if ds[name].dtype.kind == "f"}
    ds.to_netcdf(path, engine=ENGINE, encoding=encoding)
    print(path, f"{path.stat().st_size / 1e6:.1f} MB", flush=True)


# ------------------------------------------------------------------------------------------------------ long rollouts


def long_run(test: xr.Dataset, history: xr.Dataset, out: Path, starts: int, members: int, days: int) -> None:
    """Mass drift, variability and power of rollouts far beyond what can be predicted, over the truth's."""
    times = spaced(pd.DatetimeIndex(test["time"].values), starts, 0 if len(test["time"]) <= days + 2 else days)
    model = xmosaic.load_model(out / "bundled.safetensors")
    fc = _forecast(test, model, times, days, members)
    drift = diagnostics.mass_drift(fc, start=test[["mean_sea_level_pressure"]])[["mass_drift", "mass_drift_percent"]]
    over = ["time", "number"]
    parts = {f"{name}_{how}": getattr(drift[name], how)(over) for name in drift for how in ("mean", "min", "max")}
    normal = history.mean("time")
    parts |= {
        f"{name}_variability_ratio": _variability(fc[name], normal[name]) / _variability(test[name], normal[name])
        for name in fc
    }
    kept = fc.sel({LEAD: [pd.Timedelta(days=d) for d in (10, 30, days) if d <= days]})
    ours = diagnostics.spectra(kept, kind="zonal", kinetic_energy=False).mean(over)
    theirs = diagnostics.spectra(test, kind="zonal", kinetic_energy=False).mean("time")
    parts |= {f"{name}_power_ratio": ours[name] / theirs[name] for name in ours}
    result = xr.Dataset(parts).drop_vars("valid_time", errors="ignore")
    _write(result.assign_attrs(starts=len(times), members=members, finite=int(_finite(fc))), out / "long.nc")


def _variability(field: xr.DataArray, normal: xr.DataArray) -> xr.DataArray:
    """Root of the area-weighted mean square anomaly over all starts and members, or over all times."""
    over = [d for d in ("time", "number", "latitude", "longitude") if d in field.dims]
    return np.sqrt(((field - normal) ** 2).weighted(area_weights(field)).mean(over))


def _finite(ds: xr.Dataset) -> bool:
    return all(bool(np.isfinite(ds[name].values).all()) for name in ds.data_vars)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    for name, default in (("starts", 60), ("members", 24), ("days", 10), ("workers", 9), ("long_days", 60)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    for name, default in (("long_starts", 8), ("long_members", 8)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = parser.parse_args()
    history, test = split(train.open_data(options.store))
    score(test, history, options.out, options.starts, options.members, options.days, options.workers)
    long_run(test, history, options.out, options.long_starts, options.long_members, options.long_days)


if __name__ == "__main__":
    main()
