"""A forecast that is settled and ready to run: its blocks of starts and members, its layout, its record."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from .cards import duration
from .checkpoint import PAPER, Model
from .errors import ArgumentError, explain
from .kernels import require_float8
from .state import Fields, State

# Members that run together on a CPU, memory allowing: more are no faster (docs/performance.md).
_CPU_BATCH = 4
# The full network is as fast with 8 members at once as with 24, in a third of the memory.
_GPU_BYTES = 16_000_000_000
# A GPU is given no less than this at once if there is more to do: smaller pieces leave it waiting for launches.
_GPU_LEAST_BYTES, _GPU_LEAST_MEMBERS = 4_000_000_000, 4
# Inputs of starts that are complete are read again and compared while they are no more than this; else the first's
# and the last's.
_COMPARED_BYTES = 1024**3


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is settled before the first step."""

    model: Model
    state: State
    fields: Fields
    members: int
    seed: int
    kept: tuple[int, ...]
    # all of one kind; what is made doesn't depend on how many there are
    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    batch_size: int | None
    keep_bits: int | None = None
    # members of the ensemble that stand before this plan's
    before: int = 0
    # starts and members that go through the network together, where that is settled already
    fixed_block: tuple[int, int] | None = None

    def check(self) -> None:
        """Raise `ArgumentError` for a combination that makes no forecast."""
        if self.members > 1 and not self.model.config.noise_dim:
            raise ArgumentError(
                explain(
                    f"members={self.members} of a model without noise would all be the same",
                    expected="members=1, or a model with noise",
                )
            )
        for device in self.devices if self.dtype == torch.float8_e4m3fn else ():
            require_float8(device)
        if self.fields.back and self.state.grid is None:
            raise ArgumentError(
                explain(
                    "grid='input' does not lead back to a HEALPix mesh",
                    expected="grid='model'",
                    do="Regrid the result: fc.mosaic.to_healpix(nside=…)",
                )
            )

    @property
    def device(self) -> torch.device:
        """The first of the devices."""
        return self.devices[0]

    def on(self, device: torch.device) -> Plan:
        """The same plan as one of its devices sees it."""
        f = self.fields
        fields = f if device == self.device else Fields(self.model, f.schema, f.state, f.back, device)
        return dataclasses.replace(self, devices=(device,), fields=fields, fixed_block=self.block)

    @property
    def steps(self) -> int:
        """Steps that are made."""
        return self.kept[-1]

    @cached_property
    def block(self) -> tuple[int, int]:
        """Starts and members that go through the network together."""
        if self.fixed_block is not None:
            return self.fixed_block
        size = self.batch_size or self._default_batch()
        if size >= 2 * self.members:
            return max(1, min(size // self.members, len(self.state.starts))), self.members
        return 1, min(size, self.members)

    def blocks(self) -> Iterator[tuple[slice, list[slice]]]:
        """Starts that are computed together, each time with the blocks of their members."""
        many, few = self.block
        members = [slice(i, min(i + few, self.members)) for i in range(0, self.members, few)]
        for first in range(0, len(self.state.starts), many):
            yield slice(first, min(first + many, len(self.state.starts))), members

    def compared(self) -> set[int]:
        """Starts whose input is compared with what a store says of it even if they are complete."""
        count = len(self.state.starts)
        whole = self.model.config.num_history * self.model.state_bytes() * count <= _COMPARED_BYTES
        return set(range(count)) if whole else {0, count - 1}

    def digest(self, start: pd.Timestamp, history: np.ndarray) -> bytes:
        """SHA-256 of what a start's forecast is made from: its history, and the forcing of its steps."""
        found = hashlib.sha256(np.ascontiguousarray(history).data)
        for step in range(1, self.steps if self.model.schema.forcing else 1):
            found.update(np.ascontiguousarray(self.state.forcing(start + step * self.model.step)).data)
        return found.digest()

    def settings(self) -> dict[str, Any]:
        """Everything but the input's values that changes a number of the result, by name."""
        model, fields, back = self.model, self.fields, self.fields.back
        points = [getattr(fields.grid, axis) for axis in ("latitude", "longitude")]
        return {
            "model": model.name,
            "checkpoint sha256": model.sha256,
            "seed": str(self.seed),
            "starts": [t.isoformat() for t in self.state.starts],
            "members": self.members,
            "leads": [duration(k * model.step) for k in self.kept],
            "variables": [c.name for c in fields.schema.state],
            "grid": f"{fields.grid}, {' '.join(fields.horizontal)}{', regridded back' if back else ''}",
            "points": hashlib.sha256(np.concatenate(points).data).hexdigest()[:16],
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "keep_bits": self.keep_bits,
            "batch": list(self.block),
            "one start without dimension": self.state.scalar_start,
            "xmosaic": version(),
            "torch": torch.__version__,
        }

    def _default_batch(self) -> int:
        if self.device.type == "cuda":
            # the one with the least room decides for all: members run in the same batches wherever they run
            free = min(_free_gpu_memory(d) // self.devices.count(d) for d in set(self.devices))
            return default_gpu_batch(free, self.model.member_bytes(), self.dtype, self.members)
        free = available_memory() or 0
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
                np.arange(1, self.members + 1) + self.before,
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
        model, ours = self.model, version()
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        way = "regridded conservatively (exact overlap areas)"
        comment = ["UNTRAINED model: random weights, no skill."] if model.untrained else []
        if self.state.regridded:
            comment.append(f"Input {way} from {self.state.grid or 'a HEALPix mesh'} to {model.grid}.")
        if self.fields.back:
            comment.append(f"Result {way} back.")
        if self.keep_bits:
            comment.append(f"Rounded to {self.keep_bits} bits of the mantissa.")
        attrs = {
            "Conventions": "CF-1.13",
            "title": f"{self.members}-member ensemble forecast by Mosaic, model {model.name}"
            + (" (untrained)" if model.untrained else ""),
            "institution": "made with xmosaic",
            "source": (
                f"xmosaic {ours}, model {model.name}, checkpoint sha256 {model.sha256}, "
                f"device {self.device.type}, dtype {str(self.dtype).removeprefix('torch.')}"
            ),
            "history": f"{now} xmosaic {ours}: forecast to {duration(self.steps * model.step)}, seed {self.seed}",
            "references": str(model.provenance.get("references", PAPER)),
            "license": model.license,
            "seed": self.seed if self.seed < 2**63 else str(self.seed),  # netCDF's integers are signed
            "comment": " ".join(comment),
        }
        return {k: v for k, v in attrs.items() if v != ""}


def check_memory(plan: Plan) -> None:
    """Refuse a result that can't fit before hours are spent on it."""
    available = available_memory()
    if available is not None and plan.bytes > available:
        raise ArgumentError(
            explain(
                f"The forecast takes {plan.bytes / 1e9:.1f} GB of memory",
                got=f"{available / 1e9:.1f} GB available",
                do="Pass store='forecast.zarr', fewer variables=, or a longer every=",
            )
        )


def available_memory() -> int | None:
    """Bytes of memory that are free; None where the system doesn't say."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _free_gpu_memory(device: torch.device) -> int:
    """Bytes that a GPU has for this process: what is free, and what torch holds of an earlier forecast."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def version() -> str:
    """Version of this package."""
    from . import __version__

    return __version__


def default_gpu_batch(free: int, member_bytes: int, dtype: torch.dtype, members: int) -> int:
    """Members that run together on a GPU: in equal blocks that are large enough to be fast, and fit.

    Parameters
    ----------
    free : int
        Free memory [bytes].
    member_bytes : int
        Working memory of a member in float32 [bytes].
    dtype : torch.dtype
    members : int

    Returns
    -------
    int

    Notes
    -----
    A trained network amplifies rounding, so members must run in the same batches on one GPU as on several: the batch
    doesn't depend on how many there are. The number of blocks is one that two and four GPUs share evenly, if blocks
    stay large enough: a multiple of 4, else of 2. A network that is too small for that runs all members at once.

    Examples
    --------
    >>> default_gpu_batch(140 * 10**9, 4 * 10**9, torch.float16, 24)
    6
    >>> default_gpu_batch(140 * 10**9, 4 * 10**9, torch.float16, 10)
    5
    >>> default_gpu_batch(10**9, 4 * 10**9, torch.float32, 24)
    1
    """
    each = member_bytes * max(2, dtype.itemsize) // 4  # of 8 bits are products alone
    most = max(1, min(int(0.6 * free), _GPU_BYTES) // each)
    least = max(_GPU_LEAST_MEMBERS, math.ceil(_GPU_LEAST_BYTES / each))
    blocks = math.ceil(members / most)
    for share in (4, 2):
        size = math.ceil(members / (share * math.ceil(blocks / share)))
        if least <= size <= most:
            return size
    return most if most >= members else math.ceil(members / blocks)
