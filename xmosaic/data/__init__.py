"""The model and the sample that the package carries."""

from __future__ import annotations

from importlib import resources

import xarray as xr


def open_sample() -> xr.Dataset:
    """Open the bundled sample: forty days of a simulated atmosphere, once a day, on a 64 × 33 grid.

    The atmosphere of Held and Suarez (1994), doi:10.1175/1520-0477(1994)075<1825:APFTIO>2.0.CO;2, made with the
    dynamical core dinosaur (``examples/held_suarez``): chaotic weather and jets on a flat, dry planet without seasons,
    not the Earth's. These days are of the test year, which the bundled model's training never saw, so that each
    start's forecast can be verified against the days after it. Dates are labels. Values are packed in 16 bits.

    Returns
    -------
    Dataset, dims (time, level, latitude, longitude)
        In memory.

    Examples
    --------
    >>> open_sample().sizes["time"]
    40
    """
    with resources.as_file(resources.files("xmosaic") / "data" / "sample.nc") as path, xr.open_dataset(path) as ds:
        return ds.load()
