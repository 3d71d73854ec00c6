"""Ensemble forecasts from a Dataset: in memory, into a store while they run, or lazily."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import xarray as xr
from tqdm.auto import tqdm

from .checkpoint import Model
from .choices import (
    check_devices,
    check_dtype,
    check_keep_bits,
    check_seed,
    choose_model,
    choose_steps,
    choose_variables,
    leads_back,
    positive,
)
from .choices import known_models as known_models
from .choices import parse_lead as parse_lead
from .errors import ArgumentError, explain
from .options import get_option
from .overview import Overview as Overview
from .overview import check as check
from .plan import Plan, check_memory
from .run import Bar, run
from .state import Fields, State
from .steps import clock_at as clock_at
from .steps import clock_fractions as clock_fractions
from .steps import keyed_normals as keyed_normals
from .steps import member_noise as member_noise
from .steps import rollout as rollout
from .store import MemorySink, Store


def forecast(
    ds: xr.Dataset,
    lead: Any,
    members: int,
    *,
    model: str | Model | None = None,
    time: Any = None,
    seed: int = 0,
    variables: str | Iterable[str] | None = None,
    levels: Any = None,
    every: Any = None,
    leads: Any = None,
    batch_size: int | None = None,
    device: str | torch.device | Sequence[str | torch.device] | None = None,
    dtype: str | None = None,
    store: Store | None = None,
    keep_bits: int | None = None,
    chunks: Mapping[str, int] | None = None,
    progress: bool | None = None,
    grid: Literal["model", "input"] = "model",
) -> xr.Dataset:
    """Ensemble forecast from a Dataset.

    Parameters
    ----------
    ds : Dataset
        Analyses or any other states, in any common dialect; `xmosaic.check` says what is used of it.
    lead : str, Timedelta or timedelta64
        How far, such as ``"10D"``; a multiple of the model's step.
    members : int
        Size of the ensemble.
    model : str, path or Model, optional
        By default the one of `set_options`, else the known one whose schema and grid the Dataset holds; which one
        is said on standard error, unless there is no progress bar, and in the attribute ``source``.
    time : datetime-like, sequence or slice of them, optional
        Starts; by default the last time of the Dataset. A single start gives a scalar `time`.
    seed : int, optional
        Member i of a seed is the same member whatever the size of the ensemble, of the batch, or the device.
    variables : str or list of str, optional
        What to keep: variables or single channels ("geopotential", "geopotential_500", "t2m"). All by default.
    levels : int or sequence of int, optional
        Of variables on levels, keep these [hPa]; all by default.
    every : str, Timedelta or timedelta64, optional
        Keep only leads that are multiples of this; by default every step.
    leads : sequence of str, Timedelta or timedelta64, optional
        Keep these leads only, instead of `every`.
    batch_size : int, optional
        Members that go through the network together; by default as fits the device.
    device : str or sequence of str, optional
        By default, and as "cuda", every GPU that the process sees (CUDA_VISIBLE_DEVICES says which), else the CPU;
        "cuda:1" or ["cuda:0", "cuda:1"] are those alone. Members run in the same batches on one GPU as on several,
        so numbers don't depend on how many there are.
    dtype : {"float32", "bfloat16", "float16", "float64", "float8"}, optional
        Arithmetic of the network; the 16-bit ones by autocast; "float8" has the feed-forward layers' products in 8
        bits (e4m3) and the rest as "bfloat16" has it, on an NVIDIA GPU of compute capability 8.9. By default bfloat16
        on GPUs that have it (compute capability 8.0), eleven times as fast as float32 there, and float32 on CPUs. The
        attribute ``source`` says what it was. A lazy forecast takes the default of where it is made.
    store : path, URL, zarr Store or icechunk Repository, optional
        Write to this Zarr store while the forecast runs; memory then doesn't grow with lead. The same call with the
        same store goes on after a break of any kind, to the same bits on the same hardware.
    keep_bits : int, optional
        Round what is stored to so many bits of the mantissa, 1 to 23: relative errors up to 2 ** -(keep_bits + 1),
        and a smaller store. By default nothing is rounded.
    chunks : mapping of str to int, optional
        Make a lazy forecast, such as ``{"time": 1, "number": 8}``: one dask task per so many starts and members, -1
        for all; a dimension that isn't named has one start, or all members, to a task. ``{}`` is lazy too.
    progress : bool, optional
        Show a progress bar on anything over a second; True by default.
    grid : {"model", "input"}, optional
        Where the Dataset is on another grid than the model: the grid of the result.

    Returns
    -------
    Dataset, dims (time, number, prediction_timedelta, level, latitude, longitude)
        Physical values, float32, with the Dataset's order and names of latitude and longitude; opened lazily from
        `store` if there is one; with `chunks`, computed where and when it is needed.

    Raises
    ------
    DatasetError
        With every problem of the Dataset and its fix.
    ArgumentError
        For an argument that can't be used.
    StoreError
        If the store holds another forecast or something else, is being written by another process, or can't be
        written; the text names the difference.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = xmosaic.forecast(ds, "2D", 2, variables=["t2m", "geopotential"], levels=[500], progress=False)
    >>> list(fc.data_vars), dict(fc["2m_temperature"].sizes)
    (['2m_temperature', 'geopotential'], {'number': 2, 'prediction_timedelta': 2, 'latitude': 33, 'longitude': 64})
    >>> fc.attrs["title"]
    '2-member ensemble forecast by Mosaic, model bundled'
    """
    chosen = choose_model(ds, model)
    state = State(ds, chosen, time)
    state.report(values=False).raise_for_problems()
    asked = device if device is not None else get_option("device")
    targets = check_devices(asked) if chunks is None else _device_here(asked)
    plan = Plan(
        model=chosen,
        state=state,
        fields=Fields(chosen, choose_variables(chosen.schema, variables, levels), state, leads_back(grid), targets[0]),
        members=positive("members", members),
        seed=check_seed(seed),
        kept=choose_steps(lead, every, leads, chosen),
        devices=targets,
        dtype=check_dtype(dtype or get_option("dtype"), targets),
        batch_size=None if batch_size is None else positive("batch_size", batch_size),
        keep_bits=check_keep_bits(keep_bits),
    )
    plan.check()
    if keep_bits is not None and store is None:
        raise ArgumentError(explain("keep_bits= is for what is stored", do="Pass store= as well, or leave it out"))
    show = get_option("progress") if progress is None else progress
    if show and model is None and get_option("model") is None:
        tqdm.write(f"model {chosen.name!r}: its channels and grid are those of the dataset", file=sys.stderr)
    if chunks is not None:
        return _lazy(plan, chunks, model if model is not None else get_option("model"), asked, store)
    if store is not None:
        return _stored(plan, store, show)
    check_memory(plan)
    with Bar(plan, show) as bar, MemorySink(plan.template(), plan.variables(), state.scalar_start) as sink:
        run(plan, sink, bar)
        return sink.finish()


def _stored(plan: Plan, store: Store, show: bool) -> xr.Dataset:
    from .store.sink import Request, ZarrSink, held_block

    if plan.batch_size is None:
        plan = dataclasses.replace(plan, fixed_block=held_block(store))
    request = Request(
        plan.template(), plan.variables(), plan.state.scalar_start, plan.block, plan.settings(), plan.keep_bits
    )
    with ZarrSink(store, request) as sink, Bar(plan, show) as bar:
        run(plan, sink, bar)
        return sink.finish()


def _lazy(plan: Plan, chunks: Mapping[str, int], model: Any, device: Any, store: Store | None) -> xr.Dataset:
    from .lazy import lazy_forecast

    if store is not None:
        raise ArgumentError(
            explain(
                "store= writes while the forecast runs, chunks= makes it run later",
                do="Leave one of them out; a lazy forecast is stored with fc.to_zarr(…)",
            )
        )
    return lazy_forecast(plan, chunks, model, device)


def _device_here(device: Any) -> tuple[torch.device, ...]:
    """What a lazy forecast is planned on: workers may have GPUs where this process has none."""
    try:
        chosen = check_devices(device)
    except ArgumentError:
        if not re.fullmatch(r"cuda(:\d+)?", str(device)):
            raise
        return (torch.device("cpu"),)
    if len(chosen) > 1 and device is not None and str(device) != "cuda":
        raise ArgumentError(
            explain(
                f"device={device!r} doesn't go with chunks=: a task runs on one device",
                expected="one device, or none: each worker takes its own GPU then",
            )
        )
    return chosen[:1]


class _CallableModule(types.ModuleType):
    """Python binds a submodule to its package's attribute: ``xmosaic.forecast(ds, …)`` finds this module here."""

    @functools.wraps(forecast)
    def __call__(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        return forecast(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
