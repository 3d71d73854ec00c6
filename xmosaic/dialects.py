"""Any dataset's dialect is understood here, and a forecast is put into other tools' dialects."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from .cards import html_table
from .errors import ArgumentError, DatasetError, explain
from .units import canonical, conversion, is_known
from .variables import (
    BY_NAME_ALONE,
    CATALOGUE,
    LOOKALIKES,
    ROWS,
    Channel,
    Lookalike,
    Role,
    Schema,
    Variable,
    cf_attributes,
    close_names,
    find_variable,
    levels_text,
    listed,
    published_schema,
    with_levels,
)

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray, xr.Dataset | xr.DataArray)


# -------- what is found in a dataset --------


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a dataset from being used, and what to do about it.

    Attributes
    ----------
    subject : str
        Variable, dimension or coordinate.
    what, got, expected, fix : str
        The parts of the text, see `xmosaic.errors.explain`.

    Examples
    --------
    >>> str(Problem("t", "'t' is missing", got="u, v", expected="temperature", fix="Add it"))
    "'t' is missing. Found u, v; expected temperature. Add it."
    """

    subject: str
    what: str
    got: str = ""
    expected: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return explain(self.what, got=self.got, expected=self.expected, do=self.fix)


def raise_problems(what: str, problems: Sequence[Problem]) -> None:
    """Raise a DatasetError that lists all problems behind `what`, if there are any."""
    if problems:
        lines = [f"{i}. {problem}" for i, problem in enumerate(problems, 1)]
        raise DatasetError("\n".join([f"{what}, {count_problems(problems)}:", *lines]))


def count_problems(problems: Sequence[Problem]) -> str:
    """``1 problem``, ``2 problems``."""
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"


@dataclass(frozen=True)
class Source:
    """Where a channel is found in a dataset.

    Attributes
    ----------
    channel : Channel
    variable : Hashable
        Name in the dataset.
    matched_by : str
        ``"name"``, ``"short name"``, ``"CDS name"``, ``"cfgrib name"``, ``"CMIP name"``,
        ``"usual name"``, ``"standard_name"`` or ``"one variable per level"``.
    level_index : int or None
        Place along the level dimension; None without one.
    units : str or None
        As found.
    factor, offset : float
        ``value · factor + offset`` is in the channel's units.
    dims : mapping
        Our dimension (time, level, latitude, longitude, cell) → the dataset's.
    squeezed : tuple of Hashable
        Further dimensions, of size one.
    """

    channel: Channel
    variable: Hashable
    matched_by: str
    level_index: int | None
    units: str | None
    factor: float
    offset: float
    dims: Mapping[str, Hashable]
    squeezed: tuple[Hashable, ...]


@dataclass(frozen=True, repr=False, eq=False)
class Recognition:
    """What was understood of a dataset.

    Attributes
    ----------
    schema : Schema
    time, level, latitude, longitude, cell : Hashable or None
        Names of the dataset's coordinates.
    sources : mapping of str to Source
        By channel name, in the schema's order; channels that weren't found are absent.
    problems : tuple of Problem
        What keeps the dataset from being used.
    notes : tuple of str
        What was assumed.
    times : DatetimeIndex
        Valid times, in the dataset's order.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample().rename({"2m_temperature": "t2m"})
    >>> found = recognise(ds, xmosaic.Schema.from_variables({"2m_temperature": None}))
    >>> found.ok, list(found.sources), found.latitude
    (True, ['2m_temperature'], 'latitude')
    """

    schema: Schema
    time: Hashable | None
    level: Hashable | None
    latitude: Hashable | None
    longitude: Hashable | None
    cell: Hashable | None
    sources: Mapping[str, Source]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    times: pd.DatetimeIndex

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def check(self) -> None:
        """Raise a DatasetError that lists all problems, if there are any."""
        raise_problems("This dataset can't be used as it is", self.problems)

    def rows(self) -> list[tuple[str, str, str]]:
        """Ours, theirs and units of every variable."""
        rows = []
        for _, variable, channels in self.schema.groups():
            found = [self.sources[c.name] for c in channels if c.name in self.sources]
            if found:
                theirs, wanted = found[0].units, channels[0].units
                units = f"no units, taken as {wanted}" if theirs is None else theirs
                if theirs is not None and (found[0].factor, found[0].offset) != (1.0, 0.0):
                    units += f" → {wanted}"
                names = ", ".join(dict.fromkeys(str(s.variable) for s in found))
                how = f"{names} ({found[0].matched_by})"
                rows.append((with_levels(variable, [s.channel for s in found]), how, units))
            elif channels[0].role != "static":
                rows.append((with_levels(variable, channels), "not found", ""))
        return rows

    def _title(self) -> str:
        return f"{len(self.sources)} of {len(self.schema.channels)} channels, {len(self.problems)} problems"

    def _axes(self) -> str:
        names = ("time", "level", "latitude", "longitude", "cell")
        return ", ".join(f"{n}: {getattr(self, n)!s}" for n in names if getattr(self, n) is not None)

    def __repr__(self) -> str:
        lines = [f"<Recognition: {self._title()}>", f"axes     {self._axes() or 'none'}"]
        lines += [f"found    {ours} ← {theirs} {units}".rstrip() for ours, theirs, units in self.rows()]
        lines += [f"problem  {problem}" for problem in self.problems]
        return "\n".join(lines + [f"note     {note}" for note in self.notes])

    def _repr_html_(self) -> str:
        rows = self.rows()
        remarks = [("problem", str(p), "") for p in self.problems] + [("note", n, "") for n in self.notes]
        return html_table(f"Recognition: {self._title()}; {self._axes()}", ("ours", "found", "units"), rows + remarks)


