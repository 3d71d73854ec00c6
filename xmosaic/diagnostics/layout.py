"""A forecast and its truth, understood by their dimensions and put side by side by valid time."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from ..dialects import axis_kind, decode_lead, without_fill_values
from ..errors import AlignmentWarning, ArgumentError, DatasetError, explain
from ..grid import LatLonGrid, area_weights, wrap_longitude
from ..healpix import find_mesh
from ..units import canonical, conversion
from ..variables import ROWS, find_variable, listed

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray, xr.Dataset | xr.DataArray)

_DIM_OF_KIND = {
    "start": "time",
    "time": "time",
    "lead": "prediction_timedelta",
    "member": "number",
    "level": "level",
    "latitude": "latitude",
    "longitude": "longitude",
    "cell": "cell",
}
LEAD = "prediction_timedelta"
# Points of two grids count as the same up to this many degrees.
_SAME_POINT = 1e-4


def canonical_dims(obj: Labelled) -> tuple[Labelled, dict[str, Hashable]]:
    """Rename dimensions to time, number, prediction_timedelta, level, latitude, longitude, cell.

    Parameters
    ----------
    obj : Dataset or DataArray
        A forecast or an analysis in any common dialect; integer lead times need units.

    Returns
    -------
    renamed : Dataset or DataArray
        Lead times are timedelta64, pressure levels hPa. Dimensions of no known kind stay.
    names : dict of str to hashable
        New name → the caller's, for those that were renamed; `obj.rename` takes it to go back.

    Raises
    ------
    DatasetError
        Where two dimensions are of one kind, one is empty, or lead times, levels or places can't be told.
    """
    if not isinstance(obj, xr.Dataset | xr.DataArray):
        raise ArgumentError(explain("This is no xarray object", got=type(obj).__name__, expected="a Dataset"))
    obj = _labels_loaded(decode_lead(obj))
    if stacked := [dim for dim in obj.dims if isinstance(obj.indexes.get(dim), pd.MultiIndex)]:
        do = f"Take it apart: .unstack({str(stacked[0])!r})"
        raise DatasetError(explain(f"Dimension {stacked[0]!r} is several in one", do=do))
    found: dict[str, Hashable] = {}
    for name in _axes(obj):
        new = _DIM_OF_KIND.get(axis_kind(name, obj.coords[name].variable if name in obj.coords else None))
        if new is None:
            continue
        if new in found:
            if name not in obj.dims:
                continue
            what = f"Two dimensions can be {new!r}"
            raise DatasetError(explain(what, got=listed((found[new], name)), do="Rename or drop one of them"))
        found[new] = name
    back = {new: old for new, old in found.items() if new != old}
    # what stands in the way of a new name, such as cfgrib's valid_time on dimension step called time
    taken = [new for new in back if new in obj.coords and new not in found.values()]
    obj = obj.drop_vars(taken).rename({old: new for new, old in back.items()})
    obj = _levels_in_hpa(obj)
    _check_labels(obj)
    return obj, back


def _check_labels(obj: xr.Dataset | xr.DataArray) -> None:
    """Refuse what has nothing along a dimension, and numbers that stand for no place, level or lead."""
    if empty := [dim for dim, size in obj.sizes.items() if not size]:
        raise DatasetError(explain(f"There is nothing along {empty[0]!r}", got="a length of 0", expected="at least 1"))
    for name in ("level", "latitude", "longitude", LEAD):
        values = obj.coords[name].values if name in obj.coords else np.zeros(1)
        kind, places = values.dtype.kind, name in ("latitude", "longitude")
        if kind == "c" or (places and kind not in "iuf"):
            raise DatasetError(explain(f"Coordinate {name!r} holds no numbers", got=f"dtype {values.dtype}"))
        if np.any(pd.isnull(values)) or (kind == "f" and not np.isfinite(values).all()):
            do = f"Leave those out: ds.sel({name}=…)"
            raise DatasetError(explain(f"Coordinate {name!r} holds NaN, NaT or infinite values", do=do))


def _axes(obj: xr.Dataset | xr.DataArray) -> list[Hashable]:
    """Dimensions, then scalar coordinates that may stand for one."""
    return [*obj.dims, *(name for name, coord in obj.coords.items() if coord.ndim == 0 and name != "valid_time")]


def _levels_in_hpa(obj: Labelled) -> Labelled:
    level = obj.coords.get("level")
    if level is None or level.dtype.kind not in "iuf":
        return obj
    # pressures in Pa are above 2000 somewhere, in hPa nowhere
    units = str(level.attrs.get("units", "")).strip() or ("Pa" if (level.values > 2000).any() else "hPa")
    linear = conversion(units, "hPa")
    if linear is None or linear == (1.0, 0.0):
        return obj
    return obj.assign_coords(level=(level.dims, level.values * linear[0], {**level.attrs, "units": "hPa"}))


def _labels_loaded(obj: Labelled) -> Labelled:
    """Lazy coordinates in memory: those of a store have chunks that contradict its fields', which xarray refuses."""
    lazy = {name: coord.compute() for name, coord in obj.coords.items() if coord.chunks is not None}
    obj = obj.assign_coords(lazy) if lazy else obj
    # pandas looks nothing up in an index of the other byte order
    native = {n: c.astype(c.dtype.newbyteorder("=")) for n, c in obj.coords.items() if not _is_native(c)}
    return obj.assign_coords(native) if native else obj


