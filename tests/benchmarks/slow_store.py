"""How long a start waits for a store far away, in latencies of one read: python tests/benchmarks/slow_store.py"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import make_model
from test_reads import LEVELS, TIMES, long_dataset, opened, stored

from xmosaic.state import State


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds that every chunk takes")
    latency = parser.parse_args().latency
    model, ds = make_model(), long_dataset()
    store, start = stored(ds), ds.indexes["time"][250]
    print(f"{TIMES} times, {len(LEVELS)} levels, {latency * 1e3:.0f} ms a chunk")
    for name, chunks in (("without dask", None), ("with dask", {})):
        near, _ = opened(store, chunks)
        state = State(near, model, start)
        began = time.perf_counter()
        state.history(start)
        own = time.perf_counter() - began
        far, counting = opened(store, chunks, latency)
        state = State(far, model, start)
        began = time.perf_counter()
        state.history(start)
        took = time.perf_counter() - began
        reads = len(counting.keys)
        print(f"{name}: {reads} reads, {took:.3f} s, {own:.3f} s of it without the latency:", end=" ")
        print(f"{(took - own) / latency:.2f} latencies, {reads} one after the other; {counting.most} at once")


if __name__ == "__main__":
    main()
