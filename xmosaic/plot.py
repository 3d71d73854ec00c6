"""Pictures of forecasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .errors import ArgumentError, DatasetError, explain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def stamps(
    forecast: xr.Dataset,
    variable: str | None = None,
    *,
    level: int | None = None,
    lead: Any = None,
    time: Any = None,
    members: int = 24,
) -> Figure:
    """Stamp map: every member side by side, and the ensemble's mean and spread.

    Parameters
    ----------
    forecast : Dataset, dims (number, prediction_timedelta, latitude, longitude), further time and level
        In the layout of `xmosaic.forecast`; latitude and longitude may be named lat and lon.
    variable : str, optional
        By default 500 hPa geopotential if there is one, else the first variable.
    level : int, optional
        Pressure level [hPa]; by default 500 if there is one, else the middle one.
    lead : timedelta-like, optional
        By default the last.
    time : datetime-like, optional
        Start; by default the first.
    members : int, optional
        At most so many members are shown.

    Returns
    -------
    Figure

    Raises
    ------
    DatasetError
        If this is no ensemble forecast.
    ArgumentError
        If a variable, level, lead or start is not in it.
    """
    field = _choose(forecast, variable, level, lead, time)
    lat, lon = _horizontal(field)
    field = field.sortby([lat, lon]).transpose("number", lat, lon).load()
    import matplotlib.pyplot as plt

    shown = min(members, field.sizes["number"])
    columns = min(6, shown)
    rows = -(-shown // columns)
    figure = plt.figure(figsize=(2.1 * columns + 1.2, 1.2 * rows + 3.6), layout="constrained")
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.2 * rows, 3.0))
    low, high = np.nanquantile(field, [0.005, 0.995])
    style = {"cmap": "viridis", "vmin": low, "vmax": high, "shading": "nearest", "rasterized": True}
    axes = upper.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[shown:]:
        ax.set_axis_off()
    for ax, (number, member) in zip(axes.flat, field.groupby("number", squeeze=False), strict=False):
        ax.pcolormesh(field[lon], field[lat], member.squeeze("number"), **style)
        ax.set_title(f"member {int(number)}", fontsize=7, pad=2)
        ax.set(xticks=[], yticks=[])
    mean_axis, spread_axis = lower.subplots(1, 2)
    label = f"{field.attrs.get('long_name', field.name)} [{_units(field)}]"
    mean = mean_axis.pcolormesh(field[lon], field[lat], field.mean("number"), **style)
    lower.colorbar(mean, ax=mean_axis, location="bottom", label=label, shrink=0.9)
    _label(mean_axis, "ensemble mean")
    spread = field.std("number", ddof=1) if field.sizes["number"] > 1 else field.isel(number=0) * np.nan
    shading = spread_axis.pcolormesh(
        field[lon], field[lat], spread, cmap="magma", shading="nearest", vmin=0, rasterized=True
    )
    lower.colorbar(
        shading, ax=spread_axis, location="bottom", label=f"standard deviation [{_units(field)}]", shrink=0.9
    )
    _label(spread_axis, "ensemble spread")
    figure.suptitle(_title(forecast, field), fontsize=10)
    return figure


def _title(forecast: xr.Dataset, field: xr.DataArray) -> str:
    start = np.datetime_as_string(field["time"].values, unit="h") if "time" in field.coords else ""
    hours = field["prediction_timedelta"].values / np.timedelta64(1, "h")
    at = f" at {int(field['level'])} hPa" if "level" in field.coords else ""
    what = f"{field.attrs.get('long_name', field.name)}{at}, {start} + {hours:g} h"
    untrained = (
        "\nUNTRAINED model: random weights, no skill" if "UNTRAINED" in str(forecast.attrs.get("comment", "")) else ""
    )
    return what + untrained


def _choose(forecast: xr.Dataset, variable: str | None, level: int | None, lead: Any, time: Any) -> xr.DataArray:
    if missing := [d for d in ("number", "prediction_timedelta") if d not in forecast.dims]:
        raise DatasetError(
            explain(
                f"This is no ensemble forecast: it has no dimension {' and '.join(missing)}",
                got=", ".join(map(str, forecast.dims)),
                expected="a result of xmosaic.forecast",
            )
        )
    names = [str(n) for n in forecast.data_vars]
    if variable is None:
        variable = "geopotential" if "geopotential" in names else names[0]
    if variable not in names:
        raise ArgumentError(explain(f"variable={variable!r} is not in this forecast", expected=", ".join(names)))
    field = forecast[variable]
    if "level" in field.dims:
        levels = field["level"].values.tolist()
        wanted = level if level is not None else (500 if 500 in levels else levels[len(levels) // 2])
        field = _select(field, "level", wanted, ", ".join(map(str, levels)))
    last, first = field["prediction_timedelta"].values[-1], field["time"].values.ravel()[0]
    field = _select(field, "prediction_timedelta", np.timedelta64(last) if lead is None else lead, f"up to {last}")
    return _select(field, "time", first if time is None else time, "a start") if "time" in field.dims else field


def _select(field: xr.DataArray, dim: str, value: Any, expected: str) -> xr.DataArray:
    try:
        chosen = field.sel({dim: value})
    except (KeyError, ValueError, TypeError):
        raise ArgumentError(explain(f"{dim}={value!r} is not in this forecast", expected=expected)) from None
    return chosen if dim not in chosen.dims else chosen.isel({dim: 0})


def _horizontal(field: xr.DataArray) -> tuple[str, str]:
    for names in (("latitude", "longitude"), ("lat", "lon")):
        if set(names) <= set(field.dims):
            return names
    from .grid import find_latlon

    lat, lon = find_latlon(field)
    return str(lat), str(lon)


def _units(field: xr.DataArray) -> str:
    return str(field.attrs.get("units", "1")).replace("m2 s-2", "m² s⁻²").replace("s-1", "s⁻¹")


def _label(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9)
    ax.set(xlabel="longitude [°E]", ylabel="latitude [°N]")