def _is_native(coord: xr.DataArray) -> bool:
    return not isinstance(coord.dtype, np.dtype) or bool(coord.dtype.isnative)


def caller_names(obj: Labelled, names: dict[str, Hashable]) -> Labelled:
    """Give the caller's names back to what is left of the canonical ones."""
    return obj.rename({new: old for new, old in names.items() if new in obj.dims or new in obj.coords})


def in_one_chunk(obj: Labelled, dims: Iterable[str]) -> Labelled:
    """The same with these dimensions in one chunk, where it is on dask.

    `apply_ufunc` would do it too, but cut the other dimensions so that chunks stay as small as they were: a task for
    each piece of each member.
    """
    split = [d for d in dims if d in obj.dims and obj.chunksizes.get(d, ()) and len(obj.chunksizes[d]) > 1]
    return obj.chunk(dict.fromkeys(split, -1)) if split else obj


def space_dims(obj: xr.Dataset | xr.DataArray) -> tuple[str, ...]:
    """Those of latitude, longitude and cell that an object in canonical dimensions has."""
    return tuple(dim for dim in ("latitude", "longitude", "cell") if dim in obj.dims)


def require_dims(obj: xr.Dataset | xr.DataArray, dims: Iterable[str], what: str) -> None:
    """Raise where a dimension is missing.

    Parameters
    ----------
    obj : Dataset or DataArray
    dims : iterable of str
    what : str
        What needs them, for the error's text.
    """
    if missing := [dim for dim in dims if dim not in obj.dims]:
        raise DatasetError(explain(f"{what} needs dimension {listed(missing)}", got=f"dimensions {listed(obj.dims)}"))


