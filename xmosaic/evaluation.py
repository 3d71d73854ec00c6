"""The paper's tables of one or several forecasts, in one pass over the data: scores, spectra, mass."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from .diagnostics.conservation import mass_drift
from .diagnostics.layout import LEAD, Aligned, align, space_dims, times_of, warn
from .diagnostics.scores import SCORES
from .diagnostics.spectra import spectra as power_spectra
from .diagnostics.statistics import (
    Options,
    Score,
    block_length,
    check_options,
    finished,
    resampled,
    samples_of,
    stacked,
)
from .diagnostics.sums import USUAL, known_scores, sums_of
from .errors import ArgumentError, DatasetError, explain
from .options import get_option
from .variables import find_variable, listed

# What one block may read; blocks of whole leads are put together up to it.
_BLOCK_BYTES = 64e6
_DRIFTS = ("mass_drift", "mass_drift_percent")
_RATIO = Score(
    "spectral_ratio",
    "power of the members over the truth's",
    ("forecast", "truth"),
    lambda s, m: s["forecast"] / np.where(np.asarray(s["truth"]) > 0, s["truth"], np.nan),
    "1",
)


def benchmark(
    forecasts: xr.Dataset | xr.DataArray | Mapping[str, xr.Dataset | xr.DataArray],
    truth: xr.Dataset | xr.DataArray,
    scores: str | Iterable[str] = USUAL,
    *,
    spectra: bool = True,
    mass: bool = True,
    progress: bool | None = None,
    **options: Unpack[Options],
) -> xr.Dataset:
    """Scores, spectral ratio and mass drift of one or several forecasts by variable, level and lead.

    All forecasts are scored on the starts that all of them have, so their numbers can be compared. Reads block by
    block: a start and as many leads as fit 64 MB, so memory stays flat; on a `dask.distributed` client the blocks run
    on the workers.

    Parameters
    ----------
    forecasts : Dataset, DataArray or mapping of str to these
        In any dialect; without ``number`` a single forecast, whose CRPS is its mean absolute error and which has no
        spread.
    truth : Dataset or DataArray
        See `xmosaic.diagnostics.rmse`.
    scores : str or iterable of str
        See `xmosaic.diagnostics.score_sums`.
    spectra : bool
        Power of the members over the truth's at every total wavenumber. Needs a grid that
        `xmosaic.diagnostics.spectra` takes.
    mass : bool
        Drift of area-mean pressure, where a forecast has surface or sea-level pressure.
    progress : bool, optional
        Whether to show a progress bar; by default as `xmosaic.set_options` says.
    **options
        ``weights``, ``nan_policy``, ``confidence`` (0.95), ``resamples``, ``block``, ``seed``: see
        `xmosaic.diagnostics`.

    Returns
    -------
    Dataset, dims (forecast, score, prediction_timedelta, level, bound)
        Each variable has its scores, with bound (estimate, lower, upper); ``<variable>_spectral_ratio`` (forecast,
        prediction_timedelta, level, total_wavenumber, bound), ``mass_drift`` [hPa] and ``mass_drift_percent`` [%]
        (forecast, prediction_timedelta, bound), the mean over starts and members, and ``…_min``, ``…_max`` over both.
        Coordinates ``members`` and ``samples``. With one start the bounds are NaN.

    Raises
    ------
    DatasetError
        Where a forecast and the truth can't be compared, or the forecasts have no start in common.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> result = xmosaic.benchmark({"bundled": fc}, ds, "crps", spectra=False, mass=False, progress=False)
    >>> result["geopotential"].dims
    ('forecast', 'score', 'prediction_timedelta', 'level', 'bound')
    """
    check_options(options)
    confidence = options.get("confidence", 0.95)
    chosen: Options = {**options, "confidence": confidence}
    named = _named(forecasts)
    aligned = _common_starts({name: _with_dims(align(obj, truth)) for name, obj in named.items()})
    wanted = [scores] if isinstance(scores, str) else list(scores)
    shown = get_option("progress") if progress is None else progress
    if spectra:
        _check_spectra(aligned)
    tasks = [task for name, one in aligned.items() for task in _tasks(name, one, wanted, spectra, chosen)]
    parts = _run(tasks, shown)
    results = []
    for name, one in aligned.items():
        mine = {task.place: part for task, part in zip(tasks, parts, strict=True) if task.forecast == name}
        result = _scored(one, mine, wanted, chosen)
        if mass and _has_pressure(one.forecast):
            result = result.merge(_drift(one, truth, chosen), compat="override", join="outer")
        results.append(result.drop_vars("samples", errors="ignore").assign_coords(samples=samples_of(one)))
    names = xr.DataArray(list(aligned), dims="forecast", name="forecast")
    joined = xr.concat(results, names, data_vars="all", coords="different", compat="equals", join="outer")
    sizes = [one.members if "number" in one.forecast.dims else 0 for one in aligned.values()]
    about = {"long_name": "members, 0 for a single forecast", "units": "1"}
    joined = joined.assign_coords(members=("forecast", sizes, about))
    return _labelled(joined, aligned, wanted, chosen)


# ------------------------------------------------------------------------------------------------- what is scored


def _named(forecasts: Any) -> dict[str, xr.Dataset | xr.DataArray]:
    if isinstance(forecasts, xr.Dataset | xr.DataArray):
        return {"forecast": forecasts}
    if (
        isinstance(forecasts, Mapping)
        and not isinstance(forecasts, xr.DataTree)
        and forecasts
        and all(isinstance(f, xr.Dataset | xr.DataArray) for f in forecasts.values())
    ):
        return {str(name): obj for name, obj in forecasts.items()}
    got = type(forecasts).__name__
    raise ArgumentError(explain("There is nothing to score", got=got, expected="a Dataset, or a dict of Datasets"))


def _with_dims(one: Aligned) -> Aligned:
    """Start and lead as dimensions, wherever they are coordinates alone."""
    forecast, truth, found = one.forecast, one.truth, one.found
    for dim in (LEAD, "time"):
        if dim not in forecast.coords:
            raise DatasetError(explain(f"A forecast has no {dim!r}", got=listed(forecast.coords), do="Assign it"))
        if dim not in forecast.dims:
            truth = truth.drop_vars(dim, errors="ignore")
            truth = truth.expand_dims({dim: [forecast[dim].values]})
            found = found.drop_vars(dim, errors="ignore").expand_dims({dim: [forecast[dim].values]})
            forecast = forecast.expand_dims(dim)
    times = times_of(forecast.coords["time"])
    if times.has_duplicates:
        got = listed(times[times.duplicated()].unique()[:3])
        raise DatasetError(
            explain("A forecast has a start twice", got=got, do="Keep the first: drop_duplicates('time')")
        )
    found = found.assign_coords(time=times).transpose("time", LEAD)
    return replace(one, forecast=forecast.assign_coords(time=times), truth=truth.assign_coords(time=times), found=found)


def _common_starts(aligned: dict[str, Aligned]) -> dict[str, Aligned]:
    starts = [pd.DatetimeIndex(one.forecast["time"].values) for one in aligned.values()]
    common = starts[0]
    for other in starts[1:]:
        common = common.intersection(other)
    if common.empty:
        raise DatasetError(
            explain("The forecasts have no start in common", got=listed(aligned), do="Make some that have")
        )
    left_out = max(len(s) for s in starts) - len(common)
    if left_out:
        warn(f"{left_out} starts are left out: not all forecasts have them.")

    def cut(one: Aligned) -> Aligned:
        keep = {"time": common.sort_values()}
        return replace(one, forecast=one.forecast.sel(keep), truth=one.truth.sel(keep), found=one.found.sel(keep))

    return {name: cut(one) for name, one in aligned.items()}


def _check_spectra(aligned: dict[str, Aligned]) -> None:
    """Spectra of one field of each forecast, so that a grid that has none is told before the work begins."""
    for name, one in aligned.items():
        field = one.truth[list(one.truth.data_vars)[:1]]
        first = field.isel({d: 0 for d in field.dims if d not in space_dims(one.forecast)})
        try:
            power_spectra(xr.zeros_like(first).compute(), kinetic_energy=False)
        except DatasetError as error:
            raise DatasetError(f"{name!r} has no spectra: {error} Or pass spectra=False.") from None


# -------------------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class _Task:
    """One variable of one start at some leads."""

    forecast: str
    place: tuple[str, int, int]
    part: Aligned
    scores: tuple[str, ...]
    spectra: bool
    options: Options


def _tasks(name: str, one: Aligned, scores: list[str], spectra: bool, options: Options) -> Iterator[_Task]:
    usable = tuple(s for s in scores if _usable(s, one))
    known_scores(usable, one)
    plain: Options = {k: v for k, v in options.items() if k in ("weights", "nan_policy")}  # type: ignore[assignment]
    for variable in map(str, one.forecast.data_vars):
        field = one.forecast[variable]
        bytes_of_lead = max(field.nbytes / field.sizes["time"] / field.sizes[LEAD], 1)
        step = int(max(1, min(field.sizes[LEAD], _BLOCK_BYTES // bytes_of_lead)))
        for start in range(field.sizes["time"]):
            for lead in range(0, field.sizes[LEAD], step):
                at = {"time": [start], LEAD: slice(lead, lead + step)}
                part = Aligned(
                    one.forecast[[variable]].isel(at),
                    one.truth[[variable]].isel(at),
                    one.found.isel(at),
                    {},
                    None,
                    False,
                )
                yield _Task(name, (variable, start, lead), part, usable, spectra, plain)


def _usable(score: str, one: Aligned) -> bool:
    if score not in SCORES:
        raise ArgumentError(explain(f"There is no score {score!r}", expected=listed(SCORES, len(SCORES))))
    return one.members > 1 or "variance" not in SCORES[score].statistics


def _block(forecast: xr.Dataset, truth: xr.Dataset, task: _Task) -> tuple[xr.Dataset, xr.Dataset | None]:
    """Sums over space, and power of members and truth."""
    part = replace(task.part, forecast=forecast, truth=truth)
    sums = sums_of(part, task.scores, list(space_dims(forecast)), task.options)
    if not task.spectra:
        return sums, None
    ours = power_spectra(forecast, kinetic_energy=False)
    ours = ours.mean("number") if "number" in ours.dims else ours
    theirs = power_spectra(truth, kinetic_energy=False)
    return sums, xr.Dataset({n: stacked({"forecast": ours[n], "truth": theirs[n]}) for n in map(str, ours.data_vars)})


def _run(tasks: list[_Task], show: bool) -> list[Any]:
    """Results in the order of the tasks, of the workers of a distributed client if there is one."""
    client = _client()
    with tqdm(total=len(tasks), desc="benchmark", unit="block", disable=not show, delay=1.0, dynamic_ncols=True) as bar:
        if client is not None:
            from distributed import as_completed

            futures = client.compute([_delayed(task) for task in tasks])
            for _ in as_completed(futures, raise_errors=False):
                bar.update()
            return list(client.gather(futures))
        results = []
        for task in tasks:
            results.append(_block(*_loaded(task), task))
            bar.update()
        return results


def _client() -> Any:
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client

    with contextlib.suppress(ValueError):
        return get_client()
    return None


def _delayed(task: _Task) -> Any:
    import dask

    # the Datasets as arguments of their own: dask reads their chunks, and `_block` gets them in memory
    light = replace(task, part=replace(task.part, forecast=xr.Dataset(), truth=xr.Dataset()))
    return dask.delayed(_block, pure=False)(task.part.forecast, task.part.truth, light)


def _loaded(task: _Task) -> tuple[xr.Dataset, xr.Dataset]:
    import dask

    forecast, truth = dask.compute(task.part.forecast, task.part.truth)
    return forecast, truth


# ------------------------------------------------------------------------------------------------------- results


def _scored(
    one: Aligned,
    parts: dict[tuple[str, int, int], tuple[xr.Dataset, xr.Dataset | None]],
    scores: list[str],
    options: Options,
) -> xr.Dataset:
    result = {}
    for variable in map(str, one.forecast.data_vars):
        mine: dict[tuple[int, ...], Any] = {place[1:]: part for place, part in parts.items() if place[0] == variable}
        sums = _joined({place: part[0] for place, part in mine.items()}).drop_vars("members")
        found = {s: _bounded(sums, SCORES[s], one.members, options) for s in scores if _usable(s, one)}
        names = xr.DataArray(list(found), dims="score", name="score")
        joined = xr.concat(list(found.values()), names, coords="minimal", compat="override", join="exact")
        result[variable] = joined[variable].reindex(score=scores)
        if mine and next(iter(mine.values()))[1] is not None:
            power = _joined({place: part[1] for place, part in mine.items()})[variable]
            result[f"{variable}_spectral_ratio"] = _power_ratio(power, one, options)
    return xr.Dataset(result)


def _power_ratio(power: xr.DataArray, one: Aligned, options: Options) -> xr.DataArray:
    """Power of members over the truth's, both averaged over the starts that have a truth."""
    weight = one.found.astype(np.float64).broadcast_like(power.isel(statistic=0, drop=True))
    sums = xr.concat(
        [power.where(one.found, 0.0), weight.expand_dims(statistic=["weight"], axis=-1).transpose(*power.dims)],
        "statistic",
        coords="minimal",
        compat="override",
        join="outer",
    )
    ratio = _bounded(sums.to_dataset(name="ratio"), _RATIO, one.members, options)["ratio"]
    truth = power.sel(statistic="truth", drop=True).where(one.found, 0.0).sum("time")
    # what rounding leaves of a power that isn't there has no ratio
    kept = truth > np.finfo(np.float64).eps * truth.sum("total_wavenumber")
    return ratio.where(kept).transpose(..., "total_wavenumber", "bound")


