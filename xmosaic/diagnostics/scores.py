"""Scores of ensemble and single forecasts against a truth."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Literal, TypeAlias, Unpack

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..variables import listed
from .ensemble import statistics_of
from .layout import LEAD, Aligned, align, canonical_dims, in_one_chunk, same_places
from .statistics import Options, Score, average, stacked

XarrayObject: TypeAlias = xr.Dataset | xr.DataArray
Dims: TypeAlias = str | Iterable[Hashable] | None
Of: TypeAlias = Literal["mean", "members"]


def _ratio(x: Any, y: Any) -> Any:
    """Quotient, NaN where y is 0."""
    return x / (xr.where(y == 0, np.nan, y) if isinstance(y, xr.DataArray) else np.where(y == 0, np.nan, y))


def _crps_of(fair: bool) -> Any:
    def combine(s: Any, members: int) -> Any:
        return s["crps_error"] - s["crps_spread"] * (1.0 if fair else (members - 1) / members)

    return combine


SCORES: dict[str, Score] = {
    "rmse": Score("rmse", "root mean square error", ("squared_error",), lambda s, m: s["squared_error"] ** 0.5),
    "fair_rmse": Score(
        "rmse",
        "fair root mean square error",
        ("squared_error", "variance"),
        lambda s, m: np.sqrt(np.maximum(s["squared_error"] - s["variance"] / m, 0.0)),
        attrs={"fair": "true"},
    ),
    "bias": Score("bias", "mean error", ("error",), lambda s, m: s["error"]),
    "mae": Score("mae", "mean absolute error", ("absolute_error",), lambda s, m: s["absolute_error"]),
    "median_mae": Score(
        "mae", "mean absolute error of the median", ("median_absolute_error",), lambda s, m: s["median_absolute_error"]
    ),
    "spread": Score("spread", "ensemble spread", ("variance",), lambda s, m: s["variance"] ** 0.5),
    "spread_skill": Score(
        "spread_skill",
        "spread/skill ratio",
        ("variance", "squared_error"),
        lambda s, m: _ratio((m + 1) / m * s["variance"], s["squared_error"]) ** 0.5,
        "1",
        {"factor": "(M + 1)/M on the variance"},
    ),
    "crps": Score(
        "crps",
        "fair continuous ranked probability score",
        ("crps_error", "crps_spread"),
        _crps_of(True),
        attrs={"fair": "true"},
    ),
    "biased_crps": Score(
        "crps",
        "continuous ranked probability score",
        ("crps_error", "crps_spread"),
        _crps_of(False),
        attrs={"fair": "false"},
    ),
}


def rmse(
    forecast: XarrayObject,
    truth: XarrayObject,
    dim: Dims = None,
    *,
    of: Of = "mean",
    fair: bool = False,
    **options: Unpack[Options],
) -> Any:
    """Root mean square error of the ensemble mean, or of every member.

    √⟨(x̄ − y)²⟩; the root is taken after averaging over `dim`, time included. With ``fair=True`` √⟨(x̄ − y)² − s²/M⟩,
    the error that the mean of an infinite ensemble would have, s² the members' unbiased variance.

    Parameters
    ----------
    forecast : Dataset or DataArray, dims (time, number, prediction_timedelta, level, latitude, longitude) or fewer
        In any dialect of names; without ``number`` a single forecast.
    truth : Dataset or DataArray, dims (time, level, latitude, longitude)
        Analyses, found by valid time; or laid out as the forecast.
    dim : str, iterable of hashable, ... or None
        Dimensions to average over; by default all but lead and level, that is time and space. ``...``: those too.
    of : {"mean", "members"}
        "members" keeps ``number``.
    fair : bool
        Take out what the finite ensemble adds.
    **options
        ``weights``, ``nan_policy``, ``confidence`` and more: see `xmosaic.diagnostics`.

    Returns
    -------
    Dataset or DataArray, dims of the forecast less `dim` and number
        In the variable's units.

    Raises
    ------
    DatasetError
        Where forecast and truth can't be compared.
    ArgumentError
        For arguments that can't be used.

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> rmse(members, truth).item(), rmse(members, truth, of="members").values
    (0.5, array([0.5, 0.5, 1.5]))
    """
    if fair and of == "members":
        raise ArgumentError(explain("A fair RMSE is one of the mean", got="of='members'", do="Leave out fair=True"))
    return _score("fair_rmse" if fair else "rmse", forecast, truth, dim, of, options)


def bias(
    forecast: XarrayObject, truth: XarrayObject, dim: Dims = None, *, of: Of = "mean", **options: Unpack[Options]
) -> Any:
    """Mean error ⟨x − y⟩ of the ensemble mean, or of every member.

    Parameters
    ----------
    forecast, truth, dim, of, **options
        See `rmse`.

    Returns
    -------
    Dataset or DataArray
        In the variable's units; positive where the forecast is higher.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> bias(members, truth).item()
    0.5
    """
    return _score("bias", forecast, truth, dim, of, options)


def mae(
    forecast: XarrayObject,
    truth: XarrayObject,
    dim: Dims = None,
    *,
    of: Literal["mean", "median", "members"] = "mean",
    **options: Unpack[Options],
) -> Any:
    """Mean absolute error ``⟨|x − y|⟩`` of the ensemble's mean or median, or of every member.

    Parameters
    ----------
    forecast, truth, dim, **options
        See `rmse`.
    of : {"mean", "median", "members"}

    Returns
    -------
    Dataset or DataArray
        In the variable's units.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> mae(members, truth).item(), mae(members, truth, of="members").values
    (0.5, array([0.5, 0.5, 1.5]))
    """
    if of == "median":
        return _score("median_mae", forecast, truth, dim, "mean", options)
    return _score("mae", forecast, truth, dim, of, options)


def spread(forecast: XarrayObject, truth: XarrayObject, dim: Dims = None, **options: Unpack[Options]) -> Any:
    """Ensemble spread √⟨s²⟩, s² = Σ(xᵢ − x̄)²/(M − 1), over the starts and leads that have a truth.

    Parameters
    ----------
    forecast, truth, dim, **options
        See `rmse`. The truth only says which starts and leads count, as in the scores beside it.

    Returns
    -------
    Dataset or DataArray
        In the variable's units.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> spread(members, truth).item()
    1.0
    """
    return _score("spread", forecast, truth, dim, "mean", options)


def spread_skill(forecast: XarrayObject, truth: XarrayObject, dim: Dims = None, **options: Unpack[Options]) -> Any:
    """Spread/skill ratio √((M + 1)/M · ⟨s²⟩/⟨(x̄ − y)²⟩): 1 where members and truth can't be told apart.

    The factor makes up for the finite ensemble: of M members alike with the truth, the mean has the squared error (M
    + 1)/M σ² (Fortin et al. 2014).

    Parameters
    ----------
    forecast, truth, dim, **options
        See `rmse`.

    Returns
    -------
    Dataset or DataArray [1]
        Below 1: too little spread.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    References
    ----------
    Fortin, V., et al. (2014). Why should ensemble spread match the RMSE of the ensemble mean? J. Hydrometeorol. 15.
    doi:10.1175/JHM-D-14-0008.1

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> round(spread_skill(members, truth).item(), 6)  # √(4/3) · 1 / 0.5
    2.309401
    """
    return _score("spread_skill", forecast, truth, dim, "mean", options)


def crps(
    forecast: XarrayObject, truth: XarrayObject, dim: Dims = None, *, fair: bool = True, **options: Unpack[Options]
) -> Any:
    """Continuous ranked probability score of an ensemble.

    ``⟨|xᵢ − y|⟩ − ½⟨|xᵢ − xⱼ|⟩``, the second mean over different members if fair: its expectation then does not
    depend on M (Ferro 2014). Biased (``fair=False``), the pairs of a member with itself count too, as in the score of
    the empirical distribution. Cost: one sort of the members per point, M log M.

    Parameters
    ----------
    forecast, truth, dim, **options
        See `rmse`. Without ``number`` the score of a single forecast is its mean absolute error.
    fair : bool
        The fair estimate needs two members.

    Returns
    -------
    Dataset or DataArray
        In the variable's units; smaller is better.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    References
    ----------
    Gneiting, T. & Raftery, A. (2007). Strictly proper scoring rules, prediction, and estimation. JASA 102.
    doi:10.1198/016214506000001437

    Ferro, C. (2014). Fair scores for ensemble forecasts. Q. J. R. Meteorol. Soc. 140. doi:10.1002/qj.2270

    Examples
    --------
    >>> members = xr.DataArray([1.0, 2.0, 3.0], dims="number")
    >>> round(crps(members, xr.DataArray(1.5)).item(), 6), round(crps(members, xr.DataArray(1.5), fair=False).item(), 6)
    (0.166667, 0.388889)
    """
    return _score("crps" if fair else "biased_crps", forecast, truth, dim, "mean", options)


def threshold_weighted_crps(
    forecast: XarrayObject,
    truth: XarrayObject,
    threshold: Any,
    dim: Dims = None,
    *,
    tail: Literal["upper", "lower"] = "upper",
    fair: bool = True,
    **options: Unpack[Options],
) -> Any:
    """CRPS that looks at one side of a threshold only.

    The weight 1 beyond the threshold t and 0 before it: the CRPS of max(x, t) against max(y, t), or of min for the
    lower tail (Gneiting & Ranjan 2011; Allen et al. 2023).

    Parameters
    ----------
    forecast, truth, dim, fair, **options
        See `crps`.
    threshold : float, DataArray, Dataset or dict of str to either
        In the variable's units; one for all variables or one for each.
    tail : {"upper", "lower"}

    Returns
    -------
    Dataset or DataArray
        In the variable's units.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    References
    ----------
    Gneiting, T. & Ranjan, R. (2011). Comparing density forecasts using threshold- and quantile-weighted scoring rules.
    J. Bus. Econ. Stat. 29. doi:10.1198/jbes.2010.08110

    Allen, S., Ginsbourger, D. & Ziegel, J. (2023). Evaluating forecasts for high-impact events using transformed
    kernel scores. SIAM/ASA J. Uncertain. Quantif. 11. doi:10.1137/22M1532184

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> round(threshold_weighted_crps(members, truth, threshold=0.0).item(), 6)  # all lie above: the CRPS
    0.166667
    >>> threshold_weighted_crps(members, truth, threshold=5.0).item()  # all lie below: the same to it
    0.0
    """
    if tail not in ("upper", "lower"):
        raise ArgumentError(explain(f"tail={tail!r} is not known", expected="'upper' or 'lower'"))
    aligned = align(forecast, truth)
    needs_two(aligned, fair)
    limit = np.maximum if tail == "upper" else np.minimum
    limits = thresholds(threshold, aligned)
    cut = {
        "forecast": xr.Dataset({n: limit(f, limits[n]).assign_attrs(f.attrs) for n, f in aligned.forecast.items()}),
        "truth": xr.Dataset({n: limit(f, limits[n]).assign_attrs(f.attrs) for n, f in aligned.truth.items()}),
    }
    plain = SCORES["crps" if fair else "biased_crps"]
    side = {"threshold": told(threshold), "tail": tail}
    name = f"threshold-weighted {plain.long_name}"
    score = Score("threshold_weighted_crps", name, plain.statistics, plain.combine, attrs={**plain.attrs, **side})
    changed = Aligned(cut["forecast"], cut["truth"], aligned.found, aligned.names, aligned.single, aligned.is_array)
    return aligned.give_back(average(pointwise(changed, score.statistics), score, changed, dim, options))


def crps_skill(
    forecast: XarrayObject,
    truth: XarrayObject,
    baseline: XarrayObject,
    dim: Dims = None,
    *,
    fair: bool = True,
    **options: Unpack[Options],
) -> Any:
    """CRPS skill 1 − CRPS/CRPS of a baseline: 1 is perfect, 0 no better than the baseline.

    Both scores are taken over the starts, leads, levels and variables that both forecasts and the truth have; with
    ``confidence`` both are drawn together, so the interval is that of the paired comparison.

    Parameters
    ----------
    forecast, truth, dim, fair, **options
        See `crps`.
    baseline : Dataset or DataArray
        A forecast, such as one of `persistence`, `climatology` or `climatological_ensemble`. Without ``number`` its
        score is its mean absolute error.

    Returns
    -------
    Dataset or DataArray [1]

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> far = xr.DataArray([3.0, 4.0, 5.0], dims="number")
    >>> round(crps_skill(members, truth, far).item(), 6)
    0.909091
    """
    ours, theirs = _common(align(forecast, truth), align(baseline, truth))
    needs_two(ours, fair)
    needs_two(theirs, fair and "number" in theirs.forecast.dims)
    terms, plain = ("crps_error", "crps_spread"), _crps_of(fair)
    both = {}
    reference = pointwise(theirs, terms)
    for name, values in pointwise(ours, terms).data_vars.items():
        other = reference[name].transpose(*values.dims)
        named = {s: values.sel(statistic=s) for s in terms}
        named |= {f"base_{s}": other.sel(statistic=s) for s in terms}
        both[name] = stacked({key: term.drop_vars("statistic") for key, term in named.items()})
    base_members = theirs.members

    def combine(s: Any, members: int) -> Any:
        base = {term: s[f"base_{term}"] for term in terms}
        return 1 - _ratio(plain(s, members), plain(base, base_members))

    about = {"fair": str(fair).lower(), "baseline_members": base_members}
    score = Score("crps_skill", "CRPS skill", (*terms, *(f"base_{t}" for t in terms)), combine, "1", about)
    return ours.give_back(average(xr.Dataset(both), score, ours, dim, options))


def acc(
    forecast: XarrayObject,
    truth: XarrayObject,
    climatology: XarrayObject,
    dim: Dims = None,
    *,
    of: Of = "mean",
    centred: bool = False,
    **options: Unpack[Options],
) -> Any:
    """Anomaly correlation ⟨x′y′⟩/√(⟨x′²⟩⟨y′²⟩) of the ensemble mean or of every member, x′ = x − climatology.

    Means are over all of `dim`, time included, before the quotient is taken. ``centred=True`` takes the mean anomaly
    out of both first.

    Parameters
    ----------
    forecast, truth, dim, of, **options
        See `rmse`.
    climatology : Dataset or DataArray
        Of `fit_climatology`; or laid out as the forecast; or without time, the same for all.
    centred : bool

    Returns
    -------
    Dataset or DataArray [1]

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    References
    ----------
    Wilks, D. (2019). Statistical Methods in the Atmospheric Sciences, 4th ed., section 9.8.4.
    doi:10.1016/C2017-0-03921-6

    Examples
    --------
    >>> forecast, truth = (xr.DataArray(v, dims="place") for v in ([1.0, -2.0, 3.0], [2.0, -1.0, 2.0]))
    >>> round(acc(forecast, truth, xr.zeros_like(truth), dim="place").item(), 6)
    0.890871
    """
    aligned = align(forecast, truth)
    normal = _climatology_of(climatology, forecast, aligned)
    mean = aligned.forecast
    if of == "mean" and "number" in mean.dims:
        mean = mean.mean("number", dtype=np.float64, skipna=False)
    _check_of(of, aligned)
    terms = {}
    for name in aligned.forecast.data_vars:
        x, y = mean[name].astype(np.float64) - normal[name], aligned.truth[name].astype(np.float64) - normal[name]
        products = {"xy": x * y, "xx": x * x, "yy": (y * y).broadcast_like(x), "x": x, "y": y.broadcast_like(x)}
        if not centred:
            products = {key: products[key] for key in ("xy", "xx", "yy")}
        terms[name] = stacked(products)

    def combine(s: Any, members: int) -> Any:
        x, y = (s["x"], s["y"]) if centred else (0.0, 0.0)
        return _ratio(s["xy"] - x * y, np.sqrt((s["xx"] - x * x) * (s["yy"] - y * y)))

    names = ("xy", "xx", "yy", "x", "y") if centred else ("xy", "xx", "yy")
    score = Score("acc", "anomaly correlation", names, combine, "1", {"centred": str(centred).lower(), "of": of})
    return aligned.give_back(average(xr.Dataset(terms), score, aligned, dim, options))


# ------------------------------------------------------------------------------------ what the scores share


def pointwise(aligned: Aligned, names: Iterable[str], of: Of = "mean") -> xr.Dataset:
    """Statistics of each point, lazily on dask.

    Parameters
    ----------
    aligned : Aligned
    names : iterable of str
        Of `xmosaic.diagnostics.ensemble.STATISTICS`.
    of : {"mean", "members"}
        "members": each as a single forecast, ``number`` stays.

    Returns
    -------
    Dataset, dims (…, statistic)
    """
    names = list(names)
    forecast = aligned.forecast
    if "number" not in forecast.dims or of == "members":
        forecast = forecast.expand_dims("_member", axis=0)
    else:
        forecast = forecast.rename(number="_member").drop_vars("_member", errors="ignore")
    fields = {}
    for name, values in forecast.data_vars.items():
        if "_member" not in values.dims:
            do = "Score variables with members and those without apart"
            raise DatasetError(explain(f"{name!r} has no members, and others have", got=listed(values.dims), do=do))
        truth = aligned.truth[name]
        if missing := [d for d in values.dims if d not in (*truth.dims, "_member")]:
            truth = truth.expand_dims({d: values.sizes[d] for d in missing})
        fields[name] = xr.apply_ufunc(
            statistics_of,
            in_one_chunk(values, ["_member"]),
            truth.transpose(*(d for d in values.dims if d != "_member")),
            input_core_dims=[["_member"], []],
            output_core_dims=[["statistic"]],
            kwargs={"names": names},
            dask="parallelized",
            output_dtypes=[np.float64],
            dask_gufunc_kwargs={"output_sizes": {"statistic": len(names)}, "allow_rechunk": True},
        )
    return xr.Dataset(fields).assign_coords(statistic=names)


def _score(name: str, forecast: XarrayObject, truth: XarrayObject, dim: Dims, of: Of, options: Options) -> XarrayObject:
    aligned = align(forecast, truth)
    _check_of(of, aligned)
    score = SCORES[name]
    fair = name == "crps" and "number" in aligned.forecast.dims
    needs_two(aligned, fair or "variance" in score.statistics)
    result = average(pointwise(aligned, score.statistics, of), score, aligned, dim, options)
    if "number" in aligned.forecast.dims and name in ("rmse", "bias", "mae"):
        for values in result.data_vars.values():
            values.attrs["of"] = of
    return aligned.give_back(result)


def _check_of(of: str, aligned: Aligned) -> None:
    if of not in ("mean", "members"):
        raise ArgumentError(explain(f"of={of!r} is not known", expected="'mean' or 'members'"))
    if of == "members" and "number" not in aligned.forecast.dims:
        raise DatasetError(explain("This forecast has no members", got=str(tuple(aligned.forecast.dims))))


def needs_two(aligned: Aligned, needed: bool) -> None:
    """Raise where a score is asked of an ensemble and there is none."""
    if needed and aligned.members < 2:
        raise DatasetError(
            explain(
                "The score needs an ensemble",
                got="one member" if "number" in aligned.forecast.dims else "no dimension 'number'",
                expected="at least two members",
                do="For CRPS of one member pass fair=False",
            )
        )


def thresholds(threshold: Any, aligned: Aligned) -> dict[Hashable, Any]:
    """A threshold for each variable: a number, or a field on the forecast's points."""
    given = dict(threshold.data_vars) if isinstance(threshold, xr.Dataset) else threshold
    names = list(aligned.forecast.data_vars)
    each = given if isinstance(given, dict) else dict.fromkeys(names, given)
    if missing := [str(n) for n in names if n not in each]:
        raise ArgumentError(explain(f"No threshold is given for {missing[0]!r}", got=str(list(each))))
    found: dict[Hashable, Any] = {}
    for name in names:
        value = each[name]
        if isinstance(value, xr.DataArray):
            found[name] = same_places(canonical_dims(value)[0], aligned.forecast, "The threshold")
        elif isinstance(value, int | float | np.number) and np.isfinite(value):
            found[name] = float(value)
        else:
            raise ArgumentError(explain(f"threshold={value!r} can't be used", expected="a number or a DataArray"))
    return found


