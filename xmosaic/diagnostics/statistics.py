"""Scores as functions of weighted sums: what is summed by chunks, streams or workers gives the number of the whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..variables import listed
from .layout import LEAD, Aligned, weights_for

NanPolicy = Literal["propagate", "raise", "omit"]
# Numbers of one resampled block that are in memory at a time.
_RESAMPLED = 4_000_000


class Options(TypedDict, total=False):
    """Keywords that all scores share; `xmosaic.diagnostics` says what they mean."""

    weights: Any
    nan_policy: NanPolicy
    confidence: float | None
    resamples: int
    block: int | None
    seed: int


@dataclass(frozen=True)
class Score:
    """A score: what is averaged, and what is made of the averages.

    Parameters
    ----------
    name, long_name : str
    statistics : tuple of str
        Names of the averages.
    combine : callable
        From a mapping of averages (arrays of any kind) and the number of members to the score.
    units : {"same", "square", "1"}
        Against the variable's.
    attrs : dict
        Further attributes of the result, such as ``fair``.
    """

    name: str
    long_name: str
    statistics: tuple[str, ...]
    combine: Callable[[Mapping[str, Any], int], Any]
    units: Literal["same", "square", "1"] = "same"
    attrs: dict[str, Any] = field(default_factory=dict)


def average(
    pointwise: xr.Dataset, score: Score, aligned: Aligned, dim: str | Iterable[Hashable] | None, options: Options
) -> xr.Dataset:
    """A score from its statistics at each point.

    Parameters
    ----------
    pointwise : Dataset, dims (…, statistic)
    score : Score
    aligned : Aligned
        Where the statistics come from.
    dim : str, iterable of hashable, ... or None
        Dimensions to average over, in the caller's names; None: all but lead and level; ...: all.
    options : Options

    Returns
    -------
    Dataset
        In canonical dimensions; with ``confidence`` a further dimension bound (estimate, lower, upper).
    """
    check_options(options)
    dims = reduced_dims(aligned, dim)
    kept = [d for d in dims if d != "time"] if options.get("confidence") is not None else dims
    sums = weighted_sums(pointwise, aligned, kept, options)
    if options.get("confidence") is not None:
        result = resampled(sums, score, aligned.members, dims, options)
    else:
        result = finished(sums, score, aligned.members)
    return described(result, score, aligned, dims, options)


def stacked(terms: Mapping[str, xr.DataArray], dim: str = "statistic") -> xr.DataArray:
    """Terms of equal dimensions along a last new one."""
    names = xr.DataArray(list(terms), dims=dim, name=dim)
    joined = xr.concat(list(terms.values()), names, coords="minimal", compat="override", join="exact")
    return joined.transpose(..., dim)


def reduced_dims(aligned: Aligned, dim: Any) -> list[str]:
    """The canonical dimensions that an argument ``dim`` means."""
    there = [str(d) for d in aligned.forecast.dims if d != "number"]
    if dim is None:
        return [d for d in there if d not in (LEAD, "level")]
    if dim is ...:
        return there
    ours = {theirs: new for new, theirs in aligned.names.items()}
    named = [dim] if isinstance(dim, str) else list(dim)
    wanted = [str(ours.get(d, d)) for d in named]
    if unknown := [d for d, new in zip(named, wanted, strict=True) if new not in there]:
        expected = listed(aligned.names.get(d, d) for d in there)
        raise ArgumentError(explain(f"dim={listed(unknown)} is no dimension to average over", expected=expected))
    return wanted


def weighted_sums(pointwise: xr.Dataset, aligned: Aligned, dims: Iterable[str], options: Options) -> xr.Dataset:
    """Sums of the statistics over dimensions, and of the weights: what can be added to other sums.

    Parameters
    ----------
    pointwise : Dataset, dims (…, statistic)
    aligned : Aligned
    dims : iterable of str
        Canonical.
    options : Options
        ``weights`` and ``nan_policy`` are used.

    Returns
    -------
    Dataset, dims (…, statistic)
        With a last statistic "weight".
    """
    policy = options.get("nan_policy", "propagate")
    weights = _weights_over(aligned, dims, options)
    sums = {}
    for name, values in pointwise.data_vars.items():
        over = [d for d in dims if d in values.dims]
        valid = aligned.found
        if policy == "omit":
            valid = valid & values.notnull().all("statistic")
        elif policy == "raise":
            values = _checked(values, aligned.found)
        if not aligned.found.all() or policy == "omit":  # NaN there, and 0 · NaN is NaN
            values = values.where(valid, 0.0)
        total = _dot(values, weights, over).transpose(..., "statistic")
        weight = _dot(valid.astype(np.float64), weights, over)
        weight = weight * np.prod([values.sizes[d] for d in over if d not in (*valid.dims, *_dims(weights))])
        weight = weight.broadcast_like(total.isel(statistic=0, drop=True)).expand_dims(statistic=["weight"], axis=-1)
        sums[name] = xr.concat(
            [total, weight.transpose(*total.dims)], "statistic", coords="minimal", compat="override", join="outer"
        )
    return xr.Dataset(sums)


def _dims(weights: xr.DataArray | None) -> tuple[Hashable, ...]:
    return () if weights is None else weights.dims


def _dot(values: xr.DataArray, weights: xr.DataArray | None, over: Iterable[str]) -> xr.DataArray:
    factors = (values,) if weights is None else (values, weights)
    return xr.dot(*factors, dim=[d for d in over if any(d in f.dims for f in factors)])


def _weights_over(aligned: Aligned, dims: Iterable[str], options: Options) -> xr.DataArray | None:
    """Weights of the points; None where no dimension of theirs is averaged over."""
    weights = options.get("weights", "area")
    if isinstance(weights, str) and weights == "area" and not {"latitude", "longitude", "cell"} & set(dims):
        return None
    found = weights_for(aligned.forecast, weights)
    return found if set(_dims(found)) & set(dims) else None


def _checked(values: xr.DataArray, found: xr.DataArray) -> xr.DataArray:
    """The same values; raises on NaN, as soon as they are computed."""
    there = found.expand_dims(statistic=values["statistic"]) if "statistic" in values.coords else found
    there = there.broadcast_like(values).transpose(*values.dims)
    return xr.apply_ufunc(
        lambda x, y: _raise_nan(x, y, str(values.name)), values, there, dask="parallelized", output_dtypes=[np.float64]
    )


def _raise_nan(values: np.ndarray, found: np.ndarray, name: str) -> np.ndarray:
    bad = np.isnan(values) & found
    if bad.any():
        raise nan_error(name, int(bad.any(axis=-1).sum()), bad[..., 0].size)
    return values


def nan_error(name: str, points: int, size: int) -> DatasetError:
    """What nan_policy="raise" raises."""
    got, do = f"{points} of {size} points", "Fill them, or pass nan_policy='omit' or 'propagate'"
    return DatasetError(explain(f"{name!r} has NaN in forecast or truth", got=got, expected="numbers", do=do))


def finished(sums: xr.Dataset, score: Score, members: int) -> xr.Dataset:
    """The score from sums; NaN where nothing was summed."""

    def one(values: xr.DataArray) -> xr.DataArray:
        weight = values.sel(statistic="weight", drop=True)
        means = {s: values.sel(statistic=s, drop=True) / weight.where(weight > 0) for s in score.statistics}
        return score.combine(means, members)

    return sums.map(one, keep_attrs=False)


# --------------------------------------------------------------------------------------------- confidence


def resampled(sums: xr.Dataset, score: Score, members: int, dims: Iterable[str], options: Options) -> xr.Dataset:
    """Estimate and confidence interval from sums of each start.

    Starts are drawn with replacement in circular blocks (Politis & Romano 1992), all variables, leads and
    places alike; the interval is of percentiles.

    Parameters
    ----------
    sums : Dataset, dims (time, …, statistic)
    score : Score
    members : int
    dims : iterable of str
        Dimensions that the user averages over; must hold time.
    options : Options

    Returns
    -------
    Dataset, dims (…, bound)
    """
    confidence = options.get("confidence")
    if "time" not in dims or "time" not in sums.dims or sums.sizes["time"] < 2:
        got = f"dim={listed(dims)}, {sums.sizes.get('time', 1)} start"
        what = "A confidence interval needs starts to draw from"
        raise ArgumentError(explain(what, got=got, expected="at least two starts, averaged over"))
    assert confidence is not None
    counts = _draws(sums.sizes["time"], options)
    tail = (1 - confidence) / 2

    def interval(values: np.ndarray) -> np.ndarray:
        flat = values.reshape(-1, *values.shape[-2:])
        out = np.empty((len(flat), 3))
        step = max(1, _RESAMPLED // (counts.shape[0] * flat.shape[-1]))
        for first in range(0, len(flat), step):
            out[first : first + step] = _interval(flat[first : first + step], counts, score, members, names, tail)
        return out.reshape(*values.shape[:-2], 3)

    names = [str(s) for s in sums["statistic"].values]
    result = xr.apply_ufunc(
        interval,
        sums,
        input_core_dims=[["time", "statistic"]],
        output_core_dims=[["bound"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"bound": 3}, "allow_rechunk": True},
    )
    return result.assign_coords(bound=["estimate", "lower", "upper"])


def block_length(starts: int) -> int:
    """Length of blocks by default: the cube root of the number of starts (Hall, Horowitz & Jing 1995)."""
    return max(1, round(starts ** (1 / 3)))


def _draws(starts: int, options: Options) -> np.ndarray:
    """How often each start is in each resample: (resample, start), the first row the sample itself."""
    length = options.get("block") or block_length(starts)
    rng = np.random.default_rng(options.get("seed", 0))
    blocks = -(-starts // length)
    resamples = options.get("resamples", 1000)
    first = rng.integers(starts, size=(resamples, blocks))
    drawn = ((first[..., None] + np.arange(length)) % starts).reshape(resamples, -1)[:, :starts]
    counts = np.ones((resamples + 1, starts))
    for row, places in enumerate(drawn, start=1):
        counts[row] = np.bincount(places, minlength=starts)
    return counts


def _interval(
    sums: np.ndarray, counts: np.ndarray, score: Score, members: int, names: list[str], tail: float
) -> np.ndarray:
    """(point, time, statistic) → (point, bound)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if np.isnan(sums).any():  # a start that isn't drawn must not spoil a resample
            total = np.stack([np.where(c[:, None] > 0, sums * c[:, None], 0.0).sum(axis=1) for c in counts], axis=1)
        else:
            total = np.matmul(counts, sums)
        weight = total[..., names.index("weight")]
        means = {s: total[..., names.index(s)] / np.where(weight > 0, weight, np.nan) for s in score.statistics}
        values = score.combine(means, members)
        out = np.full((len(sums), 3), np.nan)
        out[:, 0] = values[:, 0]
        good = np.isfinite(values[:, 0])
        if good.any():
            out[good, 1:] = np.nanquantile(values[good, 1:], [tail, 1 - tail], axis=1).T
    return out


