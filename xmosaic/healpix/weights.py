"""The weights of each method, in both directions, as sparse matrices; built once and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArgumentError, explain
from ..grid import LatLonGrid, wrap_longitude
from ..overlap import SLIVER, grid_overlaps, mesh_overlaps, own_order
from .mesh import Grid, HealpixMesh, cell_centres, cells_at, children, parents
from .operator import Method, RegridWeights, check_method

if TYPE_CHECKING:
    import scipy.sparse

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
    check_method(method)
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
