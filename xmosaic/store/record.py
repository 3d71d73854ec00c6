"""What a store says of itself: which forecast it holds, of which input, and which parts are complete.

::

    xmosaic_record           attributes: format, settings (one entry per thing that changes the numbers), ready
    xmosaic_record/written   bool (time, number, prediction_timedelta), one chunk per commit
    xmosaic_record/inputs    uint8 (time, 32): SHA-256 of the normalised input of each start, zeros where none was read

A chunk of ``written`` is made once, whole, after the data that it speaks of; no commit changes what another wrote.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..cards import duration
from ..errors import StoreError, explain
from .encoding import sealed
from .place import Piecewise, Store, label, readable

RECORD = "xmosaic_record"
FORMAT = 2
STATUS = "status"
_INCOMPLETE = "incomplete: NaN also stands for what isn't written yet; xmosaic.written(store) says what is"
_REPEAT = "Repeat the call that began it, choose another path, or delete it first"


class IncompleteForecast(UserWarning):
    """A stored forecast has parts that aren't written yet."""


class Record:
    """The record of a store that is being written.

    Parameters
    ----------
    group : zarr.Group
        The root.
    """

    def __init__(self, group: Any) -> None:
        held = group[RECORD]
        self._written, self._inputs = held["written"], held["inputs"]
        self.done = _done(group)
        self._digests: np.ndarray = np.asarray(self._inputs)
        verify(group, self.done)

    @property
    def shard(self) -> tuple[int, int]:
        """Members and leads of a commit, which are those of a shard."""
        return self._written.chunks[1], self._written.chunks[2]

    def use(self, group: Any) -> None:
        """Write to another session's group from now on."""
        self._written, self._inputs = group[f"{RECORD}/written"], group[f"{RECORD}/inputs"]

    def commit(self, region: tuple[slice, slice, slice]) -> None:
        """Say that a region is complete."""
        self._written[region] = True
        self.done[region] = True

    def input(self, start: int) -> bytes | None:
        """Digest of a start's input; None if nothing is known of it yet."""
        value = self._digests[start]
        return value.tobytes() if value.any() else None

    def take_input(self, start: int, digest: bytes) -> None:
        """Write a start's digest down."""
        self._digests[start] = np.frombuffer(digest, np.uint8)
        self._inputs[start] = self._digests[start]


def _done(group: Any) -> np.ndarray:
    """What has been written, bool (time, number, prediction_timedelta).

    A season has tens of thousands of commits, a third of a millisecond each to read or not to find. They are counted,
    which is quick, and not asked for if there is none, or all are there of a store that says that it is whole.
    """
    held = group[f"{RECORD}/written"]
    found = _files(held)
    if found == (held.nchunks if STATUS not in group.attrs else 0):
        return np.full(held.shape, found > 0)
    return np.asarray(held)


def _files(array: Any) -> int:
    """How many shards of an array there are, or chunks if it has no shards.

    zarr counts them too, in a time that grows with their square: minutes for a season.
    """
    from zarr.core.sync import sync
    from zarr.storage import LocalStore

    if isinstance(array.store, LocalStore):  # its listing makes a path of each, and asks the system about it
        folders = os.walk(array.store.root / array.path / "c")
        return sum(name.isdigit() for *_, names in folders for name in names)

    async def keys() -> list[str]:
        return [key async for key in array.store.list_prefix(f"{array.path}/")]

    shard = re.compile(rf"{re.escape(array.path)}/c(/\d+)+")
    return sum(shard.fullmatch(key) is not None for key in sync(keys()))


def create_record(group: Any, settings: Mapping[str, Any]) -> None:
    """Write down which forecast a store is going to hold, before anything else is in it."""
    attributes = {"format": FORMAT, "settings": dict(settings), "ready": False}
    group.create_group(RECORD, attributes=attributes, overwrite=False)


def create_arrays(group: Any, lengths: tuple[int, int, int], commit: tuple[int, int, int]) -> None:
    """Make the arrays of the record."""
    held = group[RECORD]
    # one that is there was made by a call that came no further; the lock in it must stay
    if "written" not in held:
        held.create_array("written", shape=lengths, chunks=commit, dtype=bool, fill_value=False, compressors=sealed())
    if "inputs" not in held:
        shape = (lengths[0], 32)
        held.create_array("inputs", shape=shape, chunks=(1, 32), dtype="uint8", fill_value=0, compressors=sealed())


