"""What of a forecast goes onto the page, and its truth beside it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..diagnostics.layout import LEAD, align, space_dims
from ..errors import ArgumentError, DatasetError, explain
from ..grid import LatLonGrid
from ..healpix import find_mesh, to_latlon
from ..plot.choice import as_dataset, at_leads, same
from ..variables import find_variable, listed

_KNOWN = {"time", LEAD, "number", "level", "latitude", "longitude", "cell"}


class Selection(NamedTuple):
    """A forecast in canonical dimensions, all of time, number and prediction_timedelta among them, and its truth.

    Parameters
    ----------
    forecast : Dataset, dims (time, prediction_timedelta, number, [level], latitude, longitude or cell)
    truth : Dataset or None
        Without number; only variables and levels that have one.
    found : DataArray of bool, dims (time, prediction_timedelta)
        Where there is a truth.
    notes : list of str
        What the page must say of the selection.
    """

    forecast: xr.Dataset
    truth: xr.Dataset | None
    found: xr.DataArray | None
    notes: list[str]


def select(forecast: Any, truth: Any, variables: Any, levels: Any, members: Any, leads: Any, time: Any) -> Selection:
    """Select and align; see `explore` for the arguments.

    Returns
    -------
    Selection
    """
    notes: list[str] = []
    ds = _forecast(forecast, notes)
    ds = _variables(ds, variables)
    ds = _levels(ds, levels)
    ds = _members(ds, members, notes)
    ds = at_leads(ds, leads) if leads is not None else ds
    ds = _starts(ds, time)
    if truth is None:
        return Selection(ds, None, None, notes)
    # an array is compared with an array whatever their names are
    ours = ds[next(iter(ds.data_vars))] if isinstance(forecast, xr.DataArray) else ds
    # a start that was made up for the page isn't looked for in the truth
    aligned = align(ours if ours["time"].dtype.kind not in "iu" else ours.isel(time=0, drop=True), truth)
    missing = [d for d in ("time", LEAD) if d not in aligned.truth.dims]
    theirs = aligned.truth.drop_vars(missing, errors="ignore").expand_dims(missing)
    lacking = [d for d in ("time", LEAD) if d not in aligned.found.dims]
    found = aligned.found.drop_vars(lacking, errors="ignore").expand_dims(lacking)
    return Selection(ds, theirs, found.transpose("time", LEAD), notes)


def _forecast(forecast: Any, notes: list[str]) -> xr.Dataset:
    if not isinstance(forecast, xr.Dataset | xr.DataArray):
        got = type(forecast).__name__
        raise ArgumentError(explain("The forecast is no xarray object", got=got, expected="a Dataset or DataArray"))
    ds = as_dataset(forecast)
    if LEAD not in ds.dims and LEAD not in ds.coords:
        raise DatasetError(
            explain(
                f"This is no forecast: it has no dimension {LEAD!r}",
                got=f"dimensions {listed(ds.dims)}",
                expected="a result of xmosaic.forecast, or lead times in any common dialect",
            )
        )
    attrs = ds.attrs
    along = [d for d in ("time", LEAD, "number") if d in ds.dims]
    numbers = [n for n in ds.data_vars if ds[n].dtype.kind in "fiu" and space_dims(ds[n])]
    kept = [n for n in numbers if set(along) <= set(ds[n].dims)]
    if left := [n for n in numbers if n not in kept]:
        notes.append(f"Left out, since not along {', '.join(along)}: {', '.join(map(str, left))}.")
    ds = ds[kept].assign_attrs(attrs)
    if not ds.data_vars or not ({"latitude", "longitude"} <= set(ds.dims) or "cell" in ds.dims):
        expected = "numbers along latitude and longitude, or along cell"
        raise DatasetError(
            explain("There is nothing to put on a globe", got=f"dimensions {listed(forecast.dims)}", expected=expected)
        )
    if strange := [d for d in ds.dims if d not in _KNOWN]:
        do = f"Select one, such as forecast.isel({strange[0]}=0)"
        raise DatasetError(explain(f"The page has no place for dimension {listed(strange)}", do=do))
    if empty := [d for d in ds.dims if not ds.sizes[d]]:
        raise DatasetError(explain(f"Dimension {empty[0]!r} is empty", expected="one or more"))
    ds = ds.drop_vars([n for n, c in ds.coords.items() if c.ndim > 1 and n not in ("valid_time",)])
    for dim in ("time", LEAD, "number"):
        if dim not in ds.dims:
            ds = ds.expand_dims(dim) if dim in ds.coords else ds.expand_dims({dim: [1]})
    return ds


def _variables(ds: xr.Dataset, variables: Any) -> xr.Dataset:
    if variables is None:
        return ds
    chosen: list[Hashable] = []
    for name in [variables] if isinstance(variables, str) else list(variables):
        found = [n for n in ds.data_vars if n == name] or [n for n in ds.data_vars if same(n, str(name))]
        if not found:
            expected = listed(ds.data_vars, 20)
            raise ArgumentError(explain(f"variable {name!r} is not in this forecast", expected=expected))
        chosen += [n for n in found if n not in chosen]
    if not chosen:
        raise ArgumentError(explain("variables is empty", expected=listed(ds.data_vars, 20)))
    ds = ds[chosen]
    return ds.drop_dims("level") if "level" in ds.dims and not any("level" in ds[n].dims for n in ds.data_vars) else ds


def _levels(ds: xr.Dataset, levels: Any) -> xr.Dataset:
    if levels is None:
        return ds
    there = ds["level"].values.tolist() if "level" in ds.dims else []
    wanted = [float(x) for x in np.atleast_1d(levels)]
    if missing := [x for x in wanted if x not in there] or ([] if wanted else [levels]):
        expected = ", ".join(f"{x:g}" for x in there) or "no levels: it has none"
        raise ArgumentError(explain(f"level {missing[0]} is not in this forecast", expected=expected))
    return ds.isel(level=[there.index(x) for x in wanted])


def _members(ds: xr.Dataset, members: Any, notes: list[str]) -> xr.Dataset:
    if members is None:
        return ds
    size, labels = ds.sizes["number"], ds["number"].values.tolist()
    if isinstance(members, int | np.integer) and not isinstance(members, bool):
        if members < 1:
            raise ArgumentError(explain(f"members={members} can't be used", expected="1 or more, or labels"))
        chosen = list(range(min(int(members), size)))
    else:
        try:
            chosen = [labels.index(m) for m in members]
        except (TypeError, ValueError):
            expected = f"a number of members, or some of the labels {listed(labels, 30)}"
            raise ArgumentError(explain(f"members={members!r} can't be used", expected=expected)) from None
        if not chosen:
            raise ArgumentError(explain("members is empty", expected="one or more"))
    if len(chosen) < size:
        notes.append(f"{len(chosen)} of {size} members are on this page; mean, spread and scores are of those.")
    return ds.isel(number=chosen)


def _starts(ds: xr.Dataset, time: Any) -> xr.Dataset:
    if time is None:
        return ds
    try:
        chosen = ds.sel(time=time)
        chosen = chosen if "time" in chosen.dims else chosen.expand_dims("time")
    except (KeyError, ValueError, TypeError):
        expected = listed([str(t)[:16] for t in ds["time"].values], 12)
        raise ArgumentError(explain(f"time={str(time)!r} is not in this forecast", expected=expected)) from None
    if not chosen.sizes["time"]:
        raise ArgumentError(explain(f"time={str(time)!r} selects no start", expected="one or more"))
    return chosen


# ------------------------------------------------------------------------------------------------ on the globe


class Projection:
    """Brings slabs onto the grid that the page draws.

    Parameters
    ----------
    forecast : Dataset
        In canonical dimensions.
    """

    def __init__(self, forecast: xr.Dataset) -> None:
        self.note, self._grid, self._order = "", None, None
        self.resolved: int | None = None  # highest wavenumber to be relied on, where not all are
        if "cell" in forecast.dims:
            mesh = find_mesh(forecast)
            nside = mesh.nside if mesh is not None else max(round((forecast.sizes["cell"] / 12) ** 0.5), 1)
            self._grid, self.resolved = LatLonGrid.equiangular(4 * nside, 2 * nside + 1), 2 * nside
            self.note = (
                f"HEALPix nside {nside}, regridded to {4 * nside} × {2 * nside + 1} points to be drawn; "
                "spectra and scores are those of the mesh."
            )
            self.latitude, self.longitude = np.array(self._grid.latitude), np.array(self._grid.longitude)
            return
        for dim in ("latitude", "longitude"):
            if dim not in forecast.coords or not np.isfinite(forecast[dim].values.astype(float)).all():
                raise DatasetError(explain(f"Dimension {dim!r} has no coordinate", do="Add one, in degrees"))
        latitude = forecast["latitude"].values.astype(np.float64)
        longitude = np.round(forecast["longitude"].values.astype(np.float64) % 360.0, 9) % 360.0
        columns = np.unique(longitude, return_index=True)[1]  # a repeated meridian counts once
        self._order = np.argsort(latitude, kind="stable"), columns
        self.latitude, self.longitude = latitude[self._order[0]], longitude[columns]

    def __call__(self, field: xr.DataArray) -> np.ndarray:
        """A field's values, dims (…, latitude, longitude), from south to north and eastward from 0."""
        if self._grid is not None:
            return to_latlon(field, self._grid).transpose(..., "latitude", "longitude").values
        assert self._order is not None
        return field.transpose(..., "latitude", "longitude").values[..., self._order[0], :][..., self._order[1]]


def words_of(field: xr.DataArray) -> str:
    """A variable's name in words."""
    known = find_variable(str(field.name))
    name = str(known.name if known is not None else field.name)
    text = str(field.attrs.get("long_name") or name).replace("_", " ")
    return text[:1].upper() + text[1:]
