"""Where forecasts go while they run: arrays in memory, or a Zarr store written block by block."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .errors import StoreError, explain

# A shard holds one start, the members of a block and so many leads, but no more than so many bytes (of all variables
# together, uncompressed); so does what waits to be written.
_SHARD_LEADS = 10
_SHARD_BYTES = 256 * 1024**2
_RECORD = "xmosaic_record"

Store = Any  # path, URL or zarr.abc.store.Store


class MemorySink:
    """Collects a forecast in memory.

    Parameters
    ----------
    template : Dataset
        Coordinates and attributes of the result.
    variables : mapping of str to Variable
        Shapes, dimensions and attributes of the data variables; the first dimensions are time (but for a scalar
        start), number and prediction_timedelta.
    scalar : bool
        Whether there is one start and no dimension for it.
    """

    def __init__(self, template: xr.Dataset, variables: Mapping[str, xr.Variable], scalar: bool) -> None:
        self._template, self._scalar = template, scalar
        self._arrays = {n: np.full(v.shape, np.nan, np.float32) for n, v in variables.items()}
        self._variables = variables

    def write(self, starts: slice, members: slice, lead: int, fields: Mapping[str, np.ndarray]) -> None:
        """Put the fields of one lead, (start, member, ...), in their place."""
        for name, values in fields.items():
            if self._scalar:
                self._arrays[name][members, lead] = values[0]
            else:
                self._arrays[name][starts, members, lead] = values

    def close(self) -> xr.Dataset:
        """The whole forecast."""
        data = {n: (v.dims, self._arrays[n], v.attrs, v.encoding) for n, v in self._variables.items()}
        return self._template.assign(data)


class ZarrSink:
    """Writes a forecast to a Zarr (version 3) store while it runs.

    One chunk holds the full sphere of one time, member and lead; shards join the members of a block and several
    leads, so that the number of files stays bounded. What has been written is recorded, lead by lead, in the array
    ``xmosaic_record/written``: a NaN in a forecast that broke off is never taken for a value.

    Parameters
    ----------
    store : path, URL or zarr Store
        Must not exist yet, or be empty.
    template : Dataset
        Coordinates and attributes of the result.
    variables : mapping of str to Variable
        As in `MemorySink`.
    block : (int, int)
        Starts and members that are written together.
    scalar : bool
        Whether there is one start and no dimension for it.
    """

    def __init__(
        self,
        store: Store,
        template: xr.Dataset,
        variables: Mapping[str, xr.Variable],
        block: tuple[int, int],
        scalar: bool,
    ) -> None:
        import zarr

        self._store, self._label, self._scalar = store, str(store), scalar
        self._names = tuple(variables)
        sizes = next(iter(variables.values())).sizes
        self._lengths = [sizes.get(d, 1) for d in ("time", "number", "prediction_timedelta")]
        self._members = min(block[1], self._lengths[1])
        refuse_used_store(store)
        self._leads = self._shard_leads(variables)
        self._buffer: dict[str, np.ndarray] = {}
        self._where: tuple[slice, slice, int] | None = None
        try:
            self._create(template, variables)
            self._group: Any = zarr.open_group(store, mode="r+")
            self._written: Any = self._group[f"{_RECORD}/written"]
        except (OSError, ValueError, zarr.errors.BaseZarrError) as error:
            raise StoreError(_unwritable(self._label, error)) from error

    def _shard_leads(self, variables: Mapping[str, xr.Variable]) -> int:
        row = sum(4 * int(np.prod(self._spatial(v))) for v in variables.values())
        return max(1, min(self._lengths[2], _SHARD_LEADS, _SHARD_BYTES // (row * self._members)))

    def _spatial(self, variable: xr.Variable) -> tuple[int, ...]:
        return variable.shape[2 if self._scalar else 3 :]

    def _create(self, template: xr.Dataset, variables: Mapping[str, xr.Variable]) -> None:
        import dask.array
        import zarr

        data, encoding = {}, {}
        drop = 1 if self._scalar else 0
        for name, v in variables.items():
            shards = (1, self._members, self._leads, *self._spatial(v))[drop:]
            chunks = (1, 1, 1, *self._spatial(v))[drop:]
            blank = dask.array.full(v.shape, np.nan, chunks=shards, dtype=np.float32)
            data[name] = (v.dims, blank, v.attrs)
            encoding[name] = {"chunks": chunks, "shards": shards, "_FillValue": np.float32("nan")}
        template.assign(data).to_zarr(
            self._store, mode="a", compute=False, zarr_format=3, consolidated=False, encoding=encoding
        )
        group = zarr.open_group(self._store, mode="a").create_group(_RECORD)
        lengths = tuple(self._lengths)
        group.create_array("written", shape=lengths, chunks=lengths, dtype=bool, fill_value=False)
        with warnings.catch_warnings():
            # not part of Zarr's specification yet, but without it xarray warns whoever opens the store
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            zarr.consolidate_metadata(self._store)

    def write(self, starts: slice, members: slice, lead: int, fields: Mapping[str, np.ndarray]) -> None:
        """Take the fields of one lead, (start, member, ...); leads of a block come in order."""
        first = lead - lead % self._leads
        if self._where != (starts, members, first):
            self._flush()
            self._where = (starts, members, first)
            count = min(self._leads, self._lengths[2] - first)
            self._buffer = {
                n: np.full((*v.shape[:2], count, *v.shape[2:]), np.nan, np.float32) for n, v in fields.items()
            }
        for name, values in fields.items():
            self._buffer[name][:, :, lead - first] = values
        if lead - first == next(iter(self._buffer.values())).shape[2] - 1:
            self._flush()

    def _flush(self) -> None:
        if self._where is None:
            return
        starts, members, first = self._where
        count = next(iter(self._buffer.values())).shape[2]
        region = (starts, members, slice(first, first + count))
        try:
            for name, values in self._buffer.items():
                if self._scalar:
                    self._group[name][region[1:]] = values[0]
                else:
                    self._group[name][region] = values
            self._written[region] = True
        except OSError as error:
            raise StoreError(_unwritable(self._label, error)) from error
        self._where = None

    def close(self) -> xr.Dataset:
        """Write what is left and open the store, lazily."""
        self._flush()
        return xr.open_zarr(self._store, consolidated=False)[list(self._names)]


def refuse_used_store(store: Store) -> None:
    """Raise `StoreError` unless the store is absent or empty."""
    import zarr

    if isinstance(store, str | os.PathLike) and "://" not in str(store):
        path = Path(store)
        if path.exists() and (not path.is_dir() or any(path.iterdir())) and not (path / "zarr.json").exists():
            raise StoreError(
                explain(f"{path} exists and is no Zarr store", expected="a path that is free", do="Choose another path")
            )
        if not path.exists():
            return
    try:
        group = zarr.open_group(store, mode="r")
    except (FileNotFoundError, zarr.errors.GroupNotFoundError):
        return
    except (OSError, ValueError) as error:
        raise StoreError(_unwritable(str(store), error)) from error
    held = sorted(group.array_keys())
    if held:
        title = group.attrs.get("title", f"{len(held)} arrays")
        raise StoreError(
            explain(
                f"The store {store} already holds another forecast",
                got=str(title),
                expected="a store that is absent or empty",
                do="Choose another path, or delete it first",
            )
        )


def written(store: Store) -> xr.DataArray:
    """Which (time, number, prediction_timedelta) of a stored forecast have been written.

    Parameters
    ----------
    store : path, URL or zarr Store

    Returns
    -------
    bool DataArray, (time, number, prediction_timedelta)

    Raises
    ------
    StoreError
        If the store is no forecast that this package wrote.
    """
    import zarr

    try:
        record = zarr.open_group(store, mode="r")[f"{_RECORD}/written"]
    except (KeyError, OSError, zarr.errors.GroupNotFoundError) as error:
        raise StoreError(explain(f"{store} holds no record of a forecast", got=str(error))) from error
    ds = xr.open_zarr(store, consolidated=False)
    return xr.DataArray(
        np.asarray(record),
        dims=("time", "number", "prediction_timedelta"),
        coords={name: ds[name].values for name in ("number", "prediction_timedelta")}
        | {"time": np.atleast_1d(ds["time"].values)},
    )


def _unwritable(store: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return explain(
        f"The store {store} can't be written",
        got=reason or type(error).__name__,
        expected="a place that is writable and has room",
        do="Choose another path",
    )
