"""What of a forecast the tracker reads: which variables, in which units, and block by block."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from ..diagnostics.layout import LEAD, canonical_dims
from ..errors import DatasetError, explain
from ..units import conversion
from ..variables import find_variable, listed
from .detect import Fields
from .mesh import Mesh, mesh_of

_PRESSURE = "mean_sea_level_pressure"
_STEERING_LEVELS = (850.0, 700.0, 500.0)
_WARM_LEVELS = (200.0, 500.0)
_BLOCK_BYTES = 64e6
_UNITS = {_PRESSURE: "Pa", "temperature": "K"}  # all others are winds
_RUN_DIMS = ("time", "number", LEAD)


@dataclass
class Source:
    """A forecast as the tracker sees it.

    Parameters
    ----------
    data : Dataset, dims (time, number, prediction_timedelta, horizontal)
        Only what is read, with one-element dimensions where the forecast has none.
    mesh : Mesh
    names : dict
        Canonical name → the caller's.
    valid : ndarray of datetime64[ns], dims (time, lead)
    origin : ndarray of datetime64[ns], dims (time)
        Starts; of analyses the first time.
    runs : DataArray
        The forecast's pressure less space: its dimensions and coordinates.
    used : dict of str
        What each result was computed from.
    west : bool
        Whether the caller counts longitudes from −180.
    """

    data: xr.Dataset
    mesh: Mesh
    names: dict[str, Hashable]
    valid: np.ndarray
    origin: np.ndarray
    runs: xr.DataArray
    used: dict[str, str]
    west: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of starts, members and leads."""
        start, member, lead = (self.data.sizes[dim] for dim in _RUN_DIMS)
        return start, member, lead

    def blocks(self) -> Iterator[tuple[int, int, int, Fields | None]]:
        """(start, member, lead, fields) with the leads of each member in order; None where pressure is missing."""
        starts, members, leads = self.shape
        member_step = self._chunk("number")
        field_bytes = (
            8 * len(self.data.data_vars) * np.prod([n for d, n in self.data.sizes.items() if d not in _RUN_DIMS])
        )
        lead_step = max(self._chunk(LEAD), int(_BLOCK_BYTES // (field_bytes * member_step)), 1)
        for start in range(starts):
            for first_member in range(0, members, member_step):
                for first_lead in range(0, leads, lead_step):
                    part = {"number": slice(first_member, first_member + member_step)}
                    part[LEAD] = slice(first_lead, first_lead + lead_step)
                    block = self.data.isel(time=start).isel(part).compute()
                    for m, k in np.ndindex(block.sizes["number"], block.sizes[LEAD]):
                        yield start, first_member + m, first_lead + k, self._fields(block, m, k)

    def _chunk(self, dim: str) -> int:
        """Largest chunk: reading less of it would read it again and again."""
        return max((max(v.chunksizes[dim]) for v in self.data.data_vars.values() if v.chunks), default=1)

    def _fields(self, block: xr.Dataset, member: int, lead: int) -> Fields | None:
        raw = {str(n): v.values[member, lead] for n, v in block.data_vars.items()}
        pressure = self.mesh.flatten(raw["pressure"])
        if np.isnan(pressure).all():
            return None
        fields = Fields(pressure)
        if "wind" in raw:
            fields.wind = self.mesh.flatten(raw["wind"])
        elif "u10" in raw:
            fields.wind = self.mesh.flatten(np.hypot(raw["u10"], raw["v10"], dtype=np.float64))
        if "u850" in raw:
            fields.vorticity = self.mesh.vorticity(raw["u850"], raw["v850"])
        if "warm" in raw:
            fields.temperature = self.mesh.flatten(raw["warm"])
        if "u_steering" in raw:
            fields.steering = self.mesh.vectors(raw["u_steering"], raw["v_steering"])
        return fields


def read_forecast(forecast: xr.Dataset | xr.DataArray, steering: bool) -> Source:
    """Find what can be tracked on a forecast or on analyses; nothing is computed.

    Parameters
    ----------
    forecast : Dataset or DataArray
    steering : bool
        Whether winds at the steering levels are wanted.

    Returns
    -------
    Source
    """
    data, names = canonical_dims(forecast)
    data = data.to_dataset(name=data.name or _PRESSURE) if isinstance(data, xr.DataArray) else data
    mesh = mesh_of(data)
    found, used = _variables(data, steering)
    pressure = found["pressure"]
    horizontal = ["cell"] if "cell" in data.dims else ["latitude", "longitude"]
    if extra := [d for d in pressure.dims if d not in (*_RUN_DIMS, *horizontal)]:
        do = "Select one place along it"
        raise DatasetError(explain(f"Pressure has further dimension {listed(extra)}", do=do))
    runs = pressure.isel(dict.fromkeys(horizontal, 0), drop=True)
    if LEAD not in runs.dims and LEAD in runs.coords:
        runs = runs.expand_dims(LEAD)
    valid, origin = _valid_times(runs)
    full = xr.Dataset({name: _full(field, horizontal) for name, field in found.items()})
    if LEAD not in runs.coords and "time" in runs.dims:  # analyses: their times are followed
        full = full.rename({LEAD: "lead", "time": LEAD}).rename(lead="time")
    west = "longitude" in data.coords and bool((data["longitude"] < 0).any())
    full = full.drop_vars([n for n in full.coords if n not in full.dims]).transpose(*_RUN_DIMS, *horizontal)
    return Source(full, mesh, names, valid, origin, runs, used, west)


def _full(field: xr.DataArray, horizontal: list[str]) -> xr.DataArray:
    extra = [d for d in field.dims if d not in (*_RUN_DIMS, *horizontal)]
    if extra:
        raise DatasetError(explain(f"{field.name!r} has further dimension {listed(extra)}"))
    field = field.drop_vars([n for n in field.coords if n not in field.dims])
    return field.expand_dims([dim for dim in _RUN_DIMS if dim not in field.dims])


def _valid_times(runs: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Valid times, dims (start, lead), and starts."""
    if "time" not in runs.coords:
        do = "Assign the start as coordinate 'time'"
        raise DatasetError(explain("The forecast has no times", got=f"coordinates {listed(runs.coords)}", do=do))
    times = np.atleast_1d(runs["time"].values)
    if times.dtype.kind != "M":
        raise DatasetError(explain("Times can't be used", got=f"dtype {times.dtype}", expected="datetime64"))
    times = times.astype("datetime64[ns]")
    if LEAD in runs.dims and LEAD not in runs.coords:
        do = f"Assign them: ds.assign_coords({LEAD}=pd.to_timedelta(…))"
        raise DatasetError(explain("The forecast's lead times have no values", got="a dimension alone", do=do))
    if LEAD not in runs.coords:
        return _ascending(times)[None], times[:1]
    leads = np.atleast_1d(runs[LEAD].values)
    if leads.dtype.kind != "m":
        got = f"dtype {leads.dtype}"
        raise DatasetError(explain("Lead times can't be used", got=got, expected="timedelta64, or numbers with units"))
    leads = leads.astype("timedelta64[ns]")
    return np.add.outer(times, _ascending(leads)), times


def _ascending(values: np.ndarray) -> np.ndarray:
    if len(values) > 1 and not (np.diff(values) > np.timedelta64(0, "ns")).all():
        at = pd.Series(values)[1:][np.diff(values) <= np.timedelta64(0, "ns")].iloc[0]
        raise DatasetError(explain("Times to follow don't ascend", got=f"{at} after a later one", do="Sort them"))
    return values


# ---------------------------------------------------------------------------------------------- variables


def _variables(data: xr.Dataset, steering: bool) -> tuple[dict[str, xr.DataArray], dict[str, str]]:
    pressure = _surface(data, _PRESSURE)
    if pressure is None:
        raise DatasetError(
            explain("There is no mean sea-level pressure", got=listed(data.data_vars), expected=f"{_PRESSURE!r}")
        )
    found, used = {"pressure": pressure}, {_PRESSURE: str(pressure.name)}
    speed = _surface(data, "10m_wind_speed")
    u10, v10 = (_surface(data, f"10m_{c}_component_of_wind") for c in "uv")
    if speed is not None:
        found["wind"], used["wind"] = speed, str(speed.name)
    elif u10 is not None and v10 is not None:
        found |= {"u10": u10, "v10": v10}
        used["wind"] = f"{u10.name}, {v10.name}"
    u, v = (_on_levels(data, f"{c}_component_of_wind") for c in "uv")
    if 850.0 in u and 850.0 in v:
        found |= {"u850": u[850.0], "v850": v[850.0]}
        used["relative_vorticity_850"] = f"{u[850.0].name}, {v[850.0].name} at 850 hPa"
    _means(data, steering, (u, v), found, used)
    return found, used


def _means(
    data: xr.Dataset,
    steering: bool,
    winds: tuple[dict[float, xr.DataArray], dict[float, xr.DataArray]],
    found: dict[str, xr.DataArray],
    used: dict[str, str],
) -> None:
    """Add means over levels, which read only the result into memory."""
    warm = {lev: t for lev, t in _on_levels(data, "temperature").items() if _WARM_LEVELS[0] <= lev <= _WARM_LEVELS[1]}
    if warm:
        found["warm"] = _mean(list(warm.values()))
        used["warm_core"] = f"temperature at {_text(warm)} hPa"
    u, v = winds
    levels = [level for level in _STEERING_LEVELS if level in u and level in v]
    if steering and levels:
        found["u_steering"], found["v_steering"] = (_mean([w[level] for level in levels]) for w in (u, v))
        used["steering"] = f"wind at {_text(levels)} hPa"


def _mean(fields: list[xr.DataArray]) -> xr.DataArray:
    fields = [f.drop_vars("level", errors="ignore").astype(np.float64) for f in fields]
    return sum(fields[1:], start=fields[0]) / len(fields)


def _text(levels: object) -> str:
    return ", ".join(f"{level:g}" for level in sorted(levels))  # type: ignore[call-overload]


def _matches(data: xr.Dataset, name: str) -> list[xr.DataArray]:
    found = []
    for own, field in data.data_vars.items():
        known = find_variable(str(own))
        # a standard name alone tells pressure; that of winds and temperatures fits several variables
        named = name == _PRESSURE and field.attrs.get("standard_name") == "air_pressure_at_mean_sea_level"
        if named or (known is not None and known.name == name):
            found.append(field)
    return found


def _surface(data: xr.Dataset, name: str) -> xr.DataArray | None:
    found = [field for field in _matches(data, name) if "level" not in field.dims]
    if len(found) > 1:
        got = listed(field.name for field in found)
        raise DatasetError(explain(f"Two variables can be {name!r}", got=got, do="Drop one of them"))
    return _converted(found[0], name) if found else None


def _on_levels(data: xr.Dataset, name: str) -> dict[float, xr.DataArray]:
    """Level [hPa] → field, from a dimension, from channels such as temperature_850, or from a scalar level."""
    out: dict[float, xr.DataArray] = {}
    for field in _matches(data, name):
        suffix = str(field.name).rpartition("_")[2]
        if "level" in field.dims and "level" in field.coords:
            levels = {float(level): field.isel(level=i) for i, level in enumerate(field["level"].values)}
        elif suffix.isdigit():
            levels = {float(suffix): field}
        elif "level" in field.coords:
            levels = {float(field["level"]): field}
        else:
            continue
        out |= {level: _converted(one, name) for level, one in levels.items() if level not in out}
    return out


def _converted(field: xr.DataArray, name: str) -> xr.DataArray:
    units, wanted = str(field.attrs.get("units", "")), _UNITS.get(name, "m s-1")
    if not units:
        return field
    linear = conversion(units, wanted)
    if linear is None:
        raise DatasetError(explain(f"Units of {field.name!r} can't be used", got=repr(units), expected=repr(wanted)))
    return field if linear == (1.0, 0.0) else (field * linear[0] + linear[1]).rename(field.name)
