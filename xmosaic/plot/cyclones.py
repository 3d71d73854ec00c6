"""Pictures of cyclone tracks: where members take a storm, and how deep it gets."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..diagnostics.layout import LEAD, canonical_dims
from ..errors import ArgumentError, DatasetError, explain
from ..tracks.errors import ensemble_mean_track
from ..tracks.places import one_track
from ..tracks.sphere import angle, between, degrees, exp_map, frame, plane, unit
from .choice import one_start
from .style import (
    BLUE,
    OKABE_ITO,
    SMALL,
    TRUTH,
    VERMILION,
    coastlines,
    degrees_text,
    draw_coastlines,
    heading,
    start_text,
    styled,
    time_axis,
    untrained,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# degrees between points that are drawn along a great circle
_STEP = 0.5
# height of the map over its width
_SHAPE = 0.75
# radius of the ellipse that holds half of a normal distribution in the plane, in standard deviations
_HALF = float(np.sqrt(-2 * np.log(0.5)))


@styled
def tracks(
    forecast: xr.Dataset | xr.DataArray,
    best_track: xr.Dataset | None = None,
    *,
    near: Any = None,
    start: Any = None,
    time: Any = None,
    **options: Any,
) -> Figure:
    """Tracks of cyclones in every member, with the members' mean and the best track; and their pressure.

    Parameters
    ----------
    forecast : Dataset or DataArray
        A forecast, whose storms are tracked; or a result of `xmosaic.tracks.tracks`.
    best_track : Dataset, dims (valid_time), optional
        Of `xmosaic.tracks.read_best_track`; or one track of an analysis.
    near, start, **options
        See `xmosaic.tracks.tracks`; not for its results. Without `near` the best track is, where there is one.
    time : datetime-like, optional
        Start of the forecast; by default the first.

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
    Lines between positions are great circles. The mean is that of `xmosaic.tracks.ensemble_mean_track`, where at least
    half of the members have the storm. Ellipses, once a day, would hold half of the members if their positions were
    distributed normally: from the covariance (m − 1) of the m members in the azimuthal equidistant map around the mean,
    where m is at least four. The best track is drawn within the span of the forecast's valid times and, thin, beyond.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("2D", members=2, time="2012-05-10", progress=False)
    >>> found = fc.mosaic.tracks(progress=False)
    >>> figure = tracks(found)
    """
    found = _found(forecast, best_track, near, start, time, options)
    best = None if best_track is None else one_track(best_track, "The best track")
    members = _members(found)
    storms = [members.isel(storm=k) for k in range(members.sizes["storm"])]
    storms = [s for s in storms if bool(s["latitude"].notnull().any())]
    if not storms:
        raise DatasetError(explain("There is no track to draw", got="no centre in any member", do="Track other storms"))
    means = [ensemble_mean_track(s) if s.sizes["number"] > 1 else None for s in storms]
    middle = _middle(storms, best)
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9.8, 4.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    single = len(storms) == 1
    for k, (storm, mean) in enumerate(zip(storms, means, strict=True)):
        colours = (BLUE, VERMILION) if single else (OKABE_ITO[k % 6],) * 2
        name = "" if single else f"storm {int(storm['storm'])}"
        _draw_storm(left, storm, mean, middle, colours, name)
        _draw_pressure(right, storm, mean, colours)
    if best is not None:
        _draw_best(left, right, best, middle, storms)
    _frame(left, middle)
    time_axis(right)
    right.set_ylabel("lowest mean sea-level pressure [hPa]")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles[:12], labels[:12], loc="outside lower center", ncols=min(len(labels), 6))
    size = members.sizes["number"]
    what = f"Cyclone tracks of {size} members" if size > 1 else "Cyclone tracks"
    heading(figure, [what, start_text(found.coords.get("time"))], untrained(forecast))
    return figure


# --------------------------------------------------------------------------------------------------- the tracks


def _found(forecast: Any, best_track: Any, near: Any, start: Any, time: Any, options: dict[str, Any]) -> xr.Dataset:
    if isinstance(forecast, xr.Dataset) and "storm" in forecast.dims:
        if given := [n for n, v in (("near", near), ("start", start), *options.items()) if v is not None]:
            raise ArgumentError(explain(f"{given[0]}= is for tracking", got="tracks", do="Pass the forecast"))
        return one_start(forecast, time).load()
    from ..tracks.finder import tracks as track

    near = best_track if near is None else near
    return one_start(track(one_start(canonical_dims(forecast)[0], time), near=near, start=start, **options), None)


def _members(found: xr.Dataset) -> xr.Dataset:
    """Tracks along (number, storm, valid_time)."""
    if missing := [n for n in ("latitude", "longitude", "mean_sea_level_pressure") if n not in found]:
        raise DatasetError(explain(f"The tracks have no {missing[0]!r}", got=str(tuple(found.data_vars))))
    if LEAD in found.dims:
        found = found.swap_dims({LEAD: "valid_time"})
    return found if "number" in found.dims else found.expand_dims("number")


def _middle(storms: list[xr.Dataset], best: xr.Dataset | None) -> float:
    """Longitude in the middle of everything: the map is unrolled from there, so that no line crosses its edge."""
    points = np.concatenate([unit(s["latitude"].values, s["longitude"].values).reshape(-1, 3) for s in storms])
    if best is not None:
        points = np.concatenate([points, unit(best["latitude"].values, best["longitude"].values).reshape(-1, 3)])
    centre = points[np.isfinite(points[:, 0])].mean(axis=0)
    return float(np.rad2deg(np.arctan2(centre[1], centre[0])))


def _path(latitude: Any, longitude: Any, middle: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions with points along the great circles between them; NaN where the track breaks."""
    points = unit(latitude, longitude)
    pieces = []
    for one, other in pairwise(points):
        if np.isnan(one).any() or np.isnan(other).any():
            pieces.append(one[None])
            continue
        count = max(1, int(np.ceil(np.rad2deg(angle(one, other)) / _STEP)))
        pieces.append(np.stack([between(one, other, k / count) for k in range(count)]))
    return _unrolled(np.concatenate([*pieces, points[-1:]]), middle)


