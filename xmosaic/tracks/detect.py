"""Centres of lows in one field, and what the other fields say around them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .mesh import Mesh
from .sphere import angle, exp_map, frame, plane

_SECTORS = 8
# Points within this many spacings of the lowest one take part in the fit, so many times
_FIT, _REFITS = 2.3, 3


@dataclass(frozen=True)
class Criteria:
    """What counts as a centre; angles in radian, see `tracks` for the rest."""

    min_depth: float
    contour_radius: float
    separation: float
    wind_radius: float
    core_radius: float
    environment: tuple[float, float]
    steering_radius: tuple[float, float]
    minimum: dict[str, float]


@dataclass
class Fields:
    """Values at the points of a mesh at one time; those that the forecast hasn't are None."""

    pressure: np.ndarray
    wind: np.ndarray | None = None
    vorticity: np.ndarray | None = None
    temperature: np.ndarray | None = None
    steering: np.ndarray | None = None


@dataclass
class Centres:
    """Centres at one time: unit vectors, dims (centre, 3), and values of each, dims (centre)."""

    points: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    steering: np.ndarray | None = None  # (centre, 3) [m s-1]

    def take(self, which: np.ndarray) -> Centres:
        """Some of them."""
        steering = None if self.steering is None else self.steering[which]
        return Centres(self.points[which], {n: v[which] for n, v in self.values.items()}, steering)

    def __len__(self) -> int:
        return len(self.points)


def find_centres(mesh: Mesh, fields: Fields, criteria: Criteria, near: tuple[np.ndarray, float] | None) -> Centres:
    """Closed lows of a field.

    Parameters
    ----------
    mesh : Mesh
    fields : Fields
    criteria : Criteria
    near : (unit vector, angle [radian]), optional
        Look only there.

    Returns
    -------
    Centres
    """
    lows = _lowest_of_neighbours(mesh, fields.pressure)
    if near is not None:
        # the fit moves a centre by up to one spacing
        lows = lows[angle(mesh.points[lows], near[0]) <= near[1] + mesh.spacing]
    lows = _closed(mesh, fields.pressure, lows, criteria)
    points, pressure = _fitted(mesh, fields.pressure, lows)
    centres = Centres(points, {"mean_sea_level_pressure": pressure})
    if near is not None:
        centres = centres.take(angle(points, near[0]) <= near[1])
    _describe(mesh, fields, centres, criteria)
    kept = np.ones(len(centres), bool)
    for name, least in criteria.minimum.items():
        kept &= _strength(name, centres) >= least
    return centres.take(kept)


def _strength(name: str, centres: Centres) -> np.ndarray:
    value = centres.values[name]
    return np.where(centres.points[:, 2] < 0, -value, value) if name.startswith("relative_vorticity") else value


def _lowest_of_neighbours(mesh: Mesh, pressure: np.ndarray) -> np.ndarray:
    filled = np.where(np.isnan(pressure), np.inf, pressure)
    around = filled[mesh.neighbours]
    # in the midst of a plateau no point is a candidate, only at its rim: a field without lows has none
    lowest = np.isfinite(filled) & (filled <= around.min(axis=1)) & (filled < around.max(axis=1))
    return np.flatnonzero(lowest)


def _closed(mesh: Mesh, pressure: np.ndarray, lows: np.ndarray, criteria: Criteria) -> np.ndarray:
    """Those lows that are lowest within the separation and have a rise in every direction around them."""
    owner, point = mesh.balls(mesh.points[lows], max(criteria.separation, criteria.contour_radius))
    apart, value = angle(mesh.points[lows][owner], mesh.points[point]), pressure[point]
    own = pressure[lows][owner]
    # of two equal points the first counts
    lower = (value < own) | ((value == own) & (point < lows[owner]))
    beaten = np.bincount(owner[lower & (apart <= criteria.separation)], minlength=len(lows)) > 0
    x, y = plane(mesh.points[lows][owner], mesh.points[point])
    sector = ((np.arctan2(y, x) / (2 * np.pi) + 0.5) * _SECTORS).astype(int) % _SECTORS
    inside = (apart > 0) & (apart <= criteria.contour_radius) & ~np.isnan(value)
    rise = np.full((len(lows), _SECTORS), -np.inf)
    np.maximum.at(rise, (owner[inside], sector[inside]), (value - own)[inside])
    return lows[~beaten & (rise.min(axis=1, initial=np.inf) >= criteria.min_depth)]


