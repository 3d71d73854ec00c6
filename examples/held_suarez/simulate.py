"""Simulate the benchmark atmosphere and write it as a WeatherBench2-like Zarr store: ``python simulate.py STORE``.

Held and Suarez (1994) on a Gaussian grid, interpolated to pressure levels there, then coarse-grained by exact areas to
the grid of a model, or with ``--grids 64x33 96x49`` to those of several: STORE_64x33.zarr and so on, from one run.
The core runs in processes of its own (`dynamics.py`), one on each GPU, whose memory is free afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import xmosaic
from xmosaic.grid import LatLonGrid
from xmosaic.variables import cf_attributes

HERE = Path(__file__).parent
FIRST_YEAR = 2001
SURFACE = ("2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "mean_sea_level_pressure")
UPPER = ("geopotential", "temperature", "u_component_of_wind", "v_component_of_wind", "vertical_velocity")
MEANING = {
    "2m_temperature": "temperature of the lowest of 24 layers (sigma 0.979): the set-up has no surface layer",
    "10m_u_component_of_wind": "wind of the lowest of 24 layers (sigma 0.979): the set-up has no surface layer",
    "10m_v_component_of_wind": "wind of the lowest of 24 layers (sigma 0.979): the set-up has no surface layer",
    "mean_sea_level_pressure": "surface pressure: the planet is flat",
    "vertical_velocity": "diagnosed from the continuity equation",
}
# whole numbers of chunks and days
CHUNK_DAYS = 20


@dataclass(frozen=True)
class Settings:
    """What fixes a simulation. Years have 360 days; each trajectory is one year, from a seed of its own."""

    years: int = 12
    days: int = 360
    truncation: int = 63
    minutes: float = 20.0
    spin_truncation: int = 42
    spin_minutes: float = 30.0
    spin_days: int = 200
    settle_days: int = 20
    outputs_per_day: int = 1
    levels: tuple[float, ...] = (100.0, 250.0, 500.0, 700.0, 850.0)
    grids: tuple[str, ...] = ("64x33",)  # longitudes and latitudes, poles among them
    first_seed: int = 0
    transform: str = "fast"
    limit_seconds: float = float("inf")  # trajectories end early, all on the same day, when the time is over

    @property
    def seeds(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.years))


# ---------------------------------------------------------------------------------------------------------- calendar


def calendar(years: int, days: int, outputs_per_day: int = 1) -> pd.DatetimeIndex:
    """Times of all trajectories, one after another: year i is the days from 1 January of 2001 + i on.

    A simulated year of 360 days leaves the calendar's last five empty, so no window of history and targets crosses
    from one trajectory into the next.
    """
    if days > 360:
        raise SystemExit(f"{days} days leave no gap before the next trajectory; take at most 360")
    step = pd.Timedelta(days=1) / outputs_per_day
    starts = [pd.Timestamp(FIRST_YEAR + i, 1, 1) for i in range(years)]
    return pd.DatetimeIndex([start + k * step for start in starts for k in range(days * outputs_per_day)])


def periods(years: int) -> dict[str, tuple[str, str]]:
    """First and last year of training, validation (last but one) and test (last)."""
    last = FIRST_YEAR + years - 1
    names = {"train": (FIRST_YEAR, last - 2), "validation": (last - 1, last - 1), "test": (last, last)}
    return {name: (str(first), str(end)) for name, (first, end) in names.items()}


# ---------------------------------------------------------------------------------------------------- coarse-graining


def area_matrices(nodes: int, target: LatLonGrid) -> tuple[np.ndarray, np.ndarray]:
    """Area fractions, (target row, row) and (target column, column), of a Gaussian grid's cells in a target's.

    A Gaussian row's cell has the area of its quadrature weight, so the area mean is that of the spectral core.
    """
    _, weights = np.polynomial.legendre.leggauss(2 * nodes)
    edges = np.concatenate([[-1.0], -1.0 + np.cumsum(weights)])
    edges[-1] = 1.0
    rows = _shared(np.sin(np.deg2rad(target.latitude_edges())), edges)
    spacing = 90.0 / nodes
    columns = (np.arange(4 * nodes + 1) - 0.5) * spacing
    turns = [_shared(target.longitude_edges(), columns + turn) for turn in (-360.0, 0.0, 360.0)]
    return tuple(m / m.sum(axis=1, keepdims=True) for m in (rows, np.sum(turns, axis=0)))


def gaussian_nodes(truncation: int) -> int:
    """Rows of one hemisphere: at least (3 T + 1) / 4, a multiple of 8, so that transforms are fast.

    >>> [gaussian_nodes(t) for t in (21, 42, 63, 85)]
    [16, 32, 48, 64]
    """
    return -(-(3 * truncation + 1) // 32) * 8


def _shared(target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Length that each target interval shares with each source interval."""
    low = np.maximum(target[:-1, None], source[None, :-1])
    return np.maximum(np.minimum(target[1:, None], source[None, 1:]) - low, 0.0)


