"""Maps: every member side by side, and the spread beside its growth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..diagnostics.layout import LEAD
from ..errors import ArgumentError, DatasetError, explain
from ..grid import LatLonGrid
from .choice import against, as_dataset, choose, flat, one_lead, one_start, starts_of
from .style import (
    BLUE,
    VERMILION,
    axis_label,
    coastlines,
    colours_of,
    draw_coastlines,
    heading,
    lead_axis,
    lead_text,
    lead_ticks,
    lines_of,
    name_of,
    start_text,
    styled,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure


@styled
def stamps(
    forecast: xr.Dataset | xr.DataArray,
    variable: str | None = None,
    *,
    level: float | None = None,
    lead: Any = None,
    time: Any = None,
    members: int = 24,
) -> Figure:
    """Stamp map: every member side by side, and the ensemble's mean and spread.

    Parameters
    ----------
    forecast : Dataset, dims (number, prediction_timedelta, latitude, longitude) or (…, cell), further time and level
        In any common dialect. The HEALPix mesh is drawn on a 1° grid.
    variable : str, optional
        By default 500 hPa geopotential if there is one, else the first variable.
    level : float, optional
        Pressure level [hPa]; by default 500 if there is one, else the middle one.
    lead : timedelta-like, optional
        By default the last.
    time : datetime-like, optional
        Start; by default the first.
    members : int, optional
        At most so many members are shown; mean and spread are those of all.

    Returns
    -------
    Figure

    Raises
    ------
    DatasetError
        If this is no ensemble forecast.
    ArgumentError
        If a variable, level, lead or start is not in it.

    Notes
    -----
    One colour scale for all members and the mean, less the outermost half percent of the values on either side. The
    spread is the standard deviation with M − 1. Coastlines are drawn where cartopy is installed and has them on disk.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> figure = stamps(fc, "t850")
    """
    ds = as_dataset(forecast)
    _need_ensemble(ds)
    if isinstance(members, bool) or not isinstance(members, int | np.integer) or members < 1:
        raise ArgumentError(explain(f"members={members!r} can't be used", expected="an integer of at least 1"))
    chosen = choose(ds, variable, level, ("number",))
    field, regridded = on_map(one_start(one_lead(chosen.field, lead), time))
    field = field.transpose("number", "latitude", "longitude")
    import matplotlib.pyplot as plt

    shown = min(members, field.sizes["number"])
    rows = -(-shown // 6)
    columns = max(-(-shown // rows), 2)
    width = max(2.1 * columns, 6.3)
    figure = plt.figure(figsize=(width, 0.75 + 0.62 * width / columns * rows + 0.32 * width), layout="constrained")
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(0.62 / columns * rows, 0.36))
    colours, lines = colours_of(field, chosen.name), coastlines()
    axes = upper.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[shown:]:
        ax.set_axis_off()
    for ax, k in zip(axes.flat, range(shown), strict=False):
        draw_map(ax, field.isel(number=k), lines, **colours)
        ax.set_title(f"member {_label(field, k)}", fontsize=7, pad=2)
        ax.set(xticks=[], yticks=[])
    mean_axis, spread_axis = lower.subplots(1, 2, sharey=True)
    mean = draw_map(mean_axis, field.mean("number"), lines, **colours)
    label = axis_label(str(field.attrs.get("long_name", field.name)), field)
    lower.colorbar(mean, ax=mean_axis, location="bottom", label=label, shrink=0.9, aspect=30, extend="both")
    label_map(mean_axis, "ensemble mean")
    if field.sizes["number"] > 1:
        _draw_spread(lower, spread_axis, field.std("number", ddof=1), field, lines, "ensemble spread")
    else:
        spread_axis.set_axis_off()
        spread_axis.set_title("ensemble spread: one member has none")
    spread_axis.set_ylabel("")
    heading(figure, [_title(field)], regridded, chosen.note)
    return figure


@styled
def spread(
    forecast: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray | None = None,
    variable: str | None = None,
    *,
    level: float | None = None,
    lead: Any = None,
    time: Any = None,
    confidence: float | None = None,
) -> Figure:
    """Spread of the ensemble and error of its mean as lead grows, and a map of the spread.

    Parameters
    ----------
    forecast : Dataset or DataArray, dims (number, prediction_timedelta, latitude, longitude) or (…, cell)
        With time: averaged over starts.
    truth : Dataset or DataArray, optional
        Analyses along time. Without it the spread is drawn alone.
    variable, level
        See `stamps`.
    lead : timedelta-like, optional
        Of the map; by default the last.
    time : datetime-like, optional
        Start of the map; by default the root mean square over starts.
    confidence : float, optional
        Shades the interval of that confidence, from a bootstrap over starts; see `xmosaic.diagnostics`.

    Returns
    -------
    Figure

    Raises
    ------
    DatasetError
        Without an ensemble.
    ArgumentError
        If a variable, level, lead or start is not in it.

    Notes
    -----
    Spread √⟨s²⟩ and RMSE of the mean √⟨(x̄ − y)²⟩, as `xmosaic.diagnostics.spread` and `rmse` give them. The dotted line
    is the spread times √((M + 1)/M): where M members can't be told apart from the truth, their mean has that error
    (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1).

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> figure = spread(fc, ds, "t850")
    """
    ds = as_dataset(forecast)
    _need_ensemble(ds)
    chosen = choose(ds, variable, level, ("number",))
    field = chosen.field if LEAD in chosen.field.dims else chosen.field.expand_dims(LEAD)
    if field.sizes["number"] < 2:
        raise DatasetError(explain("One member has no spread", got="number of size 1", expected="two or more"))
    curves = _curves(field, truth, confidence)
    at = one_lead(field, lead)
    mapped = one_start(at, time) if time is not None else at
    variance = mapped.astype(np.float64).var("number", ddof=1, keep_attrs=True)
    deviation = np.sqrt(variance.mean("time") if "time" in variance.dims else variance).assign_attrs(field.attrs)
    deviation, regridded = on_map(deviation)
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9.6, 3.7), layout="constrained")
    # two of them: legend and colour bar need room of their own
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.25))
    _draw_growth(left.subplots(), curves, field)
    left.legend(loc="outside lower center")
    where = f"spread at {lead_text(at[LEAD].values)}" + ("" if time is None else f", {start_text(starts_of(mapped))}")
    _draw_spread(right, right.subplots(), deviation, field, coastlines(), where)
    parts = [name_of(field), f"{field.sizes['number']} members", start_text(starts_of(field))]
    heading(figure, parts, regridded, chosen.note)
    return figure


def _curves(field: xr.DataArray, truth: Any, confidence: float | None) -> dict[str, xr.DataArray]:
    """Spread, and RMSE where there is a truth; with confidence along a dimension bound."""
    from ..diagnostics.scores import rmse
    from ..diagnostics.scores import spread as spread_of

    if truth is None:
        # the truth only says which starts and leads count: a member has them all
        same = field.isel(number=0, drop=True)
        return {"spread": flat(spread_of(field, same, confidence=confidence))}
    ours, theirs = against(field, truth)
    return {
        "spread": flat(spread_of(ours, theirs, confidence=confidence)),
        "RMSE of the mean": flat(rmse(ours, theirs, confidence=confidence)),
    }


def _draw_growth(ax: Axes, curves: dict[str, xr.DataArray], field: xr.DataArray) -> None:
    x, label = lead_axis(field[LEAD])
    marker = "o" if len(x) < 25 else ""
    size = field.sizes["number"]
    for (name, curve), colour, dash in zip(curves.items(), (BLUE, VERMILION), ("-", (0, (5, 1.5))), strict=False):
        middle = curve
        if "bound" in curve.dims:
            middle = curve.sel(bound="estimate")
            ax.fill_between(x, curve.sel(bound="lower"), curve.sel(bound="upper"), color=colour, alpha=0.2, lw=0)
        ax.plot(x, middle.values, color=colour, ls=dash, marker=marker, label=name)
        if name == "spread" and len(curves) > 1:
            expected = middle.values * np.sqrt((size + 1) / size)
            ax.plot(x, expected, color=BLUE, ls=":", lw=1.1, label=r"spread × $\sqrt{(M+1)/M}$: the RMSE it calls for")
    lead_ticks(ax, x, label)
    lines_of(ax)
    ax.set_ylim(bottom=0)
    what = "spread and error" if len(curves) > 1 else "spread"
    ax.set_ylabel(axis_label(what, field))


# ----------------------------------------------------------------------------------------------- what maps share


def on_map(field: xr.DataArray) -> tuple[xr.DataArray, str]:
    """A field along ascending latitude and longitude, in memory, and what was done for it, for the title.

    Parameters
    ----------
    field : DataArray, dims (…, latitude, longitude) or (…, cell)
        In canonical dimensions.

    Returns
    -------
    field : DataArray, dims (…, latitude, longitude)
    words : str
        Empty where nothing was regridded.
    """
    if "cell" in field.dims:
        from ..healpix import find_mesh, to_latlon

        mesh = find_mesh(field)
        field = to_latlon(field, LatLonGrid.equiangular(360, 181))
        return field.load(), f"HEALPix nside {mesh.nside if mesh else '?'}, drawn on a 1° grid"
    if missing := [d for d in ("latitude", "longitude") if d not in field.dims]:
        got = ", ".join(map(str, field.dims))
        raise DatasetError(explain(f"A map needs dimension {' and '.join(missing)}", got=got))
    return field.sortby(["latitude", "longitude"]).transpose(..., "latitude", "longitude").load(), ""


def draw_map(ax: Axes, field: xr.DataArray, lines: Sequence[np.ndarray], **colours: Any) -> QuadMesh:
    """Shade a field, dims (latitude, longitude), and draw coastlines."""
    mesh = ax.pcolormesh(field["longitude"], field["latitude"], field, shading="nearest", rasterized=True, **colours)
    west, east = _edges(field["longitude"].values)
    south, north = _edges(field["latitude"].values)
    # cells at the poles end there
    ax.set(xlim=(west, east), ylim=(max(south, -90.0), min(north, 90.0)))
    for spine in ax.spines.values():
        spine.set_visible(True)
    draw_coastlines(ax, lines)
    return mesh


def _edges(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 2:
        return float(values[0]) - 0.5, float(values[0]) + 0.5
    return float(1.5 * values[0] - 0.5 * values[1]), float(1.5 * values[-1] - 0.5 * values[-2])


def label_map(ax: Axes, title: str) -> None:
    """Title, and degrees on both axes."""
    from matplotlib.ticker import MultipleLocator

    ax.set_title(title)
    ax.set(xlabel="longitude [°E]", ylabel="latitude [°N]")
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        step = next((s for s in (1, 2, 5, 10, 15, 30) if high - low <= 7 * s), 60)
        axis.set_major_locator(MultipleLocator(step))


def _draw_spread(
    figure: Any, ax: Axes, deviation: xr.DataArray, field: xr.DataArray, lines: Sequence[np.ndarray], title: str
) -> None:
    finite = deviation.values[np.isfinite(deviation.values)]
    top = float(np.quantile(finite, 0.995)) if finite.size else 1.0
    # white is none, in colour and in grey
    mesh = draw_map(ax, deviation, lines, cmap="magma_r", vmin=0, vmax=top or 1.0)
    label = axis_label("standard deviation", field)
    figure.colorbar(mesh, ax=ax, location="bottom", label=label, shrink=0.9, aspect=30, extend="max")
    label_map(ax, title)


def _need_ensemble(ds: xr.Dataset) -> None:
    missing = [d for d in ("number", LEAD) if d not in ds.dims and not (d == LEAD and d in ds.coords)]
    if missing:
        raise DatasetError(
            explain(
                f"This is no ensemble forecast: it has no dimension {' and '.join(missing)}",
                got=", ".join(map(str, ds.dims)),
                expected="a result of xmosaic.forecast",
            )
        )


def _label(field: xr.DataArray, k: int) -> str:
    return str(field["number"].values[k]) if "number" in field.coords else str(k + 1)


def _title(field: xr.DataArray) -> str:
    start = np.datetime_as_string(field["time"].values, unit="h") if "time" in field.coords else "start"
    hours = field[LEAD].values / np.timedelta64(1, "h")
    return f"{name_of(field)}, {start} + {hours:g} h"
