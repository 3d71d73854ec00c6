"""Points on the sphere as unit vectors: no pole and no date line is special."""

from __future__ import annotations

from typing import Any

import numpy as np

# ECMWF's sphere, as in the spectra [m]
EARTH_RADIUS = 6_371_229.0


def unit(latitude: Any, longitude: Any) -> np.ndarray:
    """Unit vectors of points [degrees], dims (..., 3): x to 0° E, y to 90° E, z to the north pole."""
    phi, lam = np.deg2rad(np.asarray(latitude, float)), np.deg2rad(np.asarray(longitude, float))
    return np.stack(np.broadcast_arrays(np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)), axis=-1)


def degrees(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude [degrees, within -180 … 180] of vectors, dims (..., 3)."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.rad2deg(np.arctan2(y, x))


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Great-circle angle [radian] between unit vectors, exact to rounding at any distance."""
    # chords: the arc cosine loses half of the digits at small angles
    return 2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))


def frame(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors to the east and to the north at each point; at the poles those of longitude 0."""
    latitude, longitude = (np.deg2rad(values) for values in degrees(points))
    # at a pole the hypotenuse is rounding noise, and so would be the longitude
    longitude = np.where(np.hypot(points[..., 0], points[..., 1]) < 1e-12, 0.0, longitude)
    sin, cos = np.sin(longitude), np.cos(longitude)
    east = np.stack([-sin, cos, np.zeros_like(sin)], axis=-1)
    north = np.stack([-np.sin(latitude) * cos, -np.sin(latitude) * sin, np.cos(latitude)], axis=-1)
    return east, north


def log_map(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Tangent vector at `start` that leads to `end` along the great circle; its length is the angle [radian]."""
    across = end - (start * end).sum(-1, keepdims=True) * start
    length = np.linalg.norm(across, axis=-1, keepdims=True)
    return across * (angle(start, end)[..., None] / np.maximum(length, 1e-300))


def exp_map(start: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """Point reached from `start` along a tangent vector; the inverse of `log_map`."""
    length = np.linalg.norm(tangent, axis=-1, keepdims=True)
    point = np.cos(length) * start + np.sinc(length / np.pi) * tangent
    return point / np.linalg.norm(point, axis=-1, keepdims=True)


def between(start: np.ndarray, end: np.ndarray, fraction: Any) -> np.ndarray:
    """Point a fraction of the way along the great circle."""
    return exp_map(start, np.asarray(fraction, float)[..., None] * log_map(start, end))


def plane(origin: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """East and north coordinates [radian] of points in the azimuthal equidistant map around `origin`."""
    tangent, (east, north) = log_map(origin, points), frame(origin)
    return (tangent * east).sum(-1), (tangent * north).sum(-1)