def weights_for(obj: xr.Dataset | xr.DataArray, weights: Any = "area") -> xr.DataArray | None:
    """Weights of the points of an object in canonical dimensions.

    Parameters
    ----------
    obj : Dataset or DataArray
    weights : {"area", None} or DataArray
        Exact cell areas, none, or one's own along dimensions of the object.

    Returns
    -------
    DataArray or None
        Areas sum to one; one's own stay as they are, so that sums of parts may be added. None: all points alike.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        if weights != "area":
            raise ArgumentError(explain(f"weights={weights!r} is not known", expected="'area', None or a DataArray"))
        if "latitude" not in obj.dims:  # cells of a mesh are equal; without space there is nothing to weigh
            return None
        area = area_weights(obj) if "longitude" in obj.dims else _zonal(obj)
        return (area / area.sum()).drop_attrs()
    if not isinstance(weights, xr.DataArray):
        got = type(weights).__name__
        raise ArgumentError(explain("weights can't be used", got=got, expected="'area', None or a DataArray"))
    own, _ = canonical_dims(weights)
    if extra := [dim for dim in own.dims if dim not in obj.dims]:
        raise ArgumentError(explain(f"weights have dimension {listed(extra)}", expected=f"some of {listed(obj.dims)}"))
    if not (np.isfinite(own).all() and (own >= 0).all() and own.sum() > 0):
        raise ArgumentError(explain("weights are negative, NaN or all zero", expected="numbers from 0 up"))
    own = same_places(own, obj, "The weights")
    return own.drop_attrs()


def _zonal(obj: xr.Dataset | xr.DataArray) -> xr.DataArray:
    return area_weights(obj.coords["latitude"].drop_vars([n for n in obj.coords if n != "latitude"], errors="ignore"))


# ---------------------------------------------------------------------------------------------- side by side


@dataclass(frozen=True)
class Aligned:
    """A forecast and the truth at its valid times, in canonical dimensions.

    Parameters
    ----------
    forecast : Dataset, dims (time, prediction_timedelta, …)
    truth : Dataset, dims as the forecast's without number
        NaN where there is none.
    found : DataArray of bool, dims (time, prediction_timedelta) as far as the forecast has them
        Where there is a truth.
    names : dict of str to hashable
        Canonical name → the caller's.
    single : Hashable or None
        Name of the DataArray, if the forecast was one.
    is_array : bool
        Whether the forecast was a DataArray.
    """

    forecast: xr.Dataset
    truth: xr.Dataset
    found: xr.DataArray
    names: dict[str, Hashable]
    single: Hashable
    is_array: bool

    @property
    def members(self) -> int:
        """Size of the ensemble; 1 for a deterministic forecast."""
        return int(self.forecast.sizes.get("number", 1))

    def give_back(self, result: xr.Dataset) -> Any:
        """A result under the caller's names, as DataArray if the forecast was one."""
        result = caller_names(result, self.names)
        return result[next(iter(result.data_vars))].rename(self.single) if self.is_array else result


def align(forecast: xr.Dataset | xr.DataArray, truth: xr.Dataset | xr.DataArray) -> Aligned:
    """Put a forecast and its truth side by side, by labels and never by position.

    Parameters
    ----------
    forecast : Dataset or DataArray
        In any common dialect.
    truth : Dataset or DataArray
        Analyses along (valid) time, or fields laid out as the forecast; on the same points in any order.

    Returns
    -------
    Aligned

    Raises
    ------
    DatasetError
        Where grids differ, units can't be converted, or no variable, level or time is in both.

    Warns
    -----
    AlignmentWarning
        Names the variables, levels and valid times that the truth doesn't have.
    """
    ours, names = canonical_dims(forecast)
    theirs, _ = canonical_dims(truth)
    if "number" in theirs.dims:
        raise DatasetError(
            explain("The truth has members", got="dimension 'number'", do="Select one, such as truth.isel(number=0)")
        )
    is_array = isinstance(ours, xr.DataArray)
    single = ours.name if isinstance(ours, xr.DataArray) else None
    notes: list[str] = []
    ours, theirs = _same_variables(as_dataset(ours), theirs, is_array, notes)
    theirs = theirs.map(without_fill_values, keep_attrs=True)
    _check_truth(ours, theirs)
    theirs = _same_units(ours, theirs)
    if "level" in ours.dims and "level" in theirs.dims:
        ours, theirs = _same_levels(ours, theirs, notes)
    theirs = same_places(theirs, ours, "The truth")
    theirs, found = _at_valid_times(ours, theirs, notes)
    _same_dims(ours, theirs)
    if notes:
        warn("Not everything has a truth. " + " ".join(notes) + " It's left out of the scores.")
    return Aligned(ours, theirs, found, names, single, is_array)


