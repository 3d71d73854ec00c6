"""A variable's dimensions: which are time, level and space, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from ..variables import Role, listed
from .axes import KEPT, SPACE, dtype_kind, has_values, read_values
from .findings import Findings


def read_dims(
    seen: Findings, name: Hashable, role: Role, vertical: bool
) -> tuple[dict[str, Hashable], tuple[Hashable, ...]]:
    """Our dimension → theirs, and what is left over with size one."""
    da = seen.ds[name]
    times = sorted((d for d in da.dims if seen.kinds[d] in ("time", "start")), key=lambda d: seen.kinds[d] != "time")
    kinds = {dim: seen.kinds[dim] for dim in da.dims} | {dim: "time" for dim in times[:1]}
    dims: dict[str, Hashable] = {}
    for dim, kind in kinds.items():
        if kind in KEPT and kind not in dims and (kind != "level" or vertical):
            dims[kind] = dim
            seen.used[kind].setdefault(dim)
        else:
            seen.extras.setdefault(dim, []).append(name)
        if da.sizes[dim] == 0:
            what = f"Dimension {dim!r} of {name!r} is empty"
            seen.problem(dim, what, expected="at least one", fix="Select again")
    if len(set(da.dims)) < len(da.dims):
        fix = "Give each a name of its own"
        seen.problem(name, f"{name!r} has a dimension twice", got=f"dimensions {tuple(da.dims)}", fix=fix)
    _check_space(seen, name, dims)
    if role != "static" and "time" not in dims:
        seen.lacking.setdefault("time", []).append(name)
    if role == "static" and "time" in dims and da.sizes[dims["time"]] > 1:
        seen.note(f"{name!r} is constant in time: taken from the first time")
    squeezed = tuple(dim for dim in da.dims if dim not in dims.values() and da.sizes[dim] == 1)
    return dims, squeezed


def _check_space(seen: Findings, name: Hashable, dims: Mapping[str, Hashable]) -> None:
    wanted = () if "cell" in dims else ("latitude", "longitude")
    for kind in wanted:
        if kind not in dims:
            seen.lacking.setdefault(kind, []).append(name)
    if "cell" in dims and ("latitude" in dims or "longitude" in dims):
        got = f"dimensions {tuple(seen.ds[name].dims)}"
        seen.problem(name, f"{name!r} is on cells and on a grid at once", got=got, expected="one of them")


def report_extras(seen: Findings) -> None:
    """Dimensions that a state doesn't have: squeezed at size one, refused otherwise."""
    what = {
        "lead": "is a lead time, and a state has one time",
        "member": "counts ensemble members, and a state is one member",
        "start": "is a second time",
        "model level": "is a model level, not pressure",
        "height": "is a height, not pressure",
        "level": "is a level, which these variables don't have",
    }
    for dim, names in seen.extras.items():
        size = seen.ds.sizes[dim]
        if size == 1:
            seen.note(f"dimension {dim!r} has size 1: dropped")
        elif size > 1:
            kind = seen.kinds[dim]
            fix = f"Select one: ds.isel({dim}=0)"
            if kind in ("model level", "height"):
                fix = "Interpolate to pressure levels, as a dimension 'level' in hPa"
            got = f"size {size} on {listed(names)}"
            expected = "time, level and latitude, longitude (or cell)"
            text = f"Dimension {dim!r} {what.get(kind, 'is not a known one')}"
            seen.problem(dim, text, got=got, expected=expected, fix=fix)


def report_space(seen: Findings) -> None:
    """Axes of space that are missing, can't be used, or differ between variables."""
    for kind in ("latitude", "longitude"):
        if names := seen.lacking.get(kind):
            _report_no_axis(seen, kind, names)
    if seen.used["cell"] and (seen.used["latitude"] or seen.used["longitude"]):
        seen.problem("cell", "Some variables are on cells and some on a grid", fix="Give one of them")
    for kind in SPACE:
        for dim in seen.used[kind]:
            _check_axis(seen, kind, dim)
        check_same(seen, kind)


def _report_no_axis(seen: Findings, kind: str, names: Sequence[Hashable]) -> None:
    got = f"dimensions {tuple(seen.ds[names[0]].dims)} on {listed(names)}"
    fix = f"Rename the dimension: ds.rename({{…: {kind!r}}})"
    wide = [c for c, k in seen.kinds.items() if k == kind and seen.ds[c].ndim > 1]
    if wide:
        fix = f"Interpolate from the curvilinear grid of {wide[0]!r} to one-dimensional coordinates"
    elif flat := [c for c, k in seen.kinds.items() if k == kind and c in seen.ds.coords]:
        along = seen.ds[flat[0]].dims
        fix = f"Make it a dimension: ds.expand_dims({str(flat[0])!r})"
        if along:
            fix = f"Make it a dimension: ds.swap_dims({{{str(along[0])!r}: {str(flat[0])!r}}})"
    seen.problem(kind, f"There is no {kind} dimension", got=got, expected=f"{kind}, lat/lon or cell", fix=fix)


def _check_axis(seen: Findings, kind: str, dim: Hashable) -> None:
    if kind == "cell":
        return
    if not has_values(seen.ds, dim):
        fix = f"Add them: ds.assign_coords({dim}=…)"
        seen.problem(dim, f"Dimension {dim!r} has no coordinate values", expected=f"{kind} in degrees", fix=fix)
    elif dtype_kind(seen.ds.variables[dim]) not in "iuf":
        got = f"dtype {seen.ds.variables[dim].dtype}"
        seen.problem(dim, f"Coordinate {dim!r} holds no numbers", got=got, expected=f"{kind} in degrees")
    elif kind == "longitude" and seen.ds.sizes[dim] and (read_values(seen.ds.variables[dim]) < 0).any():
        seen.note(f"longitudes of {dim!r} run over −180…180: reordered")


def check_same(seen: Findings, kind: str) -> None:
    """Two names for one axis are fine where the values agree."""
    names = list(seen.used[kind])
    known = [seen.ds.indexes[n] for n in names if n in seen.ds.indexes]
    if len(names) > 1 and not (len(known) == len(names) and all(known[0].equals(i) for i in known[1:])):
        fix = "Select or interpolate to the same values"
        seen.problem(kind, f"The variables have different {kind} axes", got=listed(names), expected="one", fix=fix)
