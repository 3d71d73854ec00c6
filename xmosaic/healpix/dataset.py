"""A Dataset regridded: which variables go, stay or change, and what names the new ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..grid import XarrayObject
from .variable import Plan, fraction_variable, regrid_variable

_DATA_NAME = "xmosaic_field"


def on_dataset(obj: XarrayObject, regrid: Callable[[xr.Dataset], xr.Dataset]) -> XarrayObject:
    """What regrids Datasets, used on either kind of object."""
    if isinstance(obj, xr.Dataset):
        return regrid(obj)
    if not isinstance(obj, xr.DataArray):
        got = type(obj).__name__
        raise ArgumentError(explain("Only xarray objects are regridded", got=got, expected="a Dataset or DataArray"))
    data = regrid(obj.to_dataset(name=_DATA_NAME))
    fraction, named = f"{_DATA_NAME}_missing_fraction", f"{obj.name or 'field'}_missing_fraction"
    if fraction in data:
        data = data.rename({fraction: named}).set_coords(named)
        data[named].attrs["long_name"] = f"missing fraction of {obj.name or 'field'}"
        data[_DATA_NAME].attrs["ancillary_variables"] = _appended(obj.attrs.get("ancillary_variables"), named)
    return data[_DATA_NAME].rename(obj.name)


def regrid_dataset(data: xr.Dataset, plan: Plan, coordinates: dict[Any, xr.Variable]) -> xr.Dataset:
    """The dataset with every variable on the new grid, described by the coordinates given."""
    gone = {name for name, variable in data.variables.items() if plan.touches(variable)}
    gone |= _grid_description(data, plan)
    _check_unused((set(data.variables) - gone) | (set(data.dims) - set(plan.dims)), *coordinates)
    new: dict[Hashable, xr.Variable] = {}
    for name in data.data_vars:
        field = data[name].variable
        if not plan.touches(field):
            new |= {} if name in gone else {name: field}
        elif not _is_bounds(data, name, plan):
            new |= _regridded(name, field, plan, taken=set(data.variables))
    out = data.drop_vars(gone | set(data.data_vars)).assign_coords(coordinates).assign(new)
    out.encoding = {key: value for key, value in data.encoding.items() if key != "source"}
    return out


def _regridded(name: Hashable, field: xr.Variable, plan: Plan, taken: set[Hashable]) -> dict[Hashable, xr.Variable]:
    """The new variable, and its missing fraction if it is wanted, by name."""
    label = "the DataArray" if name == _DATA_NAME else repr(name)
    new: dict[Hashable, xr.Variable] = {name: regrid_variable(field, label, plan)}
    if plan.options.missing_fraction:
        fraction = f"{name}_missing_fraction"
        _check_unused(taken, fraction)
        new[name].attrs["ancillary_variables"] = _appended(field.attrs.get("ancillary_variables"), fraction)
        new[fraction] = fraction_variable(field, name, plan)
    return new


def _check_unused(taken: set[Hashable], *names: str) -> None:
    for name in names:
        if name in taken:
            raise DatasetError(
                explain(
                    f"The name {name!r} is needed for the result but already in use",
                    do="Rename it on the dataset first.",
                )
            )


def _grid_description(data: xr.Dataset, plan: Plan) -> set[Hashable]:
    """Names of the grid mappings that describe the old grid."""
    horizontal = [variable for variable in data.variables.values() if plan.touches(variable)]
    notes = [str(note.get("grid_mapping", "")) for v in horizontal for note in (v.attrs, v.encoding)]
    # also the long form "crs: lat lon"
    words = {word for note in notes for word in note.replace(":", " ").split()}
    kinds = {name: str(variable.attrs.get("grid_mapping_name", "")) for name, variable in data.variables.items()}
    return {name for name, kind in kinds.items() if kind == "healpix" or (kind and name in words)}


def _is_bounds(data: xr.Dataset, name: Hashable, plan: Plan) -> bool:
    """Whether a variable holds the bounds of an old horizontal coordinate."""
    axes = [variable for variable in data.variables.values() if plan.touches(variable)]
    return any(str(name) in map(str, (axis.attrs.get("bounds"), axis.encoding.get("bounds"))) for axis in axes)


def _appended(words: str | None, word: str) -> str:
    return word if not words else f"{words} {word}"
