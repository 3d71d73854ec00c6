"""Pictures of spectra: power per wavenumber, and how much of the truth's a forecast has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from ..diagnostics.layout import LEAD, align
from ..errors import ArgumentError, explain
from ..healpix import find_mesh
from ..variables import find_variable, listed
from .choice import against, as_dataset, at_level, choose, flat, panels, starts_of
from .style import (
    BLUE,
    DASHES,
    GREY,
    SMALL,
    TRUTH,
    VERMILION,
    axis_label,
    heading,
    lead_colours,
    lead_text,
    lines_of,
    lower_first,
    name_of,
    start_text,
    styled,
    untrained,
    upper_first,
    wavelength_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["total", "zonal"]
_WAVENUMBERS = ("total_wavenumber", "zonal_wavenumber")
# more members than this are a range without lines
_LINES = 30


@styled
def spectra(
    forecast: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray | None = None,
    variable: str | None = None,
    *,
    level: float | None = None,
    lead: Any = None,
    kind: Kind = "total",
) -> Figure:
    """Power per wavenumber of the members, of their mean and of the truth.

    Parameters
    ----------
    forecast : Dataset or DataArray, dims (…, latitude, longitude) or (…, cell)
        In any common dialect; or a result of `xmosaic.diagnostics.spectra`, which is drawn as it is, averaged over
        starts.
    truth : Dataset or DataArray, optional
        Analyses along time; then starts and leads without one are left out of the forecast's power too.
    variable : str, optional
        Also "kinetic_energy", "kinetic_energy_rotational", "kinetic_energy_divergent" and "10m_kinetic_energy". By
        default 500 hPa geopotential if there is one, else the first variable.
    level : float, optional
        Pressure level [hPa]; by default 500 if there is one, else the middle one.
    lead : timedelta-like or sequence of them, optional
        A panel each; by default the first, the middle one and the last.
    kind : {"total", "zonal"}

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
    Powers are averaged over starts, then the median over members is taken per wavenumber; the shading reaches from the
    least to the largest. The mean's spectrum falls below the members' where they disagree: that is no fault of theirs.
    Wavenumber 0 has no place on a logarithmic axis; on the HEALPix mesh those above 2 nside aren't drawn. With winds
    and kinetic energy come lines of slope −3 and −5/3 (Nastrom and Gage 1985,
    doi:10.1175/1520-0469(1985)042<0950:ACOAWS>2.0.CO;2).

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> figure = spectra(fc, ds, "t850")
    """
    notes = [untrained(forecast)]
    power = _given(forecast, variable, level)
    if power is not None:
        if truth is not None:
            raise ArgumentError(explain("A spectrum is drawn without a truth", got="both", do="Pass the forecast"))
        rows = [{"members": row} for row in _each(panels(_over_starts(power), lead))]
        parts = [upper_first(name_of(power)), start_text(starts_of(power))]
    else:
        sources, wanted = _sources(as_dataset(forecast), variable, level)
        rows = _powers(sources, truth, wanted, lead, kind)
        parts = [_title_of(sources, wanted, rows[0]["members"]), start_text(starts_of(sources))]
        notes.insert(0, _mesh_text(sources))
    import matplotlib.pyplot as plt

    width = 4.8 if len(rows) == 1 else 3.2 * len(rows)
    figure = plt.figure(figsize=(width, 3.9), layout="constrained")
    axes = figure.subplots(1, len(rows), sharex=True, sharey=True, squeeze=False)[0]
    limits = _limits(rows)
    for ax, row in zip(axes, rows, strict=True):
        _draw_spectrum(ax, row)
        windy = _windy(row["members"].name)
        ax.set_ylim(limits[0], limits[1] * (4 if windy else 1))
        if windy:
            _draw_slopes(ax, row.get("truth", row["members"]))
        ax.label_outer()
    axes[0].set_ylabel(axis_label("power", rows[0]["members"]))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) if len(rows) > 1 else 2)
    heading(figure, parts, *notes)
    return figure


@styled
def ratio(
    forecast: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray | None = None,
    variable: str | None = None,
    *,
    level: float | None = None,
    lead: Any = None,
    kind: Kind = "total",
) -> Figure:
    """Power of the members over that of the truth, per wavenumber: below 1 where they are too smooth.

    Parameters
    ----------
    forecast, truth, variable, level, kind
        See `spectra`. A result of `xmosaic.diagnostics.spectral_ratio` is drawn as it is, without a truth.
    lead : timedelta-like or sequence of them, optional
        A line each; by default the first, the middle one and the last.

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
    The line is averaged over starts and members before the division, as `xmosaic.diagnostics.spectral_ratio` does it;
    the shading reaches from the least to the largest member, each averaged over starts. The grey band is 0.9 to 1.1.
    The axis ends at 0.02 and at 20. On the HEALPix mesh wavenumbers above 2 nside aren't drawn.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> figure = ratio(fc, ds, "t850")
    """
    notes = [untrained(forecast)]
    middle, members = _given(forecast, variable, level), None
    if middle is not None:
        if truth is not None:
            raise ArgumentError(explain("A ratio is drawn without a truth", got="both", do="Pass the forecast"))
        middle = middle.mean("time", keep_attrs=True) if "time" in middle.dims else middle
        if "number" in middle.dims:
            middle, members = middle.mean("number", keep_attrs=True), middle
        parts = [upper_first(name_of(middle))]
        middle = panels(middle, lead)
    else:
        sources, wanted = _sources(as_dataset(forecast), variable, level)
        middle, members = _ratios(sources, truth, wanted, lead, kind)
        parts = [f"{_title_of(sources, wanted, middle)} over the truth's", start_text(starts_of(sources))]
        notes.insert(0, _mesh_text(sources))
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(6.2, 3.9), layout="constrained")
    ax = figure.subplots()
    dim = _wavenumber(middle)
    shown = middle.sel({dim: slice(1, None)})
    ax.axhspan(0.9, 1.1, color="0.88", lw=0, label="0.9 … 1.1")
    ax.axhline(1.0, color=TRUTH, lw=0.8)
    for k, colour in enumerate(lead_colours(shown.sizes[LEAD])):
        one, at = shown.isel({LEAD: k}), shown[LEAD].values[k]
        if members is not None:
            own = _at(members, at).sel({dim: slice(1, None)})
            ax.fill_between(one[dim], own.min("number"), own.max("number"), color=colour, alpha=0.2, lw=0)
        label = f"lead {lead_text(at)}" if at != np.timedelta64(0, "ns") else "forecast"
        ax.plot(one[dim], one, color=colour, ls=DASHES[k % len(DASHES)], label=label)
    ax.set_xscale("log")
    _ratio_axis(ax, shown)
    wavelength_axis(ax, dim)
    ax.set_xlim(1, float(shown[dim][-1]))
    lines_of(ax)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    heading(figure, parts, *notes)
    return figure


# ------------------------------------------------------------------------------------------------- the numbers


def _given(obj: Any, variable: str | None, level: float | None) -> xr.DataArray | None:
    """A result of the diagnostics, at one level; None where it isn't one."""
    if not any(d in getattr(obj, "dims", ()) for d in _WAVENUMBERS):
        return None
    dim = next(d for d in _WAVENUMBERS if d in obj.dims)
    return choose(obj, variable, level, (dim,)).field


