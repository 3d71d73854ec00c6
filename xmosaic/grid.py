"""Latitude/longitude grids: found on any dataset, described by value, with exact cell areas."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from .errors import ArgumentError, DatasetError, explain

XarrayObject = TypeVar("XarrayObject", xr.Dataset, xr.DataArray)

# CF 1.13, sections 4.1 and 4.2: every accepted spelling
_UNITS = {
    "latitude": {"degrees_north", "degree_north", "degree_N", "degrees_N", "degreeN", "degreesN"},
    "longitude": {"degrees_east", "degree_east", "degree_E", "degrees_E", "degreeE", "degreesE"},
}
_USUAL_NAMES = {"latitude": ("latitude", "lat"), "longitude": ("longitude", "lon")}
_AXIS = {"latitude": "Y", "longitude": "X"}
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "latitude": {
        "standard_name": "latitude",
        "long_name": "latitude",
        "units": "degrees_north",
        "axis": "Y",
    },
    "longitude": {
        "standard_name": "longitude",
        "long_name": "longitude",
        "units": "degrees_east",
        "axis": "X",
    },
}
_RANGE_ATTRIBUTES = ("actual_range", "valid_range", "valid_min", "valid_max")

# A gap this many times the usual spacing is a hole, not an uneven grid; one missing pole row still passes.
_LARGEST_GAP = 1.5


@dataclass(frozen=True, repr=False)
class LatLonGrid:
    """A global grid of latitudes × longitudes, equal and hashed by value.

    Parameters
    ----------
    latitude : sequence of float [degrees_north], dims (latitude)
        At least two, each once, in any order. The outermost rows reach to the poles.
    longitude : sequence of float [degrees_east], dims (longitude)
        At least two, around the whole globe, in any order, in any convention (0…360, −180…180).
    latitude_name, longitude_name : str
        What the two dimensions are called.

    Notes
    -----
    Cells reach half way to the neighbouring rows and columns, and to ±90° at the outer rows: a row on the pole
    is a cap of half the width. This also holds for Gaussian latitudes, whose cells then are not exactly
    the Gaussian quadrature weights.

    Examples
    --------
    >>> LatLonGrid.equiangular(240, 121)
    LatLonGrid(240 longitudes 0 … 358.5 by 1.5, 121 latitudes -90 … 90 by 1.5)
    """

    latitude: tuple[float, ...]
    longitude: tuple[float, ...]
    latitude_name: str = "latitude"
    longitude_name: str = "longitude"

    def __post_init__(self) -> None:
        for axis in ("latitude", "longitude"):
            object.__setattr__(self, axis, _axis_values(axis, getattr(self, axis)))
        if self.latitude_name == self.longitude_name:
            raise ArgumentError(explain("The two dimensions need two names", got=repr(self.latitude_name)))
        _check_latitudes(np.sort(self.latitude))
        _check_longitudes(np.sort(wrap_longitude(self.longitude)))

    @classmethod
    def equiangular(cls, nlon: int, nlat: int, poles: bool = True) -> LatLonGrid:
        """Evenly spaced grid from longitude 0 eastward and from south to north.

        Parameters
        ----------
        nlon, nlat : int
            Number of longitudes and of latitudes.
        poles : bool
            Rows on both poles (−90 … 90), or none (the outer rows half a step away from them).

        Returns
        -------
        LatLonGrid
        """
        rows = np.arange(_count("nlat", nlat))
        latitude = rows * 180.0 / (nlat - 1) - 90.0 if poles else (rows + 0.5) * 180.0 / nlat - 90.0
        return cls(tuple(latitude), tuple(np.arange(_count("nlon", nlon)) * 360.0 / nlon))

    @classmethod
    def from_dataset(cls, obj: xr.Dataset | xr.DataArray) -> LatLonGrid:
        """The grid of a dataset, in the dataset's own order and with its own names.

        A repeated meridian (0 and 360, −180 and 180) counts once, as in `normalise_latlon`.

        Parameters
        ----------
        obj : Dataset or DataArray
            With one-dimensional latitude and longitude coordinates.

        Returns
        -------
        LatLonGrid
        """
        latitude_name, longitude_name = find_latlon(obj)
        longitude = _coordinate_values(obj, longitude_name)
        kept = longitude[distinct_meridians(longitude)]
        try:
            return cls(
                tuple(_coordinate_values(obj, latitude_name)),
                tuple(kept),
                str(latitude_name),
                str(longitude_name),
            )
        except ArgumentError as error:
            raise DatasetError(str(error)) from None

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> LatLonGrid:
        """The inverse of `to_dict`."""
        return cls(**description)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, ready for JSON."""
        return {
            "latitude": list(self.latitude),
            "longitude": list(self.longitude),
            "latitude_name": self.latitude_name,
            "longitude_name": self.longitude_name,
        }

    @property
    def shape(self) -> tuple[int, int]:
        """(number of latitudes, number of longitudes)."""
        return len(self.latitude), len(self.longitude)

    def latitude_edges(self) -> np.ndarray:
        """Edges between rows [degrees_north], ascending from −90 to 90, one more than there are rows."""
        rows = np.sort(self.latitude)
        return np.concatenate([[-90.0], (rows[1:] + rows[:-1]) / 2, [90.0]])

    def longitude_edges(self) -> np.ndarray:
        """Edges between columns [degrees_east], ascending over one turn, for longitudes sorted in [0, 360)."""
        columns = np.sort(wrap_longitude(self.longitude))
        first = (columns[-1] - 360.0 + columns[0]) / 2
        return np.concatenate([[first], (columns[1:] + columns[:-1]) / 2, [first + 360.0]])

    def latitude_bounds(self) -> np.ndarray:
        """Southern and northern edge of each row [degrees_north], dims (latitude, 2), in the grid's order."""
        return _bounds(self.latitude_edges(), np.asarray(self.latitude))

    def longitude_bounds(self) -> np.ndarray:
        """Western and eastern edge of each column [degrees_east], dims (longitude, 2), in the grid's order.

        West is less than east in every column, and each longitude lies between its own two.
        """
        wrapped = wrap_longitude(self.longitude)
        turns = np.asarray(self.longitude) - wrapped
        return _bounds(self.longitude_edges(), wrapped) + turns[:, None]

    def cell_area(self) -> xr.DataArray:
        """Area of each cell on the unit sphere, (sin φ₂ − sin φ₁)·Δλ; the sum is 4π.

        Returns
        -------
        DataArray [sr], dims (latitude, longitude)
        """
        width = _bounds(np.deg2rad(self.longitude_edges()), wrap_longitude(self.longitude))
        area = _sine_difference(self.latitude_bounds())[:, None] * (width[:, 1] - width[:, 0])
        attributes = {"standard_name": "cell_area", "long_name": "area on the unit sphere", "units": "sr"}
        return xr.DataArray(area, coords=self.coordinates(), attrs=attributes, name="cell_area")

    def coordinates(self) -> dict[str, xr.Variable]:
        """The two coordinate variables with their CF attributes, by name."""
        # xarray gives floats a fill value in netCDF, which CF forbids to coordinates
        return {
            name: xr.Variable((name,), np.array(values), dict(_ATTRIBUTES[axis]), {"_FillValue": None})
            for axis, name, values in (
                ("latitude", self.latitude_name, self.latitude),
                ("longitude", self.longitude_name, self.longitude),
            )
        }

    def __repr__(self) -> str:
        longitudes = _describe_axis("longitude", self.longitude)
        return f"LatLonGrid({longitudes}, {_describe_axis('latitude', self.latitude)})"


