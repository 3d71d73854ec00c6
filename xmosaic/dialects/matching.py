"""Which of a dataset's variables is one of ours, by name and standard_name; what to say where none is, or several."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

from ..variables import (
    BY_NAME_ALONE,
    LOOKALIKES,
    ROWS,
    Channel,
    Variable,
    close_names,
    find_variable,
    levels_text,
    listed,
)
from .axes import dtype_kind, read_values
from .findings import Findings
from .levels import has_levels


def choose(seen: Findings, known: Variable, channels: Sequence[Channel]) -> tuple[Hashable | None, str]:
    """The dataset's variable for one of ours, and how it is matched."""
    fit, flat = _candidates(seen, known)
    if known.name in fit or len(fit) == 1:
        name = known.name if known.name in fit else next(iter(fit))
        return name, fit[name]
    if fit:
        what = f"{known.name!r} is ambiguous"
        fix = f"Keep one: ds.drop_vars(…), or rename the right one to {known.name!r}"
        seen.problem(known.name, what, got=listed(fit), expected="one variable", fix=fix)
    elif flat and _lookalike(seen, known) is None:
        _report_flat(seen, next(iter(flat)), known, channels)
    elif channels[0].role != "static":
        _report_missing(seen, known, channels)
    return None, ""


def one_per_level(seen: Findings, known: Variable, channels: Sequence[Channel]) -> dict[Channel, Hashable]:
    """Variables such as ``z500`` and ``geopotential_850``; none where a variable with levels stands beside."""
    if any(_candidates(seen, known)):
        return {}
    found: dict[Channel, Hashable] = {}
    for channel in channels:
        spelled = (f"{name}{mark}{channel.level}" for name in known.names for mark in ("_", ""))
        name = next((name for name in spelled if name in seen.ds.data_vars), None)
        if name is not None:
            found[channel] = name
    return found


def _candidates(seen: Findings, known: Variable) -> tuple[dict[Hashable, str], dict[Hashable, str]]:
    """Variables that can be `known`, and those that could if they had levels."""
    by_name: dict[Hashable, str] = {}
    for how, names in known.tiers:
        for name in names:
            if name in seen.ds.data_vars:
                by_name.setdefault(name, how)
    fit = {name: how for name, how in by_name.items() if _fits(seen, name, known)}
    if known.name not in BY_NAME_ALONE:
        rest = [name for name in seen.ds.data_vars if name not in by_name]
        fit |= {name: "standard_name" for name in rest if _fits_standard_name(seen, name, known)}
    if not fit and not by_name:
        fit = _other_case(seen, known)
    flat = {name: how for name, how in by_name.items() if known.vertical and name not in fit}
    return fit, flat


def _other_case(seen: Findings, known: Variable) -> dict[Hashable, str]:
    lower = {name.lower() for name in known.names}
    found = [n for n in seen.ds.data_vars if str(n).lower() in lower and _fits(seen, n, known)]
    if len(found) == 1:
        seen.note(f"{found[0]!r} taken as {known.name!r}")
    return dict.fromkeys(found, "short name")


def _fits(seen: Findings, name: Hashable, known: Variable) -> bool:
    """Whether a variable of the right name has levels where it needs them."""
    if known.vertical:
        return has_levels(seen, name)
    lower = str(name).lower()
    shared = any(v.vertical and lower in (n.lower() for n in v.names) for v in ROWS)
    return not (shared and has_levels(seen, name))


def _fits_standard_name(seen: Findings, name: Hashable, known: Variable) -> bool:
    attrs = seen.ds[name].attrs
    if str(attrs.get("standard_name")) not in known.standard_names or has_levels(seen, name) != known.vertical:
        return False
    named = find_variable(str(name))
    extreme = re.search(r"max|min|deviation|variance|range", str(attrs.get("cell_methods", "")))
    if extreme or (named is not None and named.name != known.name and str(name) not in known.names):
        return False
    return known.height is None or known.height in _heights(seen, name)


def _heights(seen: Findings, name: Hashable) -> list[float]:
    coords = [v for c, v in seen.ds[name].coords.items() if seen.kinds.get(c) == "height" and v.size == 1]
    return [float(read_values(c.variable).item()) for c in coords if dtype_kind(c.variable) in "iuf"]


def _report_flat(seen: Findings, name: Hashable, known: Variable, channels: Sequence[Channel]) -> None:
    levels = [c.level for c in channels]
    fix = "Give it its levels along a dimension 'level' in hPa"
    if len(levels) == 1:
        fix = f"If it is at {levels[0]} hPa: ds[{name!r}] = ds[{name!r}].expand_dims(level={levels})"
    what = f"{name!r} has no level dimension, so it can't be {known.name!r}"
    expected = f"a pressure dimension with {levels_text(channels)}"
    seen.problem(known.name, what, got=f"dimensions {tuple(seen.ds[name].dims)}", expected=expected, fix=fix)


def _report_missing(seen: Findings, known: Variable, channels: Sequence[Channel]) -> None:
    expected = [f"{known.name!r}"]
    expected += [f"ECMWF {known.short!r}"] if known.short else []
    expected += [f"standard_name {known.standard_name!r}"] if known.standard_name else []
    expected += [f"at height {known.height:g} m"] if known.height is not None else []
    on = f" on {levels_text(channels)}" if known.vertical else ""
    wanted = f"{', '.join(expected)}{on} in {channels[0].units}"
    what = f"{known.name!r} is missing"
    if (theirs := _lookalike(seen, known)) is not None:
        look = LOOKALIKES[known.name]
        fix = look.fix.format(ours=known.name, theirs=str(theirs))
        seen.problem(known.name, f"{what}: {str(theirs)!r} is {look.what}", expected=wanted, fix=fix)
        return
    same = [n for n, v in seen.ds.data_vars.items() if str(v.attrs.get("standard_name")) in known.standard_names]
    close = [n for name in known.names if len(name) > 1 for n in close_names(name, seen.ds.data_vars)]
    got = listed(dict.fromkeys([*map(str, same), *close])) or f"variables {listed(seen.ds.data_vars)}"
    fix = f"Add it or rename it: ds.rename({{…: {known.name!r}}})"
    seen.problem(known.name, what, got=got if seen.ds.data_vars else "no variables", expected=wanted, fix=fix)


def _lookalike(seen: Findings, known: Variable) -> Hashable | None:
    """A variable of the dataset that is often taken for `known`."""
    look = LOOKALIKES.get(known.name)
    if look is None:
        return None
    for name, da in seen.ds.data_vars.items():
        named = str(name).lower() in look.names or str(da.attrs.get("standard_name")) in look.standard_names
        if named and has_levels(seen, name) == known.vertical:
            return name
    return None
