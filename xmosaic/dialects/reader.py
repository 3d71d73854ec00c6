"""A schema's channels found in a dataset of any dialect, and which known variables a dataset has."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import xarray as xr

from ..errors import ArgumentError, explain
from ..units import conversion
from ..variables import CATALOGUE, ROWS, Channel, Schema, Variable, find_variable, levels_text, listed, published_schema
from .axes import axis_kind, read_values
from .dimensions import read_dims, report_extras, report_space
from .findings import Findings
from .levels import read_levels, report_levels
from .matching import choose, one_per_level
from .meaning import check_dtype, check_meaning, read_units
from .recognition import Recognition, Source
from .times import read_times


def recognise(ds: xr.Dataset, schema: Schema) -> Recognition:
    """Find a schema's channels in a dataset of any dialect.

    Parameters
    ----------
    ds : Dataset
        WeatherBench2, ECMWF, CDS, cfgrib, CMIP or CF names; any order of dimensions; eager or dask. Only metadata and
        coordinates are read.
    schema : Schema
        What is looked for. Static channels may be missing.

    Returns
    -------
    Recognition
        With all problems at once; nothing is raised.
    """
    if not isinstance(ds, xr.Dataset):
        do = "Pass da.to_dataset()" if isinstance(ds, xr.DataArray) else ""
        raise ArgumentError(explain("This is no Dataset", got=type(ds).__name__, expected="xarray.Dataset", do=do))
    return _read(ds, schema)


def _read(ds: xr.Dataset, schema: Schema) -> Recognition:
    seen = Findings(ds)
    for _, variable, channels in schema.groups():
        _read_variable(seen, _known(variable, channels), channels)
    report_levels(seen)
    report_extras(seen)
    report_space(seen)
    times = read_times(seen)
    if seen.unitless:
        taken = "; ".join(f"{', '.join(map(repr, names))} as {units}" for units, names in seen.unitless.items())
        seen.note(f"no units attribute: taken {taken}")
    first = {kind: next(iter(names), None) for kind, names in seen.used.items()}
    problems, notes = tuple(seen.problems), tuple(seen.notes)
    return Recognition(schema, **first, sources=seen.sources, problems=problems, notes=notes, times=times)


def _read_variable(seen: Findings, known: Variable, channels: Sequence[Channel]) -> None:
    if known.vertical and (single := one_per_level(seen, known, channels)):
        return _read_one_per_level(seen, known, channels, single)
    name, how = choose(seen, known, channels)
    if name is not None:
        _read_source(seen, name, how, known, channels, known.vertical)


def _read_source(
    seen: Findings, name: Hashable, how: str, known: Variable, channels: Sequence[Channel], vertical: bool
) -> None:
    usable = check_dtype(seen, name, known) and check_meaning(seen, name, known)
    units = read_units(seen, name, known, channels[0].units)
    dims, squeezed = read_dims(seen, name, channels[0].role, vertical)
    indices = read_levels(seen, name, channels, dims) if vertical else dict.fromkeys(channels)
    if usable and units is not None:
        found = seen.ds[name].attrs.get("units")
        for channel, index in indices.items():
            seen.sources[channel.name] = Source(
                channel, name, how, index, None if found is None else str(found), *units, dims, squeezed
            )


def _read_one_per_level(
    seen: Findings, known: Variable, channels: Sequence[Channel], found: Mapping[Channel, Hashable]
) -> None:
    for channel, name in found.items():
        _read_source(seen, name, "one variable per level", known, [channel], vertical=False)
    if missing := [channel for channel in channels if channel not in found]:
        what = f"{known.name!r} lacks levels {', '.join(str(c.level) for c in missing)} hPa"
        fix = "Add them, or choose a schema without them"
        seen.problem(known.name, what, got=listed(found.values()), expected=levels_text(channels), fix=fix)


def _known(variable: str, channels: Sequence[Channel]) -> Variable:
    """The catalogue's row of a schema's variable, or one that the channel itself gives."""
    if (row := CATALOGUE.get(variable)) is not None:
        return row
    c = channels[0]
    vertical = c.level is not None
    return Variable(variable, "", (), (), (), c.standard_name, c.units, c.long_name, vertical, c.height)


def known_variables(ds: xr.Dataset) -> dict[str, list[int] | None]:
    """The state variables of a dataset that are known, with their pressure levels.

    Parameters
    ----------
    ds : Dataset
        In any dialect.

    Returns
    -------
    dict of str to list of int or None
        Levels [hPa] ascending; None for variables without. In the order of the catalogue.
    """
    levels = [level for level in sorted(_levels_of(ds)) if 0 < level <= 1100]
    static = {channel.variable for channel in published_schema().static}
    channels = [
        Channel.known(row.name, level)
        for row in ROWS
        if row.name not in static and not row.categorical
        for level in (levels if row.vertical else [None])
    ]
    found: dict[str, list[int] | None] = {}
    for source in recognise(ds, Schema(tuple(channels))).sources.values():
        channel = source.channel
        if channel.level is None:
            found[channel.variable] = None
        else:
            found[channel.variable] = [*(found.get(channel.variable) or []), channel.level]
    order = [row.name for row in ROWS if row.name in found]
    return {name: found[name] for name in order}


def _levels_of(ds: xr.Dataset) -> set[int]:
    """Pressure levels [hPa] on the dataset's coordinates and in the names of its variables."""
    found: set[int] = set()
    for name, coord in ds.coords.items():
        if axis_kind(name, coord.variable) == "level" and coord.dtype.kind in "iuf":
            factor, offset = conversion(str(coord.attrs.get("units") or "hPa"), "hPa") or (1.0, 0.0)
            found |= {round(float(v) * factor + offset) for v in np.ravel(read_values(coord.variable))}
    for variable in map(str, ds.data_vars):
        known = find_variable(variable)
        match = re.fullmatch(r"[a-zA-Z]\w*?_?(\d{1,4})", variable)
        if match and (known is None or known.vertical):  # u10 is the wind at 10 m
            found.add(int(match[1]))
    return found
