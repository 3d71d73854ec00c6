"""Training of the full 214 M network on one GPU: samples per second, memory, share of the matrix rate, loader share.

python tests/benchmarks/train_step.py [UPDATES]
python tests/benchmarks/train_step.py 12 FOLDER 4                                    # one case: batch 4, recomputing
torchrun --nproc-per-node=2 tests/benchmarks/train_step.py 12 FOLDER 8               # the same on two GPUs

Random fields of the 82 channels in a local Zarr store, one chunk per time; `xmosaic.train` with the `paper_era5`
network, two members, bfloat16. The matrix rate is measured in the same run.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

import xmosaic
from xmosaic.grid import LatLonGrid
from xmosaic.variables import cf_attributes, published_schema

# Per member and step, forward (shared/model.md); the way back costs twice that, recomputing once more.
FORWARD = 12.6e12
CASES = [(1, True, 1), (4, True, 1), (8, True, 1), (1, False, 1), (1, True, 2)]
WORLD, FIRST = int(os.environ.get("WORLD_SIZE", 1)), os.environ.get("RANK", "0") == "0"
torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def make(folder: Path, times: int = 40) -> xr.Dataset:
    """Random fields, time by time."""
    rng = np.random.default_rng(0)
    schema, grid = published_schema(), LatLonGrid.equiangular(240, 121)
    fields, encoding = {}, {}
    for role, variable, channels in schema.groups():
        levels = [c.level for c in channels if c.level is not None]
        leading = () if role == "static" else (times,)
        shape = (*leading, *([len(levels)] if levels else []), *grid.shape)
        dims = (*(("time",) if leading else ()), *(("level",) if levels else ()), "latitude", "longitude")
        values = rng.standard_normal(shape, dtype=np.float32)
        if variable == "soil_type":
            values = np.abs(values * 3).round()
        if variable == "land_sea_mask":
            values = (values > 0).astype(np.float32)
        fields[variable] = (dims, values, cf_attributes(variable))
        encoding[variable] = {"chunks": (*((1,) if leading else ()), *shape[len(leading) :])}
    coords = {"time": pd.date_range("2020-01-01", periods=times, freq="1D"), "level": list(schema.levels)}
    xr.Dataset(fields, grid.coordinates() | coords).to_zarr(folder / "data.zarr", encoding=encoding, consolidated=False)
    return xr.open_zarr(folder / "data.zarr", consolidated=False)


def matrix_rate() -> float:
    """bfloat16 matrix product, TFLOP/s."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12


def measure(ds: xr.Dataset, updates: int, batch: int, recompute: bool, rollout: int, rate: float) -> None:
    """One line of the table."""
    recipe = xmosaic.recipes.paper_era5(("2020-01-01", "2020-01-31"), ("2020-02-01", "2020-02-09"), None)
    stage = xmosaic.Stage(updates, rollout=rollout, batch_size=batch)
    config = dataclasses.replace(
        recipe, stages=(stage,), checkpoint_activations=recompute, validation_samples=WORLD, validation_members=2
    )
    torch.cuda.reset_peak_memory_stats()
    model = xmosaic.train(ds, config, progress=False, workers=min(8, os.cpu_count() or 1))
    if FIRST:
        history = model.history.isel(update=slice(3, None))
        seconds, waited = history["seconds"], history["waited"]
        median = float(seconds.median())
        steps = batch * config.members * rollout
        share = steps * FORWARD * (4 if recompute else 3) / median / 1e12 / rate / WORLD
        peak = torch.cuda.max_memory_allocated() / 1e9
        print(
            f"| {WORLD} | {batch} | {recompute} | {rollout} | {1e3 * median:.0f} ({1e3 * float(seconds.min()):.0f} … "
            f"{1e3 * float(seconds.max()):.0f}) | {batch / median:.2f} | {1e3 * median * WORLD / steps:.0f} "
            f"| {share:.0%} | {float(waited.sum() / seconds.sum()):.1%} | {peak:.0f} |",
            flush=True,
        )
    del model
    torch.cuda.empty_cache()


def main() -> None:
    """Print the table."""
    updates = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    rate = matrix_rate()
    if FIRST:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, matrix product {rate:.0f} TFLOP/s")
        print("| GPUs | batch | recompute | rollout | ms per update | samples/s | ms per member-step ", end="")
        print("| matrix rate | waited | GB |")
        print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    if len(sys.argv) > 3:
        folder = Path(sys.argv[2])
        folder.mkdir(exist_ok=True)
        there = (folder / "data.zarr").exists()
        ds = xr.open_zarr(folder / "data.zarr", consolidated=False) if there else make(folder)
        measure(ds, updates, int(sys.argv[3]), True, 1, rate)
        return
    with tempfile.TemporaryDirectory() as scratch:
        ds = make(Path(scratch))
        for batch, recompute, rollout in CASES:
            measure(ds, updates, batch, recompute, rollout, rate)


if __name__ == "__main__":
    main()
