"""Is a forecast physical: mass, water and energy against the start; wind and temperature against geopotential."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..grid import LatLonGrid, normalise_latlon
from ..healpix import locate_mesh, no_mesh
from ..units import conversion
from ..variables import CATALOGUE, cf_attributes, listed
from .layout import LEAD, align, as_dataset, caller_names, canonical_dims, require_dims, space_dims, weights_for

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)

# Constants of ECMWF's model, so that its states come out balanced: IFS Documentation CY47R3, Part IV: Physical
# Processes (2021), chapter 12, doi:10.21957/eyrpir4vj.
GRAVITY = 9.80665
"""Acceleration of gravity [m s-2]."""
DRY_GAS_CONSTANT = 287.0597
"""Gas constant of dry air [J kg-1 K-1]."""
VAPOUR_GAS_CONSTANT = 461.5250
"""Gas constant of water vapour [J kg-1 K-1]."""
HEAT_CAPACITY = 3.5 * DRY_GAS_CONSTANT
"""Heat capacity of dry air at constant pressure [J kg-1 K-1]."""
LATENT_HEAT = 2.5008e6
"""Latent heat of vaporisation at 0 °C [J kg-1]."""
EARTH_RADIUS = 6371229.0
"""Radius of the sphere [m]: shape 6 of GRIB 2, code table 3.2."""
ROTATION_RATE = 7.292115e-5
"""Angular velocity of the Earth [s-1]: IERS Conventions (2010), Technical Note 36, table 1.2."""

_MASS_NAME = {"surface_pressure": "surface pressure", "mean_sea_level_pressure": "sea-level pressure"}
_MASS_PROXY = {
    "surface_pressure": "Area-mean surface pressure stands for the mass of the air: divided by g it is the hydrostatic "
    "mass of dry air and vapour per area, so that evaporation and precipitation change it too.",
    "mean_sea_level_pressure": "Area-mean sea-level pressure stands for the mass of the air; it is not mass: over land "
    "it is surface pressure reduced with a temperature, so that it changes with temperature too, and it counts vapour.",
}


# ------------------------------------------------------------------------------------------------------ against start


def mass_drift(
    forecast: xr.Dataset | xr.DataArray, start: xr.Dataset | xr.DataArray | None = None, variable: str | None = None
) -> xr.Dataset:
    """Change of area-mean surface pressure, or of sea-level pressure where there is none, since the start.

    ⟨p⟩(lead) − ⟨p⟩(start), where ⟨·⟩ is the mean weighted by exact cell area, in float64; percent are of ⟨p⟩(start).

    Parameters
    ----------
    forecast : Dataset or DataArray [Pa], dims (…, latitude, longitude) or (…, cell)
        In any common dialect, with or without start, lead and member. NaN anywhere in a field makes its mean NaN.
    start : Dataset or DataArray, optional
        Analyses along time on the same points. By default the forecast is compared with its own lead 0, or with its
        first lead where it has no lead 0; attribute `reference` says which.
    variable : str, optional
        ``"surface_pressure"`` or ``"mean_sea_level_pressure"``, in any dialect.

    Returns
    -------
    Dataset [hPa and %], dims as the forecast's without space
        ``mass_drift`` and ``mass_drift_percent`` of each member; ``mass_drift_mean``, ``…_min``, ``…_max`` and
        ``mass_drift_percent_mean``, ``…_min``, ``…_max`` over members, without number.

    Raises
    ------
    DatasetError
        If there is no pressure at the surface or at sea level, or forecast and start don't go together.

    Notes
    -----
    Cost: one pass over one field per start, member and lead. Surface pressure stands for mass as in Trenberth and Smith
    2005: its global mean changes by about 0.3 hPa in the course of the year, all of it vapour.

    References
    ----------
    Trenberth and Smith 2005, doi:10.1175/JCLI-3299.1

    Examples
    --------
    >>> import xmosaic
    >>> msl = xmosaic.open_sample()["mean_sea_level_pressure"]
    >>> forecast = msl.isel(time=[0]).expand_dims(prediction_timedelta=[np.timedelta64(12, "h")], axis=1) + 50.0
    >>> mass_drift(forecast, start=msl)["mass_drift"].round(6).values
    array([[0.5]])
    """
    ours, names = canonical_dims(as_dataset(forecast))
    ours, reference = _with_start(ours[[_find_pressure(ours, variable)[1].name]], start)
    return caller_names(_mass(ours, reference, variable), names)


def drift(quantity: Labelled, start: Labelled | None = None) -> Labelled:
    """Change of area means since the start.

    Parameters
    ----------
    quantity : Dataset or DataArray, dims (…, prediction_timedelta)
        A forecast's, such as `total_energy` gives.
    start : Dataset or DataArray, optional
        The same of analyses, along time. By default the quantity's own lead 0, or its first lead where it has none.

    Returns
    -------
    Dataset or DataArray, as the quantity
        Names end in ``_drift``; attribute `reference` says what was subtracted.

    Raises
    ------
    DatasetError
        Without `start`, for leads that aren't timedeltas or come twice, so that none is the first.

    Examples
    --------
    >>> leads = np.array([0, 12, 24], "timedelta64[h]").astype("timedelta64[ns]")
    >>> water = xr.DataArray([20.0, 21.0, 19.5], {"prediction_timedelta": leads}, name="total_column_water")
    >>> drift(water).values
    array([ 0. ,  1. , -0.5])
    """
    ours, names = canonical_dims(as_dataset(quantity))
    ours, reference = _with_start(ours, start)
    result = caller_names(_difference(ours, reference, _reference_text(ours, reference)), names)
    return result if isinstance(quantity, xr.Dataset) else result[next(iter(result.data_vars))]


def conservation(forecast: xr.Dataset, start: xr.Dataset | None = None) -> xr.Dataset:
    """Everything of mass, water and energy that the variables allow, with its change since the start.

    Parameters
    ----------
    forecast : Dataset
        In any common dialect. Pressure at the surface or at sea level, specific humidity, temperature, wind and
        geopotential at the surface are used where they are.
    start : Dataset, optional
        Analyses along time, as in `mass_drift`.

    Returns
    -------
    Dataset, dims as the forecast's without level and space
        What `mass_drift`, `total_column_water`, `dry_mass` and `total_energy` give, and the change of the latter three
        under names that end in ``_drift``. Attribute `left_out` says what isn't there and why.

    Raises
    ------
    DatasetError
        If nothing that is conserved is in the forecast.

    Notes
    -----
    Cost: one pass over the fields; each level of a column is added in turn, in float64.

    Examples
    --------
    >>> import xmosaic
    >>> ds = xmosaic.open_sample()
    >>> forecast = ds.isel(time=[0]).expand_dims(prediction_timedelta=[np.timedelta64(12, "h")], axis=1)
    >>> conservation(forecast, start=ds).attrs["left_out"]
    'total_column_water: no specific_humidity; dry_mass: no surface_pressure, specific_humidity; latent_energy: ...'
    """
    ours, names = canonical_dims(as_dataset(forecast))
    wanted = [field for name in _USED if (field := _find(ours, name)) is not None]
    if not wanted:
        raise DatasetError(explain("Nothing of this can be summed up", got=listed(ours), expected=listed(_USED)))
    ours, reference = _with_start(ours[[field.name for field in wanted]], start)
    there = {name for name in _USED if _find(ours, name) is not None}
    parts, left_out = [], []
    if {"surface_pressure", "mean_sea_level_pressure"} & there:
        parts.append(_mass(ours, reference, None))
    else:
        left_out.append("mass_drift: no surface_pressure, mean_sea_level_pressure")
    for name, (needs, make) in _QUANTITIES.items():
        if lacking := [need for need in needs if need not in there]:
            left_out.append(f"{name}: no {', '.join(lacking)}")
            continue
        made = as_dataset(make(ours))
        first = None if reference is None else as_dataset(make(reference))
        parts += [made, _difference(made, first, _reference_text(made, first))]
        left_out += [text for text in [made.attrs.pop("left_out", "")] if text]
    result = xr.merge(parts, combine_attrs="override", compat="override", join="exact")
    result.attrs = {"title": "Conservation of mass, water and energy"}
    if left_out:
        result.attrs["left_out"] = "; ".join(left_out)
    return caller_names(result, names)


# ------------------------------------------------------------------------------------------------------------ columns


def total_column_water(forecast: xr.Dataset | xr.DataArray, area_mean: bool = True) -> xr.DataArray:
    """Water vapour of the column, ∫ q dp / g, by trapezoids over the pressure levels.

    Parameters
    ----------
    forecast : Dataset or DataArray
        With specific humidity on pressure levels. Where there is surface pressure too, the column ends at it: q is
        linear in p between levels, and constant below the lowest one. Else it ends at the lowest level, and levels
        below ground count. Nothing is added above the highest level. NaN on a level makes the column NaN.
    area_mean : bool
        Mean over the sphere by exact cell area; else fields.

    Returns
    -------
    DataArray [kg m-2], dims as the forecast's without level, and without space if area_mean

    Raises
    ------
    DatasetError
        If humidity or its levels are missing.

    Notes
    -----
    Cost: one pass; level by level, in float64. Clouds and rain are not in q, so this is vapour alone.

    References
    ----------
    Trenberth and Smith 2005, doi:10.1175/JCLI-3299.1

    Examples
    --------
    >>> q = xr.DataArray([0.0, 0.01], {"level": [500.0, 1000.0]}, name="specific_humidity").expand_dims(cell=12)
    >>> float(total_column_water(q))  # 0.005 × 50000 / g
    25.49290532...
    """
    return _on_columns(forecast, lambda ds: _water(ds, area_mean))


def dry_mass(forecast: xr.Dataset, proxy: bool = False, area_mean: bool = True) -> xr.DataArray:
    """Mass of dry air of the column, p_s/g − ∫ q dp / g.

    Parameters
    ----------
    forecast : Dataset
        With surface pressure, and with specific humidity on pressure levels; see `total_column_water`.
    proxy : bool
        Take sea-level pressure for surface pressure where that isn't there. The vapour is then that between the levels.
    area_mean : bool
        Mean over the sphere by exact cell area; else fields.

    Returns
    -------
    DataArray [kg m-2], dims as the forecast's without level, and without space if area_mean

    Raises
    ------
    DatasetError
        If surface pressure or humidity is missing and no proxy is asked for.

    References
    ----------
    Trenberth and Smith 2005, doi:10.1175/JCLI-3299.1

    Examples
    --------
    >>> q = xr.DataArray([0.0, 0.01], {"level": [500.0, 1000.0]}).expand_dims(cell=12)
    >>> ds = xr.Dataset({"specific_humidity": q, "surface_pressure": ("cell", np.full(12, 1e5))})
    >>> float(dry_mass(ds))
    10171.66922...
    """
    return _on_columns(forecast, lambda ds: _dry(ds, proxy, area_mean))


def total_energy(forecast: xr.Dataset, area_mean: bool = True) -> xr.Dataset:
    """Energy of the column, ∫ (c_p T + ½(u² + v²) + L q) dp / g + Φ_s p_s / g, with each of its terms.

    In hydrostatic balance dΦ = −R T d ln p. By parts, ∫ Φ dp = Φ_s p_s + ∫ R T dp, so that internal and potential
    energy together, ∫ (c_v T + Φ) dp / g, are ∫ c_p T dp / g + Φ_s p_s / g.

    Parameters
    ----------
    forecast : Dataset
        With temperature on pressure levels. Wind, specific humidity, and surface pressure together with geopotential
        at the surface (static: assign it) are used where they are. The column is that of `total_column_water`.
    area_mean : bool
        Mean over the sphere by exact cell area; else fields.

    Returns
    -------
    Dataset [J m-2], dims as the forecast's without level, and without space if area_mean
        ``enthalpy``, ``kinetic_energy``, ``latent_energy``, ``surface_potential_energy`` as far as there are variables,
        and their sum ``total_energy``, whose attribute `terms` names them. Attribute `left_out` names the rest and why.

    Raises
    ------
    DatasetError
        If a variable that it needs is missing or in other units.

    Notes
    -----
    Cost: one pass; level by level, in float64. c_p is that of dry air, L that at 0 °C, R T is without vapour, and ice
    and cloud water are not counted: the sum of a perfect forecast drifts by as much.

    References
    ----------
    Trenberth and Solomon 1994, doi:10.1007/BF00210625

    Examples
    --------
    >>> t = xr.DataArray([250.0, 250.0], {"level": [500.0, 1000.0]}).expand_dims(cell=12)
    >>> energy = total_energy(xr.Dataset({"temperature": t}))
    >>> round(float(energy["enthalpy"] / (250 * HEAT_CAPACITY * 5e4 / GRAVITY)), 12)
    1.0
    """
    return _on_columns(forecast, lambda ds: _energy(ds, area_mean))


# ------------------------------------------------------------------------------------------------------------ balance


def geostrophic_balance(
    forecast: xr.Dataset, level: float | Iterable[float] | None = None, latitude_limit: float = 20.0
) -> xr.Dataset:
    """How far the wind is from the geostrophic one, f k × u_g = −∇Φ, away from the equator.

    The ratio is ``√(Σ w |u − u_g|² / Σ w |u|²)`` over the points poleward of the limit, w the exact cell area.

    Parameters
    ----------
    forecast : Dataset
        With geopotential and both winds on pressure levels, on a global grid with even longitudes or on a HEALPix mesh.
    level : float or sequence of float [hPa], optional
        All by default.
    latitude_limit : float [degrees]
        Points nearer to the equator, where f vanishes, are left out; so are the poles themselves.

    Returns
    -------
    Dataset, dims as the forecast's without space
        ``ageostrophic_ratio`` [1], and the root mean squares it is made of: ``ageostrophic_wind`` and ``wind`` [m s-1].

    Raises
    ------
    DatasetError
        If geopotential, a wind or the level is missing.

    Notes
    -----
    ∇Φ is exact for what the grid resolves: Fourier series along latitudes and along whole meridian circles (which go on
    beyond the pole on the opposite meridian). Rows that are unevenly spaced get differences of second order
    along the meridian; a HEALPix mesh spherical harmonics with three iterations. Attribute `method` says which.
    Cost: four FFTs per field, field by field. Balanced flow has a ratio of about the Rossby number, not 0: curved
    flow is in gradient balance. Noise in Φ raises it, for ∇ amplifies small scales. Compare with the analyses' ratio.

    References
    ----------
    Bonavita 2024, doi:10.1029/2023GL107377

    Examples
    --------
    >>> import xmosaic
    >>> ratio = geostrophic_balance(xmosaic.open_sample(), level=500)["ageostrophic_ratio"]
    >>> ratio.dims, bool((ratio < 0.3).all())
    (('time',), True)
    """
    ours, names = canonical_dims(as_dataset(forecast))
    fields = _select_levels(_need_all(ours, ("geopotential", *_WIND), "Geostrophic balance"), level)
    geometry, fields = _geometry(ours, fields, float(latitude_limit))
    core = list(geometry.dims)
    wind, ageostrophic = xr.apply_ufunc(
        geometry,
        *(fields[name] for name in fields),
        input_core_dims=[core] * 3,
        output_core_dims=[[], []],
        dask="parallelized",
        output_dtypes=[np.float64] * 2,
        dask_gufunc_kwargs={"allow_rechunk": True},
    )
    where = f"poleward of {latitude_limit:g} degrees, without the poles, weighted by exact cell area"
    common = {"units": "m s-1", "cell_methods": "area: root_mean_square", "comment": f"Points {where}."}
    texts = {
        "ageostrophic_ratio": (ageostrophic / wind, "ageostrophic wind over wind", {"units": "1"}),
        "ageostrophic_wind": (ageostrophic, "root mean square of the ageostrophic wind", {}),
        "wind": (wind, "root mean square of the wind", {}),
    }
    result = xr.Dataset(
        {
            name: _bare(field).assign_attrs({"long_name": text, **common, "method": geometry.method, **attrs})
            for name, (field, text, attrs) in texts.items()
        }
    )
    return caller_names(_without_mapping(result), names)


def hydrostatic_residual(forecast: xr.Dataset) -> xr.Dataset:
    """Geopotential thickness of the layers between levels against that of their temperature.

    r = Φ(p₁) − Φ(p₂) − R_d T̄_v ln(p₂/p₁) for p₁ < p₂ next to each other, T̄_v the mean of the two levels: exact for
    virtual temperature linear in ln p. The result is √⟨r²⟩ by exact cell area, and the same of r / (R_d ln(p₂/p₁)).

    Parameters
    ----------
    forecast : Dataset
        With geopotential and temperature on two pressure levels or more. With specific humidity T_v is virtual
        temperature, else it is temperature. With surface pressure, layers that reach below ground are left out.

    Returns
    -------
    Dataset, dims as the forecast's, layer in place of level, without space
        ``hydrostatic_residual`` [m2 s-2] and ``hydrostatic_residual_temperature`` [K]. Coordinates ``level_from`` and
        ``level_to`` [hPa] say which levels a layer is between; layers are numbered downward from 1.

    Raises
    ------
    DatasetError
        If geopotential or temperature is missing, or they share fewer than two levels.

    Notes
    -----
    Cost: one pass, in float64. The residual of analyses isn't 0: temperature is not linear in ln p across a thick
    layer, above all around the tropopause. Compare a forecast with the analyses' number, layer by layer.

    References
    ----------
    Simmons and Burridge 1981, doi:10.1175/1520-0493(1981)109<0758:AEAAMC>2.0.CO;2

    Examples
    --------
    >>> p = xr.DataArray([500.0, 1000.0], {"level": [500.0, 1000.0]}).expand_dims(cell=12)
    >>> warm = xr.Dataset({"geopotential": -DRY_GAS_CONSTANT * 260 * np.log(p / 1000), "temperature": 0 * p + 260})
    >>> float(hydrostatic_residual(warm)["hydrostatic_residual"].max()) < 1e-9
    True
    """
    ours, names = canonical_dims(as_dataset(forecast))
    _need_all(ours, ("geopotential", "temperature"), "The hydrostatic residual")
    z, warm = (_ascending(_need(ours, name, "")).astype(np.float64) for name in ("geopotential", "temperature"))
    humid = _find(ours, "specific_humidity")
    if humid is not None:
        warm = warm * (1 + (VAPOUR_GAS_CONSTANT / DRY_GAS_CONSTANT - 1) * _ascending(humid).astype(np.float64))
    levels = z["level"].values.astype(np.float64)
    if levels.size < 2:
        raise DatasetError(explain("One level has no layer", got=f"{listed(levels)} hPa", expected="two or more"))
    depth = xr.DataArray(DRY_GAS_CONSTANT * np.log(levels[1:] / levels[:-1]), dims="layer")
    residual = _upper(z) - _lower(z) - (_upper(warm) + _lower(warm)) / 2 * depth
    surface = _find(ours, "surface_pressure")
    weights = _weights(residual)
    if surface is not None:
        above = ~(surface < xr.DataArray(levels[1:] * 100, dims="layer"))
        # NaN below ground does no harm, NaN of the surface is passed on
        residual, weights = residual.where(above, 0.0) + 0.0 * surface, weights * above
    total = (residual**2 * weights).sum(space_dims(residual), skipna=False)
    rms = (total / weights.sum(space_dims(residual))) ** 0.5
    return caller_names(_without_mapping(_layers(rms, depth, levels, humid, surface)), names)


def _layers(
    rms: xr.DataArray, depth: xr.DataArray, levels: np.ndarray, humid: xr.DataArray | None, surface: xr.DataArray | None
) -> xr.Dataset:
    kind = "virtual temperature" if humid is not None else "temperature (no specific humidity)"
    ground = "Layers that reach below ground are left out." if surface is not None else "Layers below ground count."
    attrs = {
        "cell_methods": "area: root_mean_square",
        "method": f"trapezoid in ln p of {kind}, weighted by exact cell area",
        "comment": ground,
    }
    about = "geopotential thickness less the hydrostatic one"
    result = xr.Dataset(
        {
            "hydrostatic_residual": _bare(rms).assign_attrs({"long_name": about, "units": "m2 s-2", **attrs}),
            "hydrostatic_residual_temperature": _bare(rms / depth).assign_attrs(
                {"long_name": f"{about}, as temperature of the layer", "units": "K", **attrs}
            ),
        }
    )
    pressure = {"standard_name": "air_pressure", "units": "hPa"}
    return result.assign_coords(
        layer=("layer", np.arange(1, levels.size), {"long_name": "layer between two levels, downward", "units": "1"}),
        level_from=("layer", levels[:-1], {"long_name": "upper level of the layer", **pressure}),
        level_to=("layer", levels[1:], {"long_name": "lower level of the layer", **pressure}),
    )


def _upper(field: xr.DataArray) -> xr.DataArray:
    return field.isel(level=slice(None, -1)).drop_vars("level").rename(level="layer")


def _lower(field: xr.DataArray) -> xr.DataArray:
    return field.isel(level=slice(1, None)).drop_vars("level").rename(level="layer")


# ----------------------------------------------------------------------------------------------------------- gradient


class _LatLonBalance:
    """Root mean squares of wind and ageostrophic wind on plain arrays, dims (..., latitude, longitude).

    Latitudes are ascending, longitudes eastward.
    """

    dims = ("latitude", "longitude")

    def __init__(self, latitude: np.ndarray, weights: np.ndarray, limit: float) -> None:
        self.latitude = np.deg2rad(latitude)
        rows = (np.abs(latitude) >= limit) & (np.abs(latitude) < 90 - 1e-9)
        self.weights = np.where(rows[:, None], weights, 0.0) / weights[rows].sum()
        # rows that don't count would divide by zero
        self.coriolis = np.where(rows, 2 * ROTATION_RATE * np.sin(self.latitude), np.inf)[:, None] * EARTH_RADIUS
        self.cosine = np.where(rows, np.cos(self.latitude), 1.0)[:, None]
        self.angle = self._circle()
        steps = np.diff(self.angle, append=self.angle[0] + 2 * np.pi)
        self.even = bool(np.allclose(steps, steps[0], rtol=0, atol=1e-6))
        along = "Fourier series" if self.even else "differences of second order"
        self.method = f"gradient by Fourier series along latitudes and {along} along meridian circles"

    def _circle(self) -> np.ndarray:
        """Angles along a meridian and back over the pole on the opposite one; a row at a pole stands once."""
        back = self.latitude[::-1][self._back()]
        return np.concatenate([self.latitude, np.pi - back])

    def _back(self) -> np.ndarray:
        return np.abs(self.latitude[::-1]) < np.pi / 2 - 1e-9

    def __call__(self, z: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """√Σ w |u|² and √Σ w |u − u_g|², dims (...)."""
        return _rms_of_each(self, z, u, v, 2)

    def gradient(self, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """∂/∂latitude and ∂/∂longitude per radian, dims (latitude, longitude)."""
        size = field.shape[-1]
        waves = np.fft.rfft(field, axis=-1)
        number = np.arange(waves.shape[-1])
        # the shortest wave has no slope at its own points: irfft drops its imaginary part
        around = 1j * number * waves
        north = self._northward(waves, np.where(number % 2, -1.0, 1.0))
        return np.fft.irfft(north, size, axis=-1), np.fft.irfft(around, size, axis=-1)

    def _northward(self, waves: np.ndarray, opposite: np.ndarray) -> np.ndarray:
        rows = len(waves)
        circle = np.concatenate([waves, opposite * waves[::-1][self._back()]])
        if not self.even:
            padded = np.concatenate([circle[-1:], circle, circle[:1]])
            angle = np.concatenate([self.angle[-1:] - 2 * np.pi, self.angle, self.angle[:1] + 2 * np.pi])
            return np.gradient(padded, angle, axis=0)[1 : rows + 1]
        size = len(circle)
        number = np.fft.fftfreq(size, 1 / size)
        if size % 2 == 0:
            number[size // 2] = 0
        return np.fft.ifft(1j * number[:, None] * np.fft.fft(circle, axis=0), axis=0)[:rows]


class _MeshBalance:
    """The same on a HEALPix mesh, dims (..., cell)."""

    dims = ("cell",)

    def __init__(self, nside: int, in_rings: np.ndarray, limit: float) -> None:
        import healpy

        self.nside, self.in_rings = nside, in_rings
        latitude = healpy.pix2ang(nside, np.arange(len(in_rings)), lonlat=True)[1]
        rows = np.abs(latitude) >= limit
        self.weights = np.empty(len(in_rings))
        self.coriolis = np.empty(len(in_rings))
        self.weights[in_rings] = rows / rows.sum()
        sine = np.sin(np.deg2rad(latitude))
        self.coriolis[in_rings] = np.where(rows, 2 * ROTATION_RATE * sine, np.inf) * EARTH_RADIUS
        self.cosine = 1.0  # the eastward derivative comes divided by it
        self.method = f"gradient by spherical harmonics to degree {3 * nside - 1}, healpy map2alm with 3 iterations"

    def __call__(self, z: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """√Σ w |u|² and √Σ w |u − u_g|², dims (...)."""
        return _rms_of_each(self, z, u, v, 1)

    def gradient(self, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """∂/∂latitude and ∂/∂longitude / cos latitude per radian, dims (cell)."""
        import healpy

        largest = 3 * self.nside - 1
        if not np.isfinite(field).all():
            return np.full(len(field), np.nan), np.full(len(field), np.nan)
        found = healpy.map2alm(field[self.in_rings], lmax=largest, iter=3, pol=False)
        _, southward, eastward = healpy.alm2map_der1(found, self.nside, lmax=largest)
        north, east = np.empty(len(field)), np.empty(len(field))
        north[self.in_rings], east[self.in_rings] = -southward, eastward
        return north, east


def _rms_of_each(
    balance: _LatLonBalance | _MeshBalance, z: np.ndarray, u: np.ndarray, v: np.ndarray, core: int
) -> tuple[np.ndarray, np.ndarray]:
    """Field by field: no more than one gradient is ever held."""
    z, u, v = np.broadcast_arrays(z, u, v)
    wind, ageostrophic = (np.empty(z.shape[:-core]) for _ in range(2))
    for place in np.ndindex(z.shape[:-core]):
        field, east, north = (np.asarray(a[place], dtype=np.float64) for a in (z, u, v))
        # the mean is far larger than what has a slope
        to_north, to_east = balance.gradient(field - field.mean())
        away = (east + to_north / balance.coriolis) ** 2
        away += (north - to_east / (balance.coriolis * balance.cosine)) ** 2
        wind[place] = np.sqrt((balance.weights * (east**2 + north**2)).sum())
        ageostrophic[place] = np.sqrt((balance.weights * away).sum())
    return wind, ageostrophic


def _geometry(ours: xr.Dataset, fields: xr.Dataset, limit: float) -> tuple[_LatLonBalance | _MeshBalance, xr.Dataset]:
    """The operator for the grid or mesh, and the fields in its order."""
    if not 0 < limit < 90:
        raise ArgumentError(explain(f"latitude_limit={limit:g} can't be used", expected="degrees between 0 and 90"))
    if "cell" in fields.dims:
        import healpy

        found = locate_mesh(ours)
        if found is None:
            raise DatasetError(no_mesh(ours))
        rings = healpy.ring2nest(found.mesh.nside, np.arange(found.mesh.size))
        return _MeshBalance(
            found.mesh.nside, rings if found.positions is None else found.positions[rings], limit
        ), fields
    require_dims(fields, ("latitude", "longitude"), "Geostrophic balance")
    fields = normalise_latlon(fields)
    longitude = fields["longitude"].values.astype(np.float64)
    steps = np.diff(longitude, append=longitude[0] + 360)
    if not np.allclose(steps, steps[0], rtol=0, atol=1e-3):
        got = f"{steps.min():g} to {steps.max():g} degrees apart"
        raise DatasetError(
            explain("Longitudes are unevenly spaced", got=got, do="Regrid, such as to_latlon(forecast, 1.5)")
        )
    grid = LatLonGrid.from_dataset(fields)
    latitude = np.asarray(grid.latitude)
    if not (counted := (np.abs(latitude) >= limit) & (np.abs(latitude) < 90)).any():
        raise DatasetError(explain(f"No row is poleward of {limit:g} degrees", got=f"{counted.size} rows"))
    return _LatLonBalance(latitude, grid.cell_area().values, limit), fields


# ---------------------------------------------------------------------------------------------------- what is in there


def _find(ds: xr.Dataset, name: str) -> xr.DataArray | None:
    """A known variable in our units, None where the Dataset hasn't it; by any of its names, then by standard_name."""
    known = CATALOGUE[name]
    if known.vertical:
        fitting = [n for n in ds.data_vars if "level" in ds[n].coords or "level" in ds[n].dims]
    else:  # ECMWF calls two variables z
        fitting = [n for n in ds.data_vars if "level" not in (ds[n].coords if n == "z" else ds[n].dims)]
    found: list[Hashable] = [n for own in known.names for n in fitting if n == own]
    found = found or [n for n in fitting if str(ds[n].attrs.get("standard_name")) in known.standard_names[:1]]
    return None if not found else _in_units(ds[found[0]], known.units)


