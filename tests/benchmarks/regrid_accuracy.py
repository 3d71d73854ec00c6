"""Accuracy and cost of regridding between HEALPix and latitude/longitude: prints the tables of docs/healpix.md.

python tests/benchmarks/regrid_accuracy.py
"""

from __future__ import annotations

import datetime
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import healpy
import numpy as np
import xarray as xr
import xarray_regrid  # noqa: F401  (registers .regrid)

from xmosaic import overlap
from xmosaic.grid import LatLonGrid, parse_grid
from xmosaic.healpix import HealpixMesh, cell_centres, mesh_coordinates, regrid_weights, to_healpix, to_latlon
from xmosaic.healpix.weights import _build_weights

ERA5 = Path(__file__).parents[3] / "shared" / "data" / "era5_tl31_19590102T00.nc"


def gaussian(nlat: int) -> LatLonGrid:
    """Gaussian latitudes from the roots of the Legendre polynomial, unless ERA5's own file is here."""
    if ERA5.exists() and nlat == 32:
        with xr.open_dataset(ERA5) as ds:
            return LatLonGrid.from_dataset(ds)
    latitude = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(nlat)[0]))
    return LatLonGrid(tuple(latitude), tuple(np.arange(2 * nlat) * 180.0 / nlat))


CASES = [
    ("240 × 121", LatLonGrid.equiangular(240, 121), 64),
    ("64 × 32 Gaussian", gaussian(32), 16),
    ("1440 × 721", LatLonGrid.equiangular(1440, 721), 64),
    ("1440 × 721", LatLonGrid.equiangular(1440, 721), 256),
    ("16 × 8, no poles", LatLonGrid.equiangular(16, 8, poles=False), 64),
]


