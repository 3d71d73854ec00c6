"""Arguments of ``xmosaic explore``."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What `explore` takes, as arguments of a command."""
    command.add_argument("forecast", help="Zarr store or netCDF file with a forecast")
    command.add_argument("--truth", help="Zarr store or netCDF file with the analyses")
    command.add_argument("--html", required=True, metavar="PAGE", help="file to write, such as forecast.html")
    command.add_argument("--variables", nargs="+", help="variables to show; all by default")
    command.add_argument("--levels", nargs="+", type=float, help="levels to show, in hPa; all by default")
    command.add_argument("--members", type=int, help="show only the first so many; the page says so")
    command.add_argument("--leads", nargs="+", help="show only these leads, such as 1D 5D 10D")
    command.add_argument("--time", nargs="+", help="start or starts; all by default")
    command.add_argument("--max-bytes", type=float, default=10e6, help="of the page; 10e6 by default")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def options_of(given: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `explore` that were given."""
    time = None if given.time is None else given.time[0] if len(given.time) == 1 else np.array(given.time, "M8[ns]")
    selected = {name: getattr(given, name) for name in ("variables", "levels", "members", "leads")}
    return {**selected, "time": time, "max_bytes": given.max_bytes, "progress": not given.quiet}