def _in_units(field: xr.DataArray, wanted: str) -> xr.DataArray:
    """Converted where there are units; none at all are taken for ours."""
    got = str(field.attrs.get("units", ""))
    linear = conversion(got, wanted) if got else (1.0, 0.0)
    if linear is None:
        raise DatasetError(explain(f"{field.name!r} has other units", got=repr(got), expected=repr(wanted)))
    return field if linear == (1.0, 0.0) else (field.astype(np.float64) * linear[0] + linear[1]).rename(field.name)


def _need(ds: xr.Dataset, name: str, what: str) -> xr.DataArray:
    field = _find(ds, name)
    if field is None:
        on = " on pressure levels" if CATALOGUE[name].vertical else ""
        expected = f"{name!r}{on}, by any usual name"
        raise DatasetError(explain(f"{what} needs {name}", got=listed(ds.data_vars), expected=expected))
    return field


def _need_all(ds: xr.Dataset, names: Iterable[str], what: str) -> xr.Dataset:
    return xr.Dataset({name: _need(ds, name, what) for name in names})


def _select_levels(ds: xr.Dataset, level: float | Iterable[float] | None) -> xr.Dataset:
    if level is None:
        return ds
    wanted = np.atleast_1d(np.asarray(list(level) if isinstance(level, Iterable) else level, dtype=np.float64))
    there = np.atleast_1d(ds["level"].values).astype(np.float64)
    if missing := [x for x in wanted if x not in there]:
        got = f"{', '.join(f'{x:g}' for x in there)} hPa"
        raise DatasetError(explain(f"Level {', '.join(f'{x:g}' for x in missing)} isn't there", got=got))
    if "level" not in ds.dims:
        return ds
    places = [int(np.flatnonzero(there == x)[0]) for x in wanted]
    return ds.isel(level=places if isinstance(level, Iterable) else places[0])


