"""Make the model and the sample that the package carries: ``python examples/make_bundled.py``.

The model has random weights (seed 0) until trained ones land: it shows that the machinery works, not that it forecasts.
The sample is an analytic atmosphere, not data: a balanced zonal jet in each hemisphere with waves travelling along it.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import xmosaic
from xmosaic.checkpoint import Model
from xmosaic.grid import LatLonGrid
from xmosaic.model import Mosaic, MosaicConfig, StageConfig
from xmosaic.variables import Schema, cf_attributes

LEVELS = (250, 500, 850)
SCHEMA = Schema.from_variables(
    {
        "2m_temperature": None,
        "10m_u_component_of_wind": None,
        "10m_v_component_of_wind": None,
        "mean_sea_level_pressure": None,
        "geopotential": LEVELS,
        "temperature": LEVELS,
        "u_component_of_wind": LEVELS,
        "v_component_of_wind": LEVELS,
    }
)
GRID = LatLonGrid.equiangular(64, 33)
CONFIG = MosaicConfig(
    stages=(
        StageConfig(16, 64, 4, 2, local_size=256, block_size=64, block_count=8, encoder_depth=2, decoder_depth=1),
        StageConfig(8, 96, 6, 2, local_size=256, block_size=32, block_count=6, encoder_depth=1, decoder_depth=1),
    ),
    bottleneck=StageConfig(4, 128, 8, 2, 192, 16, 4, encoder_depth=1, decoder_depth=0),
    num_variables=len(SCHEMA.state),
    num_neighbors=8,
)

RADIUS, GRAVITY, OMEGA, GAS = 6.371e6, 9.80665, 7.292e-5, 287.05
# latitude of the wave, zonal wavenumber, amplitude [m² s⁻²] at 500 hPa, phase speed [degrees per day]
WAVES = (
    (50.0, 3, 900.0, 3.0),
    (45.0, 6, 700.0, 11.0),
    (55.0, 8, 350.0, 14.0),
    (-50.0, 4, 800.0, 7.0),
    (-48.0, 5, 600.0, 12.0),
    (-55.0, 9, 250.0, 16.0),
)


def make_sample(times: pd.DatetimeIndex) -> xr.Dataset:
    """Analytic atmosphere on the bundled grid: hydrostatic, geostrophic away from the equator."""
    time = xr.DataArray((times - times[0]) / pd.Timedelta("1D"), dims="time", coords={"time": times})
    lat = xr.DataArray(np.array(GRID.latitude), dims="latitude", coords={"latitude": np.array(GRID.latitude)})
    lon = xr.DataArray(np.array(GRID.longitude), dims="longitude", coords={"longitude": np.array(GRID.longitude)})
    level = xr.DataArray([*LEVELS, 1000], dims="level", coords={"level": [*LEVELS, 1000]})
    height = np.log(1000.0 / level)  # scale heights above 1000 hPa

    # temperature of Held and Suarez (1994), doi:10.1175/1520-0477(1994)075<1825:APFTIO>2.0.CO;2, without its inversion
    surface = 300.0 - 60.0 * np.sin(np.deg2rad(lat)) ** 2
    lapse = 60.0 - 25.0 * np.sin(np.deg2rad(lat)) ** 2  # K per scale height
    temperature = surface - lapse * height * (1 - 0.25 * height)
    # hydrostatic: the integral of R T over log-pressure
    geopotential = (
        GAS * (surface * height - lapse * (height**2 / 2 - height**3 / 12))
        + 1000.0
        - 400.0 * np.sin(np.deg2rad(lat)) ** 2
    )

    for centre, wavenumber, amplitude, speed in WAVES:
        envelope = np.exp(-(((lat - centre) / 14.0) ** 2)) * np.cos(np.deg2rad(lat))
        phase = np.deg2rad(wavenumber * (lon - speed * time) + 40.0 * height)  # tilts westward with height
        growth = 0.5 + 0.7 * height
        geopotential = geopotential + amplitude * envelope * growth * np.cos(phase)
        temperature = temperature + amplitude / GAS * envelope * (
            0.7 * np.cos(phase) - growth * np.deg2rad(40.0) * np.sin(phase)
        )
    u, v = geostrophic(geopotential, lat)

    lowest = {"level": 1000, "drop": True}
    data = {
        "2m_temperature": temperature.sel(**lowest),
        "10m_u_component_of_wind": 0.6 * u.sel(**lowest),
        "10m_v_component_of_wind": 0.6 * v.sel(**lowest),
        "mean_sea_level_pressure": 1e5 * np.exp(geopotential.sel(**lowest) / (GAS * temperature.sel(**lowest))),
        "geopotential": geopotential,
        "temperature": temperature,
        "u_component_of_wind": u,
        "v_component_of_wind": v,
    }
    upper = {name: a.sel(level=list(LEVELS)) if "level" in a.dims else a for name, a in data.items()}
    dims = ("time", "level", "latitude", "longitude")
    sample = xr.Dataset(
        {
            k: v.broadcast_like(time).transpose(*(d for d in dims if d in v.dims or d == "time")).astype("f4")
            for k, v in upper.items()
        }
    )
    for name in sample:
        sample[name].attrs = cf_attributes(str(name))
    sample = sample.assign_coords(GRID.coordinates())
    sample["level"].attrs = {
        "standard_name": "air_pressure",
        "long_name": "pressure level",
        "units": "hPa",
        "positive": "down",
        "axis": "Z",
    }
    sample["time"].attrs = {"standard_name": "time", "long_name": "time", "axis": "T"}
    sample.attrs = {
        "Conventions": "CF-1.13",
        "title": "xmosaic sample: an analytic atmosphere, not data",
        "source": "examples/make_bundled.py: balanced zonal jets with travelling waves",
        "institution": "the xmosaic developers",
        "license": "BSD-3-Clause",
    }
    return sample


def geostrophic(geopotential: xr.DataArray, lat: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Geostrophic wind [m s-1], faded out towards the equator where it has no meaning."""
    phi = np.deg2rad(lat)
    coriolis = 2 * OMEGA * np.sin(phi)
    fade = 1 - np.exp(-((lat / 12.0) ** 2))
    inverse = xr.where(fade < 1e-12, 0.0, fade / coriolis.where(coriolis != 0, 1.0))
    north = geopotential.differentiate("latitude") * (180 / np.pi) / RADIUS
    wrapped = geopotential.pad(longitude=1, mode="wrap")
    east = wrapped.isel(longitude=slice(2, None)).data - wrapped.isel(longitude=slice(None, -2)).data
    width = 2 * np.deg2rad(360.0 / geopotential.sizes["longitude"]) * RADIUS * np.cos(phi).clip(0.02)
    return -north * inverse, geopotential.copy(data=east) * inverse / width * (np.abs(lat) < 89.9)


