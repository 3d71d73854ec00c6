"""A forecast written to a Zarr store while it runs, and gone on with after a break."""

from __future__ import annotations

import dataclasses
import functools
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from ..errors import MosaicError, StoreError, explain
from . import record, writer
from .encoding import layouts, round_bits, sealed, shard_leads
from .lock import Lock
from .place import PARTIAL, Place, Store, unwritable
from .shards import Shards
from .writer import Writer

Region = tuple[slice, slice, slice]  # starts, members and leads


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be written.

    Attributes
    ----------
    template : Dataset
        Coordinates and attributes of the result.
    variables : mapping of str to Variable
        As in `MemorySink`.
    scalar : bool
        Whether there is one start and no dimension for it.
    block : (int, int)
        Starts and members that are computed together.
    settings : mapping
        Everything that changes the numbers, by name; what JSON can hold.
    keep_bits : int, optional
        Bits of the mantissa that are kept.
    """

    template: xr.Dataset
    variables: Mapping[str, xr.Variable]
    scalar: bool
    block: tuple[int, int]
    settings: Mapping[str, Any]
    keep_bits: int | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Numbers of starts, members and leads."""
        sizes = next(iter(self.variables.values())).sizes
        return sizes.get("time", 1), sizes["number"], sizes["prediction_timedelta"]


class _Filling(threading.local):
    """What a thread is filling: several blocks are made at the same time, each in a thread of its own."""

    region: Region | None = None
    fields: Mapping[str, np.ndarray] = {}
    packed: Mapping[str, list[Future[np.ndarray]]] = {}  # by lead, of the arrays that needn't wait for the others


