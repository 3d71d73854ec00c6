"""A linear operator between two grids, applied to plain arrays: averages, and what is missing of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ..errors import ArgumentError, DatasetError, explain
from .mesh import Grid

if TYPE_CHECKING:
    import scipy.sparse

Method: TypeAlias = Literal["conservative", "bilinear", "nearest"]
_METHODS = ("conservative", "bilinear", "nearest")

_FIELDS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class RegridWeights:
    """A linear operator between two grids, with its description.

    Attributes
    ----------
    source, target : LatLonGrid or HealpixMesh
    method : {"conservative", "bilinear", "nearest"}
    matrix : scipy.sparse.csr_array of float64, dims (target point, source point)
        Each row sums to 1. Points of a LatLonGrid are counted along its rows: latitude·nlon + longitude.
    """

    source: Grid
    target: Grid
    method: Method
    matrix: scipy.sparse.csr_array

    def apply(self, values: np.ndarray, max_missing: float = 0.5) -> np.ndarray:
        """Regrid plain arrays.

        Parameters
        ----------
        values : ndarray, dims (..., *source.shape)
        max_missing : float
            See `to_healpix`.

        Returns
        -------
        ndarray, dims (..., *target.shape)
            In the dtype of `values` if that is a float one or the method is nearest, else float64.
        """
        horizontal = len(self.source.shape)
        if values.shape[-horizontal:] != self.source.shape:
            raise ArgumentError(
                explain(
                    "Values don't fit the source grid",
                    got=f"shape {values.shape}",
                    expected=f"(…, {self.source.shape})",
                )
            )
        leading = values.shape[:-horizontal]
        fields = values.reshape(-1, self.matrix.shape[1])
        if self.method == "nearest":
            out = fields[:, self.matrix.indices]
        else:
            out = np.empty((len(fields), self.matrix.shape[0]), result_dtype(values.dtype))
            for start in range(0, len(fields), _FIELDS_AT_ONCE):
                portion = slice(start, start + _FIELDS_AT_ONCE)
                out[portion] = self._average(fields[portion].T, max_missing).T
        return out.reshape(*leading, *self.target.shape)

    def missing_fraction(self, values: np.ndarray) -> np.ndarray:
        """Part of each target point's weight that falls on NaN [1], dims (..., *target.shape), float64."""
        missing = np.isnan(values) if values.dtype.kind in "fc" else np.zeros(values.shape, bool)
        return np.minimum(self.apply(missing.astype(np.float64), max_missing=1.0), 1.0)

    def _average(self, fields: np.ndarray, max_missing: float) -> np.ndarray:
        fields = np.ascontiguousarray(fields, dtype=np.float64)  # (source point, field)
        if np.isinf(fields).any():
            raise DatasetError(
                explain(
                    "A field has infinite values, which no average can use",
                    got=f"{int(np.isinf(fields).sum())} of them",
                    expected="finite numbers, or NaN where there is no value",
                    do="Replace them, e.g. with where(numpy.isfinite), or use method='nearest'.",
                )
            )
        missing = np.isnan(fields)
        if not missing.any():
            return self.matrix @ fields
        total = self.matrix @ np.where(missing, 0.0, fields)
        absent, present = self.matrix @ missing.astype(np.float64), self.matrix @ (~missing).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(absent > 0, total / present, total)
        # rounding must not decide where exactly max_missing is missing
        mean[absent > max_missing + 1e-12] = np.nan
        return mean


def check_method(method: Any) -> Method:
    """The method itself if it is one, an ArgumentError otherwise."""
    if method in _METHODS:
        return method
    raise ArgumentError(explain(f"method={method!r} is not known", expected=" or ".join(map(repr, _METHODS))))


def result_dtype(dtype: np.dtype) -> np.dtype:
    """Of averages: floats keep theirs, all else becomes float64."""
    return dtype if dtype.kind == "f" else np.dtype(np.float64)
