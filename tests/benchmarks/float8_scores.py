"""What products in 16 and in 8 bits do to scores: the bundled model on its sample, beside float32.

``python tests/benchmarks/float8_scores.py [--starts 4] [--members 6] [--days 10] [--queries]``

On a CPU, where the products in 8 bits are emulated: rounded as the GPU does, multiplied in float32. With ``--queries``
those of attention's queries and keys are too, with nothing else rounded and beside float8: the library has no such way.
"""

from __future__ import annotations

import argparse
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
import xarray as xr

import xmosaic
from xmosaic import kernels
from xmosaic.checkpoint import Model
from xmosaic.kernels.reference import FLOAT8_MAX

FIELDS = {"geopotential": 500, "temperature": 850, "u_component_of_wind": 250, "vertical_velocity": 500}
SCORES = ("crps", "spread_skill")
FIELDS |= {"2m_temperature": None, "mean_sea_level_pressure": None}


def emulated() -> Model:
    """The bundled model with products in 8 bits, which a forecast on a CPU would refuse to switch on."""
    model = xmosaic.load_model("bundled")
    network = model.network.use_float8()
    network.impl = "reference"
    network.use_float8 = lambda on=True: network
    return model


def rounded(x: torch.Tensor, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries or keys in 8 bits; blocks are chosen by means of what was there before."""
    out, means = kernels.rotate(x, *args, **options)
    return out.clamp(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn).to(out.dtype), means


def at(result: xr.Dataset, name: str, score: str) -> xr.DataArray:
    """A score of a field by forecast and lead."""
    field = result[name] if FIELDS[name] is None else result[name].sel(level=FIELDS[name])
    return field.sel(score=score, bound="estimate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--queries", action="store_true")
    options = parser.parse_args()
    ds = xmosaic.open_sample()
    last = ds.sizes["time"] - 1 - options.days
    places = np.unique(np.linspace(2, last, options.starts).round().astype(int))
    common = {"time": pd.DatetimeIndex(ds["time"].values)[places], "device": "cpu"}
    found = {}
    more = ("queries", "float8 queries") if options.queries else ()
    for name in ("float32", "bfloat16", "float8", *more):
        model = emulated() if "float8" in name else xmosaic.load_model("bundled")
        dtype = name if name == "bfloat16" else "float32"
        with mock.patch("xmosaic.model.rotate", rounded if "queries" in name else kernels.rotate):
            found[name] = xmosaic.forecast(ds, f"{options.days}D", options.members, model=model, dtype=dtype, **common)
    result = xmosaic.benchmark(found, ds, SCORES, progress=False)
    days = [d for d in (1, 3, 5, 10) if d <= options.days]
    print(f"{len(places)} starts, {options.members} members; CRPS over float32's at {days} days, and spread/skill")
    for field in FIELDS:
        crps, spread = (at(result, field, score).isel(prediction_timedelta=[d - 1 for d in days]) for score in SCORES)
        for name in found:
            share = (crps.sel(forecast=name) / crps.sel(forecast="float32")).values
            print(f"{field:24} {name:14} {share.round(3)} {spread.sel(forecast=name).values.round(3)}")


if __name__ == "__main__":
    main()