def held_shard(group: Any) -> tuple[int, int] | None:
    """Members and leads of a shard as a call that came no further wanted them; None if it had not come that far."""
    held = group[RECORD]
    return tuple(held["written"].chunks[1:]) if "written" in held else None


def held_settings(group: Any) -> dict[str, Any] | None:
    """Settings of the forecast that a store holds; None if it holds no record.

    Raises
    ------
    StoreError
        If it holds something else, or another version's record.
    """
    if RECORD in group:
        attributes = dict(group[RECORD].attrs)
        if attributes.get("format") != FORMAT:
            raise StoreError(
                explain(
                    "The store holds a forecast of another version of this package",
                    got=f"record format {attributes.get('format', 1)}",
                    expected=f"record format {FORMAT}",
                    do="Choose another path, or delete it first",
                )
            )
        return dict(attributes["settings"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder that holds nothing but our lock yet
        found = {*group.array_keys(), *group.group_keys()}
    if found:
        raise StoreError(
            explain(
                "The store already holds something else",
                got=str(group.attrs.get("title", ", ".join(sorted(found)[:5]))),
                expected="a store that is absent, empty, or was begun by the same call",
                do="Choose another path, or delete it first",
            )
        )
    return None


def compare_settings(place: str, held: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise `StoreError` that names every difference between a store's forecast and the one that was asked for."""
    differing = [name for name in {**held, **ours} if held.get(name) != ours.get(name)]
    if not differing:
        return
    pairs = [_difference(name, held.get(name), ours.get(name)) for name in differing]
    raise StoreError(
        explain(
            f"The store {place} already holds another forecast: {', '.join(differing)} differ"
            + ("s" if len(differing) == 1 else ""),
            got="; ".join(f"{name} {mine}" for name, (_, mine) in zip(differing, pairs, strict=True)),
            expected="; ".join(f"{name} {theirs}" for name, (theirs, _) in zip(differing, pairs, strict=True)),
            do=_REPEAT,
        )
    )


def _difference(name: str, theirs: Any, ours: Any) -> tuple[str, str]:
    if not (isinstance(theirs, list) and isinstance(ours, list)) or name == "batch":
        return str(theirs), str(ours)
    only_theirs, only_ours = ([v for v in a if v not in b] for a, b in ((theirs, ours), (ours, theirs)))
    if not only_theirs and not only_ours:
        return "in its order", "in another order"
    return _summary(theirs, only_theirs), _summary(ours, only_ours)


def _summary(values: list[Any], only: list[Any]) -> str:
    named = ", ".join(map(str, only[:3])) + (", …" if only[3:] else "")
    return f"{len(values)} in all, {named or 'none'} of them here alone"


def differing_input(place: str, start: Any) -> StoreError:
    """The error for a start whose fields aren't those that the store's forecast was made from."""
    return StoreError(
        explain(
            f"The store {place} already holds another forecast: the input of the start {start} differs",
            got="other values in the Dataset",
            expected="the fields that the stored forecast was made from",
            do=_REPEAT,
        )
    )


def mark(group: Any, complete: bool) -> None:
    """Say in the root's attributes that the forecast isn't whole yet, or no longer say it.

    What says that it is whole is the last write of all: after a kill before it the next call comes here again.
    """
    attributes = {k: v for k, v in group.attrs.asdict().items() if k != STATUS}
    if not complete:
        group.attrs.put(attributes | {STATUS: _INCOMPLETE})
    root = _consolidated(group)
    if complete:
        root.attrs.put(attributes)


def _consolidated(group: Any) -> Any:
    """A root that holds all metadata below it, and keeps them; the same where a store needs no such thing."""
    import zarr

    if not group.store.supports_consolidated_metadata:
        return group
    with warnings.catch_warnings():
        # not part of Zarr's specification yet, but without it xarray warns whoever opens the store
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        return zarr.consolidate_metadata(group.store)


def written(store: Store) -> xr.DataArray:
    """Which (time, number, prediction_timedelta) of a stored forecast have been written, also while it is.

    Parameters
    ----------
    store : path, URL, zarr Store or icechunk Repository

    Returns
    -------
    bool DataArray, (time, number, prediction_timedelta)
        False everywhere while the store is still being laid out.

    Raises
    ------
    StoreError
        If the store is no forecast that this package wrote.

    Examples
    --------
    >>> import tempfile
    >>> import xmosaic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ds = xmosaic.open_sample()
    ...     _ = ds.mosaic.forecast("2D", 2, variables="t2m", store=folder + "/fc.zarr", progress=False)
    ...     record = xmosaic.written(folder + "/fc.zarr").load()
    >>> record.dims, record.shape, bool(record.all())
    (('time', 'number', 'prediction_timedelta'), (1, 2, 2), True)
    """
    return _written(store)[0]


def _written(store: Store) -> tuple[xr.DataArray, xr.Dataset | None]:
    """What has been written, and the forecast; None of one whose layout isn't whole."""
    import zarr

    try:
        source = readable(store)
        group = zarr.open_group(source, mode="r", use_consolidated=False)
        held: Any = group[RECORD].attrs.asdict()
        if not held["ready"]:
            return _nothing_yet(held["settings"]), None
        done, ds = _done(group), opened(source)
        verify(group, done)
    except StoreError as error:
        raise StoreError(str(error).replace("The store", f"The store {label(store)}", 1)) from None
    except Exception as error:  # every kind of store and of damage has its own
        got = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"{label(store)} holds no record of a forecast that can be read"
        do = "If a job has only just begun it, ask again in a moment"
        raise StoreError(explain(what, got=got, expected="a store that xmosaic.forecast wrote", do=do)) from error
    record = xr.DataArray(
        done,
        dims=("time", "number", "prediction_timedelta"),
        coords={name: ds[name].values for name in ("number", "prediction_timedelta")}
        | {"time": np.atleast_1d(ds["time"].values)},
    )
    return record, ds


def _nothing_yet(settings: Mapping[str, Any]) -> xr.DataArray:
    """The record of a forecast of which nothing is written."""
    coords: dict[str, Any] = {
        "time": pd.DatetimeIndex(settings["starts"]).as_unit("ns"),
        "number": np.arange(1, settings["members"] + 1),
        "prediction_timedelta": pd.TimedeltaIndex(settings["leads"]).as_unit("ns"),
    }
    return xr.DataArray(np.zeros([len(values) for values in coords.values()], bool), coords, tuple(coords))


def opened(source: Store) -> xr.Dataset:
    """A store as a Dataset; its axes get no fill value where it is written to netCDF, as CF has it."""
    import dask.array
    import zarr

    ds = _decoded(source)
    group: Any = zarr.open_group(source, mode="r", use_consolidated=False)
    for name, v in ds.data_vars.items():
        if v.dtype == group[name].dtype and v.chunks is not None:  # nothing that xarray would have to decode
            pieces, blank = Piecewise(group[name], label(source)), np.empty((0,) * v.ndim, v.dtype)
            v.variable.data = dask.array.from_array(pieces, v.chunks, name=f"pieces-{v.data.name}", meta=blank)
    for name in {*ds.dims} & {*ds.coords}:
        ds.variables[name].encoding["_FillValue"] = None
    for name in {*ds.coords} - {*ds.indexes}:  # small, and needed to choose what to read
        ds.variables[name].load(scheduler="synchronous")
    return ds


def _decoded(source: Any, **options: Any) -> xr.Dataset:
    with warnings.catch_warnings():
        # metadata in the making, or of a process that was killed while it wrote them
        warnings.filterwarnings("ignore", r"Object at .*\.partial is not recognized")
        return xr.open_zarr(source, consolidated=False, **options)


def verify(group: Any, done: np.ndarray) -> None:
    """Raise `StoreError` where a store has lost what its record says it holds: zarr reads that as NaN, or as 1970.

    Parameters
    ----------
    group : zarr.Group
        The root.
    done : bool array, (time, number, prediction_timedelta)
    """
    settings = group[RECORD].attrs["settings"]
    # without dask, whose threads a forked process would wait for in vain
    ds = _decoded(group.store, chunks=None)
    lost = _lost_labels(ds, settings)
    if done.shape != (len(settings["starts"]), settings["members"], len(settings["leads"])):
        lost.append("a record of another shape")
    lost = lost or _lost_pieces(group, ds, done)
    if lost:
        what = "The store is damaged: it holds less than its record says"
        do = "Bring the files back from a copy, or delete the store and make the forecast again"
        raise StoreError(explain(what, got=", ".join(lost), do=do))


def _lost_labels(ds: xr.Dataset, settings: Mapping[str, Any]) -> list[str]:
    """Coordinates and variables that aren't those that the forecast was begun with."""
    axes = {str(ds[n].attrs.get("standard_name")): ds[n].values for n in ds.coords if ds[n].ndim == 1}
    space = [np.asarray(axes.get(n, []), np.float64) for n in ("latitude", "longitude")]
    both = [np.atleast_1d(ds[n].values) if n in ds else np.array([]) for n in ("time", "prediction_timedelta")]
    starts, leads = both
    found = {
        "time": [t.isoformat() for t in pd.DatetimeIndex(starts)] == settings["starts"],
        "number": "number" in ds and np.array_equal(ds["number"], np.arange(1, settings["members"] + 1)),
        "prediction_timedelta": [duration(t) for t in pd.TimedeltaIndex(leads)] == settings["leads"],
        "points": hashlib.sha256(np.concatenate(space).data).hexdigest()[:16] == settings["points"],
    }
    if found["time"] and found["prediction_timedelta"]:
        valid = np.add.outer(starts, leads)
        found["valid_time"] = "valid_time" in ds and np.array_equal(np.atleast_2d(ds["valid_time"]), valid)
    levels = ds["level"].values.tolist() if "level" in ds.coords else []
    channels = {f"{n}_{p}" if "level" in v.dims else n for n, v in ds.data_vars.items() for p in levels or [0]}
    found |= {name: name in channels for name in settings["variables"]}
    return [f"another {name} or none" for name, same in found.items() if not same]


def _lost_pieces(group: Any, ds: xr.Dataset, done: np.ndarray) -> list[str]:
    """Variables that have fewer files than have been completed."""
    begun = done
    for axis, size in enumerate(group[f"{RECORD}/written"].chunks):
        begun = np.logical_or.reduceat(begun, range(0, done.shape[axis], size), axis)
    expected = int(begun.sum())
    lost = {name: expected - _files(group[name]) for name in ds.data_vars}
    return [f"{count} of {expected} files of {name} gone" for name, count in lost.items() if count > 0]


def open_forecast(store: Store) -> xr.Dataset:
    """Open a forecast that this package wrote, lazily, whether or not it is whole.

    Parameters
    ----------
    store : path, URL, zarr Store or icechunk Repository

    Returns
    -------
    Dataset, dims (time, number, prediction_timedelta, level, latitude, longitude)
        One that isn't whole has the coordinate ``written``, bool (time, number, prediction_timedelta): NaN where that
        is False is no value. ``fc.where(fc.written)`` changes nothing; ``fc.isel(number=fc.written.all(…))`` and the
        like select what is complete.

    Raises
    ------
    StoreError
        If the store is no forecast that this package wrote.

    Warns
    -----
    IncompleteForecast
        If parts are missing; the text says how many.

    Examples
    --------
    >>> import tempfile
    >>> import xmosaic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ds = xmosaic.open_sample()
    ...     _ = ds.mosaic.forecast("1D", 2, variables="t2m", store=folder + "/fc.zarr", progress=False)
    ...     dict(xmosaic.open_forecast(folder + "/fc.zarr")["2m_temperature"].sizes)
    {'number': 2, 'prediction_timedelta': 1, 'latitude': 33, 'longitude': 64}
    """
    done, ds = _written(store)
    if ds is None:
        what, do = f"{label(store)} has only just been begun", "Ask again in a moment, or repeat the call that began it"
        raise StoreError(explain(what, got="no field yet", do=do))
    ds.attrs.pop(STATUS, None)  # said better below
    missing = int((~done).sum())
    if not missing:
        return ds
    warnings.warn(
        f"{missing} of {done.size} fields of the forecast {label(store)} aren't written yet and are NaN; the "
        "coordinate 'written' says which. The call that began it goes on where it stopped.",
        IncompleteForecast,
        stacklevel=2,
    )
    coord = done.isel(time=0) if "time" not in ds.dims else done
    return ds.assign_coords(written=(coord.dims, coord.values, {"long_name": "whether the field has been written"}))


def kept(record: Record | None) -> str:
    """What to say of the parts that are safe."""
    if record is None or not record.done.any():
        return ""
    return f"{int(record.done.sum())} of {record.done.size} fields are kept"
