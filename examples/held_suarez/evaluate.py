"""Score models on the test year: ``python evaluate.py STORE FOLDER [STORE FOLDER …]``.

For each folder all its models, FOLDER/*.safetensors, make the same forecasts from the store of their grid; written are
FOLDER/scores.nc and spectra.nc, and, with the persistence, climatology and climatological ensemble that they are
compared with, for the models that --baselines and --long name. Each GPU has a process that takes one model after the
other; processes without a GPU score what is there already, each a variable of a forecast at a time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import simulate
import torch
import xarray as xr
from scoring import LEAD, merged, read, score_long, score_variable, spill, write
from variants import VARIANTS

import xmosaic
from xmosaic import diagnostics

BASELINES = ("persistence", "climatology", "climatology_ensemble")
# starts × members that go through the network together on a GPU, as far as its memory goes: a small network waits for
# launches otherwise
ROWS = 240


@dataclass(frozen=True)
class Test:
    """What is forecast: numbers of starts, members and days, and the same for the long runs."""

    starts: int = 60
    members: int = 24
    days: int = 10
    long_starts: int = 8
    long_members: int = 8
    long_days: int = 60
    spectra_members: int = 8  # whose power is compared by zonal wavenumber


@dataclass
class Work:
    """A folder of models, the store of their grid, where fields are left for other processes, and what these found."""

    store: Path
    folder: Path
    scratch: Path
    names: list[str] = field(default_factory=list)
    scored: dict[tuple[str, str], Future] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def spaced(times: pd.DatetimeIndex, count: int, after: int) -> pd.DatetimeIndex:
    """Starts spread evenly over a year: with a day of history before, and `after` days after them."""
    last = len(times) - 1 - after
    if last < 1:
        raise SystemExit(f"{len(times)} times are too few for {after} days of forecast")
    return times[np.unique(np.linspace(1, last, count).round().astype(int))]


def models_in(folder: Path) -> list[str]:
    """Names of the models that are there: those that `variants` knows first, in its order."""
    there = sorted(path.stem for path in folder.glob("*.safetensors"))
    return [v for v in VARIANTS if v in there] + [n for n in there if n not in VARIANTS]


# ---------------------------------------------------------------------------------------------------------- forecasts


def forecast_model(work: tuple[Path, Path, Path], name: str, test: Test, device: str | None, long: bool) -> list[str]:
    """Forecasts of a model, left variable by variable for whoever scores them; the variables."""
    store, folder, scratch = work
    truth = read(store, "test")
    model = xmosaic.load_model(folder / f"{name}.safetensors")
    times = spaced(pd.DatetimeIndex(truth["time"].values), test.starts, test.days)
    members = test.members if model.config.noise_dim else 1
    fc = run_model(truth, model, times, test.days, members, device)
    spill(fc if model.config.noise_dim else fc.isel(number=0, drop=True), scratch, name)
    del fc
    if long:
        after = 0 if len(truth["time"]) <= test.long_days + 2 else test.long_days
        times = spaced(pd.DatetimeIndex(truth["time"].values), test.long_starts, after)
        members = test.long_members if model.config.noise_dim else 1
        spill(run_model(truth, model, times, test.long_days, members, device), scratch, f"long {name}")
    return [str(v) for v in truth.data_vars]


def run_model(
    ds: xr.Dataset, model: xmosaic.Model, times: pd.DatetimeIndex, days: int, members: int, device: str | None
) -> xr.Dataset:
    rows = members
    if device is not None and device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        rows = max(1, min(ROWS, int(0.4 * free) // model.member_bytes()))
    # the arithmetic that those who have the model and no GPU will have
    options = {"batch_size": rows, "device": device, "dtype": "float32", "progress": False}
    return xmosaic.forecast(ds, f"{days}D", members, model=model, time=times, **options)


def forecast_baseline(work: tuple[Path, Path, Path], name: str, test: Test) -> list[str]:
    """Persistence, or the climatology of the training years as a mean or as an ensemble."""
    store, _, scratch = work
    truth = read(store, "test")
    times = spaced(pd.DatetimeIndex(truth["time"].values), test.starts, test.days)
    leads = pd.to_timedelta(np.arange(1, test.days + 1), unit="D")
    valid = (("time", LEAD), times.values[:, None] + leads.values[None, :])
    like = xr.Dataset(coords={"time": times, LEAD: leads, "valid_time": valid})
    like = like.assign({v: _blank(truth[v], like) for v in truth.data_vars})
    if name == "persistence":
        made = diagnostics.persistence(truth, like=like)
    elif name == "climatology":
        made = diagnostics.climatology(read(store, "train"), like=like, window=None)
    else:
        history = read(store, "train")
        made = diagnostics.climatological_ensemble(history, like=like, members=test.members, window=None)
    spill(made, scratch, name)
    return [str(v) for v in truth.data_vars]


def _blank(field: xr.DataArray, like: xr.Dataset) -> xr.DataArray:
    """A forecast's labels without its values."""
    one = field.isel(time=0, drop=True).expand_dims({"time": like["time"], LEAD: like[LEAD]})
    return one.assign_attrs(field.attrs)


# ----------------------------------------------------------------------------------------------------- all of it