def _wavenumber(power: xr.DataArray) -> str:
    return next(d for d in _WAVENUMBERS if d in power.dims)


def _over_starts(power: xr.DataArray) -> xr.DataArray:
    return power.mean("time", skipna=False, keep_attrs=True) if "time" in power.dims else power


def _each(power: xr.DataArray) -> list[xr.DataArray]:
    return [power.isel({LEAD: k}) for k in range(power.sizes[LEAD])]


def _sources(ds: xr.Dataset, variable: str | None, level: float | None) -> tuple[xr.Dataset, str]:
    """Variables that are transformed, and the name of the power among the results."""
    if variable is None or "kinetic_energy" not in variable or variable in ds.data_vars:
        field = choose(ds, variable, level).field
        return field.to_dataset(name=field.name), str(field.name)
    winds = [n for n in ds.data_vars if (v := find_variable(str(n))) and v.name.endswith("component_of_wind")]
    if not winds:
        got = listed(ds.data_vars)
        raise ArgumentError(explain(f"variable={variable!r} needs winds", got=got, expected="both components"))
    upper = [n for n in winds if variable.startswith("10") == str(find_variable(str(n)).name).startswith("10")]  # type: ignore[union-attr]
    return at_level(ds[upper or winds], level), variable


def _powers(sources: xr.Dataset, truth: Any, wanted: str, lead: Any, kind: Kind) -> list[dict[str, xr.DataArray]]:
    """For each lead the power of members, mean and truth, averaged over the starts that have a truth."""
    theirs: xr.Dataset | None = None
    found: xr.DataArray | None = None
    ours = sources
    if truth is not None:
        both = align(*against(sources, truth))
        ours, theirs = (x.isel(level=0) if "level" in x.dims else x for x in (both.forecast, both.truth))
        found = both.found
    rows = []
    for at in panels(ours, lead, found)[LEAD].values:
        here, there, good = (_at(x, at) for x in (ours, theirs, found))
        if good is not None and "time" in good.dims:
            starts = np.flatnonzero(good.values)
            here, there = (x.isel(time=starts) if "time" in x.dims else x for x in (here, there))
        row = {"members": _power(here, wanted, kind, "members")}
        if here.sizes.get("number", 1) > 1:
            row["mean"] = _power(here, wanted, kind, "mean")
        if there is not None:
            row["truth"] = _power(there, wanted, kind, "members")
        rows.append(row)
    return rows


