"""Lazy forecasts: one dask task per block of starts and members, computed where and when it is needed."""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import threading
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from .checkpoint import Model, load_model
from .choices import check_devices
from .errors import ArgumentError, CheckpointError, DatasetError, explain
from .plan import Plan
from .run import Bar, run
from .state import Fields, State
from .store import MemorySink
from .store.encoding import compressor, layouts, shard_leads
from .variables import listed

# One block at a time in a process: a network's weights are moved and converted in place, and its threads are torch's.
_TURN = threading.Lock()
# Models of this process by digest; two, so that a comparison of models doesn't load each of them again and again.
_MODELS: dict[str, Model] = {}
_KEPT_MODELS = 2
_GUARD = threading.Lock()


def lazy_forecast(plan: Plan, chunks: Mapping[str, int], model: Any, device: str | None) -> xr.Dataset:
    """A forecast as dask arrays.

    Parameters
    ----------
    plan : Plan
        Of the whole forecast.
    chunks : mapping of str to int
        Starts (``time``) and members (``number``) to a task.
    model : str, path, Model or None
        As the caller gave it: workers open what has a name or path themselves.
    device : str, optional
        Where to compute; by default as the worker has it.

    Returns
    -------
    Dataset, dims (time, number, prediction_timedelta, level, latitude, longitude)
    """
    import dask.array
    from dask.highlevelgraph import HighLevelGraph

    starts, members = _chunks(plan, chunks)
    token = uuid.uuid4().hex
    layers, needs = _blocks(plan, starts, members, token, Weights(plan.model, model), device)
    scalar, arrays = plan.state.scalar_start, {}
    for name, v in plan.variables().items():
        key, behind = f"{name}-{token}", (0,) * (v.ndim - (1 if scalar else 2))
        tasks: dict[Any, Any] = {
            (key, *(() if scalar else (i,)), j, *behind): (
                functools.partial(_take, name, scalar),
                ("block-" + token, i, j),
            )
            for i in range(len(starts))
            for j in range(len(members))
        }
        graph = HighLevelGraph({**layers, key: tasks}, {**needs, key: {"block-" + token}})
        split = (*(() if scalar else (starts,)), members, *((n,) for n in v.shape[v.ndim - len(behind) :]))
        arrays[name] = dask.array.Array(graph, key, split, dtype=np.float32)
    return _dataset(plan, arrays)


