"""How many members should go through the bundled network together on a CPU?

``python tests/benchmarks/cpu_batch.py``
"""

from __future__ import annotations

import time

import numpy as np
import torch

import xmosaic


def main() -> None:
    network = xmosaic.load_model("bundled").network
    channels = network.config.num_channels
    print("| members at once | ms per member and step, median (least … most) of 7 |\n|---|---|")
    for members in (1, 2, 4, 8, 24):
        history = torch.randn(1, members, network.config.num_history, *network.grid_shape, channels)
        clock, noise, times = torch.rand(1, 2), torch.randn(1, members, network.config.noise_dim), []
        with torch.inference_mode():
            for _ in range(9):
                began = time.perf_counter()
                network(history, clock, noise)
                times.append(1e3 * (time.perf_counter() - began) / members)
        print(f"| {members} | {np.median(times[2:]):.0f} ({min(times[2:]):.0f} … {max(times[2:]):.0f}) |")


if __name__ == "__main__":
    main()