def _find_pressure(ds: xr.Dataset, variable: str | None) -> tuple[str, xr.DataArray]:
    """What stands for mass: its name in the catalogue, and the field."""
    names = list(_MASS_PROXY)
    if variable is not None:
        asked = [name for name in names if variable in CATALOGUE[name].names]
        if not asked:
            raise ArgumentError(explain(f"variable={variable!r} doesn't stand for mass", expected=listed(names)))
        return asked[0], _need(ds, asked[0], "The drift of mass")
    found = [(name, field) for name in names if (field := _find(ds, name)) is not None]
    if not found:
        raise DatasetError(
            explain("The drift of mass needs pressure", got=listed(ds.data_vars), expected=listed(names))
        )
    return found[0]


def _ascending(field: xr.DataArray) -> xr.DataArray:
    require_dims(field, ("level",), f"The column of {field.name!r}")
    if "level" not in field.coords:
        raise DatasetError(explain("Dimension 'level' has no coordinate", do="Assign the pressures, in hPa"))
    order = np.argsort(field["level"].values, kind="stable")
    return field if np.array_equal(order, np.arange(order.size)) else field.isel(level=order)


# ---------------------------------------------------------------------------------------------------------- the start


def _with_start(ours: xr.Dataset, start: Any) -> tuple[xr.Dataset, xr.Dataset | None]:
    """The forecast, and the analyses at its starts on the same variables, levels and points."""
    if start is None:
        return ours, None
    static = [n for n in ours.data_vars if n in CATALOGUE["geopotential_at_surface"].names and not _varies(ours[n])]
    first = ours.drop_vars(static).isel({dim: 0 for dim in (LEAD, "number") if dim in ours.dims}, drop=True)
    aligned = align(first.drop_vars([LEAD, "number", "valid_time"], errors="ignore"), start)
    ours = ours[[*aligned.forecast.data_vars, *static]]
    if "level" in aligned.forecast.dims:
        ours = ours.sel(level=aligned.forecast["level"].values)
    return ours, aligned.truth.assign({name: ours[name] for name in static})


