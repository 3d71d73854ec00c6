"""Pictures of calibration: rank histogram and reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from ..diagnostics.layout import LEAD, align, space_dims
from ..errors import ArgumentError, explain
from .choice import against, choose, flat, panels, starts_of
from .style import (
    BLUE,
    DASHES,
    GREY,
    SMALL,
    TRUTH,
    heading,
    lead_colours,
    lead_text,
    lines_of,
    lower_first,
    name_of,
    start_text,
    styled,
    units_text,
    untrained,
    upper_first,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# starts that a sampling band needs at least
_STARTS = 3


@styled
def rank_histogram(
    forecast: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray | None = None,
    variable: str | None = None,
    *,
    level: float | None = None,
    lead: Any = None,
    nan_policy: Literal["propagate", "raise", "omit"] = "propagate",
) -> Figure:
    """Rank histogram: flat where the truth can't be told apart from the members.

    Parameters
    ----------
    forecast : Dataset or DataArray, dims (number, …)
        In any common dialect; or a result of `xmosaic.diagnostics.rank_histogram`, averaged over starts where it has
        them.
    truth : Dataset or DataArray
        Analyses along time.
    variable, level
        See `stamps`.
    lead : timedelta-like or sequence of them, optional
        A panel each; by default the first, the middle one and the last.
    nan_policy : {"propagate", "raise", "omit"}
        See `xmosaic.diagnostics`.

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
    The bars are those of `xmosaic.diagnostics.rank_histogram`. Points of one field aren't independent, so their number
    says nothing about chance. From three starts on the shaded band holds 95 % of the bars of a flat histogram, each
    for itself: 1/(M + 1) ± 1.96 √(p(1 − p)/n), p = 1/(M + 1). The effective number n of independent points is
    S Σ p̄ᵣ(1 − p̄ᵣ)/Σ vᵣ, where p̄ᵣ and vᵣ are mean and variance of bar r over the S starts. Starts count as independent:
    where they follow each other by less than some days the band is too narrow. U-shaped: too little spread, or a bias
    that changes sign (Hamill 2001, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2).

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> figure = rank_histogram(fc, ds, "t850")
    """
    note = untrained(forecast)
    if "rank" in getattr(forecast, "dims", ()):
        if truth is not None:
            raise ArgumentError(explain("A histogram is drawn without a truth", got="both", do="Pass the forecast"))
        given = panels(choose(forecast, variable, level, ("rank",)).field, lead)
        bars = given.mean("time", keep_attrs=True) if "time" in given.dims else given
        each = given if "time" in given.dims else None
        title, starts = upper_first(name_of(given)), starts_of(given) if "time" in given.dims else None
    else:
        chosen = choose(forecast, variable, level)
        bars, each = _ranks(chosen.field, truth, lead, nan_policy)
        title, starts = f"Rank histogram of {lower_first(name_of(chosen.field))}", starts_of(chosen.field)
    import matplotlib.pyplot as plt

    count = bars.sizes[LEAD]
    figure = plt.figure(figsize=(max(3.0 * count, 4.6), 3.3), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    effective = []
    for k, ax in enumerate(axes):
        one = None if each is None else each.isel({LEAD: k}).dropna("time", how="all")
        effective.append(effective_points(one) if one is not None and one.sizes["time"] >= _STARTS else None)
        _draw_ranks(ax, bars.isel({LEAD: k}), effective[-1])
    axes[0].set_ylabel("relative frequency")
    axes[0].set_ylim(0, 1.05 * max(float(np.nanmax(bars.values, initial=0.0)), 1.6 / bars.sizes["rank"]))
    heading(figure, [title, start_text(starts)], note)
    figure.supxlabel(_band_text(effective, 0 if each is None else each.sizes["time"]), fontsize=SMALL, color="0.3")
    return figure


@styled
def reliability(
    forecast: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray | None = None,
    threshold: Any = None,
    variable: str | None = None,
    *,
    level: float | None = None,
    lead: Any = None,
    event: Literal["above", "below"] = "above",
    bins: int | None = None,
    nan_policy: Literal["propagate", "raise", "omit"] = "propagate",
) -> Figure:
    """Reliability diagram: how often an event happens where it is forecast with a probability, and how often it is.

    Parameters
    ----------
    forecast : Dataset or DataArray
        In any common dialect; or a result of `xmosaic.diagnostics.reliability`, without truth and threshold.
    truth : Dataset or DataArray
        Analyses along time.
    threshold : float or DataArray
        In the variable's units.
    variable, level
        See `stamps`.
    lead : timedelta-like or sequence of them, optional
        A line each; by default the first, the middle one and the last.
    event, bins, nan_policy
        See `xmosaic.diagnostics.reliability`.

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
    Below the diagram stands the share of all forecasts, by area, in each bin of probability: points of bins that are
    hardly ever used mean little. The dotted line is how often the event happens at all, at the first of the leads.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> figure = reliability(fc, ds, 280.0, "2m_temperature")
    """
    note = untrained(forecast)
    if "quantity" in getattr(forecast, "dims", ()):
        if truth is not None:
            raise ArgumentError(explain("A diagram is drawn without a truth", got="both", do="Pass the forecast"))
        result = panels(choose(forecast, variable, level, ("quantity",)).field, lead)
        parts, starts = [upper_first(name_of(result))], None
    else:
        if threshold is None:
            raise ArgumentError(explain("A reliability diagram needs a threshold", got="None", expected="a number"))
        result, parts, starts = _reliability(
            choose(forecast, variable, level).field, truth, threshold, lead, event, bins, nan_policy
        )
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(4.8, 5.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    _draw_reliability(upper, lower, result)
    heading(figure, [*parts, start_text(starts)], note)
    return figure


# -------------------------------------------------------------------------------------------------- the numbers


def _ranks(field: xr.DataArray, truth: Any, lead: Any, nan_policy: Any) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Histogram at each lead, and that of each start."""
    from ..diagnostics.calibration import rank_histogram as ranks

    ours, theirs = against(field, truth)
    ours = panels(ours, lead, align(ours, theirs).found)
    bars = flat(ranks(ours, theirs, nan_policy=nan_policy)).load()
    if ours.sizes.get("time", 1) < _STARTS:
        return bars, None
    return bars, flat(ranks(ours, theirs, dim=space_dims(ours), nan_policy=nan_policy)).load()


