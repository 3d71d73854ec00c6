"""Spectra: how much variance is at which scale, and whether a forecast has as much of it as the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr

from ..errors import ArgumentError, explain
from .layout import as_dataset, caller_names, canonical_dims
from .powers import (
    Names,
    Of,
    check_bands,
    check_of,
    check_resolved,
    choose,
    compare,
    described,
    power_of,
    wavenumber_of,
    words,
)
from .transforms import Kind

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)

BANDS = ((0, 0), (1, 4), (5, 20), (21, 60), (61, None))
"""Bands of wavenumbers: the mean, planetary, synoptic and meso scales, and the rest."""


def spectra(
    forecast: Labelled,
    *,
    kind: Kind = "total",
    variables: Names = None,
    of: Of = "members",
    kinetic_energy: bool = True,
) -> Labelled:
    r"""Power per wavenumber of every variable, and kinetic energy of the winds.

    Parameters
    ----------
    forecast : Dataset or DataArray, dims (..., latitude, longitude) or (..., cell)
        Global. The total kind needs even rows with both poles, or half a step off them, or Gaussian rows, or the
        HEALPix mesh; the zonal kind any rows, no mesh. Columns are even.
    kind : {"total", "zonal"}
        Total: over the degree l of spherical harmonics. Zonal: over the number m of waves around a latitude.
    variables : str or iterable of str, optional
        In any dialect; all by default. "kinetic_energy" takes the winds' alone.
    of : {"members", "mean", "spread"}
        Of each member, of the ensemble mean, or of the deviations from it.
    kinetic_energy : bool
        Whether a Dataset with both components of a wind gets their kinetic energy.

    Returns
    -------
    Dataset or DataArray [units squared], dims (..., total_wavenumber) or (..., zonal_wavenumber)
        With coordinate wavelength [km]. Besides the variables `kinetic_energy` [m2 s-2], and of the total kind
        `kinetic_energy_rotational` and `kinetic_energy_divergent`; `10m_kinetic_energy` and so on for the wind at
        10 m. The spread leaves out variables without members.

    Notes
    -----
    With :math:`a_{lm}` the coefficients of orthonormal spherical harmonics,

    .. math:: S_l = \frac{1}{4\pi} \sum_{m=-l}^{l} |a_{lm}|^2, \qquad \sum_l S_l = \overline{f^2},

    the mean square over the sphere, l = 0 included: no density per kilometre, no division by 2l + 1. Kinetic energy
    is half the same sum for the vector harmonics of (u, v), and adds up to the mean of (u² + v²) / 2. Its rotational
    part is that of vorticity, :math:`R^2 |\zeta_{lm}|^2 / (2 l(l+1))` for each harmonic, its divergent part that of
    divergence. Coefficients are exact for fields without degrees above the highest: nlat − 2 with poles (119 for
    121 rows), nlat − 1 without, never more than (nlon − 1) // 2. On HEALPix it is 3 nside − 1, of which those above
    2 nside are not to be relied on.

    The zonal kind is one-sided: :math:`S_m = 2 |F_m|^2`, but :math:`|F_m|^2` for m = 0 and, on an even circle, for
    m = nlon / 2, where there is one wave and not two; then the mean over latitudes by exact cell area. It adds up to
    the area-weighted mean square to rounding.

    The spread is fair: the sum over members of the power of x − mean, divided by M − 1, so that its expectation
    doesn't depend on M. NaN or infinity anywhere in a field makes that field's spectrum NaN, and no other.

    The wavelength is Jeans's, 2πR / √(l (l + 1)), or that at the equator, 2πR / m, with R = 6371.229 km.

    Cost: of the order of nlat · l² per field; a thousandth of a second for 121 × 240, a hundredth for nside 64 on one
    core. One field is in work at a time in float64, so memory doesn't grow with their number.

    References
    ----------
    Boer and Shepherd (1983), https://doi.org/10.1175/1520-0469(1983)040<0164:LSTDTI>2.0.CO;2;
    Jeans (1923), https://doi.org/10.1098/rspa.1923.0015;
    Reinecke and Seljebotn (2013), https://doi.org/10.1051/0004-6361/201321494;
    Górski et al. (2005), https://doi.org/10.1086/427976

    Examples
    --------
    >>> from xmosaic.grid import LatLonGrid
    >>> grid = LatLonGrid.equiangular(12, 7).coordinates()
    >>> wave = np.cos(np.deg2rad(grid["latitude"])) * np.cos(np.deg2rad(grid["longitude"]))
    >>> power = spectra(xr.DataArray(wave, coords=grid, name="temperature"))
    >>> power.values.round(6)
    array([0.      , 0.333333, 0.      , 0.      , 0.      , 0.      ])
    """
    check_of(of)
    obj, names = canonical_dims(forecast)
    if isinstance(obj, xr.Dataset):
        return caller_names(power_of(obj, choose(obj, variables, kinetic_energy), kind, of), names)
    ds = as_dataset(obj)
    power = power_of(ds, choose(ds, variables, False), kind, of)[next(iter(ds.data_vars))]
    return caller_names(power.rename(obj.name), names)


def spectral_slope(power: Labelled, *, between: tuple[int, int]) -> Labelled:
    r"""Slope of the spectrum in a double logarithmic plot.

    Parameters
    ----------
    power : Dataset or DataArray, dims (..., total_wavenumber) or (..., zonal_wavenumber)
        Such as `spectra` gives.
    between : (int, int)
        First and last wavenumber, from 1 up.

    Returns
    -------
    Dataset or DataArray [1]
        Without the wavenumber; NaN where a power is NaN or not above 0.

    Raises
    ------
    DatasetError
        If there is no dimension of wavenumbers.
    ArgumentError
        For a range with fewer than two wavenumbers in it.

    Notes
    -----
    Least squares of log S on log k, every wavenumber of the range counted once. For the power per wavenumber that
    `spectra` gives, it is near −3 between the synoptic scale and some hundreds of kilometres.

    References
    ----------
    Nastrom and Gage (1985), https://doi.org/10.1175/1520-0469(1985)042<0950:ACOAWS>2.0.CO;2

    Examples
    --------
    >>> k = np.arange(20.0)
    >>> power = xr.DataArray(np.maximum(k, 1) ** -3, {"total_wavenumber": k}, name="kinetic_energy")
    >>> round(float(spectral_slope(power, between=(2, 19))), 6)
    -3.0
    """
    dim = wavenumber_of(power)
    first, last = between
    largest = int(power[dim][-1])
    if not 1 <= first < last <= largest:
        raise ArgumentError(
            explain(f"between={between!r} can't be used", expected=f"two wavenumbers from 1 to {largest}, ascending")
        )
    chosen = power.sel({dim: slice(first, last)})
    x = xr.DataArray(np.log10(chosen[dim].values), {dim: chosen[dim].values})
    weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    chosen = chosen.drop_vars("wavelength", errors="ignore")
    logs: Any = np.log10(chosen.where(chosen > 0))
    slope = (logs * weight).sum(dim, skipna=False)
    text = f"least-squares slope of log power over log {words(dim)}, {first} to {last}"
    return described(slope, "spectral slope", "1", method=text)


# ---------------------------------------------------------------------------------------- against the truth


def spectral_ratio(
    forecast: Labelled,
    truth: xr.Dataset | xr.DataArray,
    *,
    kind: Kind = "total",
    dim: Names = None,
    variables: Names = None,
    of: Of = "members",
) -> Labelled:
    """Power of the forecast over the truth's, per wavenumber: below 1 where it is too smooth.

    Parameters
    ----------
    forecast, truth : Dataset or DataArray
        Aligned by valid time, see `layout.align`; same grid.
    kind, variables, of
        See `spectra`. Of the mean: how much the mean is smoothed. Of the spread: the spread's power over the
        truth's own, which stays below 1.
    dim : str or iterable of str, optional
        Averaged over; time and number by default.

    Returns
    -------
    Dataset or DataArray [1], dims (..., total_wavenumber) or (..., zonal_wavenumber)
        NaN where the truth has no power: below 2.2e-16 of its total. How many, stands in the attribute
        `without_power`, unless the input is lazy.

    Notes
    -----
    Numerator and denominator are averaged over the same starts and leads, those that have a truth, then divided. A
    mean of ratios would be biased upward where power varies. A NaN field among those averaged gives NaN.

    References
    ----------
    Rasp et al. (2024), https://doi.org/10.1029/2023MS004019

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()[["temperature"]].isel(time=slice(2)).sel(level=500)
    >>> ratio = spectral_ratio(2 * ds, ds)["temperature"]  # twice the amplitude, four times the power
    >>> ratio.dims, round(float(ratio.sel(total_wavenumber=5).mean()), 6)
    (('total_wavenumber',), 4.0)
    """
    powers = compare(forecast, truth, kind, dim, variables, of)
    result = powers.ratio()
    for name, ratio in result.items():
        if ratio.chunks is None:
            known = powers.truth[name].notnull() & powers.forecast[name].notnull()
            ratio.attrs["without_power"] = int((ratio.isnull() & known).sum())
    return powers.aligned.give_back(result)


def spectral_log_error(
    forecast: Labelled,
    truth: xr.Dataset | xr.DataArray,
    *,
    kind: Kind = "total",
    dim: Names = None,
    variables: Names = None,
    of: Of = "members",
    between: tuple[int, int | None] = (1, None),
) -> Labelled:
    r"""Integrated log power error: how far the spectrum is from the truth's, in one number.

    Parameters
    ----------
    forecast, truth, kind, dim, variables, of
        See `spectral_ratio`.
    between : (int, int or None)
        First and last wavenumber. On HEALPix 2 nside is a good last one.

    Returns
    -------
    Dataset or DataArray [dB]
        0 for a perfect spectrum; infinite where the forecast has no power at all in a bin.

    Notes
    -----
    .. math:: E = \sqrt{\frac{1}{K} \sum_k (10 \log_{10} S^f_k / S^o_k)^2}

    Every wavenumber counts once, those where the truth has no power not at all. It says nothing of phase.

    References
    ----------
    Gray and Markel (1976), https://doi.org/10.1109/TASSP.1976.1162849

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()[["temperature"]].isel(time=slice(2)).sel(level=500)
    >>> round(float(spectral_log_error(2 * ds, ds)["temperature"].mean()), 4)
    6.0206
    """
    powers = compare(forecast, truth, kind, dim, variables, of)
    return powers.aligned.give_back(powers.log_error(between))


def band_rmse(
    forecast: Labelled,
    truth: xr.Dataset | xr.DataArray,
    *,
    kind: Kind = "total",
    bands: Sequence[tuple[int, int | None]] = BANDS,
    dim: Names = None,
    variables: Names = None,
    of: Literal["members", "mean"] = "members",
) -> Labelled:
    """Root mean square error by band of wavenumbers.

    Parameters
    ----------
    forecast, truth, kind, dim, variables
        See `spectral_ratio`.
    bands : sequence of (int, int or None)
        First and last wavenumber of each; None: to the highest.
    of : {"members", "mean"}
        Error of each member, squares averaged; or of the ensemble mean.

    Returns
    -------
    Dataset or DataArray [units of the variable], dims (..., band)
        Coordinates band, such as "5-20", `wavenumber_from` and `wavenumber_to`. NaN for bands beyond the highest
        wavenumber.

    Notes
    -----
    Root of the sum over a band of the spectrum of forecast − truth. Squares of bands that cover all wavenumbers add
    up to the squared error over the sphere; the default ones do, with the error of the global mean as the first.

    References
    ----------
    Boer (1984), https://doi.org/10.1175/1520-0493(1984)112<1183:ASAOPA>2.0.CO;2

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()[["temperature"]].isel(time=slice(2)).sel(level=500)
    >>> error = band_rmse(ds + 1, ds)["temperature"]  # one degree everywhere is wavenumber 0 alone
    >>> error.dims, error.values.round(4).tolist()
    (('band',), [1.0, 0.0, 0.0, 0.0, nan])
    """
    check_of(of, ("members", "mean"))
    checked = check_bands(bands)
    powers = compare(forecast, truth, kind, dim, variables, of, wanted=("error",))
    return powers.aligned.give_back(powers.band_rmse(checked))


def effective_resolution(
    forecast: Labelled,
    truth: xr.Dataset | xr.DataArray,
    *,
    band: tuple[float, float] = (0.5, 2.0),
    consecutive: int = 3,
    kind: Kind = "total",
    dim: Names = None,
    variables: Names = None,
    of: Of = "members",
    between: tuple[int, int | None] = (1, None),
) -> Labelled:
    """Wavelength from which on the forecast's power leaves a band around the truth's.

    Parameters
    ----------
    forecast, truth, kind, dim, variables, of
        See `spectral_ratio`.
    band : (float, float)
        Lowest and highest ratio that counts as resolved.
    consecutive : int
        So many wavenumbers in a row lie outside, the first of them counts: one that sticks out is noise.
    between : (int, int or None)
        First and last wavenumber that are looked at.

    Returns
    -------
    Dataset or DataArray [km]
        NaN where the ratio never leaves the band: all that the grid holds is resolved. Also where there is no ratio.

    Notes
    -----
    Wavenumbers at which the truth has no power are not outside. A departure within the last `consecutive` − 1
    wavenumbers is not seen. With one start the ratio at the first few wavenumbers is mostly sampling: average over
    starts, or let `between` begin later.

    References
    ----------
    Skamarock (2004), https://doi.org/10.1175/MWR2830.1;
    Klaver et al. (2020), https://doi.org/10.1002/asl.952

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()[["temperature"]].isel(time=slice(2)).sel(level=500)
    >>> effective_resolution(ds, ds)["temperature"].dims
    ()
    """
    check_resolved(band, consecutive)
    powers = compare(forecast, truth, kind, dim, variables, of)
    return powers.aligned.give_back(powers.resolution(band, consecutive, between))


def coherence(
    forecast: Labelled,
    truth: xr.Dataset | xr.DataArray,
    *,
    dim: Names = None,
    variables: Names = None,
    of: Literal["members", "mean"] = "members",
) -> Labelled:
    r"""Squared coherence of forecast and truth per total wavenumber: 1 where phases agree.

    Parameters
    ----------
    forecast, truth, dim, variables
        See `spectral_ratio`.
    of : {"members", "mean"}
        Of each member, or of the ensemble mean.

    Returns
    -------
    Dataset or DataArray [1], dims (..., total_wavenumber)
        From 0 to 1; NaN where either has no power.

    Notes
    -----
    .. math:: C_l = \frac{|\sum a^f_{lm} \overline{a^o_{lm}}|^2}{\sum |a^f_{lm}|^2 \sum |a^o_{lm}|^2}

    with sums over orders m, time and number. Of real fields the sum in the numerator is real, so this is the squared
    correlation of the parts of degree l; a forecast of opposite sign has 1 as well. It is had from three spectra, of
    the forecast, the truth and their difference: 2 Σ a^f a^o = S^f + S^o − S^(f−o). Two independent fields of noise
    have an expectation of 1 / (2l + 1), not 0; n of them averaged 1 / n of that.

    References
    ----------
    Boer (1984), https://doi.org/10.1175/1520-0493(1984)112<1183:ASAOPA>2.0.CO;2

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()[["temperature"]].isel(time=slice(2)).sel(level=500)
    >>> shared = coherence(2 * ds, ds)["temperature"]
    >>> round(float(shared.isel(total_wavenumber=slice(1, None)).min()), 6)
    1.0
    """
    check_of(of, ("members", "mean"))
    powers = compare(forecast, truth, "total", dim, variables, of, wanted=("forecast", "truth", "error"))
    return powers.aligned.give_back(powers.coherence())


def spectral_error(
    forecast: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    kind: Kind = "total",
    bands: Sequence[tuple[int, int | None]] = BANDS,
    band: tuple[float, float] = (0.5, 2.0),
    consecutive: int = 3,
    dim: Names = None,
    variables: Names = None,
    of: Literal["members", "mean"] = "members",
) -> xr.Dataset:
    """All that spectra say of a forecast's errors, each field transformed once for all of it.

    Parameters
    ----------
    forecast, truth, kind, dim, variables
        See `spectral_ratio`.
    bands
        See `band_rmse`.
    band, consecutive
        See `effective_resolution`.
    of : {"members", "mean"}
        Of each member, or of the ensemble mean.

    Returns
    -------
    Dataset
        `<variable>_log_error` [dB] and `<variable>_effective_resolution` [km] of variables and kinetic energy;
        `<variable>_band_rmse` [its units], dims (..., band), and of the total kind
        `<variable>_coherence` [1], dims (..., total_wavenumber), of variables.

    Notes
    -----
    Estimators stand with `spectral_log_error`, `band_rmse`, `effective_resolution` and `coherence`. On dask arrays
    compute the result in one go, so that spectra are shared.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()[["temperature"]].isel(time=slice(2)).sel(level=500)
    >>> sorted(spectral_error(ds, ds).data_vars)
    ['temperature_band_rmse', 'temperature_coherence', 'temperature_effective_resolution', 'temperature_log_error']
    """
    check_of(of, ("members", "mean"))
    checked = check_bands(bands)
    check_resolved(band, consecutive)
    powers = compare(forecast, truth, kind, dim, variables, of, wanted=("forecast", "truth", "error"))
    results = {
        "log_error": powers.log_error((1, None)),
        "effective_resolution": powers.resolution(band, consecutive, (1, None)),
        "band_rmse": powers.band_rmse(checked),
    }
    if kind == "total":
        results["coherence"] = powers.coherence()
    named = [ds.rename({name: f"{name}_{what}" for name in ds.data_vars}) for what, ds in results.items()]
    aligned = powers.aligned
    if aligned.is_array and aligned.single is None:
        named = [ds.rename({n: str(n).removeprefix("unnamed_") for n in ds.data_vars}) for ds in named]
    return caller_names(xr.merge(named, combine_attrs="override", compat="override", join="outer"), aligned.names)
