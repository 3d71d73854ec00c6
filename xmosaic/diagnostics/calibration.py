"""Calibration: rank histogram, Brier score and reliability of events, energy score."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import numpy as np
import xarray as xr

from ..errors import ArgumentError, explain
from .ensemble import ranks_of, share_beyond
from .layout import Aligned, align, in_one_chunk, space_dims, weights_for
from .scores import Dims, XarrayObject, needs_two, thresholds, told
from .statistics import Options, Score, average, check_options, described, nan_error, reduced_dims, stacked


def rank_histogram(forecast: XarrayObject, truth: XarrayObject, dim: Dims = None, **options: Unpack[Options]) -> Any:
    """Rank of the truth among the members: flat where they can't be told apart.

    The rank is the number of members below the truth, 0 … M. A truth equal to k members counts 1/(k + 1) in each of
    the ranks it could have, so nothing is drawn at random (Hamill 2001).

    Parameters
    ----------
    forecast, truth, dim, **options
        See `xmosaic.diagnostics.rmse`; without ``confidence``.

    Returns
    -------
    Dataset or DataArray [1], dims as the forecast's less `dim` and number, and rank
        Relative frequency by area; sums to one, 1/(M + 1) each if flat. ``nan_policy="propagate"`` makes a histogram
        with a NaN in it NaN.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    References
    ----------
    Hamill, T. (2001). Interpretation of rank histograms for verifying ensemble forecasts. Mon. Weather Rev. 129.
    doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> rank_histogram(members, truth).values
    array([0., 1., 0., 0.])
    """
    aligned = align(forecast, truth)
    needs_two(aligned, True)
    _without_confidence(options)
    bins = aligned.members + 1
    found = {}
    for name, values in aligned.forecast.data_vars.items():
        ranks = _with_members(ranks_of, values, aligned.truth[name], "rank_term", 2, np.int32)
        missing = (ranks.isel(rank_term=0) < 0).transpose(*(d for d in ranks.dims if d != "rank_term"))
        found[name] = _histogram(name, ranks, missing, aligned, dim, bins, options, _count_ranks)
    result = xr.Dataset(found).rename(bin="rank").assign_coords(rank=("rank", np.arange(bins), _RANK))
    score = Score("rank_histogram", "rank histogram", (), lambda s, m: s, "1")
    return aligned.give_back(described(result, score, aligned, reduced_dims(aligned, dim), options))


_RANK = {"long_name": "number of members below the truth", "units": "1"}


def reliability(
    forecast: XarrayObject,
    truth: XarrayObject,
    threshold: Any,
    dim: Dims = None,
    *,
    bins: int | None = None,
    event: Literal["above", "below"] = "above",
    **options: Unpack[Options],
) -> Any:
    """Reliability diagram of an event: how often it happens where it is forecast with probability p.

    p is the share of members beyond the threshold.

    Parameters
    ----------
    forecast, truth, dim, **options
        See `xmosaic.diagnostics.rmse`; without ``confidence``.
    threshold : float, DataArray, Dataset or dict of str to either
        In the variable's units; one for all variables or one for each.
    bins : int, optional
        Number of equal bins of p; by default one for each share that M members can have, at most 11.
    event : {"above", "below"}
        Strictly above the threshold, or not above it.

    Returns
    -------
    Dataset or DataArray [1], dims as the forecast's less `dim` and number, and quantity, bin
        quantity: "forecast_probability" (mean in the bin), "observed_frequency", "share" (of all forecasts, by area).
        NaN where a bin is empty. Coordinates bin_from, bin_to.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    References
    ----------
    Bröcker, J. & Smith, L. (2007). Increasing the reliability of reliability diagrams. Weather Forecast. 22.
    doi:10.1175/WAF993.1

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> fc = ds.mosaic.forecast("1D", members=2, time="2012-05-10", progress=False)
    >>> result = fc.mosaic.reliability(ds, 280.0)["2m_temperature"]
    >>> result.dims, result["quantity"].values.tolist()
    (('quantity', 'prediction_timedelta', 'bin'), ['forecast_probability', 'observed_frequency', 'share'])
    """
    aligned = align(forecast, truth)
    _without_confidence(options)
    count = min(aligned.members + 1, 11) if bins is None else bins
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 2:
        raise ArgumentError(explain(f"bins={bins!r} can't be used", expected="an integer of at least 2"))
    edges = np.linspace(0, 1, count + 1)
    found = {}
    for name, (share, happened) in _events(aligned, threshold, event).items():
        pairs = stacked({"forecast": share, "truth": happened}, "pair")
        missing = pairs.isnull().any("pair")
        sums = _histogram(name, pairs, missing, aligned, dim, 3 * count, options, _count_events)
        weight, p, o = (sums.isel(bin=slice(k * count, (k + 1) * count)) for k in range(3))
        full = weight.where(weight > 0)
        parts = {"forecast_probability": p / full, "observed_frequency": o / full, "share": weight}
        found[name] = stacked(parts, "quantity").transpose("quantity", ...)
    result = xr.Dataset(found).assign_coords(bin_from=("bin", edges[:-1]), bin_to=("bin", edges[1:]))
    about = {"event": event, "threshold": told(threshold)}
    score = Score("reliability", f"reliability of {event} {told(threshold)}", (), lambda s, m: s, "1", about)
    return aligned.give_back(described(result, score, aligned, reduced_dims(aligned, dim), options))


def brier(
    forecast: XarrayObject,
    truth: XarrayObject,
    threshold: Any,
    dim: Dims = None,
    *,
    event: Literal["above", "below"] = "above",
    fair: bool = True,
    **options: Unpack[Options],
) -> Any:
    """Brier score ⟨(p − o)²⟩ of an event, p the share of members beyond the threshold, o = 1 where it happens.

    Fair: less p(1 − p)/(M − 1), which is what the finite ensemble adds (Ferro et al. 2008).

    Parameters
    ----------
    forecast, truth, dim, **options
        See `xmosaic.diagnostics.rmse`.
    threshold, event
        See `reliability`.
    fair : bool

    Returns
    -------
    Dataset or DataArray [1]
        0 is perfect.

    Raises
    ------
    DatasetError
        For fewer than two members where the score needs an ensemble, or where forecast and truth don't go together.
    ArgumentError
        For an option that can't be used.

    References
    ----------
    Ferro, C., Richardson, D. & Weigel, A. (2008). On the effect of ensemble size on the discrete and continuous ranked
    probability scores. Meteorol. Appl. 15. doi:10.1002/met.45

    Examples
    --------
    >>> members, truth = xr.DataArray([1.0, 2.0, 3.0], dims="number"), xr.DataArray(1.5)
    >>> round(brier(members, truth, 1.8, fair=False).item(), 6)  # two of three members, and it doesn't happen: (2/3)²
    0.444444
    >>> round(brier(members, truth, 1.8).item(), 6)
    0.333333
    """
    aligned = align(forecast, truth)
    needs_two(aligned, fair)
    terms = {}
    for name, (share, happened) in _events(aligned, threshold, event).items():
        variance = (share * (1 - share)).where(happened.notnull())
        terms[name] = stacked({"square": (share - happened) ** 2, "variance": variance})

    def combine(s: Any, members: int) -> Any:
        return s["square"] - (s["variance"] / (members - 1) if fair else 0.0)

    about = {"fair": str(fair).lower(), "event": event, "threshold": told(threshold)}
    score = Score("brier", f"Brier score of {event} {told(threshold)}", ("square", "variance"), combine, "1", about)
    return aligned.give_back(average(xr.Dataset(terms), score, aligned, dim, options))


def energy_score(
    forecast: XarrayObject,
    truth: XarrayObject,
    dim: Dims = None,
    *,
    over: Dims = None,
    fair: bool = True,
    **options: Unpack[Options],
) -> Any:
    """Energy score: the CRPS of whole fields, with the root mean square distance over space for the magnitude.

    ⟨‖xᵢ − y‖⟩ − ½⟨‖xᵢ − xⱼ‖⟩, ‖x‖² the weighted mean of x² over `over`; the second mean over pairs of different
    members if fair. Sees whether the members' patterns are right, not only their values point by point. Cost: M²
    products of fields.

    Parameters
    ----------
    forecast, truth, **options
        See `xmosaic.diagnostics.rmse`. ``nan_policy="omit"`` isn't there: a field with a hole has no distance.
    dim : str, iterable of hashable, ... or None
        Dimensions to average over afterwards, by default time.
    over : str or iterable of hashable, optional
        Dimensions of one field; by default space.
    fair : bool

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
    Gneiting, T. & Raftery, A. (2007). Strictly proper scoring rules, prediction, and estimation. JASA 102.
    doi:10.1198/016214506000001437

    Examples
    --------
    >>> fields = xr.DataArray([[0.0, 0.0], [3.0, 4.0]], dims=("number", "place"))
    >>> truth = xr.zeros_like(fields.isel(number=0))
    >>> round(energy_score(fields, truth, over="place", fair=False).item(), 6)  # 1.25 / √2: a mean over places
    0.883883
    """
    aligned = align(forecast, truth)
    needs_two(aligned, fair)
    if options.get("nan_policy") == "omit":
        raise ArgumentError(explain("nan_policy='omit' has no meaning for whole fields", do="Fill or select first"))
    inner = list(space_dims(aligned.forecast)) if over is None else reduced_dims(aligned, over)
    outer = [d for d in ("time",) if d in aligned.forecast.dims] if dim is None else reduced_dims(aligned, dim)
    if not inner or set(inner) & set(outer):
        what = "A field and what is averaged over must be different dimensions"
        raise ArgumentError(explain(what, got=f"over={inner}, dim={outer}"))
    weights = weights_for(aligned.forecast, options.get("weights", "area"))
    if weights is not None and not set(weights.dims) <= set(inner):
        weights = None
    distances = {n: _distances(f, aligned.truth[n], inner, weights) for n, f in aligned.forecast.data_vars.items()}
    pointwise = xr.Dataset(distances).assign_coords(statistic=["to_truth", "to_each_other"])

    def combine(s: Any, members: int) -> Any:
        return s["to_truth"] - s["to_each_other"] * (1.0 if fair else (members - 1) / members)

    about = {"fair": str(fair).lower(), "distance_over": ", ".join(str(aligned.names.get(d, d)) for d in inner)}
    score = Score("energy_score", "energy score", ("to_truth", "to_each_other"), combine, attrs=about)
    plain: Options = {**options, "weights": None}
    return aligned.give_back(average(pointwise, score, aligned, outer, plain))


def _distances(
    values: xr.DataArray, truth: xr.DataArray, inner: list[str], weights: xr.DataArray | None
) -> xr.DataArray:
    """Mean distance to the truth and half the mean distance of two different members: (…, statistic)."""
    if weights is None:
        size = float(np.prod([values.sizes[d] for d in inner]))
        weights = xr.DataArray(np.full([values.sizes[d] for d in inner], 1 / size), dims=inner)
    else:
        further = [d for d in inner if d not in weights.dims]
        scale = float(np.prod([values.sizes[d] for d in further] or [1]))
        weights = weights.expand_dims({d: values.sizes[d] for d in further}) / (scale * weights.sum())
    return xr.apply_ufunc(
        _distances_of,
        in_one_chunk(values if "number" in values.dims else values.expand_dims("number"), ["number", *inner]),
        in_one_chunk(truth, inner),
        weights.transpose(*inner).drop_vars(list(weights.coords)),
        input_core_dims=[["number", *inner], inner, inner],
        output_core_dims=[["statistic"]],
        vectorize=True,
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"statistic": 2}, "allow_rechunk": True},
    )


def _distances_of(members: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    errors = (members.astype(np.float64) - truth).reshape(len(members), -1) * np.sqrt(weights.ravel())
    to_truth = np.sqrt((errors**2).sum(axis=1)).mean()
    # distances don't change when the mean is taken out, but their differences of squares keep more digits
    deviations = errors - errors.mean(axis=0)
    products = deviations @ deviations.T
    squares = np.diag(products)
    pairs = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0.0))
    np.fill_diagonal(pairs, 0.0)
    return np.array([to_truth, pairs.sum() / 2 / max(len(members) * (len(members) - 1), 1)])


# ------------------------------------------------------------------------------------------ events and counts


def _events(aligned: Aligned, threshold: Any, event: str) -> dict[Any, tuple[xr.DataArray, xr.DataArray]]:
    """Share of the members in which the event happens, and whether it does in the truth; NaN where one is."""
    if event not in ("above", "below"):
        raise ArgumentError(explain(f"event={event!r} is not known", expected="'above' or 'below'"))
    limits = thresholds(threshold, aligned)
    found = {}
    for name, values in aligned.forecast.data_vars.items():
        truth, limit = aligned.truth[name], limits[name]
        field = xr.zeros_like(truth, dtype=np.float64) + limit
        share = _with_members(share_beyond, values, field, None, 0, np.float64)
        happened = xr.where(truth.isnull() | field.isnull(), np.nan, truth > limit).transpose(*share.dims)
        found[name] = (share, happened) if event == "above" else (1 - share, 1 - happened)
    return found


def _with_members(
    function: Any, values: xr.DataArray, field: xr.DataArray, new: str | None, size: int, dtype: Any
) -> xr.DataArray:
    if "number" not in values.dims:
        values = values.expand_dims("number")
    return xr.apply_ufunc(
        function,
        in_one_chunk(values, ["number"]),
        field.transpose(*(d for d in values.dims if d != "number")),
        input_core_dims=[["number"], []],
        output_core_dims=[[new] if new else []],
        dask="parallelized",
        output_dtypes=[dtype],
        dask_gufunc_kwargs={"output_sizes": {new: size} if new else {}, "allow_rechunk": True},
    )


def _histogram(
    name: Any,
    terms: xr.DataArray,
    missing: xr.DataArray,
    aligned: Aligned,
    dim: Dims,
    bins: int,
    options: Options,
    count: Any,
) -> xr.DataArray:
    """Weighted counts per bin over `dim`, of all that is counted the share; block by block on dask."""
    dims = [d for d in reduced_dims(aligned, dim) if d in missing.dims]
    weights = weights_for(aligned.forecast, options.get("weights", "area"))
    policy = options.get("nan_policy", "propagate")
    w = aligned.found.astype(np.float64)
    if weights is not None:
        w = w * weights
    w = w.broadcast_like(missing).transpose(*missing.dims)
    if policy == "raise":
        missing = xr.apply_ufunc(
            _raise_missing, missing, w > 0, str(name), dask="parallelized", output_dtypes=[bool], keep_attrs=False
        )
    axes = tuple(missing.get_axis_num(d) for d in dims)
    kept = [d for d in missing.dims if d not in dims]
    counts = _blockwise(count, terms, missing, w, axes, bins)
    sums = xr.DataArray(counts, dims=[*kept, "bin"], coords={d: missing.coords[d] for d in kept if d in missing.coords})
    hidden = xr.where(missing, w, 0.0).sum(dims) if policy == "propagate" else xr.zeros_like(sums.isel(bin=0))
    total = w.where(~missing, 0.0).sum(dims)
    # a histogram with holes isn't one, unless the holes are asked for
    return (sums / total.where((total > 0) & (hidden == 0))).transpose(..., "bin")


def _blockwise(
    count: Any, terms: xr.DataArray, missing: xr.DataArray, weights: xr.DataArray, axes: tuple[int, ...], bins: int
) -> Any:
    def of_block(t: np.ndarray, m: np.ndarray, w: np.ndarray) -> np.ndarray:
        kept = [a for a in range(m.ndim) if a not in axes]
        order = [*kept, *axes]
        rows = int(np.prod([m.shape[a] for a in kept] or [1]))
        flat = [a.transpose(order).reshape(rows, -1) for a in (m, w)]
        pairs = t.transpose([*order, m.ndim]).reshape(rows, -1, t.shape[-1])
        counts = count(pairs, np.where(flat[0], 0.0, flat[1]), bins)
        return counts.reshape([1 if a in axes else m.shape[a] for a in range(m.ndim)] + [bins])

    if missing.chunks is None:
        counts = of_block(terms.values, missing.values, weights.values)
        return counts.squeeze(axes) if axes else counts
    import dask.array as da

    index, term, new = tuple(range(missing.ndim)), missing.ndim, missing.ndim + 1
    whole = terms.data.rechunk({missing.ndim: -1})
    result = da.blockwise(
        of_block,
        (*index, new),
        whole,
        (*index, term),
        missing.data,
        index,
        da.asarray(weights.data),
        index,
        adjust_chunks=dict.fromkeys(axes, 1),
        new_axes={new: bins},
        dtype=np.float64,
        concatenate=True,
    )
    return result.sum(axis=axes)


def _count_ranks(terms: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """(row, point, (below, equal)) → (row, rank)."""
    rows = np.arange(len(terms))[:, None] * (bins + 1)
    below, equal = np.maximum(terms[..., 0], 0), np.maximum(terms[..., 1], 0)
    if not equal.any():
        counts = np.bincount((rows + below).ravel(), weights.ravel(), minlength=len(terms) * (bins + 1))
        return counts.reshape(len(terms), bins + 1)[:, :bins]
    share = (weights / (equal + 1)).ravel()
    size = len(terms) * (bins + 1)
    # a share in each rank from `below` to `below + equal`: the running sum of a step up and a step down
    steps = np.bincount((rows + below).ravel(), share, minlength=size)
    steps -= np.bincount((rows + below + equal + 1).ravel(), share, minlength=size)
    return np.maximum(steps.reshape(len(terms), bins + 1).cumsum(axis=1)[:, :bins], 0.0)


def _count_events(terms: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """(row, point, (probability, happened)) → (row, 3 · bin): weights, probabilities and events summed."""
    count = bins // 3
    p, o = np.nan_to_num(terms[..., 0]), np.nan_to_num(terms[..., 1])
    # members' shares such as 3/10 lie on edges up to rounding
    at = np.minimum((p * count + 1e-9).astype(np.int64), count - 1) + np.arange(len(terms))[:, None] * count
    sums = [
        np.bincount(at.ravel(), (weights * x).ravel(), minlength=len(terms) * count).reshape(len(terms), count)
        for x in (np.ones_like(p), p, o)
    ]
    return np.concatenate(sums, axis=1)


def _raise_missing(missing: np.ndarray, counts: np.ndarray, name: str) -> np.ndarray:
    if (bad := missing & counts).any():
        raise nan_error(name, int(bad.sum()), bad.size)
    return missing


def _without_confidence(options: Options) -> None:
    check_options(options)
    if options.get("confidence") is not None:
        raise ArgumentError(explain("A histogram has no confidence interval here", do="Leave out confidence="))
