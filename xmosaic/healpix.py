"""The HEALPix mesh: geometry, CF metadata, and labelled, lazy regridding from and to latitude/longitude.

Cells are in nested order throughout. The order of this file: geometry, operators (sparse matrices), metadata, and
`to_healpix` and `to_latlon`, which put them together.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import xarray as xr

from .errors import ArgumentError, DatasetError, explain
from .grid import LatLonGrid, XarrayObject, distinct_meridians, find_latlon, parse_grid, wrap_longitude
from .overlap import SLIVER, grid_overlaps, mesh_overlaps, own_order

if TYPE_CHECKING:
    import scipy.sparse

Method: TypeAlias = Literal["conservative", "bilinear", "nearest"]
_METHODS = ("conservative", "bilinear", "nearest")

_MESH_DIMS = ("cell", "cells", "cell_ids", "values")
_DATA_NAME = "xmosaic_field"

_FIELDS_AT_ONCE = 32


# ---------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class HealpixMesh:
    """The HEALPix mesh of 12·nside² cells of equal area, in nested order.

    Parameters
    ----------
    nside : int
        Cells along the side of one of the twelve faces; a power of two.

    Examples
    --------
    >>> HealpixMesh(64).size, HealpixMesh(64).refinement_level
    (49152, 6)
    """

    nside: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "nside", check_nside(self.nside))

    @property
    def size(self) -> int:
        """Number of cells."""
        return 12 * self.nside**2

    @property
    def shape(self) -> tuple[int]:
        """(number of cells,)."""
        return (self.size,)

    @property
    def refinement_level(self) -> int:
        """log2(nside)."""
        return self.nside.bit_length() - 1


Grid: TypeAlias = LatLonGrid | HealpixMesh


def check_nside(nside: Any) -> int:
    """The value itself if it is a power of two from 1 to 2**29, an ArgumentError otherwise."""
    integer = isinstance(nside, int | np.integer) and not isinstance(nside, bool)
    if integer and 1 <= nside <= 2**29 and int(nside).bit_count() == 1:
        return int(nside)
    nearest = 2 ** max(0, round(np.log2(nside))) if integer and nside > 0 else 64
    raise ArgumentError(
        explain(
            f"nside={nside!r} is not the resolution of a nested mesh",
            expected="a power of two, at least 1",
            do=f"Try nside={nearest}.",
        )
    )


def cell_centres(nside: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre of every cell.

    Parameters
    ----------
    nside : int

    Returns
    -------
    longitude, latitude : ndarray [degrees_east within 0 … 360, degrees_north], dims (cell)
    """
    import healpy

    mesh = HealpixMesh(nside)
    return healpy.pix2ang(mesh.nside, np.arange(mesh.size), nest=True, lonlat=True)


def cell_vectors(nside: int) -> np.ndarray:
    """Unit vectors to the centre of every cell, dims (cell, 3): x to 0° E, y to 90° E, z to the north pole."""
    import healpy

    mesh = HealpixMesh(nside)
    return np.stack(healpy.pix2vec(mesh.nside, np.arange(mesh.size), nest=True), axis=-1)


def cells_at(nside: int, longitude: Any, latitude: Any) -> np.ndarray:
    """Cells that contain the points.

    Parameters
    ----------
    nside : int
    longitude, latitude : array-like [degrees_east, degrees_north]

    Returns
    -------
    ndarray of int
    """
    import healpy

    return healpy.ang2pix(check_nside(nside), longitude, latitude, nest=True, lonlat=True)


def children(cell: Any, levels: int = 1) -> np.ndarray:
    """Cells that a cell is divided into, `levels` refinements finer, dims (..., 4**levels).

    Examples
    --------
    >>> children(5)
    array([20, 21, 22, 23])
    """
    count = 4 ** _levels(levels)
    return np.asarray(cell)[..., None] * count + np.arange(count)


def parents(cell: Any, levels: int = 1) -> np.ndarray:
    """Cell that contains a cell, `levels` refinements coarser.

    Examples
    --------
    >>> parents([20, 23, 24])
    array([5, 5, 6])
    """
    return np.asarray(cell) // 4 ** _levels(levels)


def _levels(levels: Any) -> int:
    if isinstance(levels, int | np.integer) and levels >= 0:
        return int(levels)
    raise ArgumentError(explain(f"levels={levels!r} can't be used", expected="an integer of at least 0"))


# -------------------------------------------------------------------------------------------- operators


