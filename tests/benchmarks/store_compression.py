"""What does each compression make of forecasts, and how fast? The table of docs/large.md.

``python tests/benchmarks/store_compression.py`` packs the bundled model's forecast and, where they are, the real fields
of ``shared/data``, chunk by chunk as the store does, and reads them again.
Ratios of speed are to Zarr's default, zstd 3.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

import xmosaic
from xmosaic.store.encoding import round_bits

SHARED = Path(__file__).parents[3] / "shared" / "data"
REAL = ("gfs_82channels_20111008T00_f072_1p5deg.nc", "eraint_tuv_20050123T00_1p5deg.nc")
CODECS = {
    "none": None,
    "zstd 1": ZstdCodec(level=1),
    "zstd 3": ZstdCodec(level=3),
    "zstd 9": ZstdCodec(level=9),
    **{
        f"blosc {name} {level}, {shuffle}": BloscCodec(cname=name, clevel=level, shuffle=shuffle, typesize=4)
        for name, level in (("lz4", 5), ("zstd", 1), ("zstd", 3), ("zstd", 9))
        for shuffle in ("shuffle", "bitshuffle")
    },
}
ROUNDED = ("zstd 3", "blosc zstd 1, shuffle", "blosc zstd 1, bitshuffle", "blosc zstd 3, bitshuffle")


def fields() -> dict[str, list[np.ndarray]]:
    """Spheres, each as it would be a chunk, by source."""
    found = {}
    for name in REAL:
        if (SHARED / name).exists():
            ds = xr.open_dataset(SHARED / name)
            found[name.split("_")[0]] = [np.asarray(v.values, np.float32) for v in ds.values() if v.ndim >= 2]
    fc = xmosaic.forecast(xmosaic.open_sample(), "10D", 2, model="bundled", progress=False)
    found["bundled"] = [v.values[m, k] for v in fc.values() for m in range(2) for k in (0, 4, 9)]
    return found


def pack(spheres: list[np.ndarray], codec: object) -> tuple[float, float, float]:
    """Size over raw size, and seconds of the processor to write and to read."""
    size, spent = 0, [0.0, 0.0]
    for values in spheres:
        store = zarr.storage.MemoryStore()
        array = zarr.create_array(store, shape=values.shape, chunks=values.shape, dtype="f4", compressors=codec)
        began = time.process_time()
        array[...] = values
        spent[0] += time.process_time() - began
        began = time.process_time()
        array[...]
        spent[1] += time.process_time() - began
        size += sum(len(b) for k, b in store._store_dict.items() if not k.endswith(".json"))
    return size / sum(v.nbytes for v in spheres), *spent


def main() -> None:
    sources = fields()
    print(f"| bits | compression | {' | '.join(sources)} | written, × zstd 3 | read, × zstd 3 |")
    print("|---" * (len(sources) + 4) + "|")
    for bits in (23, 14, 12, 10):
        rounded = {n: [round_bits(v, bits) for v in spheres] for n, spheres in sources.items()}
        results = {c: {n: [] for n in sources} for c in CODECS if bits == 23 or c in ROUNDED}
        for _ in range(3):  # in turns: another job on the machine hits all alike
            for codec, row in results.items():
                for n, spheres in rounded.items():
                    row[n].append(pack(spheres, CODECS[codec]))
        usual = results["zstd 3"]
        for codec, row in results.items():
            sizes = " | ".join(f"{runs[0][0]:.2f}" for runs in row.values())
            gain = [
                statistics.median(
                    sum(usual[n][k][i] for n in sources) / sum(row[n][k][i] for n in sources) for k in range(3)
                )
                for i in (1, 2)
            ]
            print(f"| {bits} | {codec} | {sizes} | {gain[0]:.1f} | {gain[1]:.1f} |")
    print("\nLargest rounding error in units of the standard deviation of each field over the sphere:")
    for bits in (14, 12, 10):
        worst = {n: max(_loss(v, bits) for v in spheres) for n, spheres in sources.items()}
        print(f"{bits} bits: " + ", ".join(f"{n} {w:.4f}" for n, w in worst.items()))


def _loss(values: np.ndarray, bits: int) -> float:
    """Of the level of a variable that loses most."""
    error = abs(round_bits(values, bits).astype("f8") - values).max(axis=(-2, -1))
    spread = values.astype("f8").std(axis=(-2, -1))
    return float(np.max(np.divide(error, spread, out=np.zeros_like(error), where=spread > 0)))


if __name__ == "__main__":
    main()
