"""Tracks of cyclones in every member of a forecast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from ..diagnostics.layout import LEAD, caller_names
from ..errors import ArgumentError, explain
from ..grid import wrap_longitude
from ..options import get_option
from .detect import Centres, Criteria, find_centres
from .follow import FOUND, Find, Follower, Linker, Motion, Place, Track, flags, match_members
from .places import place_of
from .source import Source, read_forecast
from .sphere import EARTH_RADIUS, angle, degrees

_ATTRIBUTES = {
    "latitude": {"standard_name": "latitude", "long_name": "latitude of the centre", "units": "degrees_north"},
    "longitude": {"standard_name": "longitude", "long_name": "longitude of the centre", "units": "degrees_east"},
    "mean_sea_level_pressure": {
        "standard_name": "air_pressure_at_mean_sea_level",
        "long_name": "lowest mean sea-level pressure",
        "units": "Pa",
        "method": "lowest of the fitted paraboloid and of the grid points",
    },
    "wind": {"standard_name": "wind_speed", "long_name": "highest 10 m wind speed around the centre", "units": "m s-1"},
    "relative_vorticity_850": {
        "standard_name": "atmosphere_relative_vorticity",
        "long_name": "most cyclonic relative vorticity at 850 hPa around the centre",
        "units": "s-1",
    },
    "warm_core": {"long_name": "temperature of the core above its surroundings", "units": "K"},
    "distance_to_near": {"long_name": "great-circle distance to the place of near", "units": "km"},
    "flag": {
        "long_name": "what became of the track",
        "flag_values": np.array([0, 1, 2, 3], np.int8),
        "flag_meanings": "no_track centre_found no_centre_found no_field",
    },
    "found": {"long_name": "whether there is a centre"},
}
_MINIMUM = {"min_wind": "wind", "min_vorticity": "relative_vorticity_850", "min_warm_core": "warm_core"}


def tracks(
    forecast: xr.Dataset | xr.DataArray,
    *,
    near: Any = None,
    start: Any = None,
    max_speed: float = 30.0,
    max_gap: int = 1,
    near_radius: float = 500.0,
    min_depth: float = 200.0,
    contour_radius: float | None = None,
    separation: float = 3.0,
    min_wind: float | None = None,
    min_vorticity: float | None = None,
    min_warm_core: float | None = None,
    wind_radius: float = 3.0,
    steering: bool = True,
    min_points: int = 2,
    match_radius: float = 500.0,
    min_members: int = 1,
    progress: bool | None = None,
) -> xr.Dataset:
    """Track cyclones in every member of a forecast.

    With `near`, the one storm that is nearest to it is followed forward. Without, all lows are found, linked in
    time within each member, and matched across the members. Values are needed for this: the forecast is
    read and computed here, a member and a few leads at a time, and only the variables and levels named below.

    Parameters
    ----------
    forecast : Dataset, dims (time, number, prediction_timedelta, latitude, longitude) or (…, cell)
        In any common dialect, on a global or regional grid or on the HEALPix mesh; `time` and `number` may be
        absent. Without lead times, `time` is that of analyses, and they are followed. Needs mean sea-level pressure.
        Used where present: 10 m wind, wind and temperature on pressure levels.
    near : (latitude, longitude) [degrees], sequence of (time, latitude, longitude), or Dataset, optional
        A Dataset is a best track (`read_best_track`) or one track of this function. A track is interpolated along
        great circles to the first time that is followed, and continued beyond its end by its last motion. A point is
        where the storm is at `start`, or at the first time.
    start : datetime-like or timedelta-like, optional
        Nothing is tracked before this valid time, or before this lead.
    max_speed : float [m s-1]
        No centre moves faster.
    max_gap : int
        A track goes on after at most so many times in a row without a centre; they stay NaN.
    near_radius : float [km]
        How far from `near` the storm may be at first.
    min_depth : float [Pa]
        Rise of pressure from the centre, needed in each of eight sectors within `contour_radius`.
    contour_radius : float [degree], optional
        By default 5.5, or three grid spacings where that is more.
    separation : float [degree]
        Of lows closer to each other the deepest counts.
    min_wind, min_vorticity, min_warm_core : float [m s-1, s-1, K], optional
        Further conditions on a centre; vorticity counts as positive where it is cyclonic.
    wind_radius : float [degree]
        Within it the highest wind and vorticity are looked for; two grid spacings where that is more.
    steering : bool
        Whether the flow around the storm takes part in predicting its next position.
    min_points : int
        Without `near`: centres that a track must have.
    match_radius : float [km]
        Without `near`: tracks of two members can be one storm if they are no further apart when both first exist.
    min_members : int
        Without `near`: members that a storm must have.
    progress : bool, optional
        Progress bar after the first second; by default the option `progress`.

    Returns
    -------
    Dataset, dims (number, storm, valid_time), or (time, number, storm, prediction_timedelta)
        The second where `time` is a dimension of the forecast, with `valid_time` as coordinate; storms are then
        counted anew for each start. `storm` counts from 1. NaN where a member has no centre. Variables

        latitude, longitude [degrees]
            Longitudes as the forecast counts them.
        mean_sea_level_pressure [Pa]
            Lowest, of the fit and of the grid points.
        wind [m s-1]
            Highest at 10 m within `wind_radius`.
        relative_vorticity_850 [s-1]
            Most cyclonic within `wind_radius`: positive in the north, negative in the south.
        warm_core [K]
            Mean temperature of the levels of 200 to 500 hPa, within 2° (1.5 grid spacings where that is more) less that
            between 5° and 8° (3 and 5 spacings).
        distance_to_near [km]
            Where `near` has a position at that time.
        flag, found
            No track, centre, no centre found, no field in the forecast; found is flag = 1.

        Variables that the forecast has no fields for are left out.

    Raises
    ------
    DatasetError
        Without pressure, times or a grid, or with units that can't be converted.
    ArgumentError
        For thresholds on fields that aren't there, and radii too small for the grid.

    Notes
    -----
    **Centres** are grid points lowest within `separation`, whose pressure rises by `min_depth` in all directions:
    the closed contour of [1]_, whose 2 hPa within 5.5° are the defaults [2]_; its warm-core criterion is left
    to `min_warm_core`, so that by default extratropical cyclones are tracked too. The position is the lowest
    point of a paraboloid, fitted to the points within 2.3 spacings in the azimuthal equidistant map around the
    grid point by least squares. Weights are cell areas times exp(-(d/h)²), d the distance to the centre that the fit
    before found (three passes), h the spacing. This knows neither poles nor the date line, and on the HEALPix mesh it
    works on the cells themselves: nothing is regridded. The pressure is that of the paraboloid where it is below
    the grid point's, else the grid point's; a storm smaller than the spacing is deeper than either.

    **Following.** The next position is predicted by the mean of the last displacement and the steering flow
    (850, 700, 500 hPa as present, mean between 2.5° and 7° from the centre) over the actual time step, as in [3]_ and
    its successors. The centre nearest to the prediction counts that is within half of what `max_speed`
    allows, plus two grid spacings; within all of it while no motion is known. With daily steps that is 1300 km: two
    storms closer than this can be mistaken for each other.

    **Matching.** Pairs of tracks from different members are joined into storms from the closest on, by the
    distance when both first exist, never two of one member. The order of the members doesn't matter.

    Cost on a 1.5° grid: 50 ms per field of 30 lows without `near`, 12 ms with it (one core), and reading.

    References
    ----------
    .. [1] Ullrich, P. A. and Zarzycki, C. M. (2017). TempestExtremes: a framework for scale-insensitive pointwise
       feature tracking on unstructured grids. Geosci. Model Dev. 10, 1069-1090. doi:10.5194/gmd-10-1069-2017
    .. [2] Zarzycki, C. M. and Ullrich, P. A. (2017). Assessing sensitivities in algorithmic detection of tropical
       cyclones in climate data. Geophys. Res. Lett. 44, 1141-1149. doi:10.1002/2016GL071606
    .. [3] Vitart, F., Anderson, J. L. and Stern, W. F. (1997). Simulation of interannual variability of tropical storm
       frequency in an ensemble of GCM integrations. J. Climate 10, 745-760.
       doi:10.1175/1520-0442(1997)010<0745:SOIVOT>2.0.CO;2

    Examples
    --------
    A low that moves 3° a day to the east:

    >>> days = pd.date_range("2000-01-01", periods=3)
    >>> latitude, longitude = np.arange(-90, 91, 3.0), np.arange(0, 360, 3.0)
    >>> lam, phi = np.meshgrid(longitude, latitude)
    >>> depth = np.stack([2000 * np.exp(-((lam - 60 - 3 * k) ** 2 + (phi - 21) ** 2) / 30) for k in range(3)])
    >>> coords = {"time": days, "latitude": latitude, "longitude": longitude}
    >>> field = xr.DataArray(101000 - depth, coords, name="msl", attrs={"units": "Pa"})
    >>> tracks(field, near=(20, 60))["longitude"].round(2).squeeze().values
    array([60., 63., 66.])
    """
    source = read_forecast(forecast, steering)
    radii = (contour_radius, separation, wind_radius)
    minimum = {"min_wind": min_wind, "min_vorticity": min_vorticity, "min_warm_core": min_warm_core}
    criteria = _criteria(source, min_depth, radii, minimum)
    _check_positive(max_speed=max_speed, near_radius=near_radius, match_radius=match_radius)
    _check_counts(max_gap=(max_gap, 0), min_points=(min_points, 1), min_members=(min_members, 1))
    motion = Motion(max_speed, 2 * source.mesh.spacing, near_radius * 1e3 / EARTH_RADIUS, max_gap)
    place = None if near is None else place_of(near)
    first = [_first_time(source, row, start, place) for row in range(len(source.valid))]
    makers: list[Callable[[], Any]] = [_maker(place, motion, time, min_points) for time in first]
    trackers = _run(source, criteria, makers, progress)
    storms = [_storms(own, place, source.shape[2], match_radius, min_members) for own in trackers]
    out = _labelled(source, storms, place)
    out.attrs = _described(source, criteria, motion, place, match_radius)
    return caller_names(out, {k: v for k, v in source.names.items() if k in out.dims or k in out.coords})


def _maker(place: Place | None, motion: Motion, first: np.datetime64, min_points: int) -> Callable[[], Any]:
    if place is None:
        return lambda: Linker(motion, first, min_points)
    return lambda: Follower(place, motion, first)


def _run(source: Source, criteria: Criteria, makers: Sequence[Callable[[], Any]], progress: bool | None) -> list[Any]:
    """One tracker per start and member, fed with its fields in order of lead; dims (start, member)."""
    starts, members, leads = source.shape
    trackers = [[make() for _ in range(members)] for make in makers]
    show = get_option("progress") if progress is None else progress
    with tqdm(
        total=starts * members * leads, desc="tracks", unit="field", disable=not show, delay=1.0, dynamic_ncols=True
    ) as bar:
        for start, member, lead, fields in source.blocks():
            find: Find | None = None
            if fields is not None:

                def find(around: np.ndarray | None, radius: float, fields: Any = fields) -> Centres:
                    near = None if around is None else (around, radius)
                    return find_centres(source.mesh, fields, criteria, near)

            trackers[start][member].step(lead, source.valid[start, lead], find)
            bar.update()
    return trackers


def _storms(
    trackers: Sequence[Any], place: Place | None, leads: int, match_radius: float, min_members: int
) -> list[dict[int, Track]]:
    """Storms of one start, each {member: track}."""
    found = [tracker.tracks() for tracker in trackers]
    if place is not None:
        return [{member: own[0] for member, own in enumerate(found) if own}]
    storms = match_members(found, leads, match_radius * 1e3 / EARTH_RADIUS)
    return [storm for storm in storms if len(storm) >= min_members]


# ------------------------------------------------------------------------------------------------- arguments


def _criteria(
    source: Source, min_depth: float, radii: tuple[float | None, float, float], minimum: dict[str, float | None]
) -> Criteria:
    contour, separation, wind = radii
    _check_positive(min_depth=min_depth, separation=separation, wind_radius=wind)
    spacing = np.rad2deg(source.mesh.spacing)
    if contour is None:
        contour = max(5.5, 3 * spacing)
    if contour < 2 * spacing:
        expected = f"at least two grid spacings, {2 * spacing:.3g}°"
        raise ArgumentError(explain(f"contour_radius={contour} holds too few points", expected=expected))
    least = {_MINIMUM[name]: float(value) for name, value in minimum.items() if value is not None}
    for name, value in minimum.items():
        if value is not None and _MINIMUM[name] not in source.used:
            got = f"fields for {', '.join(source.used)}"
            raise ArgumentError(explain(f"{name}={value} needs {_MINIMUM[name]!r}", got=got, do=f"Leave out {name}"))
    degree = np.deg2rad
    return Criteria(
        min_depth=float(min_depth),
        contour_radius=float(degree(contour)),
        separation=float(degree(separation)),
        wind_radius=float(degree(max(wind, 2 * spacing))),
        core_radius=float(degree(max(2.0, 1.5 * spacing))),
        environment=(float(degree(max(5.0, 3 * spacing))), float(degree(max(8.0, 5 * spacing)))),
        steering_radius=(float(degree(2.5)), float(degree(max(7.0, 3 * spacing)))),
        minimum=least,
    )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float | np.number) or not np.isfinite(value) or not float(value) > 0:
            raise ArgumentError(explain(f"{name}={value!r} can't be used", expected="a positive number"))


def _check_counts(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ArgumentError(explain(f"{name}={value!r} can't be used", expected=f"an integer of at least {least}"))


def _first_time(source: Source, row: int, start: Any, place: Place | None) -> np.datetime64:
    """The time from which on the storm is looked for."""
    valid = source.valid[row]
    first = valid[0] if start is None else _start_time(start, source.origin[row])
    if place is not None and place.times is not None:
        first = max(first, place.times[0])
    if first > valid[-1]:
        got, expected = np.datetime_as_string(first, "m"), f"until {np.datetime_as_string(valid[-1], 'm')}"
        raise ArgumentError(explain("Tracking would begin after the last valid time", got=got, expected=expected))
    return first


def _start_time(start: Any, origin: np.datetime64) -> np.datetime64:
    """Of a time, or of a lead; digits alone are a date."""
    ways: list[Callable[[Any], pd.Timestamp]] = [
        lambda lead: pd.Timestamp(origin) + pd.Timedelta(lead),
        lambda time: pd.Timestamp(time),
    ]
    if isinstance(start, str) and start.isdigit():
        ways = ways[1:]
    for parse in [] if isinstance(start, int | float | np.number) and not isinstance(start, np.timedelta64) else ways:
        try:
            time = parse(start)
        except (TypeError, ValueError):
            continue
        if time.tzinfo is None and not pd.isna(time):
            return time.to_datetime64().astype("datetime64[ns]")
    raise ArgumentError(explain(f"start={start!r} can't be used", expected="a time such as '2022-09-24T00' or a lead"))


# --------------------------------------------------------------------------------------------------- results


def _labelled(source: Source, storms: list[list[dict[int, Track]]], place: Place | None) -> xr.Dataset:
    starts, members, leads = source.shape
    count = 1 if place is not None else max(len(own) for own in storms)
    shape = (starts, members, count, leads)
    names = [name for name in _ATTRIBUTES if name in source.used and name not in ("latitude", "longitude")]
    values = {name: np.full(shape, np.nan) for name in ("latitude", "longitude", *names)}
    points, flag = np.full((*shape, 3), np.nan), np.zeros(shape, np.int8)
    for start, own in enumerate(storms):
        for number, storm in enumerate(own):
            for member, track in storm.items():
                at = (start, member, number)
                flag[at] = flags(track, leads)
                for lead, point in track.points.items():
                    points[(*at, lead)] = point
                    for name in names:
                        values[name][(*at, lead)] = track.values[lead][name]
    values["latitude"], longitude = degrees(points)
    values["longitude"] = longitude if source.west else np.where(np.isnan(longitude), np.nan, wrap_longitude(longitude))
    if place is not None:
        values["distance_to_near"] = _distance(points, place, source.valid)
    dims = ("time", "number", "storm", LEAD)
    out = xr.Dataset({n: (dims, v, _ATTRIBUTES[n]) for n, v in values.items()})
    out["flag"] = (dims, flag, _ATTRIBUTES["flag"])
    out["found"] = (dims, flag == FOUND, _ATTRIBUTES["found"])
    return _with_coordinates(out, source)


def _distance(points: np.ndarray, place: Place, valid: np.ndarray) -> np.ndarray:
    """Distance to the place of near [km], dims (start, member, storm, lead)."""
    nowhere = np.full(3, np.nan)
    there = np.array([[nowhere if (p := place.at(t)) is None else p for t in row] for row in valid])
    return angle(points, there[:, None, None]) * EARTH_RADIUS / 1e3


def _with_coordinates(out: xr.Dataset, source: Source) -> xr.Dataset:
    """From (time, number, storm, lead) to the dimensions that the forecast has."""
    runs = source.runs
    attrs = {"standard_name": "time", "long_name": "time of validity"}
    out = out.assign_coords(storm=("storm", np.arange(1, out.sizes["storm"] + 1), {"long_name": "storm, from 1"}))
    if "number" in runs.coords:
        out = out.assign_coords(
            number=runs["number"].variable if "number" in runs.dims else ("number", [runs["number"]])
        )
    if "number" not in runs.dims:
        out = out.isel(number=0)
    if "time" in runs.dims and LEAD in runs.dims:
        out = out.assign_coords({dim: runs[dim].variable for dim in ("time", LEAD)})
        return out.assign_coords(valid_time=(("time", LEAD), source.valid, attrs))
    out = out.isel(time=0).rename({LEAD: "valid_time"}).assign_coords(valid_time=("valid_time", source.valid[0], attrs))
    if LEAD in runs.coords:
        lead = runs[LEAD]
        out = out.assign_coords(
            {LEAD: ("valid_time", lead.values, lead.attrs), "time": runs["time"].variable.squeeze()}
        )
    return out


def _described(
    source: Source, criteria: Criteria, motion: Motion, place: Place | None, match_radius: float
) -> dict[str, Any]:
    least = "".join(f", {name} at least {value:g}" for name, value in criteria.minimum.items())
    degree = np.rad2deg
    how = (
        f"the storm nearest to near (within {motion.near_radius * EARTH_RADIUS / 1e3:g} km), followed forward"
        if place is not None
        else f"all lows, linked in time, matched across members within {match_radius:g} km of where both first exist"
    )
    predicted = f"the last displacement{' and the steering flow' if 'steering' in source.used else ''}"
    return {
        "Conventions": "CF-1.13",
        "title": "cyclone tracks",
        "method": (
            f"{how}; a centre is lowest within {degree(criteria.separation):.3g} degrees, with a "
            f"rise of {criteria.min_depth:g} Pa within {degree(criteria.contour_radius):.3g} degrees "
            f"in all 8 sectors{least}; position and pressure from a paraboloid fitted by least squares; "
            f"next position predicted by {predicted}, at most {motion.max_speed:g} m s-1, "
            f"at most {motion.max_gap} times in a row without a centre"
        ),
        "fields": "; ".join(f"{name} from {what}" for name, what in source.used.items()),
        "references": "doi:10.5194/gmd-10-1069-2017",
    }