@dataclass(frozen=True, eq=False)
class RegridWeights:
    """A linear operator between two grids, with its description.

    Attributes
    ----------
    source, target : LatLonGrid or HealpixMesh
    method : {"conservative", "bilinear", "nearest"}
    matrix : scipy.sparse.csr_array of float64, dims (target point, source point)
        Each row sums to 1. Points of a LatLonGrid are counted along its rows: latitude·nlon + longitude.
    """

    source: Grid
    target: Grid
    method: Method
    matrix: scipy.sparse.csr_array

    def apply(self, values: np.ndarray, max_missing: float = 0.5) -> np.ndarray:
        """Regrid plain arrays.

        Parameters
        ----------
        values : ndarray, dims (..., *source.shape)
        max_missing : float
            See `to_healpix`.

        Returns
        -------
        ndarray, dims (..., *target.shape)
            In the dtype of `values` if that is a float one or the method is nearest, else float64.
        """
        horizontal = len(self.source.shape)
        if values.shape[-horizontal:] != self.source.shape:
            raise ArgumentError(
                explain(
                    "Values don't fit the source grid",
                    got=f"shape {values.shape}",
                    expected=f"(…, {self.source.shape})",
                )
            )
        leading = values.shape[:-horizontal]
        fields = values.reshape(-1, self.matrix.shape[1])
        if self.method == "nearest":
            out = fields[:, self.matrix.indices]
        else:
            out = np.empty((len(fields), self.matrix.shape[0]), _result_dtype(values.dtype))
            for start in range(0, len(fields), _FIELDS_AT_ONCE):
                portion = slice(start, start + _FIELDS_AT_ONCE)
                out[portion] = self._average(fields[portion].T, max_missing).T
        return out.reshape(*leading, *self.target.shape)

    def missing_fraction(self, values: np.ndarray) -> np.ndarray:
        """Part of each target point's weight that falls on NaN [1], dims (..., *target.shape), float64."""
        missing = np.isnan(values) if values.dtype.kind in "fc" else np.zeros(values.shape, bool)
        return np.minimum(self.apply(missing.astype(np.float64), max_missing=1.0), 1.0)

    def _average(self, fields: np.ndarray, max_missing: float) -> np.ndarray:
        fields = np.ascontiguousarray(fields, dtype=np.float64)  # (source point, field)
        if np.isinf(fields).any():
            raise DatasetError(
                explain(
                    "A field has infinite values, which no average can use",
                    got=f"{int(np.isinf(fields).sum())} of them",
                    expected="finite numbers, or NaN where there is no value",
                    do="Replace them, e.g. with where(numpy.isfinite), or use method='nearest'.",
                )
            )
        missing = np.isnan(fields)
        if not missing.any():
            return self.matrix @ fields
        total = self.matrix @ np.where(missing, 0.0, fields)
        absent, present = self.matrix @ missing.astype(np.float64), self.matrix @ (~missing).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(absent > 0, total / present, total)
        # rounding must not decide where exactly max_missing is missing
        mean[absent > max_missing + 1e-12] = np.nan
        return mean


_building = threading.Lock()


def regrid_weights(source: Grid, target: Grid, method: Method = "conservative") -> RegridWeights:
    """The operator between two grids; built once, the eight last used are kept in memory.

    Parameters
    ----------
    source, target : LatLonGrid or HealpixMesh
    method : {"conservative", "bilinear", "nearest"}
        See `to_healpix`.

    Returns
    -------
    RegridWeights

    Notes
    -----
    "conservative" takes about 0.3 s and 12 MB per million overlaps (nside 64 and 240 × 121 have 0.2 million,
    nside 256 and 1440 × 721 have 4.4 million); docs/healpix.md has the measurements.
    """
    _check_method(method)
    # without the lock, the threads of dask would all build the same operator
    with _building:
        return _build_weights(source, target, method)


