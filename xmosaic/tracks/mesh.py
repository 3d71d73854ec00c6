"""The points of a grid or mesh on the sphere, as the tracker sees them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from ..errors import DatasetError, explain
from ..grid import distinct_meridians, wrap_longitude
from ..healpix import cell_centres, find_mesh, to_healpix
from .sphere import EARTH_RADIUS, frame, plane, unit

_NEIGHBOURS = 8
# A gap this many times the usual spacing is the edge of a region
_GAP = 1.5


class Mesh:
    """Points with their areas and neighbours.

    Parameters
    ----------
    points : ndarray, dims (point, 3)
        Unit vectors, each place once.
    area : ndarray, dims (point)
        In any unit; weights of means and fits.
    spacing : float [radian]
        Distance between neighbours where they are widest.
    """

    def __init__(self, points: np.ndarray, area: np.ndarray, spacing: float) -> None:
        self.points, self.area, self.spacing = points, area, spacing

    @cached_property
    def tree(self) -> Any:
        """Search tree over the points."""
        from scipy.spatial import cKDTree

        return cKDTree(self.points)

    @cached_property
    def neighbours(self) -> np.ndarray:
        """The eight nearest points of each point, dims (point, neighbour)."""
        return self.tree.query(self.points, k=_NEIGHBOURS + 1)[1][:, 1:]

    def balls(self, centres: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (centre, point) no further apart than `radius` [radian], sorted by centre."""
        chord = 2 * np.sin(min(radius, np.pi) / 2)
        found = self.tree.query_ball_point(centres, chord, return_sorted=True)
        owner = np.repeat(np.arange(len(centres)), [len(row) for row in found])
        return owner, np.concatenate([np.zeros(0, int), *(np.asarray(row, int) for row in found)])

    def flatten(self, values: np.ndarray) -> np.ndarray:
        """A field in the dataset's own order → values at the points, float64."""
        raise NotImplementedError

    def vectors(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Winds in the dataset's own order → vectors in space at the points, dims (point, 3)."""
        raise NotImplementedError

    def vorticity(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Relative vorticity [s-1] at the points, from winds [m s-1] in the dataset's own order."""
        raise NotImplementedError


class LatLonMesh(Mesh):
    """Latitudes × longitudes, global or of a region, in any order; a row on a pole is one point.

    Parameters
    ----------
    latitude, longitude : ndarray [degrees]
    """

    def __init__(self, latitude: np.ndarray, longitude: np.ndarray) -> None:
        if len(latitude) < 3 or len(longitude) < 3:
            got = f"{len(latitude)} latitudes, {len(longitude)} longitudes"
            raise DatasetError(explain("The grid is too small to track on", got=got, expected="at least 3 of each"))
        self.rows = np.argsort(latitude)
        kept = distinct_meridians(longitude)
        east = wrap_longitude(longitude[kept])
        order = np.argsort(east)
        # a region may lie across 0: start behind the largest gap
        gaps = np.diff(east[order], append=east[order[0]] + 360.0)
        order = np.roll(order, -(int(np.argmax(gaps)) + 1))
        self.columns = kept[order]
        self.latitude, self.longitude = latitude[self.rows], np.rad2deg(np.unwrap(np.deg2rad(east[order])))
        steps = np.diff(self.longitude)
        self.cyclic = bool(gaps.max() < _GAP * np.median(steps))
        self.at_pole = np.abs(self.latitude) > 90.0 - 1e-6
        grid = np.meshgrid(self.latitude, self.longitude, indexing="ij")
        self.keep = np.ones(grid[0].shape, bool)
        self.keep[self.at_pole, 1:] = False
        vectors = unit(*grid)
        self.east, self.north = frame(vectors)
        # at a pole, east is that of the meridian the value belongs to
        lam = np.deg2rad(self.longitude)
        for row in np.flatnonzero(self.at_pole):
            up = np.sign(self.latitude[row])
            self.east[row] = np.stack([-np.sin(lam), np.cos(lam), 0 * lam], axis=-1)
            self.north[row] = np.stack([-up * np.cos(lam), -up * np.sin(lam), 0 * lam], axis=-1)
        area = np.cos(np.deg2rad(grid[0]))
        step = np.deg2rad(np.median(np.diff(self.latitude)))
        # the cap of half a step around the pole, in units of step × longitude step
        area[self.at_pole] = 2 * np.pi * (1 - np.cos(step / 2)) / (step * np.deg2rad(np.median(steps)))
        spacing = np.deg2rad(max(np.median(np.diff(self.latitude)), np.median(steps)))
        super().__init__(vectors[self.keep], area[self.keep], float(spacing))

    @cached_property
    def neighbours(self) -> np.ndarray:
        """Points around each point on the grid; at an edge the point itself, at a pole eight of the nearest row."""
        ids = np.cumsum(self.keep).reshape(self.keep.shape) - 1
        ids[self.at_pole] = ids[self.at_pole, :1]
        rows, columns = (np.arange(n)[:, None] + [-1, 0, 1] for n in ids.shape)
        columns = columns % ids.shape[1] if self.cyclic else np.clip(columns, 0, ids.shape[1] - 1)
        stencil = ids[np.clip(rows, 0, len(ids) - 1)[:, None, :, None], columns[None, :, None, :]]
        around = np.delete(stencil.reshape(*ids.shape, 9), 4, axis=-1)
        for row in np.flatnonzero(self.at_pole):
            eighths = np.arange(_NEIGHBOURS) * ids.shape[1] // _NEIGHBOURS
            around[row, 0] = ids[row + 1 if row == 0 else row - 1, eighths]
        return around[self.keep]

    def _sorted(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float64)[self.rows[:, None], self.columns]

    def _points(self, values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[self.at_pole] = values[self.at_pole].mean(axis=1, keepdims=True)
        return values[self.keep]

    def flatten(self, values: np.ndarray) -> np.ndarray:
        """See `Mesh.flatten`."""
        return self._points(self._sorted(values))

    def vectors(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """See `Mesh.vectors`."""
        return self._points(self._sorted(u)[..., None] * self.east + self._sorted(v)[..., None] * self.north)

    def vorticity(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Centred differences of (1 / a cos φ)(∂v/∂λ − ∂(u cos φ)/∂φ), one-sided at the edges of a region.

        A pole gets the circulation around the nearest row over the area inside.
        """
        u, v = self._sorted(u), self._sorted(v)
        phi, lam = np.deg2rad(self.latitude), np.deg2rad(self.longitude)
        cos = np.cos(phi)[:, None]
        if self.cyclic:
            turn = np.concatenate([[lam[-1] - 2 * np.pi], lam, [lam[0] + 2 * np.pi]])
            eastward = np.gradient(np.concatenate([v[:, -1:], v, v[:, :1]], axis=1), turn, axis=1)[:, 1:-1]
        else:
            eastward = np.gradient(v, lam, axis=1)
        northward = self._northward(u * np.where(self.at_pole[:, None], 0.0, cos))
        with np.errstate(divide="ignore", invalid="ignore"):
            zeta = (eastward - northward) / (EARTH_RADIUS * cos)
        for row in np.flatnonzero(self.at_pole):
            inner, up = (row + 1 if row == 0 else row - 1), np.sign(self.latitude[row])
            cap = 1 - np.sin(abs(phi[inner]))
            zeta[row] = up * u[inner].mean() * np.cos(phi[inner]) / (EARTH_RADIUS * cap) if self.cyclic else np.nan
        return self._points(zeta)

    def _northward(self, values: np.ndarray) -> np.ndarray:
        """∂/∂φ of u cos φ, which is zero at the poles whether there is a row or not."""
        phi, zero = np.deg2rad(self.latitude), np.zeros((1, values.shape[1]))
        near = _GAP * np.median(np.diff(phi))
        south, north = (int(self.cyclic and 1e-7 < np.pi / 2 - abs(phi[row]) < near) for row in (0, -1))
        rows = [*[zero] * south, values, *[zero] * north]
        phi = np.concatenate([[-np.pi / 2] * south, phi, [np.pi / 2] * north])
        return np.gradient(np.concatenate(rows), phi, axis=0)[south : len(phi) - north]


class CellMesh(Mesh):
    """The HEALPix mesh in the dataset's own order of cells.

    Parameters
    ----------
    nside : int
    places : ndarray of int
        Position of each nested cell along the dataset's dimension.
    """

    def __init__(self, nside: int, places: np.ndarray) -> None:
        longitude, latitude = cell_centres(nside)
        points = np.empty((len(places), 3))
        points[places] = unit(latitude, longitude)
        super().__init__(points, np.ones(len(points)), float(np.sqrt(4 * np.pi / len(points))))
        self.east, self.north = frame(points)

    def flatten(self, values: np.ndarray) -> np.ndarray:
        """See `Mesh.flatten`."""
        return np.asarray(values, np.float64)

    def vectors(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """See `Mesh.vectors`."""
        return self.flatten(u)[:, None] * self.east + self.flatten(v)[:, None] * self.north

    @cached_property
    def _slopes(self) -> np.ndarray:
        """Least-squares weights that give (∂/∂x, ∂/∂y) [radian-1] from differences, dims (cell, 2, neighbour)."""
        x, y = plane(self.points[:, None], self.points[self.neighbours])
        return np.linalg.pinv(np.stack([x, y], axis=-1))

    def vorticity(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """∂v/∂x − ∂u/∂y of the wind in each cell's tangent plane, by least squares over the eight neighbours."""
        wind = self.vectors(u, v)
        change = wind[self.neighbours] - wind[:, None]
        along_x, along_y = np.moveaxis(np.einsum("cdn,cnk->cdk", self._slopes, change), 1, 0)
        return ((along_x * self.north).sum(-1) - (along_y * self.east).sum(-1)) / EARTH_RADIUS


def mesh_of(data: xr.Dataset) -> Mesh:
    """The points of a Dataset in canonical dimensions."""
    if "cell" in data.dims:
        mesh = find_mesh(data)
        if mesh is None:
            do = "Add the coordinates of xmosaic.healpix.mesh_coordinates(nside)"
            raise DatasetError(explain("Nothing describes the mesh of 'cell'", do=do))
        # regridding the positions to the same mesh puts them into nested order, whatever order they are in
        own = xr.Dataset({"place": ("cell", np.arange(mesh.size))}, {n: c for n, c in data.coords.items() if _flat(c)})
        own["place"].attrs["grid_mapping"] = "crs"
        return CellMesh(mesh.nside, to_healpix(own, mesh.nside, "nearest")["place"].values.astype(int))
    if missing := [dim for dim in ("latitude", "longitude") if dim not in data.dims or dim not in data.coords]:
        got = f"dimensions {tuple(data.dims)}"
        raise DatasetError(explain(f"Tracks need {' and '.join(missing)}", got=got, expected="a grid or HEALPix cells"))
    return LatLonMesh(*(np.asarray(data[dim].values, np.float64) for dim in ("latitude", "longitude")))


def _flat(coord: xr.DataArray) -> bool:
    return coord.dims in ((), ("cell",))