def _at(obj: Any, lead: Any) -> Any:
    return obj.sel({LEAD: lead}) if obj is not None and LEAD in obj.dims else obj


def _power(ds: xr.Dataset, wanted: str, kind: Kind, of: Literal["members", "mean"]) -> xr.DataArray:
    from ..diagnostics.spectra import spectra as spectra_of

    result = spectra_of(ds, kind=kind, variables=_transformed(ds, wanted), of=of, kinetic_energy=False)
    if wanted not in result:
        raise ArgumentError(explain(f"variable={wanted!r} has no spectrum", got=listed(result.data_vars)))
    return _reliable(_over_starts(result[wanted]), ds).load()


def _ratios(
    sources: xr.Dataset, truth: Any, wanted: str, lead: Any, kind: Kind
) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Ratio at each lead, and that of every member."""
    from ..diagnostics.spectra import spectral_ratio

    ours, theirs = against(sources, truth)
    ours = panels(ours, lead, align(ours, theirs).found)

    def of(dims: list[str]) -> xr.DataArray:
        there = [d for d in dims if d in ours.dims]
        result = spectral_ratio(ours, theirs, kind=kind, dim=there, variables=_transformed(ours, wanted))
        return _reliable(flat(result[[wanted]]), ours).load()

    return of(["time", "number"]), of(["time"]) if ours.sizes.get("number", 1) > 1 else None


def _transformed(ds: xr.Dataset, wanted: str) -> str:
    """What the diagnostics are asked for: parts of a kinetic energy come with the whole."""
    return wanted if wanted in ds else re.sub(r"(?<=kinetic_energy)_(rotational|divergent)", "", wanted)


def _reliable(power: xr.DataArray, ds: xr.Dataset) -> xr.DataArray:
    """Without the wavenumbers above 2 nside, that the mesh can't tell apart."""
    mesh = find_mesh(ds) if "cell" in ds.dims else None
    return power if mesh is None else power.sel({_wavenumber(power): slice(None, 2 * mesh.nside)})


def _mesh_text(ds: xr.Dataset) -> str:
    mesh = find_mesh(ds) if "cell" in ds.dims else None
    return "" if mesh is None else f"HEALPix nside {mesh.nside}, drawn up to wavenumber 2 nside"


# -------------------------------------------------------------------------------------------------- drawing


def _title_of(sources: xr.Dataset, wanted: str, power: xr.DataArray) -> str:
    text = str(sources[wanted].attrs.get("long_name", wanted) if wanted in sources else wanted).replace("_", " ")
    text = re.sub(r"kinetic energy (rotational|divergent)", r"\1 kinetic energy", text)
    return f"Power of {name_of(power.assign_attrs(long_name=lower_first(text)))}"


