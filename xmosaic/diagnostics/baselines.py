"""What a forecast has to beat: persistence, climatology and climatological ensembles, laid out as forecasts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..variables import listed
from .layout import LEAD, as_dataset, caller_names, canonical_dims, meaning

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)
Shape = Literal["triangle", "box"]

_DAY = np.timedelta64(86_400_000_000_000, "ns")
_GREGORIAN = ("standard", "gregorian", "proleptic_gregorian")
# Days of the year whose means one task of dask makes: 31 fields are in memory at a time.
_SLOTS_AT_ONCE = 31
_ATTRS = {
    "time": {"standard_name": "forecast_reference_time", "long_name": "initial time of forecast"},
    LEAD: {"standard_name": "forecast_period", "long_name": "time since forecast_reference_time"},
    "valid_time": {"standard_name": "time", "long_name": "time that the forecast is for"},
    "number": {"standard_name": "realization", "long_name": "ensemble member numerical id", "units": "1"},
    "history_start": {"long_name": "time in the history that the member starts from"},
    "dayofyear": {"long_name": "day of the year, 1 to 366; 366 in leap years alone", "units": "1"},
    "hour": {"long_name": "hour of the day, UTC", "units": "h"},
}


# ---------------------------------------------------------------------------------------------------------- baselines


def persistence(
    analyses: Labelled, like: xr.Dataset | xr.DataArray | None = None, *, time: Any = None, lead: Any = None
) -> Labelled:
    """Forecast that nothing changes: at every lead, the analysis of the start.

    Parameters
    ----------
    analyses : Dataset or DataArray, dims (time, …)
        In any common dialect. Variables without time are left out.
    like : Dataset or DataArray, optional
        A forecast whose starts, leads and names of these dimensions are taken; of its variables and levels, in its
        order, those that the analyses have. An array without a name says nothing of variables.
    time : datetime-like, sequence or slice of them, optional
        Starts, where there is no `like`; one alone becomes a scalar coordinate.
    lead : str, timedelta, or sequence of them, optional
        Leads, where there is no `like`, such as ``["1D", "2D"]``.

    Returns
    -------
    Dataset or DataArray, dims (time, prediction_timedelta, …)
        In the layout of a forecast. Each field stands in memory once, whatever the number of leads: copy it before
        writing into it. Lazy where the analyses are.

    Raises
    ------
    DatasetError
        If the analyses lack a start, or `like` is no forecast.
    ArgumentError
        If starts or leads are missing, given twice, or can't be read.

    Notes
    -----
    Cost: none but reading the starts.

    References
    ----------
    Murphy 1992, doi:10.1175/1520-0434(1992)007<0692:CPATLC>2.0.CO;2

    Examples
    --------
    >>> import xmosaic
    >>> msl = xmosaic.open_sample()["mean_sea_level_pressure"]
    >>> still = persistence(msl, time="2012-04-11", lead=["24h", "48h"])
    >>> still.dims, bool((still == msl.sel(time="2012-04-11T00")).all())
    (('prediction_timedelta', 'latitude', 'longitude'), True)
    """
    fields, names, times = _analyses(analyses, "Persistence")
    plan = _plan(like, time, lead, times)
    fields = _as_in(like, fields, analyses)
    places = times.get_indexer(plan.starts)
    if missing := [str(start) for start in plan.starts[places < 0]]:
        raise DatasetError(
            explain(
                "The analyses don't have all starts",
                got=_span(times),
                expected=_some(missing),
                do="Take starts that are there, or give analyses of more times",
            )
        )
    picked = fields.isel(time=places).expand_dims({LEAD: plan.leads}, axis=1)
    return _labelled(picked, analyses, plan, names, "persistence of the analysis at the start")


def climatology(
    history: Labelled,
    like: xr.Dataset | xr.DataArray | None = None,
    *,
    time: Any = None,
    lead: Any = None,
    window: Any = "61D",
    shape: Shape = "triangle",
) -> Labelled:
    """Forecast of the mean of other years: the state of the day of the year and hour that a forecast is valid for.

    Parameters
    ----------
    history : Dataset or DataArray, dims (time, …), or of `fit_climatology`
        Analyses of years that don't hold the forecast's own, or a fitted climatology, whose window stays.
    like, time, lead
        Starts and leads, and of `like` variables and levels, as in `persistence`; slices of time need analyses.
    window : str, timedelta or None
        Full width over the day of the year; None: one mean over everything, for an atmosphere without seasons.
    shape : {"triangle", "box"}
        Weights that fall linearly from the day itself to zero at half a window, or are equal within it.

    Returns
    -------
    Dataset or DataArray, dims (time, prediction_timedelta, …)
        In the layout of a forecast, without members.

    Raises
    ------
    DatasetError
        If the history has no times, or none near those wanted.
    ArgumentError
        If starts, leads or the window can't be used.

    Notes
    -----
    Cost: a pass over the history; only the days of the year that are asked for are made.

    References
    ----------
    Rasp et al. 2024, doi:10.1029/2023MS004019

    Examples
    --------
    >>> import xmosaic
    >>> t2m = xmosaic.open_sample()["2m_temperature"]
    >>> normal = climatology(t2m, time="2005-01-03", lead=["12h"], window=None)
    >>> bool(abs(normal - t2m.mean("time")).max() < 1e-3)
    True
    """
    fitted = _is_fitted(history)
    times = None if fitted else _analyses(history, "A climatology")[2]
    plan = _plan(like, time, lead, times)
    if not fitted:
        days = None if window is None else np.unique(pd.DatetimeIndex(plan.valid.ravel()).day_of_year)
        history = _fit(history, window, shape, days, like)
    normal, names = canonical_dims(history)
    picked = _at(_as_in(like, as_dataset(normal), history), plan.valid)
    about = str(history.attrs.get("climatology", "")) or "climatology as given"
    return _labelled(picked, history, plan, names, about)


def fit_climatology(history: Labelled, window: Any = "61D", shape: Shape = "triangle") -> Labelled:
    """Mean of each day of the year and hour of the day, smoothed over the day of the year.

    C(d, h) = Σ w(t) x(t) / Σ w(t) over the times t of hour h. With D the distance in days between d and the day of t
    around a year as long as that of t, w = max(0, 1 − D / (window / 2)) (triangle) or D ≤ window / 2 (box).

    Parameters
    ----------
    history : Dataset or DataArray, dims (time, …)
        Analyses in any common dialect; best whole years. Variables without time are left out. NaN makes each day that
        the time has weight in NaN.
    window, shape
        As in `climatology`.

    Returns
    -------
    Dataset or DataArray, dims (dayofyear, hour, …), in the dtype of the history
        dayofyear 1 … 366, counted as ``time.dt.dayofyear`` does; the hours are those of the history. Without either for
        ``window=None``. Save it, and pass it to `climatology` or to the anomaly correlation.

    Raises
    ------
    DatasetError
        If the history has no times.
    ArgumentError
        For a window that can't be used.

    Notes
    -----
    Every state counts the same, so that a day that was seen in more years weighs more. Dask: one pass; chunks of time
    are joined to about dask's ``array.chunk-size``, and 31 days of the year are made at a time, in float64.

    References
    ----------
    Rasp et al. 2024, doi:10.1029/2023MS004019

    Examples
    --------
    >>> days = pd.date_range("2001-01-01", "2004-12-31")
    >>> season = xr.DataArray(np.cos(2 * np.pi * days.day_of_year / 365.25), {"time": days}, name="t")
    >>> fitted = fit_climatology(season, window="61D")
    >>> fitted.dims, fitted.sizes["dayofyear"], bool(fitted.sel(dayofyear=1) > 0.9)
    (('dayofyear', 'hour'), 366, True)
    """
    return _fit(history, window, shape, np.arange(1, 367) if window is not None else None)


def climatology_at(fitted: Labelled, times: Any) -> Labelled:
    """A fitted climatology at points in time.

    Parameters
    ----------
    fitted : Dataset or DataArray, dims (dayofyear, hour, …)
        Of `fit_climatology`; or another's of this layout, such as WeatherBench2's.
    times : DataArray, DatetimeIndex or sequence of datetime-like
        A DataArray of times, such as ``forecast.valid_time``, may have any dimensions.

    Returns
    -------
    Dataset or DataArray, dims (times' …, …)

    Raises
    ------
    DatasetError
        If it wasn't fitted for an hour of day that is wanted.

    Examples
    --------
    >>> days = pd.date_range("2001-01-01", "2001-12-31")
    >>> number = xr.DataArray(days.day_of_year.astype(float), {"time": days}, name="t")
    >>> climatology_at(fit_climatology(number, window="1D"), ["2003-01-01", "2003-03-01"]).values
    array([ 1., 60.])
    """
    if not isinstance(times, xr.DataArray):
        values = pd.DatetimeIndex(np.atleast_1d(np.asarray(times, dtype="datetime64[ns]")))
        times = xr.DataArray(values, dims="time", coords={"time": values}, name="time")
    normal, names = canonical_dims(fitted)
    flat = _times(times.values.ravel()).values.reshape(times.shape)
    coords = {name: coord for name, coord in times.coords.items() if set(coord.dims) <= set(times.dims)}
    picked = caller_names(_at(normal, flat, times.dims), names).assign_coords(coords)
    return picked if isinstance(fitted, xr.Dataset) else picked[next(iter(picked.data_vars))].rename(fitted.name)


def climatological_ensemble(
    history: Labelled,
    like: xr.Dataset | xr.DataArray | None = None,
    *,
    time: Any = None,
    lead: Any = None,
    members: int | None = None,
    window: Any = "11D",
    seed: int = 0,
) -> Labelled:
    """Ensemble of what happened in other years: each member follows the history from a time of the same season on.

    For a start s, candidates are the days of each year of the history that lie within half a window of the day of the
    year of s, at its hour. The year of s isn't drawn, nor what overlaps the forecast's own period. Every year is drawn
    once before one is drawn twice; within that the order is random.

    Parameters
    ----------
    history : Dataset or DataArray, dims (time, …)
        Analyses in any common dialect, with a state at every lead from each candidate on; candidates that lack one are
        not drawn. Variables without time are left out.
    like, time, lead
        Starts and leads, and of `like` variables and levels, as in `persistence`.
    members : int, optional
        By default as many as there are years for every start.
    window : str, timedelta or None
        Full width in days. None: any time of the history, for an atmosphere without seasons; `members` is needed then.
    seed : int
        From 0. A member depends on seed, start, number and the history, not on how many others there are.

    Returns
    -------
    Dataset or DataArray, dims (time, number, prediction_timedelta, …)
        In the layout of a forecast. Coordinate ``history_start`` (time, number) says where each member was taken from.

    Raises
    ------
    DatasetError
        Where the history is too short for so many members.

    Notes
    -----
    Cost: none but reading the states. Draws rank candidates by a hash of seed, start and candidate (SplitMix64),
    so that they are the same with every version of NumPy.

    References
    ----------
    Rasp et al. 2024, doi:10.1029/2023MS004019; Steele et al. 2014, doi:10.1145/2660193.2660195

    Examples
    --------
    >>> days = pd.date_range("2001-01-01", "2005-12-31")
    >>> year = xr.DataArray(days.year.astype(float), {"time": days}, name="t")
    >>> drawn = climatological_ensemble(year, time="2003-06-01", lead=["1D", "2D"])
    >>> drawn.dims, sorted(drawn.isel(prediction_timedelta=0).values.tolist())
    (('number', 'prediction_timedelta'), [2001.0, 2002.0, 2004.0, 2005.0])
    """
    fields, names, times = _analyses(history, "A climatological ensemble")
    plan = _plan(like, time, lead, times)
    fields = _as_in(like, fields, history)
    drawn = [_draw(start, plan.leads, times, _half(window), _whole("seed", seed, 0)) for start in plan.starts]
    count = _member_count(members, window, drawn, plan, times)
    origins = np.stack([order[:count] for order, _ in drawn])
    places = times.get_indexer(pd.DatetimeIndex((origins[..., None] + plan.leads.values).ravel()))
    picked = _take(fields, "time", places.reshape(*origins.shape, -1), ("time", "number", LEAD))
    numbers = {
        "number": ("number", np.arange(1, count + 1), _ATTRS["number"]),
        "history_start": (("time", "number"), origins, _ATTRS["history_start"]),
    }
    about = "any time of the history" if window is None else f"other years within a window of {_days(window):g} days"
    text = f"climatological ensemble of {about}, seed {seed}"
    return _labelled(picked.assign_coords(numbers), history, plan, names, text)


# ----------------------------------------------------------------------------------------------------- starts and leads


@dataclass(frozen=True)
class _Plan:
    """Starts and leads of a baseline.

    Parameters
    ----------
    starts : DatetimeIndex
    leads : TimedeltaIndex
    scalar : bool
        Whether one start was asked for, as a scalar.
    one_lead : bool
        The same of the leads; only a forecast can have that.
    names : dict of str to hashable
        What the forecast calls time, prediction_timedelta and number.
    """

    starts: pd.DatetimeIndex
    leads: pd.TimedeltaIndex
    scalar: bool
    one_lead: bool
    names: dict[str, Hashable]

    @property
    def valid(self) -> np.ndarray:
        """Valid times, dims (time, lead)."""
        return np.add.outer(self.starts.values, self.leads.values)


def _plan(like: Any, time: Any, lead: Any, times: pd.DatetimeIndex | None) -> _Plan:
    if like is not None:
        if time is not None or lead is not None:
            raise ArgumentError(explain("Both like= and time= or lead= are given", expected="one or the other"))
        return _plan_of(like)
    if time is None or lead is None:
        expected = "like=forecast, or both time= and lead="
        raise ArgumentError(explain("Starts and leads are not given", expected=expected))
    leads = pd.TimedeltaIndex([_lead(x) for x in _several(lead)])
    starts, scalar = _starts(time, times)
    _check_unique("time", starts)
    _check_unique("lead", leads)
    return _Plan(starts, leads.as_unit("ns"), scalar, False, {})


def _plan_of(like: Any) -> _Plan:
    forecast, names = canonical_dims(like)
    if missing := [name for name in ("time", LEAD) if name not in forecast.coords]:
        raise DatasetError(
            explain(
                f"like= is no forecast: it has no {' and no '.join(missing)}",
                got=f"coordinates {', '.join(map(repr, map(str, forecast.coords)))}",
                do="Pass time= and lead= instead",
            )
        )
    starts = _times(np.atleast_1d(forecast["time"].values))
    leads = pd.TimedeltaIndex(np.atleast_1d(forecast[LEAD].values)).as_unit("ns")
    _check_unique("time", starts)
    _check_unique("lead", leads)
    kept = {name: old for name, old in names.items() if name in ("time", LEAD, "number")}
    return _Plan(starts, leads, "time" not in forecast.dims, LEAD not in forecast.dims, kept)


def _starts(time: Any, times: pd.DatetimeIndex | None) -> tuple[pd.DatetimeIndex, bool]:
    if isinstance(time, slice):
        if times is None:
            raise ArgumentError(
                explain("time= is a slice, and a fitted climatology has no times", do="List the starts")
            )
        chosen = times.sort_values()
        chosen = chosen[chosen.slice_indexer(time.start, time.stop, time.step)]
        if not len(chosen):
            raise ArgumentError(explain(f"time={time!r} selects no start", got=_span(times)))
        return chosen, False
    scalar = isinstance(time, str) or np.ndim(time) == 0
    values = np.ravel(time.values if isinstance(time, xr.DataArray) else np.asarray(time))
    if any(isinstance(x, bool | int | float | np.number) for x in values) and values.dtype.kind != "M":
        raise ArgumentError(explain(f"time={time!r} is no time", expected="such as '2020-01-01T00'"))
    try:
        return _times(values), scalar
    except (TypeError, ValueError) as error:
        raise ArgumentError(explain(f"time={time!r} is no time", got=str(error))) from None


def _lead(value: Any) -> pd.Timedelta:
    """A time span from 0 up; numbers without units are refused."""
    number = isinstance(value, bool | int | float | np.integer | np.floating) and not isinstance(value, np.timedelta64)
    do = "Write lead=['24h', '48h'] or lead=['1D', '2D']"
    if number or (isinstance(value, str) and value.strip().replace(".", "", 1).lstrip("+-").isdigit()):
        raise ArgumentError(explain(f"lead={value!r} has no units", expected="time spans", do=do))
    try:
        span = pd.Timedelta(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(explain(f"lead={value!r} is no time span", got=str(error), do=do)) from None
    if pd.isna(span) or span < pd.Timedelta(0):
        raise ArgumentError(explain(f"lead={value!r} can't be used", expected="a time span from 0 up", do=do))
    return span


def _several(value: Any) -> list[Any]:
    if isinstance(value, xr.DataArray):
        value = value.values
    if isinstance(value, np.ndarray):
        return list(np.atleast_1d(value))
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def _check_unique(name: str, index: pd.Index) -> None:
    if not len(index):
        raise ArgumentError(explain(f"{name}= is empty", expected="at least one"))
    if index.has_duplicates:
        raise ArgumentError(explain(f"A value of {name} appears twice", got=str(index[index.duplicated()][0])))


# ------------------------------------------------------------------------------------------------------- what is there


def _analyses(obj: Any, what: str) -> tuple[xr.Dataset, dict[str, Hashable], pd.DatetimeIndex]:
    """Fields along time, first; the caller's names; and the times."""
    ours, names = canonical_dims(obj)
    if LEAD in ours.coords and LEAD not in ours.dims:  # analyses in forecast clothes, all at one lead
        ours = ours.assign_coords(time=ours["time"] + ours[LEAD]).drop_vars(LEAD)
    for dim, are, do in (
        (LEAD, "forecasts", "Give analyses along time"),
        ("number", "members", "Select one, such as isel(number=0)"),
    ):
        if dim in ours.dims:
            raise DatasetError(explain(f"{what} is made of analyses, and these have {are}", got=f"{dim!r}", do=do))
    if "time" not in ours.dims or "time" not in ours.coords:
        got = f"dimensions {', '.join(map(repr, map(str, ours.dims)))}"
        raise DatasetError(explain(f"{what} needs analyses along time", got=got, expected="dimension 'time'"))
    times = _times(ours["time"].values)
    if times.has_duplicates:
        raise DatasetError(explain("A time of the analyses appears twice", got=str(times[times.duplicated()][0])))
    ours = as_dataset(ours)
    ours = ours[[name for name in ours.data_vars if "time" in ours[name].dims]]
    if not ours.data_vars:
        raise DatasetError(explain("No variable of the analyses has dimension 'time'"))
    along = [name for name, coord in ours.coords.items() if "time" in coord.dims and name != "time"]
    ours = ours.drop_vars(along).assign_coords(time=times)
    return ours.map(lambda field: field.transpose("time", ...), keep_attrs=True), names, times


def _as_in(like: Any, fields: xr.Dataset, given: Any) -> xr.Dataset:
    """The variables and levels of a forecast, as far as these fields in canonical dimensions have them."""
    if like is None:
        return fields
    forecast = canonical_dims(like)[0]
    # an array is the one variable that is meant, whatever its name is
    if isinstance(given, xr.Dataset) and not (isinstance(forecast, xr.DataArray) and forecast.name is None):
        fields = _of_variables(fields, as_dataset(forecast))
    return _at_levels(fields, forecast)


def _of_variables(fields: xr.Dataset, forecast: xr.Dataset) -> xr.Dataset:
    own: dict[Hashable, list[Hashable]] = {}
    for name in fields.data_vars:
        own.setdefault(meaning(name), []).append(name)
    found = [[n] if n in fields.data_vars else own.get(meaning(n), []) for n in forecast.data_vars]
    kept = list(dict.fromkeys(name for names in found for name in names))
    if not kept:
        raise DatasetError(
            explain(
                "The analyses have none of the forecast's variables",
                got=listed(fields.data_vars),
                expected=f"some of {listed(forecast.data_vars)}",
                do="Rename them, or pass time= and lead= instead of like=",
            )
        )
    return fields[kept]


def _at_levels(fields: xr.Dataset, forecast: xr.Dataset | xr.DataArray) -> xr.Dataset:
    if "level" not in fields.dims or "level" not in forecast.coords or "level" not in fields.coords:
        return fields
    there, wanted = fields["level"].values, np.atleast_1d(forecast["level"].values)
    places = [int(at[0]) for level in wanted if len(at := np.flatnonzero(np.isclose(there, level, rtol=1e-6)))]
    if not places:
        texts = [", ".join(f"{level:g}" for level in levels) for levels in (there, wanted)]
        do = "Pass time= and lead= instead of like=, or analyses on these levels"
        what = "The analyses have none of the forecast's levels"
        raise DatasetError(explain(what, got=f"{texts[0]} hPa", expected=f"some of {texts[1]} hPa", do=do))
    if "level" not in forecast.dims:
        return fields.isel(level=places[0])
    return fields if places == list(range(len(there))) else fields.isel(level=places)


def _times(values: Any) -> pd.DatetimeIndex:
    """Times of the Gregorian calendar; another calendar is refused, for its days of the year are others."""
    values = np.ravel(values)
    if values.dtype.kind == "O" and len(values) and hasattr(values[0], "calendar"):
        if values[0].calendar not in _GREGORIAN:
            raise DatasetError(
                explain(
                    f"Times are of calendar {values[0].calendar!r}",
                    expected=f"one of {', '.join(map(repr, _GREGORIAN))}",
                    do="Convert them, such as ds.convert_calendar('standard', align_on='year')",
                )
            )
        values = [np.datetime64(x.isoformat(), "ns") for x in values]
    elif values.dtype.kind not in "MOU":
        raise DatasetError(explain("Times are no dates", got=f"dtype {values.dtype}", expected="datetime64"))
    return pd.DatetimeIndex(values).as_unit("ns")


def _span(times: pd.DatetimeIndex) -> str:
    return f"{len(times)} times {times.min()} … {times.max()}" if len(times) else "no times"


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ArgumentError(explain(f"{name}={value!r} can't be used", expected=f"a whole number, {least} or more"))
    return int(value)


# ------------------------------------------------------------------------------------------------------------- results


def _take(fields: xr.Dataset, dim: str, places: np.ndarray, dims: tuple[Hashable, ...]) -> xr.Dataset:
    """Fields at places along their first dimension, which becomes the places' dimensions.

    Without dask the places are taken at once. With dask they are taken in one row, which then is folded: chunks of
    other dimensions stay as they are.
    """
    out = {}
    for name, field in fields.data_vars.items():
        data = field.variable.data
        rest = data.shape[1:]
        if field.chunks is None:
            taken = data[places]
        else:
            row = data[places.ravel()]
            taken = row.rechunk({0: 1}).reshape((*places.shape, *rest), merge_chunks=False)
        out[name] = xr.Variable((*dims, *field.dims[1:]), taken, field.attrs)
    kept = {name: coord for name, coord in fields.coords.items() if dim not in coord.dims}
    return xr.Dataset(out, kept, fields.attrs)


def _labelled(picked: xr.Dataset, given: Labelled, plan: _Plan, names: dict[str, Hashable], about: str) -> Labelled:
    """Coordinates and attributes of a forecast; the caller's names for space and level, the forecast's for the rest."""
    result = picked.drop_vars(["time", LEAD, "valid_time"], errors="ignore").assign_coords(
        {
            "time": ("time", plan.starts, _ATTRS["time"]),
            LEAD: (LEAD, plan.leads, _ATTRS[LEAD]),
            "valid_time": (("time", LEAD), plan.valid, _ATTRS["valid_time"]),
        }
    )
    source = str(given.attrs.get("source", "")) if isinstance(given, xr.Dataset) else ""
    attrs = {"Conventions": "CF-1.13", "title": about[:1].upper() + about[1:], "source": source}
    result.attrs = {key: text for key, text in attrs.items() if text}
    for field in result.data_vars.values():
        field.attrs = {**field.attrs, "baseline": about}
        field.encoding = {}
    result = result.isel(time=0) if plan.scalar else result
    result = result.isel({LEAD: 0}) if plan.one_lead else result
    spatial = {name: old for name, old in names.items() if name not in ("time", LEAD, "number")}
    result = caller_names(result, spatial | plan.names)
    if isinstance(given, xr.Dataset):
        return result
    return result[next(iter(result.data_vars))].rename(given.name)


# -------------------------------------------------------------------------------------------------------- climatology


def _is_fitted(obj: Any) -> bool:
    if not isinstance(obj, xr.Dataset | xr.DataArray):
        return False  # refused by canonical_dims
    return "dayofyear" in obj.dims or ("climatology" in obj.attrs and not {"time", LEAD} & set(obj.dims))


def _half(window: Any) -> float | None:
    return None if window is None else _days(window) / 2


def _days(window: Any) -> float:
    do = "Write window='61D', or window=None for an atmosphere without seasons"
    if isinstance(window, bool | int | float | np.integer | np.floating) and not isinstance(window, np.timedelta64):
        raise ArgumentError(explain(f"window={window!r} has no units", do=do))
    try:
        span = pd.Timedelta(window)
    except (TypeError, ValueError) as error:
        raise ArgumentError(explain(f"window={window!r} is no time span", got=str(error), do=do)) from None
    if pd.isna(span) or not pd.Timedelta(0) < span <= pd.Timedelta("365D"):
        raise ArgumentError(
            explain(f"window={window!r} can't be used", expected="more than 0, at most 365 days", do=do)
        )
    return span / pd.Timedelta("1D")


def _fit(history: Labelled, window: Any, shape: Any, days: np.ndarray | None, like: Any = None) -> Labelled:
    """Means of some days of the year; of everything for None."""
    if shape not in ("triangle", "box"):
        raise ArgumentError(explain(f"shape={shape!r} is not known", expected="'triangle' or 'box'"))
    half = _half(window)
    fields, names, times = _analyses(history, "A climatology")
    fields = _as_in(like, fields, history)
    if half is None or days is None:
        fitted = _mean(fields, np.full((1, len(times)), 1 / len(times))).isel(dayofyear=0)
        about = "mean of all times"
    else:
        hours = _hours(times)
        each = np.unique(hours)
        means = [_mean(fields, _weights(times, days, hour == hours, half, shape, hour)) for hour in each]
        fitted = xr.concat(means, "hour").transpose("dayofyear", "hour", ...)
        fitted = fitted.assign_coords(dayofyear=("dayofyear", days, _ATTRS["dayofyear"]))
        fitted = fitted.assign_coords(hour=("hour", each, _ATTRS["hour"]))
        about = f"mean of day of year and hour, {shape} window of {2 * half:g} days"
    about = f"{about}, {_span(times)}"
    for field in fitted.data_vars.values():
        field.attrs["climatology"] = about
    source = str(history.attrs.get("source", "")) if isinstance(history, xr.Dataset) else ""
    fitted.attrs = {"title": "Climatology", "climatology": about} | ({"source": source} if source else {})
    fitted = caller_names(fitted, {name: old for name, old in names.items() if name != "time"})
    return fitted if isinstance(history, xr.Dataset) else fitted[next(iter(fitted.data_vars))].rename(history.name)


def _hours(times: pd.DatetimeIndex) -> np.ndarray:
    odd = times[(times - times.normalize()) % pd.Timedelta("1h") != pd.Timedelta(0)]
    if len(odd):
        do = "Round them, such as time.dt.round('h')"
        raise DatasetError(explain("Times are not at whole hours", got=str(odd[0]), do=do))
    return np.asarray(times.hour)


def _weights(
    times: pd.DatetimeIndex, days: np.ndarray, at_hour: np.ndarray, half: float, shape: str, hour: int
) -> np.ndarray:
    """Weight of each time in the mean of each day; rows sum to one; dims (day, time)."""
    length = np.where(times.is_leap_year, 366, 365)
    apart = np.abs(days[:, None] - np.asarray(times.day_of_year)[None, :])
    # around a year as long as the time's own: 31 December is next to 1 January in every year
    distance = np.minimum(apart, np.abs(length - apart))
    weights = np.maximum(1 - distance / half, 0.0) if shape == "triangle" else (distance <= half).astype(float)
    weights *= at_hour
    total = weights.sum(axis=1)
    if (total == 0).any():
        day = int(days[np.argmin(total)])
        raise DatasetError(
            explain(
                "The history is too short: a day of the year has no state within the window",
                got=f"{_span(times)}, none near day {day} at {hour:02d} UTC",
                expected=f"states within {half:g} days",
                do="Give more of it, or a wider window",
            )
        )
    return weights / total[:, None]


def _mean(fields: xr.Dataset, weights: np.ndarray) -> xr.Dataset:
    """Σ weights · field over time, dims (dayofyear, …); float64 inside."""
    used = np.flatnonzero(weights.any(axis=0))
    weights = weights[:, used]
    if not np.array_equal(used, np.arange(fields.sizes["time"])):
        fields = fields.isel(time=used)
    out = {}
    for name, field in fields.data_vars.items():
        dtype = field.dtype if field.dtype.kind == "f" else np.dtype(float)
        data = _contract_lazily(weights, field) if field.chunks is not None else _contract(weights, field.values)
        out[name] = xr.Variable(("dayofyear", *field.dims[1:]), data.astype(dtype), field.attrs)
    return xr.Dataset(out, {name: coord for name, coord in fields.coords.items() if "time" not in coord.dims})


def _contract(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(day, time) · (time, …); NaN reaches the days that have weight in it and no others."""
    values = np.asarray(values, dtype=np.float64)
    missing = np.isnan(values)
    if not missing.any():
        return np.tensordot(weights, values, axes=1)
    total = np.tensordot(weights, np.where(missing, 0.0, values), axes=1)
    total[np.tensordot((weights > 0).astype(float), missing.astype(float), axes=1) > 0] = np.nan
    return total


def _contract_lazily(weights: np.ndarray, field: xr.DataArray) -> Any:
    import dask.array as da

    data = field.chunk({"time": "auto"}).data
    days = da.from_array(weights, chunks=(_SLOTS_AT_ONCE, data.chunks[0]))
    rest = tuple(range(2, data.ndim + 1))
    total: Any = 0.0
    # one after the other: a tree of sums would hold many partial ones, each as large as the result
    for k in range(data.numblocks[0]):
        total = total + da.blockwise(
            _contract,
            (0, *rest),
            days.blocks[:, k],
            (0, 1),
            data.blocks[k],
            (1, *rest),
            concatenate=True,
            dtype=np.float64,
            meta=np.empty((0,) * data.ndim),
        )
    return total


def _at(normal: xr.Dataset | xr.DataArray, valid: np.ndarray, dims: Sequence[Hashable] = ("time", LEAD)) -> xr.Dataset:
    """A fitted climatology at valid times; a field that has neither day nor hour is the same at all of them."""
    fields = as_dataset(normal)
    times = pd.DatetimeIndex(valid.ravel())
    slots = [dim for dim in ("dayofyear", "hour") if dim in fields.dims]
    fields = fields[[n for n in fields.data_vars if set(slots) <= set(fields[n].dims)]]
    places, sizes = np.zeros(len(times), dtype=np.intp), []
    for dim in slots:
        wanted = np.asarray(times.day_of_year) if dim == "dayofyear" else _hours(times)
        found = pd.Index(np.asarray(fields[dim].values)).get_indexer(wanted)
        if (found < 0).any():
            _no_slot(dim, wanted[found < 0], fields)
        sizes.append(fields.sizes[dim])
        places = places * sizes[-1] + found
    flat = xr.Dataset(
        {
            name: ((_SLOT, *[d for d in field.dims if d not in slots]), _folded(field, slots, sizes), field.attrs)
            for name, field in fields.data_vars.items()
        },
        {name: coord for name, coord in fields.coords.items() if not set(slots) & {*coord.dims, name}},
        fields.attrs,
    )
    return _take(flat, _SLOT, places.reshape(valid.shape), tuple(dims))


_SLOT = "xmosaic_slot"


def _folded(field: xr.DataArray, slots: list[str], sizes: list[int]) -> Any:
    """Day and hour as one dimension, the first."""
    field = field.transpose(*slots, ...)
    rest = field.shape[len(slots) :]
    shape = (int(np.prod(sizes, dtype=int)), *rest)
    if field.chunks is None:
        return field.values.reshape(shape)
    return field.chunk(dict.fromkeys(slots, 1)).data.reshape(shape, merge_chunks=False)


def _no_slot(dim: str, wanted: np.ndarray, fields: xr.Dataset) -> None:
    there = ", ".join(str(x) for x in fields[dim].values[:8]) + (" …" if fields.sizes[dim] > 8 else "")
    missing = _some([str(x) for x in np.unique(wanted)])
    unit = "hour of the day" if dim == "hour" else "day of the year"
    do = "Take leads that are valid at these, or a history of more hours" if dim == "hour" else "Give more of the year"
    raise DatasetError(explain(f"The climatology lacks a {unit}", got=there, expected=missing, do=do))


# ----------------------------------------------------------------------------------------------------------- ensemble


def _draw(
    start: pd.Timestamp, leads: pd.TimedeltaIndex, times: pd.DatetimeIndex, half: float | None, seed: int
) -> tuple[np.ndarray, int]:
    """Times to start members from, in the order of their numbers, and of how many years they are."""
    candidates, years = _candidates(start, times, half)
    last = leads.max().to_timedelta64()
    apart = np.abs(candidates - start.to_datetime64())
    usable = apart > last
    for lead in leads.values:
        usable &= times.get_indexer(pd.DatetimeIndex(candidates + lead)) >= 0
    candidates, years = candidates[usable], years[usable]
    rank = _hashed(seed, start, candidates)
    if half is None:
        return candidates[np.argsort(rank, kind="stable")], len(candidates)
    order = np.lexsort((rank, years))
    # the how-manieth draw of its year each candidate is: the first of every year come first
    first = np.searchsorted(years[order], years[order], side="left")
    turn = np.empty(len(order), dtype=np.intp)
    turn[order] = np.arange(len(order)) - first
    which = _hashed(seed, start, years.astype("int64").astype("datetime64[ns]"))
    return candidates[np.lexsort((which, turn))], len(np.unique(years))


def _candidates(start: pd.Timestamp, times: pd.DatetimeIndex, half: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Times around the same day of the year, and the year each belongs to."""
    if half is None:
        return times.values, np.zeros(len(times), dtype=int)
    into_year = (start - pd.Timestamp(year=start.year, month=1, day=1)).to_timedelta64()
    years = np.array([y for y in range(times.min().year - 1, times.max().year + 2) if y != start.year])
    shifts = np.arange(-int(half), int(half) + 1) * _DAY
    centre = (years - 1970).astype("datetime64[Y]").astype("datetime64[ns]") + into_year
    return (centre[:, None] + shifts).ravel(), np.repeat(years, len(shifts))


def _hashed(seed: int, start: pd.Timestamp, candidates: np.ndarray) -> np.ndarray:
    """Numbers without order, uint64, from seed, start and each candidate."""
    mixed = _mix(np.asarray([seed % 2**64], np.uint64))
    mixed = _mix(mixed ^ np.asarray([start.value], "int64").view(np.uint64))
    return _mix(mixed ^ candidates.astype("datetime64[ns]").astype("int64").view(np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64; uint64 wraps around as it should."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _member_count(
    members: int | None, window: Any, drawn: list[tuple[np.ndarray, int]], plan: _Plan, times: pd.DatetimeIndex
) -> int:
    if members is None and window is None:
        raise ArgumentError(explain("window=None needs members=", expected="a number, for there are no years to count"))
    least = min(range(len(drawn)), key=lambda k: len(drawn[k][0]))
    count = min(years for _, years in drawn) if members is None else _whole("members", members, 1)
    there = len(drawn[least][0])
    if there < max(count, 1):
        raise DatasetError(
            explain(
                "The history is too short for a climatological ensemble",
                got=f"{_span(times)}; start {plan.starts[least]} has {there} to draw from, with states at all leads",
                expected=f"{max(count, 1)} or more outside the forecast's own "
                + ("period" if window is None else "year"),
                do="Give more years, fewer members, shorter leads or a wider window",
            )
        )
    return count
