"""What the pictures share: colours, letters, units, axes of lead and wavelength, coastlines."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import xarray as xr

from ..variables import find_variable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R", bound="Figure")

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
OKABE_ITO = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Colours that people with any kind of colour vision can tell apart (Okabe & Ito 2008); black is the truth's."""
# colours alone are lost in grey
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
TRUTH = "black"
GREY = "0.45"
SMALL = 7.5

_LETTERS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.titlesize": 10,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "grid.linestyle": "-",
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "axes.titleweight": "normal",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "0.3",
    "axes.labelcolor": "black",
    "axes.titlecolor": "black",
    "text.color": "black",
    "xtick.color": "0.3",
    "ytick.color": "0.3",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}


def styled(picture: Callable[P, R]) -> Callable[P, R]:
    """Draw in one style, whatever the caller's settings, and leave those as they are.

    Parameters
    ----------
    picture : callable

    Returns
    -------
    callable
    """

    @functools.wraps(picture)
    def draw(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib as mpl
        import matplotlib.pyplot as plt

        plt.get_backend()  # chosen before rc_context, which would put back the state from before the choice
        with mpl.rc_context(_LETTERS):
            figure = picture(*args, **kwargs)
        if "inline" in plt.get_backend():
            plt.close(figure)  # a notebook shows what a cell returns, and once more what is left open
        return figure

    return draw


# ------------------------------------------------------------------------------------------------------- words


_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def units_text(units: Any) -> str:
    """Units with raised exponents.

    Examples
    --------
    >>> units_text("m2 s-2"), units_text("kg kg**-1"), units_text("(m2 s-2)2"), units_text("1"), units_text("degC")
    ('m² s⁻²', 'kg kg⁻¹', '(m² s⁻²)²', '1', 'degC')
    """
    return re.sub(r"(?<=[A-Za-z)])(?:\*\*|\^)?\+?(-?\d+)", lambda m: m[1].translate(_RAISED), str(units))


def name_of(field: xr.DataArray) -> str:
    """Long name of a variable, at its level where it is at one."""
    text = str(field.attrs.get("long_name") or str(field.name).replace("_", " "))
    level, known = field.coords.get("level"), find_variable(str(field.name))
    if level is None or level.size != 1 or (known is not None and not known.vertical):
        return text
    return f"{text} at {float(level.values.ravel()[0]):g} hPa"


def axis_label(what: str, field: xr.DataArray) -> str:
    """``spread [m² s⁻²]``; without brackets where there are no units, or the units are 1."""
    units = units_text(field.attrs.get("units", "1"))
    return what if units in ("1", "") else f"{what} [{units}]"


def lead_text(lead: Any) -> str:
    """``36 h``, and whole days from two days on: ``5 d``."""
    hours = float(np.timedelta64(lead) / np.timedelta64(1, "h"))
    return f"{hours / 24:g} d" if hours >= 48 and hours % 24 == 0 else f"{hours:g} h"


def degrees_text(value: float, plus: str, minus: str) -> str:
    """``45°N``, ``10.5°W``, ``0°``; longitudes from −180 to 180."""
    if plus == "E":
        value = (value + 180) % 360 - 180
    letter = "" if value in (0.0, -180.0) else plus if value > 0 else minus
    return f"{abs(value):g}°{letter}"


def start_text(times: xr.DataArray | None) -> str:
    """``start 2001-01-05T00``, or how many starts from when to when."""
    if times is None or times.dtype.kind != "M":
        return ""
    values = np.unique(times.values.ravel())
    first, last = (np.datetime_as_string(t, unit="h") for t in (values[0], values[-1]))
    return f"start {first}" if len(values) == 1 else f"{len(values)} starts {first} … {last}"


def lower_first(text: str) -> str:
    """For the middle of a sentence; ``U component`` stays."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def upper_first(text: str) -> str:
    """For the beginning of a title."""
    return text[:1].upper() + text[1:]


def untrained(forecast: Any) -> str:
    """A line that says so where the model knows nothing, else nothing."""
    says = "UNTRAINED" in str(getattr(forecast, "attrs", {}).get("comment", ""))
    return "UNTRAINED model: random weights, no skill" if says else ""


def heading(figure: Figure, parts: Sequence[str], *notes: str) -> None:
    """Title of a picture: parts joined with commas in lines as wide as it is, then notes, each on its own line."""
    width = int(figure.get_figwidth() * 72 / 5.8)  # letters of 10 points
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and len(lines[-1]) + len(part) + 2 <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    figure.suptitle("\n".join([*lines, *filter(None, notes)]))


# -------------------------------------------------------------------------------------------------------- axes


def lead_axis(leads: xr.DataArray) -> tuple[np.ndarray, str]:
    """Leads as numbers, and the label that says of what: days from two days on, else hours."""
    values = np.atleast_1d(leads.values).astype("timedelta64[ns]")
    days = bool(values.max() >= np.timedelta64(2, "D"))
    return values / np.timedelta64(1, "D" if days else "h"), f"lead [{'days' if days else 'h'}]"


def lead_ticks(ax: Axes, x: np.ndarray, label: str) -> None:
    """Ticks on whole days or hours; a single lead stands in the middle."""
    from matplotlib.ticker import MaxNLocator

    steps = [1, 2, 5, 10] if "days" in label else [1, 1.2, 2.4, 3, 6, 10]
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=steps, integer=True))
    if len(x) == 1:
        ax.set_xlim(x[0] - 1, x[0] + 1)
    ax.set_xlabel(label)


def time_axis(ax: Axes) -> None:
    """Dates below, and a light grid."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=8)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    ax.set_xlabel("valid time")
    ax.grid(True)


def lines_of(ax: Axes) -> None:
    """Light grid behind the lines."""
    from matplotlib.ticker import MaxNLocator

    ax.grid(True)
    if ax.get_yscale() == "linear":  # ticks whose number depends on the height upset the layout
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))


