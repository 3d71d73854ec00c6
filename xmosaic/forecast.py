"""Ensemble forecasts: the rollout, its noise, and the labelled result."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm

from .cards import duration, html_card, text_card
from .checkpoint import PAPER, PUBLISHED_GRID, Model, load_model
from .dialects import Recognition, recognise
from .errors import ArgumentError, DatasetError, MosaicError, explain
from .grid import LatLonGrid
from .model import PUBLISHED, Mosaic
from .options import get_option
from .state import Fields, Report, State, fit
from .store import MemorySink, Store, ZarrSink
from .variables import Schema, published_schema

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
# Separates this use of Philox from any other with the same seed; changing it changes every forecast.
_NOISE_STREAM = 0x6D6F73616963
# Members that run together on a CPU, memory allowing: more are no faster (docs/performance.md).
_CPU_BATCH = 4


# ------------------------------------------------------------------------------------------------------- rollout


def rollout(
    network: Mosaic,
    history: torch.Tensor,
    clock: Callable[[int], torch.Tensor],
    noise: Callable[[int], torch.Tensor | None],
    steps: int,
    forcing: Callable[[int], torch.Tensor | None] = lambda step: None,
) -> Iterator[torch.Tensor]:
    """Step a network forward, feeding its output back.

    Parameters
    ----------
    network : Mosaic
    history : Tensor, (batch, member, history, longitude, latitude, channel)
        Normalised, oldest first.
    clock : callable
        ``clock(step)`` gives the (batch, 2) fractions of day and year of the newest time before step 0, 1, …
    noise : callable
        ``noise(step)`` gives the (batch, member, noise_dim) draws of that step, or None.
    steps : int
    forcing : callable, optional
        ``forcing(step)`` gives the normalised forcing, (batch, 1 or member, longitude, latitude, forcing), of the time
        that step leads to.

    Yields
    ------
    Tensor, (batch, member, longitude, latitude, channel)
        The normalised state after each step.
    """
    for step in range(steps):
        state = network(history, clock(step), noise(step))
        yield state
        if step + 1 < steps:
            given = forcing(step)
            newest = state if given is None else torch.cat([state, given.expand(*state.shape[:-1], -1)], dim=-1)
            history = torch.cat([history[:, :, 1:], newest.unsqueeze(2)], dim=2)


def member_noise(seed: int, start: pd.Timestamp, members: Sequence[int], step: int, size: int) -> np.ndarray:
    """Standard normal draws that depend on seed, start, member and step alone.

    The counter of a Philox generator is (0, step, member, start), its key the seed: no draw depends on how many others
    were made, in which order or where. Box–Muller on its raw output keeps them the same in every version of NumPy.

    Parameters
    ----------
    seed : int
        0 to 2⁶⁴ − 1.
    start : Timestamp
        Start of the forecast.
    members : sequence of int
        Member numbers, from 1.
    step : int
        From 0.
    size : int

    Returns
    -------
    float32 array, (member, size)

    References
    ----------
    Salmon et al. 2011, doi:10.1145/2063384.2063405
    """
    seconds = (start - pd.Timestamp(0)) // pd.Timedelta(seconds=1) % 2**64
    return np.stack([keyed_normals(seed, _NOISE_STREAM, (step, member, seconds), size) for member in members])


def keyed_normals(seed: int, stream: int, key: tuple[int, int, int], size: int) -> np.ndarray:
    """Standard normal draws of a seed, a stream and three numbers, whatever else is drawn.

    Parameters
    ----------
    seed : int
        0 to 2⁶⁴ − 1.
    stream : int
        Tells apart what the draws are for.
    key : (int, int, int)
    size : int

    Returns
    -------
    float32 array, (size,)
    """
    half = math.ceil(size / 2)
    counter = np.array([0, *key], np.uint64)
    raw = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=counter).random_raw(2 * half)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32)[:size]


def clock_fractions(time: pd.Timestamp) -> tuple[float, float]:
    """Fraction of the day, and of the year as (day of year − 1) / (365 or 366).

    Examples
    --------
    >>> clock_fractions(pd.Timestamp("2020-12-31T18"))
    (0.75, 0.9972677595628415)
    """
    day = (time - time.normalize()) / pd.Timedelta(days=1)
    return day, (time.day_of_year - 1) / (366 if time.is_leap_year else 365)


def clock_at(model: Model, start: pd.Timestamp, step: int) -> tuple[float, float]:
    """Clock of the newest time before a step, after the model's own clock.

    Parameters
    ----------
    model : Model
    start : Timestamp
    step : int
        From 0.

    Returns
    -------
    day, year : float
        With the release's clock these pass 1 instead of starting again; the network sees their sines and cosines.
    """
    if model.config.clock == "calendar":
        return clock_fractions(start + step * model.step)
    stride = model.config.step_hours / 6
    day, year = clock_fractions(start)
    return day + step * stride / 4, year + step * stride / 365.25


# ------------------------------------------------------------------------------------------------------ forecast


def forecast(
    ds: xr.Dataset,
    lead: Any,
    members: int,
    *,
    model: str | Model | None = None,
    time: Any = None,
    seed: int = 0,
    variables: str | Iterable[str] | None = None,
    every: Any = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    store: Store | None = None,
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
    every : str, Timedelta or timedelta64, optional
        Keep only leads that are multiples of this; by default every step.
    batch_size : int, optional
        Members that go through the network together; by default as fits the device.
    device : str, optional
        By default a GPU if there is one.
    dtype : {"float32", "bfloat16", "float16", "float64"}, optional
        Arithmetic of the network; the 16-bit ones by autocast. By default float32.
    store : path, URL or zarr Store, optional
        Write to this Zarr store while the forecast runs; memory then doesn't grow with lead. The store must not
        hold anything yet.
    progress : bool, optional
        Show a progress bar on anything over a second; True by default.
    grid : {"model", "input"}, optional
        Where the Dataset is on another grid than the model: the grid of the result.

    Returns
    -------
    Dataset, dims (time, number, prediction_timedelta, level, latitude, longitude)
        Physical values, float32, with the Dataset's order and names of latitude and longitude; opened lazily from
        `store` if there is one.

    Raises
    ------
    DatasetError
        With every problem of the Dataset and its fix.
    ArgumentError
        For an argument that can't be used.
    StoreError
        If the store holds something already or can't be written.
    """
    chosen = choose_model(ds, model)
    target = _check_device(device or get_option("device"))
    state = State(ds, chosen, time)
    state.report(values=False).raise_for_problems()
    plan = Plan(
        model=chosen,
        state=state,
        fields=Fields(chosen, _choose_variables(chosen.schema, variables), state, _back(grid), target),
        members=_positive("members", members),
        seed=_check_seed(seed),
        steps=_steps("lead", lead, chosen),
        stride=1 if every is None else _steps("every", every, chosen),
        device=target,
        dtype=_check_dtype(dtype or get_option("dtype") or "float32"),
        batch_size=None if batch_size is None else _positive("batch_size", batch_size),
    )
    plan.check()
    if store is None:
        _check_memory(plan)
    show = get_option("progress") if progress is None else progress
    if show and model is None and get_option("model") is None:
        tqdm.write(f"model {chosen.name!r}: its channels and grid are those of the dataset", file=sys.stderr)
    with _Bar(plan, show) as bar:
        sink = (
            MemorySink(plan.template(), plan.variables(), state.scalar_start)
            if store is None
            else ZarrSink(store, plan.template(), plan.variables(), plan.block, state.scalar_start)
        )
        run(plan, sink, bar)
        return sink.close()


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is settled before the first step."""

    model: Model
    state: State
    fields: Fields
    members: int
    seed: int
    steps: int
    stride: int
    device: torch.device
    dtype: torch.dtype
    batch_size: int | None

    def check(self) -> None:
        """Raise `ArgumentError` for a combination that makes no forecast."""
        if self.members > 1 and not self.model.config.noise_dim:
            raise ArgumentError(
                explain(
                    f"members={self.members} of a model without noise would all be the same",
                    expected="members=1, or a model with noise",
                )
            )
        if self.fields.back and self.state.grid is None:
            raise ArgumentError(
                explain(
                    "grid='input' does not lead back to a HEALPix mesh",
                    expected="grid='model'",
                    do="Regrid the result: fc.mosaic.to_healpix(nside=…)",
                )
            )
        if not self.kept:
            raise ArgumentError(
                explain(
                    "every is longer than lead: nothing would be kept",
                    got=f"{duration(self.stride * self.model.step)} and {duration(self.steps * self.model.step)}",
                )
            )

    @cached_property
    def kept(self) -> list[int]:
        """Steps (from 1) that are part of the result."""
        return list(range(self.stride, self.steps + 1, self.stride))

    @cached_property
    def block(self) -> tuple[int, int]:
        """Starts and members that go through the network together."""
        size = self.batch_size or self._default_batch()
        if size >= 2 * self.members:
            return min(size // self.members, len(self.state.starts)), self.members
        return 1, min(size, self.members)

    def _default_batch(self) -> int:
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return max(1, int(0.6 * free) // self.model.member_bytes())
        free = _available_memory() or 0
        return max(1, min(_CPU_BATCH, int(0.6 * free) // self.model.member_bytes()))

    @property
    def bytes(self) -> int:
        """Size of the result."""
        return sum(4 * math.prod(v.shape) for v in self.variables().values())

    @property
    def rows(self) -> int:
        """Number of (start, member) pairs."""
        return len(self.state.starts) * self.members

    def variables(self) -> dict[str, xr.Variable]:
        """The data variables, as shapes."""
        sizes = {"level": len(self.fields.levels)} | dict(
            zip((self.fields.grid.latitude_name, self.fields.grid.longitude_name), self.fields.grid.shape, strict=True)
        )
        lengths = {"time": len(self.state.starts), "number": self.members, "prediction_timedelta": len(self.kept)}
        if self.state.scalar_start:
            del lengths["time"]
        sizes |= lengths
        result = {}
        for name in self.fields.groups:
            dims = (*lengths, *self.fields.dims(name))
            blank = np.broadcast_to(np.float32(np.nan), [sizes[d] for d in dims])
            result[name] = xr.Variable(dims, blank, self.fields.attributes(name))
        return result

    def template(self) -> xr.Dataset:
        """Coordinates and attributes of the result."""
        starts = self.state.starts.to_numpy()
        leads = np.array([(k * self.model.step).to_timedelta64() for k in self.kept])
        coords = self.fields.coordinates() | {
            "time": (
                "time",
                starts,
                {"standard_name": "forecast_reference_time", "long_name": "initial time of forecast"},
            ),
            "number": (
                "number",
                np.arange(1, self.members + 1),
                {"standard_name": "realization", "long_name": "ensemble member numerical id", "units": "1"},
            ),
            "prediction_timedelta": (
                "prediction_timedelta",
                leads,
                {"standard_name": "forecast_period", "long_name": "time since forecast_reference_time"},
            ),
            "valid_time": (
                ("time", "prediction_timedelta"),
                starts[:, None] + leads[None, :],
                {"standard_name": "time", "long_name": "time that the forecast is for"},
            ),
        }
        template = xr.Dataset(coords=coords, attrs=self._attributes())
        return template.isel(time=0) if self.state.scalar_start else template

    def _attributes(self) -> dict[str, Any]:
        model, version = self.model, _version()
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        way = "regridded conservatively (exact overlap areas)"
        comment = ["UNTRAINED model: random weights, no skill."] if model.untrained else []
        if self.state.regridded:
            comment.append(f"Input {way} from {self.state.grid or 'a HEALPix mesh'} to {model.grid}.")
        if self.fields.back:
            comment.append(f"Result {way} back.")
        attrs = {
            "Conventions": "CF-1.13",
            "title": f"{self.members}-member ensemble forecast by Mosaic, model {model.name}"
            + (" (untrained)" if model.untrained else ""),
            "institution": "made with xmosaic",
            "source": (
                f"xmosaic {version}, model {model.name}, checkpoint sha256 {model.sha256}, "
                f"device {self.device.type}, dtype {str(self.dtype).removeprefix('torch.')}"
            ),
            "history": f"{now} xmosaic {version}: forecast to {duration(self.steps * model.step)}, seed {self.seed}",
            "references": str(model.provenance.get("references", PAPER)),
            "license": model.license,
            "seed": self.seed if self.seed < 2**63 else str(self.seed),  # netCDF's integers are signed
            "comment": " ".join(comment),
        }
        return {k: v for k, v in attrs.items() if v != ""}


def run(plan: Plan, sink: MemorySink | ZarrSink, bar: _Bar) -> None:
    """Make the forecast of a plan, block by block, and hand every kept lead to the sink."""
    network = plan.model.network.to(plan.device)
    if plan.dtype == torch.float64:
        network = network.double()
    many_starts, many_members = plan.block
    try:
        for first in range(0, len(plan.state.starts), many_starts):
            starts = slice(first, min(first + many_starts, len(plan.state.starts)))
            histories = np.stack([plan.state.history(t) for t in plan.state.starts[starts]])
            for begin in range(0, plan.members, many_members):
                members = slice(begin, min(begin + many_members, plan.members))
                _run_block(plan, network, histories, starts, members, sink, bar)
    finally:
        if plan.dtype == torch.float64:
            plan.model.network.float()


@torch.inference_mode()
def _run_block(
    plan: Plan,
    network: Mosaic,
    histories: np.ndarray,
    starts: slice,
    members: slice,
    sink: MemorySink | ZarrSink,
    bar: _Bar,
) -> None:
    model, times = plan.model, plan.state.starts[starts]
    numbers = range(members.start + 1, members.stop + 1)
    real = torch.float64 if plan.dtype == torch.float64 else torch.float32

    def tensor(values: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), device=plan.device).to(real)

    def noise(step: int) -> torch.Tensor | None:
        size = model.config.noise_dim
        return tensor([member_noise(plan.seed, t, numbers, step, size) for t in times]) if size else None

    def forcing(step: int) -> torch.Tensor | None:
        if not model.schema.forcing:
            return None
        return tensor([plan.state.forcing(t + (step + 1) * model.step) for t in times]).unsqueeze(1)

    history = tensor(histories).unsqueeze(1).expand(-1, len(numbers), *histories.shape[1:])
    autocast = plan.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(plan.device.type, dtype=plan.dtype if autocast else None, enabled=autocast):
        states = rollout(
            network, history, lambda step: tensor([clock_at(model, t, step) for t in times]), noise, plan.steps, forcing
        )
        for step, state in enumerate(states, 1):
            _check_finite(plan, state, step)
            if step % plan.stride == 0:
                sink.write(starts, members, step // plan.stride - 1, plan.fields.physical(state))
            bar.update(len(times) * len(numbers))


def _check_finite(plan: Plan, state: torch.Tensor, step: int) -> None:
    if bool(torch.isfinite(state).all()):
        return
    bad = (~torch.isfinite(state)).flatten(0, -2).any(0).nonzero().flatten().tolist()
    names = [plan.model.schema.state[i].name for i in bad]
    raise MosaicError(
        explain(
            f"The forecast is no longer finite after {duration(step * plan.model.step)}",
            got=f"NaN or infinite values in {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
            do="Use dtype='float32' if it was a 16-bit one; otherwise the model is not stable this far from its data",
        )
    )


class _Bar:
    """Progress over member-steps, shown once a second has passed."""

    def __init__(self, plan: Plan, show: bool) -> None:
        name = f"{plan.model.name}{' (UNTRAINED)' if plan.model.untrained else ''}"
        self._bar = tqdm(
            total=plan.rows * plan.steps,
            desc=f"forecast, {name}",
            unit="step",
            disable=not show,
            delay=1.0,
            dynamic_ncols=True,
        )

    def update(self, count: int) -> None:
        self._bar.update(count)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


# ------------------------------------------------------------------------------------------------------- choices


def choose_model(ds: xr.Dataset, model: str | Model | None = None) -> Model:
    """The model that a forecast from a Dataset uses.

    Parameters
    ----------
    ds : Dataset
    model : str, path or Model, optional
        By default the one of `set_options`, else the known one whose schema and grid the Dataset holds.

    Returns
    -------
    Model

    Raises
    ------
    DatasetError
        If none or several of the known models fit; the text lists them with what is in their way.
    """
    given = model if model is not None else get_option("model")
    if given is not None:
        return load_model(given)
    verdicts = {name: fit(ds, recognise(ds, schema), grid) for name, schema, grid in known_models()}
    fitting = [name for name, problems in verdicts.items() if not problems]
    if len(fitting) == 1:
        return load_model(fitting[0])
    listed = "\n".join(f"  {name}: {'fits' if not p else '; '.join(p)}" for name, p in verdicts.items())
    raise DatasetError(
        explain(
            f"{'Several' if fitting else 'None'} of the known models fit this dataset's variables and grid",
            do="Choose one with model=… or xmosaic.set_options(model=…); other grids are regridded then",
        )
        + f"\n{listed}"
    )


def known_models() -> list[tuple[str, Schema, LatLonGrid]]:
    """Name, schema and grid of every model that `load_model` knows by name."""
    bundled = load_model("bundled")
    published = LatLonGrid.equiangular(*PUBLISHED_GRID)
    return [("bundled", bundled.schema, bundled.grid)] + [(n, published_schema(), published) for n in PUBLISHED]


def parse_lead(name: str, value: Any) -> pd.Timedelta:
    """A positive time span; numbers without units are refused.

    Parameters
    ----------
    name : str
        Name of the argument, for the error text.
    value : str, Timedelta or timedelta64

    Returns
    -------
    Timedelta
    """
    do = f"Write {name}='10D' or {name}='240h'"
    number = isinstance(value, bool | int | float | np.integer | np.floating) and not isinstance(value, np.timedelta64)
    if number or (isinstance(value, str) and value.strip().replace(".", "", 1).lstrip("+-").isdigit()):
        raise ArgumentError(explain(f"{name}={value!r} has no units", expected="a time span", do=do))
    try:
        span = pd.Timedelta(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(explain(f"{name}={value!r} is no time span", got=str(error), do=do)) from None
    if pd.isna(span) or span <= pd.Timedelta(0):
        raise ArgumentError(explain(f"{name}={value!r} can't be used", expected="a time span above 0", do=do))
    return span


def _steps(name: str, value: Any, model: Model) -> int:
    span = parse_lead(name, value)
    steps, rest = divmod(span, model.step)
    if rest:
        near = [duration(k * model.step) for k in (steps, steps + 1) if k]
        raise ArgumentError(
            explain(
                f"{name}={value!r} is no multiple of the step of model {model.name!r}",
                got=duration(span),
                expected=f"a multiple of {model.config.step_hours} h, such as {' or '.join(near)}",
            )
        )
    return int(steps)


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ArgumentError(explain(f"{name}={value!r} can't be used", expected="a whole number, 1 or more"))
    return int(value)


def _check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ArgumentError(explain(f"seed={seed!r} can't be used", expected="a whole number from 0 to 2**64 - 1"))
    return int(seed)


def _check_device(device: Any) -> torch.device:
    """The device, once something has been put there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        count = torch.cuda.device_count()
        gpus = f", 'cuda:0' … 'cuda:{count - 1}'" if count else " (torch finds no GPU here)"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArgumentError(explain(f"device={device!r} can't be used", got=reason, expected=f"'cpu'{gpus}")) from None
    return chosen


