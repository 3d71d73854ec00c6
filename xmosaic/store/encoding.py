"""How fields are laid out and packed: chunks, shards, compression, and rounding for those who want it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

# A shard holds one start, the members of a block and so many leads, but no more than so many bytes (of all variables
# together, uncompressed); so does what waits to be written.
SHARD_LEADS = 10
SHARD_BYTES = 256 * 1024**2
_MANTISSA = 23


def compressor(keep_bits: int | None) -> tuple[Any, ...]:
    """The compression that was chosen (tests/benchmarks/store_compression.py, docs/large.md), and a checksum.

    Blosc's zstd at its lowest level: higher ones take twice as long for a few per cent. Rounded numbers end in
    zeros, which lie together once bits, rather than bytes, are shuffled.
    """
    from zarr.codecs import BloscCodec

    return sealed(BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle" if keep_bits else "shuffle", typesize=4))


def sealed(*codecs: Any) -> tuple[Any, ...]:
    """Compression with a checksum of what it gives: four bytes a chunk, by which a bit that has turned is noticed."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return (*(codecs or [ZstdCodec(level=0, checksum=False)]), Crc32cCodec())  # zstd as zarr has it by default


def shard_leads(variables: Mapping[str, xr.Variable], members: int, leads: int) -> int:
    """How many leads of a block's members go into one shard."""
    row = sum(4 * math.prod(_sphere(v)) for v in variables.values())
    return max(1, min(leads, SHARD_LEADS, SHARD_BYTES // (row * members)))


def layouts(
    variables: Mapping[str, xr.Variable], members: int, leads: int, keep_bits: int | None
) -> dict[str, dict[str, Any]]:
    """Zarr encoding of each variable: a chunk per time, member and lead, shards of so many members and leads."""
    packing = compressor(keep_bits)
    result = {}
    for name, v in variables.items():
        front = (1,) * (v.ndim - len(_sphere(v)) - 2)
        result[name] = {
            "chunks": (*front, 1, 1, *_sphere(v)),
            "shards": (*front, members, leads, *_sphere(v)),
            "compressors": packing,
            "_FillValue": np.float32("nan"),
        }
    return result


def _sphere(variable: xr.Variable) -> tuple[int, ...]:
    """Lengths of the dimensions behind the lead."""
    return variable.shape[variable.dims.index("prediction_timedelta") + 1 :]


def round_bits(values: np.ndarray, keep_bits: int | None) -> np.ndarray:
    """Round to so many bits of the mantissa, to nearest, halves to even.

    Parameters
    ----------
    values : float32 array
    keep_bits : int, optional
        1 to 23; the relative error is at most 2 ** -(keep_bits + 1). None and 23 change nothing.

    Returns
    -------
    float32 array
        NaN and infinite values as they were.

    References
    ----------
    Klöwer et al. 2021, doi:10.1038/s43588-021-00156-2

    Examples
    --------
    >>> round_bits(np.array([287.4321, -0.3], np.float32), 10).tolist()
    [287.5, -0.300048828125]
    """
    if keep_bits is None or keep_bits == _MANTISSA:
        return values
    drop = np.uint32(_MANTISSA - keep_bits)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    half = (np.uint32(1) << (drop - np.uint32(1))) - np.uint32(1)
    even = (bits >> drop) & np.uint32(1)
    rounded = ((bits + half + even) >> drop << drop).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)