def _varies(field: xr.DataArray) -> bool:
    return bool({"level", LEAD, "number", "time"} & set(field.dims))


def _reference_text(ours: xr.Dataset, reference: xr.Dataset | None) -> str:
    if reference is not None:
        return "analysis at the start"
    require_dims(ours, (LEAD,), "The drift without start=")
    leads = np.atleast_1d(ours[LEAD].values)
    if leads.dtype.kind != "m" or len(np.unique(leads)) < len(leads):
        got, expected = listed(leads[:5]), "each lead once, as timedelta64"
        raise DatasetError(explain("The drift without start= needs to know the first lead", got=got, expected=expected))
    lead = _first_lead(ours)
    hours = lead / np.timedelta64(1, "h")
    return "lead 0 of the forecast" if not hours else f"first lead of the forecast, {hours:g} h; it has no lead 0"


def _first_lead(ours: xr.Dataset) -> np.timedelta64:
    leads = ours[LEAD].values
    return leads[leads == np.timedelta64(0, "ns")][0] if (leads == np.timedelta64(0, "ns")).any() else leads.min()


def _difference(ours: xr.Dataset, reference: xr.Dataset | None, text: str) -> xr.Dataset:
    at_start = ours.sel({LEAD: _first_lead(ours)}, drop=True) if reference is None else reference
    at_start = at_start.drop_vars([LEAD, "valid_time"], errors="ignore")
    changed = {}
    for name, field in ours.data_vars.items():
        change = (field - at_start[name]).transpose(*field.dims)
        attrs = {k: v for k, v in field.attrs.items() if k != "standard_name"}
        about = f"change of {field.attrs.get('long_name', name)} since the start"
        changed[f"{name}_drift"] = _bare(change).assign_attrs({**attrs, "long_name": about, "reference": text})
    return xr.Dataset(changed)


