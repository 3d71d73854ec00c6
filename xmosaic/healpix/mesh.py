"""The mesh itself: its size, and where cells, their children and parents are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..errors import ArgumentError, explain
from ..grid import LatLonGrid


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
