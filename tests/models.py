"""Small models and datasets that the tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from xmosaic.checkpoint import Model
from xmosaic.grid import LatLonGrid
from xmosaic.model import Mosaic, MosaicConfig, StageConfig
from xmosaic.variables import Schema, cf_attributes

SCHEMA = Schema.from_variables(
    {"2m_temperature": None, "mean_sea_level_pressure": None, "geopotential": [500, 850], "u_component_of_wind": [850]}
)
GRID = LatLonGrid.equiangular(12, 7)
STATISTICS = {
    "2m_temperature": (280.0, 20.0),
    "mean_sea_level_pressure": (101000.0, 1300.0),
    "geopotential_500": (54000.0, 3300.0),
    "geopotential_850": (13700.0, 1500.0),
    "u_component_of_wind": (2.0, 8.0),
    "sea_surface_temperature": (290.0, 10.0),
}


def make_model(schema: Schema = SCHEMA, grid: LatLonGrid = GRID, **config: Any) -> Model:
    """A model of a few thousand random weights, whose members differ visibly."""
    settings: dict[str, Any] = {"num_neighbors": 4, "step_hours": 24} | config
    chosen = MosaicConfig(
        stages=(StageConfig(4, 16, 4, 2, local_size=64, block_size=16, block_count=4),),
        bottleneck=StageConfig(2, 24, 2, 1, 48, 8, 2, decoder_depth=0),
        num_variables=len(schema.state),
        num_forcings=len(schema.forcing),
        num_static=len(schema.static),
        **settings,
    )
    static = np.random.default_rng(1).normal(size=(*grid.shape[::-1], len(schema.static))) if schema.static else None
    network = Mosaic(chosen, np.array(grid.longitude), np.array(grid.latitude), static)
    network.init_weights(torch.Generator().manual_seed(0)).requires_grad_(False).eval()
    for name, weight in network.named_parameters():
        if name.endswith(("noise_bias.weight", "to_noise.weight", "w2.weight")):
            weight.mul_(30)
    channels = (*schema.state, *schema.forcing)
    mean, std = np.array([STATISTICS.get(c.name, STATISTICS.get(c.variable, (0.0, 1.0))) for c in channels]).T
    return Model(network, schema, grid, mean, std, static, {"name": "tests", "license": "BSD-3-Clause"})


def make_dataset(
    schema: Schema = SCHEMA, grid: LatLonGrid = GRID, times: Any = "2020-02-27", periods: int = 5, freq: str = "1D"
) -> xr.Dataset:
    """Random fields with plausible values, in our own layout."""
    rng = np.random.default_rng(0)
    time = pd.date_range(times, periods=periods, freq=freq)
    fields = {}
    for _role, variable, channels in schema.groups():
        pairs = [STATISTICS.get(c.name, STATISTICS.get(c.variable, (0.0, 1.0))) for c in channels]
        levels = [c.level for c in channels if c.level is not None]
        shape = (len(time), *([len(levels)] if levels else []), *grid.shape)
        dims = ("time", *(["level"] if levels else []), "latitude", "longitude")
        coords = {"level": levels} if levels else {}
        mean, std = (np.array(x).reshape((-1, 1, 1) if levels else ()) for x in zip(*pairs, strict=True))
        values = (mean + std * rng.normal(size=shape)).astype(np.float32)
        fields[variable] = xr.DataArray(values, dims=dims, coords=coords, attrs=cf_attributes(variable))
    ds = xr.merge([f.rename(n) for n, f in fields.items()], join="outer", compat="override")
    return ds.assign_coords(grid.coordinates() | {"time": time})