def told(threshold: Any) -> str:
    """A threshold in words, for attributes."""
    if isinstance(threshold, dict):
        return ", ".join(f"{name}: {told(value)}" for name, value in threshold.items())
    return "given field" if isinstance(threshold, xr.DataArray | xr.Dataset) else f"{threshold:g}"


def _climatology_of(climatology: Any, forecast: XarrayObject, aligned: Aligned) -> xr.Dataset:
    """A climatology on the forecast's starts, leads and points."""
    if "dayofyear" in climatology.dims:
        from .baselines import climatology as at_valid_times

        climatology = at_valid_times(climatology, like=forecast)
    like = aligned.forecast.isel(number=0, drop=True) if "number" in aligned.forecast.dims else aligned.forecast
    matched = align(like, climatology)
    if len(matched.forecast.data_vars) < len(like.data_vars) or not matched.found.all():
        raise DatasetError(explain("The climatology doesn't have all of the forecast's variables and times"))
    return matched.truth


def _common(ours: Aligned, theirs: Aligned) -> tuple[Aligned, Aligned]:
    """Two forecasts cut down to the variables, levels, starts and leads that both have."""
    names = [n for n in ours.forecast.data_vars if n in theirs.forecast.data_vars]
    labels = {}
    for dim in ("time", LEAD, "level"):
        if dim in ours.forecast.dims and dim in theirs.forecast.dims:
            there = theirs.forecast.indexes[dim]
            labels[dim] = [x for x in ours.forecast.indexes[dim] if x in there]
            if not labels[dim]:
                raise DatasetError(explain(f"Forecast and baseline have no {dim} in common"))
    if not names:
        raise DatasetError(explain("Forecast and baseline have no variable in common"))

    def cut(one: Aligned) -> Aligned:
        found = one.found.sel({d: v for d, v in labels.items() if d in one.found.dims})
        return Aligned(
            one.forecast[names].sel(labels), one.truth[names].sel(labels), found, one.names, one.single, one.is_array
        )

    ours, theirs = cut(ours), cut(theirs)
    base = same_places(theirs.forecast, ours.forecast, "The baseline")
    found = ours.found & theirs.found
    ours = Aligned(ours.forecast, ours.truth, found, ours.names, ours.single, ours.is_array)
    truth = same_places(theirs.truth, ours.forecast, "The baseline")
    return ours, Aligned(base, truth, found, theirs.names, theirs.single, theirs.is_array)