def effective_points(each: xr.DataArray) -> float:
    """Independent points that would let a histogram vary from start to start as this one does.

    Parameters
    ----------
    each : DataArray [1], dims (time, rank)

    Returns
    -------
    float
        Infinite where nothing varies.
    """
    mean, variance = each.mean("time"), each.var("time", ddof=1)
    total, spread = float(variance.sum()), float((mean * (1 - mean)).sum())
    # rounding alone is no variation
    return spread * each.sizes["time"] / total if total > 1e-24 else np.inf


def _reliability(
    field: xr.DataArray, truth: Any, threshold: Any, lead: Any, event: Any, bins: int | None, nan_policy: Any
) -> tuple[xr.DataArray, list[str], xr.DataArray | None]:
    from ..diagnostics.calibration import reliability as reliable

    ours, theirs = against(field, truth)
    ours = panels(ours, lead, align(ours, theirs).found)
    result = flat(reliable(ours, theirs, threshold, bins=bins, event=event, nan_policy=nan_policy)).load()
    units = units_text(field.attrs.get("units", ""))
    limit = f"{threshold:.6g} {units}".strip() if isinstance(threshold, int | float | np.number) else "a given field"
    sign = ">" if event == "above" else "≤"
    return result, [f"Reliability of {lower_first(name_of(field))}", f"event: {sign} {limit}"], starts_of(field)


# ---------------------------------------------------------------------------------------------------- drawing


def _draw_ranks(ax: Axes, bars: xr.DataArray, points: float | None) -> None:
    size = bars.sizes["rank"]
    flat_bar = 1 / size
    if points is not None and np.isfinite(points):
        half = 1.96 * np.sqrt(flat_bar * (1 - flat_bar) / points)
        ax.axhspan(max(flat_bar - half, 0), flat_bar + half, color="0.8", lw=0, zorder=0)
    ax.bar(bars["rank"], bars, width=0.85, color=BLUE, alpha=0.85)
    ax.axhline(flat_bar, color=TRUTH, lw=1.0, ls=(0, (5, 1.5)))
    ax.set_xlim(-0.7, size - 0.3)
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.set_xlabel(f"rank of the truth among {size - 1} members")
    if bars[LEAD].values != np.timedelta64(0, "ns"):
        ax.set_title(f"lead {lead_text(bars[LEAD].values)}")


def _band_text(effective: list[float | None], starts: int) -> str:
    flat_text = "Dashed: flat."
    known = [n for n in effective if n is not None and np.isfinite(n)]
    if not known:
        return f"{flat_text} Without {_STARTS} starts there is no sampling band."
    numbers = ", ".join(f"{float(f'{n:.2g}'):.0f}" for n in known)
    return (
        f"{flat_text} Shaded: 95 % of the bars if it were flat, binomial with n ≈ {numbers} independent points,\n"
        f"as estimated from how the bars vary between {starts} starts taken as independent."
    )


def _draw_reliability(upper: Axes, lower: Axes, result: xr.DataArray) -> None:
    count = result.sizes[LEAD]
    upper.plot([0, 1], [0, 1], color=TRUTH, lw=1.0, ls=(0, (5, 1.5)), label="perfect")
    share = result.sel(quantity="share")
    # an event's frequency is the same whatever is forecast
    base = float((share * result.sel(quantity="observed_frequency")).isel({LEAD: 0}).sum("bin"))
    upper.axhline(base, color=GREY, lw=1.0, ls=":", label=f"how often it happens: {base:.2g}")
    edges = np.append(result["bin_from"].values, result["bin_to"].values[-1])
    for k, colour in enumerate(lead_colours(count)):
        one = result.isel({LEAD: k})
        at = one[LEAD].values
        label = f"lead {lead_text(at)}" if at != np.timedelta64(0, "ns") else "forecast"
        x, y = (one.sel(quantity=q).values for q in ("forecast_probability", "observed_frequency"))
        known = np.isfinite(x) & np.isfinite(y)
        upper.plot(x[known], y[known], color=colour, marker="osD^"[k % 4], ls=DASHES[k % len(DASHES)], label=label)
        lower.stairs(one.sel(quantity="share").values, edges, color=colour, lw=1.4, ls=DASHES[k % len(DASHES)])
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed frequency")
    upper.set_box_aspect(1)
    lower.set_box_aspect(0.25)
    lower.set(ylabel="share of forecasts", xlabel="forecast probability", ylim=(0, None))
    upper.legend(loc="best")
    lines_of(upper)
    lines_of(lower)