def find_latlon(obj: xr.Dataset | xr.DataArray) -> tuple[Hashable, Hashable]:
    """Names of the one-dimensional latitude and longitude coordinates.

    Looks for the CF standard_name first, then for CF units, then for the usual names (`latitude`, `lat`,
    `longitude`, `lon`), and for axis Y or X last.

    Parameters
    ----------
    obj : Dataset or DataArray

    Returns
    -------
    latitude, longitude : hashable
        Names of coordinates, each along one dimension of its own.
    """
    _require_xarray(obj)
    latitude, longitude = _find_axis(obj, "latitude"), _find_axis(obj, "longitude")
    if latitude is None or longitude is None:
        raise DatasetError(_not_found(obj, "latitude" if latitude is None else "longitude"))
    if obj[latitude].dims == obj[longitude].dims:
        raise DatasetError(
            explain(
                f"{latitude!r} and {longitude!r} list single points, not a grid",
                got=f"both along dimension {obj[latitude].dims[0]!r}",
                expected="two dimensions, one for each",
                do="Interpolate the points to a latitude/longitude grid first.",
            )
        )
    return latitude, longitude


def normalise_latlon(obj: XarrayObject, notes: list[str] | None = None) -> XarrayObject:
    """Sort latitudes from south to north and longitudes eastward within [0, 360); names stay.

    Nothing is computed: data on dask arrays stay lazy.

    Parameters
    ----------
    obj : Dataset or DataArray
        With one-dimensional latitude and longitude coordinates.
    notes : list of str, optional
        Gets one sentence for each thing that was changed.

    Returns
    -------
    Dataset or DataArray
        A repeated meridian (0 and 360, −180 and 180) is left out: the first one stays.
    """
    latitude, longitude = find_latlon(obj)
    LatLonGrid.from_dataset(obj)
    notes = [] if notes is None else notes
    rows = np.argsort(_coordinate_values(obj, latitude), kind="stable")
    values = _coordinate_values(obj, longitude)
    kept = distinct_meridians(values)
    columns = kept[np.argsort(wrap_longitude(values[kept]), kind="stable")]
    _note_changes(notes, latitude, longitude, rows, values, kept, columns)
    out = _isel(_isel(obj, obj[latitude].dims[0], rows), obj[longitude].dims[0], columns)
    wrapped = wrap_longitude(values[columns])
    if np.array_equal(wrapped, values[columns]):
        return out
    return out.assign_coords({longitude: _wrapped_variable(out[longitude].variable, wrapped)})


