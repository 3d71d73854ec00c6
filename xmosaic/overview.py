"""What there is: what a forecast would use of a Dataset, and a Dataset's card."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .cards import duration, html_card, text_card
from .checkpoint import Model, load_model
from .choices import choose_model, known_models
from .dialects import Recognition, recognise
from .errors import DatasetError
from .grid import LatLonGrid
from .state import Report, State, fit


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