def lead_colours(count: int) -> list[Any]:
    """Colours in the order of leads, dark to light: the order survives in grey."""
    import matplotlib as mpl

    return [mpl.colormaps["cividis"](x) for x in np.linspace(0.0, 0.72, max(count, 2))][:count]


def wavelength_axis(ax: Axes, dim: Hashable) -> None:
    """Logarithmic wavenumbers below, wavelengths above."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from ..diagnostics.transforms import EARTH_RADIUS

    circle = 2 * np.pi * EARTH_RADIUS

    def length(k: Any) -> Any:
        k = np.maximum(k, 1e-6)
        return circle / (np.sqrt(k * (k + 1)) if dim == "total_wavenumber" else k)

    def number(km: Any) -> Any:
        k = circle / np.maximum(km, 1e-6)
        return np.sqrt(k**2 + 0.25) - 0.5 if dim == "total_wavenumber" else k

    upper = ax.secondary_xaxis("top", functions=(length, number))
    upper.set_xlabel("wavelength [km]")
    ax.set_xlabel(str(dim).replace("_", " "))
    for axis in (ax.xaxis, upper.xaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(_plain)
        axis.set_minor_formatter(NullFormatter())
    # five figures side by side touch each other
    upper.tick_params(labelsize=SMALL)


def _plain(value: float, _: Any = None) -> str:
    return f"{value:g}" if value < 1e5 else f"{value:.0f}"


# ------------------------------------------------------------------------------------------------------ colours


_MAPS = {
    "K": "inferno",
    "kg kg-1": "YlGnBu",
    "kg m-2": "YlGnBu",
}
_SIGNED = ("eastward_wind", "northward_wind", "lagrangian_tendency_of_air_pressure")


def colours_of(field: xr.DataArray, name: Hashable) -> dict[str, Any]:
    """Colour map and limits after the kind of quantity: around zero where the sign is what matters.

    Parameters
    ----------
    field : DataArray
        What is drawn; the limits leave out the outermost half percent on either side.
    name : hashable
        The variable's, in any dialect.

    Returns
    -------
    dict
        cmap, vmin, vmax of `pcolormesh`.
    """
    known = find_variable(str(name))
    standard = str(field.attrs.get("standard_name") or (known.standard_name if known else ""))
    finite = field.values[np.isfinite(field.values)]
    low, high = np.quantile(finite, [0.005, 0.995]) if finite.size else (0.0, 1.0)
    if standard in _SIGNED:
        limit = max(abs(low), abs(high)) or 1.0
        return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    units = str(field.attrs.get("units", known.units if known else ""))
    return {"cmap": _MAPS.get(units, "viridis"), "vmin": low, "vmax": high}


# --------------------------------------------------------------------------------------------------- coastlines


def coastlines() -> list[np.ndarray]:
    """Coastlines that cartopy has on disk, coarsest first; none where it isn't installed or has none.

    Nothing is downloaded: cartopy's own `natural_earth` would do that, so only its paths are asked.

    Returns
    -------
    list of ndarray [degrees], dims (point, 2)
        Longitude from −180 to 180, latitude.
    """
    try:
        from cartopy import config
        from cartopy.io import Downloader
        from cartopy.io.shapereader import Reader
    except ImportError:
        return []
    for resolution in ("110m", "50m", "10m"):
        where = {"config": config, "category": "physical", "name": "coastline", "resolution": resolution}
        downloader = Downloader.from_config(("shapefiles", "natural_earth", resolution, "physical", "coastline"))
        for path in (downloader.pre_downloaded_path(where), downloader.target_path(where)):
            if path is not None and path.is_file():
                shapes = [getattr(shape, "geoms", [shape]) for shape in Reader(str(path)).geometries()]
                return [np.asarray(line.coords)[:, :2] for lines in shapes for line in lines]
    return []


def draw_coastlines(ax: Axes, lines: Sequence[np.ndarray], colour: str = "0.15") -> None:
    """Draw coastlines on axes of longitude and latitude, whichever way longitudes are counted."""
    if not lines:
        return
    from matplotlib.collections import LineCollection

    low, high = ax.get_xlim()
    around = [line + np.array([turn, 0.0]) for turn in (-360.0, 0.0, 360.0) for line in lines]
    seen = [line for line in around if line[:, 0].max() >= low and line[:, 0].min() <= high]
    ax.add_collection(LineCollection(seen, colors=colour, linewidths=0.4, label="_coastlines"), autolim=False)
