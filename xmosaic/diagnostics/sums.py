"""Scores of what doesn't come at once: sums of parts are added, and give the scores of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..variables import listed
from .layout import Aligned, align, caller_names
from .scores import SCORES, Dims, XarrayObject, pointwise
from .statistics import Options, Score, finished, reduced_dims, weighted_sums

USUAL = ("rmse", "bias", "mae", "crps", "spread", "spread_skill")


def score_sums(
    forecast: XarrayObject,
    truth: XarrayObject,
    scores: str | Iterable[str] = USUAL,
    dim: Dims = None,
    **options: Unpack[Options],
) -> xr.Dataset:
    """What has to be summed for some scores: add the results of parts, then call `scores_from`.

    Parameters
    ----------
    forecast, truth, dim, **options
        See `rmse`; of the options ``weights`` and ``nan_policy``.
    scores : str or iterable of str
        Of "rmse", "fair_rmse", "bias", "mae", "median_mae", "spread", "spread_skill", "crps", "biased_crps". By default
        those that need no more than mean, spread and order of the members, without the fair RMSE.

    Returns
    -------
    Dataset, dims as the forecast's less `dim` and number, and statistic
        With the sum of weights as last statistic, and a coordinate ``members``. One pass over the data for all scores.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    Examples
    --------
    >>> fc = xr.DataArray([[1.0, 3.0], [2.0, 3.0]], dims=("number", "point"), name="t")
    >>> truth = xr.DataArray([2.0, 2.0], dims="point", name="t")
    >>> parts = [score_sums(fc.isel(point=[k]), truth.isel(point=[k])) for k in range(2)]
    >>> float(scores_from(parts[0] + parts[1], "bias")["t"].squeeze())
    0.25
    """
    aligned = align(forecast, truth)
    found = sums_of(aligned, known_scores(scores, aligned), reduced_dims(aligned, dim), options)
    return caller_names(found, aligned.names)


def scores_from(sums: xr.Dataset, scores: str | Iterable[str] = USUAL) -> xr.Dataset:
    """Scores from sums.

    Parameters
    ----------
    sums : Dataset, dims (…, statistic)
        Of `score_sums`, or several of them added.
    scores : str or iterable of str
        Of those that the sums were made for.

    Returns
    -------
    Dataset, dims (score, …)

    Raises
    ------
    DatasetError
        Where sums of ensembles of different size were added, or a score needs a sum that isn't there.

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> sums = score_sums(members, truth, "crps")
    >>> round(float(scores_from(sums, "crps").to_dataarray().squeeze()), 6)
    0.166667
    """
    if "members" not in sums.coords or "statistic" not in sums.dims:
        what = "These are no sums of scores, or sums of ensembles of different size were added"
        raise DatasetError(explain(what, got=listed(sums.coords), expected="coordinates statistic and members"))
    names = [scores] if isinstance(scores, str) else list(scores)
    there = set(sums["statistic"].values.tolist())
    for name in names:
        if missing := [s for s in _known(name).statistics if s not in there]:
            raise DatasetError(
                explain(f"The sums don't have what {name!r} needs", got=listed(there), expected=missing[0])
            )
    members = int(sums["members"])
    found = [finished(sums.drop_vars("members"), SCORES[name], members) for name in names]
    return xr.concat(found, xr.DataArray(names, dims="score", name="score"), coords="minimal", compat="override")


def _known(name: str) -> Score:
    if name not in SCORES:
        raise ArgumentError(explain(f"There is no score {name!r} of sums", expected=listed(SCORES, len(SCORES))))
    return SCORES[name]


def known_scores(scores: str | Iterable[str], aligned: Aligned) -> list[str]:
    """Names of scores, checked; those of an ensemble need one."""
    names = [scores] if isinstance(scores, str) else list(scores)
    for name in names:
        _known(name)
        if aligned.members < 2 and "variance" in SCORES[name].statistics:
            raise DatasetError(explain(f"Score {name!r} needs an ensemble", got="one member", expected="two or more"))
    return names


def sums_of(aligned: Aligned, scores: Iterable[str], dims: list[str], options: Options) -> xr.Dataset:
    """Sums for some scores over canonical dimensions, of one pass over the data."""
    statistics = list(dict.fromkeys(s for name in scores for s in SCORES[name].statistics))
    found = weighted_sums(pointwise(aligned, statistics), aligned, dims, options)
    return found.assign_coords(members=np.int64(aligned.members)).drop_vars("valid_time", errors="ignore")
