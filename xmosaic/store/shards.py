"""Shards packed chunk by chunk, as soon as a chunk is there, into files with the bytes that zarr would write.

zarr is given a whole shard, packs its chunks, joins them, then writes: copies in new memory, and tasks of an event loop
for each chunk and codec, which hold Python's lock for most of a second per GB, so that threads can't share the work.
Here nearly all of the time passes in calls that let go of that lock, and of a shard of several leads only the last is
still to be packed when it is whole.

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

    def take(self, region: tuple[slice, ...]) -> bool:
        """Whether a region is of whole shards."""
        return all(
            s.start % n == 0 and (s.stop % n == 0 or s.stop == length)
            for s, n, length in zip(region, self.shard, self.lengths, strict=False)
        )

    def pack(self, values: np.ndarray) -> np.ndarray:
        """Pack some chunks, whose values are given as they lie in the array.

        Returns
        -------
        object array, a place for each chunk along each dimension
            Bytes; None for a chunk that is all NaN, which isn't stored.
        """
        grid = tuple(-(-n // c) for n, c in zip(values.shape, self.chunk, strict=True))
        packed = np.empty(grid, object)
        for place in np.ndindex(*grid):
            chunk = values[tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, self.chunk, strict=True))]
            # levels that a variable lacks are NaN in a chunk that is stored
            if not (np.isnan(chunk.flat[0]) and np.isnan(chunk).all()):
                packed[place] = self.blosc.encode(np.ascontiguousarray(chunk, "<f4").reshape(-1).view("B"))
        return packed

    def write(self, store: SyncedStore, region: tuple[slice, ...], packed: np.ndarray) -> None:
        """Write a region that `take` agrees to, of what `pack` made; files have their names after the next `sync`."""
        begins = [s.start for s in region] + [0] * (len(self.lengths) - len(region))
        grid = tuple(n // c for n, c in zip(self.shard, self.chunk, strict=True))
        counts = [-(-length // n) for length, n in zip(packed.shape, grid, strict=True)]
        for k in np.ndindex(*counts):
            place = [b // n + i for b, n, i in zip(begins, self.shard, k, strict=True)]
            part = packed[tuple(slice(i * n, (i + 1) * n) for i, n in zip(k, grid, strict=True))]
            key = "/".join(map(str, (self.name, "c", *place)))
            if all(chunk is None for chunk in part.flat):
                (store.root / key).unlink(missing_ok=True)  # as zarr does
                continue
            with store.fill(key) as file:
                self._join(file, part, grid)

    def _join(self, file: BinaryIO, packed: np.ndarray, grid: tuple[int, ...]) -> None:
        index, at = np.full((*grid, 2), _ABSENT, "<u8"), 0
        for place in _morton(grid):
            within = all(p < n for p, n in zip(place, packed.shape, strict=True))  # the array may end in this shard
            chunk = packed[place] if within else None
            if chunk is None:
                continue
            size = file.write(chunk) + (file.write(_crc(chunk)) if self.checked else 0)
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