# --------------------------------------------------------------------------------------------------------------- run


def simulate(settings: Settings, store: Path, scratch: Path, processes: int | None = None) -> list[Path]:
    """Run the core in processes of its own; write the stores, ``diagnostics.npz`` and ``dynamics.json`` beside them."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    grids = {name: grid_of(name) for name in settings.grids}
    nodes, channels = gaussian_nodes(settings.truncation), len(SURFACE) + len(UPPER) * len(settings.levels)
    for name, grid in grids.items():
        for kind, matrix in zip(("rows", "columns"), area_matrices(nodes, grid), strict=True):
            np.save(scratch / f"{kind}_{name}.npy", matrix)
        shape = (settings.years, settings.days * settings.outputs_per_day, channels, *grid.shape)
        np.lib.format.open_memmap(scratch / f"fields_{name}.npy", mode="w+", dtype=np.float32, shape=shape)
    began = time.perf_counter()
    parts = run_parts(settings, scratch, processes or gpus() or 1)
    about = {**parts[0], "days": min(p["days"] for p in parts), "seconds": [p["seconds"] for p in parts]}
    print(f"simulated in {time.perf_counter() - began:.0f} s: {about['seconds']}", flush=True)
    made = replace(settings, days=about["days"])  # fewer than asked for if the time was over
    merge_diagnostics(scratch, len(parts), made.days * made.outputs_per_day, store.parent / "diagnostics.npz")
    (store.parent / "dynamics.json").write_text(json.dumps(about))
    written = []
    for name, grid in grids.items():
        fields = np.load(scratch / f"fields_{name}.npy", mmap_mode="r")[:, : made.days * made.outputs_per_day]
        written.append(store_of(store, name, settings.grids))
        write_store(to_dataset(fields, made, grid, about), written[-1])
    shutil.rmtree(scratch)
    return written


def grid_of(name: str) -> LatLonGrid:
    """The grid of a name.

    >>> grid_of("64x33").shape
    (33, 64)
    """
    longitudes, _, latitudes = name.partition("x")
    if not (longitudes.isdecimal() and latitudes.isdecimal()):
        raise SystemExit(f"{name!r} is no grid; write longitudes x latitudes, such as 64x33")
    return LatLonGrid.equiangular(int(longitudes), int(latitudes))


def store_of(store: Path, name: str, grids: tuple[str, ...]) -> Path:
    """Where a grid's fields go: the store itself, if there is one grid.

    >>> store_of(Path("a.zarr"), "64x33", ("64x33", "96x49")).name, store_of(Path("a.zarr"), "64x33", ("64x33",)).name
    ('a_64x33.zarr', 'a.zarr')
    """
    return store if len(grids) == 1 else store.with_name(f"{store.stem}_{name}{store.suffix}")


def gpus() -> int:
    """GPUs that this process may use, without a word to them."""
    import torch

    return torch.cuda.device_count()


def run_parts(settings: Settings, scratch: Path, processes: int) -> list[dict]:
    """Trajectories in equal shares on processes, each on a GPU of its own if there are any; what each has left."""
    shares = [s.tolist() for s in np.array_split(settings.seeds, min(processes, settings.years))]
    chunk = max(d for d in range(1, CHUNK_DAYS + 1) if settings.days % d == 0)
    common = {**asdict(settings), "chunk_days": chunk, "nodes": gaussian_nodes(settings.truncation)}
    common["spin_nodes"] = gaussian_nodes(settings.spin_truncation)
    running = []
    for part, seeds in enumerate(shares):
        plan = {**common, "seeds": seeds, "part": part, "first": seeds[0] - settings.first_seed}
        (scratch / f"plan_{part}.json").write_text(json.dumps(plan))
        command = [sys.executable, str(HERE / "dynamics.py"), str(scratch / f"plan_{part}.json"), str(scratch)]
        running.append(subprocess.Popen(command, env={**os.environ, **own_gpu(part)}))
    wait_for(running)
    return [json.loads((scratch / f"part_{part}.json").read_text()) for part in range(len(shares))]


def own_gpu(part: int) -> dict[str, str]:
    """Environment in which a process sees one GPU alone, the next in turn."""
    count = gpus()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": seen[part % count]} if count else {}


def wait_for(running: list[subprocess.Popen]) -> None:
    """Until all have ended; if one fails, the others are stopped, for a part of the trajectories is of no use."""
    while any(p.poll() is None for p in running):
        if any(p.returncode for p in running if p.poll() is not None):
            break
        time.sleep(0.2)
    if failed := [p.returncode for p in running if p.poll()]:
        for p in running:
            p.kill()
            p.wait()
        raise SystemExit(f"dynamics.py failed ({failed[0]})")


def merge_diagnostics(scratch: Path, parts: int, times: int, path: Path) -> None:
    """One file of what all processes have found: budgets by trajectory, spectra and zonal means of all together."""
    found = [dict(np.load(scratch / f"diagnostics_{part}.npz")) for part in range(parts)]
    merged = {
        "means": np.concatenate([f["means"][:, :times] for f in found]),  # (trajectory, time, 4)
        "spectrum": np.concatenate([f["spectrum"] for f in found]).mean(0),  # (layer, wavenumber)
        "zonal": np.concatenate([f["zonal"] for f in found]).mean(0),  # (u and T, layer, latitude)
    }
    np.savez(path, **merged, sigma=found[0]["sigma"], latitude=found[0]["latitude"])


def to_dataset(fields: np.ndarray, settings: Settings, grid: LatLonGrid, about: dict) -> xr.Dataset:
    """Labelled fields from an array (trajectory, time, channel, latitude, longitude) in the order of `dynamics`."""
    time = calendar(settings.years, settings.days, settings.outputs_per_day)
    flat = fields.reshape(len(time), *fields.shape[2:])
    levels = flat[:, len(SURFACE) :].reshape(len(time), len(settings.levels), len(UPPER), *grid.shape)
    place = ("latitude", "longitude")
    data = {name: (("time", *place), flat[:, i]) for i, name in enumerate(SURFACE)}
    data |= {name: (("time", "level", *place), levels[:, :, i]) for i, name in enumerate(UPPER)}
    ds = xr.Dataset(data, {"time": time, "level": np.array(settings.levels).astype(np.int32), **grid.coordinates()})
    for name in ds.data_vars:
        comment = {"comment": MEANING[str(name)]} if name in MEANING else {}
        ds[name].attrs = {**cf_attributes(str(name)), **comment}
    ds["time"].attrs = {"standard_name": "time", "long_name": "time", "axis": "T"}
    level = {"standard_name": "air_pressure", "long_name": "pressure level", "units": "hPa", "positive": "down"}
    ds["level"].attrs = {**level, "axis": "Z"}
    return ds.assign_attrs(attributes(settings, about))


def attributes(settings: Settings, about: dict) -> dict[str, str]:
    """Where the data come from, so that they can be made again."""
    s = settings
    return {
        "Conventions": "CF-1.13",
        "title": "Held–Suarez atmosphere, simulated",
        "institution": "the xmosaic developers",
        "source": f"dinosaur {about.get('dinosaur', '?')}, jax {about.get('jax', '?')}, xmosaic {xmosaic.__version__}",
        "history": f"examples/held_suarez/simulate.py with {json.dumps(asdict(s))}",
        "references": "doi:10.1175/1520-0477(1994)075<1825:APFTIO>2.0.CO;2",
        "license": "BSD-3-Clause",
        "comment": (
            f"T{s.truncation}, 24 sigma layers, steps of {s.minutes:g} minutes, ∇⁸ damping of 0.1 day; spun up for "
            f"{s.spin_days} days at T{s.spin_truncation} and at least {s.settle_days} more; coarse-grained by exact "
            "areas from the Gaussian grid; mean surface pressure set to 1000 hPa once a day; perpetual equinox, no "
            "sun, no orography: dates are labels, each calendar year is a trajectory of its own"
        ),
        "seeds": json.dumps(s.seeds),
    }


def write_store(ds: xr.Dataset, store: Path) -> None:
    """Uncompressed Zarr in chunks of ten times, which is read fastest."""
    shutil.rmtree(store, ignore_errors=True)
    encoding = {
        name: {
            "chunks": tuple(min(10, n) if d == "time" else n for d, n in ds[name].sizes.items()),
            "compressors": None,
        }
        for name in ds.data_vars
    }
    ds.to_zarr(store, encoding=encoding, zarr_format=3, consolidated=False)
    print(f"{store}: {ds.sizes['time']} times, {ds.nbytes / 1e6:.0f} MB", flush=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options that change a field of `Settings`."""
    for name in ("years", "days", "truncation", "spin_truncation", "spin_days", "settle_days", "outputs_per_day"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Settings, name))
    parser.add_argument("--grids", nargs="+", default=Settings.grids, help="longitudes x latitudes of what is written")
    for name in ("minutes", "spin_minutes"):
        flag = "--step-minutes" if name == "minutes" else "--spin-minutes"
        parser.add_argument(flag, dest=f"step_{name}", type=float, default=getattr(Settings, name))
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="end trajectories early after this")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--transform", choices=("fast", "real"), default="fast", help="dinosaur's spherical harmonics")


def settings_from(options: argparse.Namespace) -> Settings:
    same = ("years", "days", "truncation", "spin_truncation", "spin_days", "settle_days", "outputs_per_day")
    rest = ("first_seed", "transform", "limit_seconds")
    given = {name: getattr(options, name) for name in (*same, *rest)}
    return Settings(
        **given, grids=tuple(options.grids), minutes=options.step_minutes, spin_minutes=options.step_spin_minutes
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/held_suarez/scratch"))
    parser.add_argument("--processes", type=int, help="that share the trajectories; by default one on each GPU")
    arguments(parser)
    options = parser.parse_args()
    simulate(settings_from(options), options.store, options.scratch, options.processes)


if __name__ == "__main__":
    main()
