"""What was understood of a dataset, where each channel is found in it, and what keeps it from being used."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ..cards import html_table
from ..errors import DatasetError, explain
from ..variables import Channel, Schema, with_levels


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
    >>> from xmosaic.dialects import recognise
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
