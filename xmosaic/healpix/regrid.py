"""Regridding for users: `to_healpix` and `to_latlon`, from whichever grid an object is on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..grid import LatLonGrid, XarrayObject, distinct_meridians, find_latlon, parse_grid
from .dataset import on_dataset, regrid_dataset
from .mesh import Grid, HealpixMesh
from .metadata import locate_mesh, mesh_coordinates, no_mesh
from .operator import Method, check_method
from .variable import Options, Plan


def to_healpix(
    obj: XarrayObject,
    nside: int,
    method: Method = "conservative",
    *,
    max_missing: float = 0.5,
    missing_fraction: bool = False,
) -> XarrayObject:
    """Regrid from latitude/longitude (or from a HEALPix mesh of another nside) to the HEALPix mesh.

    Parameters
    ----------
    obj : Dataset or DataArray, dims (..., latitude, longitude)
        Global; dimensions in any place and order, longitudes in any convention. A repeated meridian is left out.
        Dask arrays stay lazy, with one chunk over the horizontal dimensions.
    nside : int
        A power of two.
    method : {"conservative", "bilinear", "nearest"}
        conservative
            Mean over the cell, from exact overlap areas: the area integral is kept.
        bilinear
            At the centre of the cell, from the four points around it. Beyond the outermost row of a grid without
            poles, towards the mean of that row at the pole.
        nearest
            Value of the nearest point on the sphere, in any dtype: for categories.
    max_missing : float
        NaN (missing) points are left out of averages. Where more than this part of the weight is missing, the
        result is NaN: 0 lets no NaN pass, 1 needs any valid point. Without effect on nearest.
    missing_fraction : bool
        Add `<name>_missing_fraction` for each variable: a variable of a Dataset, a coordinate of a DataArray.

    Returns
    -------
    Dataset or DataArray, dims (..., cell)
        `cell` stands where the first horizontal dimension stood. Floats keep their dtype (sums are in float64),
        integers become float64 unless the method is nearest. Coordinates along a horizontal dimension go, variables
        without one pass unchanged. On conservative, `cell_methods` gets "area: mean".

    Raises
    ------
    DatasetError
        Among others for infinite values under an average; on dask arrays only when they are computed.

    Examples
    --------
    >>> field = xr.DataArray(np.ones((4, 8)), dims=("lat", "lon"), name="t",
    ...     coords={"lat": [-67.5, -22.5, 22.5, 67.5], "lon": np.arange(8) * 45.0})
    >>> to_healpix(field, nside=2).sizes
    Frozen({'cell': 48})
    """
    target = HealpixMesh(nside)
    options = Options(check_method(method), _check_fraction(max_missing), bool(missing_fraction))

    def regrid(data: xr.Dataset) -> xr.Dataset:
        data, source, dims = _source(data, wanted="latitude/longitude")
        return regrid_dataset(data, Plan(source, dims, target, ("cell",), options), mesh_coordinates(nside))

    return on_dataset(obj, regrid)


def to_latlon(
    obj: XarrayObject,
    grid: Any,
    method: Method = "conservative",
    *,
    nside: int | None = None,
    indexing_scheme: str | None = None,
    max_missing: float = 0.5,
    missing_fraction: bool = False,
) -> XarrayObject:
    """Regrid from the HEALPix mesh (or, conservatively, from another latitude/longitude grid) to latitude/longitude.

    Parameters
    ----------
    obj : Dataset or DataArray, dims (..., cell) or (..., latitude, longitude)
        The whole mesh, described after CF 1.13 or by xdggs, nested or in rings; or a global grid.
    grid : LatLonGrid, Dataset, DataArray, (nlon, nlat) or float [degrees]
        The result has this grid's order and names. See `parse_grid` for the short forms.
    method : {"conservative", "bilinear", "nearest"}
        conservative
            Mean over the grid cell, from exact overlap areas: the area integral is kept.
        bilinear
            At the grid point, from four cells around it (`healpy.get_interp_weights`).
        nearest
            Value of the cell that contains the point.
    nside, indexing_scheme : int, {"nested", "ring"}
        For a dimension without metadata named `cell`, `cells`, `cell_ids` or `values` only: both are needed then.
    max_missing, missing_fraction
        See `to_healpix`.

    Returns
    -------
    Dataset or DataArray, dims (..., latitude, longitude)
        The horizontal dimensions stand where the cells stood. See `to_healpix` for dtypes.

    Raises
    ------
    DatasetError
        If the mesh can't be told, or the points are no cells of it.
    ArgumentError
        For a grid or an option that can't be used.

    Examples
    --------
    >>> import xmosaic
    >>> mesh = xmosaic.to_healpix(xmosaic.open_sample()["2m_temperature"].isel(time=0), 16)
    >>> dict(to_latlon(mesh, (64, 33)).sizes)
    {'latitude': 33, 'longitude': 64}
    """
    target = parse_grid(grid)
    options = Options(check_method(method), _check_fraction(max_missing), bool(missing_fraction))
    coordinates = _target_coordinates(grid, target)

    def regrid(data: xr.Dataset) -> xr.Dataset:
        data, source, dims = _source(data, "HEALPix", nside, indexing_scheme)
        names = (target.latitude_name, target.longitude_name)
        return regrid_dataset(data, Plan(source, dims, target, names, options), coordinates)

    return on_dataset(obj, regrid)


def _check_fraction(value: Any) -> float:
    if isinstance(value, int | float | np.number) and 0 <= value <= 1:
        return float(value)
    raise ArgumentError(explain(f"max_missing={value!r} can't be used", expected="a fraction from 0 to 1"))


def _source(
    data: xr.Dataset, wanted: str, nside: int | None = None, indexing_scheme: str | None = None
) -> tuple[xr.Dataset, Grid, tuple[Hashable, ...]]:
    """The dataset in an order that its grid describes, the grid, and its dimensions."""
    found = locate_mesh(data, nside, indexing_scheme)
    latlon = _own_latlon(data)
    if found and latlon:
        raise DatasetError(
            explain(
                "This has both a HEALPix mesh and a latitude/longitude grid",
                got=f"dimensions {found.dim!r} and {latlon}",
                expected="one of them",
                do="Split the dataset, or drop the coordinates that don't belong to it.",
            )
        )
    if found:
        if found.positions is not None:
            data = data.isel({found.dim: found.positions})
        return data, found.mesh, (found.dim,)
    if wanted == "HEALPix" and not latlon:
        raise DatasetError(no_mesh(data))
    latitude, longitude = find_latlon(data)
    dims = (data[latitude].dims[0], data[longitude].dims[0])
    grid = LatLonGrid.from_dataset(data)
    kept = distinct_meridians(np.asarray(data[longitude].values, dtype=np.float64))
    if kept.size < data.sizes[dims[1]]:
        data = data.isel({dims[1]: kept})
    return data, grid, dims


def _own_latlon(data: xr.Dataset) -> tuple[Hashable, Hashable] | None:
    """Latitude and longitude if they make a grid, not if they only locate the cells of a mesh."""
    try:
        return find_latlon(data)
    except DatasetError:
        return None


def _target_coordinates(grid: Any, target: LatLonGrid) -> dict[Any, xr.Variable]:
    coordinates: dict[Any, xr.Variable] = dict(target.coordinates())
    if isinstance(grid, xr.Dataset | xr.DataArray):
        for name in find_latlon(grid):
            own = grid[name].variable
            # the caller's own dtype and attributes, so that results align with the grid's dataset
            if own.size == coordinates[str(name)].size:
                coordinates[str(name)] = xr.Variable((str(name),), own.values, own.attrs, own.encoding)
    return coordinates
