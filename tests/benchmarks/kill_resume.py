"""A small forecast killed again and again: does every store end up with the bits of an uninterrupted one?

``python tests/benchmarks/kill_resume.py [KILLS]`` (60 by default) kills processes with SIGKILL at random points, two
fifths of them from outside after a random time, the rest at a random step, write or sync,
three to a store, and goes on. Whatever takes more than a minute ends with the stacks of all threads.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import faults

import xmosaic
from xmosaic.errors import StoreError
from xmosaic.store import encoding, open_forecast

PER_STORE, LIMIT = 3, 60
os.environ["PYTHONFAULTHANDLER"] = "1"  # for the processes that are killed


def kill(store: Path, rng: np.random.Generator, k: int) -> str:
    """Begin or go on, and kill; returns how."""
    if k % 5 < 2:
        process = faults.start(store, "step", 10**9)
        time.sleep(float(rng.uniform(0.02, 0.8)))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        point = "from outside"
    else:
        point = faults.POINTS[int(rng.integers(len(faults.POINTS)))]
        process = faults.start(store, point, int(rng.integers(0, {"step": 12, "sync": 90}.get(point, 45))))
    process.join(LIMIT)
    if process.is_alive():
        os.kill(process.pid, signal.SIGABRT)  # tells where it is
        raise SystemExit(f"a process that was to end ({point}, in {store}) hangs")
    return point if process.exitcode == -signal.SIGKILL else "finished first"


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


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    encoding.SHARD_LEADS = faults.SHARD
    rng, expected = np.random.default_rng(0), faults.forecast(None)
    kills: Counter[str] = Counter()
    stores = identical = true = looked = 0
    with tempfile.TemporaryDirectory() as folder:
        while sum(n for p, n in kills.items() if p != "finished first") < wanted:
            store = Path(folder) / f"{stores}.zarr"
            for k in range(PER_STORE):
                faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
                kills[kill(store, rng, PER_STORE * stores + k)] += 1
                looked, true = looked + 1, true + honest(store, expected)
            faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
            got = faults.forecast(store).load()
            same = all(np.array_equal(got[n].values, expected[n].values, equal_nan=True) for n in expected)
            stores, identical = stores + 1, identical + same
    faulthandler.cancel_dump_traceback_later()
    print("| killed | times |\n|---|---|")
    for point, count in sorted(kills.items()):
        print(f"| {point} | {count} |")
    print(f"\n{sum(n for p, n in kills.items() if p != 'finished first')} kills in {stores} stores")
    print(f"records that claim nothing but what is there, looked at after each: {true} of {looked}")
    print(f"stores gone on with to the bits of an uninterrupted forecast: {identical} of {stores}")


if __name__ == "__main__":
    main()
