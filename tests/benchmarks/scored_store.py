"""Memory and time of scoring a 9 GB forecast in Zarr: 24 members × 40 steps × 82 channels on 240 × 121 points.

python tests/benchmarks/scored_store.py [FOLDER]

Makes the store once (random fields; 9.2 GB on disk), then runs each way of scoring it in a process of its own and
prints its peak of resident memory, workers included.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask
import dask.array
import numpy as np
import pandas as pd
import xarray as xr

import xmosaic
from xmosaic.grid import LatLonGrid
from xmosaic.variables import cf_attributes, published_schema

MEMBERS, STEPS = 24, 40
WAYS = {
    "xmosaic.benchmark: six scores, spectra, mass": "benchmark",
    "fc.mosaic.crps(truth).compute()": "crps",
    "fc.mosaic.rank_histogram(truth).compute()": "ranks",
    "fc.mosaic.spectra().mean('number').compute()": "spectra",
    "xmosaic.benchmark on dask.distributed, 2 workers": "distributed",
}


def fields(
    dims: tuple[str, ...], shape: tuple[int, ...], chunks: tuple[int, ...], coords: dict, seed: int
) -> xr.Dataset:
    """Random fields of the published channels, lazily."""
    grid = LatLonGrid.equiangular(240, 121)
    schema = published_schema()
    made = {}
    for number, (role, variable, channels) in enumerate(schema.groups()):
        if role != "state":
            continue
        levels = [c.level for c in channels if c.level is not None]
        size = (*shape, *([len(levels)] if levels else []), *grid.shape)
        chunk = (*chunks, *([len(levels)] if levels else []), *grid.shape)
        state = dask.array.random.RandomState(seed + number)
        data = state.normal(280, 10, size=size, chunks=chunk).astype("float32")
        names = (*dims, *(["level"] if levels else []), "latitude", "longitude")
        made[variable] = (names, data, cf_attributes(variable))
    levels = ("level", list(schema.levels), {"units": "hPa"})
    return xr.Dataset(made, grid.coordinates() | coords | {"level": levels})


def make(folder: Path) -> None:
    """The stores, unless they are there."""
    start = pd.Timestamp("2020-01-01")
    lead = pd.to_timedelta(6 * np.arange(1, STEPS + 1), unit="h")
    plain = {"compressors": None}
    if not (folder / "forecast.zarr").exists():
        coords = {"time": [start], "number": np.arange(1, MEMBERS + 1), "prediction_timedelta": lead}
        dims = ("time", "number", "prediction_timedelta")
        ds = fields(dims, (1, MEMBERS, STEPS), (1, 1, 1), coords, 0)
        ds.to_zarr(folder / "forecast.zarr", encoding=dict.fromkeys(ds.data_vars, plain))
    if not (folder / "truth.zarr").exists():
        coords = {"time": pd.date_range(start, periods=STEPS + 1, freq="6h")}
        ds = fields(("time",), (STEPS + 1,), (1,), coords, 100)
        ds.to_zarr(folder / "truth.zarr", encoding=dict.fromkeys(ds.data_vars, plain))


def score(how: str, folder: Path) -> None:
    """One way; prints seconds, and the peak of resident memory of this process and of the largest worker [MB]."""
    fc, truth = (xr.open_zarr(folder / name) for name in ("forecast.zarr", "truth.zarr"))
    began = time.perf_counter()
    if how == "crps":
        fc.mosaic.crps(truth).compute()
    elif how == "ranks":
        fc.mosaic.rank_histogram(truth).compute()
    elif how == "spectra":
        fc.mosaic.spectra().mean("number").compute()
    elif how == "benchmark":
        xmosaic.benchmark(fc, truth)
    else:
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            xmosaic.benchmark(fc, truth)
            peaks = client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            print("workers", [round(p / 1024) for p in peaks.values()])
    seconds = time.perf_counter() - began
    print(f"{seconds:.0f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    if len(sys.argv) > 2:
        return score(sys.argv[2], folder)
    folder.mkdir(exist_ok=True)
    make(folder)
    size = xr.open_zarr(folder / "forecast.zarr").nbytes / 1e9
    print(f"forecast of {size:.1f} GB\n| way | time [s] | peak memory [MB] |\n|---|---|---|")
    for name, how in WAYS.items():
        command = [sys.executable, __file__, str(folder), how]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        *workers, last = done.stdout.strip().splitlines()
        seconds, peak = last.split()
        print(f"| {name} | {seconds} | {peak}{', ' + workers[0] if workers else ''} |", flush=True)


if __name__ == "__main__":
    main()
