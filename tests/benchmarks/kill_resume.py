"""A small forecast killed again and again: does every store end up with the bits of an uninterrupted one?

``python tests/benchmarks/kill_resume.py [KILLS]`` (60 by default) kills processes with SIGKILL at random points, two
fifths of them from outside after a random time, the rest at a random step, write or sync,
three to a store, and goes on. ``--every`` kills at every step, write and sync in turn, each in a store of its own.
Whatever takes more than a minute ends with the stacks of all threads.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[1]))

import faults

import xmosaic
from xmosaic.errors import StoreError
from xmosaic.store import encoding, open_forecast

PER_STORE, LIMIT = 3, 60
FINISHED = "finished first"
os.environ["PYTHONFAULTHANDLER"] = "1"  # for the processes that are killed


def kill(store: Path, point: str, count: int) -> str:
    """Begin or go on, and kill at the count-th such point; returns how."""
    return ended(faults.start(store, point, count), store, point)


def kill_at_random(store: Path, rng: np.random.Generator, k: int) -> str:
    """Begin or go on, and kill somewhere; returns how."""
    if k % 5 >= 2:
        point = faults.POINTS[int(rng.integers(len(faults.POINTS)))]
        return kill(store, point, int(rng.integers(0, {"step": 12, "sync": 90}.get(point, 45))))
    process = faults.start(store, "step", 10**9)
    time.sleep(float(rng.uniform(0.02, 0.8)))
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    return ended(process, store, "from outside")


def ended(process: Any, store: Path, point: str) -> str:
    """How a process ended that was to be killed; `SystemExit` with its stacks if it doesn't."""
    process.join(LIMIT)
    if process.is_alive():
        os.kill(process.pid, signal.SIGABRT)  # tells where it is
        raise SystemExit(f"a process that was to end ({point}, in {store}) hangs")
    return point if process.exitcode == -signal.SIGKILL else FINISHED


def honest(store: Path, expected: object) -> bool:
    """Whether all that the record calls complete is there, and right."""
    try:
        done = xmosaic.written(store).values
    except StoreError:
        return True  # no record, no claim
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stored = open_forecast(store)
        except StoreError:
            return not done.any()  # only just begun
        return all(np.array_equal(stored[n].values[done], expected[n].values[done], equal_nan=True) for n in expected)


class Tally:
    """What was seen in all stores."""

    def __init__(self) -> None:
        self.expected = faults.forecast(None)
        self.kills: Counter[str] = Counter()
        self.stores = self.identical = self.clean = self.true = self.looked = 0

    @property
    def killed(self) -> int:
        return sum(n for how, n in self.kills.items() if how != FINISHED)

    def note(self, store: Path, how: str) -> None:
        """Count a kill, and look at what the store claims after it."""
        self.kills[how] += 1
        self.looked, self.true = self.looked + 1, self.true + honest(store, self.expected)

    def finish(self, store: Path) -> None:
        """Go on to the end, and compare."""
        got = faults.forecast(store).load()
        same = all(np.array_equal(got[n].values, self.expected[n].values, equal_nan=True) for n in self.expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of what is no part of a store, and of metadata that aren't consolidated
            xr.open_zarr(store).close()
        self.clean += not list(store.rglob("*.partial"))
        self.stores, self.identical = self.stores + 1, self.identical + same
        shutil.rmtree(store)

    def report(self) -> None:
        print("| killed | times |\n|---|---|")
        for point, count in sorted(self.kills.items()):
            print(f"| {point} | {count} |")
        print(f"\n{self.killed} kills in {self.stores} stores")
        print(f"records that claim nothing but what is there, looked at after each: {self.true} of {self.looked}")
        print(f"stores gone on with to the bits of an uninterrupted forecast: {self.identical} of {self.stores}")
        print(f"of these without a file too many: {self.clean}")


def at_random(tally: Tally, folder: Path, wanted: int) -> None:
    """Kill three times to a store, until there are as many kills as are wanted."""
    rng = np.random.default_rng(0)
    while tally.killed < wanted:
        store = folder / f"{tally.stores}.zarr"
        for k in range(PER_STORE):
            faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
            tally.note(store, kill_at_random(store, rng, PER_STORE * tally.stores + k))
        faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
        tally.finish(store)


def everywhere(tally: Tally, folder: Path) -> None:
    """Kill once to a store, at the first point of each kind, at the second, and so on, until there is none left."""
    for point in faults.POINTS:
        for count in itertools.count():
            faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
            store = folder / f"{tally.stores}.zarr"
            how = kill(store, point, count)
            tally.note(store, how)
            tally.finish(store)
            if how == FINISHED:
                print(f"{point}: killed at each of {count}", flush=True)
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=60)
    parser.add_argument("--every", action="store_true", help="every point in turn")
    options = parser.parse_args()
    encoding.SHARD_LEADS = faults.SHARD
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        if options.every:
            everywhere(tally, Path(folder))
        else:
            at_random(tally, Path(folder), options.kills)
    faulthandler.cancel_dump_traceback_later()
    tally.report()


if __name__ == "__main__":
    main()
