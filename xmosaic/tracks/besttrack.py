"""Best tracks from files: IBTrACS (CSV and netCDF), HURDAT2, and plain CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..grid import wrap_longitude
from ..variables import listed

_KNOT = 1852.0 / 3600.0
_VALUES = ("latitude", "longitude", "mean_sea_level_pressure", "wind")
# storms × times: beyond it a rectangle would be mostly NaN and fill the memory
_LARGEST = 5_000_000
_HURDAT_HEADER = re.compile(r"^[A-Z]{2}\d{6}\s*,")
_ATTRIBUTES = {
    "latitude": {"standard_name": "latitude", "long_name": "latitude of the centre", "units": "degrees_north"},
    "longitude": {"standard_name": "longitude", "long_name": "longitude of the centre", "units": "degrees_east"},
    "mean_sea_level_pressure": {
        "standard_name": "air_pressure_at_mean_sea_level",
        "long_name": "lowest mean sea-level pressure",
        "units": "Pa",
    },
    "wind": {
        "standard_name": "tropical_cyclone_maximum_sustained_wind_speed",
        "long_name": "maximum sustained 10 m wind speed",
        "units": "m s-1",
        "comment": "averaged over 1 or 10 minutes, as the agency does",
    },
    "nature": {"long_name": "what the storm was, in the agency's letters"},
}


class _Row(NamedTuple):
    storm: str
    name: str
    year: int | None
    time: pd.Timestamp
    latitude: float
    longitude: float
    mean_sea_level_pressure: float
    wind: float
    nature: str
    where: str


def read_best_track(
    path: str | Path, storm: str | None = None, name: str | None = None, year: int | None = None, *, agency: str = "wmo"
) -> xr.Dataset:
    """Best tracks of tropical cyclones from a file; nothing is downloaded.

    Parameters
    ----------
    path : str or Path
        IBTrACS version 4 (CSV with the row of units, or netCDF), HURDAT2 text, or a CSV with the columns ``time``,
        ``lat`` and ``lon`` or ``lon_e``, and, where known, ``vmax_kt``, ``mslp_hpa``, ``type``, ``storm``, ``name``.
        The content decides which.
    storm : str, optional
        Identifier, such as "2022266N12294" (IBTrACS) or "AL092022" (HURDAT2).
    name : str, optional
        Name, in any case. Names return: give the year as well.
    year : int, optional
        Season.
    agency : str
        Of IBTrACS, whose wind and pressure: "wmo" is the responsible one of each basin, with IBTrACS's own
        positions; others, such as "usa", "tokyo" or "bom", have their own columns of position, wind and pressure.

    Returns
    -------
    Dataset, dims (valid_time) for one storm, (storm, valid_time) for more
        latitude [degrees_north], longitude [degrees_east, 0 … 360], mean_sea_level_pressure [Pa], wind [m s-1],
        nature; coordinates storm, name, year. NaN where a storm has no row at a time, or the row no value.

    Raises
    ------
    DatasetError
        For a file that isn't understood; the text names the line.
    ArgumentError
        Where no storm is as asked for.

    Notes
    -----
    Knots become m/s, hPa become Pa. Codes for missing values (blank, −99, −999, −9999) become NaN. Rows that repeat
    another one are dropped; two different ones of the same storm and time are an error. The whole file is read once.

    References
    ----------
    .. [1] Knapp, K. R. et al. (2010). The International Best Track Archive for Climate Stewardship (IBTrACS).
       Bull. Amer. Meteor. Soc. 91, 363-376. doi:10.1175/2009BAMS2755.1
    .. [2] Landsea, C. W. and Franklin, J. L. (2013). Atlantic hurricane database uncertainty and presentation of a new
       database format. Mon. Wea. Rev. 141, 3576-3592. doi:10.1175/MWR-D-12-00254.1

    Examples
    --------
    >>> import tempfile
    >>> rows = ["AL992000, TEST, 1,", "20000901, 0600, , TS, 15.0N, 59.5W, 45, 1006,"]
    >>> file = Path(tempfile.mkdtemp()) / "hurdat2.txt"
    >>> _ = file.write_text(chr(10).join(rows))
    >>> track = read_best_track(file, name="test")
    >>> track["longitude"].values, track["mean_sea_level_pressure"].values, track["wind"].values.round(2)
    (array([300.5]), array([100600.]), array([23.15]))
    """
    path = Path(path)
    if not path.is_file():
        raise ArgumentError(explain(f"There is no file {str(path)!r}"))
    with path.open("rb") as file:
        start = file.read(4)
    if start[:3] == b"CDF" or start == b"\x89HDF":
        source, rows = "IBTrACS", _ibtracs_netcdf(path, (storm, name, year), agency)
    else:
        source, rows = _text_rows(path, agency)
    wanted = [row for row in rows if _is_wanted(row, storm, name, year)]
    if not wanted:
        asked = {key: value for key, value in (("storm", storm), ("name", name), ("year", year)) if value is not None}
        raise ArgumentError(explain(f"{path.name} has no rows of {asked or 'any storm'}", do="Look into the file"))
    out = _dataset(wanted, path)
    out.attrs = {"title": "best track", "source": f"{source}, {path.name}"}
    out.attrs["agency"] = agency if source == "IBTrACS" else "NHC" if source == "HURDAT2" else "not stated"
    return out


def _is_wanted(row: _Row, storm: str | None, name: str | None, year: int | None) -> bool:
    return (
        (storm is None or row.storm.upper() == storm.upper())
        and (name is None or row.name.upper() == name.upper())
        and (year is None or row.year == year)
    )


def _dataset(rows: list[_Row], path: Path) -> xr.Dataset:
    storms = list(dict.fromkeys(row.storm for row in rows))
    times = pd.DatetimeIndex(sorted({row.time for row in rows})).as_unit("ns")
    if len(storms) * len(times) > _LARGEST:
        got, do = f"{len(storms)} storms at {len(times)} times", "Choose some with storm=, name= or year="
        raise DatasetError(explain(f"{path.name} is too much for one table", got=got, do=do))
    at, place = {time: k for k, time in enumerate(times)}, {storm: k for k, storm in enumerate(storms)}
    values = {key: np.full((len(storms), len(times)), np.nan) for key in _VALUES}
    nature = np.full((len(storms), len(times)), "", dtype=object)
    seen: dict[tuple[int, int], _Row] = {}
    for row in rows:
        index = place[row.storm], at[row.time]
        other = seen.setdefault(index, row)
        if not _same(row, other):
            got = f"{row.storm or 'the storm'} at {row.time}, in {other.where} as well"
            raise DatasetError(explain(f"{path.name}, {row.where}: two different rows of one time", got=got))
        for key in _VALUES:
            values[key][index] = getattr(row, key)
        nature[index] = row.nature
    dims = ("storm", "valid_time")
    out = xr.Dataset({key: (dims, v, _ATTRIBUTES[key]) for key, v in values.items()})
    out["nature"] = (dims, nature.astype(str), _ATTRIBUTES["nature"])
    first = {row.storm: row for row in reversed(rows)}
    out = out.assign_coords(
        valid_time=("valid_time", times, {"standard_name": "time"}),
        storm=("storm", storms, {"long_name": "identifier of the storm"}),
        name=("storm", [first[s].name for s in storms], {"long_name": "name of the storm"}),
        year=("storm", [first[s].year or 0 for s in storms], {"long_name": "season"}),
    )
    return out.isel(storm=0) if len(storms) == 1 else out


def _same(row: _Row, other: _Row) -> bool:
    pairs = [(getattr(row, key), getattr(other, key)) for key in _VALUES]
    return all(a == b or (np.isnan(a) and np.isnan(b)) for a, b in pairs)


# ------------------------------------------------------------------------------------------------------ text


def _text_rows(path: Path, agency: str) -> tuple[str, Iterator[_Row]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DatasetError(explain(f"{path.name} is no text", expected="IBTrACS, HURDAT2 or CSV")) from None
    first = next((line for line in lines if line.strip()), "")
    columns = [column.strip() for column in first.split(",")]
    if _HURDAT_HEADER.match(first):
        return "HURDAT2", _hurdat2(path, lines)
    if "SID" in columns and "ISO_TIME" in columns:
        return "IBTrACS", _ibtracs_csv(path, lines, agency)
    if "time" in columns and "lat" in columns:
        return "CSV", _plain_csv(path, lines)
    expected = "IBTrACS (SID, …, ISO_TIME), HURDAT2 (AL092022, …) or a CSV with columns time, lat, lon"
    raise DatasetError(explain(f"{path.name}, line 1: not a best track", got=repr(first[:60]), expected=expected))


def _hurdat2(path: Path, lines: list[str]) -> Iterator[_Row]:
    storm, name, left, header = "", "", 0, 0
    for number, line in enumerate(lines, 1):
        where = f"line {number}"
        parts = [part.strip() for part in line.split(",")]
        if not line.strip():
            continue
        if _HURDAT_HEADER.match(line):
            _check_complete(path, left, header)
            storm, name, header = parts[0], parts[1] if len(parts) > 1 else "", number
            left = int(_number(path, where, "number of rows", parts[2] if len(parts) > 2 else ""))
            continue
        if left == 0 or len(parts) < 8:
            got, expected = repr(line[:60]), "a storm's header" if left == 0 else "at least 8 entries"
            raise DatasetError(explain(f"{path.name}, {where}: not a row of HURDAT2", got=got, expected=expected))
        left -= 1
        yield _Row(
            storm,
            name,
            int(storm[4:8]),
            _time(path, where, f"{parts[0]} {parts[1].zfill(4)}", "%Y%m%d %H%M"),
            *_position(path, where, parts[4], parts[5]),
            _scaled(path, where, "pressure", parts[7], 100.0),
            _scaled(path, where, "wind", parts[6], _KNOT),
            parts[3],
            where,
        )
    _check_complete(path, left, header)


def _check_complete(path: Path, left: int, header: int) -> None:
    if left:
        raise DatasetError(explain(f"{path.name}, line {header}: the header counts {left} rows more than there are"))


def _records(path: Path, lines: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Place in the file and entries by column."""
    reader = csv.reader(lines)
    columns: list[str] = []
    for parts in reader:
        if not any(part.strip() for part in parts):
            continue
        if not columns:
            columns = [part.strip() for part in parts]
            continue
        where = f"line {reader.line_num}"
        if len(parts) != len(columns):
            got, expected = f"{len(parts)} entries", str(len(columns))
            raise DatasetError(explain(f"{path.name}, {where}: too few or too many", got=got, expected=expected))
        yield where, dict(zip(columns, (part.strip() for part in parts), strict=True))


