"""Which variable, level, leads and start a picture shows."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from ..diagnostics.layout import LEAD, canonical_dims
from ..errors import ArgumentError, DatasetError, explain
from ..variables import find_variable, listed
from .style import lead_text, untrained


class Chosen(NamedTuple):
    """A variable at one level, in canonical dimensions, and what the title must say of the forecast."""

    field: xr.DataArray
    note: str

    @property
    def name(self) -> Hashable:
        """Name in the forecast."""
        return self.field.name


def as_dataset(obj: Any, what: str = "forecast") -> xr.Dataset:
    """A Dataset in canonical dimensions."""
    if isinstance(obj, xr.DataArray):
        obj = obj.to_dataset(name="unnamed" if obj.name is None else obj.name)
    if not isinstance(obj, xr.Dataset):
        raise ArgumentError(explain(f"The {what} is no xarray object", got=type(obj).__name__, expected="a Dataset"))
    return canonical_dims(obj)[0]


def choose(obj: Any, variable: str | None = None, level: float | None = None, dims: Iterable[str] = ()) -> Chosen:
    """A variable at a level.

    Parameters
    ----------
    obj : Dataset or DataArray
        A forecast, or a diagnostic's result, in any common dialect.
    variable : str, optional
        In any dialect; with its level, as in "z500", too. By default geopotential if there is one, else the first.
    level : float, optional
        Pressure level [hPa]; by default 500 if there is one, else the middle one.
    dims : iterable of str
        Canonical dimensions that the variable must have for the default to take it.

    Returns
    -------
    Chosen
    """
    ds = as_dataset(obj)
    name, own_level = _variable(ds, variable, list(dims))
    return Chosen(at_level(ds[name], level if level is not None else own_level), untrained(obj))


def _variable(ds: xr.Dataset, variable: str | None, dims: list[str]) -> tuple[Hashable, float | None]:
    names = [n for n in ds.data_vars if ds[n].dtype.kind in "fiu" and all(d in ds[n].dims for d in dims)]
    if variable is None:
        if not names:
            got = listed(ds.data_vars) or "no variables"
            expected = f"a variable along {listed(dims)}" if dims else "a variable"
            raise DatasetError(explain("There is nothing to draw", got=got, expected=expected))
        return next((n for n in names if same(n, "geopotential")), names[0]), None
    if variable in ds.data_vars:
        return variable, None
    if found := [n for n in names if same(n, variable)]:
        return found[0], None
    # "u10" is the wind at 10 m even where there is none, never u at 10 hPa
    parts = re.fullmatch(r"(.*[^\d_])_?(\d+)", str(variable)) if find_variable(str(variable)) is None else None
    if parts and (found := [n for n in names if n == parts[1] or same(n, parts[1])]):
        return found[0], float(parts[2])
    raise ArgumentError(explain(f"variable={variable!r} is not in this forecast", expected=listed(names, 20)))


def same(own: Hashable, wanted: str) -> bool:
    """Whether two names, in any dialects, mean one variable."""
    mine, theirs = find_variable(str(own)), find_variable(str(wanted))
    return mine is not None and theirs is not None and mine.name == theirs.name


def at_level(obj: Any, level: float | None) -> Any:
    """A field or Dataset at one level; all of it where it has no levels."""
    if "level" not in obj.dims:
        if level is not None and "level" in obj.coords and float(obj["level"]) != level:
            raise ArgumentError(
                explain(f"level={level!r} is not in this forecast", expected=f"{float(obj['level']):g}")
            )
        return obj
    levels = obj["level"].values.tolist()
    wanted = level if level is not None else (500 if 500 in levels else levels[len(levels) // 2])
    if wanted not in levels:
        expected = ", ".join(f"{x:g}" for x in levels)
        raise ArgumentError(explain(f"level={level!r} is not in this forecast", expected=expected))
    return obj.isel(level=levels.index(wanted))


def one_lead(obj: Any, lead: Any) -> Any:
    """A field at one lead; by default the last."""
    return at_leads(obj, None if lead is None else [lead], default=-1).isel({LEAD: 0})


def at_leads(obj: Any, lead: Any, default: int = 3) -> Any:
    """A field at one or several leads, with that dimension.

    Parameters
    ----------
    obj : Dataset or DataArray, canonical dimensions
    lead : timedelta-like, sequence of them, or None
    default : int
        None means so many of them: the first, the last, and evenly between; −1 means the last.

    Returns
    -------
    Dataset or DataArray, dims (prediction_timedelta, …)
    """
    if LEAD not in obj.dims:
        if LEAD not in obj.coords:
            if lead is not None:
                raise ArgumentError(explain(f"lead={lead!r} is not in this forecast", expected="no lead: it has none"))
            return obj.expand_dims({LEAD: np.zeros(1, "timedelta64[ns]")})
        obj = obj.expand_dims(LEAD)
    leads = pd.TimedeltaIndex(obj[LEAD].values)
    if lead is None:
        places = [-1] if default < 0 else np.unique(np.linspace(0, len(leads) - 1, default).round().astype(int))
        return obj.isel({LEAD: list(places)})
    several = lead if np.ndim(lead) or isinstance(lead, list | tuple) else [lead]
    wanted = [_timedelta(value) for value in several]
    at = leads.get_indexer(pd.TimedeltaIndex(wanted))
    if (at < 0).any() or not len(at):
        bad = [value for value, place in zip(several, at, strict=True) if place < 0] or lead
        expected = listed([str(x).replace(" 00:00:00", "") for x in leads], 12)
        raise ArgumentError(explain(f"lead={listed(bad)} is not in this forecast", expected=expected))
    return obj.isel({LEAD: at})


def _timedelta(value: Any) -> pd.Timedelta:
    try:
        if isinstance(value, int | float | np.number) and not isinstance(value, np.timedelta64):
            raise TypeError
        return pd.Timedelta(value)
    except (TypeError, ValueError):
        expected = "a time with its units, such as '3D' or '36h'"
        raise ArgumentError(explain(f"lead={value!r} is not in this forecast", expected=expected)) from None


def one_start(obj: Any, time: Any) -> Any:
    """A field of one start; by default the first."""
    if "time" not in obj.dims:
        return obj
    if time is None:
        return obj.isel(time=0)
    try:
        chosen = obj.sel(time=time)
    except (KeyError, ValueError, TypeError):
        expected = listed([str(t) for t in obj.indexes["time"]], 12)
        raise ArgumentError(explain(f"time={str(time)!r} is not in this forecast", expected=expected)) from None
    return chosen if "time" not in chosen.dims else chosen.isel(time=0)


def starts_of(obj: Any) -> xr.DataArray | None:
    """Times that forecasts start at, if they are known."""
    return obj.coords.get("time")


# ---------------------------------------------------------------------------------------------------- the truth


def against(chosen: xr.DataArray | xr.Dataset, truth: Any) -> tuple[xr.Dataset, xr.Dataset]:
    """What was chosen and its truth as Datasets that the scores take: both with levels, or both without.

    Parameters
    ----------
    chosen : DataArray or Dataset, canonical dimensions
        At one level.
    truth : Dataset or DataArray

    Returns
    -------
    forecast, truth : Dataset
    """
    if truth is None:
        raise ArgumentError(explain("This picture needs a truth", got="None", expected="a Dataset of analyses"))
    theirs = as_dataset(truth, "truth")
    ours = chosen.to_dataset(name=chosen.name) if isinstance(chosen, xr.DataArray) else chosen
    if isinstance(truth, xr.DataArray) and len(ours) == 1:  # an array is compared whatever its name is
        theirs = theirs.rename({next(iter(theirs.data_vars)): next(iter(ours.data_vars))})
    pairs = {name: _in_truth(name, theirs) for name in ours.data_vars}
    leveled = [n for n, other in pairs.items() if "level" in theirs[other].dims and "level" not in ours[n].dims]
    if leveled and "level" in ours.coords:
        fields = {n: ours[n].expand_dims("level") if n in leveled else ours[n].drop_vars("level") for n in ours}
        ours = xr.Dataset(fields, attrs=ours.attrs)
    return ours, theirs[list(pairs.values())]


def _in_truth(name: Hashable, truth: xr.Dataset) -> Hashable:
    found = [n for n in truth.data_vars if n == name] or [n for n in truth.data_vars if same(n, str(name))]
    if not found:
        got = listed(truth.data_vars)
        raise ArgumentError(explain(f"The truth has no {str(name)!r}", got=got, do="Rename the truth's variables"))
    return found[0]


def flat(result: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """The one variable of a result, at its one level."""
    field = result if isinstance(result, xr.DataArray) else result[next(iter(result.data_vars))]
    return field.isel(level=0) if "level" in field.dims else field


def panels(obj: Any, lead: Any, truth: xr.DataArray | None = None) -> Any:
    """The leads that get a panel or a line each: those asked for, else up to three that have a truth."""
    if lead is None and truth is not None and LEAD in truth.dims and LEAD in obj.dims:
        there = truth.any([d for d in truth.dims if d != LEAD])
        obj = obj.isel({LEAD: np.flatnonzero(there.values)})
    chosen = at_leads(obj, lead)
    if truth is not None and LEAD in truth.dims:
        empty = [x for x in chosen[LEAD].values if not truth.sel({LEAD: x}).any()]
        if empty:
            raise ArgumentError(explain("The truth has no valid time at a lead", got=f"lead {lead_text(empty[0])}"))
    return chosen
