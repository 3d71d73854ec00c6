"""A small model of 10 m wind from real analyses, in one command, beside persistence on dates it never saw.

python tests/benchmarks/gfs_wind.py ANALYSES [NAME=VALUE …]

ANALYSES: the 60 analyses of shared/data/gfs_uv10m_1deg_2018_6hourly.nc (step 0), as Zarr or netCDF. Trains on
September, validates on the first days of October, and scores 6 h forecasts from the later ones: RMSE of the ensemble
mean and of persistence.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import xarray as xr

import xmosaic
from xmosaic.cli import main
from xmosaic.diagnostics import crps, mae, persistence, rmse, spread_skill

TRAIN, VALIDATION, TEST = ("2018-09-15", "2018-10-10"), ("2018-10-11", "2018-10-12"), ("2018-10-13", "2018-10-16")
SHORT = {"10m_u_component_of_wind": "u10", "10m_v_component_of_wind": "v10"}


def analyses(path: str) -> xr.Dataset:
    """The analyses alone."""
    ds = xr.open_zarr(path, consolidated=False) if path.endswith(".zarr") else xr.open_dataset(path)
    return ds.isel(time=ds["step"].values == 0).drop_vars("step") if "step" in ds else ds


def run(path: str, settings: list[str]) -> None:
    """Train, forecast, score."""
    ds = analyses(path)
    with tempfile.TemporaryDirectory() as scratch:
        periods = ["--train", *TRAIN, "--validation", *VALIDATION, "--test", *TEST]
        options = ["--out", f"{scratch}/run", *periods, "--quiet", "--set", *settings]
        if main(["train", path, "--recipe", "small", *options]):
            raise SystemExit(1)
        model = xmosaic.load_model(f"{scratch}/run/model.safetensors")
        history = xmosaic.read_history(f"{scratch}/run")
    print(history[["validation_update", "validation_crps"]].to_dataframe())
    step = np.timedelta64(6, "h")
    times = ds["time"].values
    starts = [
        t
        for t in times
        if t >= np.datetime64(TEST[0]) and all(t + k * step in times for k in (1 - model.config.num_history, 0, 1))
    ]
    fc = xmosaic.forecast(ds, "6h", 24, model=model, time=starts, progress=False)
    base = persistence(ds, like=fc)
    for name, short in SHORT.items():
        ours, truth, other = fc[name], ds[short], base[short]
        found = {
            "RMSE": (rmse(ours, truth), rmse(other, truth)),
            "RMSE without area weights": (rmse(ours, truth, weights=None), rmse(other, truth, weights=None)),
            "CRPS (persistence: MAE)": (crps(ours, truth), mae(other, truth)),
        }
        print(f"{name}, 6 h, {len(starts)} starts; spread/skill {float(spread_skill(ours, truth).squeeze()):.2f}")
        for what, (model_score, base_score) in found.items():
            print(f"  {what}: {float(model_score.squeeze()):.3f}, persistence {float(base_score.squeeze()):.3f} m/s")


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
