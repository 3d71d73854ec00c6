"""Power of fields on the sphere per wavenumber, on plain arrays: which grid allows which transform, and the sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..grid import LatLonGrid, distinct_meridians, wrap_longitude
from ..healpix import locate_mesh

Kind: TypeAlias = Literal["total", "zonal"]
KINDS: tuple[Kind, ...] = ("total", "zonal")
EARTH_RADIUS = 6371.229
"""Radius of the sphere that wavelengths are measured on [km]: that of ECMWF's and NCEP's models in GRIB 2 (shape 6)."""

# Rows and columns may lie this far from where the transform needs them [degrees]: float32 coordinates do.
_SAME_PLACE = 1e-4


@dataclass(frozen=True, eq=False)
class LatLonHarmonics:
    """Spherical harmonics on a grid that has an exact quadrature.

    Parameters
    ----------
    geometry : {"CC", "F1", "GL"}
        ducc0's name: even rows with both poles, even rows half a step off the poles, Gaussian rows.
    rows, columns : ndarray of int
        Positions from north to south and eastward; a repeated meridian is left out.
    """

    geometry: str
    rows: np.ndarray
    columns: np.ndarray

    dims = ("latitude", "longitude")
    wavenumber = "total_wavenumber"

    @property
    def largest(self) -> int:
        """Highest wavenumber: a grid with poles holds one degree less than its rows suggest."""
        by_rows = len(self.rows) - (2 if self.geometry == "CC" else 1)
        return min(by_rows, (len(self.columns) - 1) // 2)

    @property
    def method(self) -> str:
        """What is done, for attributes."""
        return f"spherical harmonics to degree {self.largest}, ducc0 analysis_2d, geometry {self.geometry}"

    def scalar(self, field: np.ndarray) -> np.ndarray:
        """Power per wavenumber of one field, dims (wavenumber)."""
        return _per_degree(self._coefficients(field[None], 0), self.largest)[0]

    def vector(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Half the squared speed per wavenumber of one wind field, dims (rotational and divergent, wavenumber)."""
        # colatitude grows southward
        divergent, rotational = _per_degree(self._coefficients(np.stack([-v, u]), 1), self.largest) / 2
        return np.stack([rotational, divergent])

    def _coefficients(self, maps: np.ndarray, spin: int) -> np.ndarray:
        import ducc0

        maps = maps[:, self.rows][:, :, self.columns]
        # one thread: dask's workers are the parallel ones, and a second one gains nothing on grids of this size
        return ducc0.sht.analysis_2d(map=maps, spin=spin, lmax=self.largest, geometry=self.geometry, nthreads=1)