class ZarrSink:
    """Writes a forecast to a Zarr (version 3) store while it runs.

    One chunk holds the full sphere of one time, member and lead; shards join the members of a block and several
    leads, so that the number of files stays bounded. Threads that make blocks of their own may call `write` at the same
    time; others pack and write what they have filled, an array each, and one more records what is complete, region by
    region, after it is on the disk (`record`).

    Parameters
    ----------
    store : path, URL, zarr Store or icechunk Repository
        Absent, empty, or begun by a request of the same settings: then what it holds is kept.
    request : Request

    Notes
    -----
    Memory, however slow the store: a region (at most `SHARD_BYTES`) for each thread that calls `write`, one that is
    recorded and one that waits; all of them may be packed meanwhile. Into a folder each lead is packed as it comes, and
    what that gives is kept until its region is written; elsewhere, where zarr packs, an array's shard twice.
    """

    def __init__(self, store: Store, request: Request) -> None:
        self._place, self._request = _find(store), request
        self._members = min(request.block[1], request.lengths[1])
        self._leads = shard_leads(request.variables, self._members, request.lengths[2])
        self._lock = Lock(self._place)
        self._record: record.Record | None = None
        self._group: Any = None
        self._writer: Writer | None = None
        self._packers: ThreadPoolExecutor | None = None
        self._shards: Mapping[str, Shards] = {}
        self._spare: list[Mapping[str, np.ndarray]] = []
        self._guard = threading.Lock()
        self._filling = _Filling()

    # -------------------------------------------------------------------------------------------- begin and end

    def __enter__(self) -> ZarrSink:
        with self._translated():
            self._refuse_other_files()
            self._lock.acquire()
        try:
            with self._translated(), warnings.catch_warnings():
                # zarr warns of what a killed process had half made; it is made anew
                warnings.filterwarnings("ignore", "Object at .* is not recognized")
                self._begin()
        except BaseException:
            self._lock.release()
            raise
        self._writer = Writer(self._error)
        # what a session is written to while another thread commits it would be lost
        several = not self._place.shares_commits and self._files_apart()
        self._packers = writer.pool() if several else None
        if several and self._place.folder is not None:
            made = {name: Shards.of(self._group[name]) for name in self._request.variables}
            self._shards = {name: shards for name, shards in made.items() if shards is not None}
        return self

    def __exit__(self, *_: object) -> None:
        # what is whole is still written, whatever ended the forecast: it needn't be computed again
        if self._writer is not None:
            self._writer.stop()
        if self._packers is not None:
            self._packers.shutdown(wait=True, cancel_futures=True)
        self._place.discard()
        self._spare.clear()
        self._lock.release()

    def _refuse_other_files(self) -> None:
        path = self._place.folder
        if path is None or not path.exists():
            return
        names = {p.name for p in path.iterdir()} if path.is_dir() else {""}
        # a process that was killed at its first write left the folder of its lock, and zarr.json in the making
        begun = record.RECORD in names and all(name == record.RECORD or PARTIAL.fullmatch(name) for name in names)
        if names and "zarr.json" not in names and not begun:
            do = "Choose another path"
            raise StoreError(explain(f"{path} exists and is no Zarr store", expected="a path that is free", do=do))

    def _begin(self) -> None:
        self._group = self._place.group()
        held = self._held()
        if held is not None:
            record.compare_settings(self._place.label, held, self._request.settings)
        ready = held is not None and bool(self._group[record.RECORD].attrs["ready"])
        if not ready or record.STATUS in self._group.attrs:
            self._place.sweep()
        if not ready:
            self._create(held is None)
        self._record = record.Record(self._group)
        self._members, self._leads = self._record.shard  # as they were laid out, whatever one would choose today

    def _files_apart(self) -> bool:
        """Whether each region has shards of its own: of two threads that fill one, each would undo the other's work."""
        arrays = self._request.variables.items()
        sizes = {name: dict(zip(v.dims, self._group[name].shards or (), strict=False)) for name, v in arrays}
        wanted = {"number": self._members, "prediction_timedelta": self._leads}
        return all(size.get(dim) == count for size in sizes.values() for dim, count in wanted.items())

    def _held(self) -> dict[str, Any] | None:
        try:
            return record.held_settings(self._group)
        except StoreError as error:
            raise StoreError(str(error).replace("The store", f"The store {self._place.label}", 1)) from None

    def _create(self, new: bool) -> None:
        import dask.array
        from zarr.core.sync import sync

        request = self._request
        if new:
            record.create_record(self._group, request.settings)
        else:  # of a call that was killed before anything was written; without power even metadata may be empty files
            for name in (*request.template.coords, *request.variables):
                sync(self._place.store.delete_dir(str(name)))
        self._members, self._leads = record.held_shard(self._group) or (self._members, self._leads)
        encoding = layouts(request.variables, self._members, self._leads, request.keep_bits)
        labels = {str(name): {"compressors": sealed()} for name in request.template.coords}
        data = {}
        for name, v in request.variables.items():
            # one piece, which nobody computes: a season has half a million shards, and as many tasks take minutes
            blank = dask.array.full(v.shape, np.nan, chunks=-1, dtype=np.float32)
            data[name] = (v.dims, blank, v.attrs)
        request.template.assign(data).to_zarr(
            self._place.store, mode="a", compute=False, zarr_format=3, consolidated=False, encoding=encoding | labels
        )
        self._group = self._place.group()  # what xarray wrote included
        record.create_arrays(self._group, request.lengths, (1, self._members, self._leads))
        record.mark(self._group, complete=False)
        self._place.sync()
        self._group[record.RECORD].attrs["ready"] = True
        self._commit("the layout of a forecast")

    def finish(self) -> xr.Dataset:
        """Wait for the last write, say that the store is whole, and open it, lazily."""
        assert self._writer is not None and self._record is not None
        self._writer.drain()
        with self._translated():
            if not self._record.done.all():
                raise StoreError(explain(f"The store {self._place.label} isn't whole", do="Make the same call again"))
            if record.STATUS in self._group.attrs:
                record.mark(self._group, complete=True)
                self._commit("a forecast, whole")
            return record.opened(self._place.readable())[list(self._request.variables)]

    # ------------------------------------------------------------------------------------- what is there already

    def missing(self, starts: slice, members: slice) -> np.ndarray:
        """Which leads of a block aren't complete, bool (lead,)."""
        assert self._record is not None
        return np.asarray(~self._record.done[starts, members].all(axis=(0, 1)))

    def wants_inputs(self, starts: slice) -> bool:
        """Whether digests of these starts' inputs are to be handed in."""
        return True

    def take_inputs(self, starts: slice, digests: Sequence[bytes]) -> None:
        """Write down the digest of what each start is made from, or raise `StoreError` if it was another."""
        assert self._record is not None and self._writer is not None
        held, times = self._record, np.atleast_1d(self._request.template["time"].values)
        for i, digest in zip(range(starts.start, starts.stop), digests, strict=True):
            known = held.input(i)
            if known is None:
                self._writer.put(functools.partial(self._note_input, i, digest))
            elif known != digest:
                raise record.differing_input(self._place.label, times[i].astype("datetime64[s]"))

    def _note_input(self, start: int, digest: bytes) -> None:
        assert self._record is not None
        self._record.take_input(start, digest)

    # ---------------------------------------------------------------------------------------------------- writing

    def check(self) -> None:
        """Raise what has gone wrong in the thread that writes."""
        assert self._writer is not None
        self._writer.check()

    def write(self, starts: slice, members: slice, lead: int, fields: Mapping[str, np.ndarray]) -> None:
        """Take the fields of one lead, (start, member, ...); leads of a block come in order, from one thread."""
        filling, first = self._filling, lead - lead % self._leads
        count = min(self._leads, self._request.lengths[2] - first)
        region = starts, members, slice(first, first + count)
        if filling.region != region:
            filling.region = region
            filling.fields = self._blank({n: (*v.shape[:2], count, *v.shape[2:]) for n, v in fields.items()})
            filling.packed = {n: [] for n, shards in self._shards.items() if shards.take(self._key(region))}
        here = slice(lead - first, lead - first + 1)
        for name, values in fields.items():
            filling.fields[name][:, :, here] = values[:, :, np.newaxis]
            if name in filling.packed:
                assert self._packers is not None
                filling.packed[name].append(self._packers.submit(self._pack, name, filling.fields[name][:, :, here]))
        if lead - first == count - 1:
            self._hand_over(region)

    def _key(self, region: Region) -> tuple[slice, ...]:
        """Where a region is in the arrays."""
        return region[1:] if self._request.scalar else region

    def _blank(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        """Arrays to fill; those of a region that is written, if they fit: new memory costs more than filling it."""
        with self._guard:
            for k, fields in enumerate(self._spare):
                if {n: v.shape for n, v in fields.items()} == shapes:
                    return self._spare.pop(k)
            self._spare.clear()
        return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}

    def _hand_over(self, region: Region) -> None:
        assert self._writer is not None
        filling = self._filling
        fields, packed = filling.fields, filling.packed
        filling.region, filling.fields, filling.packed = None, {}, {}
        self.check()
        written = []
        if self._packers is not None:
            written = [
                self._packers.submit(self._write_array, region, name, values, packed.get(name))
                for name, values in fields.items()
            ]
        self._writer.put(functools.partial(self._store, region, fields, written))

    def _store(self, region: Region, fields: Mapping[str, np.ndarray], written: Sequence[Future[None]]) -> None:
        """Wait for the data; then, once those last, the record. One thread does this, region by region."""
        assert self._record is not None
        for future in written:
            future.result()
        if self._packers is None:
            for name, values in fields.items():
                self._write_array(region, name, values)
        with self._guard:
            self._spare.append(fields)
        self._lock.check()  # who has gone on with the store has removed what has no name yet
        self._place.sync()
        self._record.commit(region)
        self._place.sync()

    def _pack(self, name: str, values: np.ndarray) -> np.ndarray:
        values = round_bits(values, self._request.keep_bits)
        return self._shards[name].pack(values[0] if self._request.scalar else values)

    def _write_array(
        self, region: Region, name: str, values: np.ndarray, packed: Sequence[Future[np.ndarray]] | None = None
    ) -> None:
        """Write an array's part of a region: what its leads were packed to, once they are, or what zarr packs."""
        self._lock.check()
        key = self._key(region)
        if packed is not None:
            # no packer waits for what none has begun: they begin in the order of submission
            chunks = np.concatenate([future.result() for future in packed], axis=len(key) - 1)
            self._shards[name].write(self._place.store, key, chunks)
            return
        if self._request.keep_bits is not None:
            for k in np.ndindex(values.shape[:3]):  # a chunk at a time: what that takes stays small
                values[k] = round_bits(values[k], self._request.keep_bits)
        self._group[name][key] = values[0] if self._request.scalar else values

    def end_block(self) -> None:
        """Commit what a block has written, for stores that know commits."""
        if self._place.shares_commits:
            assert self._writer is not None
            self._writer.put(functools.partial(self._commit, "a block of a forecast"))

    def _commit(self, message: str) -> None:
        self._place.sync()
        if self._place.shares_commits:
            self._place.commit(message)
            self._group = self._place.group()
            if self._record is not None:
                self._record.use(self._group)

    # ----------------------------------------------------------------------------------------------------- errors

    def _error(self, error: BaseException) -> BaseException:
        if isinstance(error, MosaicError) or not isinstance(error, Exception):
            return error
        return unwritable(self._place.label, error, record.kept(self._record))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except MosaicError:
            raise
        except Exception as error:  # every kind of store has its own exceptions
            raise self._error(error) from error


def _find(store: Store) -> Place:
    try:
        return Place(store)
    except MosaicError:
        raise
    except Exception as error:  # as above
        from .place import label

        raise unwritable(label(store), error) from error


def held_block(store: Store) -> tuple[int, int] | None:
    """Starts and members that the forecast in a store is computed with together; None if it holds none of ours.

    The same block must be computed on, whatever memory is free today: sums in another order are other bits.
    """
    import zarr

    from .place import readable

    try:
        held = zarr.open_group(readable(store), mode="r", use_consolidated=False)[record.RECORD]
        attributes: Any = held.attrs.asdict()
        starts, members = attributes["settings"]["batch"]
    except Exception:  # absent, empty or something else: the sink says which
        return None
    return int(starts), int(members)
