"""What a channel is: names, units, levels; a Schema orders channels; any dataset's dialect is understood."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import xarray as xr

from .cards import html_table
from .errors import ArgumentError, explain

Role = Literal["state", "static", "forcing"]
ROLES: tuple[Role, ...] = get_args(Role)
PUBLISHED_LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
"""Pressure levels of the published variants [hPa]."""

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


# -------- the catalogue --------


@dataclass(frozen=True)
class Variable:
    """A known variable and what the dialects call it.

    Attributes
    ----------
    name : str
        WeatherBench2's name, which is ours.
    short : str
        ECMWF's short name; empty where there is none that fits.
    cds, cfgrib, cmip : tuple of str
        Names in the Climate Data Store's netCDF files, in cfgrib's Datasets and in CMIP.
    standard_name, units, long_name : str
        CF metadata.
    vertical : bool
        Whether it lives on pressure levels.
    height : float or None
        Height above the surface [m].
    synonyms : tuple of str
        Further CF standard names that mean the same.
    categorical : bool
        Whether the values are codes, whose units say nothing.
    usual : tuple of str
        Names that other weather models' tools use.
    """

    name: str
    short: str
    cds: tuple[str, ...]
    cfgrib: tuple[str, ...]
    cmip: tuple[str, ...]
    standard_name: str
    units: str
    long_name: str
    vertical: bool = False
    height: float | None = None
    synonyms: tuple[str, ...] = ()
    categorical: bool = False
    usual: tuple[str, ...] = ()

    @property
    def tiers(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(how it is matched, names), in the order in which they are tried."""
        return (
            ("name", (self.name,)),
            ("short name", (self.short,) if self.short else ()),
            ("CDS name", self.cds),
            ("cfgrib name", self.cfgrib),
            ("CMIP name", self.cmip),
            ("usual name", self.usual),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All names, without repeats."""
        return tuple(dict.fromkeys(name for _, names in self.tiers for name in names))

    @property
    def standard_names(self) -> tuple[str, ...]:
        """CF standard names that mean this variable."""
        return (self.standard_name, *self.synonyms) if self.standard_name else self.synonyms


# name | ECMWF short name | CDS | CMIP | CF standard_name | units | what else
_TABLE = """
2m_temperature | 2t | t2m | tas | air_temperature | K | 2
2m_dewpoint_temperature | 2d | d2m | | dew_point_temperature | K | 2
10m_u_component_of_wind | 10u | u10 | uas | eastward_wind | m s-1 | 10
10m_v_component_of_wind | 10v | v10 | vas | northward_wind | m s-1 | 10
100m_u_component_of_wind | 100u | u100 | | eastward_wind | m s-1 | 100
100m_v_component_of_wind | 100v | v100 | | northward_wind | m s-1 | 100
10m_wind_speed | 10si | si10 | sfcWind | wind_speed | m s-1 | 10
mean_sea_level_pressure | msl | msl | psl | air_pressure_at_mean_sea_level | Pa |
surface_pressure | sp | sp | ps | surface_air_pressure | Pa |
skin_temperature | skt | skt | | | K |
sea_surface_temperature | sst | sst | tos | sea_surface_temperature | K |
sea_ice_cover | ci | siconc | | sea_ice_area_fraction | 1 |
total_cloud_cover | tcc | tcc | clt | cloud_area_fraction | 1 |
total_column_water_vapour | tcwv | tcwv | prw | atmosphere_mass_content_of_water_vapor | kg m-2 |
total_precipitation_6hr | | | | lwe_thickness_of_precipitation_amount | m |
total_precipitation_24hr | | | | lwe_thickness_of_precipitation_amount | m |
toa_incident_solar_radiation | tisr | tisr | | | J m-2 |
geopotential | z | z | | geopotential | m2 s-2 | levels
specific_humidity | q | q | hus | specific_humidity | kg kg-1 | levels
temperature | t | t | ta | air_temperature | K | levels
u_component_of_wind | u | u | ua | eastward_wind | m s-1 | levels
v_component_of_wind | v | v | va | northward_wind | m s-1 | levels
vertical_velocity | w | w | wap | lagrangian_tendency_of_air_pressure | Pa s-1 | levels
relative_humidity | r | r | hur | relative_humidity | 1 | levels
specific_cloud_ice_water_content | ciwc | ciwc | cli | mass_fraction_of_cloud_ice_in_air | kg kg-1 | levels
specific_cloud_liquid_water_content | clwc | clwc | clw | | kg kg-1 | levels
geopotential_at_surface | z | z | | surface_geopotential | m2 s-2 |
land_sea_mask | lsm | lsm | sftlf | land_area_fraction | 1 |
soil_type | slt | slt | | soil_type | 1 | codes
"""
_CFGRIB = {"mean_sea_level_pressure": ("prmsl", "mslet")}
_USUAL = {"10m_u_component_of_wind": ("u10m",), "10m_v_component_of_wind": ("v10m",)}
_SYNONYMS = {
    "mean_sea_level_pressure": ("air_pressure_at_sea_level",),
    "vertical_velocity": ("vertical_air_velocity_expressed_as_tendency_of_pressure",),
    "geopotential_at_surface": ("geopotential",),
    "land_sea_mask": ("land_binary_mask",),
}


def _row(line: str) -> Variable:
    name, short, cds, cmip, standard_name, units, more = (cell.strip() for cell in line.split("|"))
    return Variable(
        name,
        short,
        cds=(cds,) if cds else (),
        cfgrib=((cds,) if cds else ()) + _CFGRIB.get(name, ()),
        cmip=(cmip,) if cmip else (),
        standard_name=standard_name,
        units=units,
        long_name=name.replace("_", " ").capitalize(),
        vertical=more == "levels",
        height=float(more) if more.isdigit() else None,
        synonyms=_SYNONYMS.get(name, ()),
        categorical=more == "codes",
        usual=_USUAL.get(name, ()),
    )


# "tp" says nothing about the period that is summed over: precipitation goes by its full name alone
BY_NAME_ALONE = ("total_precipitation_6hr", "total_precipitation_24hr")
ROWS = tuple(_row(line) for line in _TABLE.strip().splitlines())
CATALOGUE: Mapping[str, Variable] = {row.name: row for row in ROWS}
"""The known variables by WeatherBench2 name."""


@dataclass(frozen=True)
class Lookalike:
    """A quantity that is taken for one of ours, and is not."""

    what: str
    units: str  # that give it away
    standard_names: tuple[str, ...]
    names: tuple[str, ...]
    fix: str


_TIMES_G = "Multiply by 9.80665: ds[{ours!r}] = 9.80665 * ds[{theirs!r}], and set units to m2 s-2"
LOOKALIKES = {
    "geopotential": Lookalike(
        "geopotential height, not geopotential",
        "m",
        ("geopotential_height", "height", "altitude"),
        ("gh", "zg", "hgt", "height", "geopotential_height"),
        _TIMES_G,
    ),
    "geopotential_at_surface": Lookalike(
        "the height of the surface, not its geopotential",
        "m",
        ("surface_altitude", "geopotential_height", "altitude", "height"),
        ("orog", "orography", "topography", "elevation"),
        _TIMES_G,
    ),
    "vertical_velocity": Lookalike(
        "upward velocity, not the lagrangian tendency of pressure",
        "m s-1",
        ("upward_air_velocity",),
        ("wz", "wa", "upward_air_velocity"),
        "Use omega, the lagrangian tendency of pressure in Pa s-1 (hydrostatic: -rho * g * w)",
    ),
    "specific_humidity": Lookalike(
        "relative humidity, not specific humidity",
        "%",
        ("relative_humidity",),
        ("r", "rh", "hur", "relative_humidity"),
        "Compute specific humidity from it with temperature and pressure",
    ),
    "temperature": Lookalike(
        "potential temperature, not temperature",
        "",
        ("air_potential_temperature",),
        ("pt", "theta", "potential_temperature"),
        "Multiply by (p / 1000 hPa) ** 0.2857",
    ),
    "mean_sea_level_pressure": Lookalike(
        "pressure at the surface, not at mean sea level",
        "",
        ("surface_air_pressure",),
        ("sp", "ps", "surface_pressure"),
        "Use pressure reduced to mean sea level",
    ),
}


def find_variable(name: str) -> Variable | None:
    """The known variable of a name in any dialect, of a channel name, or None.

    Parameters
    ----------
    name : str
        ``"geopotential"``, ``"z"``, ``"t2m"``, ``"geopotential_500"``. A name of two
        variables (ECMWF's ``z``) means the one on levels.

    Returns
    -------
    Variable or None

    Examples
    --------
    >>> find_variable("t2m").name, find_variable("z").name, find_variable("temperature_850").name
    ('2m_temperature', 'geopotential', 'temperature')
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    base, _, level = name.rpartition("_")
    if level.isdigit() and base in CATALOGUE and CATALOGUE[base].vertical:
        return CATALOGUE[base]
    return next((known for known in ROWS if name in known.names), None)


def close_names(name: str, choices: Iterable[Hashable], n: int = 5) -> list[str]:
    """Names like `name`: by spelling, and those that hold it or are held by it."""
    name = name.lower()
    texts = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(name, texts, n=n, cutoff=0.55)
    within = [text for text in texts if len(text) > 2 and (text in name or name in text)]
    return [texts[text] for text in dict.fromkeys(close + within)][:n]


def listed(names: Iterable[object], limit: int = 6) -> str:
    """``'a', 'b', … (12 in all)``."""
    items = [repr(str(name)) if isinstance(name, Hashable) else repr(name) for name in names]
    return ", ".join(items[:limit]) + (f", … ({len(items)} in all)" if len(items) > limit else "")


# -------- channels and schema --------


@dataclass(frozen=True)
class Channel:
    """One two-dimensional field of the model's input or output.

    Attributes
    ----------
    variable : str
        WeatherBench2 name, such as ``"geopotential"``.
    level : int or None
        Pressure level [hPa].
    units, standard_name, long_name : str
        CF metadata; `standard_name` may be empty where CF has none.
    role : {"state", "static", "forcing"}
        Predicted; constant in time; given at every step and never predicted.
    height : float or None
        Height above the surface [m].

    Examples
    --------
    >>> Channel.known("geopotential", 500).name
    'geopotential_500'
    """

    variable: str
    level: int | None = None
    units: str = "1"
    standard_name: str = ""
    long_name: str = ""
    role: Role = "state"
    height: float | None = None

    def __post_init__(self) -> None:
        for name in ("variable", "units", "standard_name", "long_name"):
            self._check(isinstance(getattr(self, name), str), name, "a string")
        self._check(bool(self.variable.strip()), "variable", "a name")
        self._check(bool(self.units.strip()), "units", "units, '1' for none")
        self._check(self.role in ROLES, "role", f"one of {ROLES}")
        if self.level is not None:
            object.__setattr__(self, "level", self._level())
            self._check(self.height is None, "height", "None on a pressure level")
        if self.height is not None:
            number = isinstance(self.height, (int, float)) and not isinstance(self.height, bool)
            self._check(number and math.isfinite(self.height), "height", "a number of metres or None")
            object.__setattr__(self, "height", float(self.height))

    def _check(self, good: bool, name: str, expected: str) -> None:
        if not good:
            what = f"{name} of channel {self.variable!r} can't be used"
            raise ArgumentError(explain(what, got=repr(getattr(self, name)), expected=expected))

    def _level(self) -> int:
        value: Any = self.level
        try:
            level = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
        except TypeError:
            level = 0
        self._check(level > 0 and not isinstance(value, bool), "level", "a whole number of hPa above 0, or None")
        return level

    @classmethod
    def known(cls, variable: str, level: int | None = None, role: Role = "state") -> Channel:
        """The channel of a variable of the catalogue.

        Parameters
        ----------
        variable : str
            WeatherBench2 name.
        level : int, optional
            Pressure level [hPa]; needed on levels, refused elsewhere.
        role : {"state", "static", "forcing"}

        Returns
        -------
        Channel
        """
        if (row := CATALOGUE.get(variable)) is None:
            close = close_names(str(variable), CATALOGUE)
            raise ArgumentError(
                explain(
                    f"{variable!r} is not a known variable",
                    expected=f"a WeatherBench2 name, such as {listed(close or CATALOGUE, 5)}",
                    do="Write Channel(variable=…, units=…, …) for one of your own",
                )
            )
        if row.vertical != (level is not None):
            expected = "pressure levels [hPa]" if row.vertical else "None: it has no level"
            raise ArgumentError(explain(f"level of {variable!r} can't be used", got=repr(level), expected=expected))
        return cls(variable, level, row.units, row.standard_name, row.long_name, role, row.height)

    @property
    def name(self) -> str:
        """``variable``, with ``_level`` on pressure levels."""
        return self.variable if self.level is None else f"{self.variable}_{self.level}"


@dataclass(frozen=True, repr=False)
class Schema:
    """The ordered channels of a model: the only place that knows their order.

    Attributes
    ----------
    channels : tuple of Channel
        State channels first, then static, then forcing; so the index of a state channel is its place in
        the state tensor.

    Examples
    --------
    >>> Schema.from_variables({"2m_temperature": None, "geopotential": [500, 850]}, static=["land_sea_mask"])
    <Schema: 3 state, 1 static, 0 forcing channels>
    state    2m_temperature, geopotential (500, 850 hPa)
    static   land_sea_mask
    """

    channels: tuple[Channel, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        for channel in self.channels:
            if not isinstance(channel, Channel):
                raise ArgumentError(explain("A schema is made of channels", got=repr(channel), expected="Channel"))
        if not self.channels:
            raise ArgumentError(explain("A schema needs at least one channel", got="none"))
        self._check_names()
        if [c.role for c in self.channels] != sorted((c.role for c in self.channels), key=ROLES.index):
            expected = "state, then static, then forcing"
            raise ArgumentError(explain("The channels are not in order of role", expected=expected, do="Sort them"))

    def _check_names(self) -> None:
        names = [channel.name for channel in self.channels]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ArgumentError(explain("A channel stands in the schema twice", got=listed(repeated)))
        facts: dict[str, tuple[object, ...]] = {}
        for c in self.channels:
            mine = (c.role, c.units, c.standard_name, c.height, c.level is None)
            if facts.setdefault(c.variable, mine) != mine:
                what = f"The channels of {c.variable!r} contradict each other"
                raise ArgumentError(explain(what, expected="one role, units, standard_name and height"))

    @classmethod
    def from_variables(
        cls,
        state: Mapping[str, Sequence[int] | int | None],
        static: Mapping[str, Sequence[int] | int | None] | Iterable[str] = (),
        forcing: Mapping[str, Sequence[int] | int | None] | Iterable[str] = (),
    ) -> Schema:
        """A schema of known variables.

        Parameters
        ----------
        state : mapping
            Variable → levels [hPa], None without levels; the order is kept.
        static, forcing : mapping or iterable of str
            The same, or just names of variables without levels.

        Returns
        -------
        Schema
        """
        channels: list[Channel] = []
        for role, wanted in zip(ROLES, (state, static, forcing), strict=True):
            if isinstance(wanted, str):
                wanted = [wanted]
            levels_of = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted)
            for variable, levels in levels_of.items():
                several = levels if np.iterable(levels) else [levels]
                channels += [Channel.known(variable, level, role) for level in several]
        return cls(tuple(channels))

    def _of(self, role: Role) -> tuple[Channel, ...]:
        return tuple(channel for channel in self.channels if channel.role == role)

    @property
    def state(self) -> tuple[Channel, ...]:
        """Predicted channels."""
        return self._of("state")

    @property
    def static(self) -> tuple[Channel, ...]:
        """Channels that don't change with time."""
        return self._of("static")

    @property
    def forcing(self) -> tuple[Channel, ...]:
        """Channels that are input at every step and never predicted."""
        return self._of("forcing")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all channels, in order."""
        return tuple(channel.name for channel in self.channels)

    @property
    def variables(self) -> dict[Role, tuple[str, ...]]:
        """Variables of each role, without repeats, in order."""
        return {role: tuple(dict.fromkeys(c.variable for c in self._of(role))) for role in ROLES}

    @property
    def levels(self) -> tuple[int, ...]:
        """All pressure levels [hPa], ascending."""
        return tuple(sorted({channel.level for channel in self.channels if channel.level is not None}))

    def channels_of(self, variable: str) -> tuple[Channel, ...]:
        """The channels of one variable, in order."""
        return tuple(channel for channel in self.channels if channel.variable == variable)

    def index(self, name: str) -> int:
        """Place of a channel in `channels`; of a state channel, also in the state tensor.

        Parameters
        ----------
        name : str
            Channel name, such as ``"geopotential_500"``.

        Returns
        -------
        int
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise ArgumentError(self._unknown([str(name)])) from None

    def _unknown(self, names: Sequence[str]) -> str:
        variables = [variable for some in self.variables.values() for variable in some]
        close = [text for name in names for text in close_names(name, [*variables, *self.names])]
        what = f"{listed(names)} {'is' if len(names) == 1 else 'are'} not in this schema"
        if len(names) == 1 and (there := self._other_levels(names[0])):
            return explain(what, **there)
        return explain(what, expected=f"names such as {listed(close or variables)}")

    def _other_levels(self, name: str) -> dict[str, str]:
        """What to say of a variable at a level that it isn't on; nothing of other names."""
        parts = re.fullmatch(r"(.*[^\d_])(_?)(\d+)", name)
        known = find_variable(name)
        # "u10" is the wind at 10 m, not u at 10 hPa
        channels = self._meant(parts[1]) if parts and (known is None or name not in known.names) else ()
        levels = sorted(c.level for c in channels if c.level is not None)
        if not parts or not levels:
            return {}
        nearest = min(levels, key=lambda level: abs(level - int(parts[3])))
        expected = f"{channels[0].variable} at {', '.join(map(str, levels))} hPa"
        return {"expected": expected, "do": f"Write {parts[1] + parts[2] + str(nearest)!r}, the nearest"}

    def select(self, names: str | Iterable[str]) -> Schema:
        """The channels that the names mean, in this schema's order.

        Parameters
        ----------
        names : str or iterable of str
            Channels, variables, or any dialect's names for them: ``"geopotential_500"``, ``"geopotential"``,
            ``"z"``, ``"z500"``, ``"t2m"``, ``"air_temperature"``.

        Returns
        -------
        Schema
        """
        wanted = [names] if isinstance(names, str) else [str(name) for name in names]
        found = {name: self._meant(name) for name in wanted}
        if unknown := [name for name, channels in found.items() if not channels]:
            raise ArgumentError(self._unknown(unknown))
        chosen = {channel for channels in found.values() for channel in channels}
        return Schema(tuple(channel for channel in self.channels if channel in chosen))

    def _meant(self, name: str) -> tuple[Channel, ...]:
        """Channels that a name of any dialect means."""
        if exact := tuple(c for c in self.channels if name in (c.name, c.variable)):
            return exact
        # on levels first: ECMWF's z is geopotential before it is that of the surface
        for vertical in (True, False):
            known = [v.name for v in ROWS if v.vertical is vertical and name in v.names]
            if some := tuple(c for c in self.channels if c.variable in known):
                return some
        if some := tuple(c for c in self.channels if c.standard_name and c.standard_name == name):
            return some
        # "u10" is the wind at 10 m even where the schema lacks it, never u at 10 hPa
        parts = re.fullmatch(r"(.*[^\d_])_?(\d+)", name)
        if parts is None or find_variable(name) is not None:
            return ()
        return tuple(c for c in self._meant(parts[1]) if c.level == int(parts[2]))

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain lists and dicts, which JSON can hold.

        Returns
        -------
        dict
        """
        return {"channels": [asdict(channel) for channel in self.channels]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schema:
        """The schema that `to_dict` wrote.

        Parameters
        ----------
        data : mapping

        Returns
        -------
        Schema
        """
        _check_keys(data, ["channels"], ["channels"], "schema")
        rows = data["channels"]
        if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
            raise ArgumentError(explain("'channels' can't be used", got=repr(rows), expected="a list of dicts"))
        known = [f.name for f in fields(Channel)]
        for row in (rows := list(rows)):
            _check_keys(row, known, ["variable"], "channel")
        return cls(tuple(Channel(**row) for row in rows))

    def groups(self) -> Iterator[tuple[Role, str, tuple[Channel, ...]]]:
        """Role, variable and its channels, variable by variable."""
        for role, variables in self.variables.items():
            yield from ((role, variable, self.channels_of(variable)) for variable in variables)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self._of(role))} {role}" for role in ROLES)
        lines = [f"<Schema: {counts} channels>"]
        for role in ROLES:
            if texts := [with_levels(v, some) for r, v, some in self.groups() if r == role]:
                lines.append(f"{role:<8} {', '.join(texts)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [
            (role, variable, levels_text(some) or "–", some[0].units, some[0].standard_name or "–")
            for role, variable, some in self.groups()
        ]
        title = f"Schema: {len(self.channels)} channels"
        return html_table(title, ("role", "variable", "levels", "units", "standard_name"), rows)


def _check_keys(data: Any, known: Sequence[str], needed: Sequence[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise ArgumentError(explain(f"The {what} is not a dict", got=repr(data)))
    if unknown := [key for key in data if key not in known]:
        raise ArgumentError(explain(f"The {what} has unknown keys", got=listed(unknown), expected=listed(known, 9)))
    if missing := [key for key in needed if key not in data]:
        raise ArgumentError(explain(f"The {what} lacks {listed(missing)}", got=listed(data) or "no keys"))


def levels_text(channels: Sequence[Channel]) -> str:
    """``500, 850 hPa``."""
    levels = [channel.level for channel in channels if channel.level is not None]
    if len(levels) > 4:
        return f"{len(levels)} levels {min(levels)}…{max(levels)} hPa"
    return f"{', '.join(map(str, levels))} hPa" if levels else ""


def with_levels(variable: str, channels: Sequence[Channel]) -> str:
    """``geopotential (500, 850 hPa)``."""
    levels = levels_text(channels)
    return f"{variable} ({levels})" if levels else variable


def published_schema() -> Schema:
    """The schema of the published variants: 82 state channels and 3 static ones.

    Returns
    -------
    Schema

    Examples
    --------
    >>> schema = published_schema()
    >>> len(schema.state), schema.index("geopotential_50"), schema.names[-1]
    (82, 4, 'soil_type')
    """
    surface = (
        "2m_temperature",
        "10m_u_component_of_wind",
        "10m_v_component_of_wind",
        "mean_sea_level_pressure",
    )
    upper = (
        "geopotential",
        "specific_humidity",
        "temperature",
        "u_component_of_wind",
        "v_component_of_wind",
        "vertical_velocity",
    )
    return Schema.from_variables(
        {**dict.fromkeys(surface), **dict.fromkeys(upper, PUBLISHED_LEVELS)},
        static=["geopotential_at_surface", "land_sea_mask", "soil_type"],
    )


def cf_attributes(channel: Channel | str) -> dict[str, str]:
    """CF attributes of a channel or variable.

    Parameters
    ----------
    channel : Channel or str
        A channel, or the name of a known variable in any dialect.

    Returns
    -------
    dict
        ``standard_name``, ``long_name``, ``units``; those that are empty are left out.

    Examples
    --------
    >>> cf_attributes("msl")["standard_name"]
    'air_pressure_at_mean_sea_level'
    """
    known = channel if isinstance(channel, Channel) else find_variable(channel)
    if known is None:
        close = listed(close_names(str(channel), CATALOGUE) or CATALOGUE)
        raise ArgumentError(explain(f"{channel!r} is not a known variable", expected=f"names such as {close}"))
    pairs = (("standard_name", known.standard_name), ("long_name", known.long_name), ("units", known.units))
    return {name: value for name, value in pairs if value}
