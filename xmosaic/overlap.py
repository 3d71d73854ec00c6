"""Exact overlap areas of HEALPix cells and of latitude/longitude cells with latitude/longitude cells."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .grid import LatLonGrid, wrap_longitude

if TYPE_CHECKING:
    import scipy.sparse

# Larger steps are faster, at about 200 bytes each
_STRIPS_AT_ONCE = 500_000
_CELLS_AT_ONCE = 1 << 17

# Entries this small (relative to the cell) are rounding errors of touching cells
SLIVER = 1e-14


# --------------------------------------------------------------------------------- exact overlap areas
#
# HEALPix is drawn on a plane (x, y) where every cell is a square standing on its corner and |y| = 45° is
# |sin φ| = 2/3. In the belt x is the longitude and y = 67.5° z; in the caps, at the distance v = 90° − |y|
# from the pole, x − x₀ = (λ − λ₀)·v/45° with λ₀ the middle of the face, and z = ±(1 − (v/45°)²/3).
# So, with the width s(v) = 1 (belt) or v/45° (caps) of a degree of longitude on the plane,
#
#     dz = s dv / 67.5°      and      (λ − λ₀)·s = intercept + slope·v    on each edge of a cell.
#
# A cell is cut along its horizontal diagonal into halves, each in one zone only, and a half is what lies
# between two such edges. Its overlap with the rectangle [λ₁, λ₂] × [z₁, z₂] is the integral over dz of
# clip(east edge, λ₁, λ₂) − clip(west edge, λ₁, λ₂). Between the points where an edge crosses λ₁ or λ₂ the
# integrand times s is linear in v: the midpoint rule is exact. Corners of cells are multiples of 45°/nside and
# thus without rounding.

_FACE_ROW = np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])
_FACE_COLUMN = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])


class _Halves(NamedTuple):
    """Half cells of one zone: between two edges (λ − λ₀)·s = intercept ± slope·v, for v from low to high."""

    cell: np.ndarray
    meridian: np.ndarray  # λ₀ [degrees]
    low: np.ndarray  # [degrees]
    high: np.ndarray
    west: np.ndarray  # intercepts [degrees]
    east: np.ndarray
    slope: np.ndarray  # of the eastern edge; the western one has the opposite

    def take(self, index: np.ndarray) -> _Halves:
        return _Halves(*(field[index] for field in self))


def _scale(v: np.ndarray, cap: bool) -> np.ndarray | float:
    return v / 45.0 if cap else 1.0


def _halves(nside: int, cells: np.ndarray, zone: str) -> _Halves:
    import healpy

    ix, iy, face = (part.astype(np.int64) for part in healpy.pix2xyf(nside, cells, nest=True))
    x = _FACE_COLUMN[face] * nside + ix - iy
    y = (2 - _FACE_ROW[face]) * nside + ix + iy + 1
    v = {"belt": y, "north": 2 * nside - y, "south": 2 * nside + y}[zone]
    # any meridian does in the belt; from the cell's own, differences of longitudes are free of rounding
    meridian = x if zone == "belt" else _FACE_COLUMN[face] * nside
    pieces = []
    for slope in (1, -1):
        tip = v - slope
        inside = (np.minimum(tip, v) >= (-nside if zone == "belt" else 0)) & (np.maximum(tip, v) <= nside)
        west, east = x - meridian + slope * tip, x - meridian - slope * tip
        bounds = (np.minimum(tip, v), np.maximum(tip, v))
        degrees = (field[inside] * (45.0 / nside) for field in (meridian, *bounds, west, east))
        pieces.append((cells[inside], *degrees, np.full(inside.sum(), float(slope))))
    return _Halves(*(np.concatenate(field) for field in zip(*pieces, strict=True)))


def _row_edges(grid: LatLonGrid, zone: str) -> np.ndarray:
    """Edges of the rows as v [degrees], ascending; from south to north but for the northern cap."""
    latitude = grid.latitude_edges()
    if zone == "belt":
        return 67.5 * np.sin(np.deg2rad(latitude))
    colatitude = 90.0 - latitude[::-1] if zone == "north" else 90.0 + latitude
    # 45·sqrt(3 (1 − |z|)), written so that small caps keep all digits
    return 45.0 * np.sqrt(6.0) * np.sin(np.deg2rad(colatitude) / 2)


def _expand(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All integers start[k] … stop[k] − 1, and the k each belongs to."""
    count = np.maximum(stop - start, 0)
    owner = np.repeat(np.arange(count.size), count)
    return owner, np.arange(owner.size) - np.repeat(np.cumsum(count) - count - start, count)