def area_weights(obj: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Exact cell areas along the object's own coordinates, for `obj.weighted(...)`.

    Parameters
    ----------
    obj : Dataset or DataArray
        On a latitude/longitude grid, or zonal means with latitude only.

    Returns
    -------
    DataArray [sr], dims (latitude, longitude) or (latitude)
        A repeated meridian has weight 0, so that it does not count twice.
    """
    _require_xarray(obj)
    latitude = _find_axis(obj, "latitude")
    if latitude is not None and _find_axis(obj, "longitude") is None:
        return _zonal_weights(obj, latitude)
    grid = LatLonGrid.from_dataset(obj)
    latitude, longitude = find_latlon(obj)
    values = _coordinate_values(obj, longitude)
    area = np.zeros((grid.shape[0], values.size))
    area[:, distinct_meridians(values)] = grid.cell_area().values
    dims = (obj[latitude].dims[0], obj[longitude].dims[0])
    coords = {name: obj[name].variable for name in (latitude, longitude)}
    attributes = dict(grid.cell_area().attrs)
    return xr.DataArray(area, dims=dims, coords=coords, attrs=attributes, name="cell_area")


def wrap_longitude(longitude: Any) -> np.ndarray:
    """Longitudes within [0, 360) [degrees_east].

    Examples
    --------
    >>> wrap_longitude([-180.0, 0.0, 360.0, 540.0])
    array([180.,   0.,   0., 180.])
    """
    wrapped = np.asarray(longitude, dtype=np.float64) % 360.0
    # -1e-20 % 360 rounds to 360 itself
    return np.where(wrapped == 360.0, 0.0, wrapped)


def distinct_meridians(longitude: np.ndarray) -> np.ndarray:
    """Positions of the longitudes [degrees_east] that are not an earlier one plus full turns, in order.

    The same number twice is an error: that is no wrap-around but a dataset put together wrongly.
    """
    values, counts = np.unique(longitude, return_counts=True)
    if (counts > 1).any():
        twice = values[counts > 1]
        raise DatasetError(
            explain(
                "A longitude appears more than once",
                got=_some(twice),
                expected="each longitude once",
                do="Drop the repeated columns, e.g. with drop_duplicates.",
            )
        )
    return np.sort(np.unique(wrap_longitude(longitude), return_index=True)[1])


def parse_grid(grid: Any) -> LatLonGrid:
    """A LatLonGrid from the few things that can stand for one.

    Parameters
    ----------
    grid : LatLonGrid, Dataset, DataArray, (nlon, nlat) or float
        A pair is an equiangular grid, with rows on the poles if nlat is odd. A number is the spacing of
        an equiangular grid with poles [degrees]; it must divide 180.

    Returns
    -------
    LatLonGrid

    Examples
    --------
    >>> parse_grid(1.5) == parse_grid((240, 121)) == LatLonGrid.equiangular(240, 121)
    True
    """
    if isinstance(grid, LatLonGrid):
        return grid
    if isinstance(grid, xr.Dataset | xr.DataArray):
        return LatLonGrid.from_dataset(grid)
    if isinstance(grid, tuple | list) and len(grid) == 2 and all(_is_integer(n) for n in grid):
        nlon, nlat = grid
        return LatLonGrid.equiangular(int(nlon), int(nlat), poles=bool(nlat % 2))
    if isinstance(grid, int | float | np.number) and not isinstance(grid, bool) and grid > 0:
        intervals = round(180.0 / float(grid))
        if intervals >= 1 and np.isclose(intervals * float(grid), 180.0, rtol=1e-9):
            return LatLonGrid.equiangular(2 * intervals, intervals + 1)
    raise ArgumentError(
        explain(
            "This doesn't name a latitude/longitude grid",
            got=f"{grid!r} ({type(grid).__name__})",
            expected="a LatLonGrid, a Dataset or DataArray on such a grid, (nlon, nlat), "
            "or a spacing in degrees that divides 180",
            do="Pass e.g. grid=1.5 or grid=(240, 121).",
        )
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _count(name: str, value: Any) -> int:
    if _is_integer(value) and value >= 2:
        return int(value)
    raise ArgumentError(
        explain(f"{name}={value!r} is not a number of grid points", expected="an integer of at least 2")
    )


def _axis_values(axis: str, values: Iterable[float]) -> tuple[float, ...]:
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values))
    if array.ndim != 1 or array.size < 2 or array.dtype.kind not in "fiu":
        raise ArgumentError(
            explain(
                f"{axis} is not a list of numbers",
                got=f"shape {array.shape}, dtype {array.dtype}",
                expected="at least two numbers along one dimension, in degrees",
            )
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ArgumentError(
            explain(
                f"{axis} has values that are NaN or infinite",
                got=f"{int((~np.isfinite(array)).sum())} of {array.size}",
                expected="finite degrees",
                do="Drop these rows or fill in the coordinate.",
            )
        )
    return tuple(array.tolist())


def _check_latitudes(rows: np.ndarray) -> None:
    if np.abs(rows).max() > 90.0:
        got = f"{rows[0]:g} … {rows[-1]:g}"
        raise ArgumentError(explain("Latitudes lie beyond the poles", got=got, expected="degrees_north in -90 … 90"))
    steps = np.diff(rows)
    if (steps == 0).any():
        got = _some(rows[1:][steps == 0])
        raise ArgumentError(explain("A latitude appears more than once", got=got, expected="each latitude once"))
    to_pole = np.array([rows[0] + 90.0, 90.0 - rows[-1]])
    # a row is missing where a step is far wider than those beside it
    beside = np.maximum(np.append(steps[1:], 0), np.append(0, steps[:-1])) if steps.size > 1 else steps
    hole = (steps > _LARGEST_GAP * beside + 1e-9).any() or steps.max() > 4 * steps.min()
    if (to_pole > _LARGEST_GAP * steps[[0, -1]] + 1e-9).any() or hole:
        raise ArgumentError(
            explain(
                "Latitudes don't reach from pole to pole without a gap",
                got=f"{rows.size} rows {rows[0]:g} … {rows[-1]:g} by {steps.min():g} to {steps.max():g}",
                expected="rows over the whole globe",
                do="Take a global field; regional ones are not regridded.",
            )
        )


def _check_longitudes(columns: np.ndarray) -> None:
    steps = np.diff(columns, append=columns[0] + 360.0)
    if (steps == 0).any():
        got = _some(columns[steps == 0])
        raise ArgumentError(
            explain(
                "A meridian appears more than once",
                got=f"{got} (modulo 360)",
                expected="each meridian once",
                do="Leave the repeated one out; normalise_latlon does it on a dataset.",
            )
        )
    if steps.max() > _LARGEST_GAP * np.median(steps) or steps.min() * 1e3 < np.median(steps):
        after = columns[np.argmax(steps)]
        raise ArgumentError(
            explain(
                "Longitudes don't go around the globe evenly",
                got=f"{columns.size} meridians {np.median(steps):g} apart, but {steps.max():g} after {after:g} "
                f"and at least {steps.min():g}",
                expected="meridians around the whole globe without a gap",
                do="Take a global field; regional ones are not regridded.",
            )
        )


def _bounds(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Edges [ascending] of each value's cell, in the order of the values: (value, 2)."""
    rank = np.empty(values.size, dtype=np.intp)
    rank[np.argsort(values, kind="stable")] = np.arange(values.size)
    return np.stack([edges[rank], edges[rank + 1]], axis=-1)


def _sine_difference(bounds: np.ndarray) -> np.ndarray:
    """Sin φ₂ − sin φ₁ as a product: no digits are lost in the small caps at the poles."""
    south, north = np.deg2rad(bounds).T
    # cos((φ₁ + φ₂)/2) from the distance to the nearer pole, for the same reason
    middle = np.deg2rad(90.0 - np.abs(bounds.sum(axis=-1)) / 2)
    return 2 * np.sin(middle) * np.sin((north - south) / 2)


def _describe_axis(axis: str, values: tuple[float, ...]) -> str:
    steps = np.diff(values)
    spacing = f"{steps.mean():g}" if np.allclose(steps, steps.mean(), rtol=1e-6) else "uneven steps"
    return f"{len(values)} {axis}s {values[0]:g} … {values[-1]:g} by {spacing}"


def _some(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:3])
    return shown + (f" and {values.size - 3} more" if values.size > 3 else "")