def warn(text: str) -> None:
    """Warn as from the line outside this package that called it."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == __name__.split(".")[0]:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(text, AlignmentWarning, stacklevel=depth)


def as_dataset(obj: Any) -> xr.Dataset:
    """A Dataset of a DataArray, its variable named "unnamed" where it has no name; anything else as it is."""
    if not isinstance(obj, xr.DataArray):
        return obj  # canonical_dims refuses what is no Dataset
    return obj.to_dataset(name="unnamed" if obj.name is None else obj.name)


def _same_variables(
    ours: xr.Dataset, theirs: xr.Dataset | xr.DataArray, is_array: bool, notes: list[str]
) -> tuple[xr.Dataset, xr.Dataset]:
    if isinstance(theirs, xr.DataArray):
        if is_array:  # two arrays are compared whatever their names are
            return ours, theirs.to_dataset(name=next(iter(ours.data_vars)))
        theirs = as_dataset(theirs)
    known: dict[Hashable, list[Hashable]] = {}
    for name in theirs.data_vars:
        known.setdefault(meaning(name), []).append(name)
    wanted = [name for name in ours.data_vars if ours[name].dtype.kind in "fiub"]
    pairs = {name: name if name in theirs.data_vars else _only(name, known.get(meaning(name), [])) for name in wanted}
    if absent := [name for name, other in pairs.items() if other is None]:
        if len(absent) == len(pairs):
            raise DatasetError(
                explain(
                    "Forecast and truth have no variable in common",
                    got=f"{listed(theirs.data_vars)} in the truth",
                    expected=listed(wanted),
                    do="Rename the truth's variables",
                )
            )
        notes.append(f"Variables that the truth hasn't: {listed(absent)}.")
    both = {name: other for name, other in pairs.items() if other is not None}
    return ours[list(both)], xr.Dataset({name: theirs[other] for name, other in both.items()})


def _only(name: Hashable, others: list[Hashable]) -> Hashable | None:
    if len(others) > 1:
        do = f"Keep one, or rename the right one to {name!r}"
        raise DatasetError(explain(f"The truth of {name!r} is ambiguous", got=listed(others), do=do))
    return others[0] if others else None


def _check_truth(ours: xr.Dataset, theirs: xr.Dataset) -> None:
    """Refuse a truth that holds no numbers, or says that it is something else."""
    for name, da in theirs.data_vars.items():
        units, what = str(da.attrs.get("units", "")).strip(), f"The truth of {name!r}"
        if da.dtype.kind not in "fiub" or (da.dtype.kind == "b" and canonical(units) != "1"):
            raise DatasetError(explain(f"{what} holds no numbers", got=f"dtype {da.dtype}", expected="floats"))
        if {"scale_factor", "add_offset"} & set(da.attrs):
            raise DatasetError(explain(f"{what} is still packed", do="Decode it: truth = xr.decode_cf(truth)"))
        known, standard = find_variable(str(name)), str(da.attrs.get("standard_name", ""))
        others = {text for row in ROWS for text in row.standard_names}
        if known is not None and known.standard_names and standard in others - set(known.standard_names):
            expected = " or ".join(map(repr, known.standard_names))
            raise DatasetError(explain(f"{what} says that it is something else", got=repr(standard), expected=expected))
        if "time" in theirs.dims and not {"time", LEAD} & set(da.dims) and {"time", LEAD} & set(ours[name].dims):
            do = "Give it the dimension, or leave the variable out"
            raise DatasetError(explain(f"{what} has no time, and the others have", do=do))


def meaning(name: Hashable) -> Hashable:
    """What a name stands for in any dialect: our own name of the variable, or the name itself if it isn't known."""
    known = find_variable(str(name))
    # a channel's name, such as geopotential_500, means more than its variable
    return known.name if known is not None and not str(name).rpartition("_")[2].isdigit() else name


def _same_units(ours: xr.Dataset, theirs: xr.Dataset) -> xr.Dataset:
    changed = {}
    for name, field in theirs.data_vars.items():
        wanted, got = (str(obj[name].attrs.get("units", "")).strip() for obj in (ours, theirs))
        if not wanted or not got or canonical(wanted) == canonical(got):
            continue
        linear = conversion(got, wanted)
        if linear is None:
            raise DatasetError(explain(f"The truth of {name!r} has other units", got=repr(got), expected=repr(wanted)))
        changed[name] = (field * linear[0] + linear[1]).assign_attrs({**field.attrs, "units": wanted})
    return theirs.assign(changed)