_AXES = {
    "time": "time valid_time date datetime",
    "start": "forecast_reference_time init_time init initial_time start_time",
    "lead": "prediction_timedelta step lead_time lead forecast_period",
    "member": "number realization member ensemble ensemble_member",
    "level": "level pressure_level isobaricinhpa isobaricinpa plev pressure lev air_pressure levels",
    "latitude": "latitude lat",
    "longitude": "longitude lon",
    "cell": "cell cells cell_ids healpix_index",
    "model level": "hybrid model_level sigma ml",
    "height": "height heightaboveground altitude depth heightabovesea",
}
_KIND_OF_NAME = {name: kind for kind, names in _AXES.items() for name in names.split()}
_KIND_OF_STANDARD_NAME = {
    "time": "time",
    "forecast_reference_time": "start",
    "forecast_period": "lead",
    "realization": "member",
    "air_pressure": "level",
    "latitude": "latitude",
    "longitude": "longitude",
    "healpix_index": "cell",
    "model_level_number": "model level",
    "height": "height",
    "altitude": "height",
    "geopotential_height": "height",
}
_SPACE = ("latitude", "longitude", "cell")
_GREGORIAN = ("standard", "gregorian", "proleptic_gregorian")
_KEPT = ("time", "level", *_SPACE)


def axis_kind(name: Hashable, variable: xr.Variable | None) -> str:
    """What a dimension or coordinate is, by its metadata."""
    attrs = {} if variable is None else variable.attrs
    standard = str(attrs.get("standard_name", "")).lower()
    units = str(attrs.get("units", ""))  # as it is spelled: to pint kPa is a pressure and kpa nothing
    if standard.startswith(("atmosphere_", "ocean_")):
        return "model level"
    kind = _KIND_OF_STANDARD_NAME.get(standard) or _KIND_OF_NAME.get(str(name).lower())
    if kind == "level":
        return _level_kind(units)
    if kind is not None or variable is None:
        return kind or "other"
    if units.lower() in ("degrees_north", "degree_north", "degrees_east", "degree_east"):
        return "latitude" if units.lower().endswith("north") else "longitude"
    if str(attrs.get("axis", "")).upper() == "Z":
        return _level_kind(units) if units else "model level"
    by_dtype = {"M": "time", "m": "lead"}
    return by_dtype.get(_dtype_kind(variable), "time" if str(attrs.get("axis", "")).upper() == "T" else "other")


def _level_kind(units: str) -> str:
    """Kind of a vertical axis by its units; none at all are taken for pressure."""
    if not units or conversion(units, "hPa"):
        return "level"
    return "height" if conversion(units, "m") else "model level"


def _dtype_kind(variable: xr.Variable) -> str:
    return str(getattr(variable.dtype, "kind", "O"))


def _values(variable: xr.Variable) -> np.ndarray:
    """Values of a coordinate, which count as metadata: read here even where dask holds them."""
    how = {} if variable.chunks is None else {"scheduler": "synchronous"}
    return np.asarray(variable.compute(**how).values)


def _has_values(ds: xr.Dataset, name: Hashable) -> bool:
    """Whether a dimension has a coordinate along itself, or a scalar one of this name."""
    return name in ds.coords and ds[name].dims in ((name,), ())