# ---------------------------------------------------------------------------------------------------------- the parts


def _weights(field: xr.Dataset | xr.DataArray) -> xr.DataArray:
    if not space_dims(field):
        expected = "dimensions latitude and longitude, or cell"
        raise DatasetError(explain("The mean over the sphere has no points", got=listed(field.dims), expected=expected))
    weights = weights_for(field)
    if weights is None and "cell" not in field.dims:
        expected = "dimensions latitude and longitude, or cell"
        raise DatasetError(
            explain("The mean over the sphere has no latitudes", got=listed(field.dims), expected=expected)
        )
    return weights if weights is not None else xr.DataArray(np.ones(field.sizes["cell"]), dims="cell")


def _area_mean(field: xr.DataArray) -> xr.DataArray:
    weights = _weights(field)
    total = xr.dot(field, weights / weights.sum(), dim=space_dims(field))
    return _without_mapping(_bare(total))


def _bare(field: xr.DataArray) -> xr.DataArray:
    """Without the attributes of what it was made from; coordinates keep theirs."""
    return field.drop_attrs(deep=False)


def _without_mapping(obj: Labelled) -> Labelled:
    """Without the description of a grid that is no longer there."""
    return obj.drop_vars([n for n, c in obj.coords.items() if "grid_mapping_name" in c.attrs])


