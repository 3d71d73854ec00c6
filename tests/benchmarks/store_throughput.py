"""How fast is a forecast written while it runs, with nothing else to do, and where does the time go?

``python tests/benchmarks/store_throughput.py [--gigabytes 4.6] [--devices 2] [--workers N] [--against TREE]``

Fills a ZarrSink as a rollout on so many GPUs does, a thread for each: blocks of six members of 82 channels on 240 × 121
points, real fields of ``shared/data`` (a stand-in of the same statistics where that isn't) moved along and disturbed.
Prints GB/s of fields, seconds of a processor per GB by part, the largest memory, and how late a thread wakes that has
to launch work on a GPU every millisecond. What packing takes beside the calls that let go of Python's lock (GIL) bounds
it: threads can't pack more than one over that many GB/s, however many. ``--against`` takes another checkout, and both
are run in turns.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import xmosaic
from xmosaic.cards import duration
from xmosaic.grid import LatLonGrid
from xmosaic.store import ZarrSink
from xmosaic.store.sink import Request

SHARED = Path(__file__).parents[3] / "shared" / "data"
GFS = SHARED / "gfs_82channels_20111008T00_f072_1p5deg.nc"
GRID = LatLonGrid.equiangular(240, 121)
BATCH, LEADS = 6, 40
WAITED, PACKED = "waited for the disk (time)", "packed, all together"
FREE = ("compressed (blosc)", "handed to the system", "joined by zarr", "compared with NaN by zarr")


# -------------------------------------------------------------------------------------------------------- a forecast


def channels() -> list[tuple[str, tuple[int, ...]]]:
    """Variables and their levels; none for those near the ground."""
    groups = xmosaic.published_schema().groups()
    return [(name, tuple(c.level for c in held if c.level is not None)) for _, name, held in groups if name in _state()]


@functools.cache
def _state() -> frozenset[str]:
    return frozenset(c.variable for c in xmosaic.published_schema().state)


def one_state() -> np.ndarray:
    """(channel, latitude, longitude), as a GFS forecast has them."""
    count = sum(max(1, len(levels)) for _, levels in channels())
    if not GFS.exists():
        rng = np.random.default_rng(0)
        smooth = rng.normal(size=(count, *GRID.shape)).cumsum(-1).cumsum(-2)
        return (smooth / smooth.std(axis=(-2, -1), keepdims=True)).astype(np.float32)
    with xr.open_dataset(GFS) as ds:
        parts = [np.asarray(ds[name].values, np.float32).reshape(-1, *GRID.shape) for name, _ in channels()]
    return np.concatenate(parts)


def states(number: int) -> list[np.ndarray]:
    """Some leads of a block, (1, member, channel, latitude, longitude)."""
    rng, first, made = np.random.default_rng(1), one_state(), []
    spread = 1e-3 * first.std(axis=(-2, -1), keepdims=True)
    for _ in range(number):
        members = [np.roll(first, int(rng.integers(240)), -1) for _ in range(BATCH)]
        made.append(np.stack([m + spread * rng.normal(size=m.shape) for m in members])[None].astype(np.float32))
    return made


def fields(state: np.ndarray) -> dict[str, np.ndarray]:
    """Views of a state, as `Fields.physical` gives them."""
    result, first = {}, 0
    for name, levels in channels():
        part = state[..., first : first + max(1, len(levels)), :, :]
        result[name], first = part if levels else part[..., 0, :, :], first + max(1, len(levels))
    return result


def request(members: int, keep_bits: int | None) -> Request:
    """What a forecast of one start asks for."""
    start, leads = pd.Timestamp("2011-10-11"), pd.timedelta_range("1D", periods=LEADS, freq="1D")
    pressures = max((levels for _, levels in channels()), key=len)
    axes = {"time": "forecast_reference_time", "number": "realization", "prediction_timedelta": "forecast_period"}
    values = (start.to_datetime64(), np.arange(1, members + 1), leads.to_numpy())
    coords: dict[str, Any] = {
        name: ((name,) if np.ndim(v) else (), v, {"standard_name": axes[name]})
        for name, v in zip(axes, values, strict=True)
    }
    coords["valid_time"] = ("prediction_timedelta", start.to_datetime64() + leads.to_numpy(), {"standard_name": "time"})
    coords["level"] = ("level", list(pressures))
    points = hashlib.sha256(np.concatenate([GRID.latitude, GRID.longitude]).data).hexdigest()[:16]
    template = xr.Dataset(coords=coords | GRID.coordinates())
    names = [f"{name}_{level}" for name, levels in channels() for level in levels]
    settings = {
        "starts": [start.isoformat()],
        "members": members,
        "leads": [duration(k) for k in leads],
        "variables": names + [name for name, levels in channels() if not levels],
        "points": points,
        "batch": [1, BATCH],
    }
    return Request(template, _variables(members, len(pressures)), True, (1, BATCH), settings, keep_bits)


def _variables(members: int, pressures: int) -> dict[str, xr.Variable]:
    dims, made = ("number", "prediction_timedelta"), {}
    for name, levels in channels():
        shape = (members, LEADS, *([pressures] if levels else []), *GRID.shape)
        own = (*dims, *(["level"] if levels else []), GRID.latitude_name, GRID.longitude_name)
        made[name] = xr.Variable(own, np.broadcast_to(np.float32(np.nan), shape))
    return made


# ------------------------------------------------------------------------------------------------------- stopwatches


@contextmanager
def stopwatches() -> Iterator[dict[str, float]]:
    """Seconds of a processor by part, in whatever thread of this process."""
    import zarr.storage._local as local
    from numcodecs import Blosc
    from zarr.codecs import Crc32cCodec
    from zarr.core.buffer.core import NDBuffer
    from zarr.core.buffer.cpu import Buffer

    from xmosaic.store.synced import SyncedStore

    spent: dict[str, float] = defaultdict(float)
    parts: list[tuple[Any, str, str]] = [
        (ZarrSink, "write", "put into pieces"),
        (ZarrSink, "_pack", PACKED),
        (ZarrSink, "_write_array", PACKED),
        (Blosc, "encode", "compressed (blosc)"),
        (local, "_put", "handed to the system"),
        (Buffer, "combine", "joined by zarr"),
        (NDBuffer, "all_equal", "compared with NaN by zarr"),
        (Crc32cCodec, "_encode_sync", "checksums by zarr"),
    ]
    parts = [part for part in parts if hasattr(*part[:2])]  # not every checkout has all
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]
    for owner, name, label in parts:
        setattr(owner, name, _timed(spent, label, getattr(owner, name)))
    before.append((SyncedStore, "sync", SyncedStore.sync))
    SyncedStore.sync = _timed(spent, WAITED, SyncedStore.sync, time.perf_counter)  # type: ignore[method-assign]
    if hasattr(SyncedStore, "fill"):
        before.append((SyncedStore, "fill", SyncedStore.fill))
        SyncedStore.fill = _timed_file(spent, SyncedStore.fill)  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _timed_file(spent: dict[str, float], function: Callable) -> Callable:
    @contextmanager
    def call(*args: Any) -> Iterator[Any]:
        with function(*args) as file:
            yield types.SimpleNamespace(write=_timed(spent, "handed to the system", file.write))

    return call


def holding(spent: dict[str, float]) -> float:
    """Seconds of packing in which the GIL is held: what is left beside long calls that let go of it.

    Two small things are on the wrong side: the copy that blosc's result is cut out of, which holds it, and that of
    zarr's checksums, which doesn't.
    """
    return spent[PACKED] - sum(spent[label] for label in FREE)


def _timed(spent: dict[str, float], label: str, function: Callable, clock: Callable = time.thread_time) -> Callable:
    lock = threading.Lock()

    def call(*args: Any, **options: Any) -> Any:
        began = clock()
        try:
            return function(*args, **options)
        finally:
            with lock:
                spent[label] += clock() - began

    return call


class Launcher(threading.Thread):
    """Wakes every millisecond, as a thread that launches work on a GPU, and notes how late that was [ms]."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.late: list[float] = []
        self.most = 0.0
        self.over = False

    def run(self) -> None:
        while not self.over:
            began = time.perf_counter()
            time.sleep(0.001)
            self.late.append((time.perf_counter() - began - 0.001) * 1e3)
            if len(self.late) % 50 == 0:
                self.most = max(self.most, resident())


