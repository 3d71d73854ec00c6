"""The reference path on a GPU: parity, agreement with the CPU, time and memory of the full network.

``python tests/benchmarks/gpu_reference.py``
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from full_step import SHARED, random_era5, twice

import xmosaic

sys.path.insert(0, str(Path(__file__).parents[1]))
import parity


def agreement() -> None:
    """Bundled model, 10 days: the same members on the CPU and on the GPU."""
    model, ds = xmosaic.load_model("bundled"), xmosaic.open_sample()
    options = {"members": 4, "model": model, "progress": False}
    cpu = xmosaic.forecast(ds, "10D", device="cpu", **options)
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        gpu = xmosaic.forecast(ds, "10D", device="cuda", dtype=dtype, **options)
        worst = 0.0
        for channel, std in zip(model.schema.state, model.std, strict=True):
            at = {"level": channel.level} if channel.level else {}
            difference = abs(gpu[channel.variable].sel(at) - cpu[channel.variable].sel(at))
            worst = max(worst, float(difference.max()) / std)
        print(
            f"bundled, 10 days, {dtype:9s}: largest difference from the CPU's float32 {worst:.1e} standard deviations"
        )
    model.network.cpu()


def full_network() -> None:
    """Time and memory of one step of the 214 M network, and of a labelled 10-day forecast."""
    model = random_era5()
    ds = twice(SHARED / "gfs_82channels_20111008T00_f072_1p5deg.nc")
    network = model.network.cuda()
    for dtype, members in ((torch.float32, 1), (torch.float16, 1), (torch.bfloat16, 1), (torch.bfloat16, 8)):
        history = torch.randn(1, members, 2, 240, 121, 82, device="cuda")
        clock, noise = torch.rand(1, 2, device="cuda"), torch.randn(1, members, 32, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        times = []
        with torch.inference_mode(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            for _ in range(7):
                torch.cuda.synchronize()
                began = time.perf_counter()
                out = network(history, clock, noise)
                torch.cuda.synchronize()
                times.append(1e3 * (time.perf_counter() - began) / members)
        median, spread = np.median(times[2:]), (min(times[2:]), max(times[2:]))
        peak = torch.cuda.max_memory_allocated() / 1e9
        print(
            f"full network, {str(dtype)[6:]:9s} {members} members: {median:.0f} ms per member-step "
            f"({spread[0]:.0f} … {spread[1]:.0f}), {peak:.1f} GB, finite {bool(torch.isfinite(out).all())}"
        )
    for members in (1, 8):
        began = time.perf_counter()
        fc = xmosaic.forecast(ds, "10D", members, model=model, device="cuda", dtype="bfloat16", progress=False)
        print(
            f"Dataset to labelled Dataset, {members} members × 10 days, bfloat16: {time.perf_counter() - began:.1f} s"
        )
        assert fc.sizes["prediction_timedelta"] == 10


def main() -> None:
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for name in ("tiny", "small"):
        for dtype in (torch.float32, torch.float64):
            found = parity.errors(SHARED.parent / "parity" / name, "cuda", dtype)
            print(
                f"parity {name:5s} {str(dtype)[6:]}: one step {found['one step']:.1e}, rollout {found['rollout']:.1e}"
            )
    agreement()
    full_network()


if __name__ == "__main__":
    main()