def _joined(parts: dict[tuple[int, ...], Any]) -> xr.Dataset:
    """Blocks (start, lead) side by side."""
    rows: dict[int, list[xr.Dataset]] = {}
    for start, lead in sorted(parts):
        rows.setdefault(start, []).append(parts[start, lead])
    whole = [xr.concat(row, LEAD, coords="minimal", compat="override") for row in rows.values()]
    return xr.concat(whole, "time", coords="minimal", compat="override")


def _bounded(sums: xr.Dataset, score: Score, members: int, options: Options) -> xr.Dataset:
    """(…, bound): estimate and interval over starts; of one start, or without confidence, NaN for the interval."""
    if options.get("confidence") is not None and sums.sizes["time"] > 1:
        return resampled(sums, score, members, ["time"], options)
    estimate = finished(sums.sum("time", skipna=False), score, members)
    nothing = xr.full_like(estimate, np.nan)
    bounds = xr.DataArray(["estimate", "lower", "upper"], dims="bound", name="bound")
    joined = xr.concat([estimate, nothing, nothing], bounds, coords="minimal", compat="override")
    return joined.transpose(..., "bound")


def _has_pressure(forecast: xr.Dataset) -> bool:
    meant = {known.name for name in forecast.data_vars if (known := find_variable(str(name)))}
    return bool({"surface_pressure", "mean_sea_level_pressure"} & meant)