def _same_levels(ours: xr.Dataset, theirs: xr.Dataset, notes: list[str]) -> tuple[xr.Dataset, xr.Dataset]:
    kinds = [axis_kind("level", obj["level"].variable) for obj in (ours, theirs)]
    if kinds[0] != kinds[1]:
        raise DatasetError(explain("The truth has other levels", got=f"a {kinds[1]}", expected=f"a {kinds[0]}"))
    for obj, what in ((ours, "forecast"), (theirs, "truth")):
        if not pd.Index(obj["level"].values).is_unique:
            do = f"Keep the first: {what}.drop_duplicates('level')"
            raise DatasetError(explain(f"A level of the {what} appears twice", got=listed(obj["level"].values), do=do))
    wanted, there = ours["level"].values, theirs["level"].values
    common = [level for level in wanted if level in there]
    if not common:
        raise DatasetError(
            explain("Forecast and truth have no level in common", got=listed(there), expected=listed(wanted))
        )
    if len(common) < len(wanted):
        notes.append(f"Levels that the truth hasn't: {', '.join(f'{x:g}' for x in wanted if x not in there)} hPa.")
    both = ours.sel(level=common), theirs.sel(level=common)
    return both[0], both[1].assign_coords(level=both[0]["level"].variable)


def same_places(theirs: Labelled, ours: xr.Dataset | xr.DataArray, what: str) -> Labelled:
    """Reorder an object to another's latitudes and longitudes, or to its cells.

    Parameters
    ----------
    theirs, ours : Dataset or DataArray, canonical dimensions
    what : str
        What `theirs` is, for the error's text.

    Returns
    -------
    Dataset or DataArray
        With the very coordinates of `ours`.
    """
    if "cell" in ours.dims and "cell" in theirs.dims:
        return _same_cells(theirs, ours, what)
    for dim in ("latitude", "longitude"):
        if dim not in ours.dims or dim not in theirs.dims:
            continue
        wanted, there = (_degrees(obj, dim) for obj in (ours, theirs))
        order = np.argsort(there, kind="stable")
        at = np.clip(np.searchsorted(there[order], wanted - _SAME_POINT), 0, len(there) - 1)
        if not len(there) or not np.allclose(there[order][at], wanted, rtol=0, atol=_SAME_POINT):
            raise DatasetError(_other_grid(theirs, ours, what))
        index = order[at]
        if len(there) != len(wanted) or not np.array_equal(index, np.arange(len(there))):
            theirs = theirs.isel({dim: index})
        theirs = theirs.assign_coords({dim: ours.coords[dim].variable})
    return theirs


def _degrees(obj: xr.Dataset | xr.DataArray, dim: str) -> np.ndarray:
    if dim not in obj.coords:
        raise DatasetError(explain(f"Dimension {dim!r} has no coordinate", do="Add one, in degrees"))
    values = obj.coords[dim].values
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        got = f"dtype {values.dtype}" if values.dtype.kind not in "iuf" else "NaN or infinite values"
        raise DatasetError(explain(f"Coordinate {dim!r} can't be used", got=got, expected="degrees"))
    values = values.astype(np.float64)
    # just west of 0 is just east of it: both go to the same end of the row
    return wrap_longitude(values + _SAME_POINT) if dim == "longitude" else values


def _same_cells(theirs: Labelled, ours: xr.Dataset | xr.DataArray, what: str) -> Labelled:
    mesh, other = find_mesh(ours), find_mesh(theirs)
    labels = ours.coords.get("cell"), theirs.coords.get("cell")
    if mesh != other or ours.sizes["cell"] != theirs.sizes["cell"]:
        got = f"{other or 'no described mesh'}, {theirs.sizes['cell']} cells"
        expected = f"{mesh or 'no described mesh'}, {ours.sizes['cell']} cells"
        do = "Regrid one of them, such as truth.mosaic.to_healpix(nside)"
        raise DatasetError(explain(f"{what} is on another mesh", got=got, expected=expected, do=do))
    if labels[0] is None or labels[1] is None or np.array_equal(labels[0], labels[1]):
        return theirs
    order = np.argsort(labels[1].values, kind="stable")
    at = order[np.clip(np.searchsorted(labels[1].values[order], labels[0].values), 0, len(order) - 1)]
    if not np.array_equal(labels[1].values[at], labels[0].values):
        raise DatasetError(explain(f"{what} holds other cells of the mesh", do="Select the same cells of both"))
    return theirs.isel(cell=at).assign_coords(cell=ours.coords["cell"].variable)