def _windy(name: Any) -> bool:
    known = find_variable(str(name))
    return "kinetic_energy" in str(name) or (known is not None and known.name.endswith("component_of_wind"))


def _limits(rows: list[dict[str, xr.DataArray]]) -> tuple[float, float]:
    """From below the least power of the small scales, where drops are what one looks for, to above the largest."""
    powers = [p.sel({_wavenumber(p): slice(1, None)}) for row in rows for p in row.values()]
    halves = [p.isel({_wavenumber(p): slice(p.sizes[_wavenumber(p)] // 2, None)}) for p in powers]
    all_of, small = (np.concatenate([p.values.ravel() for p in some]) for some in (powers, halves))
    top = float(np.max(all_of[np.isfinite(all_of)], initial=0.0))
    if top <= 0:
        return 0.1, 10.0
    small = small[np.isfinite(small) & (small > top * 1e-12)]
    return max(float(np.min(small, initial=top)) / 3, top * 1e-12), top * 4


def _draw_spectrum(ax: Axes, row: dict[str, xr.DataArray]) -> None:
    members = row["members"]
    dim = _wavenumber(members)
    k = members[dim].values[1:]
    own = members.sel({dim: slice(1, None)})
    if "number" in own.dims and own.sizes["number"] > 1:
        ax.fill_between(k, own.min("number"), own.max("number"), color=BLUE, alpha=0.18, lw=0, label="range of members")
        if own.sizes["number"] <= _LINES:
            ax.plot(k, own.transpose(dim, "number"), color=BLUE, lw=0.4, alpha=0.5)
        ax.plot(k, own.median("number"), color=BLUE, label="median member")
    else:
        ax.plot(k, own.squeeze(), color=BLUE, label="forecast")
    if "mean" in row:
        ax.plot(k, row["mean"].sel({dim: slice(1, None)}), color=VERMILION, ls=(0, (4, 1.5)), label="ensemble mean")
    if "truth" in row:
        ax.plot(k, row["truth"].sel({dim: slice(1, None)}), color=TRUTH, lw=1.2, label="truth")
    ax.set(xscale="log", yscale="log")
    ax.set_xlim(1, k[-1])
    wavelength_axis(ax, dim)
    lines_of(ax)
    if LEAD in members.coords and members[LEAD].values != np.timedelta64(0, "ns"):
        ax.set_title(f"lead {lead_text(members[LEAD].values)}")


def _draw_slopes(ax: Axes, power: xr.DataArray) -> None:
    """Lines of slope −3 and −5/3 above the spectrum, where they can be compared with it."""
    if "number" in power.dims:
        power = power.median("number")
    dim = _wavenumber(power)
    last = int(power[dim][-1])
    for slope, text, (first, end) in (
        (-3.0, "−3", (last // 8, last // 3)),
        (-5 / 3, "−5/3", (last // 3, int(last / 1.2))),
    ):
        k = np.arange(max(first, 4), end + 1)
        line = k**slope
        # twice the largest power on the way: nowhere does the line cross the spectrum
        factor = 2 * float(np.nanmax(power.sel({dim: k}).values / line)) if len(k) > 1 else np.nan
        if not np.isfinite(factor) or factor <= 0:
            continue
        ax.plot(k, factor * line, color=GREY, lw=1.0, ls=(0, (1, 1)), label=f"_slope {text}")
        middle = (np.sqrt(k[0] * k[-1]), factor * np.sqrt(k[0] * k[-1]) ** slope)
        ax.annotate(text, middle, (2, 3), textcoords="offset points", fontsize=SMALL, color="0.3")


def _ratio_axis(ax: Axes, shown: xr.DataArray) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = shown.values[np.isfinite(shown.values) & (shown.values > 0)]
    # a fiftieth or twentyfold says enough: where the truth has next to nothing the ratio has no bounds
    low = max(min(0.5, float(values.min()) / 1.2), 0.02) if values.size else 0.5
    high = min(max(2.0, float(values.max()) * 1.2), 20.0) if values.size else 2.0
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    wide = high / low > 200
    ticks = [m * 10.0**e for e in range(-3, 4) for m in ((1,) if wide else (1, 2, 5))]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_ylabel("power over the truth's")