def _drift(one: Aligned, truth: xr.Dataset | xr.DataArray, options: Options) -> xr.Dataset:
    """Mean over starts and members with its interval, and the extremes; against the truth's start if it's there."""
    start = truth if isinstance(truth, xr.Dataset) and _has_starts(one, truth) else None
    drift = mass_drift(one.forecast, start=start).compute()
    result = {}
    for name in _DRIFTS:
        each = drift[name]
        attrs = dict(each.attrs)
        mean = each.mean("number") if "number" in each.dims else each
        sums = stacked({"mean": mean, "weight": xr.ones_like(mean)}).to_dataset(name=name)
        score = Score(name, name, ("mean",), lambda s, m: s["mean"])
        result[name] = _bounded(sums, score, one.members, options)[name].assign_attrs(attrs)
        over = [d for d in ("time", "number") if d in each.dims]
        for extreme in ("min", "max"):
            named = f"{attrs.get('long_name', name)}, {extreme} over starts and members"
            value = getattr(each, extreme)(over)
            result[f"{name}_{extreme}"] = value.assign_attrs({**attrs, "long_name": named})
    return xr.Dataset(result).drop_vars("valid_time", errors="ignore")


def _has_starts(one: Aligned, truth: xr.Dataset) -> bool:
    if "time" not in truth.coords or not _has_pressure(truth):
        return False
    return bool(np.isin(one.forecast["time"].values, truth["time"].values).all())