class _Reader:
    """Collects what is understood of one dataset, and everything that isn't."""

    def __init__(self, ds: xr.Dataset, schema: Schema) -> None:
        self.ds = ds
        self.schema = schema
        self.problems: dict[Problem, None] = {}
        self.notes: dict[str, None] = {}
        self.sources: dict[str, Source] = {}
        self.kinds = {name: axis_kind(name, ds.variables.get(name)) for name in (*ds.dims, *ds.coords)}
        self.used: dict[str, dict[Hashable, None]] = {kind: {} for kind in _KEPT}
        self.extras: dict[Hashable, list[Hashable]] = {}
        self.lacking: dict[str, list[Hashable]] = {}
        self.unitless: dict[str, list[Hashable]] = {}
        self.short_of: dict[tuple[str, str], dict[Hashable, Sequence[Channel]]] = {}
        self.seen_levels: dict[Hashable, np.ndarray | None] = {}

    def problem(self, subject: Hashable, what: str, got: str = "", expected: str = "", fix: str = "") -> None:
        self.problems[Problem(str(subject), what, got, expected, fix)] = None

    def note(self, text: str) -> None:
        self.notes[text] = None

    def read(self) -> Recognition:
        for _, variable, channels in self.schema.groups():
            self.read_variable(_known(variable, channels), channels)
        self.report_levels()
        self.report_extras()
        self.report_space()
        times = self.read_times()
        if self.unitless:
            taken = "; ".join(f"{', '.join(map(repr, names))} as {units}" for units, names in self.unitless.items())
            self.note(f"no units attribute: taken {taken}")
        first = {kind: next(iter(names), None) for kind, names in self.used.items()}
        return Recognition(
            self.schema,
            **first,
            sources=self.sources,
            problems=tuple(self.problems),
            notes=tuple(self.notes),
            times=times,
        )

    # which variable

    def read_variable(self, known: Variable, channels: Sequence[Channel]) -> None:
        if known.vertical and (single := self.one_per_level(known, channels)):
            return self.read_one_per_level(known, channels, single)
        name, how = self.choose(known, channels)
        if name is not None:
            self.read_source(name, how, known, channels, known.vertical)

    def read_source(
        self, name: Hashable, how: str, known: Variable, channels: Sequence[Channel], vertical: bool
    ) -> None:
        usable = self.check_dtype(name, known) and self.check_meaning(name, known)
        units = self.read_units(name, known, channels[0].units)
        dims, squeezed = self.read_dims(name, channels[0].role, vertical)
        indices = self.read_levels(name, channels, dims) if vertical else dict.fromkeys(channels)
        if usable and units is not None:
            found = self.ds[name].attrs.get("units")
            for channel, index in indices.items():
                self.sources[channel.name] = Source(
                    channel, name, how, index, None if found is None else str(found), *units, dims, squeezed
                )

    def one_per_level(self, known: Variable, channels: Sequence[Channel]) -> dict[Channel, Hashable]:
        """Variables such as ``z500`` and ``geopotential_850``; none where a variable with levels stands beside."""
        if any(self.candidates(known)):
            return {}
        found: dict[Channel, Hashable] = {}
        for channel in channels:
            spelled = (f"{name}{mark}{channel.level}" for name in known.names for mark in ("_", ""))
            name = next((name for name in spelled if name in self.ds.data_vars), None)
            if name is not None:
                found[channel] = name
        return found

    def read_one_per_level(
        self, known: Variable, channels: Sequence[Channel], found: Mapping[Channel, Hashable]
    ) -> None:
        for channel, name in found.items():
            self.read_source(name, "one variable per level", known, [channel], vertical=False)
        if missing := [channel for channel in channels if channel not in found]:
            what = f"{known.name!r} lacks levels {', '.join(str(c.level) for c in missing)} hPa"
            fix = "Add them, or choose a schema without them"
            self.problem(known.name, what, got=listed(found.values()), expected=levels_text(channels), fix=fix)

    def choose(self, known: Variable, channels: Sequence[Channel]) -> tuple[Hashable | None, str]:
        """The dataset's variable for one of ours, and how it is matched."""
        fit, flat = self.candidates(known)
        if known.name in fit or len(fit) == 1:
            name = known.name if known.name in fit else next(iter(fit))
            return name, fit[name]
        if fit:
            what = f"{known.name!r} is ambiguous"
            fix = f"Keep one: ds.drop_vars(…), or rename the right one to {known.name!r}"
            self.problem(known.name, what, got=listed(fit), expected="one variable", fix=fix)
        elif flat and self.lookalike(known) is None:
            self.report_flat(next(iter(flat)), known, channels)
        elif channels[0].role != "static":
            self.report_missing(known, channels)
        return None, ""

    def candidates(self, known: Variable) -> tuple[dict[Hashable, str], dict[Hashable, str]]:
        """Variables that can be `known`, and those that could if they had levels."""
        by_name: dict[Hashable, str] = {}
        for how, names in known.tiers:
            for name in names:
                if name in self.ds.data_vars:
                    by_name.setdefault(name, how)
        fit = {name: how for name, how in by_name.items() if self.fits(name, known)}
        if known.name not in BY_NAME_ALONE:
            rest = [name for name in self.ds.data_vars if name not in by_name]
            fit |= {name: "standard_name" for name in rest if self.fits_standard_name(name, known)}
        if not fit and not by_name:
            fit = self.other_case(known)
        flat = {name: how for name, how in by_name.items() if known.vertical and name not in fit}
        return fit, flat

    def other_case(self, known: Variable) -> dict[Hashable, str]:
        lower = {name.lower() for name in known.names}
        found = [n for n in self.ds.data_vars if str(n).lower() in lower and self.fits(n, known)]
        if len(found) == 1:
            self.note(f"{found[0]!r} taken as {known.name!r}")
        return dict.fromkeys(found, "short name")

    def fits(self, name: Hashable, known: Variable) -> bool:
        """Whether a variable of the right name has levels where it needs them."""
        if known.vertical:
            return self.has_levels(name)
        lower = str(name).lower()
        shared = any(v.vertical and lower in (n.lower() for n in v.names) for v in ROWS)
        return not (shared and self.has_levels(name))

    def fits_standard_name(self, name: Hashable, known: Variable) -> bool:
        attrs = self.ds[name].attrs
        if str(attrs.get("standard_name")) not in known.standard_names or self.has_levels(name) != known.vertical:
            return False
        named = find_variable(str(name))
        extreme = re.search(r"max|min|deviation|variance|range", str(attrs.get("cell_methods", "")))
        if extreme or (named is not None and named.name != known.name and str(name) not in known.names):
            return False
        return known.height is None or known.height in self.heights(name)

    def has_levels(self, name: Hashable) -> bool:
        da = self.ds[name]
        on_levels = any(
            self.kinds[dim] in ("level", "model level") or (self.kinds[dim] == "height" and da.sizes[dim] > 1)
            for dim in da.dims
        )
        return on_levels or self.scalar_level(name) is not None

    def scalar_level(self, name: Hashable) -> Hashable | None:
        coords = self.ds[name].coords
        return next((c for c in coords if self.kinds.get(c) == "level" and coords[c].ndim == 0), None)

    def heights(self, name: Hashable) -> list[float]:
        coords = [v for c, v in self.ds[name].coords.items() if self.kinds.get(c) == "height" and v.size == 1]
        return [float(_values(c.variable).item()) for c in coords if _dtype_kind(c.variable) in "iuf"]

    def report_flat(self, name: Hashable, known: Variable, channels: Sequence[Channel]) -> None:
        levels = [c.level for c in channels]
        fix = "Give it its levels along a dimension 'level' in hPa"
        if len(levels) == 1:
            fix = f"If it is at {levels[0]} hPa: ds[{name!r}] = ds[{name!r}].expand_dims(level={levels})"
        what = f"{name!r} has no level dimension, so it can't be {known.name!r}"
        expected = f"a pressure dimension with {levels_text(channels)}"
        self.problem(known.name, what, got=f"dimensions {tuple(self.ds[name].dims)}", expected=expected, fix=fix)

    def report_missing(self, known: Variable, channels: Sequence[Channel]) -> None:
        expected = [f"{known.name!r}"]
        expected += [f"ECMWF {known.short!r}"] if known.short else []
        expected += [f"standard_name {known.standard_name!r}"] if known.standard_name else []
        expected += [f"at height {known.height:g} m"] if known.height is not None else []
        on = f" on {levels_text(channels)}" if known.vertical else ""
        wanted = f"{', '.join(expected)}{on} in {channels[0].units}"
        what = f"{known.name!r} is missing"
        if (theirs := self.lookalike(known)) is not None:
            look = LOOKALIKES[known.name]
            fix = look.fix.format(ours=known.name, theirs=str(theirs))
            self.problem(known.name, f"{what}: {str(theirs)!r} is {look.what}", expected=wanted, fix=fix)
            return
        same = [n for n, v in self.ds.data_vars.items() if str(v.attrs.get("standard_name")) in known.standard_names]
        close = [n for name in known.names if len(name) > 1 for n in close_names(name, self.ds.data_vars)]
        got = listed(dict.fromkeys([*map(str, same), *close])) or f"variables {listed(self.ds.data_vars)}"
        fix = f"Add it or rename it: ds.rename({{…: {known.name!r}}})"
        self.problem(known.name, what, got=got if self.ds.data_vars else "no variables", expected=wanted, fix=fix)

    def lookalike(self, known: Variable) -> Hashable | None:
        """A variable of the dataset that is often taken for `known`."""
        look = LOOKALIKES.get(known.name)
        if look is None:
            return None
        for name, da in self.ds.data_vars.items():
            named = str(name).lower() in look.names or str(da.attrs.get("standard_name")) in look.standard_names
            if named and self.has_levels(name) == known.vertical:
                return name
        return None

    # what its values are

    def check_dtype(self, name: Hashable, known: Variable) -> bool:
        variable = self.ds.variables[name]
        # a mask is a fraction of land, and no temperature
        if _dtype_kind(variable) not in ("iufb" if canonical(known.units) == "1" else "iuf"):
            fix = f"Convert it: ds[{name!r}].astype('float32')"
            self.problem(name, f"{name!r} holds no numbers", got=f"dtype {variable.dtype}", expected="floats", fix=fix)
            return False
        if {"scale_factor", "add_offset"} & set(variable.attrs):
            fix = "Decode it: ds = xr.decode_cf(ds)"
            self.problem(name, f"{name!r} is still packed", got="scale_factor or add_offset in its attributes", fix=fix)
            return False
        if fills := _fill_values(variable):
            self.note(f"{name!r} still names its fill value: {listed(fills)} counts as missing")
        return True

    def check_meaning(self, name: Hashable, known: Variable) -> bool:
        """Refuse what says, by standard_name or units, that it is something else."""
        attrs = self.ds[name].attrs
        standard, units = str(attrs.get("standard_name", "")), str(attrs.get("units", ""))
        look = LOOKALIKES.get(known.name)
        if look is not None and (standard in look.standard_names or (units and _gives_away(units, known, look))):
            got = ", ".join(
                text for text in (f"standard_name {standard!r}" * bool(standard), f"units {units!r}") if text
            )
            fix = look.fix.format(ours=known.name, theirs=str(name))
            expected = f"{known.standard_name} in {known.units}"
            self.problem(name, f"{name!r} is {look.what}", got=got, expected=expected, fix=fix)
            return False
        others = {text for row in ROWS for text in row.standard_names} - set(known.standard_names)
        if standard in others and known.standard_names:
            expected = " or ".join(map(repr, known.standard_names))
            fix = f"Rename the variable, or correct ds[{name!r}].attrs['standard_name']"
            what = f"{name!r} stands for {known.name!r} and says that it is something else"
            self.problem(name, what, got=f"standard_name {standard!r}", expected=expected, fix=fix)
            return False
        return True

    def read_units(self, name: Hashable, known: Variable, wanted: str) -> tuple[float, float] | None:
        found = self.ds[name].attrs.get("units")
        if known.categorical:
            return 1.0, 0.0
        if found is None or not str(found).strip():
            self.unitless.setdefault(wanted, []).append(name)
            return 1.0, 0.0
        if (linear := conversion(str(found), wanted)) is not None:
            return linear
        look = LOOKALIKES.get(known.name)
        if look is not None and _gives_away(str(found), known, look):
            return None  # check_meaning has said so
        why = "can't be converted" if is_known(str(found)) else "can't be read"
        fix = f"Convert the values, and set ds[{name!r}].attrs['units'] = {wanted!r}"
        what = f"The units of {name!r} ({known.name}) {why}"
        self.problem(name, what, got=repr(found), expected=repr(wanted), fix=fix)
        return None

    # its dimensions

    def read_dims(self, name: Hashable, role: Role, vertical: bool) -> tuple[dict[str, Hashable], tuple[Hashable, ...]]:
        """Our dimension → theirs, and what is left over with size one."""
        da = self.ds[name]
        times = sorted(
            (d for d in da.dims if self.kinds[d] in ("time", "start")), key=lambda d: self.kinds[d] != "time"
        )
        kinds = {dim: self.kinds[dim] for dim in da.dims} | {dim: "time" for dim in times[:1]}
        dims: dict[str, Hashable] = {}
        for dim, kind in kinds.items():
            if kind in _KEPT and kind not in dims and (kind != "level" or vertical):
                dims[kind] = dim
                self.used[kind].setdefault(dim)
            else:
                self.extras.setdefault(dim, []).append(name)
            if da.sizes[dim] == 0:
                self.problem(
                    dim,
                    f"Dimension {dim!r} of {name!r} is empty",
                    expected="at least one",
                    fix="Select again",
                )
        if len(set(da.dims)) < len(da.dims):
            fix = "Give each a name of its own"
            self.problem(name, f"{name!r} has a dimension twice", got=f"dimensions {tuple(da.dims)}", fix=fix)
        self.check_space(name, dims)
        if role != "static" and "time" not in dims:
            self.lacking.setdefault("time", []).append(name)
        if role == "static" and "time" in dims and da.sizes[dims["time"]] > 1:
            self.note(f"{name!r} is constant in time: taken from the first time")
        squeezed = tuple(dim for dim in da.dims if dim not in dims.values() and da.sizes[dim] == 1)
        return dims, squeezed

    def check_space(self, name: Hashable, dims: Mapping[str, Hashable]) -> None:
        wanted = () if "cell" in dims else ("latitude", "longitude")
        for kind in wanted:
            if kind not in dims:
                self.lacking.setdefault(kind, []).append(name)
        if "cell" in dims and ("latitude" in dims or "longitude" in dims):
            got = f"dimensions {tuple(self.ds[name].dims)}"
            self.problem(name, f"{name!r} is on cells and on a grid at once", got=got, expected="one of them")

    def report_extras(self) -> None:
        """Dimensions that a state doesn't have: squeezed at size one, refused otherwise."""
        what = {
            "lead": "is a lead time, and a state has one time",
            "member": "counts ensemble members, and a state is one member",
            "start": "is a second time",
            "model level": "is a model level, not pressure",
            "height": "is a height, not pressure",
            "level": "is a level, which these variables don't have",
        }
        for dim, names in self.extras.items():
            size = self.ds.sizes[dim]
            if size == 1:
                self.note(f"dimension {dim!r} has size 1: dropped")
            elif size > 1:
                kind = self.kinds[dim]
                fix = f"Select one: ds.isel({dim}=0)"
                if kind in ("model level", "height"):
                    fix = "Interpolate to pressure levels, as a dimension 'level' in hPa"
                got = f"size {size} on {listed(names)}"
                expected = "time, level and latitude, longitude (or cell)"
                text = f"Dimension {dim!r} {what.get(kind, 'is not a known one')}"
                self.problem(dim, text, got=got, expected=expected, fix=fix)

    def report_space(self) -> None:
        for kind in ("latitude", "longitude"):
            if names := self.lacking.get(kind):
                self.report_no_axis(kind, names)
        if self.used["cell"] and (self.used["latitude"] or self.used["longitude"]):
            self.problem("cell", "Some variables are on cells and some on a grid", fix="Give one of them")
        for kind in _SPACE:
            for dim in self.used[kind]:
                self.check_axis(kind, dim)
            self.check_same(kind)

    def report_no_axis(self, kind: str, names: Sequence[Hashable]) -> None:
        got = f"dimensions {tuple(self.ds[names[0]].dims)} on {listed(names)}"
        fix = f"Rename the dimension: ds.rename({{…: {kind!r}}})"
        wide = [c for c, k in self.kinds.items() if k == kind and self.ds[c].ndim > 1]
        if wide:
            fix = f"Interpolate from the curvilinear grid of {wide[0]!r} to one-dimensional coordinates"
        elif flat := [c for c, k in self.kinds.items() if k == kind and c in self.ds.coords]:
            along = self.ds[flat[0]].dims
            fix = f"Make it a dimension: ds.expand_dims({str(flat[0])!r})"
            if along:
                fix = f"Make it a dimension: ds.swap_dims({{{str(along[0])!r}: {str(flat[0])!r}}})"
        self.problem(kind, f"There is no {kind} dimension", got=got, expected=f"{kind}, lat/lon or cell", fix=fix)

    def check_axis(self, kind: str, dim: Hashable) -> None:
        if kind == "cell":
            return
        if not _has_values(self.ds, dim):
            fix = f"Add them: ds.assign_coords({dim}=…)"
            self.problem(dim, f"Dimension {dim!r} has no coordinate values", expected=f"{kind} in degrees", fix=fix)
        elif _dtype_kind(self.ds.variables[dim]) not in "iuf":
            got = f"dtype {self.ds.variables[dim].dtype}"
            self.problem(dim, f"Coordinate {dim!r} holds no numbers", got=got, expected=f"{kind} in degrees")
        elif kind == "longitude" and self.ds.sizes[dim] and (_values(self.ds.variables[dim]) < 0).any():
            self.note(f"longitudes of {dim!r} run over −180…180: reordered")

    def check_same(self, kind: str) -> None:
        """Two names for one axis are fine where the values agree."""
        names = list(self.used[kind])
        known = [self.ds.indexes[n] for n in names if n in self.ds.indexes]
        if len(names) > 1 and not (len(known) == len(names) and all(known[0].equals(i) for i in known[1:])):
            fix = "Select or interpolate to the same values"
            self.problem(kind, f"The variables have different {kind} axes", got=listed(names), expected="one", fix=fix)

    # levels

    def read_levels(
        self, name: Hashable, channels: Sequence[Channel], dims: Mapping[str, Hashable]
    ) -> dict[Channel, int | None]:
        """Channels that the variable has, with their place along its level dimension."""
        if channels[0].level is None:
            return dict.fromkeys(channels)
        coord = dims.get("level", self.scalar_level(name))
        if coord is None or (found := self.level_values(coord)) is None:
            return {}
        self.used["level"].setdefault(coord)
        places = {c: np.flatnonzero(np.abs(found - c.level) <= 1e-3 * c.level) for c in channels if c.level}
        if missing := [str(c.level) for c, place in places.items() if not len(place)]:
            got = ", ".join(f"{v:g}" for v in found[:40]) + " hPa"
            self.short_of.setdefault((", ".join(missing), got), {})[name] = channels
        along = "level" in dims
        return {c: int(place[0]) if along else None for c, place in places.items() if len(place)}

    def report_levels(self) -> None:
        """Levels that are missing, once for all variables that lack the same."""
        fix = "Add them, or choose a schema without them"
        for (missing, got), names in self.short_of.items():
            wanted = {c.level: c for channels in names.values() for c in channels}
            expected = levels_text(list(wanted.values()))
            what = f"{listed(names, 9)} lack{'s' * (len(names) == 1)} levels {missing} hPa"
            self.problem(", ".join(map(str, names)), what, got=got, expected=expected, fix=fix)

    def level_values(self, coord: Hashable) -> np.ndarray | None:
        """Values of a level coordinate [hPa]."""
        if coord not in self.seen_levels:
            self.seen_levels[coord] = self.convert_levels(coord)
        return self.seen_levels[coord]

    def convert_levels(self, coord: Hashable) -> np.ndarray | None:
        variable = self.ds.variables[coord] if _has_values(self.ds, coord) else None
        if variable is None or _dtype_kind(variable) not in "iuf":
            got = "no coordinate" if variable is None else f"dtype {variable.dtype}"
            fix = f"Add them in hPa: ds.assign_coords({coord}=[…])"
            self.problem(coord, f"Levels {coord!r} have no values", got=got, expected="pressures", fix=fix)
            return None
        values = np.atleast_1d(_values(variable)).astype(float)
        if len(np.unique(values)) < len(values):
            fix = f"Keep the first: ds.drop_duplicates({coord!r})"
            self.problem(coord, f"Levels {coord!r} repeat", got=listed(values), expected="each once", fix=fix)
        units = variable.attrs.get("units")
        if units is None or not str(units).strip():
            units = "Pa" if "inpa" in str(coord).lower() or (values > 2000).any() else "hPa"
            self.note(f"no units attribute on {coord!r}: taken as {units}")
        factor, offset = conversion(str(units), "hPa") or (1.0, 0.0)
        return values * factor + offset

    # times

    def read_times(self) -> pd.DatetimeIndex:
        """Valid times; none, with a problem, where they can't be told."""
        dims = list(self.used["time"])
        if not dims:
            dims = [dim for dim in self.ds.dims if self.kinds[dim] in ("time", "start")][:1]
        self.check_same("time")
        dim = dims[0] if dims else None
        size = 1 if dim is None else self.ds.sizes[dim]
        if (without := self.lacking.get("time")) and size > 1:
            fix = f"Give them the dimension {dim!r}, or drop it: ds.isel({dim}=0)"
            self.problem(dim or "time", f"{listed(without)} have no time dimension", expected=f"{dim!r}", fix=fix)
        name = self.time_coordinate(dim, size)
        if name is None:
            fix = "Add it: ds.expand_dims(time=[np.datetime64('2020-01-01T00')])"
            self.problem("time", "There is no time", expected="a coordinate 'time' of dates", fix=fix)
            return pd.DatetimeIndex([])
        self.used["time"] = dict.fromkeys([name, *self.used["time"]])
        dates = self.read_dates(name)
        return pd.DatetimeIndex([]) if dates is None else self.check_dates(name, self.add_lead(name, dates))

    def time_coordinate(self, dim: Hashable | None, size: int) -> Hashable | None:
        """The coordinate that tells valid times best: valid_time, the dimension's own, a start."""
        options = [
            name
            for name, coord in self.ds.coords.items()
            if self.kinds[name] in ("time", "start") and coord.size == size
            if all(d == dim or self.ds.sizes[d] == 1 for d in coord.dims)
        ]
        ranks = {"time": 2, "start": 3}
        return min(
            options,
            key=lambda n: (
                0 if n == "valid_time" else 1 if n == dim and self.kinds[n] == "time" else ranks[self.kinds[n]]
            ),
            default=None,
        )

    def read_dates(self, name: Hashable) -> pd.DatetimeIndex | None:
        variable = self.ds.variables[name]
        index = self.ds.indexes.get(name)
        zone = getattr(index, "tz", None)
        # pandas warns where the values of an index with a zone are taken
        values = np.empty(0) if zone else np.ravel(_values(variable))
        zone = zone or next((getattr(v, "tzinfo", None) for v in values[:1]), None)
        kind, units = values.dtype.kind, str(variable.attrs.get("units", ""))
        expected = "datetime64"
        if zone is not None:
            fix = f"Convert to UTC without a zone: ds.assign_coords({name}=ds.indexes[{name!r}].tz_convert(None))"
            self.problem(name, f"Coordinate {name!r} has a time zone", got=str(zone), expected="UTC, no zone", fix=fix)
        elif kind == "M":
            return pd.DatetimeIndex(values)
        elif kind == "O" and len(values) and hasattr(values[0], "calendar"):
            return self.read_cftime(name, values)
        else:
            numbers = kind in "iuf"
            fix = f"Convert it: ds.assign_coords({name}=pd.to_datetime(…))"
            if numbers and " since " in units:
                fix = "Decode it: ds = xr.decode_cf(ds)"
            got = f"dtype {values.dtype}" + (f" with units {units!r}" if units else "")
            self.problem(name, f"Coordinate {name!r} holds no dates", got=got, expected=expected, fix=fix)
        return None

    def read_cftime(self, name: Hashable, values: np.ndarray) -> pd.DatetimeIndex | None:
        calendar = values[0].calendar
        try:
            if calendar in _GREGORIAN:
                return xr.CFTimeIndex(values).to_datetimeindex(time_unit="us")
        except ValueError:  # a date that this calendar doesn't share with datetime64
            pass
        fix = "Convert it: ds.convert_calendar('standard')"
        got, expected = f"calendar {calendar!r}", "the standard calendar"
        self.problem(name, f"The dates of {name!r} are of another calendar", got=got, expected=expected, fix=fix)
        return None

    def add_lead(self, name: Hashable, dates: pd.DatetimeIndex) -> pd.DatetimeIndex:
        """Valid times of a forecast: its start plus the one lead time that is left."""
        standard = str(self.ds[name].attrs.get("standard_name"))
        leads = [n for n, c in self.ds.coords.items() if self.kinds[n] == "lead" and c.size == 1]
        if name == "valid_time" or standard == "time" or not leads:
            if self.kinds[name] == "start":
                self.note(f"{name!r} is a start and there is no lead time: taken as the valid time")
            return dates
        try:
            lead = _lead_values(self.ds[leads[0]]).reshape(-1)[0]
        except DatasetError as error:
            self.problem(leads[0], str(error))
            return dates
        if lead:
            self.note(f"{name!r} is the start of a forecast: valid {pd.Timedelta(lead)} later")
        return dates + pd.Timedelta(lead)

    def check_dates(self, name: Hashable, dates: pd.DatetimeIndex) -> pd.DatetimeIndex:
        try:
            dates.as_unit("ns")
        except pd.errors.OutOfBoundsDatetime:
            span, fix = f"{dates.min()} … {dates.max()}", "Give the times other years, which the clock doesn't see"
            what = f"Coordinate {name!r} has dates that can't be counted in nanoseconds"
            self.problem(name, what, got=span, expected="1677-09-22 … 2262-04-11", fix=fix)
            return pd.DatetimeIndex([])
        if dates.hasnans:
            fix = f"Drop them: ds.sel({name}=ds[{name!r}].notnull())"
            self.problem(name, f"Coordinate {name!r} has dates that are missing (NaT)", fix=fix)
        elif dates.has_duplicates:
            fix = f"Keep the first: ds.drop_duplicates({name!r})"
            repeated = listed(dates[dates.duplicated()].unique(), 3)
            self.problem(name, f"Coordinate {name!r} has repeated times", got=repeated, expected="each once", fix=fix)
        elif not dates.is_monotonic_increasing:
            self.note(f"the times of {name!r} are not in order: sorted")
        return dates if dates.unit in ("ns", "us") else dates.as_unit("us")


