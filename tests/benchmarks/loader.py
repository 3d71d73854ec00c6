"""How long does a full-size sample take from a local Zarr store, and does the loader's memory grow?

``python tests/benchmarks/loader.py [folder]`` makes two stores of 40 times there (82 channels on 240 × 121, one time
per chunk, random float32: 0.7 GB), and reads samples of a history of 2 and a rollout of 1. Each case runs in a process
of its own. The files lie in the page cache: this is decoding, checking, normalising, not the disk.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from xmosaic.grid import LatLonGrid
from xmosaic.training.loader import Loader
from xmosaic.training.normalise import statistics
from xmosaic.training.samples import TrainingData
from xmosaic.variables import Schema, published_schema

SCHEMA = Schema(published_schema().state)
GRID = LatLonGrid.equiangular(240, 121)
PERIOD, STEP, TIMES, SAMPLES, BATCHES = ("2020", "2020"), pd.Timedelta("6h"), 40, 40, 100


def make(path: Path, compressed: bool) -> None:
    """One store in WeatherBench2's layout, variable by variable."""
    rng = np.random.default_rng(0)
    coords = GRID.coordinates() | {"time": pd.date_range("2020-01-01", periods=TIMES, freq="6h")}
    for _, variable, channels in SCHEMA.groups():
        levels = [c.level for c in channels if c.level is not None]
        shape = (TIMES, *([len(levels)] if levels else []), *GRID.shape)
        dims = ("time", *(["level"] if levels else []), "latitude", "longitude")
        ds = xr.Dataset({variable: (dims, rng.standard_normal(shape, dtype=np.float32))}, coords)
        ds = ds.assign_coords(level=levels) if levels else ds
        encoding = {"chunks": (1, *shape[1:])} | ({} if compressed else {"compressors": None})
        ds.to_zarr(path, mode="a", encoding={variable: encoding})


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure(path: str, workers: int, batch_size: int, before: int, batches: int) -> None:
    """Print milliseconds per sample of one case, and peak memory before and after [MB]."""
    data = TrainingData(xr.open_zarr(path), SCHEMA, STEP, history=2)
    windows = data.windows(PERIOD, 1)
    ones = np.ones(len(SCHEMA.state))
    with Loader(data, windows, 1, batch_size, 0, 0 * ones, ones, workers=workers) as loader:
        stream = loader.batches()
        for _ in range(before):
            next(stream)
        early, wall, cpu = _peak(), time.perf_counter(), time.process_time()
        for _ in range(batches):
            next(stream)
        count = batches * batch_size
        wall, cpu = (1e3 * (now - t) / count for now, t in ((time.perf_counter(), wall), (time.process_time(), cpu)))
    print(json.dumps({"wall": wall, "cpu": cpu, "early": early, "late": _peak()}))


def measure_statistics(path: str) -> None:
    """Print milliseconds per time of the statistics, and peak memory [MB]."""
    data = TrainingData(xr.open_zarr(path), SCHEMA, STEP, history=2)
    began = time.perf_counter()
    statistics(data, PERIOD, area=True, progress=False)
    print(json.dumps({"wall": 1e3 * (time.perf_counter() - began) / TIMES, "late": _peak()}))


def _run(*arguments: object) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    if len(sys.argv) > 2:
        how, path, *numbers = sys.argv[1:]
        return measure(path, *map(int, numbers)) if how == "loader" else measure_statistics(path)
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) == 2 else None) as folder:
        print("| store | workers | ms per sample, 3 runs | CPU ms per sample |\n|---|---|---|---|")
        for name, compressed in (("default compression", True), ("uncompressed", False)):
            path = Path(folder) / f"{name}.zarr"
            make(path, compressed)
            for workers in (1, 2, 4):
                runs = [_run("loader", path, workers, 1, 4, SAMPLES) for _ in range(3)]
                wall, cpu = (sorted(r[key] for r in runs) for key in ("wall", "cpu"))
                print(f"| {name} | {workers} | {', '.join(f'{w:.0f}' for w in wall)} | {cpu[1]:.0f} |", flush=True)
            found = _run("statistics", path)
            print(f"| {name}, statistics | all | {found['wall']:.0f} per time | peak {found['late']:.0f} MB |")
        # the allocator's pools fill first
        for before in (BATCHES, 3 * BATCHES):
            found = _run("loader", path, 2, 2, before, BATCHES)
            print(f"\nPeak after {before} batches of 2: {found['early']:.0f} MB, {BATCHES} on: {found['late']:.0f} MB")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning, module="zarr")
    main()