# ---------------------------------------------------------------------------------------------- description


def check_options(options: Options) -> None:
    """Raise for options that aren't there or can't be used."""
    if unknown := sorted(set(options) - set(Options.__annotations__)):
        raise ArgumentError(explain(f"There is no option {unknown[0]!r}", expected=listed(Options.__annotations__, 9)))
    policy = options.get("nan_policy", "propagate")
    if policy not in ("propagate", "raise", "omit"):
        expected = "'propagate', 'raise' or 'omit'"
        raise ArgumentError(explain(f"nan_policy={policy!r} is not known", expected=expected))
    confidence = options.get("confidence")
    if confidence is not None and not 0 < confidence < 1:
        raise ArgumentError(explain(f"confidence={confidence!r} can't be used", expected="a number such as 0.95"))
    for name in ("resamples", "block"):
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise ArgumentError(explain(f"{name}={value!r} can't be used", expected="an integer of at least 1"))


def described(result: xr.Dataset, score: Score, aligned: Aligned, dims: list[str], options: Options) -> xr.Dataset:
    """Attributes that say what was done, and how many starts went into each lead."""
    for name, values in result.data_vars.items():
        source = aligned.forecast[name].attrs
        values.attrs = {
            "long_name": f"{score.long_name} of {source.get('long_name', name)}",
            "units": _units(score.units, str(source.get("units", ""))),
            "score": score.name,
            "members": aligned.members,
            **score.attrs,
            **_described_options(aligned, dims, options),
        }
    result = result.drop_vars([n for n in ("valid_time",) if n in result.coords])
    if "time" in dims:
        result = result.assign_coords(samples=samples_of(aligned))
    return result