def _mass(ours: xr.Dataset, reference: xr.Dataset | None, variable: str | None) -> xr.Dataset:
    name, pressure = _find_pressure(ours, variable)
    mean = (_area_mean(pressure) / 100.0).to_dataset(name="mass")
    first = None
    if reference is not None:
        first = (_area_mean(_need(reference, name, "The start")) / 100.0).to_dataset(name="mass")
    text = _reference_text(mean, first)
    change = _difference(mean, first, text)["mass_drift"]
    at_start = mean["mass"].sel({LEAD: _first_lead(mean)}, drop=True) if first is None else first["mass"]
    percent = 100.0 * change / at_start.drop_vars([LEAD, "valid_time"], errors="ignore")
    out: dict[Hashable, xr.DataArray] = {}
    for label, field, units in (("mass_drift", change, "hPa"), ("mass_drift_percent", percent, "%")):
        attrs = {
            "long_name": f"change of area-mean {_MASS_NAME[name]} since the start",
            "units": units,
            "cell_methods": "area: mean",
            "method": "weighted by exact cell area",
            "reference": text,
            "comment": _MASS_PROXY[name],
        }
        out[label] = _bare(field).transpose(*mean["mass"].dims).assign_attrs(attrs)
        out |= {f"{label}_{how}": _over_members(out[label], how) for how in ("mean", "min", "max")}
    return xr.Dataset(out, attrs={"title": "Drift of mass", "comment": _MASS_PROXY[name]})