def _require_xarray(obj: Any) -> None:
    if not isinstance(obj, xr.Dataset | xr.DataArray):
        raise ArgumentError(
            explain("This is no xarray object", got=type(obj).__name__, expected="an xarray Dataset or DataArray")
        )


def _find_axis(obj: xr.Dataset | xr.DataArray, axis: str) -> Hashable | None:
    """The coordinate's name, None if there is none; the most reliable sign decides."""
    lines = {name: coord for name, coord in obj.coords.items() if coord.ndim == 1}
    signs = (
        lambda name, attrs: str(attrs.get("standard_name")) == axis,
        lambda name, attrs: str(attrs.get("units")) in _UNITS[axis] and "standard_name" not in attrs,
        lambda name, attrs: str(name).lower() in _USUAL_NAMES[axis],
        lambda name, attrs: (
            str(attrs.get("axis")) == _AXIS[axis]
            and "standard_name" not in attrs
            and str(attrs.get("units", "degrees")) in ("degrees", "degree")
        ),
    )
    for sign in signs:
        found = [name for name, coord in lines.items() if sign(name, coord.attrs)]
        # coordinates of dimensions first: auxiliary ones may describe something else, such as stations
        found = [name for name in found if name in obj.dims] or found
        if len(found) > 1:
            raise DatasetError(
                explain(
                    f"More than one coordinate can be the {axis}",
                    got=", ".join(map(repr, found)),
                    expected="one",
                    do="Drop the others, or remove their standard_name and units.",
                )
            )
        if found:
            return found[0]
    return None