@lru_cache(maxsize=8)
def _build_weights(source: Grid, target: Grid, method: Method) -> RegridWeights:
    import scipy.sparse

    if isinstance(source, HealpixMesh):
        builders: dict[str, Callable[..., Any]] = {
            "conservative": _conservative_from_mesh,
            "bilinear": _bilinear_from_mesh,
            "nearest": _nearest_from_mesh,
        }
    elif isinstance(source, LatLonGrid) and isinstance(target, HealpixMesh):
        builders = {
            "conservative": lambda source, target: mesh_overlaps(source, target.nside),
            "bilinear": _bilinear_to_mesh,
            "nearest": _nearest_to_mesh,
        }
    else:
        builders = {"conservative": grid_overlaps}
    if method not in builders:
        raise ArgumentError(
            explain(
                f"method={method!r} does not go between two latitude/longitude grids",
                expected="'conservative'",
                do="Use xarray's interp for points.",
            )
        )
    matrix = scipy.sparse.csr_array(builders[method](source, target), dtype=np.float64, copy=True)
    if method != "nearest":
        matrix = _normalised(matrix)
    for part in (matrix.data, matrix.indices, matrix.indptr):
        part.flags.writeable = False
    return RegridWeights(source, target, method, matrix)


def _normalised(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Rows divided by their sums, less the entries that are zero up to rounding."""
    for smallest in (SLIVER, 0.0):
        count = np.diff(matrix.indptr)
        matrix.data /= np.repeat(np.asarray(matrix.sum(axis=1)).ravel(), count)
        matrix.data[np.abs(matrix.data) <= smallest] = 0.0
        matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def _points(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of each point of a grid [degrees]."""
    if isinstance(grid, HealpixMesh):
        return cell_centres(grid.nside)
    latitude, longitude = np.meshgrid(grid.latitude, wrap_longitude(grid.longitude), indexing="ij")
    return longitude.ravel(), latitude.ravel()


def _size(grid: Grid) -> int:
    return int(np.prod(grid.shape))


def _gather(columns: np.ndarray, weights: np.ndarray, size: int) -> scipy.sparse.csr_array:
    """Matrix of `size` columns from the entries of each row, dims (row, entry)."""
    import scipy.sparse

    rows = np.repeat(np.arange(len(columns)), columns.shape[1])
    entries = (weights.ravel(), (rows, columns.ravel()))
    return scipy.sparse.coo_array(entries, shape=(len(columns), size)).tocsr()


def _conservative_from_mesh(source: HealpixMesh, target: Grid) -> scipy.sparse.csr_array:
    if isinstance(target, LatLonGrid):
        return mesh_overlaps(target, source.nside).T
    levels = source.refinement_level - target.refinement_level
    cells = np.arange(target.size)
    columns = children(cells, levels) if levels >= 0 else parents(cells, -levels)[:, None]
    return _gather(columns, np.ones(columns.shape), _size(source))


def _bilinear_from_mesh(source: HealpixMesh, target: Grid) -> scipy.sparse.csr_array:
    import healpy

    longitude, latitude = _points(target)
    cells, weights = healpy.get_interp_weights(source.nside, longitude, latitude, nest=True, lonlat=True)
    return _gather(cells.T, weights.T, _size(source))


def _nearest_from_mesh(source: HealpixMesh, target: Grid) -> scipy.sparse.csr_array:
    cells = cells_at(source.nside, *_points(target))[:, None]
    return _gather(cells, np.ones(cells.shape), _size(source))


def _bracket(values: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position in the ascending values before each point, and how far it is on the way to the next."""
    before = np.clip(np.searchsorted(values, points, side="right") - 1, 0, values.size - 2)
    return before, (points - values[before]) / (values[before + 1] - values[before])


def _bilinear_to_mesh(source: LatLonGrid, target: HealpixMesh) -> scipy.sparse.csr_array:
    longitude, latitude = cell_centres(target.nside)
    rows, columns = np.sort(source.latitude), np.sort(wrap_longitude(source.longitude))
    nlon = columns.size
    # one column more on both sides closes the circle
    column, eastward = _bracket(np.concatenate([columns[-1:] - 360.0, columns, columns[:1] + 360.0]), longitude)
    with_poles = np.unique(np.concatenate([[-90.0], rows, [90.0]]))
    row, northward = _bracket(with_poles, latitude)
    missing_south = int(rows[0] > -90.0)
    points, weights = [], []
    for side, share in ((row, 1 - northward), (row + 1, northward)):
        for around, part in ((column - 1, 1 - eastward), (column, eastward)):
            points.append(_point_or_pole(side - missing_south, around % nlon, source))
            weights.append(share * part)
    extended = np.stack(points, axis=-1), np.stack(weights, axis=-1)
    return _gather(*extended, size=_size(source) + 2) @ _with_poles(source)


def _point_or_pole(row: np.ndarray, column: np.ndarray, grid: LatLonGrid) -> np.ndarray:
    """Flat position in the sorted grid; a row south or north of all gives one more point each."""
    nlat, nlon = grid.shape
    south, north = nlat * nlon, nlat * nlon + 1
    return np.where(row < 0, south, np.where(row >= nlat, north, row * nlon + column))


def _with_poles(grid: LatLonGrid) -> scipy.sparse.csr_array:
    """From the grid to its sorted points and both poles; the value at a pole is the mean of the outer row."""
    import scipy.sparse

    nlon, own = grid.shape[1], own_order(grid)
    columns = np.concatenate([own, own[:nlon], own[-nlon:]])
    rows = np.concatenate([np.arange(own.size), np.repeat([own.size, own.size + 1], nlon)])
    weights = np.concatenate([np.ones(own.size), np.full(2 * nlon, 1.0 / nlon)])
    return scipy.sparse.coo_array((weights, (rows, columns)), shape=(own.size + 2, own.size)).tocsr()


def _nearest_to_mesh(source: LatLonGrid, target: HealpixMesh) -> scipy.sparse.csr_array:
    longitude, latitude = cell_centres(target.nside)
    rows, columns = np.sort(source.latitude), np.sort(wrap_longitude(source.longitude))
    column, eastward = _bracket(np.concatenate([columns[-1:] - 360.0, columns, columns[:1] + 360.0]), longitude)
    column = (column - (eastward < 0.5)) % columns.size
    apart = np.deg2rad(longitude - columns[column])
    # the point of that meridian that is nearest on the sphere lies closer to the pole than the cell
    sine, cosine = np.sin(np.deg2rad(latitude)), np.cos(np.deg2rad(latitude))
    on_meridian = np.rad2deg(np.arctan2(sine, cosine * np.cos(apart)))
    before = _bracket(rows, on_meridian)[0]
    # beyond a pole, with very few meridians, the far end of the meridian can be nearer
    candidates = np.stack([before, before + 1, np.zeros_like(before), np.full_like(before, rows.size - 1)])
    distance = np.abs((rows[candidates] - on_meridian + 180.0) % 360.0 - 180.0)
    row = np.take_along_axis(candidates, distance.argmin(axis=0)[None], axis=0)[0]
    nearest = own_order(source)[row * columns.size + column][:, None]
    return _gather(nearest, np.ones(nearest.shape), _size(source))


# --------------------------------------------------------------------------------------------- metadata


class _Found(NamedTuple):
    """The mesh of an object: its dimension, and the position of each nested cell along it (None: in order)."""

    mesh: HealpixMesh
    dim: Hashable
    positions: np.ndarray | None


def mesh_coordinates(nside: int) -> dict[str, xr.Variable]:
    """Coordinates `cell` and `crs` that describe the mesh after CF 1.13, appendix F.

    Every data variable on the mesh needs the attribute grid_mapping="crs" besides.

    Parameters
    ----------
    nside : int

    Returns
    -------
    dict of str to Variable
    """
    mesh = HealpixMesh(nside)
    # xdggs refuses every further attribute on crs
    crs = {
        "grid_mapping_name": "healpix",
        "refinement_level": mesh.refinement_level,
        "indexing_scheme": "nested",
    }
    index = {"standard_name": "healpix_index", "units": "1"}
    return {
        "cell": xr.Variable(("cell",), np.arange(mesh.size), index),
        "crs": xr.Variable((), np.int8(0), crs),
    }


def find_mesh(
    obj: xr.Dataset | xr.DataArray, *, nside: int | None = None, indexing_scheme: str | None = None
) -> HealpixMesh | None:
    """The mesh that an object is on, None if nothing on it says so.

    Understands CF 1.13 (a variable with grid_mapping_name="healpix") and xdggs (a coordinate with
    grid_name="healpix").

    Parameters
    ----------
    obj : Dataset or DataArray
    nside, indexing_scheme : optional
        For an object without metadata, see `to_latlon`.

    Returns
    -------
    HealpixMesh or None
    """
    found = locate_mesh(obj, nside, indexing_scheme)
    return found.mesh if found else None


def locate_mesh(
    obj: xr.Dataset | xr.DataArray, nside: int | None = None, indexing_scheme: str | None = None
) -> _Found | None:
    """As `find_mesh`, with the mesh's dimension and the position of each nested cell along it."""
    described = _describing_attributes(obj)
    if described is None and nside is None and indexing_scheme is None:
        return None
    attributes, dim, index = described or _bare_mesh(obj, nside, indexing_scheme)
    mesh, scheme = _described_mesh(attributes), _described_scheme(attributes)
    if nside not in (None, mesh.nside) or indexing_scheme not in (None, scheme):
        raise ArgumentError(
            explain(
                "The mesh's own description says otherwise",
                got=f"nside={nside!r}, indexing_scheme={indexing_scheme!r}",
                expected=f"nside={mesh.nside}, indexing_scheme={scheme!r}",
                do="Leave both out, or correct the description.",
            )
        )
    if obj.sizes[dim] != mesh.size:
        raise DatasetError(
            explain(
                f"Dimension {dim!r} doesn't hold the whole mesh",
                got=f"{obj.sizes[dim]} cells",
                expected=f"{mesh.size} at nside {mesh.nside}",
                do="Take all cells (NaN where there is no value); regional meshes are not regridded.",
            )
        )
    ids = np.arange(mesh.size) if index is None else np.asarray(obj[index].values)
    return _Found(mesh, dim, _nested_positions(ids, mesh, scheme))


def _describing_attributes(
    obj: xr.Dataset | xr.DataArray,
) -> tuple[dict[str, Any], Hashable, Hashable | None] | None:
    """Attributes that describe the mesh, its dimension, and the name of the coordinate with cell numbers."""
    variables = obj.variables if isinstance(obj, xr.Dataset) else {n: c.variable for n, c in obj.coords.items()}
    for name, index in obj.xindexes.items():
        # what xdggs.decode returns has its description on the index alone
        info = getattr(index, "grid_info", None)
        if info is not None and info.to_dict().get("grid_name") == "healpix":
            return info.to_dict(), obj[name].dims[0], name
    for name, variable in variables.items():
        if str(variable.attrs.get("grid_name")) == "healpix" and variable.ndim == 1:
            return dict(variable.attrs), variable.dims[0], name
    for variable in variables.values():
        if str(variable.attrs.get("grid_mapping_name")) != "healpix":
            continue
        for name, cells in variables.items():
            if str(cells.attrs.get("standard_name")) == "healpix_index" and cells.ndim == 1:
                return dict(variable.attrs), cells.dims[0], name
        dim = _usual_dim(obj)
        return dict(variable.attrs), dim, dim if dim in variables else None
    return None


def _usual_dim(obj: xr.Dataset | xr.DataArray) -> Hashable:
    dims = [dim for dim in obj.sizes if dim in _MESH_DIMS]
    if len(dims) == 1:
        return dims[0]
    raise DatasetError(
        explain(
            "The dimension of the HEALPix cells can't be told",
            got=f"dimensions {tuple(obj.sizes)}",
            expected="a coordinate with standard_name='healpix_index', or one dimension "
            f"named {' or '.join(map(repr, _MESH_DIMS))}",
            do="Rename the dimension to 'cell'.",
        )
    )


def _bare_mesh(
    obj: xr.Dataset | xr.DataArray, nside: int | None, indexing_scheme: str | None
) -> tuple[dict[str, Any], Hashable, Hashable | None]:
    if nside is None or indexing_scheme is None:
        raise ArgumentError(
            explain(
                "A mesh without metadata needs both nside and indexing_scheme",
                got=f"nside={nside!r}, indexing_scheme={indexing_scheme!r}",
                expected="e.g. nside=64, indexing_scheme='nested'",
            )
        )
    dim = _usual_dim(obj)
    attributes = {"nside": check_nside(nside), "indexing_scheme": indexing_scheme}
    return attributes, dim, dim if dim in obj.coords else None


def _described_mesh(attributes: dict[str, Any]) -> HealpixMesh:
    for key in ("nside", "healpix_nside"):
        if key in attributes:
            return HealpixMesh(int(attributes[key]))
    for key in ("refinement_level", "level"):
        level = attributes.get(key)
        if isinstance(level, int | np.integer) and 0 <= level <= 29:
            return HealpixMesh(2 ** int(level))
    raise DatasetError(
        explain(
            "The mesh's description has no usable resolution",
            got=f"attributes {attributes}",
            expected="refinement_level from 0 to 29",
            do="Add refinement_level = log2(nside).",
        )
    )


def _described_scheme(attributes: dict[str, Any]) -> str:
    scheme = attributes.get("indexing_scheme", attributes.get("healpix_order", "missing"))
    known = {"nested": "nested", "nest": "nested", "ring": "ring"}
    if scheme in known:
        return known[scheme]
    raise DatasetError(
        explain(
            "The order of the cells can't be used",
            got=f"indexing_scheme {scheme!r}",
            expected="'nested' or 'ring'",
            do="Set indexing_scheme, or convert the cells with xdggs.",
        )
    )


def _nested_positions(ids: np.ndarray, mesh: HealpixMesh, scheme: str) -> np.ndarray | None:
    import healpy

    cells = np.arange(mesh.size)
    if ids.dtype.kind not in "iu" or not np.array_equal(np.sort(ids), cells):
        raise DatasetError(
            explain(
                "The coordinate of the cells doesn't number the whole mesh",
                got=f"dtype {ids.dtype}, {len(np.unique(ids))} different numbers",
                expected=f"each of 0 … {mesh.size - 1} once",
                do="Write the cell numbers there, or drop the coordinate if the cells are in order.",
            )
        )
    wanted = cells if scheme == "nested" else healpy.nest2ring(mesh.nside, cells)
    positions = np.argsort(ids)[wanted]
    return None if np.array_equal(positions, cells) else positions


# ------------------------------------------------------------------------------------------- regridding


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
    options = _Options(_check_method(method), _check_fraction(max_missing), bool(missing_fraction))

    def regrid(data: xr.Dataset) -> xr.Dataset:
        data, source, dims = _source(data, wanted="latitude/longitude")
        return _regrid_dataset(data, _Plan(source, dims, target, ("cell",), options), mesh_coordinates(nside))

    return _on_dataset(obj, regrid)


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
    options = _Options(_check_method(method), _check_fraction(max_missing), bool(missing_fraction))
    coordinates = _target_coordinates(grid, target)

    def regrid(data: xr.Dataset) -> xr.Dataset:
        data, source, dims = _source(data, "HEALPix", nside, indexing_scheme)
        names = (target.latitude_name, target.longitude_name)
        return _regrid_dataset(data, _Plan(source, dims, target, names, options), coordinates)

    return _on_dataset(obj, regrid)


class _Options(NamedTuple):
    method: Method
    max_missing: float
    missing_fraction: bool


def _check_method(method: Any) -> Method:
    if method in _METHODS:
        return method
    raise ArgumentError(explain(f"method={method!r} is not known", expected=" or ".join(map(repr, _METHODS))))


def _check_fraction(value: Any) -> float:
    if isinstance(value, int | float | np.number) and 0 <= value <= 1:
        return float(value)
    raise ArgumentError(explain(f"max_missing={value!r} can't be used", expected="a fraction from 0 to 1"))


def _on_dataset(obj: XarrayObject, regrid: Callable[[xr.Dataset], xr.Dataset]) -> XarrayObject:
    if isinstance(obj, xr.Dataset):
        return regrid(obj)
    if not isinstance(obj, xr.DataArray):
        got = type(obj).__name__
        raise ArgumentError(explain("Only xarray objects are regridded", got=got, expected="a Dataset or DataArray"))
    data = regrid(obj.to_dataset(name=_DATA_NAME))
    fraction, named = f"{_DATA_NAME}_missing_fraction", f"{obj.name or 'field'}_missing_fraction"
    if fraction in data:
        data = data.rename({fraction: named}).set_coords(named)
        data[named].attrs["long_name"] = f"missing fraction of {obj.name or 'field'}"
        data[_DATA_NAME].attrs["ancillary_variables"] = _appended(obj.attrs.get("ancillary_variables"), named)
    return data[_DATA_NAME].rename(obj.name)


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


def no_mesh(data: xr.Dataset) -> str:
    """What to say of an object that is on neither kind of grid."""
    bare = {dim: size for dim, size in data.sizes.items() if dim in _MESH_DIMS}
    if bare:
        return explain(
            "The cells have no description",
            got=f"dimension {', '.join(f'{dim!r} of {size}' for dim, size in bare.items())}, "
            "without grid_mapping_name='healpix'",
            expected="nside and the order of the cells",
            do="Pass nside=… and indexing_scheme='nested' or 'ring', or assign mesh_coordinates(nside).",
        )
    return explain(
        "No HEALPix mesh is on this object",
        got=f"dimensions {tuple(data.sizes)}",
        expected="a variable with grid_mapping_name='healpix', or a coordinate with grid_name='healpix'",
        do="Use to_healpix for data on latitude/longitude.",
    )


def _target_coordinates(grid: Any, target: LatLonGrid) -> dict[Any, xr.Variable]:
    coordinates: dict[Any, xr.Variable] = dict(target.coordinates())
    if isinstance(grid, xr.Dataset | xr.DataArray):
        for name in find_latlon(grid):
            own = grid[name].variable
            # the caller's own dtype and attributes, so that results align with the grid's dataset
            if own.size == coordinates[str(name)].size:
                coordinates[str(name)] = xr.Variable((str(name),), own.values, own.attrs, own.encoding)
    return coordinates


class _Plan(NamedTuple):
    """From which grid and dimensions to which others, and how."""

    source: Grid
    dims: tuple[Hashable, ...]
    target: Grid
    target_dims: tuple[str, ...]
    options: _Options

    def touches(self, variable: xr.Variable) -> bool:
        return bool(set(self.dims) & set(variable.dims))


def _regrid_dataset(data: xr.Dataset, plan: _Plan, coordinates: dict[Any, xr.Variable]) -> xr.Dataset:
    gone = {name for name, variable in data.variables.items() if plan.touches(variable)}
    gone |= _grid_description(data, plan)
    _check_unused((set(data.variables) - gone) | (set(data.dims) - set(plan.dims)), *coordinates)
    new: dict[Hashable, xr.Variable] = {}
    for name in data.data_vars:
        field = data[name].variable
        if not plan.touches(field):
            new |= {} if name in gone else {name: field}
        elif not _is_bounds(data, name, plan):
            new |= _regridded(name, field, plan, taken=set(data.variables))
    out = data.drop_vars(gone | set(data.data_vars)).assign_coords(coordinates).assign(new)
    out.encoding = {key: value for key, value in data.encoding.items() if key != "source"}
    return out


def _regridded(name: Hashable, field: xr.Variable, plan: _Plan, taken: set[Hashable]) -> dict[Hashable, xr.Variable]:
    """The new variable, and its missing fraction if it is wanted, by name."""
    label = "the DataArray" if name == _DATA_NAME else repr(name)
    new: dict[Hashable, xr.Variable] = {name: _regrid_variable(field, label, plan)}
    if plan.options.missing_fraction:
        fraction = f"{name}_missing_fraction"
        _check_unused(taken, fraction)
        new[name].attrs["ancillary_variables"] = _appended(field.attrs.get("ancillary_variables"), fraction)
        new[fraction] = _fraction_variable(field, name, plan)
    return new


def _check_unused(taken: set[Hashable], *names: str) -> None:
    for name in names:
        if name in taken:
            raise DatasetError(
                explain(
                    f"The name {name!r} is needed for the result but already in use",
                    do="Rename it on the dataset first.",
                )
            )


def _grid_description(data: xr.Dataset, plan: _Plan) -> set[Hashable]:
    """Names of the grid mappings that describe the old grid."""
    horizontal = [variable for variable in data.variables.values() if plan.touches(variable)]
    notes = [str(note.get("grid_mapping", "")) for v in horizontal for note in (v.attrs, v.encoding)]
    # also the long form "crs: lat lon"
    words = {word for note in notes for word in note.replace(":", " ").split()}
    kinds = {name: str(variable.attrs.get("grid_mapping_name", "")) for name, variable in data.variables.items()}
    return {name for name, kind in kinds.items() if kind == "healpix" or (kind and name in words)}


def _is_bounds(data: xr.Dataset, name: Hashable, plan: _Plan) -> bool:
    """Whether a variable holds the bounds of an old horizontal coordinate."""
    axes = [variable for variable in data.variables.values() if plan.touches(variable)]
    return any(str(name) in map(str, (axis.attrs.get("bounds"), axis.encoding.get("bounds"))) for axis in axes)


def _regrid_variable(field: xr.Variable, label: str, plan: _Plan) -> xr.Variable:
    method = plan.options.method
    _check_field(field, label, plan.dims, method)
    dtype = field.dtype if method == "nearest" else _result_dtype(field.dtype)
    out = _apply(_Kernel(plan.source, plan.target, method, plan.options.max_missing, label), field, plan, dtype)
    out.attrs = _new_attributes(field, plan)
    out.encoding = _new_encoding(field, dtype)
    return out


def _fraction_variable(field: xr.Variable, name: Hashable, plan: _Plan) -> xr.Variable:
    kernel = _Kernel(plan.source, plan.target, plan.options.method, 1.0, repr(name), missing_fraction=True)
    out = _apply(kernel, field, plan, np.dtype(np.float64))
    out.attrs = {"long_name": f"missing fraction of {name}", "units": "1"} | _mapping(plan)
    return out


def _mapping(plan: _Plan) -> dict[str, str]:
    return {"grid_mapping": "crs"} if isinstance(plan.target, HealpixMesh) else {}


@dataclass(frozen=True)
class _Kernel:
    """What runs on each chunk: small to send to workers, which keep the operator themselves."""

    source: Grid
    target: Grid
    method: Method
    max_missing: float
    label: str
    missing_fraction: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        weights = regrid_weights(self.source, self.target, self.method)
        if self.missing_fraction:
            return weights.missing_fraction(values)
        try:
            return weights.apply(values, self.max_missing)
        except DatasetError as error:
            raise DatasetError(f"Can't regrid {self.label}: {error}") from None


def _apply(kernel: _Kernel, field: xr.Variable, plan: _Plan, dtype: np.dtype) -> xr.Variable:
    if field.chunks is not None:
        field = field.chunk({dim: -1 for dim in plan.dims})
    sizes = dict(zip(plan.target_dims, plan.target.shape, strict=True))
    out = xr.apply_ufunc(
        kernel,
        field,
        input_core_dims=[list(plan.dims)],
        output_core_dims=[list(plan.target_dims)],
        exclude_dims=set(plan.dims),
        dask="parallelized",
        output_dtypes=[dtype],
        dask_gufunc_kwargs={"output_sizes": sizes},
    )
    others = [dim for dim in field.dims if dim not in plan.dims]
    place = min(field.dims.index(dim) for dim in plan.dims)
    return out.transpose(*others[:place], *plan.target_dims, *others[place:])


def _check_field(field: xr.Variable, label: str, dims: tuple[Hashable, ...], method: Method) -> None:
    lacking = [dim for dim in dims if dim not in field.dims]
    if lacking:
        raise DatasetError(
            explain(
                f"{label} has only one of the horizontal dimensions",
                got=f"dims {field.dims}",
                expected=f"both {dims[0]!r} and {dims[-1]!r}, or none",
                do="Drop it, or broadcast it along the other one.",
            )
        )
    if method == "nearest":
        return
    flags = any(key in field.attrs for key in ("flag_values", "flag_masks", "flag_meanings"))
    if field.dtype.kind not in "fiu" or flags or str(field.attrs.get("standard_name")) in ("soil_type", "area_type"):
        raise DatasetError(
            explain(
                f"{label} has no values that can be averaged",
                got=f"dtype {field.dtype}" + (" with flag attributes" if flags else ""),
                expected="numbers that mean a quantity",
                do=f"Use method='nearest' for it, or drop it before method={method!r}.",
            )
        )


def _result_dtype(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def _appended(words: str | None, word: str) -> str:
    return word if not words else f"{words} {word}"


def _new_attributes(field: xr.Variable, plan: _Plan) -> dict[str, Any]:
    stale = ("grid_mapping", "actual_range", "cell_methods")
    attributes = {key: value for key, value in field.attrs.items() if key not in stale}
    cell_methods = _without_axes(str(field.attrs.get("cell_methods", "")), plan.dims)
    if plan.options.method == "conservative" and not cell_methods.endswith("area: mean"):
        cell_methods = f"{cell_methods} area: mean".strip()
    return attributes | ({"cell_methods": cell_methods} if cell_methods else {}) | _mapping(plan)


def _without_axes(cell_methods: str, dims: tuple[Hashable, ...]) -> str:
    """`lat: lon: mean` written as `area: mean`: CF allows no names of dimensions that are gone."""
    if len(dims) < 2:
        return cell_methods
    first, second = (re.escape(str(dim)) for dim in dims)
    return re.sub(rf"\b(?:{first}: *{second}:|{second}: *{first}:)", "area:", cell_methods)


# Chunks, shapes and lists of coordinates describe the old array
_KEPT_ENCODING = (
    *("dtype", "_FillValue", "missing_value", "scale_factor", "add_offset", "units", "calendar"),
    *("zlib", "complevel", "shuffle", "fletcher32", "compression", "compressors", "filters"),
    *("quantize_mode", "significant_digits", "least_significant_digit"),
)
_PACKING = ("dtype", "_FillValue", "missing_value", "scale_factor", "add_offset", "filters")


def _new_encoding(field: xr.Variable, dtype: np.dtype) -> dict[str, Any]:
    kept = {key: value for key, value in field.encoding.items() if key in _KEPT_ENCODING}
    if dtype == field.dtype:
        return kept
    # integers that became averages must not be rounded when they are written
    return {key: value for key, value in kept.items() if key not in _PACKING}
