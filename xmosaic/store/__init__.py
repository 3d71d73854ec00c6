"""Forecasts written to Zarr while they run: where to, what is complete, who writes, and going on after a break."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .memory import MemorySink as MemorySink
from .place import Store as Store
from .record import IncompleteForecast as IncompleteForecast
from .record import open_forecast as open_forecast
from .record import written as written

if TYPE_CHECKING:
    from .sink import ZarrSink as ZarrSink


def __getattr__(name: str) -> Any:
    # zarr is imported where something is written
    if name == "ZarrSink":
        from .sink import ZarrSink

        return ZarrSink
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