def _chunks(plan: Plan, chunks: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of starts and of members of the tasks."""
    if unknown := [n for n in chunks if n not in ("time", "number")]:
        raise ArgumentError(
            explain(f"chunks= names {unknown[0]!r}", expected="'time' and 'number': leads and levels come together")
        )
    result = []
    for name, count, usual in (("time", len(plan.state.starts), 1), ("number", plan.members, -1)):
        size = chunks.get(name, usual)
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or not (size == -1 or size > 0):
            raise ArgumentError(explain(f"chunks={dict(chunks)!r} can't be used", expected="whole numbers, or -1: all"))
        size = count if size == -1 else min(int(size), count)
        result.append(tuple(min(size, count - i) for i in range(0, count, size)))
    return result[0], result[1]


def _dataset(plan: Plan, arrays: Mapping[str, Any]) -> xr.Dataset:
    """The labelled result; stored as it is, a chunk holds one time, member and lead."""
    template = plan.template()
    source = str(template.attrs["source"]).replace(f"device {plan.device.type}", "device of the worker")
    template.attrs["source"] = source
    # no shards: xarray refuses to store a part of a Dataset whose encoding names them
    encoding = {
        n: {k: e[k] for k in ("chunks", "_FillValue")} for n, e in layouts(plan.variables(), 1, 1, None).items()
    }
    data = {n: (v.dims, arrays[n], v.attrs, encoding[n]) for n, v in plan.variables().items()}
    return template.assign(data)


# ------------------------------------------------------------------------------------------------------- to disk


def to_zarr(forecast: xr.Dataset, store: Any, **options: Any) -> Any:
    """Write a forecast, lazy or not, in the layout that ``store=`` gives it.

    Parameters
    ----------
    forecast : Dataset, dims (time, number, prediction_timedelta, level, latitude, longitude)
        Of `xmosaic.forecast`, or a part of one.
    store : path, URL or zarr Store
    **options
        To `xarray.Dataset.to_zarr`, such as ``mode=``, ``compute=`` or ``storage_options=``.

    Returns
    -------
    zarr store, or Delayed with ``compute=False``
        As `xarray.Dataset.to_zarr` returns it.

    Raises
    ------
    DatasetError
        If this is no forecast.
    ArgumentError
        For ``encoding=``, which is what this sets, and Zarr format 2, which has no shards.

    Notes
    -----
    A chunk is the full sphere of one start, member and lead. A shard, one file, joins the members of a task and at most
    ten leads or 256 MB, so that no file is written by two tasks. What is begun can't be gone on with: for that, take
    ``forecast(store=…)``.
    """
    import zarr

    if not isinstance(forecast, xr.Dataset) or "prediction_timedelta" not in forecast.dims:
        got = f"dimensions {listed(forecast.dims)}" if isinstance(forecast, xr.Dataset) else type(forecast).__name__
        raise DatasetError(explain("This is no forecast", got=got, expected="a result of xmosaic.forecast"))
    if "encoding" in options or options.get("zarr_format", 3) != 3:
        name = "encoding" if "encoding" in options else "zarr_format"
        do = "Use the Dataset's own to_zarr for another layout"
        raise ArgumentError(explain(f"{name}= can't be chosen here", expected="the layout of store=", do=do))
    fields = [str(n) for n, v in forecast.data_vars.items() if "prediction_timedelta" in v.dims]
    # a chunk holds the whole sphere
    whole = {d: -1 for n in fields for d in forecast[n].dims if d not in _APART and forecast[n].chunks is not None}
    forecast = forecast.chunk(whole) if whole else forecast
    with warnings.catch_warnings():
        # consolidated metadata aren't part of Zarr's specification yet, but xarray opens faster with them
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        return forecast.to_zarr(store, encoding=_encoding(forecast, fields), zarr_format=3, **options)


_APART = ("time", "number", "prediction_timedelta")


def _encoding(forecast: xr.Dataset, fields: list[str]) -> dict[str, dict[str, Any]]:
    """Chunks and shards of each variable; no shard is cut by dask's chunks."""
    variables = {n: forecast[n].variable for n in fields}
    members = forecast.sizes.get("number", 1)
    held = [v.chunksizes.get("number", (members,)) for v in variables.values() if v.chunks is not None]
    together = _uncut(held[0], members) if held else members
    leads = shard_leads(variables, together, forecast.sizes["prediction_timedelta"])
    result = {}
    for name, v in variables.items():
        size = {"time": 1, "number": together, "prediction_timedelta": leads}
        cut = {d: v.chunksizes.get(d, (n,)) for d, n in v.sizes.items()}
        result[name] = {
            "chunks": tuple(1 if d in _APART else n for d, n in v.sizes.items()),
            "shards": tuple(_uncut(cut[d], size[d]) if d in _APART else n for d, n in v.sizes.items()),
            "compressors": compressor(None),
        }
        if v.dtype.kind == "f":
            result[name]["_FillValue"] = v.dtype.type("nan")
    return result


def _uncut(pieces: tuple[int, ...], most: int) -> int:
    """The largest size up to `most` that divides the places where dask cuts a dimension.

    Examples
    --------
    >>> _uncut((40,), 10), _uncut((4, 4, 2), 10), _uncut((6, 6), 4), _uncut((3, 2), 5)
    (10, 4, 3, 3)
    """
    cuts = math.gcd(*np.cumsum(pieces)[:-1].tolist())
    return most if not cuts else next(n for n in range(min(most, cuts), 0, -1) if cuts % n == 0)


# --------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Block:
    """What a task does to its input, small enough to travel with every task.

    Attributes
    ----------
    starts : tuple of Timestamp
    before, members : int
        Members of the ensemble before this block, and in it.
    seed : int
    kept : tuple of int
        Steps to keep, from 1.
    variables : tuple of str
        Channels to keep.
    back : bool
        Whether to regrid to the input's grid.
    dtype : str
    batch : (int, int)
        Starts and members that go through the network together.
    device : str or None
    """

    starts: tuple[pd.Timestamp, ...]
    before: int
    members: int
    seed: int
    kept: tuple[int, ...]
    variables: tuple[str, ...]
    back: bool
    dtype: str
    batch: tuple[int, int]
    device: str | None

    def __call__(self, weights: Weights, part: xr.Dataset) -> dict[str, np.ndarray]:
        """Compute the block: float32 arrays (start, member, lead, ...) by variable."""
        model, device = weights.model(), worker_device(self.device)
        state = State(part, model, list(self.starts))
        schema = type(model.schema)(model.schema.select(self.variables).state)
        plan = Plan(
            model=model,
            state=state,
            fields=Fields(model, schema, state, self.back, device),
            members=self.members,
            seed=self.seed,
            kept=self.kept,
            devices=(device,),
            dtype=getattr(torch, self.dtype),
            batch_size=None,
            before=self.before,
            fixed_block=self.batch,
        )
        sink = MemorySink(plan.template(), plan.variables(), scalar=False)
        with _TURN, Bar(plan, show=False) as bar:
            run(plan, sink, bar)
        return {str(name): v.values for name, v in sink.finish().items()}


def _blocks(
    plan: Plan, starts: tuple[int, ...], members: tuple[int, ...], token: str, weights: Weights, device: str | None
) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """Layers of the graph, and what each needs: the model, the input of some starts, the blocks made from both."""
    layers: dict[str, Any] = {"model-" + token: {"model-" + token: (_as_it_is, weights)}}
    needs: dict[str, set[str]] = {"model-" + token: set(), "block-" + token: {"model-" + token}}
    blocks = {}
    for i, first in enumerate(np.cumsum((0, *starts[:-1])).tolist()):
        times = tuple(plan.state.starts[first : first + starts[i]])
        key = _add_input(plan, times, f"input-{token}-{i}", layers, needs)
        needs["block-" + token].add(key)
        for j, before in enumerate(np.cumsum((0, *members[:-1])).tolist()):
            block = _block(plan, times, before, members[j], starts[0], members[0], device)
            blocks["block-" + token, i, j] = (block, "model-" + token, key)
    layers["block-" + token] = blocks
    return layers, needs


def _block(
    plan: Plan, times: tuple[pd.Timestamp, ...], before: int, count: int, most: int, many: int, device: str | None
) -> Block:
    # the batch of an eager forecast wherever it fits into a task: then the bits are the same too
    batch = (min(plan.block[0], most), min(plan.block[1], many))
    return Block(
        starts=times,
        before=before,
        members=count,
        seed=plan.seed,
        kept=plan.kept,
        variables=tuple(c.name for c in plan.fields.schema.state),
        back=plan.fields.back,
        dtype=str(plan.dtype).removeprefix("torch."),
        batch=batch if batch[1] >= plan.members else (1, batch[1]),
        device=device,
    )


def _add_input(
    plan: Plan, starts: tuple[pd.Timestamp, ...], key: str, layers: dict[str, Any], needs: dict[str, set[str]]
) -> str:
    """Add what some starts are made from, in memory once it is computed; returns its key."""
    from dask import is_dask_collection
    from dask.delayed import delayed

    part = _part(plan, starts)
    if not is_dask_collection(part):
        layers[key], needs[key] = {key: (_loaded, part)}, set()
        return key
    # dask's own tasks read it: each chunk once, where the scheduler likes
    whole = delayed(_as_it_is, pure=False)(part)
    graph = whole.__dask_graph__()
    layers |= graph.layers
    needs |= {name: set(some) for name, some in graph.dependencies.items()}
    return str(whole.key)


def _part(plan: Plan, starts: tuple[pd.Timestamp, ...]) -> xr.Dataset:
    """The part of the input that some starts need: their histories, and the forcing of their steps."""
    state, step = plan.state, plan.model.step
    found = state.recognition
    wanted = {t for start in starts for t in state.history_times(start)}
    if plan.model.schema.forcing:
        wanted |= {start + k * step for start in starts for k in range(1, plan.steps)}
    names = {s.variable for s in found.sources.values()}
    names |= {n for n, v in state.ds.data_vars.items() if not v.ndim}  # such as a grid mapping
    part = state.ds[sorted(names, key=str)]
    if found.time is None or not part[found.time].ndim:
        return part
    places = np.flatnonzero(found.times.isin(pd.DatetimeIndex(sorted(wanted))))
    return part.isel({part[found.time].dims[0]: _compact(places)})


def _compact(places: np.ndarray) -> Any:
    """A slice where there is one for these places: it copies nothing."""
    gaps = np.unique(np.diff(places))
    if len(places) < 2 or len(gaps) > 1:
        return places
    return slice(int(places[0]), int(places[-1]) + 1, int(gaps[0]))


def _as_it_is(value: Any) -> Any:
    return value


def _loaded(part: xr.Dataset) -> xr.Dataset:
    return part.compute()


def _take(name: str, scalar: bool, block: Mapping[str, np.ndarray]) -> np.ndarray:
    return block[name][0] if scalar else block[name]


# ------------------------------------------------------------------------------------------------------- workers


class Weights:
    """A model on its way to a worker: as its name or path where it has one, else whole.

    Parameters
    ----------
    model : Model
    given : str, path, Model or None
        What the caller named.
    """

    def __init__(self, model: Model, given: Any) -> None:
        self.sha256, self.source = model.sha256, None
        if isinstance(given, str | os.PathLike) or given is None:
            name = os.fspath(given) if given is not None else model.name
            path = Path(name).expanduser()
            self.source = str(path.resolve()) if path.exists() else name
        self._model: Model | None = model

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"_model": None} if self.source is not None else {})

    def model(self) -> Model:
        """The model, opened once in a process."""
        with _GUARD:
            held = _MODELS.pop(self.sha256, None) or self._model or self._open()
            _MODELS[self.sha256] = self._model = held
            while len(_MODELS) > _KEPT_MODELS:
                del _MODELS[next(iter(_MODELS))]
            return held

    def _open(self) -> Model:
        assert self.source is not None
        model = load_model(self.source)
        if model.sha256 != self.sha256:
            raise CheckpointError(
                explain(
                    f"The model {self.source!r} of this worker is not the one that the forecast was asked of",
                    got=f"sha256 {model.sha256}",
                    expected=self.sha256,
                    do="Give every worker the same file",
                )
            )
        return model


