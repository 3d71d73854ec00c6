"""One variable regridded, eager or lazy: its values, attributes and encoding."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..errors import DatasetError, explain
from .mesh import Grid, HealpixMesh
from .operator import Method, result_dtype
from .weights import regrid_weights


class Options(NamedTuple):
    """How to regrid, as `to_healpix` and `to_latlon` were asked, checked."""

    method: Method
    max_missing: float
    missing_fraction: bool


class Plan(NamedTuple):
    """From which grid and dimensions to which others, and how."""

    source: Grid
    dims: tuple[Hashable, ...]
    target: Grid
    target_dims: tuple[str, ...]
    options: Options

    def touches(self, variable: xr.Variable) -> bool:
        """Whether a variable has any dimension that is regridded."""
        return bool(set(self.dims) & set(variable.dims))


def regrid_variable(field: xr.Variable, label: str, plan: Plan) -> xr.Variable:
    """One variable on the new grid; errors call it by its label."""
    method = plan.options.method
    _check_field(field, label, plan.dims, method)
    dtype = field.dtype if method == "nearest" else result_dtype(field.dtype)
    out = _apply(_Kernel(plan.source, plan.target, method, plan.options.max_missing, label), field, plan, dtype)
    out.attrs = _new_attributes(field, plan)
    out.encoding = _new_encoding(field, dtype)
    return out


def fraction_variable(field: xr.Variable, name: Hashable, plan: Plan) -> xr.Variable:
    """Part of each point's weight that is missing in a variable [1], on the new grid."""
    kernel = _Kernel(plan.source, plan.target, plan.options.method, 1.0, repr(name), missing_fraction=True)
    out = _apply(kernel, field, plan, np.dtype(np.float64))
    out.attrs = {"long_name": f"missing fraction of {name}", "units": "1"} | _mapping(plan)
    return out


def _mapping(plan: Plan) -> dict[str, str]:
    return {"grid_mapping": "crs"} if isinstance(plan.target, HealpixMesh) else {}


@dataclass(frozen=True)
class _Kernel:
    """What runs on each chunk: small to send to workers, which keep the operator themselves."""

    source: Grid
    target: Grid
    method: Method
    max_missing: float
    label: str
    missing_fraction: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        weights = regrid_weights(self.source, self.target, self.method)
        if self.missing_fraction:
            return weights.missing_fraction(values)
        try:
            return weights.apply(values, self.max_missing)
        except DatasetError as error:
            raise DatasetError(f"Can't regrid {self.label}: {error}") from None


def _apply(kernel: _Kernel, field: xr.Variable, plan: Plan, dtype: np.dtype) -> xr.Variable:
    if field.chunks is not None:
        field = field.chunk({dim: -1 for dim in plan.dims})
    sizes = dict(zip(plan.target_dims, plan.target.shape, strict=True))
    out = xr.apply_ufunc(
        kernel,
        field,
        input_core_dims=[list(plan.dims)],
        output_core_dims=[list(plan.target_dims)],
        exclude_dims=set(plan.dims),
        dask="parallelized",
        output_dtypes=[dtype],
        dask_gufunc_kwargs={"output_sizes": sizes},
    )
    others = [dim for dim in field.dims if dim not in plan.dims]
    place = min(field.dims.index(dim) for dim in plan.dims)
    return out.transpose(*others[:place], *plan.target_dims, *others[place:])


def _check_field(field: xr.Variable, label: str, dims: tuple[Hashable, ...], method: Method) -> None:
    lacking = [dim for dim in dims if dim not in field.dims]
    if lacking:
        raise DatasetError(
            explain(
                f"{label} has only one of the horizontal dimensions",
                got=f"dims {field.dims}",
                expected=f"both {dims[0]!r} and {dims[-1]!r}, or none",
                do="Drop it, or broadcast it along the other one.",
            )
        )
    if method == "nearest":
        return
    flags = any(key in field.attrs for key in ("flag_values", "flag_masks", "flag_meanings"))
    if field.dtype.kind not in "fiu" or flags or str(field.attrs.get("standard_name")) in ("soil_type", "area_type"):
        raise DatasetError(
            explain(
                f"{label} has no values that can be averaged",
                got=f"dtype {field.dtype}" + (" with flag attributes" if flags else ""),
                expected="numbers that mean a quantity",
                do=f"Use method='nearest' for it, or drop it before method={method!r}.",
            )
        )


def _new_attributes(field: xr.Variable, plan: Plan) -> dict[str, Any]:
    stale = ("grid_mapping", "actual_range", "cell_methods")
    attributes = {key: value for key, value in field.attrs.items() if key not in stale}
    cell_methods = _without_axes(str(field.attrs.get("cell_methods", "")), plan.dims)
    if plan.options.method == "conservative" and not cell_methods.endswith("area: mean"):
        cell_methods = f"{cell_methods} area: mean".strip()
    return attributes | ({"cell_methods": cell_methods} if cell_methods else {}) | _mapping(plan)


def _without_axes(cell_methods: str, dims: tuple[Hashable, ...]) -> str:
    """`lat: lon: mean` written as `area: mean`: CF allows no names of dimensions that are gone."""
    if len(dims) < 2:
        return cell_methods
    first, second = (re.escape(str(dim)) for dim in dims)
    return re.sub(rf"\b(?:{first}: *{second}:|{second}: *{first}:)", "area:", cell_methods)


# Chunks, shapes and lists of coordinates describe the old array
_KEPT_ENCODING = (
    *("dtype", "_FillValue", "missing_value", "scale_factor", "add_offset", "units", "calendar"),
    *("zlib", "complevel", "shuffle", "fletcher32", "compression", "compressors", "filters"),
    *("quantize_mode", "significant_digits", "least_significant_digit"),
)
_PACKING = ("dtype", "_FillValue", "missing_value", "scale_factor", "add_offset", "filters")


def _new_encoding(field: xr.Variable, dtype: np.dtype) -> dict[str, Any]:
    kept = {key: value for key, value in field.encoding.items() if key in _KEPT_ENCODING}
    if dtype == field.dtype:
        return kept
    # integers that became averages must not be rounded when they are written
    return {key: value for key, value in kept.items() if key not in _PACKING}