def _labelled(result: xr.Dataset, aligned: dict[str, Aligned], scores: list[str], options: Options) -> xr.Dataset:
    first = next(iter(aligned.values()))
    for name in result.data_vars:
        variable = str(name).removesuffix("_spectral_ratio")
        source = next((one.forecast[variable].attrs for one in aligned.values() if variable in one.forecast), None)
        if source is None:
            continue
        about = str(source.get("long_name", variable))
        if str(name) == variable:
            units = str(source.get("units", ""))
            result[name].attrs = {"long_name": f"scores of {about}", "units": units}
        else:
            result[name].attrs = {"long_name": f"{_RATIO.long_name} of {about}", "units": "1"}
    kinds = ["1" if SCORES[s].units == "1" else "as the variable" for s in scores]
    long_names = [SCORES[s].long_name for s in scores]
    result = result.assign_coords(score_units=("score", kinds), score_name=("score", long_names))
    starts = first.forecast["time"].values
    weights = options.get("weights", "area")
    result.attrs = {
        "title": f"Scores of {', '.join(aligned)}",
        "starts": f"{len(starts)}: {pd.Timestamp(starts[0])} … {pd.Timestamp(starts[-1])}",
        "weights": "exact cell areas" if isinstance(weights, str) else "none" if weights is None else "given",
        "nan_policy": options.get("nan_policy", "propagate"),
        "confidence": _confidence(options, len(starts)),
    }
    return result


def _confidence(options: Options, starts: int) -> str:
    if options.get("confidence") is None or starts < 2:
        return "none: one start" if starts < 2 else "none"
    return (
        f"{options['confidence']:g}, {options.get('resamples', 1000)} resamples of {starts} starts "
        f"in circular blocks of {options.get('block') or block_length(starts)}"
    )