def _over_members(field: xr.DataArray, how: str) -> xr.DataArray:
    if "number" not in field.dims:
        return field.drop_vars("number", errors="ignore")
    over = getattr(field, how)("number", skipna=False)
    word = {"mean": "mean", "min": "minimum", "max": "maximum"}[how]
    members = {"members": field.sizes["number"], "cell_methods": f"area: mean number: {word}"}
    return over.assign_attrs({**field.attrs, "long_name": f"{field.attrs['long_name']}, {word} of members", **members})


def _on_columns(forecast: Any, make: Callable[[xr.Dataset], Labelled]) -> Labelled:
    ours, names = canonical_dims(as_dataset(forecast))
    return caller_names(make(ours), names)


def _column(field: xr.DataArray, surface: xr.DataArray | None) -> xr.DataArray:
    """∫ field dp / g."""
    field = _ascending(field)
    pressure = field["level"].values.astype(np.float64) * 100.0
    if pressure.size < 2:
        got = f"{field['level'].values} hPa"
        raise DatasetError(explain("One level has no column", got=got, expected="two levels or more"))
    return xr.apply_ufunc(
        _integral,
        field,
        xr.DataArray(pressure[-1]) if surface is None else surface,
        input_core_dims=[["level"], []],
        kwargs={"pressure": pressure},
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"allow_rechunk": True},
        keep_attrs=False,
    )


