"""Pictures of a benchmark: scores by lead, power over the truth's, drift of mass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..variables import listed
from .choice import at_leads
from .style import DASHES, OKABE_ITO, styled, units_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Field = tuple[str, int | None]
LEAD = "prediction_timedelta"


@styled
def score_panels(result: xr.Dataset, fields: Sequence[Field], scores: Sequence[str] | None = None) -> Figure:
    """Scores against lead, a row per field and a column per score, intervals shaded.

    Parameters
    ----------
    result : Dataset
        Of `xmosaic.benchmark`.
    fields : sequence of (variable, level or None)
        Such as ``("geopotential", 500)``; a row each.
    scores : sequence of str, optional
        A column each; by default CRPS, RMSE and spread/skill, as far as they are there.

    Returns
    -------
    Figure

    Raises
    ------
    DatasetError
        If this is no result of a benchmark.
    ArgumentError
        If a variable, level or score is not in it.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> result = xmosaic.benchmark({"bundled": fc}, ds, "crps", spectra=False, mass=False, progress=False)
    >>> figure = score_panels(result, [("geopotential", 500)])
    """
    _check(result, fields)
    there = [str(s) for s in result["score"].values]
    if unknown := [s for s in scores or () if s not in there]:
        raise ArgumentError(explain(f"score {unknown[0]!r} is not in this result", expected=listed(there, len(there))))
    chosen = list(scores) if scores else [s for s in ("crps", "rmse", "spread_skill") if s in there] or there[:3]
    figure, axes = _panels(len(fields), len(chosen))
    days = _days(result)
    for row, (variable, level) in zip(axes, fields, strict=True):
        for ax, score in zip(row, chosen, strict=True):
            values = _at(result[variable].sel(score=score), level)
            for number, name in enumerate(result["forecast"].values):
                _line(ax, days, values.sel(forecast=name), str(name), number)
            plain = "score_units" in result.coords and str(result["score_units"].sel(score=score).item()) == "1"
            units = "1" if plain else result[variable].attrs.get("units", "1")
            what = score.replace("_", "/") if plain else score.upper()
            ax.set_ylabel(f"{what} [{units_text(units)}]", fontsize=8)
            ax.set_title(_title(variable, level), fontsize=8)
            if score == "spread_skill":
                ax.axhline(1, color="black", linewidth=0.6)
            elif score != "bias":
                ax.set_ylim(bottom=0)
    _finish(figure, axes, "lead [days]")
    return figure


@styled
def ratio_panels(result: xr.Dataset, fields: Sequence[Field], leads: Any = None) -> Figure:
    """Power of the members over the truth's against wavenumber, a row per field and a column per lead.

    Parameters
    ----------
    result : Dataset
        Of `xmosaic.benchmark`, with spectra.
    fields : sequence of (variable, level or None)
        Those without spectra are left out.
    leads : timedelta-like or sequence of them, optional
        At most three of them are shown, evenly; by default of all.

    Returns
    -------
    Figure

    Raises
    ------
    DatasetError
        If this is no result of a benchmark, or none of the fields has spectra.
    ArgumentError
        If a variable, level or lead is not in it.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> result = xmosaic.benchmark({"bundled": fc}, ds, "crps", mass=False, progress=False)
    >>> figure = ratio_panels(result, [("geopotential", 500)])
    """
    _check(result, fields)
    fields = [f for f in fields if f"{f[0]}_spectral_ratio" in result]
    if not fields:
        raise DatasetError(explain("None of the fields has spectra", do="Make the benchmark with spectra=True"))
    asked = at_leads(result[LEAD], leads if leads is not None else list(result[LEAD].values)).values
    shown = asked[:: max(1, -(-len(asked) // 3))][:3]
    figure, axes = _panels(len(fields), len(shown), sharey=True)
    for row, (variable, level) in zip(axes, fields, strict=True):
        ratio = _at(result[f"{variable}_spectral_ratio"], level).isel(total_wavenumber=slice(1, None))
        for ax, lead in zip(row, shown, strict=True):
            here = ratio.sel({LEAD: lead})
            for number, name in enumerate(result["forecast"].values):
                _line(ax, here["total_wavenumber"].values, here.sel(forecast=name), str(name), number)
            ax.axhspan(0.9, 1.1, color="0.9", zorder=0)
            ax.axhline(1, color="black", linewidth=0.6)
            ax.set(xscale="log", ylim=(0, 2))
            ax.set_title(f"{_title(variable, level)}, {lead / np.timedelta64(1, 'D'):g} d", fontsize=8)
        row[0].set_ylabel("power / truth's [1]", fontsize=8)
    _finish(figure, axes, "total wavenumber")
    return figure


@styled
def mass_panel(result: xr.Dataset) -> Figure:
    """Drift of area-mean pressure against lead, its interval shaded, the extremes as thin lines.

    Parameters
    ----------
    result : Dataset
        Of `xmosaic.benchmark`, with mass.

    Returns
    -------
    Figure
    """
    figure, axes = _panels(1, 1, width=6.0)
    ax, days = axes[0, 0], _days(result)
    for number, name in enumerate(result["forecast"].values):
        _line(ax, days, result["mass_drift"].sel(forecast=name), str(name), number)
        for extreme in ("mass_drift_min", "mass_drift_max"):
            ax.plot(days, result[extreme].sel(forecast=name), color=_colour(number), linewidth=0.5)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set_ylabel("drift of area-mean pressure [hPa]", fontsize=8)
    _finish(figure, axes, "lead [days]")
    return figure


def _panels(rows: int, columns: int, width: float = 3.2, **shared: Any) -> tuple[Figure, np.ndarray]:
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(width * columns, 2.1 * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, **shared)


def _line(ax: Axes, x: np.ndarray, values: xr.DataArray, label: str, number: int) -> None:
    dash = DASHES[number // len(OKABE_ITO) % len(DASHES)]
    one = values.sel(bound="estimate")
    marker = "o" if len(x) == 1 else None
    ax.plot(x, one, color=_colour(number), linestyle=dash, linewidth=1.3, label=label, marker=marker, markersize=3)
    low, high = values.sel(bound="lower"), values.sel(bound="upper")
    if np.isfinite(low).any():
        ax.fill_between(x, low, high, color=_colour(number), alpha=0.2, linewidth=0)


def _colour(number: int) -> str:
    return OKABE_ITO[number % len(OKABE_ITO)]


def _finish(figure: Figure, axes: np.ndarray, xlabel: str) -> None:
    for ax in axes.flat:
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel(xlabel, fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), fontsize=8, frameon=False)


def _check(result: Any, fields: Sequence[Field]) -> None:
    if not isinstance(result, xr.Dataset) or not {"forecast", "score", LEAD} <= set(result.dims):
        got = f"dimensions {listed(result.dims)}" if isinstance(result, xr.Dataset) else type(result).__name__
        raise DatasetError(explain("This is no result of a benchmark", got=got, expected="that of xmosaic.benchmark"))
    if not fields:
        raise ArgumentError(explain("fields= is empty", expected="such as [('geopotential', 500)]"))
    scored = [n for n, v in result.data_vars.items() if "score" in v.dims]
    for variable, level in fields:
        if variable not in scored:
            raise ArgumentError(explain(f"{variable!r} is not in this result", expected=listed(scored, 20)))
        levels = result[variable]["level"].values.tolist() if "level" in result[variable].dims else [None]
        if level not in levels:
            what = f"level {level} of {variable!r} is not in this result"
            raise ArgumentError(explain(what, expected=", ".join(map(str, levels))))


def _at(field: xr.DataArray, level: int | None) -> xr.DataArray:
    return field if level is None else field.sel(level=level)


def _days(result: xr.Dataset) -> np.ndarray:
    return np.asarray(result[LEAD].values / np.timedelta64(1, "D"))


def _title(variable: str, level: int | None) -> str:
    return variable.replace("_", " ") + (f" {level:g} hPa" if level is not None else "")