def one_thread() -> None:
    """Of libraries that a process loads from now on, and of torch."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    torch.set_num_threads(1)


class Evaluation:
    """Forecasts on each device one after another, scores in a pool beside them."""

    def __init__(self, works: Sequence[Work], test: Test, workers: int, devices: Sequence[str | None]) -> None:
        self.works, self.test, self.devices = works, test, list(devices)
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread)
        self.gpus = [ProcessPoolExecutor(1, mp_context=context) for _ in self.devices]
        self.long: dict[tuple[str, str], Future] = {}
        self.began, self.lock = time.perf_counter(), threading.Lock()

    def run(self, baselines: Sequence[str], long: Sequence[str]) -> None:
        """Make and score everything."""
        for work in self.works:
            spill(read(work.store, "test"), work.scratch, "truth")
        jobs = iter([(work, name, name in long) for work in self.works for name in work.names])
        compared = [w for w in self.works if w.folder.name in baselines or str(w.folder) in baselines]
        threads = [threading.Thread(target=self._device, args=(i, jobs)) for i in range(len(self.devices))]
        for thread in threads:
            thread.start()
        made = [
            (work, name, self.pool.submit(forecast_baseline, _paths(work), name, self.test))
            for work in compared
            for name in BASELINES
        ]
        for work, name, future in made:
            self._hand_on(work, name, future)
        for thread in threads:
            thread.join()
        for work in self.works:
            self._collect(work)
        for pool in (self.pool, *self.gpus):
            pool.shutdown()

    def _device(self, number: int, jobs: Iterator[tuple[Work, str, bool]]) -> None:
        while True:
            with self.lock:
                job = next(jobs, None)
            if job is None:
                return
            work, name, long = job
            try:
                args = (_paths(work), name, self.test, self.devices[number], long)
                future = self.gpus[number].submit(forecast_model, *args)
            except BrokenProcessPool:  # the model before has taken its process along
                self.gpus[number] = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
                future = self.gpus[number].submit(forecast_model, *args)
            self._hand_on(work, name, future, long)

    def _hand_on(self, work: Work, name: str, future: Future, long: bool = False) -> None:
        """When a forecast is made, let its variables be scored; a failure is noted, and the others go on."""
        try:
            variables = future.result()
        except Exception:
            traceback.print_exc()
            work.failed.append(name)
            return
        self.say(f"{work.folder.name}/{name}: forecast")
        for variable in variables:
            args = (work.scratch, name, variable, self.test.spectra_members)
            work.scored[name, variable] = self.pool.submit(score_variable, *args)
        if long:
            self.long[str(work.folder), name] = self.pool.submit(score_long, work.scratch, name, work.store)

    def _collect(self, work: Work) -> None:
        """Write what was found of a folder's forecasts; one of which a variable failed is left out whole."""
        found: dict[str, dict[str, Any]] = {}
        for (name, variable), future in work.scored.items():
            try:
                found.setdefault(variable, {})[name] = future.result()
            except Exception:
                traceback.print_exc()
                work.failed.append(f"{name}, {variable}")
        for (folder, name), future in self.long.items():
            if folder == str(work.folder):
                label = "long" if name in ("bundled", "evidence") else f"long_{name}"
                write(future.result(), work.folder / f"{label}.nc")
        order = [n for n in (*work.names, *BASELINES) if found and all(n in v for v in found.values())]
        if order:
            scores, spectra = merged([found[v] for v in found], order)
            write(scores, work.folder / "scores.nc")
            write(spectra, work.folder / "spectra.nc")
        self.say(f"{work.folder.name}: scored {', '.join(order) or 'nothing'}")

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.began:6.1f} s  {text}", flush=True)


def _paths(work: Work) -> tuple[Path, Path, Path]:
    return work.store, work.folder, work.scratch


def evaluate(
    pairs: Sequence[tuple[Path, Path]],
    test: Test,
    workers: int,
    devices: Sequence[str | None],
    baselines: Sequence[str],
    long: Sequence[str],
) -> list[str]:
    """Forecast and score; names of what failed."""
    root = Path(tempfile.mkdtemp(prefix="held_suarez_"))
    works = []
    for number, (store, folder) in enumerate(pairs):
        (root / str(number)).mkdir()
        works.append(Work(store, folder, root / str(number), models_in(folder)))
        if not works[-1].names:
            print(f"{folder} holds no model", flush=True)
    try:
        Evaluation([w for w in works if w.names], test, workers, devices).run(baselines, long)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return [f"{w.folder.name}/{name}" for w in works for name in w.failed] + [
        str(w.folder) for w in works if not w.names
    ]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, nargs="+", metavar="STORE FOLDER", help="a store, and models of its grid")
    for name in Test.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Test, name))
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=max(1, min(28, cores - 2)), help="processes that score")
    parser.add_argument("--devices", nargs="+", default=None, help="such as cuda:0 cuda:1; by default all there are")
    parser.add_argument("--baselines", nargs="*", help="folders whose models are compared with them; by default all")
    parser.add_argument("--long", nargs="*", default=["bundled", "evidence"], help="models that run for sixty days")
    found = parser.parse_args(words)
    if len(found.pairs) % 2:
        parser.error("each store needs a folder: STORE FOLDER [STORE FOLDER …]")
    return found


def main() -> None:
    o = arguments()
    pairs = list(zip(o.pairs[::2], o.pairs[1::2], strict=True))
    devices = o.devices or [f"cuda:{i}" for i in range(simulate.gpus())] or [None]
    test = Test(**{name: getattr(o, name) for name in Test.__dataclass_fields__})
    baselines = [str(folder) for _, folder in pairs] if o.baselines is None else o.baselines
    bad = evaluate(pairs, test, o.workers, devices, baselines, o.long)
    if bad:
        sys.exit(f"failed: {'; '.join(bad)}")


if __name__ == "__main__":
    main()
