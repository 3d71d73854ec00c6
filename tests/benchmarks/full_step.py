"""One 24-hour step of one member through the full published network on the real 82-channel state.

``python tests/benchmarks/full_step.py [DEVICE [DTYPE]]``; the weights are random (the published ones can't be shipped),
which changes neither time nor memory. Statistics, static fields and the state come from ../shared/data.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import xmosaic
from xmosaic.checkpoint import Model
from xmosaic.grid import LatLonGrid
from xmosaic.model import PUBLISHED, Mosaic

SHARED = Path(__file__).parents[3] / "shared" / "data"


def random_era5() -> Model:
    """The published configuration, statistics and static fields with random weights."""
    with np.load(SHARED / "mosaic_norm_stats_era5.npz") as file:
        mean, std = file["state_mean"], file["state_std"]
    with np.load(SHARED / "mosaic_static_1p5deg.npz") as file:
        static = file["data"]
    grid = LatLonGrid.equiangular(240, 121)
    network = Mosaic(PUBLISHED["era5"], np.array(grid.longitude), np.array(grid.latitude), static)
    network.init_weights(torch.Generator().manual_seed(0)).requires_grad_(False).eval()
    provenance = {"name": "era5, random weights", "license": "BSD-3-Clause", "untrained": True}
    return Model(network, xmosaic.published_schema(), grid, mean, std, static, provenance, sha256="none")


def twice(path: Path) -> xr.Dataset:
    """The one real state there is, as both times of the history."""
    ds = xr.open_dataset(path)
    times = pd.to_datetime(["2011-10-10", "2011-10-11"])
    return xr.concat([ds, ds], "time").assign_coords(time=times)


def main() -> None:
    if not SHARED.exists():
        print(f"skipped: {SHARED} is not here")
        return
    device, dtype = (sys.argv[1:] + ["cpu", "float32"][len(sys.argv) - 1 :])[:2]
    model = random_era5()
    ds = twice(SHARED / "gfs_82channels_20111008T00_f072_1p5deg.nc")
    print(f"{model.num_parameters:,} parameters")
    print(xmosaic.check(ds, model))
    began = time.perf_counter()
    fc = xmosaic.forecast(ds, "1D", 1, model=model, device=device, dtype=dtype, progress=False)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    finite = all(bool(np.isfinite(fc[name]).all()) for name in fc)
    print(f"{sum(fc[n].sizes.get('level', 1) for n in fc)} channels forecast, all finite: {finite}")
    print(f"{seconds:.1f} s, peak memory {peak:.1f} GB; {platform.machine()}, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, device {device}, {dtype}")


if __name__ == "__main__":
    main()