def resident() -> float:
    """Memory of this process [MB]."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def cpu() -> float:
    """Seconds of a processor of this process and those that it started and that have ended."""
    own, children = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


# ---------------------------------------------------------------------------------------------------------------- runs


def fill(folder: Path, members: int, devices: int, keep_bits: int | None) -> dict[str, Any]:
    """Write one forecast; what it took."""
    held = [fields(state) for state in states(3)]
    blocks = [slice(i, i + BATCH) for i in range(0, members, BATCH)]
    size = members * LEADS * sum(v[0, 0].nbytes for v in held[0].values())
    launcher = Launcher()

    def block(place: slice) -> None:
        for lead in range(LEADS):
            sink.write(slice(0, 1), place, lead, held[(place.start + lead) % len(held)])
        sink.end_block()

    with stopwatches() as spent:
        before, resting = cpu(), resident()
        launcher.start()
        began = time.perf_counter()
        with ZarrSink(folder, request(members, keep_bits)) as sink:
            laid = time.perf_counter()
            with ThreadPoolExecutor(devices) as pool:
                list(pool.map(block, blocks))
            filled = time.perf_counter()
            sink.finish()
            ended = time.perf_counter()
        launcher.over = True
        launcher.join()
        total = cpu() - before
    late = np.array(launcher.late)
    return {
        "GB/s": size / 1e9 / (ended - laid),
        "after the last field [s]": ended - filled,
        "laid out [s]": laid - began,
        "ratio of sizes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / size,
        "processor [s/GB]": total / (size / 1e9),
        "GIL held, packing [s/GB]": holding(spent) / (size / 1e9),
        "parts [s/GB]": {k: v / (size / 1e9) for k, v in sorted(spent.items(), key=lambda p: -p[1])},
        "memory above rest [MB]": launcher.most - resting,
        "late, median [ms]": float(np.median(late)),
        "late, 99 % [ms]": float(np.quantile(late, 0.99)),
        "late, mean [ms]": float(late.mean()),
    }


def run(options: argparse.Namespace, tree: Path | None) -> dict[str, Any]:
    """One run in a process of its own, of this checkout or another one."""
    environment = dict(os.environ)
    root = tree or Path(__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    arguments = [sys.executable, __file__, "--one", *sys.argv[1:]]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def show(name: str, runs: list[dict[str, Any]]) -> None:
    """Medians of some runs."""
    print(f"\n{name}, {len(runs)} run{'s' * (len(runs) != 1)}")
    for key in runs[0]:
        if key.startswith("parts"):
            continue
        values = [r[key] for r in runs]
        print(f"  {key:26s} {statistics.median(values):8.3f}  ({min(values):.3f} … {max(values):.3f})")
    print("  of this process, seconds of a processor per GB:")
    for part in runs[0]["parts [s/GB]"]:
        print(f"    {part:26s} {statistics.median(r['parts [s/GB]'].get(part, 0.0) for r in runs):8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.6, help="of fields, in whole blocks of six members")
    parser.add_argument("--devices", type=int, default=2, help="threads that fill")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to, some GB free")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep-bits", type=int)
    parser.add_argument("--workers", type=int, help="what packs at the same time; by default as the sink has it")
    parser.add_argument("--against", type=Path, help="root of another checkout")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    members = max(1, round(options.gigabytes * 1e9 / (4 * 82 * 240 * 121 * LEADS * BATCH))) * BATCH
    if options.one:
        if options.workers is not None:
            from xmosaic.store import writer

            writer.packers = lambda: options.workers
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            return print(json.dumps(fill(Path(folder) / "fc.zarr", members, options.devices, options.keep_bits)))
    print(f"{members} members × {LEADS} leads × 82 channels, {options.devices} threads, {os.cpu_count()} cores")
    trees = {"this checkout": None} | ({"the other": options.against} if options.against else {})
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for _ in range(options.rounds):
        for name, tree in trees.items():
            runs[name].append(run(options, tree))
    for name, made in runs.items():
        show(name, made)
    if options.against:
        pairs = zip(*([r["GB/s"] for r in made] for made in runs.values()), strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        print(
            f"\nGB/s over the other's: median {statistics.median(ratios):.2f} of "
            + " ".join(f"{r:.2f}" for r in ratios)
        )


if __name__ == "__main__":
    main()
