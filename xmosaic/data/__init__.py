"""The model and the sample that the package carries."""

from __future__ import annotations

from importlib import resources

import xarray as xr


def open_sample() -> xr.Dataset:
    """Open the bundled sample: fourteen days of an analytic atmosphere, once a day, on a 64 × 33 grid.

    The sample is made by a formula (``examples/make_bundled.py``), not observed: balanced jets with travelling waves.

    Returns
    -------
    Dataset, dims (time, level, latitude, longitude)
        In memory.

    Examples
    --------
    >>> open_sample().sizes["time"]
    14
    """
    with resources.as_file(resources.files("xmosaic") / "data" / "sample.nc") as path, xr.open_dataset(path) as ds:
        return ds.load()