def make_model(sample: xr.Dataset) -> Model:
    """Random weights on the bundled grid, with the sample's statistics."""
    fields = [sample[c.variable] if c.level is None else sample[c.variable].sel(level=c.level) for c in SCHEMA.state]
    mean = np.array([f.values.astype(np.float64).mean() for f in fields])
    std = np.array([f.values.astype(np.float64).std() for f in fields])
    network = Mosaic(CONFIG, np.array(GRID.longitude), np.array(GRID.latitude))
    network.init_weights(torch.Generator().manual_seed(0)).requires_grad_(False).eval()
    for name, weight in network.named_parameters():
        # at their training start the noise weights are too small to tell members apart on a map
        if name.endswith(("noise_bias.weight", "to_noise.weight", "w2.weight")):
            weight.mul_(10)
    provenance = {
        "name": "bundled",
        "title": "random weights (seed 0), to show the machinery until a trained model lands",
        "license": "BSD-3-Clause",
        "data": "none; statistics of the bundled sample",
        "untrained": True,
        "versions": {"xmosaic": xmosaic.__version__, "torch": torch.__version__},
    }
    return Model(network, SCHEMA, GRID, mean, std, None, provenance)


def main() -> None:
    data = Path(xmosaic.__file__).parent / "data"
    sample = make_sample(pd.date_range("2001-01-01", periods=14, freq="1D"))
    encoding = {name: {"zlib": True, "complevel": 9, "shuffle": True} for name in sample}
    sample.to_netcdf(data / "sample.nc", encoding=encoding)
    print(
        make_model(sample).save(data / "bundled.safetensors"),
        f"{(data / 'bundled.safetensors').stat().st_size:,} bytes",
    )
    print(data / "sample.nc", f"{(data / 'sample.nc').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
