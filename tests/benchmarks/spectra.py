"""What do spectra cost, and does their memory grow with the number of fields?

``OMP_NUM_THREADS=1 python tests/benchmarks/spectra.py`` prints times of one run, as multiples of a copy of the same
fields in float64, and the peak memory of processes that read 1 ×, 4 × and 16 × as many fields from Zarr.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import healpy
import numpy as np
import xarray as xr

from xmosaic.diagnostics.spectra import spectra
from xmosaic.grid import LatLonGrid
from xmosaic.healpix import mesh_coordinates

FIELDS = 82


def noise(fields: int, nlon: int, nlat: int) -> xr.DataArray:
    grid = LatLonGrid.equiangular(nlon, nlat)
    values = np.random.default_rng(0).normal(size=(fields, nlat, nlon)).astype(np.float32)
    return xr.DataArray(values, dims=("level", "latitude", "longitude"), coords=grid.coordinates(), name="temperature")


def on_mesh(fields: int, nside: int) -> xr.DataArray:
    values = np.random.default_rng(0).normal(size=(fields, 12 * nside**2)).astype(np.float32)
    attrs = {"grid_mapping": "crs"}
    return xr.DataArray(values, dims=("level", "cell"), coords=mesh_coordinates(nside), name="temperature", attrs=attrs)


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def row(what: str, function: Callable[[], object], unit: float, fields: int) -> None:
    taken = seconds(function)
    print(f"| {what} | {fields} | {taken:.3f} s | {taken / unit:.0f} × |", flush=True)


def times() -> None:
    print("| what | fields | time | copies to float64 |\n|---|---|---|---|")
    grid = noise(FIELDS, 240, 121)
    spectra(grid[:1])  # imports
    copy = seconds(lambda: np.array(grid.values, dtype=np.float64))
    wind = xr.Dataset({"u": grid, "v": grid.roll(longitude=50)})
    row("121 × 240, total", lambda: spectra(grid), copy, FIELDS)
    row("121 × 240, zonal", lambda: spectra(grid, kind="zonal"), copy, FIELDS)
    row("121 × 240, kinetic energy", lambda: spectra(wind, variables="kinetic_energy"), copy, FIELDS)
    ensemble = grid.rename(level="number")
    row("121 × 240, spread of 82 members", lambda: spectra(ensemble, of="spread"), copy, FIELDS)
    few = noise(4, 1440, 721)
    copy = seconds(lambda: np.array(few.values, dtype=np.float64))
    row("721 × 1440, total", lambda: spectra(few), copy, 4)
    mesh = on_mesh(8, 64)
    copy = seconds(lambda: np.array(mesh.values, dtype=np.float64))
    row("nside 64, total", lambda: spectra(mesh), copy, 8)
    row("nside 64, healpy.anafast alone", lambda: [healpy.anafast(x.astype(float)) for x in mesh.values], copy, 8)
    wind = xr.Dataset({"u": mesh, "v": mesh + 1})
    row("nside 64, kinetic energy", lambda: spectra(wind, variables="kinetic_energy"), copy, 8)


def peak(store: str, lazy: bool) -> None:
    """Print this process's peak memory before and after the spectra of a store [MB]."""

    def now() -> float:
        # ru_maxrss would begin with the parent's
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3

    ds = xr.open_zarr(store, consolidated=False)
    ds = ds if lazy else ds.load()
    spectra(ds.isel(time=[0])).compute()
    before = now()
    spectra(ds).compute()
    print(f"{before:.0f} {now():.0f}")


def memory() -> None:
    print("\n| fields | size | array | peak before | peak after |\n|---|---|---|---|---|")
    for starts in (8, 32, 128):
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "fields.zarr")
            ds = noise(13, 240, 121).expand_dims(time=starts).chunk(time=1).to_dataset()
            ds.assign_coords(time=np.arange(starts)).to_zarr(store, consolidated=False)
            for how in ("lazy", "eager"):
                call = [sys.executable, __file__, store, how]
                before, after = subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()
                print(f"| {13 * starts} | {ds.nbytes / 1e6:.0f} MB | {how} | {before} MB | {after} MB |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        peak(sys.argv[1], sys.argv[2] == "lazy")
    else:
        times()
        memory()