def smooth(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """A field between about -0.1 and 4.1, of total wavenumber up to three."""
    x, y = np.deg2rad(longitude), np.deg2rad(latitude)
    return 2 + np.sin(y) + np.cos(y) * np.cos(x) + 0.5 * np.cos(y) ** 2 * np.sin(2 * x) + np.sin(y) ** 3


def on_grid(grid: LatLonGrid, values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(values, dims=("latitude", "longitude"), coords=grid.coordinates())


def on_mesh(nside: int, values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(values, dims="cell", coords=mesh_coordinates(nside))


def integral(field: xr.DataArray, area: xr.DataArray | float) -> float:
    return float((field.astype("float64") * area).sum())


def integral_error(before: xr.DataArray, after: xr.DataArray, area: tuple) -> float:
    """Change of the integral over the integral of the absolute value."""
    return abs(integral(after, area[1]) - integral(before, area[0])) / integral(abs(before), area[0])


def print_conservation() -> None:
    print(
        "| grid | nside | overlaps | Σ areas, cell | Σ areas, grid cell | constant | "
        + " | ".join(
            f"{field}, {dtype} {way}" for field in ("noise", "positive") for dtype in ("f4", "f8") for way in ("→", "←")
        )
    )
    for name, grid, nside in CASES:
        areas = overlap.mesh_overlaps(grid, nside)
        cell_area, area = np.pi / (3 * nside**2), grid.cell_area()
        parts = [np.abs(areas.sum(axis=1) / cell_area - 1).max()]
        # bincount adds each grid cell in the same order as sum(axis=0) does
        parts.append(np.abs(areas.sum(axis=0) / area.values.ravel() - 1).max())
        ones = on_grid(grid, np.full(grid.shape, 273.15))
        mesh = to_healpix(ones, nside)
        parts.append(max(abs(mesh / 273.15 - 1).max().item(), abs(to_latlon(mesh, grid) / 273.15 - 1).max().item()))
        noise = np.random.default_rng(0).normal(size=grid.shape)
        for values in (noise, np.abs(noise)):
            for dtype in ("float32", "float64"):
                field = on_grid(grid, values).astype(dtype)
                mesh = to_healpix(field, nside)
                back = to_latlon(mesh, grid)
                parts += [integral_error(field, mesh, (area, cell_area)), integral_error(mesh, back, (cell_area, area))]
        print(f"| {name} | {nside} | {areas.nnz:,} | " + " | ".join(f"{part:.0e}" for part in parts) + " |", flush=True)


def print_comparison() -> None:
    """Largest differences from healpy and from a count of fine pixels."""
    for name, grid, nside in CASES[:3]:
        field = on_mesh(nside, np.random.default_rng(1).normal(size=12 * nside**2))
        longitude, latitude = np.meshgrid(grid.longitude, grid.latitude)
        theirs = healpy.get_interp_val(field.values, longitude, latitude, nest=True, lonlat=True)
        print(
            f"bilinear, nside {nside} → {name}, healpy.get_interp_val: "
            f"{abs(to_latlon(field, grid, 'bilinear') - theirs).max().item():.0e}"
        )
    grid, nside = LatLonGrid.equiangular(60, 30, poles=False), 8
    noise = on_grid(grid, np.random.default_rng(0).normal(size=grid.shape))
    exact = to_healpix(noise, nside)
    for factor in (8, 32, 128):
        cells = np.arange(12 * (nside * factor) ** 2)
        longitude, latitude = healpy.pix2ang(nside * factor, cells, nest=True, lonlat=True)
        row = np.clip(np.searchsorted(grid.latitude_edges(), latitude) - 1, 0, 29)
        column = ((longitude + 3) % 360 // 6).astype(int)
        counted = healpy.ud_grade(noise.values[row, column], nside, order_in="NEST", order_out="NEST")
        print(
            f"conservative, 60 × 30 → nside 8, mean over {factor}² pixels per cell, healpy.ud_grade: rms "
            f"{float(np.sqrt(((exact - counted) ** 2).mean())):.1e}"
        )
    # grid cells of 20° are blocks of 8 × 8 cells of 2.5°: their means are known without any regridding
    rows, columns = LatLonGrid.equiangular(144, 72, poles=False), LatLonGrid.equiangular(18, 9, poles=False)
    fine = LatLonGrid(rows.latitude, tuple(np.add(rows.longitude, 1.25)))
    coarse = LatLonGrid(columns.latitude, tuple(np.add(columns.longitude, 10.0)))
    field = on_grid(fine, smooth(*np.meshgrid(fine.longitude, fine.latitude)))
    blocks = (field * fine.cell_area()).coarsen(latitude=8, longitude=8).sum().values
    direct = blocks / coarse.cell_area().values
    theirs = field.regrid.conservative(xr.Dataset(coords=coarse.coordinates()), latitude_coord="latitude")
    print_direct("xarray-regrid", theirs, direct)
    print_direct("to_latlon, grid to grid", to_latlon(field, coarse), direct)
    for source, target in (((360, 181), (240, 121)), ((64, 33), (240, 121)), ((128, 64), (64, 33))):
        before, after = parse_grid(source), parse_grid(target)
        noise = on_grid(before, 10 + np.random.default_rng(0).normal(size=before.shape))
        total = float((noise * before.cell_area()).sum())
        theirs = noise.regrid.conservative(xr.Dataset(coords=after.coordinates()), latitude_coord="latitude")
        for name, result in (("to_latlon", to_latlon(noise, after)), ("xarray-regrid", theirs)):
            kept = float((result.transpose("latitude", "longitude") * after.cell_area()).sum(skipna=False)) / total - 1
            print(f"{source} → {target} {name}: integral {kept:.0e}, NaN at {int(result.isnull().sum())} points")
    for nside in (32, 128, 512):
        print_direct(f"by way of nside {nside}", to_latlon(to_healpix(field, nside), coarse), direct)
    for nside in (16, 64, 256):
        grid = LatLonGrid.equiangular(240, 121)
        longitude, latitude = np.meshgrid(grid.longitude, grid.latitude)
        errors = {
            m: abs(to_healpix(on_grid(grid, smooth(longitude, latitude)), nside, m) - smooth(*cell_centres(nside)))
            .max()
            .item()
            for m in ("conservative", "bilinear", "nearest")
        }
        print(f"240 × 121 → nside {nside}, smooth field against its value at the centre: {errors}")


def print_direct(name: str, means: xr.DataArray, direct: np.ndarray) -> None:
    error = np.abs(means.values - direct)
    print(f"144 × 72 → 18 × 9, {name}, against block means: {error[1:-1].max():.0e}, polar rows {error.max():.0e}")


def print_cost() -> None:
    regrid_weights(HealpixMesh(1), HealpixMesh(2))  # imports healpy and scipy
    cell_centres(1)
    print("| grid | nside | build, conservative | build, bilinear | 82 fields → | 82 fields ← |")
    for name, grid, nside in CASES:
        mesh = HealpixMesh(nside)
        seconds = []
        for method in ("conservative", "bilinear"):
            overlap.mesh_overlaps.cache_clear()
            _build_weights.cache_clear()
            start = time.perf_counter()
            regrid_weights(grid, mesh, method)
            seconds.append(time.perf_counter() - start)
        for source, target in ((grid, mesh), (mesh, grid)):
            weights = regrid_weights(source, target)
            fields = np.random.default_rng(0).normal(size=(82, *source.shape)).astype("float32")
            start = time.perf_counter()
            weights.apply(fields)
            seconds.append(time.perf_counter() - start)
        print(f"| {name} | {nside} | " + " | ".join(f"{s:.2f} s" for s in seconds) + " |", flush=True)
    print(f"largest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def print_large() -> None:
    cell_centres(1)
    for nside in (512, 1024):
        start = time.perf_counter()
        weights = regrid_weights(LatLonGrid.equiangular(1440, 721), HealpixMesh(nside))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = time.perf_counter() - start
        print(f"1440 × 721, nside {nside}: {weights.matrix.nnz:,} overlaps, {seconds:.1f} s, {memory:.1f} GiB")


if __name__ == "__main__":
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "xarray", "healpy", "xarray-regrid"))
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, {packages}"
    )
    if sys.argv[1:] == ["large"]:
        print_large()
        sys.exit()
    print_cost()
    print_conservation()
    print_comparison()
