"""A forecast on one GPU and on all of a host: time, bits, memory, what is spent outside the network, and writing it.

``python tests/benchmarks/devices.py [--members 24] [--leads 10] [--dtype bfloat16] [--store FOLDER] [--small] [--paced
MS [--stand-ins 2]]``

The full published network on its grid, with random weights: that changes neither time nor memory. Input and statistics
come from ../shared/data where that is, else from a stand-in of the same size. ``--small`` takes a tiny network,
everything else full size: on the CPU, whose two threads stand for two GPUs, it times what is around the network.
``--store`` writes the forecast to a new store in FOLDER too, and compares. ``--paced`` does the same with stand-ins for
GPUs on the one there is, or on the CPU: each waits so many milliseconds per member and step, and hands on the state it
was given. All that is around the network is done for as many as ``--stand-ins`` says.
"""

from __future__ import annotations

import argparse
import functools
import math
import shutil
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from full_step import SHARED, random_era5, twice

import xmosaic
from xmosaic import ready
from xmosaic import run as running
from xmosaic.checkpoint import Model
from xmosaic.graph import Recorded
from xmosaic.grid import LatLonGrid
from xmosaic.model import PUBLISHED, Mosaic, MosaicConfig, StageConfig
from xmosaic.state import Fields, State
from xmosaic.store import MemorySink, ZarrSink
from xmosaic.variables import Channel, cf_attributes

STEPS_TO_WARM, ROUNDS = 2, 3
SMALL = {
    "stages": (StageConfig(16, 32, 2, 1, local_size=64, block_size=16, block_count=4),),
    "bottleneck": StageConfig(8, 32, 2, 1, 64, 16, 4, decoder_depth=0),
}


# --------------------------------------------------------------------------------------------- a model and its input


def typical(channel: Channel) -> tuple[float, float]:
    """A mean and a standard deviation that a channel might have, in its own units."""
    p = (channel.level or 1000) / 1000
    return {
        "2m_temperature": (279.0, 21.0),
        "mean_sea_level_pressure": (100960.0, 1330.0),
        "geopotential": (73500.0 * -math.log(p) * 0.9 + 700.0, 1000.0 + 2500.0 * (1 - p)),
        "temperature": (max(210.0, 281.0 * p**0.19), 13.0),
        "specific_humidity": (8e-3 * p**3 + 3e-6, 5e-3 * p**3 + 1e-6),
    }.get(channel.variable, (0.0, 8.0 if "component" in channel.variable else 0.1))


def stand_in(config: MosaicConfig) -> Model:
    """The published schema and grid with statistics and static fields that are made up."""
    schema, grid, rng = xmosaic.published_schema(), LatLonGrid.equiangular(240, 121), np.random.default_rng(0)
    static = rng.normal(size=(240, 121, len(schema.static)))
    mean, std = np.array([typical(c) for c in schema.state]).T
    network = Mosaic(config, np.array(grid.longitude), np.array(grid.latitude), static)
    network.init_weights(torch.Generator().manual_seed(0)).requires_grad_(False).eval()
    provenance = {"name": "stand-in", "license": "BSD-3-Clause", "untrained": True}
    return Model(network, schema, grid, mean, std, static, provenance, sha256="none")


def made_up(model: Model) -> xr.Dataset:
    """Two times of noise with the model's statistics."""
    rng, times = np.random.default_rng(1), pd.to_datetime(["2011-10-10", "2011-10-11"])
    fields = {}
    for _, name, channels in model.schema.groups():
        if channels[0] not in model.schema.state:
            continue
        levels = [c.level for c in channels if c.level is not None]
        mean, std = np.array([typical(c) for c in channels]).T[:, :, None, None]
        values = (mean + std * rng.normal(size=(2, len(channels), *model.grid.shape))).astype(np.float32)
        dims = ("time", *(["level"] if levels else []), "latitude", "longitude")
        coords = {"level": levels} if levels else {}
        fields[name] = xr.DataArray(values if levels else values[:, 0], coords, dims, attrs=cf_attributes(name))
    return xr.Dataset(fields).assign_coords(model.grid.coordinates() | {"time": times})


def case(small: bool) -> tuple[Model, xr.Dataset]:
    """Model and input, in memory."""
    if small:
        full = PUBLISHED["era5"]
        config = MosaicConfig(**SMALL, num_variables=full.num_variables, num_static=full.num_static)
        model = stand_in(config)
    else:
        model = random_era5() if SHARED.exists() else stand_in(PUBLISHED["era5"])
    if not small and SHARED.exists():
        return model, twice(SHARED / "gfs_82channels_20111008T00_f072_1p5deg.nc").load()
    return model, made_up(model)


# ------------------------------------------------------------------------------------------------------- stopwatches