def _ibtracs_csv(path: Path, lines: list[str], agency: str) -> Iterator[_Row]:
    columns = [column.strip() for column in next(line for line in lines if line.strip()).split(",")]
    latitude, longitude, wind, pressure = _columns(path, columns, agency)
    for where, row in _records(path, lines):
        if not row["SID"] or row.get("LAT") == "degrees_north":  # the row of units
            continue
        if agency.lower() != "wmo" and not row[latitude]:  # this agency has no row here
            continue
        yield _Row(
            row["SID"],
            row.get("NAME", ""),
            int(_number(path, where, "SEASON", row.get("SEASON", ""))),
            _time(path, where, row["ISO_TIME"]),
            *_position(path, where, row[latitude], row[longitude]),
            _scaled(path, where, pressure, row[pressure], 100.0),
            _scaled(path, where, wind, row[wind], _KNOT),
            row.get("NATURE", ""),
            where,
        )


def _columns(path: Path, columns: Iterable[str], agency: str) -> tuple[str, str, str, str]:
    """Columns of an agency's latitude, longitude, wind and pressure, in the case of the file."""
    known = {column.upper(): column for column in columns}
    own = agency.upper()
    wanted = [*(("LAT", "LON") if own == "WMO" else (f"{own}_LAT", f"{own}_LON")), f"{own}_WIND", f"{own}_PRES"]
    if missing := [column for column in wanted if column not in known]:
        there = sorted(column.removesuffix("_WIND").lower() for column in known if column.endswith("_WIND"))
        got = f"no column {listed(missing)}"
        raise ArgumentError(
            explain(f"{path.name} has nothing of agency {agency!r}", got=got, expected=f"one of {listed(there, 20)}")
        )
    latitude, longitude, wind, pressure = (known[column] for column in wanted)
    return latitude, longitude, wind, pressure


