"""What a forecast is asked for: model, lead, levels, device, checked one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from .cards import duration
from .checkpoint import PUBLISHED_GRID, Model, load_model
from .dialects import recognise
from .errors import ArgumentError, DatasetError, explain
from .grid import LatLonGrid
from .model import PUBLISHED
from .options import get_option
from .state import fit
from .variables import Schema, published_schema

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
DTYPES |= {"float8": torch.float8_e4m3fn}


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


def count_steps(name: str, value: Any, model: Model) -> int:
    """How many steps of a model a time span is."""
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


def positive(name: str, value: Any) -> int:
    """A whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ArgumentError(explain(f"{name}={value!r} can't be used", expected="a whole number, 1 or more"))
    return int(value)


def check_seed(seed: Any) -> int:
    """A seed that Philox takes."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ArgumentError(explain(f"seed={seed!r} can't be used", expected="a whole number from 0 to 2**64 - 1"))
    return int(seed)


def check_devices(device: Any) -> tuple[torch.device, ...]:
    """The devices that share a forecast, each once something has been put there.

    Parameters
    ----------
    device : str, torch.device or sequence of them, optional
        By default every GPU that this process sees, else the CPU. "cuda" is every GPU too; "cuda:1", or several
        as in ["cuda:0", "cuda:1"] or "cuda:0,cuda:1", are those alone.

    Returns
    -------
    tuple of torch.device
    """
    if device is None or str(device) == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = tuple(torch.device("cuda", i) for i in range(count))
        return gpus or (_usable(device or "cpu"),)
    several = isinstance(device, Sequence) and not isinstance(device, str)
    chosen = tuple(_usable(d) for d in (device if several else str(device).split(",")))
    if len({d.type for d in chosen}) != 1:
        got = ", ".join(map(str, chosen)) or "none"
        raise ArgumentError(
            explain(f"device={device!r} can't be used", got=got, expected="one or more devices, all of one kind")
        )
    return chosen


def _usable(device: Any) -> torch.device:
    """A device, once something has been put there."""
    try:
        return torch.empty(1, device=torch.device(device.strip() if isinstance(device, str) else device)).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        count = torch.cuda.device_count()
        gpus = f", 'cuda:0' … 'cuda:{count - 1}'" if count else " (torch finds no GPU here)"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArgumentError(explain(f"device={device!r} can't be used", got=reason, expected=f"'cpu'{gpus}")) from None


def check_dtype(dtype: Any, devices: Sequence[torch.device]) -> torch.dtype:
    """The arithmetic of a name; without one 16 bits where every device is a GPU that has them, else 32."""
    if dtype is None:
        return torch.bfloat16 if all(map(_has_bfloat16, devices)) else torch.float32
    name = str(dtype).removeprefix("torch.").removesuffix("_e4m3fn")
    if name not in DTYPES:
        raise ArgumentError(explain(f"dtype={dtype!r} can't be used", expected=", ".join(map(repr, DTYPES))))
    return DTYPES[name]


def _has_bfloat16(device: torch.device) -> bool:
    # emulated below that, which is slower than float32
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def leads_back(grid: Any) -> bool:
    """Whether the result goes back to the grid of the input."""
    if grid not in ("model", "input"):
        raise ArgumentError(explain(f"grid={grid!r} can't be used", expected="'model' or 'input'"))
    return bool(grid == "input")


def choose_variables(schema: Schema, variables: str | Iterable[str] | None, levels: Any = None) -> Schema:
    """The channels to keep, of all that the model predicts."""
    chosen = Schema(schema.state if variables is None else schema.select(variables).state)
    if levels is not None:
        wanted = _levels(chosen, levels)
        chosen = Schema(tuple(c for c in chosen.state if c.level is None or c.level in wanted))
    if not chosen.state:
        raise ArgumentError(
            explain(
                f"variables={variables!r} names nothing that is forecast",
                expected=", ".join(c.name for c in schema.state),
            )
        )
    return chosen


def _levels(schema: Schema, levels: Any) -> set[int]:
    wanted = np.atleast_1d(levels).tolist()
    if unknown := [v for v in wanted if v not in schema.levels]:
        raise ArgumentError(
            explain(
                f"levels={levels!r} can't be used",
                got=f"{unknown[0]!r}",
                expected=f"levels that are forecast, in hPa: {', '.join(map(str, schema.levels)) or 'none'}",
            )
        )
    return {int(v) for v in wanted}


def choose_steps(lead: Any, every: Any, leads: Any, model: Model) -> tuple[int, ...]:
    """The steps to keep, from 1, in order."""
    steps = count_steps("lead", lead, model)
    if leads is None:
        stride = 1 if every is None else count_steps("every", every, model)
        if stride > steps:
            spans = [duration(k * model.step) for k in (stride, steps)]
            raise ArgumentError(explain("every is longer than lead: nothing would be kept", got=" and ".join(spans)))
        return tuple(range(stride, steps + 1, stride))
    if every is not None:
        raise ArgumentError(explain("every= and leads= both say which leads to keep", do="Leave one of them out"))
    single = isinstance(leads, str) or np.ndim(leads) == 0
    kept = sorted({count_steps("leads", value, model) for value in ([leads] if single else leads)})
    if not kept or kept[-1] > steps:
        raise ArgumentError(explain(f"leads={leads!r} can't be used", expected=f"one or more, up to lead={lead!r}"))
    return tuple(kept)


def check_keep_bits(keep_bits: Any) -> int | None:
    """Bits of the mantissa to keep, 1 to 23."""
    if keep_bits is None:
        return None
    bits = positive("keep_bits", keep_bits)
    if bits > 23:
        raise ArgumentError(explain(f"keep_bits={bits} can't be used", expected="1 to 23, as float32 has"))
    return bits