def _not_found(obj: xr.Dataset | xr.DataArray, axis: str) -> str:
    variables = obj.variables if isinstance(obj, xr.Dataset) else obj.coords
    planes = [
        name
        for name, variable in variables.items()
        if len(variable.dims) >= 2
        and (
            str(variable.attrs.get("standard_name")) == axis
            or str(variable.attrs.get("units")) in _UNITS[axis]
            or str(name).lower() in _USUAL_NAMES[axis]
        )
        and not str(name).lower().endswith(("bnds", "bounds"))
    ]
    if planes:
        return explain(
            f"{planes[0]!r} is a {axis} of two dimensions (a curvilinear grid)",
            got=f"dims {tuple(variables[planes[0]].dims)}",
            expected="one-dimensional latitude and longitude",
            do="Interpolate to a latitude/longitude grid first, e.g. with xESMF or CDO.",
        )
    return explain(
        f"No {axis} is on this {type(obj).__name__}",
        got=f"dimensions {tuple(obj.sizes)}, coordinates {tuple(obj.coords)}",
        expected=f"a one-dimensional coordinate with standard_name={axis!r}, "
        f"units {_ATTRIBUTES[axis]['units']!r} or the name {' or '.join(map(repr, _USUAL_NAMES[axis]))}",
        do="Add or rename it.",
    )


