"""Shards packed chunk by chunk straight into their files, with the bytes that zarr would write.

zarr packs a shard's chunks, then joins them, then writes: copies in new memory, and tasks of an event loop for each
chunk and codec, which hold Python's lock for most of a second per GB, so that threads can't share the work. Here a
chunk is in its file before the next one is packed, and nearly all of the time passes in calls that let go of that lock.

References
----------
Zarr v3's sharding codec: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import zarr

    from .synced import SyncedStore

_ABSENT = 2**64 - 1  # offset and length of a chunk that isn't there
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}


@dataclasses.dataclass(frozen=True)
class Shards:
    """How an array of a store is cut into shards and chunks, and how those are packed.

    Attributes
    ----------
    name : str
    lengths, shard, chunk : tuple of int
        Along each dimension: of the array, of a shard (in values) and of a chunk, which is one or everything.
    blosc : numcodecs.Blosc
    checked : bool
        Whether a chunk ends in its CRC-32C.
    """

    name: str
    lengths: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    blosc: Any
    checked: bool

    @classmethod
    def of(cls, array: zarr.Array) -> Shards | None:
        """What an array's metadata say; None if it is laid out in another way than `encoding.layouts` does."""
        from numcodecs import Blosc  # type: ignore[import-untyped]

        held: Any = array.metadata.to_dict()
        if [codec["name"] for codec in held["codecs"]] != ["sharding_indexed"]:
            return None
        sharding, key = held["codecs"][0]["configuration"], {"name": "default", "configuration": {"separator": "/"}}
        codecs = list(sharding["codecs"])
        ours = (
            (held["data_type"], held["chunk_key_encoding"], bool(np.isnan(array.fill_value))) == ("float32", key, True)
            and (codecs[0], [codec["name"] for codec in codecs[1:2]]) == (_LITTLE, ["blosc"])
            and codecs[2:] in ([], [_CRC])
            and (list(sharding["index_codecs"]), sharding["index_location"]) == ([_LITTLE, _CRC], "end")
            and all(c in (1, n) for c, n in zip(array.chunks, array.shape, strict=True))
        )
        if not ours:
            return None
        how = dict(codecs[1]["configuration"])
        blosc = Blosc(**how | {"shuffle": _SHUFFLES[how["shuffle"]]})
        assert array.shards is not None
        return cls(array.basename, array.shape, array.shards, array.chunks, blosc, codecs[2:] == [_CRC])

    def take(self, region: tuple[slice, ...], values: np.ndarray) -> bool:
        """Whether a region is of whole shards, with no chunk that zarr may leave out, as it does if all is NaN."""
        whole = (
            s.start % n == 0 and (s.stop % n == 0 or s.stop == length)
            for s, n, length in zip(region, self.shard, self.lengths, strict=False)
        )
        return all(whole) and not self._blanks(values)

    def _blanks(self, values: np.ndarray) -> bool:
        """Whether a chunk is NaN from its first value to its last; levels that a variable lacks are NaN in others."""
        firsts = values[tuple(slice(None, None, c) for c in self.chunk)]
        across = tuple(d for d, c in enumerate(self.chunk) if c > 1)
        return bool(np.isnan(firsts).any() and np.isnan(values).all(axis=across).any())

    def write(self, store: SyncedStore, region: tuple[slice, ...], values: np.ndarray) -> None:
        """Write a region that `take` agrees to; each file has its name once it is whole."""
        begins = [s.start for s in region] + [0] * (len(self.lengths) - len(region))
        counts = [-(-length // n) for length, n in zip(values.shape, self.shard, strict=True)]
        for k in np.ndindex(*counts):
            place = [b // n + i for b, n, i in zip(begins, self.shard, k, strict=True)]
            part = tuple(slice(i * n, (i + 1) * n) for i, n in zip(k, self.shard, strict=True))
            with store.fill("/".join(map(str, (self.name, "c", *place)))) as file:
                self._pack(file, values[part])

    def _pack(self, file: BinaryIO, values: np.ndarray) -> None:
        grid = tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))
        index, at = np.full((*grid, 2), _ABSENT, "<u8"), 0
        for place in _morton(grid):
            where = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, self.chunk, strict=True))
            chunk = values[where]
            if chunk.size == 0:  # the array ends within this shard
                continue
            packed = self.blosc.encode(np.ascontiguousarray(chunk, "<f4").reshape(-1).view("B"))
            size = file.write(packed) + (file.write(_crc(packed)) if self.checked else 0)
            index[place], at = (at, size), at + size
        table = index.tobytes()
        file.write(table + _crc(table))


def _crc(data: bytes) -> bytes:
    import google_crc32c

    return int(google_crc32c.value(data)).to_bytes(4, "little")


@functools.lru_cache
def _morton(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Places of a grid along the curve on which zarr lays chunks: bits interleaved, the first dimension's lowest."""
    bits = max(grid).bit_length()

    def code(place: tuple[int, ...]) -> int:
        return sum((p >> b & 1) << b * len(grid) + d for d, p in enumerate(place) for b in range(bits))

    return sorted(itertools.product(*map(range, grid)), key=code)