def _unrolled(points: np.ndarray, middle: float) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes within 180° of the middle, broken where a line would cross the map."""
    latitude, longitude = degrees(points)
    x = middle + (longitude - middle + 180) % 360 - 180
    jumps = np.flatnonzero(np.abs(np.diff(x)) > 180) + 1
    return np.insert(x, jumps, np.nan), np.insert(latitude, jumps, np.nan)


def _ellipse(storm: xr.Dataset, mean: xr.Dataset, at: int, middle: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Ellipse that would hold half of the members; None where fewer than four have the storm."""
    points = unit(storm["latitude"].isel(valid_time=at).values, storm["longitude"].isel(valid_time=at).values)
    points = points[np.isfinite(points[:, 0])]
    centre = unit(mean["latitude"].values[at], mean["longitude"].values[at])
    if len(points) < 4 or np.isnan(centre).any():
        return None
    values, axes = np.linalg.eigh(np.cov(np.stack(plane(centre, points))))
    turn = np.linspace(0, 2 * np.pi, 73)
    half = _HALF * np.sqrt(np.maximum(values, 0))
    east, north = axes @ (half[:, None] * np.stack([np.cos(turn), np.sin(turn)]))
    to_east, to_north = frame(centre)
    return _unrolled(exp_map(centre[None], east[:, None] * to_east + north[:, None] * to_north), middle)


# ------------------------------------------------------------------------------------------------------ drawing


def _draw_storm(
    ax: Axes, storm: xr.Dataset, mean: xr.Dataset | None, middle: float, colours: tuple[str, str], name: str
) -> None:
    thin, thick = colours
    several = storm.sizes["number"] > 1
    label: str | None = (None if name else "members") if several else name or "forecast"
    for k in range(storm.sizes["number"]):
        one = storm.isel(number=k)
        x, y = _path(one["latitude"].values, one["longitude"].values, middle)
        width = {"lw": 0.7, "alpha": 0.6} if several else {"lw": 2.0}
        if np.isfinite(x).any():
            ax.plot(x, y, color=thin, label=label, **width)  # type: ignore[arg-type]
            label = None
    if mean is None:
        return
    x, y = _path(mean["latitude"].values, mean["longitude"].values, middle)
    ax.plot(x, y, color=thick, lw=2.2, label=name or "mean of members")
    if name:  # the colour alone is lost in grey
        first = int(np.flatnonzero(np.isfinite(x))[0]) if np.isfinite(x).any() else 0
        _note(ax, str(int(storm["storm"])), x[first], y[first])
        return
    for number, at in enumerate(_daily(storm)):
        ellipse = _ellipse(storm, mean, at, middle)
        if ellipse is not None:
            ax.fill(*ellipse, facecolor=thick, alpha=0.12, lw=0)
            text = "half of the members, if normal (daily)" if not number else None
            ax.plot(*ellipse, color=thick, lw=0.8, ls=(0, (4, 1.5)), label=text)
            _mark(ax, mean, at, middle)