@dataclass(frozen=True, eq=False)
class MeshHarmonics:
    """Spherical harmonics on the HEALPix mesh, by quadrature of equal weights and three corrections.

    Parameters
    ----------
    nside : int
    cells : ndarray of int
        Position of each cell in ring order.
    """

    nside: int
    cells: np.ndarray

    dims = ("cell",)
    wavenumber = "total_wavenumber"

    @property
    def largest(self) -> int:
        """Highest wavenumber, that of healpy's anafast."""
        return 3 * self.nside - 1

    @property
    def method(self) -> str:
        """What is done, for attributes."""
        return f"spherical harmonics to degree {self.largest}, healpy map2alm with 3 iterations"

    def scalar(self, field: np.ndarray) -> np.ndarray:
        """Power per wavenumber of one field, dims (wavenumber)."""
        import healpy

        found = healpy.map2alm(field[self.cells], lmax=self.largest, iter=3, pol=False)
        return _per_degree(found[None], self.largest)[0]

    def vector(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Half the squared speed per wavenumber of one wind field, dims (rotational and divergent, wavenumber)."""
        import healpy

        maps = [-v[self.cells], u[self.cells]]
        found = np.stack(healpy.map2alm_spin(maps, 1, lmax=self.largest))
        for _ in range(3):  # map2alm_spin has no iterations of its own
            again = healpy.alm2map_spin(list(found), self.nside, 1, self.largest)
            rest = [one - other for one, other in zip(maps, again, strict=True)]
            found += np.stack(healpy.map2alm_spin(rest, 1, lmax=self.largest))
        divergent, rotational = _per_degree(found, self.largest) / 2
        return np.stack([rotational, divergent])


@dataclass(frozen=True, eq=False)
class ZonalFourier:
    """Fourier transform along each latitude, averaged by area.

    Parameters
    ----------
    weights : ndarray, dims (latitude)
        Areas of the rows; they sum to one.
    columns : ndarray of int
        Positions eastward; a repeated meridian is left out.
    """

    weights: np.ndarray
    columns: np.ndarray

    dims = ("latitude", "longitude")
    wavenumber = "zonal_wavenumber"

    @property
    def largest(self) -> int:
        """Highest wavenumber."""
        return len(self.columns) // 2

    @property
    def method(self) -> str:
        """What is done, for attributes."""
        return "one-sided Fourier power along longitude, mean over latitudes weighted by exact cell area"

    def scalar(self, field: np.ndarray) -> np.ndarray:
        """Power per wavenumber of one field, dims (wavenumber)."""
        size = len(self.columns)
        power = self.weights @ (np.abs(np.fft.rfft(field[:, self.columns], axis=-1, norm="forward")) ** 2)
        # wavenumbers m and −m together; the mean and, on even circles, the last one have no second half
        power[1 : (size + 1) // 2] *= 2
        return power

    def vector(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Half the squared speed per wavenumber of one wind field, dims (one, wavenumber)."""
        return (self.scalar(u) + self.scalar(v))[None] / 2


Transform: TypeAlias = LatLonHarmonics | MeshHarmonics | ZonalFourier


def find_transform(obj: xr.Dataset | xr.DataArray, kind: Kind) -> Transform:
    """The transform for the grid or mesh of an object.

    Parameters
    ----------
    obj : Dataset or DataArray, canonical dimensions
    kind : {"total", "zonal"}

    Returns
    -------
    LatLonHarmonics, MeshHarmonics or ZonalFourier

    Raises
    ------
    DatasetError
        Where the grid has no such transform; the text says to which grid to go.
    """
    if kind not in KINDS:
        raise ArgumentError(explain(f"kind={kind!r} is not known", expected="'total' or 'zonal'"))
    if "cell" in obj.dims:
        return _mesh_transform(obj, kind)
    grid = LatLonGrid.from_dataset(obj)
    columns = _even_columns(np.asarray(obj["longitude"].values, dtype=np.float64))
    if kind == "zonal":
        width = grid.cell_area().sum("longitude").values
        return ZonalFourier(width / width.sum(), columns)
    rows = np.argsort(grid.latitude)[::-1]
    found = LatLonHarmonics(_geometry(np.sort(grid.latitude)), rows, columns)
    if found.largest < 1:
        raise DatasetError(explain("The grid is too small for a spectrum", got=repr(grid)))
    return found


def _mesh_transform(obj: xr.Dataset | xr.DataArray, kind: Kind) -> MeshHarmonics:
    found = locate_mesh(obj)
    if found is None:
        raise DatasetError(
            explain(
                "The cells have no description",
                got=f"dimension 'cell' of {obj.sizes['cell']}",
                expected="a variable with grid_mapping_name='healpix'",
                do="Assign xmosaic.healpix.mesh_coordinates(nside)",
            )
        )
    if kind == "zonal":
        raise DatasetError(
            explain(
                "A HEALPix mesh has no zonal spectrum: its rings have different numbers of cells",
                do="Regrid first, such as xmosaic.to_latlon(forecast, 1.5), or take kind='total'",
            )
        )
    import healpy

    in_rings = healpy.ring2nest(found.mesh.nside, np.arange(found.mesh.size))
    return MeshHarmonics(found.mesh.nside, in_rings if found.positions is None else found.positions[in_rings])


def _even_columns(longitude: np.ndarray) -> np.ndarray:
    kept = distinct_meridians(longitude)
    # from a quarter step west of the first: rounding must not take it to the other end of the row
    start = longitude[kept[0]] - 90.0 / len(kept)
    columns = kept[np.argsort(wrap_longitude(longitude[kept] - start), kind="stable")]
    around = wrap_longitude(longitude[columns] - start)
    away = np.abs(around - around[0] - np.arange(len(kept)) * 360.0 / len(kept)).max()
    if away <= _SAME_PLACE:
        return columns
    steps = np.diff(around)
    raise DatasetError(
        explain(
            "Longitudes are not evenly spaced, which a spectrum needs",
            got=f"{len(kept)} meridians, {steps.min():g} to {steps.max():g} degrees apart",
            expected=f"{360 / len(kept):g} degrees",
            do="Regrid first, such as xmosaic.to_latlon(forecast, 1.5)",
        )
    )


def _geometry(latitude: np.ndarray) -> str:
    """Which quadrature the rows allow [ascending]."""
    import ducc0

    size = len(latitude)
    places: dict[str, Callable[[], np.ndarray]] = {
        "CC": lambda: np.linspace(-90.0, 90.0, size),
        "F1": lambda: (np.arange(size) + 0.5) * 180.0 / size - 90.0,
        "GL": lambda: np.sort(90.0 - np.rad2deg(ducc0.misc.GL_thetas(size))),
    }
    for name, rows in places.items():
        if np.abs(latitude - rows()).max() <= _SAME_PLACE:
            return name
    steps = np.diff(latitude)
    raise DatasetError(
        explain(
            "These latitudes have no spherical harmonic transform",
            got=f"{size} rows {latitude[0]:g} … {latitude[-1]:g}, {steps.min():g} to {steps.max():g} degrees apart",
            expected="evenly spaced rows with both poles, or half a step off them, or Gaussian rows",
            do="Regrid first, such as xmosaic.to_latlon(forecast, 1.5), or take kind='zonal'",
        )
    )


@lru_cache(maxsize=8)
def _degrees_and_counts(largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Degree of each coefficient in healpy's order, and 2 where it stands for order −m as well."""
    degrees = np.concatenate([np.arange(order, largest + 1) for order in range(largest + 1)])
    counts = np.full(len(degrees), 2.0)
    counts[: largest + 1] = 1.0
    return degrees, counts


def _per_degree(coefficients: np.ndarray, largest: int) -> np.ndarray:
    """Sum over orders of |a|² / 4π, dims (field, degree)."""
    degrees, counts = _degrees_and_counts(largest)
    power = (coefficients.real**2 + coefficients.imag**2) * (counts / (4 * np.pi))
    return np.stack([np.bincount(degrees, one, minlength=largest + 1) for one in power])


# ------------------------------------------------------------------------------------------------ field by field


@dataclass(frozen=True, eq=False)
class Power:
    """Power of each of many fields: what runs on a chunk.

    Fields are transformed one by one, so that memory doesn't grow with their number.

    Parameters
    ----------
    transform : LatLonHarmonics, MeshHarmonics or ZonalFourier
    vector : bool
        Whether the arrays are u and v.
    spread : bool
        Whether the axis before space is members, of which the power of the deviations from their mean is wanted.
    difference : bool
        Whether the second half of the arrays is subtracted from the first.
    """

    transform: Transform
    vector: bool = False
    spread: bool = False
    difference: bool = False

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Power per wavenumber, dims (..., [part,] wavenumber); NaN where a field isn't finite throughout."""
        arrays = np.broadcast_arrays(*arrays)
        core = len(self.transform.dims) + self.spread
        leading = arrays[0].shape[:-core]
        out = np.empty((*leading, *self.tail))
        for place in np.ndindex(leading):
            out[place] = self._power(*(np.asarray(array[place], dtype=np.float64) for array in arrays))
        return out

    def _power(self, *fields: np.ndarray) -> np.ndarray:
        if not all(np.isfinite(field).all() for field in fields):
            return np.full(self.tail, np.nan)
        if self.difference:
            half = len(fields) // 2
            fields = tuple(one - other for one, other in zip(fields[:half], fields[half:], strict=True))
        if not self.spread:
            return self._of_one(*fields)
        deviations = [field - field.mean(axis=0) for field in fields]
        total: Any = sum(self._of_one(*one) for one in zip(*deviations, strict=True))
        return total / (len(fields[0]) - 1)

    def _of_one(self, *fields: np.ndarray) -> np.ndarray:
        return self.transform.vector(*fields) if self.vector else self.transform.scalar(*fields)

    @property
    def tail(self) -> tuple[int, ...]:
        """Sizes of the result's last dimensions."""
        size = self.transform.largest + 1
        if not self.vector:
            return (size,)
        # rotational and divergent, or one that is not divided
        return (1 if isinstance(self.transform, ZonalFourier) else 2, size)