class Spent:
    """Seconds by what they went on: those of the network by device, those of everything else by function."""

    def __init__(self) -> None:
        self.elsewhere: dict[str, float] = defaultdict(float)
        self._marks: list[tuple[torch.device, Any, Any]] = []
        self._lock = threading.Lock()

    def timed(self, name: str, function: Callable) -> Callable:
        """A function whose calls are timed, in whatever thread."""

        def call(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                with self._lock:
                    self.elsewhere[name] += time.perf_counter() - began

        return call

    def network(self, forward: Callable) -> Callable:
        """A step of the network, timed on the device's own clock."""

        def call(network: Any, history: torch.Tensor, *args: Any) -> torch.Tensor:
            began = self._mark(history.device)
            state = forward(network, history, *args)
            self._marks.append((history.device, began, self._mark(history.device)))
            return state

        return call

    @staticmethod
    def _mark(device: torch.device) -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def by_device(self) -> dict[str, float]:
        """Seconds of the network; those of several CPU threads together."""
        total: dict[str, float] = defaultdict(float)
        for device, began, ended in self._marks:
            total[str(device)] += began.elapsed_time(ended) / 1e3 if device.type == "cuda" else ended - began
        return total


class Paced:
    """Stands for `Recorded` on a GPU of its own: as many of these as one likes wait beside each other on one."""

    recorded, milliseconds = True, 0.0

    def __init__(self, network: Any) -> None:
        """Nothing of it is used."""

    def __call__(self, history: torch.Tensor, *_: torch.Tensor | None) -> torch.Tensor:
        wait = self.milliseconds * math.prod(history.shape[:2])
        if history.device.type != "cuda":
            time.sleep(wait / 1e3)
            return history[:, :, -1].clone()
        if (shared := torch.cuda.current_stream()) == torch.cuda.default_stream():
            # a GPU of its own: on the stream that all threads share, one would wait for the other
            torch.cuda.set_stream(torch.cuda.Stream())
            torch.cuda.current_stream().wait_stream(shared)
            history.record_stream(torch.cuda.current_stream())
        torch.cuda._sleep(int(wait * cycles()))
        return history[:, :, -1].clone()


class Shelves(ready.Shelf):
    """Keeps what it lent to each stand-in, as it does for each GPU."""

    def __init__(self) -> None:
        super().__init__()
        self._free: list[Any] = []

    def _take(self, *_: Any) -> Any:
        with self._lock:
            return self._free.pop() if self._free else None

    def _keep(self, kept: Any) -> None:
        with self._lock:
            self._free.append(kept)


_OWN = threading.local()


def own_side(device: torch.device) -> torch.cuda.Stream:
    """Stands for `run._side`: of each thread its own, since GPUs don't share theirs."""
    if not hasattr(_OWN, "stream"):
        _OWN.stream = torch.cuda.Stream(device, priority=-1)
    return _OWN.stream


@functools.cache
def cycles() -> float:
    """Of a GPU that waits, in a millisecond."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(10**8)
    began.record()
    torch.cuda._sleep(10**9)
    ended.record()
    torch.cuda.synchronize()
    return 1e9 / began.elapsed_time(ended)


@contextmanager
def stopwatches() -> Iterator[Spent]:
    """Time the network and what is around it."""
    spent, before = Spent(), []
    for owner, name, label in (
        (State, "history", "input: read, checked, normalised"),
        (ready, "replica", "weights copied to the other devices"),
        (Fields, "physical", "states to physical fields"),
        (MemorySink, "write", "into memory"),
        (ZarrSink, "write", "into pieces, and waiting for the writer"),
        (ZarrSink, "_pack", "packed, in several threads"),
        (ZarrSink, "_write_array", "written, or waiting for packing, in these threads"),
        (ZarrSink, "_store", "waited for packing and the disk, recorded"),
    ):
        before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, spent.timed(label, getattr(owner, name)))
    # on a GPU what is replayed isn't called
    owner, name = (Recorded, "__call__") if torch.cuda.is_available() else (Mosaic, "forward")
    before.append((owner, name, getattr(owner, name)))
    setattr(owner, name, spent.network(getattr(owner, name)))
    try:
        yield spent
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def resident() -> float:
    """Memory of this process [MB]."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@contextmanager
def memory_by_step(rows: int) -> Iterator[list[float]]:
    """Memory each time that as many member-steps as there are members have been made [MB]."""
    seen, done, update = [resident()], [0], running.Bar.update

    def note(bar: running.Bar, count: int) -> None:
        update(bar, count)
        done[0] += count
        if done[0] // rows > len(seen) - 1:
            seen.append(resident())

    running.Bar.update = note
    try:
        yield seen
    finally:
        running.Bar.update = update


# ------------------------------------------------------------------------------------------------------------- runs


class Runs:
    """Forecasts of one case on one choice of devices after another."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model, self.ds = case(options.small)
        gpus = torch.cuda.device_count()
        self.one = "cuda:0" if gpus else "cpu"
        alone = bool(options.paced) or not gpus
        self.all = [self.one] * options.stand_ins if alone else [f"cuda:{i}" for i in range(gpus)]

    def forecast(self, device: Any, leads: int | None = None, store: Path | None = None) -> tuple[float, xr.Dataset]:
        """Seconds from Dataset to Dataset, and that."""
        if store is not None:
            shutil.rmtree(store, ignore_errors=True)
        o, began = self.options, time.perf_counter()
        fc = xmosaic.forecast(
            self.ds,
            (leads or o.leads) * self.model.step,
            o.members,
            model=self.model,
            device=device,
            dtype=o.dtype,
            batch_size=o.batch_size,
            store=store,
            progress=False,
        )
        return time.perf_counter() - began, fc

    def scaling(self) -> None:
        """One device against all: time, bits, memory, and where the time went."""
        o = self.options
        print(
            f"\n{o.members} members × {o.leads} leads × {len(self.model.schema.state)} channels, {o.dtype}, in memory"
        )
        results = {}
        for name, device in (("one", self.one), ("all", self.all)):
            first, _ = self.forecast(device, STEPS_TO_WARM)
            times = [self.forecast(device)[0] for _ in range(o.rounds - 1)]
            for i in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(i)
            with stopwatches() as spent:
                seconds, fc = self.forecast(device)
            results[name] = (statistics.median([*times, seconds]), fc)
            report(device, first, [*times, seconds], seconds, spent)
        (one, a), (every, b) = results["one"], results["all"]
        print(f"time on one over time on {len(self.all)}: {one / every:.2f}")
        print(f"the same bits: {all(np.array_equal(a[n], b[n], equal_nan=True) for n in a)}")

    def writing(self, folder: Path) -> None:
        """Into memory against into a store, in turns; then memory over the time of one that is stored."""
        o, store = self.options, folder / "devices.zarr"
        print(f"\ninto a store at {folder}, on {', '.join(self.all)}")
        self.forecast(self.all, STEPS_TO_WARM)
        pairs = [(self.forecast(self.all, store=store)[0], self.forecast(self.all)[0]) for _ in range(o.rounds)]
        ratios = [stored / kept for stored, kept in pairs]
        print("stored / in memory [s]: " + ", ".join(f"{a:.2f} / {b:.2f}" for a, b in pairs))
        print(f"ratio: median {statistics.median(ratios):.3f} ({min(ratios):.3f} … {max(ratios):.3f}); goal 1.1")
        with memory_by_step(o.members) as seen, stopwatches() as spent:
            seconds, fc = self.forecast(self.all, store=store)
        packed = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
        print(f"{fc.nbytes / 1e9:.2f} GB in {packed / 1e9:.2f} GB of files, {fc.nbytes / 1e6 / seconds:.0f} MB/s")
        outside(spent, seconds)
        print("step  memory of the process [MB]")
        for step, megabytes in enumerate(seen):
            print(f"{step:4d}  {megabytes:.0f}")
        later = seen[len(seen) // 2 :]
        slope = np.polyfit(range(len(later)), later, 1)[0] if len(later) > 1 else math.nan
        print(f"most: {max(seen):.0f} MB; slope over the second half: {slope:.1f} MB per step of all members")
        shutil.rmtree(store)


def report(device: Any, first: float, times: list[float], seconds: float, spent: Spent) -> None:
    """Print what a forecast took."""
    print(f"\non {device}: {statistics.median(times):.2f} s (", end="")
    print(", ".join(f"{t:.2f}" for t in times) + f"); first call, {STEPS_TO_WARM} steps: {first:.1f} s")
    for i in range(torch.cuda.device_count()):
        # what recordings keep isn't allocated, but held
        print(f"  cuda:{i}: at most {torch.cuda.max_memory_reserved(i) / 1e9:.1f} GB")
    outside(spent, seconds)


def outside(spent: Spent, seconds: float) -> None:
    """Print the network's share of a forecast, and the seconds of everything else, beside it or not."""
    for name, busy in spent.by_device().items():
        print(f"  network on {name}: {busy:.2f} s, {busy / seconds:.0%} of the whole {seconds:.2f} s")
    for label, took in spent.elsewhere.items():
        print(f"  {label}: {took:.2f} s, in its own thread where that is not the input")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--leads", type=int, default=10, help="steps of the model, 24 h each")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", type=int, help="members at once; by default as the forecast chooses")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--store", type=Path, metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="a tiny network, everything else full size")
    parser.add_argument("--paced", type=float, default=0.0, metavar="MS", help="stand-ins, so long per member-step")
    parser.add_argument("--stand-ins", type=int, default=2, metavar="N", help="for so many GPUs")
    options = parser.parse_args()
    if options.paced:
        Paced.milliseconds, ready.Recorded = options.paced, Paced
        if torch.cuda.is_available():
            running._side, running.SHELF = own_side, Shelves()
            cycles()  # while nothing else runs
        else:
            Mosaic.forward = lambda network, *inputs: Paced(network)(*inputs)
    runs = Runs(options)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {gpu}; {runs.model.num_parameters:,} weights")
    runs.scaling()
    if options.store is not None:
        runs.writing(options.store)


if __name__ == "__main__":
    main()
