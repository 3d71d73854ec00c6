"""The fields of a dataset in our names, units and order of dimensions, lazily."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..errors import DatasetError, explain
from ..variables import Channel, Role, Schema, cf_attributes
from .axes import KEPT, SPACE, has_values
from .meaning import without_fill_values
from .reader import recognise
from .recognition import Recognition, Source

COORDINATE_ATTRS = {
    "time": {"standard_name": "time", "long_name": "time"},
    "level": {"standard_name": "air_pressure", "units": "hPa", "positive": "down", "axis": "Z"},
    "latitude": {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "longitude": {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
    "cell": {"standard_name": "healpix_index", "units": "1"},
}


def channel_arrays(
    ds: xr.Dataset,
    schema: Schema,
    recognition: Recognition | None = None,
    roles: Sequence[Role] = ("state", "forcing"),
) -> dict[str, xr.DataArray]:
    """Each channel as an array of its own, lazily.

    Parameters
    ----------
    ds : Dataset
        In any dialect; it isn't changed.
    schema : Schema
    recognition : Recognition, optional
        Of this dataset and schema, if it has been made already.
    roles : sequence of {"state", "forcing", "static"}
        Static channels that the dataset lacks are left out.

    Returns
    -------
    dict of str to DataArray, dims (time, latitude, longitude) or (time, cell)
        In the schema's order and units; static ones without time. Latitudes and longitudes stay in the dataset's
        order.

    Raises
    ------
    DatasetError
        With all problems of the dataset.
    """
    found = _checked(ds, schema, recognition)
    return {
        name: _field(ds, found, [source], keep_level=False).rename(name)
        for name, source in found.sources.items()
        if source.channel.role in roles
    }


def standardise(
    ds: xr.Dataset,
    schema: Schema,
    recognition: Recognition | None = None,
    roles: Sequence[Role] = ("state", "forcing"),
) -> xr.Dataset:
    """The schema's variables in our names, units and order of dimensions, lazily.

    Parameters
    ----------
    ds, schema, recognition, roles
        As in `channel_arrays`.

    Returns
    -------
    Dataset, dims (time, level, latitude, longitude) or (time, level, cell)
        Times ascending, levels ascending [hPa]. Where the schema asks for different levels of different variables,
        the levels are all of them and a variable is NaN where it wasn't asked for; `channel_arrays` has no such
        gaps. Latitudes and longitudes stay in the dataset's order.

    Raises
    ------
    DatasetError
        With all problems of the dataset.
    """
    fields = standard_fields(ds, schema, recognition, roles).values()
    merged = xr.merge(fields, join="outer", compat="override", combine_attrs="override")
    merged.attrs = dict(ds.attrs)
    return merged


def standard_fields(
    ds: xr.Dataset,
    schema: Schema,
    recognition: Recognition | None = None,
    roles: Sequence[Role] = ("state", "forcing"),
) -> dict[str, xr.DataArray]:
    """The variables of `standardise`, each at the levels that the schema asks for and no others."""
    found = _checked(ds, schema, recognition)
    arrays = {}
    for role, variable, channels in schema.groups():
        sources = [found.sources[c.name] for c in channels if c.name in found.sources]
        if role in roles and sources:
            sources.sort(key=lambda s: s.channel.level or 0)
            arrays[variable] = _field(ds, found, sources, keep_level=True)
            if sources[0].channel.level is not None:
                levels = np.array([s.channel.level for s in sources])
                coord = ("level", levels, COORDINATE_ATTRS["level"])
                arrays[variable] = arrays[variable].assign_coords(level=coord)
    return {name: da.rename(name) for name, da in arrays.items()}


def _checked(ds: xr.Dataset, schema: Schema, recognition: Recognition | None) -> Recognition:
    found = recognise(ds, schema) if recognition is None else recognition
    found.check()
    return found


def _field(ds: xr.Dataset, found: Recognition, sources: Sequence[Source], keep_level: bool) -> xr.DataArray:
    """One variable at the levels of `sources`, in our names, units and order; still lazy."""
    source = sources[0]
    if len({s.variable for s in sources}) > 1:
        return xr.concat([_field(ds, found, [s], keep_level) for s in sources], "level", join="override")
    da = _bare(ds.variables, found, sources, keep_level)
    da.attrs = cf_attributes(source.channel)
    grid = str(ds[source.variable].attrs.get("grid_mapping"))
    if grid in ds.coords or grid in ds.data_vars:
        da.attrs["grid_mapping"] = grid
    return da.assign_coords(_coordinates(ds, found, source, da))


def _coordinates(ds: xr.Dataset, found: Recognition, source: Source, da: xr.DataArray) -> dict[Hashable, Any]:
    coords: dict[Hashable, Any] = {}
    if "time" in da.dims:
        coords["time"] = ("time", found.times.sort_values(), COORDINATE_ATTRS["time"])
    for ours in SPACE:
        theirs = source.dims.get(ours)
        if theirs is not None and has_values(ds, theirs):
            attrs = {**ds[theirs].attrs, **COORDINATE_ATTRS[ours]}
            coords[ours] = (ours, ds.variables[theirs].data, attrs)
    if "cell" in source.dims:
        along = {n: c for n, c in ds.coords.items() if c.dims == (source.dims["cell"],) and n != c.dims[0]}
        coords |= {n: ("cell", c.variable.data, c.attrs) for n, c in along.items()}
    if "grid_mapping" in da.attrs:
        coords[da.attrs["grid_mapping"]] = ds.variables[da.attrs["grid_mapping"]]
    return coords


def bare_field(variables: Mapping[Any, xr.Variable], found: Recognition, channels: Sequence[Channel]) -> xr.DataArray:
    """One variable at the levels of some channels, in our units and order, without coordinates.

    Parameters
    ----------
    variables : mapping of name to Variable
        Those that the channels are taken from; they may be a part in time of what was recognised.
    found : Recognition
        With the times of that part.
    channels : sequence of Channel
        All of one variable.

    Returns
    -------
    DataArray, dims (time, level, latitude, longitude)
        As `standardise` has it, the costs of labels apart; without level for a variable that has none.
    """
    sources = sorted((found.sources[c.name] for c in channels), key=lambda s: s.channel.level or 0)
    if len({s.variable for s in sources}) > 1:
        return xr.concat([_bare(variables, found, [s], True) for s in sources], "level")
    return _bare(variables, found, sources, True)


def _bare(
    variables: Mapping[Any, xr.Variable], found: Recognition, sources: Sequence[Source], keep_level: bool
) -> xr.DataArray:
    """As `_field`, of one variable, without coordinates and attributes."""
    source = sources[0]
    da = xr.DataArray(variables[source.variable]).isel(dict.fromkeys(source.squeezed, 0))
    if "level" in source.dims:
        places = [s.level_index for s in sources if s.level_index is not None]
        da = da.isel({source.dims["level"]: run_of(places) if keep_level else places[0]})
    da = without_fill_values(da)
    theirs = {dim: ours for ours, dim in source.dims.items() if dim in da.dims}
    da = da.rename({dim: ours for dim, ours in theirs.items() if dim != ours})
    if keep_level and source.channel.level is not None and "level" not in da.dims:
        da = da.expand_dims("level")
    da = _in_time(da, found, source.channel.role)
    if (source.factor, source.offset) != (1.0, 0.0):
        da = da * source.factor + source.offset
    return da.transpose(*[dim for dim in KEPT if dim in da.dims])


def run_of(places: list[int]) -> list[int] | slice:
    """Indices as a slice where they follow each other: a view, and one read from disk."""
    follow = places == list(range(places[0], places[0] + len(places)))
    return slice(places[0], places[0] + len(places)) if follow else places


def _in_time(da: xr.DataArray, found: Recognition, role: Role) -> xr.DataArray:
    """Times in ascending order; static fields have none."""
    if role == "static":
        return da.isel(time=0) if "time" in da.dims else da
    if "time" not in da.dims:
        return da.expand_dims("time")
    if da.sizes["time"] != len(found.times):
        got, expected = f"{da.sizes['time']} times", str(len(found.times))
        raise DatasetError(explain("The recognition is of another dataset", got=got, expected=expected))
    return da if found.times.is_monotonic_increasing else da.isel(time=found.times.argsort())
