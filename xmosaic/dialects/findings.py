"""What is collected while a dataset is read: everything understood, assumed and refused, once each."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import xarray as xr

from ..variables import Channel
from .axes import KEPT, axis_kind
from .recognition import Problem, Source


class Findings:
    """One dataset while it is read: what is understood of it so far, and everything that isn't.

    Attributes
    ----------
    ds : Dataset
    problems, notes : dict of Problem or str to None
        What keeps the dataset from being used, and what was assumed, in the order they were met.
    sources : dict of str to Source
        By channel name.
    kinds : dict
        What each dimension and coordinate is, see `axis_kind`.
    used : dict
        By kind of axis: the dataset's names for it that the variables wanted have.
    extras : dict
        Dimension that a state doesn't have → the variables that have it.
    lacking : dict
        Kind of axis → the variables that should have one and don't.
    unitless : dict
        Units → the variables that say none and are taken to have these.
    short_of : dict
        Levels that are missing and those that are there → the variables concerned, with their channels.
    levels : dict
        Level coordinate → its values [hPa]; None where it has none that can be used.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self.ds = ds
        self.problems: dict[Problem, None] = {}
        self.notes: dict[str, None] = {}
        self.sources: dict[str, Source] = {}
        self.kinds = {name: axis_kind(name, ds.variables.get(name)) for name in (*ds.dims, *ds.coords)}
        self.used: dict[str, dict[Hashable, None]] = {kind: {} for kind in KEPT}
        self.extras: dict[Hashable, list[Hashable]] = {}
        self.lacking: dict[str, list[Hashable]] = {}
        self.unitless: dict[str, list[Hashable]] = {}
        self.short_of: dict[tuple[str, str], dict[Hashable, Sequence[Channel]]] = {}
        self.levels: dict[Hashable, np.ndarray | None] = {}

    def problem(self, subject: Hashable, what: str, got: str = "", expected: str = "", fix: str = "") -> None:
        """Note what keeps the dataset from being used; the same again counts once."""
        self.problems[Problem(str(subject), what, got, expected, fix)] = None

    def note(self, text: str) -> None:
        """Note what was assumed."""
        self.notes[text] = None
