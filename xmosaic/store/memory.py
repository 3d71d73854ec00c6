"""A forecast collected in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr


class MemorySink:
    """Collects a forecast in memory. Threads that make blocks of their own may call `write` at the same time.

    Parameters
    ----------
    template : Dataset
        Coordinates and attributes of the result.
    variables : mapping of str to Variable
        Shapes, dimensions and attributes of the data variables; the first dimensions are time (but for a scalar
        start), number and prediction_timedelta.
    scalar : bool
        Whether there is one start and no dimension for it.
    """

    def __init__(self, template: xr.Dataset, variables: Mapping[str, xr.Variable], scalar: bool) -> None:
        self._template, self._scalar = template, scalar
        # not filled: at full size that takes a second, and `finish` makes sure that every field has come
        self.arrays = {n: np.empty(v.shape, np.float32) for n, v in variables.items()}
        self._variables = variables
        sizes = next(iter(variables.values())).sizes
        self._leads = sizes["prediction_timedelta"]
        self._done = np.zeros((sizes.get("time", 1), sizes["number"], self._leads), bool)

    def __enter__(self) -> MemorySink:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def missing(self, starts: slice, members: slice) -> np.ndarray:
        """Which leads of a block are still to come: all."""
        return np.ones(self._leads, bool)

    def wants_inputs(self, starts: slice) -> bool:
        """Whether digests of these starts' inputs are to be handed in: never."""
        return False

    def take_inputs(self, starts: slice, digests: Sequence[bytes]) -> None:
        """Nothing is kept of them."""

    def check(self) -> None:
        """Nothing goes wrong behind the caller's back."""

    def write(self, starts: slice, members: slice, lead: int, fields: Mapping[str, np.ndarray]) -> None:
        """Put the fields of one lead, (start, member, ...), in their place."""
        for name, values in fields.items():
            if self._scalar:
                self.arrays[name][members, lead] = values[0]
            else:
                self.arrays[name][starts, members, lead] = values
        self._done[starts, members, lead] = True

    def end_block(self) -> None:
        """Nothing waits."""

    def finish(self) -> xr.Dataset:
        """The whole forecast."""
        assert self._done.all(), "a block was not made"
        data = {n: (v.dims, self.arrays[n], v.attrs, v.encoding) for n, v in self._variables.items()}
        return self._template.assign(data)