def samples_of(aligned: Aligned) -> xr.DataArray:
    """How many starts have a truth, by lead."""
    starts = aligned.found.sum("time").drop_vars("valid_time", errors="ignore")
    return starts.assign_attrs({"long_name": "starts that have a truth", "units": "1"})


def _units(kind: str, units: str) -> str:
    if kind == "1":
        return "1"
    return units if kind == "same" or units in ("", "1") else f"({units})2"


def _described_options(aligned: Aligned, dims: list[str], options: Options) -> dict[str, Any]:
    weights = options.get("weights", "area")
    told = "none" if weights is None else "given" if isinstance(weights, xr.DataArray) else "exact cell areas"
    spatial = {"latitude", "longitude", "cell"} & set(dims)
    said: dict[str, Any] = {
        "averaged_over": ", ".join(str(aligned.names.get(d, d)) for d in dims),
        "weights": told if spatial or told == "given" else "none",
        "nan_policy": options.get("nan_policy", "propagate"),
    }
    if options.get("confidence") is not None:
        starts = aligned.forecast.sizes["time"]
        said["confidence"] = (
            f"{options['confidence']:g}, {options.get('resamples', 1000)} resamples of {starts} starts in circular "
            f"blocks of {options.get('block') or block_length(starts)}, seed {options.get('seed', 0)}"
        )
    return said
