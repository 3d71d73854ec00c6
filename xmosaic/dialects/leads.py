"""Lead times as timedelta64, also where they are numbers with units."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import DatasetError, explain
from .axes import read_values

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray, xr.Dataset | xr.DataArray)

_LEADS = ("prediction_timedelta", "step", "lead_time", "lead")
_LEAD_UNITS = {
    "D": ("days", "day", "d"),
    "h": ("hours", "hour", "hrs", "hr", "h"),
    "min": ("minutes", "minute", "min"),
    "s": ("seconds", "second", "sec", "s"),
}


def lead_values(coord: xr.DataArray) -> np.ndarray:
    """Lead times as timedelta64, from integers with units too."""
    values = read_values(coord.variable)
    if values.dtype.kind == "m":
        return values
    units = str(coord.attrs.get("units", "")).strip().lower()
    code = next((code for code, names in _LEAD_UNITS.items() if units in names), None)
    if code is None or values.dtype.kind not in "iuf":
        got = f"dtype {values.dtype}, " + (f"units {units!r}" if units else "no units")
        raise DatasetError(
            explain(
                f"Lead times {str(coord.name)!r} can't be told",
                got=got,
                expected="timedelta64, or numbers with units such as 'hours'",
                do=f"Set ds[{str(coord.name)!r}].attrs['units'] = 'hours', if they are",
            )
        )
    return np.asarray(pd.to_timedelta(np.ravel(values), unit=code).as_unit("ns")).reshape(values.shape)  # type: ignore[call-overload]


def decode_lead(obj: Labelled) -> Labelled:
    """Lead times given as numbers with units, as timedelta64.

    Parameters
    ----------
    obj : Dataset or DataArray
        With a coordinate ``prediction_timedelta``, ``step``, ``lead_time`` or ``lead``, or of standard_name
        forecast_period; without one it comes back as it is.

    Returns
    -------
    Dataset or DataArray
        The lead times are timedelta64 and have no attribute `units`.

    Raises
    ------
    DatasetError
        Where the numbers have no units.
    """
    for name, coord in obj.coords.items():
        is_lead = name in _LEADS or str(coord.attrs.get("standard_name")) == "forecast_period"
        if is_lead and coord.dtype.kind != "m":
            attrs = {key: value for key, value in coord.attrs.items() if key != "units"}
            obj = obj.assign_coords({name: (coord.dims, lead_values(coord), attrs)})
    return obj
