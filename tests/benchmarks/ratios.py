"""Has anything become slower? Cheap ratios of processor time on one CPU thread, beside a stored baseline.

python tests/benchmarks/ratios.py            # all, about three minutes, and what moved
python tests/benchmarks/ratios.py crps step  # some
python tests/benchmarks/ratios.py --write    # make this run the baseline
python tests/benchmarks/ratios.py --strict   # exit with 1 if something became slower

Each is the time of one of our operations over that of a plain one of about the same size, in turns, in one process:
a slower or a busy machine changes both. What counts is processor time, so others on the machine matter little. A ratio
has moved where its median lies beyond the baseline's own range by more than a quarter; run again before you believe it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import xmosaic
from xmosaic.diagnostics import crps, spectra
from xmosaic.kernels import neighbor_attention, selected_attention

BASELINE = Path(__file__).with_name("ratios.json")
MARGIN = 1.25

Pair = tuple[Callable[[], object], Callable[[], object]]


def step() -> Pair:
    """One step of a small network over a matrix product."""
    heads = {"num_heads": 4, "num_kv_heads": 2, "local_size": 64, "block_size": 16, "block_count": 6}
    config = xmosaic.MosaicConfig(
        stages=(xmosaic.StageConfig(nside=8, dim=96, **heads),),
        bottleneck=xmosaic.StageConfig(nside=4, dim=128, decoder_depth=0, **heads),
        num_variables=24,
        num_neighbors=12,
    )
    torch.manual_seed(0)
    network = xmosaic.Mosaic(config, np.arange(0, 360, 11.25), np.linspace(-90, 90, 17)).eval()
    inputs = torch.randn(1, 4, 2, 32, 17, 24), torch.rand(1, 2), torch.randn(1, 4, 32)
    return torch.inference_mode()(lambda: network(*inputs)), _matrix_product(900)


def selected() -> Pair:
    """Attention over picked blocks over dense attention of the same number of keys."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 1536, 32), torch.randn(1, 2, 1536, 32), torch.randn(1, 2, 1536, 32)
    indices = torch.rand(1, 2, 48, 48).argsort(-1)[..., :12]
    few = key[:, :, :384].repeat_interleave(2, 1), value[:, :, :384].repeat_interleave(2, 1)
    return (
        lambda: selected_attention(query, key, value, indices, 32),
        lambda: torch.nn.functional.scaled_dot_product_attention(query, *few),
    )


def neighbors() -> Pair:
    """Attention over neighbours over a matrix product."""
    torch.manual_seed(0)
    table, direction = torch.randint(0, 2112, (3072, 16)), torch.randn(3072, 16, 3)
    projection, value = torch.randn(4, 2112, 4, 3), torch.randn(4, 2112, 4, 24)
    return lambda: neighbor_attention(direction, projection, value, table, scale=0.2), _matrix_product(500)


def score() -> Pair:
    """Fair CRPS of 24 members over sorting them."""
    rng = np.random.default_rng(0)
    ds = xmosaic.open_sample()[["geopotential"]].isel(time=slice(0, 4))
    lead = np.array([0], "timedelta64[ns]")
    members = ds.expand_dims(number=np.arange(1, 25), prediction_timedelta=lead)
    fc = members + xr.DataArray(rng.standard_normal(24).astype(np.float32), dims="number")
    values = np.moveaxis(fc["geopotential"].values, 0, -1).copy()
    return lambda: crps(fc, ds), lambda: np.sort(values, axis=-1)


def spectrum() -> Pair:
    """Spectra over copies of the same fields in float64."""
    ds = xmosaic.open_sample()[["temperature"]].load()
    values = ds["temperature"].values
    return lambda: spectra(ds), lambda: [values.astype(np.float64) for _ in range(10)]


def regrid() -> Pair:
    """To HEALPix, conservatively, over copies of the same fields."""
    ds = xmosaic.open_sample()[["temperature"]].load()
    values = ds["temperature"].values
    return lambda: ds.mosaic.to_healpix(16), lambda: [values.astype(np.float64) for _ in range(10)]


def check() -> Pair:
    """The check of a Dataset over the means of its fields."""
    ds = xmosaic.open_sample().load()
    return lambda: ds.mosaic.check("bundled"), lambda: ds.mean(("latitude", "longitude"))


def stored() -> Pair:
    """A forecast into a store over the same in memory."""
    ds = xmosaic.open_sample().load()
    xmosaic.set_options(progress=False, model="bundled")

    def into_store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ds.mosaic.forecast("3D", 2, store=folder + "/fc.zarr", device="cpu")

    return into_store, lambda: ds.mosaic.forecast("3D", 2, device="cpu")


def imports() -> Pair:
    """`import xmosaic` over `import xarray`, in processes of their own."""
    return _process("import xmosaic"), _process("import xarray")


ALL = {f.__name__: f for f in (imports, check, step, selected, neighbors, score, spectrum, regrid, stored)}


def _matrix_product(size: int) -> Callable[[], object]:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return lambda: a @ b


def _process(code: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def _spent() -> float:
    """Processor time of this process, its threads, and the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _time(call: Callable[[], object], least: float = 0.6) -> float:
    """Seconds of a call: as many as take over half a second, since the system counts in hundredths."""
    count, began, wall = 0, _spent(), time.perf_counter()
    while time.perf_counter() - wall < least:
        call()
        count += 1
    return (_spent() - began) / count


def measure(name: str, rounds: int) -> dict[str, float]:
    """Median, least and most of the ratios of some rounds."""
    ours, plain = ALL[name]()
    ours(), plain()
    ratios = [_time(ours) / _time(plain) for _ in range(rounds)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def verdict(now: dict[str, float], before: dict[str, float] | None) -> str:
    """What is to be said of a ratio beside its baseline.

    >>> verdict({"median": 3.0}, {"median": 2.0, "least": 1.9, "most": 2.2})
    'SLOWER: 1.50 times'
    >>> verdict({"median": 2.6}, {"median": 2.0, "least": 1.9, "most": 2.2})
    'as before'
    >>> verdict({"median": 1.0}, {"median": 2.0, "least": 1.9, "most": 2.2})
    'faster: 0.50 times'
    >>> verdict({"median": 1.0}, None)
    'new'
    """
    if before is None:
        return "new"
    change = f"{now['median'] / before['median']:.2f} times"
    if now["median"] > MARGIN * before["most"]:
        return f"SLOWER: {change}"
    return f"faster: {change}" if now["median"] < before["least"] / MARGIN else "as before"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(ALL))
    parser.add_argument("--write", action="store_true", help="make this run the baseline of what it measured")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if something became slower")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(ALL)):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(ALL)}")
    torch.set_num_threads(1)
    stored_runs = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"ratios": {}}
    found, said = {}, {}
    print(f"| ratio | now | baseline | |\n|{'---|' * 4}")
    for name in options.names or ALL:
        found[name], before = measure(name, options.rounds), stored_runs["ratios"].get(name)
        said[name] = verdict(found[name], before)
        print(f"| {name} | {_range(found[name])} | {_range(before) if before else ''} | {said[name]} |", flush=True)
    for name in found:
        print(f"{name}: {ALL[name].__doc__}")
    if options.write:
        made_on = f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
        kept = {"made_on": made_on, "ratios": stored_runs["ratios"] | found}
        BASELINE.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"written to {BASELINE}")
    return int(options.strict and any(text.startswith("SLOWER") for text in said.values()))


def _range(one: dict[str, float]) -> str:
    return f"{one['median']:.3g} ({one['least']:.3g} … {one['most']:.3g})"


if __name__ == "__main__":
    sys.exit(main())