def _integral(values: np.ndarray, surface: np.ndarray, pressure: np.ndarray) -> np.ndarray:
    """Exact integral down to the surface of what is linear between levels, dims (..., level) to (...)."""
    end = np.asarray(surface, dtype=np.float64)
    total = np.maximum(end - pressure[-1], 0.0) * values[..., -1]
    for k, depth in enumerate(np.diff(pressure)):
        inside = np.clip(end, pressure[k], pressure[k + 1]) - pressure[k]
        lower = inside**2 / (2 * depth)
        total = total + (inside - lower) * values[..., k] + lower * values[..., k + 1]
    return total / GRAVITY


def _column_text(field: xr.DataArray, surface: xr.DataArray | None) -> str:
    levels = field["level"].values
    if surface is None:
        text = f"Between {levels.min():g} and {levels.max():g} hPa"
        return f"{text}; levels below ground count, for no surface pressure is there."
    return (
        f"From {levels.min():g} hPa to surface pressure; below {levels.max():g} hPa the value of that level is taken. "
        "Levels below ground don't count."
    )


def _finished(field: xr.DataArray, area_mean: bool, attrs: dict[str, str]) -> xr.DataArray:
    if not area_mean:
        return _bare(field).assign_attrs(attrs)
    text = f"{attrs['method']}; mean weighted by exact cell area"
    return _area_mean(field).assign_attrs({**attrs, "method": text, "cell_methods": "area: mean"})


def _water(ds: xr.Dataset, area_mean: bool) -> xr.DataArray:
    humid, surface = _need(ds, "specific_humidity", "Total column water"), _find(ds, "surface_pressure")
    attrs = {
        **cf_attributes("total_column_water_vapour"),
        "long_name": "water vapour of the column",
        "method": "specific humidity by trapezoids in pressure, divided by g",
        "comment": _column_text(humid, surface),
    }
    return _finished(_column(humid, surface), area_mean, attrs).rename("total_column_water")


def _dry(ds: xr.Dataset, proxy: bool, area_mean: bool) -> xr.DataArray:
    surface = _find(ds, "surface_pressure")
    if surface is None and not proxy:
        what, do = "Dry mass needs surface_pressure", "Pass proxy=True to take sea-level pressure for it"
        raise DatasetError(explain(what, got=listed(ds.data_vars), do=do))
    humid = _need(ds, "specific_humidity", "Dry mass")
    pressure = _need(ds, "mean_sea_level_pressure", "Dry mass with proxy=True") if surface is None else surface
    stands = " " + _MASS_PROXY["mean_sea_level_pressure"] if surface is None else ""
    attrs = {
        "long_name": "mass of dry air of the column",
        "units": "kg m-2",
        "method": f"{pressure.name} / g less specific humidity by trapezoids in pressure / g",
        "comment": _column_text(humid, surface) + stands,
    }
    weight = pressure.astype(np.float64) / GRAVITY
    return _finished(weight - _column(humid, surface), area_mean, attrs).rename("dry_mass")


_WIND = ("u_component_of_wind", "v_component_of_wind")
# term: what it needs besides temperature, long name
_TERMS = {
    "enthalpy": (("temperature",), "enthalpy of the column: internal energy, and potential energy above the surface"),
    "kinetic_energy": (_WIND, "kinetic energy of the column"),
    "latent_energy": (("specific_humidity",), "latent energy of the column"),
    "surface_potential_energy": (
        ("surface_pressure", "geopotential_at_surface"),
        "potential energy of the column's mass at the surface",
    ),
}


def _energy(ds: xr.Dataset, area_mean: bool) -> xr.Dataset:
    warm, surface = _need(ds, "temperature", "Total energy"), _find(ds, "surface_pressure")
    made, left_out = {}, []
    for name, (needs, about) in _TERMS.items():
        if lacking := [need for need in needs if _find(ds, need) is None]:
            left_out.append(f"{name}: no {', '.join(lacking)}")
            continue
        attrs = {"long_name": about, "units": "J m-2", "method": "trapezoids in pressure, divided by g"}
        field = _term(name, [_need(ds, need, name) for need in needs], surface)
        made[name] = _finished(field, area_mean, {**attrs, "comment": _column_text(warm, surface)})
    total = next(iter(made.values())).copy(deep=False)
    for term in list(made.values())[1:]:
        total = total + term
    summary = {"long_name": "energy of the column", "terms": ", ".join(made)}
    made["total_energy"] = _bare(total).assign_attrs({**made["enthalpy"].attrs, **summary})
    return xr.Dataset(made, attrs={"left_out": "; ".join(left_out)} if left_out else {})


def _term(name: str, fields: list[xr.DataArray], surface: xr.DataArray | None) -> xr.DataArray:
    if name == "enthalpy":
        return HEAT_CAPACITY * _column(fields[0], surface)
    if name == "latent_energy":
        return LATENT_HEAT * _column(fields[0], surface)
    wide = [field.astype(np.float64) for field in fields]
    if name == "kinetic_energy":
        return _column((0.5 * (wide[0] ** 2 + wide[1] ** 2)).rename("kinetic_energy"), surface)
    return wide[0] * wide[1] / GRAVITY


_USED = (*_MASS_PROXY, "temperature", "specific_humidity", *_WIND, "geopotential_at_surface")
_QUANTITIES: dict[str, tuple[tuple[str, ...], Callable[[xr.Dataset], Any]]] = {
    "total_column_water": (("specific_humidity",), lambda ds: _water(ds, True)),
    "dry_mass": (("surface_pressure", "specific_humidity"), lambda ds: _dry(ds, False, True)),
    "total_energy": (("temperature",), lambda ds: _energy(ds, True)),
}