def _mark(ax: Axes, mean: xr.Dataset, at: int, middle: float) -> None:
    """A dot on the mean, with its day."""
    x, y = _unrolled(unit(mean["latitude"].values[at], mean["longitude"].values[at])[None], middle)
    ax.plot(x, y, "o", color=VERMILION, ms=4)
    day = np.datetime_as_string(mean["valid_time"].values[at].astype("datetime64[D]"))[8:].lstrip("0")
    _note(ax, day, x[0], y[0])


def _note(ax: Axes, text: str, x: float, y: float) -> None:
    from matplotlib.patheffects import withStroke

    ax.annotate(
        text,
        (x, y),
        (-5, 4),
        textcoords="offset points",
        ha="right",
        fontsize=SMALL,
        zorder=10,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )


def _daily(storm: xr.Dataset) -> list[int]:
    """Places of the valid times that are whole days from the last, at most eight, the first one left out."""
    times = storm["valid_time"].values
    days = (times[-1] - times) / np.timedelta64(1, "D")
    whole = [k for k in range(1, len(times)) if days[k] == int(days[k])]
    return whole[:: -(-len(whole) // 8)] if whole else []


def _draw_pressure(ax: Axes, storm: xr.Dataset, mean: xr.Dataset | None, colours: tuple[str, str]) -> None:
    times = storm["valid_time"].values
    hpa = storm["mean_sea_level_pressure"].transpose("valid_time", "number").values / 100
    width = {"lw": 0.7, "alpha": 0.6} if mean is not None else {"lw": 2.0}
    ax.plot(times, hpa, color=colours[0], **width)  # type: ignore[arg-type]
    if mean is not None and "mean_sea_level_pressure" in mean:
        ax.plot(times, mean["mean_sea_level_pressure"].values / 100, color=colours[1], lw=2.2)


def _draw_best(left: Axes, right: Axes, best: xr.Dataset, middle: float, storms: list[xr.Dataset]) -> None:
    times = best[best["latitude"].dims[0]].values
    spans = [s["valid_time"].values for s in storms]
    first, last = min(s[0] for s in spans), max(s[-1] for s in spans)
    within = (times >= first) & (times <= last)
    x, y = _path(best["latitude"].values, best["longitude"].values, middle)
    left.plot(x, y, color=TRUTH, lw=0.6, scalex=False, scaley=False)
    seen = best.isel({best["latitude"].dims[0]: within})
    if within.any():
        x, y = _path(seen["latitude"].values, seen["longitude"].values, middle)
        left.plot(x, y, color=TRUTH, lw=1.6)
        dots = _unrolled(unit(seen["latitude"].values, seen["longitude"].values), middle)
        left.plot(*dots, "s", color=TRUTH, ms=2.8)
    left.plot([], [], "s-", color=TRUTH, lw=1.8, ms=2.8, label="best track")
    if "mean_sea_level_pressure" in best:
        shown = seen if within.any() else best
        hpa = shown["mean_sea_level_pressure"].values / 100
        right.plot(times[within] if within.any() else times, hpa, "s-", color=TRUTH, lw=1.2, ms=2.8)


def _frame(ax: Axes, middle: float) -> None:
    """Limits around the lines, degrees of equal length, and coastlines."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    (west, east), (south, north) = ax.get_xlim(), ax.get_ylim()
    parallel = np.deg2rad(min(abs(south + north) / 2, 75.0))
    height = max(1.12 * (north - south), 1.12 * (east - west) * np.cos(parallel) * _SHAPE, 4.0)
    width = height / np.cos(parallel) / _SHAPE
    # near a pole or all around, the map ends and degrees differ in length
    ax.set_xlim(_around((west + east) / 2, min(width, 360.0), middle - 180, middle + 180))
    ax.set_ylim(_around((south + north) / 2, min(height, 180.0), -90.0, 90.0))
    ax.set_box_aspect(_SHAPE)
    for axis, (plus, minus) in ((ax.xaxis, "EW"), (ax.yaxis, "NS")):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 3, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda v, _, plus=plus, minus=minus: degrees_text(v, plus, minus)))
    for spine in ax.spines.values():
        spine.set_visible(True)
    ax.grid(True)
    ax.set(xlabel="longitude", ylabel="latitude")
    draw_coastlines(ax, coastlines(), "0.5")


def _around(centre: float, length: float, low: float, high: float) -> tuple[float, float]:
    """An interval of a length around a centre, moved to lie within bounds."""
    start = min(max(centre - length / 2, low), high - length)
    return start, start + length