def _longitude_span(half: _Halves, cap: bool) -> tuple[np.ndarray, np.ndarray]:
    """Westernmost and easternmost longitude of the half cells [degrees]; edges are monotonic."""
    corners = []
    for v in (half.low, half.high):
        with np.errstate(divide="ignore", invalid="ignore"):
            west = (half.west - half.slope * v) / _scale(v, cap)
            east = (half.east + half.slope * v) / _scale(v, cap)
        # only the four cells around a pole reach v = 0, and there they fill their face
        corners.append((np.where(v > 0, west, -45.0), np.where(v > 0, east, 45.0)) if cap else (west, east))
    west, east = np.minimum(corners[0][0], corners[1][0]), np.maximum(corners[0][1], corners[1][1])
    return half.meridian + west, half.meridian + east


def _clipped_integral(
    intercept: np.ndarray, slope: np.ndarray, half: _Halves, west: np.ndarray, east: np.ndarray, cap: bool
) -> np.ndarray:
    """∫ clip(λ(v) − west, 0, east − west) s dv along an edge [degrees²]; west and east are relative to λ₀."""
    low, high = half.low, half.high

    def ahead(v: np.ndarray, longitude: np.ndarray) -> np.ndarray:
        return intercept + slope * v - longitude * _scale(v, cap)

    def stretch_beyond(longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        first, last = ahead(low, longitude), ahead(high, longitude)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = low + (high - low) * (first / (first - last))
        return first > 0, last > 0, crossing, longitude

    def interval(first: np.ndarray, last: np.ndarray, crossing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = np.where(first, low, np.where(last, crossing, high))
        return start, np.where(last, high, np.where(first, crossing, low))

    past_west, past_east = stretch_beyond(west), stretch_beyond(east)
    start, stop = interval(*past_west[:3])
    before, until = interval(~past_east[0], ~past_east[1], past_east[2])
    start, stop = np.maximum(start, before), np.minimum(stop, until)
    between = ahead((start + stop) / 2, west) * np.maximum(stop - start, 0.0)
    start, stop = interval(*past_east[:3])
    beyond = (east - west) * _scale((start + stop) / 2, cap) * np.maximum(stop - start, 0.0)
    return between + beyond


def _strips(grid: LatLonGrid, half: _Halves, zone: str) -> Iterator[tuple[_Halves, np.ndarray, np.ndarray]]:
    """Half cells cut by rows, with row and column (turns counted on) of the rectangles they meet, in portions."""
    edges, columns = _row_edges(grid, zone), grid.longitude_edges()[:-1]
    nlat, nlon = grid.shape
    first = np.clip(np.searchsorted(edges, half.low, side="right") - 1, 0, nlat - 1)
    owner, row = _expand(first, np.clip(np.searchsorted(edges, half.high, side="left"), 1, nlat))
    cut = half.take(owner)
    cut = cut._replace(low=np.maximum(cut.low, edges[row]), high=np.minimum(cut.high, edges[row + 1]))
    row = nlat - 1 - row if zone == "north" else row
    turns = np.concatenate([columns + 360.0 * turn for turn in range(-2, 3)])
    west, east = _longitude_span(cut, cap=zone != "belt")
    # the margin finds columns that are touched by rounding only, so that nothing is lost between two
    first = np.searchsorted(turns, west - 1e-9, side="right") - 1
    last = np.searchsorted(turns, east + 1e-9, side="left")
    total = np.cumsum(last - first)
    portions = np.searchsorted(total, np.arange(_STRIPS_AT_ONCE, total[-1] if total.size else 0, _STRIPS_AT_ONCE))
    for part in np.split(np.arange(total.size), portions):
        owner, column = _expand(first[part], last[part])
        yield cut.take(part[owner]), row[part[owner]], column - 2 * nlon


def _zone_overlaps(grid: LatLonGrid, nside: int, cells: np.ndarray, zone: str) -> Iterator[tuple[np.ndarray, ...]]:
    """Cell, point (row·nlon + column of the sorted grid), area [sr] of the overlaps."""
    edges, cap, nlon = grid.longitude_edges(), zone != "belt", grid.shape[1]
    for half, row, column in _strips(grid, _halves(nside, cells, zone), zone):
        turn, column = np.divmod(column, nlon)
        meridian = half.meridian - 360.0 * turn
        west, east = edges[column] - meridian, edges[column + 1] - meridian
        area = _clipped_integral(half.east, half.slope, half, west, east, cap)
        area -= _clipped_integral(half.west, -half.slope, half, west, east, cap)
        some = area > 0
        yield half.cell[some], (row * nlon + column)[some], area[some] * (np.deg2rad(1.0) / 67.5)


@lru_cache(maxsize=2)
def mesh_overlaps(grid: LatLonGrid, nside: int) -> scipy.sparse.csr_array:
    """Area of each mesh cell in each grid cell [sr]: (cell, latitude·longitude in the grid's own order)."""
    import scipy.sparse

    size = 12 * nside**2
    blocks = []
    for start in range(0, size, _CELLS_AT_ONCE):
        cells = np.arange(start, min(start + _CELLS_AT_ONCE, size))
        parts = [part for zone in ("belt", "north", "south") for part in _zone_overlaps(grid, nside, cells, zone)]
        cell, point, area = (np.concatenate(field) for field in zip(*parts, strict=True))
        shape = (cells.size, grid.shape[0] * grid.shape[1])
        block = scipy.sparse.coo_array((area, (cell - start, own_order(grid)[point])), shape=shape).tocsr()
        blocks.append(_without_slivers(block, np.pi / (3 * nside**2)))
    return scipy.sparse.vstack(blocks, format="csr")


def _without_slivers(areas: scipy.sparse.csr_array, cell_area: float) -> scipy.sparse.csr_array:
    areas.data[areas.data < SLIVER * min(cell_area, areas.data.max())] = 0.0
    areas.eliminate_zeros()
    return areas


def own_order(grid: LatLonGrid) -> np.ndarray:
    """Flat position in the grid of each point of the sorted grid."""
    rows, columns = np.argsort(grid.latitude), np.argsort(wrap_longitude(grid.longitude))
    return (rows[:, None] * grid.shape[1] + columns).ravel()


def grid_overlaps(source: LatLonGrid, target: LatLonGrid) -> scipy.sparse.csr_array:
    """Area of each target cell in each source cell [sr], both counted latitude·longitude in their own order."""
    import scipy.sparse

    rows = _lengths(np.sin(np.deg2rad(target.latitude_edges())), np.sin(np.deg2rad(source.latitude_edges())))
    edges = np.deg2rad(source.longitude_edges())
    turns = [edges + turn * 2 * np.pi for turn in (-2, -1, 0, 1, 2)]
    columns = np.sum([_lengths(np.deg2rad(target.longitude_edges()), turned) for turned in turns], axis=0)
    for lengths in (rows, columns):
        lengths[lengths < SLIVER * lengths.max()] = 0.0
    areas = scipy.sparse.kron(scipy.sparse.coo_array(rows), scipy.sparse.coo_array(columns), format="coo")
    places = own_order(target)[areas.coords[0]], own_order(source)[areas.coords[1]]
    return scipy.sparse.coo_array((areas.data, places), shape=areas.shape).tocsr()


def _lengths(target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Length that each target interval shares with each source interval, from ascending edges."""
    high = np.minimum(target[1:, None], source[None, 1:])
    return np.maximum(high - np.maximum(target[:-1, None], source[None, :-1]), 0.0)
