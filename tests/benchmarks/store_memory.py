"""Does the memory of a forecast that is written while it runs grow, and what does the writing cost?

``python tests/benchmarks/store_memory.py`` with the bundled model: peak memory by lead, memory over the time of one
forecast of 40 leads and many members, and the time of a forecast into a store over that
of the same in memory, in turns.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

import xmosaic

LEADS = ("10D", "40D", "160D")
MEMBERS, ROUNDS = 32, 5


def forecast(lead: str, members: int, stored: bool) -> tuple[float, int]:
    """Seconds and bytes of one forecast."""
    ds = xmosaic.open_sample()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "fc.zarr" if stored else None
        began = time.perf_counter()
        fc = xmosaic.forecast(ds, lead, members, model="bundled", store=store, batch_size=4, progress=False)
        return time.perf_counter() - began, fc.nbytes


def peak(lead: str, how: str) -> None:
    """Print this process's peak memory after one forecast, and the size of that [MB]."""
    _, size = forecast(lead, 8, how == "stored")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} {size / 1e6:.0f}")


def over_time() -> None:
    """Memory at every tenth of a forecast of 40 leads and many members [MB]."""
    forecast("10D", 4, True)  # imports and caches
    seen, over, me = [], threading.Event(), psutil.Process()

    def watch() -> None:
        while not over.wait(0.05):
            seen.append(me.memory_info().rss / 1e6)

    threading.Thread(target=watch, daemon=True).start()
    _, size = forecast("40D", MEMBERS, True)
    over.set()
    tenths = [max(seen[len(seen) * i // 10 : len(seen) * (i + 1) // 10]) for i in range(10)]
    print(f"\n40 leads × {MEMBERS} members, {size / 1e6:.0f} MB; largest memory in each tenth of the time [MB]:")
    print(" ".join(f"{m:.0f}" for m in tenths))


def overlap() -> None:
    """Time into a store over time in memory, one after the other, several times."""
    forecast("10D", 4, True), forecast("10D", 4, False)
    ratios = []
    for _ in range(ROUNDS):
        ratios.append(forecast("40D", 8, True)[0] / forecast("40D", 8, False)[0])
    print(f"\ninto a store / in memory, 40 leads × 8 members: median {statistics.median(ratios):.3f} of", end=" ")
    print(" ".join(f"{r:.3f}" for r in ratios))


def main() -> None:
    if len(sys.argv) == 3:
        return peak(*sys.argv[1:])
    print("| lead | result | peak, written while it runs | peak, kept in memory |\n|---|---|---|---|")
    for lead in LEADS:
        results = [
            subprocess.run(
                [sys.executable, __file__, lead, how], capture_output=True, text=True, check=True
            ).stdout.split()
            for how in ("stored", "kept")
        ]
        print(f"| {lead} | {results[0][1]} MB | {results[0][0]} MB | {results[1][0]} MB |")
    overlap()
    over_time()


if __name__ == "__main__":
    main()
