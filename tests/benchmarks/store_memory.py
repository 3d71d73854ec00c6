"""Does the memory of a forecast that is written while it runs grow with its lead?

``python tests/benchmarks/store_memory.py`` runs each lead in a process of its own, bundled model, 8 members.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import xmosaic

LEADS = ("10D", "40D", "160D")


def peak(lead: str, stored: bool) -> None:
    """Print this process's peak memory after one forecast [MB]."""
    ds = xmosaic.open_sample()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "fc.zarr" if stored else None
        fc = xmosaic.forecast(ds, lead, 8, model="bundled", store=store, progress=False)
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} {fc.nbytes / 1e6:.0f}")


def main() -> None:
    if len(sys.argv) == 3:
        return peak(sys.argv[1], sys.argv[2] == "stored")
    print("| lead | result | peak, written while it runs | peak, kept in memory |\n|---|---|---|---|")
    for lead in LEADS:
        results = [
            subprocess.run(
                [sys.executable, __file__, lead, how], capture_output=True, text=True, check=True
            ).stdout.split()
            for how in ("stored", "kept")
        ]
        print(f"| {lead} | {results[0][1]} MB | {results[0][0]} MB | {results[1][0]} MB |")


if __name__ == "__main__":
    main()