def _check_dtype(dtype: Any) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ArgumentError(explain(f"dtype={dtype!r} can't be used", expected=", ".join(map(repr, DTYPES))))
    return DTYPES[name]


def _back(grid: Any) -> bool:
    if grid not in ("model", "input"):
        raise ArgumentError(explain(f"grid={grid!r} can't be used", expected="'model' or 'input'"))
    return bool(grid == "input")


def _choose_variables(schema: Schema, variables: str | Iterable[str] | None) -> Schema:
    if variables is None:
        return Schema(schema.state)
    chosen = Schema(schema.select(variables).state)
    if not chosen.state:
        raise ArgumentError(
            explain(
                f"variables={variables!r} names nothing that is forecast",
                expected=", ".join(c.name for c in schema.state),
            )
        )
    return chosen


def _check_memory(plan: Plan) -> None:
    """Refuse a result that can't fit before hours are spent on it."""
    available = _available_memory()
    if available is not None and plan.bytes > available:
        raise ArgumentError(
            explain(
                f"The forecast takes {plan.bytes / 1e9:.1f} GB of memory",
                got=f"{available / 1e9:.1f} GB available",
                do="Pass store='forecast.zarr', fewer variables=, or a longer every=",
            )
        )


def _available_memory() -> int | None:
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _version() -> str:
    from . import __version__

    return __version__


