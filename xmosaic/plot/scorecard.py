"""Pictures of a benchmark: scores by lead, power over the truth's, drift of mass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

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
    scores : sequence of str, optional
        By default CRPS, RMSE and spread/skill, as far as they are there.

    Returns
    -------
    Figure
    """
    there = [str(s) for s in result["score"].values]
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
def ratio_panels(result: xr.Dataset, fields: Sequence[Field], leads: Sequence[Any]) -> Figure:
    """Power of the members over the truth's against wavenumber, a row per field and a column per lead.

    Parameters
    ----------
    result : Dataset
        Of `xmosaic.benchmark`, with spectra.
    fields : sequence of (variable, level or None)
    leads : sequence of timedelta-like

    Returns
    -------
    Figure
    """
    fields = [f for f in fields if f"{f[0]}_spectral_ratio" in result]
    shown = list(leads)[:: max(1, -(-len(leads) // 3))][:3]
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


def _at(field: xr.DataArray, level: int | None) -> xr.DataArray:
    return field if level is None else field.sel(level=level)


def _days(result: xr.Dataset) -> np.ndarray:
    return np.asarray(result[LEAD].values / np.timedelta64(1, "D"))


def _title(variable: str, level: int | None) -> str:
    return variable.replace("_", " ") + (f" {level:g} hPa" if level is not None else "")
