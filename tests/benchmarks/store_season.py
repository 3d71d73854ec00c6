"""How long do a season's layout, its record and its opening take, beside those of one start?

``python tests/benchmarks/store_season.py [--starts 1 40] [--members 48]``

Stores of 82 channels and 40 leads in blocks of six members, with as many files as at full size, but of six points each.
Prints seconds of what is done once a call or once a reader, by number of starts: laying out and the record's beginning,
the record when half is written, the end, opening, and going on. 1280 files of a start take two seconds to write.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from store_throughput import BATCH, LEADS, request

import xmosaic
from xmosaic.store import ZarrSink
from xmosaic.store.sink import Request


def season(starts: int, members: int) -> Request:
    """A request for so many starts, on six points."""
    one, times = request(members, None), pd.date_range("2011-01-01", periods=starts, freq="12h")
    few = {"latitude": slice(2), "longitude": slice(3)}
    template = one.template.drop_vars(["time", "valid_time"]).isel(few)
    valid = times.values[:, None] + template["prediction_timedelta"].values
    template = template.assign_coords(
        time=("time", times.values, {"standard_name": "forecast_reference_time"}),
        valid_time=(("time", "prediction_timedelta"), valid, {"standard_name": "time"}),
    )
    variables = {}
    for name, v in one.variables.items():
        small = v.isel(few)
        variables[name] = xr.Variable(
            ("time", *small.dims), np.broadcast_to(np.float32(np.nan), (starts, *small.shape)), small.attrs
        )
    points = np.concatenate([template["latitude"].values, template["longitude"].values])
    settings = dict(one.settings) | {
        "starts": [t.isoformat() for t in times],
        "points": hashlib.sha256(points.data).hexdigest()[:16],
    }
    return dataclasses.replace(one, template=template, variables=variables, settings=settings, scalar=False)


def measure(starts: int, members: int, empty: bool) -> dict[str, float]:
    """Seconds of each part."""
    wanted, took = season(starts, members), {}

    def timed(label: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        took[label] = time.perf_counter() - began
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fc.zarr"
        sink = ZarrSink(path, wanted)
        timed("laid out", sink.__enter__)
        try:
            if not empty:
                for k in range(starts):
                    fill(sink, wanted, k, members)
                    if k == starts // 2:
                        sink._writer.drain()
                        timed("written, of a half", lambda: xmosaic.written(path))
                sink._writer.drain()
                timed("finished", sink.finish)
        finally:
            sink.__exit__()
        timed("written", lambda: xmosaic.written(path))
        timed("opened", lambda: xmosaic.open_forecast(path))
        timed("gone on with", lambda: ZarrSink(path, wanted).__enter__().__exit__())
    return took


def fill(sink: ZarrSink, wanted: Request, start: int, members: int) -> None:
    """Write the blocks of a start."""
    here = slice(start, start + 1)
    sink.take_inputs(here, [bytes(31) + b"1"])
    for first in range(0, members, BATCH):
        block = slice(first, first + BATCH)
        fields = {n: np.ones((1, BATCH, *v.shape[3:]), np.float32) for n, v in wanted.variables.items()}
        for lead in range(LEADS):
            sink.write(here, block, lead, fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, nargs="+", default=[1, 40])
    parser.add_argument("--members", type=int, default=48)
    parser.add_argument("--empty", action="store_true", help="write nothing between beginning and opening")
    options = parser.parse_args()
    warnings.simplefilter("ignore", xmosaic.store.IncompleteForecast)
    measure(1, options.members, empty=True)  # imports
    for starts in options.starts:
        took = measure(starts, options.members, options.empty)
        print(f"{starts} starts: " + ", ".join(f"{label} {seconds:.2f} s" for label, seconds in took.items()))


if __name__ == "__main__":
    main()
