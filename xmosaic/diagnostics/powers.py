"""Spectra of Datasets in canonical dimensions: which variables, of which members, averaged where there is a truth."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from ..units import canonical
from ..variables import find_variable, listed
from .layout import Aligned, align, as_dataset, caller_names, canonical_dims, require_dims
from .transforms import EARTH_RADIUS, KINDS, Kind, Power, Transform, find_transform

Of: TypeAlias = Literal["members", "mean", "spread"]
Names: TypeAlias = str | Iterable[str] | None

_WINDS = (
    ("u_component_of_wind", "v_component_of_wind", ""),
    ("10m_u_component_of_wind", "10m_v_component_of_wind", "10m_"),
    ("100m_u_component_of_wind", "100m_v_component_of_wind", "100m_"),
)
_OF = {"members": "", "mean": " of the ensemble mean", "spread": " of the ensemble's spread"}
_EPS = float(np.finfo(np.float64).eps)


# --------------------------------------------------------------------------------------------- what is wanted


@dataclass(frozen=True)
class Wanted:
    """Variables of a Dataset, and winds by the name of their kinetic energy."""

    scalars: tuple[Hashable, ...]
    winds: dict[str, tuple[Hashable, Hashable]]

    @property
    def sources(self) -> list[Hashable]:
        """Variables that are read."""
        return list(dict.fromkeys([*self.scalars, *(name for pair in self.winds.values() for name in pair)]))

    def within(self, ds: xr.Dataset) -> Wanted:
        """What is left where variables are missing."""
        pairs = {energy: pair for energy, pair in self.winds.items() if all(name in ds for name in pair)}
        return Wanted(tuple(name for name in self.scalars if name in ds), pairs)


def choose(ds: xr.Dataset, variables: Names, kinetic_energy: bool) -> Wanted:
    """Variables with a spectrum, or those that are named in any dialect."""
    there = [name for name in ds.data_vars if _on_sphere(ds[name])]
    if variables is None:
        chosen = [name for name in there if not _categorical(ds[name])]
        if not chosen:
            raise DatasetError(
                explain(
                    "No variable has a spectrum",
                    got=listed(ds.data_vars) or "no variables",
                    expected="numbers along latitude and longitude, or cell",
                )
            )
        return Wanted(tuple(chosen), _winds(chosen) if kinetic_energy else {})
    wanted = [variables] if isinstance(variables, str) else list(variables)
    scalars: list[Hashable] = []
    winds: dict[str, tuple[Hashable, Hashable]] = {}
    for name in wanted:
        pairs = {energy: pair for energy, pair in _winds(there).items() if energy == name}
        found: list[Hashable] = [own for own in there if own == name]
        found = found or [own for own in there if _same(own, name)]
        if not pairs and not found:
            got = listed([*there, *_winds(there)]) or "none"
            raise ArgumentError(explain(f"{name!r} is not a variable with a spectrum", got=got))
        winds |= pairs
        scalars += [] if pairs else found
    if kinetic_energy:
        winds |= _winds(scalars)
    return Wanted(tuple(dict.fromkeys(scalars)), winds)


def _on_sphere(field: xr.DataArray) -> bool:
    return field.dtype.kind in "fiu" and ("cell" in field.dims or {"latitude", "longitude"} <= set(field.dims))


def _categorical(field: xr.DataArray) -> bool:
    known = find_variable(str(field.name))
    return "flag_values" in field.attrs or (known is not None and known.categorical)


def _same(own: Hashable, wanted: str) -> bool:
    mine, theirs = find_variable(str(own)), find_variable(wanted)
    return mine is not None and theirs is not None and mine.name == theirs.name


def _winds(names: Iterable[Hashable]) -> dict[str, tuple[Hashable, Hashable]]:
    """Both components of each wind, by the name of their kinetic energy; a channel keeps its level in it."""
    known = {(found.name, _channel_level(own)): own for own in names if (found := find_variable(str(own)))}
    pairs: dict[str, tuple[Hashable, Hashable]] = {}
    for eastward, northward, prefix in _WINDS:
        for (name, level), own in known.items():
            if name == eastward and (northward, level) in known:
                pairs[f"{prefix}kinetic_energy{level}"] = (own, known[northward, level])
    return pairs


def _channel_level(name: Hashable) -> str:
    found = re.search(r"wind(_\d+)$", str(name))
    return found[1] if found else ""


# ------------------------------------------------------------------------------------------------- the power


def power_of(ds: xr.Dataset, wanted: Wanted, kind: Kind, of: Of, minus: xr.Dataset | None = None) -> xr.Dataset:
    """Spectra of a Dataset in canonical dimensions, or of its difference from another."""
    ds = _of_ensemble(ds, wanted, of)
    wanted = wanted.within(ds)
    transform = find_transform(ds[wanted.sources], kind)
    found: dict[Hashable, xr.DataArray] = {}
    for name in wanted.scalars:
        power = _apply(transform, [ds[name]], of, [minus[name]] if minus is not None else [])
        found[name] = _labelled(power, f"{words(name)}", ds[name].attrs.get("units"), transform, of)
    for energy, pair in wanted.winds.items():
        found |= _energy(transform, energy, [ds[name] for name in pair], of)
    gone = [name for name, coord in ds.coords.items() if "grid_mapping_name" in coord.attrs]
    return xr.Dataset(found, attrs=ds.attrs).drop_vars(gone, errors="ignore")


def _of_ensemble(ds: xr.Dataset, wanted: Wanted, of: Of) -> xr.Dataset:
    ds = ds[wanted.sources]
    if of == "mean" and "number" in ds.dims:
        return ds.mean("number", skipna=False, dtype=np.float64, keep_attrs=True)
    if of != "spread":
        return ds
    require_dims(ds, ["number"], "The spread")
    if ds.sizes["number"] < 2:
        raise DatasetError(explain("The spread needs two members or more", got=str(ds.sizes["number"])))
    return ds[[name for name in ds.data_vars if "number" in ds[name].dims]]


def _apply(
    transform: Transform, fields: list[xr.DataArray], of: Of, minus: Sequence[xr.DataArray] = ()
) -> xr.DataArray:
    arrays = [*fields, *minus]
    power = Power(transform, vector=len(fields) == 2, spread=of == "spread", difference=bool(minus))
    tail = [*(["part"] if power.vector else []), transform.wavenumber]
    core = [*(["number"] if power.spread else []), *transform.dims]
    return xr.apply_ufunc(
        power,
        *arrays,
        input_core_dims=[core] * len(arrays),
        output_core_dims=[tail],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": dict(zip(tail, power.tail, strict=True)), "allow_rechunk": True},
        keep_attrs=False,
    )


def _energy(transform: Transform, name: str, winds: list[xr.DataArray], of: Of) -> dict[Hashable, xr.DataArray]:
    units = {canonical(str(wind.attrs["units"])) for wind in winds if "units" in wind.attrs}
    if len(units) > 1:
        raise DatasetError(explain("The components of the wind have different units", got=listed(sorted(units))))
    parts = _apply(transform, winds, of)
    fields = {name: parts.sum("part", skipna=False)}
    if parts.sizes["part"] == 2:
        stem, level = name.partition("kinetic_energy")[::2]
        for index, what in enumerate(("rotational", "divergent")):
            fields[f"{stem}kinetic_energy_{what}{level}"] = parts.isel(part=index)
    unit = units.pop() if units else None
    return {part: _labelled(power, words(part), unit, transform, of) for part, power in fields.items()}


def _labelled(power: xr.DataArray, what: str, units: Any, transform: Transform, of: Of) -> xr.DataArray:
    dim = transform.wavenumber
    k = np.arange(transform.largest + 1)
    with np.errstate(divide="ignore"):
        length = 2 * np.pi * EARTH_RADIUS / (np.sqrt(k * (k + 1.0)) if dim == "total_wavenumber" else k)
    formula = "2 pi R / sqrt(l (l + 1))" if dim == "total_wavenumber" else "2 pi R / m, at the equator"
    about = {"long_name": f"wavelength {formula}, R = {EARTH_RADIUS} km", "units": "km"}
    coords = {dim: (dim, k, {"long_name": words(dim), "units": "1"}), "wavelength": (dim, length, about)}
    fair = "; sum over members of the power of deviations from their mean, over M - 1" if of == "spread" else ""
    attrs = {"long_name": f"power of {what}{_OF[of]} per {words(dim)}", "method": transform.method + fair}
    if units is not None:
        attrs["units"] = _squared(str(units))
    return power.assign_coords(coords).assign_attrs(attrs)


def _squared(units: str) -> str:
    """Units of a power: every exponent doubled where that can be read.

    Examples
    --------
    >>> _squared("m s**-1"), _squared("1"), _squared("K"), _squared("unknown/odd")
    ('m2 s-2', '1', 'K2', '(unknown/odd)2')
    """
    units = canonical(units)
    if units == "1":
        return units
    parts = [re.fullmatch(r"([A-Za-z_%°]+)(-?\d+)?", part) for part in units.split()]
    if not all(parts):
        return f"({units})2"
    return " ".join(f"{part[1]}{2 * int(part[2] or 1)}" for part in parts if part)


# --------------------------------------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class Powers:
    """Averaged spectra of a forecast, its truth and its error, in canonical dimensions."""

    aligned: Aligned
    dim: str
    of: Of
    forecast: xr.Dataset
    truth: xr.Dataset
    error: xr.Dataset

    def _describe(self, result: xr.Dataset, what: str, units: str | None, method: str) -> xr.Dataset:
        pairs = f"{int(self.aligned.found.sum())} of {self.aligned.found.size} starts and leads have a truth"
        method = f"{method}; {self.aligned.members} members{_OF[self.of]}; {pairs}"
        return described(result, what, units, method=method)

    def ratio(self) -> xr.Dataset:
        """See `spectral_ratio`."""
        found = {name: self.forecast[name] / _above_noise(self.truth[name], self.dim) for name in self.forecast}
        method = "power of the forecast over power of the truth, averaged before the division"
        return self._describe(xr.Dataset(found), "spectral ratio", "1", method)

    def _within(self, between: tuple[int, int | None]) -> xr.Dataset:
        first, last = between
        largest = int(self.forecast[self.dim][-1])
        last = largest if last is None else last
        if not 1 <= first <= last <= largest:
            raise ArgumentError(
                explain(f"between={between!r} can't be used", expected=f"wavenumbers from 1 to {largest}, ascending")
            )
        return self.ratio().sel({self.dim: slice(first, last)})

    def log_error(self, between: tuple[int, int | None]) -> xr.Dataset:
        """See `spectral_log_error`."""
        ratio = self._within(between)
        squares = xr.apply_ufunc(_decibel_squared, ratio, dask="parallelized", output_dtypes=[np.float64])
        result = np.sqrt(squares.mean(self.dim))
        return self._describe(result, "log spectral error", "dB", f"root mean square over {words(self.dim)} in dB")

    def resolution(self, band: tuple[float, float], consecutive: int, between: tuple[int, int | None]) -> xr.Dataset:
        """See `effective_resolution`."""
        ratio = self._within(between)
        found = xr.apply_ufunc(
            _first_outside,
            ratio,
            ratio["wavelength"],
            input_core_dims=[[self.dim], [self.dim]],
            kwargs={"band": band, "consecutive": consecutive},
            dask="parallelized",
            output_dtypes=[np.float64],
            dask_gufunc_kwargs={"allow_rechunk": True},
        )
        method = f"first of {consecutive} wavenumbers in a row with a ratio outside {band[0]:g} to {band[1]:g}"
        return self._describe(found, "effective resolution", "km", f"{method}; NaN: never outside")

    def band_rmse(self, bands: list[tuple[int, int | None]]) -> xr.Dataset:
        """See `band_rmse`."""
        largest = int(self.error[self.dim][-1])
        ends = [(first, max(first, largest) if last is None else last) for first, last in bands]
        power = self.error.drop_vars("wavelength")
        parts = [self._band(power, *pair) for pair in ends]
        names = [f"{first}-{'' if end is None else end}" for first, end in bands]
        result = xr.concat(parts, xr.Variable("band", names, {"long_name": f"band of {words(self.dim)}"}))
        for index, which in enumerate(("from", "to")):
            about = {"long_name": f"{('first', 'last')[index]} {words(self.dim)} of the band", "units": "1"}
            result = result.assign_coords({f"wavenumber_{which}": ("band", [pair[index] for pair in ends], about)})
        result = result.map(lambda field: field.transpose(..., "band"), keep_attrs=True)
        for name in result:
            if units := self.aligned.forecast[name].attrs.get("units"):
                result[name].attrs["units"] = units
        return self._describe(result, "RMSE by band", None, "root of the error's power summed over the band")

    def _band(self, power: xr.Dataset, first: int, last: int) -> xr.Dataset:
        if first >= power.sizes[self.dim]:
            return xr.full_like(power.isel({self.dim: 0}, drop=True), np.nan)
        total = power.sel({self.dim: slice(first, last)}).sum(self.dim, skipna=False, keep_attrs=True)
        return total.map(np.sqrt, keep_attrs=True)

    def coherence(self) -> xr.Dataset:
        """See `spectra.coherence`."""
        found = {}
        for name, error in self.error.items():
            ours, theirs = (_above_noise(some[name], self.dim) for some in (self.forecast, self.truth))
            found[name] = ((ours + theirs - error) / 2) ** 2 / (ours * theirs)
        return self._describe(xr.Dataset(found), "squared coherence", "1", "co-spectrum squared over both powers")


def compare(
    forecast: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    kind: Kind,
    dim: Names,
    variables: Names,
    of: Of,
    wanted: tuple[str, ...] = ("forecast", "truth"),
) -> Powers:
    """Spectra of both, averaged over the same starts and leads."""
    check_of(of)
    ours, names = canonical_dims(forecast)
    if isinstance(ours, xr.DataArray):
        chosen = choose(as_dataset(ours), variables, False)
        aligned = align(forecast, truth)
    else:
        chosen = choose(ours, variables, wanted != ("error",))
        aligned = align(caller_names(ours[chosen.sources], names), truth)
    chosen = chosen.within(aligned.forecast)
    scalars = Wanted(chosen.scalars, {})
    over = _averaged_dims(dim, aligned, of)
    fields, theirs = aligned.forecast, aligned.truth
    if of == "mean":
        fields = _of_ensemble(fields, chosen, of)
    nothing = xr.Dataset()
    powers = {
        "forecast": power_of(fields, chosen, kind, of) if "forecast" in wanted else nothing,
        "truth": power_of(theirs, chosen, kind, "members") if "truth" in wanted else nothing,
        "error": power_of(fields, scalars, kind, "members", theirs) if "error" in wanted else nothing,
    }
    averaged = {what: _averaged(power, aligned.found, over) for what, power in powers.items()}
    return Powers(aligned, f"{kind}_wavenumber", of, **averaged)


def _averaged_dims(dim: Names, aligned: Aligned, of: Of) -> list[str]:
    space = ("latitude", "longitude", "cell")
    there: list[Hashable] = [d for d in aligned.forecast.dims if d not in space]
    if of != "members":
        there = [d for d in there if d != "number"]
    if dim is None:
        return [d for d in ("time", "number") if d in there]
    canonical_of = {str(old): new for new, old in aligned.names.items()}
    wanted: list[str] = [canonical_of.get(d, d) for d in ([dim] if isinstance(dim, str) else dim)]
    if unknown := [d for d in wanted if d not in there]:
        raise ArgumentError(explain(f"There is no dimension {listed(unknown)} to average over", expected=listed(there)))
    return wanted


def _averaged(power: xr.Dataset, found: xr.DataArray, dims: list[str]) -> xr.Dataset:
    """Mean over dimensions where there is a truth; NaN where there is none at all, or in a field."""

    def mean(field: xr.DataArray) -> xr.DataArray:
        over = [dim for dim in dims if dim in field.dims]
        if not set(found.dims) <= set(field.dims):
            return field.mean(over, skipna=False, keep_attrs=True)
        share = found.astype(np.float64).mean([dim for dim in over if dim in found.dims])
        return field.where(found, 0.0).mean(over, skipna=False, keep_attrs=True) / share.where(share > 0)

    with xr.set_options(keep_attrs=True):
        return power.map(mean)


def _above_noise(power: xr.DataArray, dim: str) -> xr.DataArray:
    return power.where(power > _EPS * power.sum(dim, skipna=False))


def _decibel_squared(ratio: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # no power at all is infinitely far away
        return (10 * np.log10(ratio)) ** 2


def _first_outside(
    ratio: np.ndarray, wavelength: np.ndarray, band: tuple[float, float], consecutive: int
) -> np.ndarray:
    outside = (ratio < band[0]) | (ratio > band[1])  # NaN is not outside
    if outside.shape[-1] < consecutive:
        return np.full(outside.shape[:-1], np.nan)
    runs = np.lib.stride_tricks.sliding_window_view(outside, consecutive, axis=-1).all(axis=-1)
    return np.where(runs.any(axis=-1), np.broadcast_to(wavelength, ratio.shape[-1:])[runs.argmax(axis=-1)], np.nan)


# ------------------------------------------------------------------------------------------------ small things


def described(result: Any, what: str, units: str | None, method: str) -> Any:
    """Attributes of a result in place of those of the power it comes from."""
    fields = result.data_vars.values() if isinstance(result, xr.Dataset) else [result]
    for field in fields:
        own = {"units": field.attrs["units"]} if units is None and "units" in field.attrs else {}
        field.attrs = {"long_name": f"{what} of {words(field.name)}", **own, "method": method}
        if units is not None:
            field.attrs["units"] = units
    return result


def words(name: Hashable) -> str:
    """A name as it stands in a text."""
    return str(name).replace("_", " ")


def wavenumber_of(power: xr.Dataset | xr.DataArray) -> str:
    """Which of the two wavenumbers a spectrum has."""
    for kind in KINDS:
        if f"{kind}_wavenumber" in power.dims:
            return f"{kind}_wavenumber"
    got, do = f"dimensions {listed(power.dims)}", "Pass what spectra(...) gives"
    raise DatasetError(explain("This is no spectrum", got=got, expected="dimension 'total_wavenumber'", do=do))


def check_of(of: Any, known: Sequence[str] = tuple(_OF)) -> None:
    """Raise where this isn't one of what spectra can be of."""
    if of not in known:
        raise ArgumentError(explain(f"of={of!r} is not known", expected=" or ".join(map(repr, known))))


def check_bands(bands: Sequence[tuple[int, int | None]]) -> list[tuple[int, int | None]]:
    """Bands as a list of pairs."""
    checked = [tuple(pair) for pair in bands]
    for pair in checked:
        good = len(pair) == 2 and all(isinstance(k, int | np.integer) for k in pair if k is not None)
        if not good or pair[0] is None or pair[0] < 0 or (pair[1] is not None and pair[1] < pair[0]):
            expected = "(first, last) wavenumber, the last one None for the highest"
            raise ArgumentError(explain(f"{pair!r} is not a band of wavenumbers", expected=expected))
    if not checked:
        raise ArgumentError(explain("bands is empty", expected="at least one"))
    return checked  # type: ignore[return-value]


def check_resolved(band: tuple[float, float], consecutive: int) -> None:
    """Raise where no effective resolution can be had with these."""
    if len(band) != 2 or not 0 <= band[0] < band[1]:
        raise ArgumentError(
            explain(f"band={band!r} can't be used", expected="two ratios, ascending, such as (0.5, 2.0)")
        )
    if not isinstance(consecutive, int | np.integer) or consecutive < 1:
        raise ArgumentError(explain(f"consecutive={consecutive!r} can't be used", expected="an integer of at least 1"))
