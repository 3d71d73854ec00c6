"""Time and memory of scores beside xskillscore's, 50 members × 40 000 points: prints the table of docs/scores.md.

python tests/benchmarks/scores.py                       # xskillscore without numba
python tests/benchmarks/scores.py --other PYTHON        # and with it: PYTHON has xskillscore and numba installed

Each figure is of a process of its own: the best and the range of several calls after one to warm up, and the peak of
resident memory above what it was before the first call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import xarray as xr

MEMBERS, POINTS, CALLS = 50, 40_000, 9
NAMES = ("crps", "spread_skill", "rank_histogram")


def _data(dtype: str) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(0)
    members = rng.normal(size=(MEMBERS, POINTS)).astype(dtype)
    return xr.DataArray(members, dims=("member", "point")), xr.DataArray(
        rng.normal(size=POINTS).astype(dtype), dims="point"
    )


def _ours(name: str):
    from xmosaic import diagnostics

    return getattr(diagnostics, name)


def _theirs(name: str):
    import xskillscore as xs

    def spread_skill(forecast, truth):
        spread = xr.apply_ufunc(np.sqrt, forecast.var("member", ddof=1).mean())
        return spread / xs.rmse(truth, forecast.mean("member"))

    return {
        "crps": lambda x, y: xs.crps_ensemble(y, x),
        "spread_skill": spread_skill,
        "rank_histogram": lambda x, y: xs.rank_histogram(y, x),
    }[name]


def _measure(who: str, name: str, dtype: str) -> dict:
    forecast, truth = _data(dtype)
    function = {"ours": _ours, "xskillscore": _theirs}[who](name)
    # imports and compilation are not what is compared
    function(forecast.isel(point=slice(50)), truth.isel(point=slice(50)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, result = [], None
    for _ in range(CALLS):
        began = time.perf_counter()
        result = function(forecast, truth)
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    numba = "numba" in sys.modules
    values = np.asarray(result).ravel().tolist()[:3]
    return {"best": min(times), "worst": max(times), "MB": peak / 1024, "numba": numba, "values": values}


def _run(python: str, who: str, name: str, dtype: str) -> dict:
    command = [python, __file__, "--case", who, name, dtype]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", nargs=3)
    parser.add_argument("--other", help="a Python with xskillscore and numba")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(_measure(*options.case)))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ",
        end="",
    )
    print(", ".join(f"{p} {version(p)}" for p in ("numpy", "xarray", "xskillscore")))
    print("| score | who | best [ms] | worst [ms] | time / ours | peak [MB] | peak / ours |")
    print("|---|---|---|---|---|---|---|")
    for name in NAMES:
        ours = _run(sys.executable, "ours", name, "float64")
        rows = [("ours", ours), ("ours, float32", _run(sys.executable, "ours", name, "float32"))]
        rows.append(("xskillscore", _run(sys.executable, "xskillscore", name, "float64")))
        if options.other:
            rows.append(("xskillscore, numba", _run(options.other, "xskillscore", name, "float64")))
            rows.append(("ours, same Python", _run(options.other, "ours", name, "float64")))
        for who, found in rows:
            print(
                f"| {name} | {who} | {found['best'] * 1e3:.1f} | {found['worst'] * 1e3:.1f} "
                f"| {found['best'] / ours['best']:.2f} | {found['MB']:.0f} | {found['MB'] / max(ours['MB'], 1):.1f} |"
            )


if __name__ == "__main__":
    main()