def _known(variable: str, channels: Sequence[Channel]) -> Variable:
    """The catalogue's row of a schema's variable, or one that the channel itself gives."""
    if (row := CATALOGUE.get(variable)) is not None:
        return row
    c = channels[0]
    vertical = c.level is not None
    return Variable(variable, "", (), (), (), c.standard_name, c.units, c.long_name, vertical, c.height)


def _gives_away(units: str, known: Variable, look: Lookalike) -> bool:
    """Whether the units are those of the lookalike."""
    if not look.units:
        return False
    same = canonical(units) == look.units
    return same or (conversion(units, known.units) is None and conversion(units, look.units) is not None)


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
    return _Reader(ds, schema).read()


# -------- datasets in our names --------

COORDINATE_ATTRS = {
    "time": {"standard_name": "time", "long_name": "time"},
    "level": {"standard_name": "air_pressure", "units": "hPa", "positive": "down", "axis": "Z"},
    "latitude": {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "longitude": {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
    "cell": {"standard_name": "healpix_index", "units": "1"},
}


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
            found |= {round(float(v) * factor + offset) for v in np.ravel(_values(coord.variable))}
    for variable in map(str, ds.data_vars):
        known = find_variable(variable)
        match = re.fullmatch(r"[a-zA-Z]\w*?_?(\d{1,4})", variable)
        if match and (known is None or known.vertical):  # u10 is the wind at 10 m
            found.add(int(match[1]))
    return found


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
    return da.transpose(*[dim for dim in _KEPT if dim in da.dims])


def without_fill_values(da: xr.DataArray) -> xr.DataArray:
    """NaN in place of what an array's own attributes say is missing; lazily."""
    for fill in _fill_values(da.variable):
        da = da.where(da != fill)
    return da


def _fill_values(variable: xr.Variable) -> list[Any]:
    """What stands for missing where nothing has decoded it, as numbers of the variable's own type."""
    if _dtype_kind(variable) not in "iuf":
        return []
    given = [v for key in ("_FillValue", "missing_value") for v in np.ravel(variable.attrs.get(key, []))]
    known = [np.asarray(v).astype(variable.dtype) for v in given if np.asarray(v).dtype.kind in "iuf" and v == v]
    return list(dict.fromkeys(v.item() for v in known))


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


def _coordinates(ds: xr.Dataset, found: Recognition, source: Source, da: xr.DataArray) -> dict[Hashable, Any]:
    coords: dict[Hashable, Any] = {}
    if "time" in da.dims:
        coords["time"] = ("time", found.times.sort_values(), COORDINATE_ATTRS["time"])
    for ours in _SPACE:
        theirs = source.dims.get(ours)
        if theirs is not None and _has_values(ds, theirs):
            attrs = {**ds[theirs].attrs, **COORDINATE_ATTRS[ours]}
            coords[ours] = (ours, ds.variables[theirs].data, attrs)
    if "cell" in source.dims:
        along = {n: c for n, c in ds.coords.items() if c.dims == (source.dims["cell"],) and n != c.dims[0]}
        coords |= {n: ("cell", c.variable.data, c.attrs) for n, c in along.items()}
    if "grid_mapping" in da.attrs:
        coords[da.attrs["grid_mapping"]] = ds.variables[da.attrs["grid_mapping"]]
    return coords


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


# -------- forecasts in other dialects --------

_DIALECTS = {
    "weatherbenchx": {"time": "init_time", "prediction_timedelta": "lead_time"},
    "climpred": {"time": "init", "prediction_timedelta": "lead", "number": "member"},
    "xskillscore": {"number": "member"},
    "ecmwf": {"prediction_timedelta": "step"},
}
_LEADS = ("prediction_timedelta", "step", "lead_time", "lead")
_LEAD_UNITS = {
    "D": ("days", "day", "d"),
    "h": ("hours", "hour", "hrs", "hr", "h"),
    "min": ("minutes", "minute", "min"),
    "s": ("seconds", "second", "sec", "s"),
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


def _lead_values(coord: xr.DataArray) -> np.ndarray:
    """Lead times as timedelta64, from integers with units too."""
    values = _values(coord.variable)
    if values.dtype.kind == "m":
        return values
    units = str(coord.attrs.get("units", "")).strip().lower()
    code = next((code for code, names in _LEAD_UNITS.items() if units in names), None)
    if code is None or values.dtype.kind not in "iuf":
        got = f"dtype {values.dtype}, " + (f"units {units!r}" if units else "no units")
        raise DatasetError(
            explain(
                f"Lead times {str(coord.name)!r} can't be told",
                got=got,
                expected="timedelta64, or numbers with units such as 'hours'",
                do=f"Set ds[{str(coord.name)!r}].attrs['units'] = 'hours', if they are",
            )
        )
    return np.asarray(pd.to_timedelta(np.ravel(values), unit=code).as_unit("ns")).reshape(values.shape)  # type: ignore[call-overload]


def decode_lead(obj: Labelled) -> Labelled:
    """Lead times given as numbers with units, as timedelta64.

    Parameters
    ----------
    obj : Dataset or DataArray
        With a coordinate ``prediction_timedelta``, ``step``, ``lead_time`` or ``lead``, or of standard_name
        forecast_period; without one it comes back as it is.

    Returns
    -------
    Dataset or DataArray
        The lead times are timedelta64 and have no attribute `units`.

    Raises
    ------
    DatasetError
        Where the numbers have no units.
    """
    for name, coord in obj.coords.items():
        is_lead = name in _LEADS or str(coord.attrs.get("standard_name")) == "forecast_period"
        if is_lead and coord.dtype.kind != "m":
            attrs = {key: value for key, value in coord.attrs.items() if key != "units"}
            obj = obj.assign_coords({name: (coord.dims, _lead_values(coord), attrs)})
    return obj