def _coordinate_values(obj: xr.Dataset | xr.DataArray, name: Hashable) -> np.ndarray:
    coord = obj[name]
    if str(coord.attrs.get("units")) in ("radian", "radians") or coord.dtype.kind not in "fiu":
        raise DatasetError(
            explain(
                f"{name!r} is not in degrees",
                got=f"units {coord.attrs.get('units')!r}, dtype {coord.dtype}",
                expected="numbers in degrees",
                do="Convert it, e.g. with numpy.rad2deg.",
            )
        )
    values = np.asarray(coord.values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DatasetError(
            explain(
                f"{name!r} has values that are NaN or infinite",
                got=f"{int((~np.isfinite(values)).sum())} of {values.size}",
                expected="finite degrees",
                do="Drop these rows or fill in the coordinate.",
            )
        )
    return values


def _zonal_weights(obj: xr.Dataset | xr.DataArray, latitude: Hashable) -> xr.DataArray:
    rows = _coordinate_values(obj, latitude)
    try:
        # any global row of longitudes does: only the latitudes' bounds are used
        grid = LatLonGrid(tuple(rows), (0.0, 180.0))
    except ArgumentError as error:
        raise DatasetError(str(error)) from None
    area = 2 * np.pi * _sine_difference(grid.latitude_bounds())
    attributes = dict(grid.cell_area().attrs)
    coord = obj[latitude].variable
    return xr.DataArray(area, dims=coord.dims, coords={latitude: coord}, attrs=attributes, name="cell_area")


def _isel(obj: XarrayObject, dim: Hashable, positions: np.ndarray) -> XarrayObject:
    if np.array_equal(positions, np.arange(obj.sizes[dim])):
        return obj
    return obj.isel({dim: positions})


def _wrapped_variable(longitude: xr.Variable, wrapped: np.ndarray) -> xr.Variable:
    attributes = {key: value for key, value in longitude.attrs.items() if key not in _RANGE_ATTRIBUTES}
    return xr.Variable(longitude.dims, wrapped, attributes)


def _note_changes(
    notes: list[str],
    latitude: Hashable,
    longitude: Hashable,
    rows: np.ndarray,
    values: np.ndarray,
    kept: np.ndarray,
    columns: np.ndarray,
) -> None:
    if not np.array_equal(rows, np.arange(rows.size)):
        notes.append(f"{latitude!r} was sorted from south to north.")
    dropped = np.setdiff1d(np.arange(values.size), kept)
    if dropped.size:
        notes.append(f"{longitude!r} repeated a meridian: {_some(values[dropped])} was left out.")
    if not np.array_equal(wrap_longitude(values[columns]), values[kept]):
        notes.append(f"{longitude!r} was brought to 0 … 360, eastward.")
