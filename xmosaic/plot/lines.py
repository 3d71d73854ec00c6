"""Scores and drift of mass against lead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..diagnostics.layout import LEAD
from ..errors import ArgumentError, DatasetError, explain
from ..variables import listed
from .choice import against, as_dataset, choose, flat, starts_of
from .style import (
    BLUE,
    DASHES,
    GREY,
    OKABE_ITO,
    SMALL,
    VERMILION,
    axis_label,
    heading,
    lead_axis,
    lead_ticks,
    lines_of,
    name_of,
    start_text,
    styled,
    untrained,
    upper_first,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHORT = {
    "rmse": "RMSE",
    "bias": "bias",
    "mae": "MAE",
    "crps": "CRPS",
    "spread": "spread",
    "spread_skill": "spread/skill ratio",
    "acc": "anomaly correlation",
    "crps_skill": "CRPS skill",
    "threshold_weighted_crps": "threshold-weighted CRPS",
    "brier": "Brier score",
    "energy_score": "energy score",
}
# what is perfect, or no better than nothing
_MARKS = {"bias": 0.0, "spread_skill": 1.0, "acc": 1.0, "crps_skill": 0.0}


@styled
def skill(
    forecasts: Any,
    truth: xr.Dataset | xr.DataArray | None = None,
    variable: str | None = None,
    *,
    score: str = "crps",
    level: float | None = None,
    confidence: float | None = None,
    baselines: Any = None,
    **options: Any,
) -> Figure:
    """A score against lead, of one forecast or of several.

    Parameters
    ----------
    forecasts : Dataset, DataArray, or mapping of str to either
        Names are those of the legend. Results of a score of `xmosaic.diagnostics` are drawn as they are.
    truth : Dataset or DataArray
        Analyses along time; not needed where all are results.
    variable, level
        See `stamps`.
    score : str
        "crps", "rmse", "mae", "bias", "spread", "spread_skill", "acc", "crps_skill", "brier", "energy_score" or
        "threshold_weighted_crps".
    confidence : float, optional
        Shades the interval of that confidence, from a bootstrap over starts; see `xmosaic.diagnostics`.
    baselines : mapping of str to Dataset or DataArray, optional
        Drawn in grey.
    **options
        To the score, such as ``fair=False`` of the CRPS, ``climatology=`` of "acc" or ``threshold=`` of "brier".

    Returns
    -------
    Figure

    Raises
    ------
    DatasetError
        If the forecast lacks what the picture needs.
    ArgumentError
        If a variable, level or lead is not in it, or a truth is missing or too much.

    Notes
    -----
    The CRPS of a forecast without members is its mean absolute error. Each forecast is scored over the starts that it
    shares with the truth: where forecasts differ in that, the legend gives the numbers of starts, and their lines
    should not be compared.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> figure = skill({"bundled": fc}, ds, "t850", score="crps")
    """
    named = _named(forecasts, "forecast")
    grey = {} if baselines is None else _named(baselines, "baseline")
    if twice := [name for name in named if name in grey]:
        raise ArgumentError(explain("A forecast and a baseline have one name", got=listed(twice)))
    curves: dict[str, xr.DataArray] = {}
    for name, forecast in (named | grey).items():
        curves[name] = _score(forecast, truth, variable, score, level, confidence, options)
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(6.2, 3.8), layout="constrained")
    ax = figure.subplots()
    _draw_scores(ax, curves, list(grey))
    first = next(iter(curves.values()))
    key = str(first.attrs.get("score", score))
    _score_axis(ax, first, key)
    note = next((text for f in named.values() if (text := untrained(f))), "")
    own = next(iter(named.values()))
    starts = starts_of(own) if isinstance(own, xr.Dataset | xr.DataArray) else None
    heading(figure, [upper_first(name_of(first)), start_text(starts)], note)
    if "confidence" in first.attrs:
        text = f"Shaded: confidence {str(first.attrs['confidence']).split(', seed')[0]}."
        figure.supxlabel(text, fontsize=SMALL, color="0.3")
    return figure


@styled
def mass(
    forecast: xr.Dataset | xr.DataArray,
    start: xr.Dataset | xr.DataArray | None = None,
    *,
    variable: str | None = None,
) -> Figure:
    """Drift of mass since the start, of every member.

    Parameters
    ----------
    forecast : Dataset or DataArray [Pa]
        With surface or mean sea-level pressure, in any common dialect; or a result of `xmosaic.diagnostics.mass_drift`.
    start : Dataset or DataArray, optional
        Analyses that hold the start; by default the forecast's own first lead.
    variable : str, optional
        "surface_pressure" or "mean_sea_level_pressure", in any dialect.

    Returns
    -------
    Figure

    Raises
    ------
    DatasetError
        If the forecast lacks what the picture needs.
    ArgumentError
        If a variable, level or lead is not in it, or a truth is missing or too much.

    Notes
    -----
    As `xmosaic.diagnostics.mass_drift` gives it; several starts are drawn together, mean and range are over starts and
    members. The right axis is in percent of the pressure at the start, the mean of the starts'.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> figure = mass(fc, ds)
    """
    from ..diagnostics.conservation import mass_drift

    given = isinstance(forecast, xr.Dataset) and "mass_drift" in forecast
    if given and start is not None:
        raise ArgumentError(explain("A drift is drawn without a start", got="both", do="Pass the forecast"))
    ds = as_dataset(forecast if given else mass_drift(forecast, start, variable)).load()
    drift, percent = ds["mass_drift"], ds["mass_drift_percent"]
    drift, percent = (x if LEAD in x.dims else x.expand_dims(LEAD) for x in (drift, percent))
    others = [d for d in drift.dims if d != LEAD]
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(6.2, 3.8), layout="constrained")
    ax = figure.subplots()
    x, label = lead_axis(drift[LEAD])
    _draw_drift(ax, x, drift, others)
    lead_ticks(ax, x, label)
    lines_of(ax)
    ax.set_ylabel(axis_label("change of area-mean pressure", drift))
    ax.legend(loc="best")
    moved = np.abs(drift.values) > 0
    if moved.any():
        factor = float(np.median(percent.values[moved] / drift.values[moved]))
        right = ax.secondary_yaxis(
            "right", functions=(lambda y: np.multiply(y, factor), lambda y: np.divide(y, factor))
        )
        right.set_ylabel("[% of the start's]")
    proxy = str(drift.attrs.get("comment", "")).split(";")[0].split(":")[0].rstrip(".")
    against_what = str(drift.attrs.get("reference", "")).split(";")[0]
    notes = [proxy, f"against: {against_what}" if against_what else "", untrained(forecast)]
    heading(figure, ["Drift of mass", start_text(starts_of(drift))], *notes)
    return figure


# ------------------------------------------------------------------------------------------------- the numbers


def _named(forecasts: Any, what: str) -> dict[str, Any]:
    if isinstance(forecasts, xr.Dataset | xr.DataArray):
        return {what: forecasts}
    if not isinstance(forecasts, Mapping) or not forecasts:
        got = type(forecasts).__name__ if not isinstance(forecasts, Mapping) else "none"
        expected = "a Dataset, or a mapping of names to Datasets"
        raise ArgumentError(explain(f"The {what}s can't be used", got=got, expected=expected))
    return {str(name): forecast for name, forecast in forecasts.items()}


def _function(score: str) -> Callable[..., Any]:
    from ..diagnostics import calibration, scores

    if score not in _SHORT:
        raise ArgumentError(explain(f"score={score!r} is not known", expected=listed(_SHORT, len(_SHORT))))
    return getattr(calibration if hasattr(calibration, score) and score in ("brier", "energy_score") else scores, score)


def _score(
    forecast: Any,
    truth: Any,
    variable: str | None,
    score: str,
    level: float | None,
    confidence: float | None,
    options: dict[str, Any],
) -> xr.DataArray:
    """The score along lead, and bound where there is a confidence."""
    function = _function(score)
    chosen = choose(forecast, variable, level)
    if "score" in chosen.field.attrs:
        result = chosen.field
    else:
        ours, theirs = against(chosen.field, truth)
        result = flat(function(ours, theirs, **({"confidence": confidence} if confidence else {}), **options))
    if extra := [d for d in result.dims if d not in (LEAD, "bound")]:
        do = f"Average over {listed(extra)} or select"
        raise DatasetError(explain("The score has more dimensions than lead", got=listed(result.dims), do=do))
    return (result if LEAD in result.dims else result.expand_dims(LEAD)).load()


# ---------------------------------------------------------------------------------------------------- drawing


def _draw_scores(ax: Axes, curves: dict[str, xr.DataArray], grey: list[str]) -> None:
    counts = {name: _samples(curve) for name, curve in curves.items()}
    differ = len({c for c in counts.values() if c}) > 1
    longest = max(curves.values(), key=lambda c: c[LEAD].max())
    unit = lead_axis(longest[LEAD])[1]
    colour = 0
    for name, curve in curves.items():
        x = curve[LEAD].values / np.timedelta64(1, "D" if "days" in unit else "h")
        middle = curve.sel(bound="estimate") if "bound" in curve.dims else curve
        if name in grey:
            place = grey.index(name)
            style: dict[str, Any] = {"color": str(0.35 + 0.2 * (place % 3)), "ls": DASHES[1 + place % 3], "lw": 1.2}
        else:
            style = {"color": OKABE_ITO[colour % 6], "ls": DASHES[(colour // 6) % 4], "marker": "osD^vP"[colour % 6]}
            colour += 1
        if "bound" in curve.dims:
            low, high = curve.sel(bound="lower"), curve.sel(bound="upper")
            ax.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)
        starts = f" ({counts[name]} starts)" if differ and counts[name] else ""
        ax.plot(x, middle.values, label=f"{name}{starts}", **style)
    lead_ticks(ax, lead_axis(longest[LEAD])[0], unit)
    lines_of(ax)
    if len(curves) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _samples(curve: xr.DataArray) -> str:
    if "samples" not in curve.coords:
        return ""
    values = np.unique(curve.coords["samples"].values)
    return f"{values[0]}" if len(values) == 1 else f"{values[0]}…{values[-1]}"


def _score_axis(ax: Axes, first: xr.DataArray, key: str) -> None:
    text = _SHORT.get(key, key.replace("_", " "))
    fair = "fair " if first.attrs.get("fair") == "true" else ""
    of = f" of the {first.attrs['of']}" if "of" in first.attrs and key in ("rmse", "mae", "bias") else ""
    ax.set_ylabel(axis_label(f"{fair}{text}{of}", first))
    if key in _MARKS:
        ax.axhline(_MARKS[key], color=GREY, lw=0.9)
    elif key in _SHORT:
        ax.set_ylim(bottom=0)


def _draw_drift(ax: Axes, x: np.ndarray, drift: xr.DataArray, others: list[Any]) -> None:
    many = int(np.prod([drift.sizes[d] for d in others] or [1]))
    rows = drift.transpose(LEAD, *others).values.reshape(len(x), many)
    ax.axhline(0.0, color=GREY, lw=0.9)
    marker = "o" if len(x) == 1 else ""
    if many == 1:
        ax.plot(x, rows[:, 0], color=VERMILION, marker=marker, label="forecast")
        return
    ax.fill_between(x, rows.min(axis=1), rows.max(axis=1), color=BLUE, alpha=0.15, lw=0, label="range")
    names = {"number": "member", "time": "start"}
    each = " and ".join(names.get(str(d), str(d)) for d in others)
    thin: dict[str, Any] = {"color": BLUE, "lw": 0.5 if many <= 30 else 0.3, "alpha": 0.6, "marker": marker, "ms": 2}
    for k in range(many):
        ax.plot(x, rows[:, k], label=None if k else f"each {each}", **thin)
    ax.plot(x, rows.mean(axis=1), color=VERMILION, lw=2, marker=marker, label="mean")
