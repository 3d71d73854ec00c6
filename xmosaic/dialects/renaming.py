"""A forecast in the names that other tools expect."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

import xarray as xr

from ..errors import ArgumentError, explain
from ..variables import ROWS, listed

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray, xr.Dataset | xr.DataArray)

_DIALECTS = {
    "weatherbenchx": {"time": "init_time", "prediction_timedelta": "lead_time"},
    "climpred": {"time": "init", "prediction_timedelta": "lead", "number": "member"},
    "xskillscore": {"number": "member"},
    "ecmwf": {"prediction_timedelta": "step"},
}


def to_dialect(forecast: Labelled, dialect: str) -> Labelled:
    """Rename a forecast in our layout to what another tool expects.

    Parameters
    ----------
    forecast : Dataset or DataArray, dims from (time, number, prediction_timedelta, level, latitude, longitude)
    dialect : {"weatherbenchx", "climpred", "xskillscore", "ecmwf"}
        - weatherbenchx: ``init_time``, ``lead_time``
        - climpred: ``init``, ``lead``, ``member``
        - xskillscore: ``member``
        - ecmwf (cfgrib): ``time``, ``step``, ``number``, and variables by short name

    Returns
    -------
    Dataset or DataArray
        Same values; the argument isn't changed.

    Raises
    ------
    ArgumentError
        For a dialect that isn't known.
    DatasetError
        Where a name would stand there twice.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> xmosaic.to_dialect(fc, "ecmwf")["t"].dims
    ('number', 'step', 'level', 'latitude', 'longitude')
    >>> xmosaic.to_dialect(fc, "climpred")["temperature"].dims
    ('member', 'lead', 'level', 'latitude', 'longitude')
    """
    if dialect not in _DIALECTS:
        names = ", ".join(map(repr, _DIALECTS))
        raise ArgumentError(explain(f"Dialect {dialect!r} is not known", expected=f"one of {names}"))
    present = {*forecast.dims, *forecast.coords}
    new: dict[Hashable, str] = {old: name for old, name in _DIALECTS[dialect].items() if old in present}
    if taken := [name for name in new.values() if name in present]:
        what = f"The forecast can't be renamed for {dialect!r}"
        raise ArgumentError(explain(what, got=f"{listed(taken)} already there", do="Rename or drop them first"))
    if isinstance(forecast, xr.DataArray):
        short = _short_names([forecast.name]) if dialect == "ecmwf" else {}
        return forecast.rename(new).rename(short.get(forecast.name, forecast.name))
    return forecast.rename({**new, **(_short_names(forecast.data_vars) if dialect == "ecmwf" else {})})


def _short_names(names: Iterable[Hashable]) -> dict[Hashable, str]:
    """Our names → ECMWF's; of two variables that share one, the one on levels gets it."""
    short: dict[Hashable, str] = {}
    taken = set(names)
    for row in ROWS:
        if row.name in taken and row.short and row.short not in {*taken, *short.values()}:
            short[row.name] = row.short
    return short
