"""What a variable's values are: numbers, of the right thing, in which units, and which of them mean missing."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from ..units import canonical, conversion, is_known
from ..variables import LOOKALIKES, ROWS, Lookalike, Variable, listed
from .axes import dtype_kind
from .findings import Findings


def without_fill_values(da: xr.DataArray) -> xr.DataArray:
    """NaN in place of what an array's own attributes say is missing; lazily."""
    for fill in fill_values(da.variable):
        da = da.where(da != fill)
    return da


def fill_values(variable: xr.Variable) -> list[Any]:
    """What stands for missing where nothing has decoded it, as numbers of the variable's own type."""
    if dtype_kind(variable) not in "iuf":
        return []
    given = [v for key in ("_FillValue", "missing_value") for v in np.ravel(variable.attrs.get(key, []))]
    known = [np.asarray(v).astype(variable.dtype) for v in given if np.asarray(v).dtype.kind in "iuf" and v == v]
    return list(dict.fromkeys(v.item() for v in known))


def check_dtype(seen: Findings, name: Hashable, known: Variable) -> bool:
    """Refuse what holds no numbers, or packed ones."""
    variable = seen.ds.variables[name]
    # a mask is a fraction of land, and no temperature
    if dtype_kind(variable) not in ("iufb" if canonical(known.units) == "1" else "iuf"):
        fix = f"Convert it: ds[{name!r}].astype('float32')"
        seen.problem(name, f"{name!r} holds no numbers", got=f"dtype {variable.dtype}", expected="floats", fix=fix)
        return False
    if {"scale_factor", "add_offset"} & set(variable.attrs):
        fix = "Decode it: ds = xr.decode_cf(ds)"
        seen.problem(name, f"{name!r} is still packed", got="scale_factor or add_offset in its attributes", fix=fix)
        return False
    if fills := fill_values(variable):
        seen.note(f"{name!r} still names its fill value: {listed(fills)} counts as missing")
    return True


def check_meaning(seen: Findings, name: Hashable, known: Variable) -> bool:
    """Refuse what says, by standard_name or units, that it is something else."""
    attrs = seen.ds[name].attrs
    standard, units = str(attrs.get("standard_name", "")), str(attrs.get("units", ""))
    look = LOOKALIKES.get(known.name)
    if look is not None and (standard in look.standard_names or (units and _gives_away(units, known, look))):
        got = ", ".join(text for text in (f"standard_name {standard!r}" * bool(standard), f"units {units!r}") if text)
        fix = look.fix.format(ours=known.name, theirs=str(name))
        expected = f"{known.standard_name} in {known.units}"
        seen.problem(name, f"{name!r} is {look.what}", got=got, expected=expected, fix=fix)
        return False
    others = {text for row in ROWS for text in row.standard_names} - set(known.standard_names)
    if standard in others and known.standard_names:
        expected = " or ".join(map(repr, known.standard_names))
        fix = f"Rename the variable, or correct ds[{name!r}].attrs['standard_name']"
        what = f"{name!r} stands for {known.name!r} and says that it is something else"
        seen.problem(name, what, got=f"standard_name {standard!r}", expected=expected, fix=fix)
        return False
    return True


def read_units(seen: Findings, name: Hashable, known: Variable, wanted: str) -> tuple[float, float] | None:
    """Factor and offset to the wanted units; None, with a problem, where there are none."""
    found = seen.ds[name].attrs.get("units")
    if known.categorical:
        return 1.0, 0.0
    if found is None or not str(found).strip():
        seen.unitless.setdefault(wanted, []).append(name)
        return 1.0, 0.0
    if (linear := conversion(str(found), wanted)) is not None:
        return linear
    look = LOOKALIKES.get(known.name)
    if look is not None and _gives_away(str(found), known, look):
        return None  # check_meaning has said so
    why = "can't be converted" if is_known(str(found)) else "can't be read"
    fix = f"Convert the values, and set ds[{name!r}].attrs['units'] = {wanted!r}"
    what = f"The units of {name!r} ({known.name}) {why}"
    seen.problem(name, what, got=repr(found), expected=repr(wanted), fix=fix)
    return None


def _gives_away(units: str, known: Variable, look: Lookalike) -> bool:
    """Whether the units are those of the lookalike."""
    if not look.units:
        return False
    same = canonical(units) == look.units
    return same or (conversion(units, known.units) is None and conversion(units, look.units) is not None)