def _other_grid(theirs: xr.Dataset | xr.DataArray, ours: xr.Dataset | xr.DataArray, what: str) -> str:
    def described(obj: xr.Dataset | xr.DataArray) -> str:
        try:
            return repr(LatLonGrid.from_dataset(obj))
        except DatasetError:
            sizes = ", ".join(f"{obj.sizes[d]} {d}s" for d in ("latitude", "longitude") if d in obj.dims)
            return f"{sizes} (not global)"

    return explain(
        f"{what} is on another grid",
        got=described(theirs),
        expected=described(ours),
        do="Regrid one of them, such as truth.mosaic.to_latlon(forecast)",
    )


def _at_valid_times(ours: xr.Dataset, theirs: xr.Dataset, notes: list[str]) -> tuple[xr.Dataset, xr.DataArray]:
    """The truth along the forecast's (time, lead), and where there is one."""
    leads, starts = (_labels(ours, dim) for dim in (LEAD, "time"))
    dims = [dim for dim in ("time", LEAD) if dim in ours.dims]
    coords = {dim: ours.coords[dim].variable for dim in dims}
    everywhere = xr.DataArray(np.ones([ours.sizes[d] for d in dims], dtype=bool), coords, dims)
    if unlabelled := [d for d in ("time", LEAD) for obj in (ours, theirs) if d in obj.dims and d not in obj.coords]:
        raise DatasetError(explain(f"Dimension {unlabelled[0]!r} has no labels to align by", do="Assign coordinates"))
    if not {"time", LEAD} & {*theirs.dims, *theirs.coords} or (
        not dims and starts is None and "time" not in theirs.dims
    ):
        return _without(theirs, ("time", LEAD)), everywhere  # the same at all times
    if starts is None:
        raise DatasetError(explain("The forecast has no start", expected="a coordinate 'time'", do="Assign it"))
    if "time" not in theirs.dims and LEAD not in theirs.dims:
        theirs = theirs.expand_dims("time")
    if LEAD in theirs.dims:
        return _by_start_and_lead(ours, theirs, dims, notes)
    if LEAD in theirs.coords:  # analyses in forecast clothes, all at one lead
        (lead,) = np.atleast_1d(_labels(theirs, LEAD))
        theirs = theirs.drop_vars(LEAD).assign_coords(time=times_of(theirs["time"]).values + lead)
    times = times_of(theirs["time"])
    if not times.is_unique:
        raise DatasetError(explain("A time of the truth appears twice", got=str(times[times.duplicated()][0])))
    valid = np.add.outer(starts, leads if leads is not None else np.zeros(1, "timedelta64[ns]"))
    index = times.get_indexer(pd.DatetimeIndex(valid.ravel()))
    found = xr.DataArray((index >= 0).reshape([ours.sizes[d] for d in dims]), coords, dims)
    _note_missing(valid.ravel()[index < 0], found, times, notes)
    return _taken(ours, theirs, index, dims, found), found


def times_of(coord: xr.DataArray) -> pd.DatetimeIndex:
    """Times of a coordinate in nanoseconds, those of a calendar that shares its dates with datetime64 too."""
    index = coord.to_index() if coord.ndim else coord.expand_dims("time").to_index()
    if isinstance(index, xr.CFTimeIndex) and index.calendar in ("standard", "gregorian", "proleptic_gregorian"):
        index = index.to_datetimeindex(time_unit="ns")
    if not isinstance(index, pd.DatetimeIndex):
        calendar = getattr(index, "calendar", index.dtype)
        raise DatasetError(explain("Times can't be compared", got=f"{calendar}", expected="datetime64"))
    try:
        return index.as_unit("ns")
    except pd.errors.OutOfBoundsDatetime:
        span = f"{index.min()} … {index.max()}"
        what = "Times can't be counted in nanoseconds"
        raise DatasetError(explain(what, got=span, expected="1677-09-22 … 2262-04-11")) from None