def worker_device(device: Any) -> torch.device:
    """Where a worker computes: where it was told to, else on a GPU of its own as far as that can be known.

    Parameters
    ----------
    device : str, optional
        "cuda" is any GPU, so the worker's own.

    Returns
    -------
    torch.device
        dask-cuda turns CUDA_VISIBLE_DEVICES so that each worker's own GPU comes first: that one. Other workers of
        `dask.distributed` whose name ends in a number (LocalCluster calls them 0, 1, …) share the GPUs out by it.
        One in any case: whoever spreads tasks over a host's GPUs starts a worker for each.
    """
    chosen = check_devices(device)
    return chosen[gpu_of(_worker_name(), os.environ.get("CUDA_VISIBLE_DEVICES"), len(chosen))]


def gpu_of(worker: Any, visible: str | None, count: int) -> int:
    """Which of the GPUs that a process sees is a worker's own.

    Examples
    --------
    >>> gpu_of(worker=3, visible=None, count=2), gpu_of(worker=3, visible="3,0,1,2", count=4)
    (1, 0)
    """
    listed = [n for n in (visible or "").split(",") if n.strip()]
    turned = all(n.strip().isdigit() for n in listed) and listed != sorted(listed, key=int)
    number = re.search(r"\d+$", str(worker))
    if worker is None or turned or "://" in str(worker) or number is None:
        return 0
    return int(number.group()) % count


def _worker_name() -> Any:
    """Name of the dask worker that this runs on; None elsewhere."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_worker().name
    except ValueError:
        return None