# ------------------------------------------------------------------------------------------------ what there is


def check(ds: xr.Dataset, model: str | Model | None = None, time: Any = None) -> Report:
    """List what a forecast would use of a Dataset and every problem at once, each with its fix.

    Parameters
    ----------
    ds : Dataset
        In any dialect; only the fields of the starts and of their histories are read.
    model : str, path or Model, optional
        By default the one that `forecast` would choose.
    time : datetime-like, sequence or slice of them, optional
        Starts; by default the last time of the Dataset.

    Returns
    -------
    Report
        With a text and an HTML form; ``report.ok``, ``report.problems``, ``report.notes``.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample().rename({"2m_temperature": "t2m"}).drop_vars("mean_sea_level_pressure")
    >>> report = xmosaic.check(ds, "bundled")
    >>> report.ok, [problem.subject for problem in report.problems]
    (False, ['mean_sea_level_pressure'])
    """
    return State(ds, choose_model(ds, model), time).report()


class Overview:
    """What this package understands of a Dataset, as a readable card.

    Parameters
    ----------
    ds : Dataset
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def entries(self) -> list[tuple[str, str]]:
        """Label and text of every line."""
        if {"number", "prediction_timedelta"} <= set(self._ds.dims):
            return self._forecast_entries()
        found = [
            (name, read := recognise(self._ds, schema), fit(self._ds, read, grid))
            for name, schema, grid in known_models()
        ]
        best = max((r for _, r, _ in found), key=lambda r: len(r.sources))
        names = {s.variable: s.channel.variable for _, r, _ in found for s in r.sources.values()}
        known = [f"{theirs} → {ours}" if theirs != ours else str(ours) for theirs, ours in names.items()]
        other = [str(n) for n in self._ds.data_vars if n not in names]
        rows = [("xmosaic", f"{len(names)} of {len(self._ds.data_vars)} variables recognised")]
        rows += [("Variables", ", ".join(known) or "none")]
        rows += [("Not used", ", ".join(other))] if other else []
        rows += [("Times", _span(best.times))]
        rows += [("Grid", self._grid(best))]
        return rows + [("Model", f"{name}: {'; '.join(verdict) or self._fitting(name)}") for name, _, verdict in found]

    def _fitting(self, name: str) -> str:
        if name != "bundled":
            return f"fits; needs its weights: load_model({name!r})"
        model = load_model(name)
        untrained = " UNTRAINED, no skill." if model.untrained else ""
        days, members = 10, 24
        size = days * 24 // model.config.step_hours * members * model.state_bytes()
        return f"fits.{untrained} {members} members × {days} days take {size / 1e6:.0f} MB"

    def _grid(self, found: Recognition) -> str:
        if found.cell is not None:
            return f"HEALPix, {self._ds.sizes.get(str(found.cell), '?')} cells"
        if found.latitude is None or found.longitude is None:
            return "no latitude and longitude found"
        try:
            return str(LatLonGrid.from_dataset(self._ds[[found.latitude, found.longitude]]))
        except DatasetError as error:
            return str(error)

    def _forecast_entries(self) -> list[tuple[str, str]]:
        ds = self._ds
        leads = np.atleast_1d(ds["prediction_timedelta"].values)
        span = (
            f"{len(leads)}: {duration(pd.Timedelta(leads[0]))} to {duration(pd.Timedelta(leads[-1]))}"
            if leads.dtype.kind == "m"
            else ""
        )
        starts = [str(t)[:13] for t in np.atleast_1d(ds["time"].values)] if "time" in ds.coords else []
        rows = [
            ("Forecast", str(ds.attrs.get("title", f"{ds.sizes['number']} members"))),
            ("Variables", ", ".join(map(str, ds.data_vars))),
            ("Start", ", ".join(starts[:4]) + (" …" if len(starts) > 4 else "")),
            ("Leads", span),
            ("Members", str(ds.sizes["number"])),
            ("Size", f"{ds.nbytes / 1e6:.0f} MB"),
            ("Source", str(ds.attrs.get("source", ""))),
            ("Comment", str(ds.attrs.get("comment", ""))),
            ("License", str(ds.attrs.get("license", ""))),
        ]
        return [(label, text) for label, text in rows if text]

    def __repr__(self) -> str:
        return text_card(self.entries())

    def _repr_html_(self) -> str:
        return html_card(self.entries())


def _span(times: pd.DatetimeIndex) -> str:
    if not len(times):
        return "none found"
    spacing = np.unique(np.diff(times.sort_values()))
    every = (
        f", every {duration(pd.Timedelta(spacing[0]))}"
        if len(spacing) == 1
        else ", at uneven intervals" * (len(times) > 1)
    )
    return f"{len(times)}: {times.min()} to {times.max()}{every}"


class _CallableModule(types.ModuleType):
    """Python binds a submodule to its package's attribute: ``xmosaic.forecast(ds, …)`` finds this module here."""

    @functools.wraps(forecast)
    def __call__(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        return forecast(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
