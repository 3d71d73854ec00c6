"""Cut the package's sample out of the test year: ``python sample.py STORE OUT/sample.nc``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scoring
import train
import xarray as xr

FIRST, DAYS = 100, 40
# values of a 16-bit integer, one of which stands for a missing value
STEPS = 2**16 - 2


def packing(field: xr.DataArray) -> dict:
    """16-bit integers between the smallest and the largest value."""
    low, high = float(field.min()), float(field.max())
    scale = (high - low) / STEPS or 1.0
    offset = low + scale * STEPS / 2
    return {
        "dtype": "int16",
        "scale_factor": np.float32(scale),
        "add_offset": np.float32(offset),
        "_FillValue": np.int16(-(2**15)),
        "zlib": True,
        "complevel": 9,
        "shuffle": True,
    }


def write_sample(ds: xr.Dataset, path: Path, first: int = FIRST, days: int = DAYS) -> Path:
    """Consecutive days of the test year, packed; each starts a forecast that the later ones verify."""
    _, test = scoring.split(ds)
    chosen = test.isel(time=slice(first, first + days)).load()
    chosen.attrs["title"] = "xmosaic sample: days of the test year of a simulated Held–Suarez atmosphere"
    for name in chosen.variables:
        chosen[name].encoding = {}
    chosen.to_netcdf(path, engine=scoring.ENGINE, encoding={name: packing(chosen[name]) for name in chosen.data_vars})
    print(path, f"{path.stat().st_size / 1e6:.2f} MB, {chosen.sizes['time']} days", flush=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("path", type=Path)
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--days", type=int, default=DAYS)
    options = parser.parse_args()
    write_sample(train.open_data(options.store), options.path, options.first, options.days)


if __name__ == "__main__":
    main()
