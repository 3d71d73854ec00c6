"""What a dimension or coordinate is: by name, standard_name, units or dtype."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr

from ..units import conversion

_AXES = {
    "time": "time valid_time date datetime",
    "start": "forecast_reference_time init_time init initial_time start_time",
    "lead": "prediction_timedelta step lead_time lead forecast_period",
    "member": "number realization member ensemble ensemble_member",
    "level": "level pressure_level isobaricinhpa isobaricinpa plev pressure lev air_pressure levels",
    "latitude": "latitude lat",
    "longitude": "longitude lon",
    "cell": "cell cells cell_ids healpix_index",
    "model level": "hybrid model_level sigma ml",
    "height": "height heightaboveground altitude depth heightabovesea",
}
_KIND_OF_NAME = {name: kind for kind, names in _AXES.items() for name in names.split()}
_KIND_OF_STANDARD_NAME = {
    "time": "time",
    "forecast_reference_time": "start",
    "forecast_period": "lead",
    "realization": "member",
    "air_pressure": "level",
    "latitude": "latitude",
    "longitude": "longitude",
    "healpix_index": "cell",
    "model_level_number": "model level",
    "height": "height",
    "altitude": "height",
    "geopotential_height": "height",
}
SPACE = ("latitude", "longitude", "cell")
KEPT = ("time", "level", *SPACE)


def axis_kind(name: Hashable, variable: xr.Variable | None) -> str:
    """What a dimension or coordinate is, by its metadata."""
    attrs = {} if variable is None else variable.attrs
    standard = str(attrs.get("standard_name", "")).lower()
    units = str(attrs.get("units", ""))  # as it is spelled: to pint kPa is a pressure and kpa nothing
    if standard.startswith(("atmosphere_", "ocean_")):
        return "model level"
    kind = _KIND_OF_STANDARD_NAME.get(standard) or _KIND_OF_NAME.get(str(name).lower())
    if kind == "level":
        return _level_kind(units)
    if kind is not None or variable is None:
        return kind or "other"
    if units.lower() in ("degrees_north", "degree_north", "degrees_east", "degree_east"):
        return "latitude" if units.lower().endswith("north") else "longitude"
    if str(attrs.get("axis", "")).upper() == "Z":
        return _level_kind(units) if units else "model level"
    by_dtype = {"M": "time", "m": "lead"}
    return by_dtype.get(dtype_kind(variable), "time" if str(attrs.get("axis", "")).upper() == "T" else "other")


def _level_kind(units: str) -> str:
    """Kind of a vertical axis by its units; none at all are taken for pressure."""
    if not units or conversion(units, "hPa"):
        return "level"
    return "height" if conversion(units, "m") else "model level"


def dtype_kind(variable: xr.Variable) -> str:
    """NumPy's letter for a dtype; ``"O"`` where there is no such letter."""
    return str(getattr(variable.dtype, "kind", "O"))


def read_values(variable: xr.Variable) -> np.ndarray:
    """Values of a coordinate, which count as metadata: read here even where dask holds them."""
    how = {} if variable.chunks is None else {"scheduler": "synchronous"}
    return np.asarray(variable.compute(**how).values)


def has_values(ds: xr.Dataset, name: Hashable) -> bool:
    """Whether a dimension has a coordinate along itself, or a scalar one of this name."""
    return name in ds.coords and ds[name].dims in ((name,), ())
