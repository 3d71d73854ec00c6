"""Pressure levels: whether a variable has any, which, and where along its dimension."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from ..units import conversion
from ..variables import Channel, levels_text, listed
from .axes import dtype_kind, has_values, read_values
from .findings import Findings


def has_levels(seen: Findings, name: Hashable) -> bool:
    """Whether a variable is on levels: along a dimension, or at one, as a scalar coordinate."""
    da = seen.ds[name]
    on_levels = any(
        seen.kinds[dim] in ("level", "model level") or (seen.kinds[dim] == "height" and da.sizes[dim] > 1)
        for dim in da.dims
    )
    return on_levels or scalar_level(seen, name) is not None


def scalar_level(seen: Findings, name: Hashable) -> Hashable | None:
    """The scalar coordinate that says at which level a variable is."""
    coords = seen.ds[name].coords
    return next((c for c in coords if seen.kinds.get(c) == "level" and coords[c].ndim == 0), None)


def read_levels(
    seen: Findings, name: Hashable, channels: Sequence[Channel], dims: Mapping[str, Hashable]
) -> dict[Channel, int | None]:
    """Channels that the variable has, with their place along its level dimension."""
    if channels[0].level is None:
        return dict.fromkeys(channels)
    coord = dims.get("level", scalar_level(seen, name))
    if coord is None or (found := _level_values(seen, coord)) is None:
        return {}
    seen.used["level"].setdefault(coord)
    places = {c: np.flatnonzero(np.abs(found - c.level) <= 1e-3 * c.level) for c in channels if c.level}
    if missing := [str(c.level) for c, place in places.items() if not len(place)]:
        got = ", ".join(f"{v:g}" for v in found[:40]) + " hPa"
        seen.short_of.setdefault((", ".join(missing), got), {})[name] = channels
    along = "level" in dims
    return {c: int(place[0]) if along else None for c, place in places.items() if len(place)}


def report_levels(seen: Findings) -> None:
    """Levels that are missing, once for all variables that lack the same."""
    fix = "Add them, or choose a schema without them"
    for (missing, got), names in seen.short_of.items():
        wanted = {c.level: c for channels in names.values() for c in channels}
        expected = levels_text(list(wanted.values()))
        what = f"{listed(names, 9)} lack{'s' * (len(names) == 1)} levels {missing} hPa"
        seen.problem(", ".join(map(str, names)), what, got=got, expected=expected, fix=fix)


def _level_values(seen: Findings, coord: Hashable) -> np.ndarray | None:
    """Values of a level coordinate [hPa]."""
    if coord not in seen.levels:
        seen.levels[coord] = _convert_levels(seen, coord)
    return seen.levels[coord]


def _convert_levels(seen: Findings, coord: Hashable) -> np.ndarray | None:
    variable = seen.ds.variables[coord] if has_values(seen.ds, coord) else None
    if variable is None or dtype_kind(variable) not in "iuf":
        got = "no coordinate" if variable is None else f"dtype {variable.dtype}"
        fix = f"Add them in hPa: ds.assign_coords({coord}=[…])"
        seen.problem(coord, f"Levels {coord!r} have no values", got=got, expected="pressures", fix=fix)
        return None
    values = np.atleast_1d(read_values(variable)).astype(float)
    if len(np.unique(values)) < len(values):
        fix = f"Keep the first: ds.drop_duplicates({coord!r})"
        seen.problem(coord, f"Levels {coord!r} repeat", got=listed(values), expected="each once", fix=fix)
    units = variable.attrs.get("units")
    if units is None or not str(units).strip():
        units = "Pa" if "inpa" in str(coord).lower() or (values > 2000).any() else "hPa"
        seen.note(f"no units attribute on {coord!r}: taken as {units}")
    factor, offset = conversion(str(units), "hPa") or (1.0, 0.0)
    return values * factor + offset