def _fitted(mesh: Mesh, pressure: np.ndarray, lows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest point of the paraboloid through each low and the points around it, and the pressure there.

    Weighted least squares in the azimuthal equidistant map around the lowest grid point. The grid point itself,
    where the fit has no minimum within one spacing.
    """
    origin, own = mesh.points[lows], pressure[lows]
    owner, point = mesh.balls(origin, _FIT * mesh.spacing)
    valid = ~np.isnan(pressure[point])
    owner, point = owner[valid], point[valid]
    x, y = (c / mesh.spacing for c in plane(origin[owner], mesh.points[point]))
    # against the lowest value: the digits are in the differences
    rise, area = pressure[point] - own[owner], mesh.area[point]
    good, found = np.ones(len(lows), bool), np.zeros((3, len(lows)))
    # weights that fall off around the centre itself make the fit fair to a centre between the points
    for _ in range(_REFITS):
        weight = area * np.exp(-((x - found[0][owner]) ** 2 + (y - found[1][owner]) ** 2))
        last, (again, new) = found, _vertex(x, y, rise, weight, owner, len(lows))
        good &= again
        found = np.where(good, new, last)
    dx, dy, lowest = np.where(good, found, 0.0)
    east, north = frame(origin)
    # a small storm is sharper than any paraboloid: what was found on the grid is never made weaker
    lowest = own + np.minimum(lowest, 0.0)
    return exp_map(origin, (dx[:, None] * east + dy[:, None] * north) * mesh.spacing), lowest


def _vertex(
    x: np.ndarray, y: np.ndarray, rise: np.ndarray, weight: np.ndarray, owner: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each fit has a minimum within one spacing, and (x, y, value) of it, dims (3, low)."""
    terms = np.stack([np.ones_like(x), x, y, x * x / 2, x * y, y * y / 2], axis=-1)
    # pairs are sorted by low, and each low has itself
    first = np.searchsorted(owner, np.arange(count))
    normal = np.add.reduceat(weight[:, None, None] * terms[:, :, None] * terms[:, None, :], first, axis=0)
    right = np.add.reduceat((weight * rise)[:, None] * terms, first, axis=0)
    solved = np.einsum("cij,cj->ci", np.linalg.pinv(normal, rcond=1e-10, hermitian=True), right)
    constant, slope_x, slope_y, xx, xy, yy = solved.T
    determinant = xx * yy - xy**2
    with np.errstate(divide="ignore", invalid="ignore"):
        dx, dy = (xy * slope_y - yy * slope_x) / determinant, (xy * slope_x - xx * slope_y) / determinant
        good = (determinant > 0) & (xx > 0) & (np.hypot(dx, dy) <= 1.0)
    good &= np.bincount(owner, minlength=count) >= terms.shape[1]
    return good, np.stack([dx, dy, constant + (slope_x * dx + slope_y * dy) / 2])


def _describe(mesh: Mesh, fields: Fields, centres: Centres, criteria: Criteria) -> None:
    """Add what the other fields say to the values of the centres."""
    values, points = centres.values, centres.points
    if fields.wind is not None:
        values["wind"] = _highest(mesh, fields.wind, points, criteria.wind_radius)
    if fields.vorticity is not None:
        turn = np.where(points[:, 2] < 0, -1.0, 1.0)
        north, south = (_highest(mesh, sign * fields.vorticity, points, criteria.wind_radius) for sign in (1, -1))
        values["relative_vorticity_850"] = turn * np.where(turn > 0, north, south)
    if fields.temperature is not None:
        core = _mean(mesh, fields.temperature[:, None], points, 0.0, criteria.core_radius)
        around = _mean(mesh, fields.temperature[:, None], points, *criteria.environment)
        values["warm_core"] = (core - around)[:, 0]
    if fields.steering is not None:
        flow = _mean(mesh, fields.steering, points, *criteria.steering_radius)
        centres.steering = flow - (flow * points).sum(-1, keepdims=True) * points


def _highest(mesh: Mesh, values: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    owner, point = mesh.balls(centres, radius)
    highest = np.full(len(centres), -np.inf)
    np.fmax.at(highest, owner, values[point])
    return np.where(np.isfinite(highest), highest, np.nan)


def _mean(mesh: Mesh, values: np.ndarray, centres: np.ndarray, inner: float, outer: float) -> np.ndarray:
    """Mean by area of the points between two radii around each centre, dims (centre, ...)."""
    owner, point = mesh.balls(centres, outer)
    inside = angle(centres[owner], mesh.points[point]) >= inner
    inside &= ~np.isnan(values[point]).any(axis=-1)
    owner, point = owner[inside], point[inside]
    total, weight = np.zeros((len(centres), values.shape[1])), np.zeros(len(centres))
    np.add.at(total, owner, mesh.area[point, None] * values[point])
    np.add.at(weight, owner, mesh.area[point])
    return np.where(weight[:, None] > 0, total / np.maximum(weight, 1e-300)[:, None], np.nan)