def _labels(obj: xr.Dataset, dim: str) -> Any:
    """Times or leads as an array of nanoseconds; None where there are none."""
    if dim not in obj.coords:
        return None
    if dim == "time":
        return np.asarray(times_of(obj.coords[dim]).values)
    return np.atleast_1d(obj.coords[dim].values).astype("timedelta64[ns]")


def _without(obj: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    return obj.drop_vars([*names, "valid_time"], errors="ignore")


def _by_start_and_lead(
    ours: xr.Dataset, theirs: xr.Dataset, dims: list[str], notes: list[str]
) -> tuple[xr.Dataset, xr.DataArray]:
    """A truth laid out as the forecast."""
    theirs = _without(theirs, ())
    for dim in dims:
        if dim not in theirs.dims:
            theirs = theirs.expand_dims(dim) if dim in theirs.coords else theirs
    there = {dim: pd.Index(theirs[dim].values).isin(ours[dim].values) for dim in dims if dim in theirs.dims}
    if any(not places.any() for places in there.values()):
        what = "No start and lead of the forecast is in the truth"
        raise DatasetError(explain(what, got=listed(theirs[LEAD].values), expected=listed(ours[LEAD].values)))
    found = xr.ones_like(xr.DataArray(0, {d: ours[d] for d in dims}, dims), dtype=bool)
    for dim in there:
        found = found & xr.DataArray(pd.Index(ours[dim].values).isin(theirs[dim].values), {dim: ours[dim]}, (dim,))
    if not found.all():
        notes.append(f"{int((~found).sum())} of {found.size} starts and leads aren't in the truth.")
    return theirs.reindex({dim: ours[dim] for dim in there}), found


def _note_missing(missing: np.ndarray, found: xr.DataArray, times: pd.DatetimeIndex, notes: list[str]) -> None:
    if not len(missing):
        return
    named = ", ".join(np.datetime_as_string(t, "h") for t in np.unique(missing)[:5])
    more = len(np.unique(missing)) - 5
    named += f" and {more} more" if more > 0 else ""
    if not found.any():
        span = f"{times.min()} … {times.max()}" if len(times) else "no times"
        raise DatasetError(explain("The truth has none of the forecast's valid times", got=span, expected=named))
    notes.append(f"Valid times that the truth hasn't, in {len(missing)} of {found.size} starts and leads: {named}.")


def _taken(ours: xr.Dataset, theirs: xr.Dataset, index: np.ndarray, dims: list[str], found: xr.DataArray) -> xr.Dataset:
    """The truth at each valid time; lazy where the forecast is, for it may be far larger than the truth."""
    if ours.chunks and not theirs.chunks:
        theirs = theirs.chunk({"time": 1})
    theirs = _without(theirs, [str(n) for n in theirs.coords if n != "time" and "time" in theirs[n].dims])
    places = np.maximum(index, 0).reshape(found.shape)
    if not dims:
        picked = theirs.isel(time=int(places))
    elif len(dims) == 1:
        picked = theirs.isel(time=xr.DataArray(places, dims=dims))
    else:  # start by start: chunks of single leads stay what they are
        rows = [theirs.isel(time=xr.DataArray(row, dims=LEAD)).drop_vars("time") for row in places]
        picked = xr.concat(rows, "time")
    picked = picked.drop_vars("time", errors="ignore").assign_coords({d: found.coords[d].variable for d in dims})
    return picked if found.all() else picked.where(found)


def _same_dims(ours: xr.Dataset, theirs: xr.Dataset) -> None:
    for name, field in theirs.data_vars.items():
        wanted = [str(dim) for dim in ours[name].dims if dim != "number"]
        lacking = [str(d) for d in wanted if d not in field.dims and d not in ("time", LEAD)]
        if lacking:
            raise DatasetError(explain(f"The truth of {name!r} has no dimension {listed(lacking)}"))
        if extra := [str(d) for d in field.dims if d not in wanted]:
            do = "Select one place along it"
            raise DatasetError(explain(f"The truth of {name!r} has further dimension {listed(extra)}", do=do))