def _plain_csv(path: Path, lines: list[str]) -> Iterator[_Row]:
    for where, row in _records(path, lines):
        longitude = row.get("lon_e", row.get("lon"))
        if longitude is None:
            raise DatasetError(explain(f"{path.name}, line 1: no longitude", expected="a column lon or lon_e"))
        time = _time(path, where, row["time"])
        yield _Row(
            row.get("storm", ""),
            row.get("name", ""),
            time.year,
            time,
            *_position(path, where, row["lat"], longitude),
            _scaled(path, where, "mslp_hpa", row.get("mslp_hpa", ""), 100.0),
            _scaled(path, where, "vmax_kt", row.get("vmax_kt", ""), _KNOT),
            row.get("type", ""),
            where,
        )


def _number(path: Path, where: str, what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DatasetError(explain(f"{path.name}, {where}: {what} is no number", got=repr(text))) from None


def _scaled(path: Path, where: str, what: str, text: str, factor: float) -> float:
    """A value in SI units, NaN for blanks and for the codes of missing values, all of which are negative."""
    value = _number(path, where, what, text) if text.strip() else -999.0
    return value * factor if value >= 0 else np.nan


def _position(path: Path, where: str, latitude: str, longitude: str) -> tuple[float, float]:
    values = []
    for what, text, signs, limit in (
        ("latitude", latitude, {"N": 1, "S": -1}, 90.0),
        ("longitude", longitude, {"E": 1, "W": -1}, 360.0),
    ):
        # one letter behind a number, not the end of a word
        hemisphere = re.fullmatch(r"[-+.\d\s]*[NSEW]", text.upper()) and text[-1].upper() in signs
        bare, sign = (text[:-1], signs[text[-1].upper()]) if hemisphere else (text, 1)
        value = sign * _number(path, where, what, bare)
        if not abs(value) <= limit:
            raise DatasetError(explain(f"{path.name}, {where}: {what} is not on the sphere", got=repr(text)))
        values.append(value)
    return values[0], _eastward(values[1])


def _eastward(longitude: float) -> float:
    """Within 0 … 360, without the digits that 360 − 59.5 would leave behind."""
    return float(np.round(wrap_longitude(longitude), 9))


def _time(path: Path, where: str, text: str, form: str | None = None) -> pd.Timestamp:
    try:
        time: Any = pd.to_datetime(text, format=form)
    except (ValueError, TypeError):
        time = None
    if not isinstance(time, pd.Timestamp) or pd.isna(time):
        raise DatasetError(explain(f"{path.name}, {where}: this is no time", got=repr(text)))
    return time


# ---------------------------------------------------------------------------------------------------- netCDF


def _ibtracs_netcdf(path: Path, wanted: tuple[Any, Any, Any], agency: str) -> Iterator[_Row]:
    with xr.open_dataset(path) as data:
        if missing := [n for n in ("sid", "name", "season", "time", "lat", "lon") if n not in data.variables]:
            got = f"no variable {listed(missing)}"
            raise DatasetError(explain(f"{path.name} is not IBTrACS", got=got, expected="sid, name, season, time, …"))
        names = _columns(path, map(str, data.variables), agency)
        storms = _strings(data["sid"]), _strings(data["name"]), data["season"].values
        for k, (sid, name, season) in enumerate(zip(*storms, strict=True)):
            asked = ((wanted[0], sid), (wanted[1], name))
            if any(want is not None and want.upper() != got.upper() for want, got in asked):
                continue
            if wanted[2] is not None and int(season) != wanted[2]:
                continue
            yield from _storm_rows(data.isel(storm=k), names, (sid, name, int(season)))


def _storm_rows(data: xr.Dataset, names: tuple[str, ...], storm: tuple[str, str, int]) -> Iterator[_Row]:
    latitude, longitude, wind, pressure = (np.asarray(data[n].values, float) for n in names)
    # days since 1858 as floats: not exact to the second
    times = pd.DatetimeIndex(data["time"].values).round("min")
    nature = _strings(data["nature"]) if "nature" in data else [""] * len(times)
    for k, time in enumerate(times):
        if pd.isna(time) or np.isnan(latitude[k]) or np.isnan(longitude[k]):
            continue
        east, where = _eastward(round(longitude[k], 4)), f"{storm[0]}, row {k}"
        values = round(latitude[k], 4), east, pressure[k] * 100.0, wind[k] * _KNOT
        yield _Row(*storm, time, *values, nature[k], where)


def _strings(values: xr.DataArray) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.values]
