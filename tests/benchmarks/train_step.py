"""Training of the full 214 M network: samples per second, memory, share of the matrix rate, loader share.

python tests/benchmarks/train_step.py 12                                             # a table of cases on one GPU
python tests/benchmarks/train_step.py 12 FOLDER 4                                    # one case: batch 4, recomputing
torchrun --nproc-per-node=2 tests/benchmarks/train_step.py 12 FOLDER 8               # the same on two GPUs
torchrun --nproc-per-node=2 tests/benchmarks/train_step.py 12 FOLDER 8 --parallel ddp fsdp
torchrun --nproc-per-node=2 tests/benchmarks/train_step.py 12 FOLDER 1 --members 2 --parallel ddp fsdp
torchrun --nproc-per-node=2 tests/benchmarks/train_step.py 12 FOLDER 4 --members 2 --member-ranks 2
torchrun --nproc-per-node=2 tests/benchmarks/train_step.py 6 FOLDER 8 --parallel ddp fsdp --losses

Random fields of the 82 channels in a local Zarr store in FOLDER, made if it isn't there, one chunk per time;
`xmosaic.train` with the `paper_era5` network, bfloat16. The matrix rate is measured in the same run. A batch of 1 on
two GPUs spreads its members. `--losses` prints every loss besides, to compare the ways; `--save` writes the states too.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
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


def shared_store(folder: Path) -> xr.Dataset:
    """The store in a folder, which the first rank makes if it isn't there."""
    store = folder / "data.zarr"
    if FIRST and not store.exists():
        folder.mkdir(exist_ok=True, parents=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            make(Path(scratch))
            os.replace(Path(scratch) / "data.zarr", store)
    while not store.exists():
        time.sleep(0.5)
    return xr.open_zarr(store, consolidated=False)


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


@dataclasses.dataclass
class Case:
    """One line of the table."""

    batch: int
    recompute: bool = True
    rollout: int = 1
    members: int = 2
    parallel: str = "ddp"
    member_ranks: int | None = None


def measure(ds: xr.Dataset, updates: int, case: Case, rate: float, losses: bool, out: str | None) -> None:
    """Print a line."""
    recipe = xmosaic.recipes.paper_era5(("2020-01-01", "2020-01-31"), ("2020-02-01", "2020-02-09"), None)
    stage = xmosaic.Stage(updates, rollout=case.rollout, batch_size=case.batch)
    config = dataclasses.replace(
        recipe,
        stages=(stage,),
        members=case.members,
        checkpoint_activations=case.recompute,
        validation_samples=WORLD,
        validation_members=2,
    )
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    model = xmosaic.train(
        ds,
        config,
        out=out,
        progress=False,
        workers=min(8, os.cpu_count() or 1),
        parallel=case.parallel,
        member_ranks=case.member_ranks,
    )
    if FIRST:
        history = model.history.isel(update=slice(3, None))
        seconds, waited = history["seconds"], history["waited"]
        median = float(seconds.median())
        steps = case.batch * config.members * case.rollout
        share = steps * FORWARD * (4 if case.recompute else 3) / median / 1e12 / rate / WORLD
        peak = torch.cuda.max_memory_allocated() / 1e9
        parts = case.member_ranks or max(1, WORLD // case.batch)
        print(
            f"| {WORLD} | {case.parallel} | {parts} | {case.batch} | {case.members} | {case.recompute} "
            f"| {case.rollout} "
            f"| {1e3 * median:.0f} ({1e3 * float(seconds.min()):.0f} … {1e3 * float(seconds.max()):.0f}) "
            f"| {case.batch / median:.2f} | {1e3 * median * WORLD / steps:.0f} "
            f"| {share:.0%} | {float(waited.sum() / seconds.sum()):.1%} | {peak:.0f} |",
            flush=True,
        )
        if losses:
            print(f"losses {np.array2string(model.history['loss'].values, precision=6, max_line_width=200)}")
            print(
                f"validation CRPS {model.history['validation_crps'].values}, {time.perf_counter() - began:.0f} s in all"
            )
    del model
    torch.cuda.empty_cache()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("updates", type=int, nargs="?", default=12)
    parser.add_argument("folder", nargs="?", help="for the data; a folder that goes away by default")
    parser.add_argument("batch", type=int, nargs="?", help="one case of this batch instead of the table")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--rollout", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep activations instead of computing them again")
    parser.add_argument("--parallel", nargs="+", choices=("ddp", "fsdp"), default=["ddp"], help="one line for each")
    parser.add_argument("--member-ranks", type=int)
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--save", action="store_true", help="write states too, to FOLDER/run-…")
    options = parser.parse_args()
    rate = matrix_rate()
    if FIRST:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, matrix product {rate:.0f} TFLOP/s")
        print(
            "| GPUs | parallel | ranks per sample | batch | members | recompute | rollout | ms per update | samples/s ",
            end="",
        )
        print("| ms per member-step | matrix rate | waited | GB |")
        print("|---" * 13 + "|", flush=True)
    if options.batch is not None:
        ds = shared_store(Path(options.folder))
        for way in options.parallel:
            case = Case(options.batch, not options.keep, options.rollout, options.members, way, options.member_ranks)
            out = f"{options.folder}/run-{way}-{WORLD}-{options.batch}" if options.save else None
            measure(ds, options.updates, case, rate, options.losses, out)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            ds = make(Path(scratch))
            for batch, recompute, rollout in CASES:
                measure(ds, options.updates, Case(batch, recompute, rollout), rate, options.losses, None)


if __name__ == "__main__":
    main()
