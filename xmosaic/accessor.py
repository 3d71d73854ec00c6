"""The ``.mosaic`` accessor: delegates, nothing else. It keeps no state; xarray makes it anew as it likes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .checkpoint import Model
    from .explore import Explorer
    from .healpix import Method
    from .state import Report
    from .store import Store


class _Plots:
    """Pictures of a forecast: ``fc.mosaic.plot.stamps()``."""

    def __init__(self, obj: xr.Dataset | xr.DataArray) -> None:
        self._obj = obj

    def stamps(self, variable: str | None = None, **options: Any) -> Figure:
        """Stamp map of all members, ensemble mean and spread; see `xmosaic.plot.stamps`."""
        from . import plot

        return plot.stamps(self._obj, variable, **options)

    def spread(self, truth: Any = None, variable: str | None = None, **options: Any) -> Figure:
        """Ensemble spread on a map, and against lead beside the error; see `xmosaic.plot.spread`."""
        from . import plot

        return plot.spread(self._obj, truth, variable, **options)

    def plume(self, truth: Any = None, variable: str | None = None, **options: Any) -> Figure:
        """Members, quantiles and truth at one place; see `xmosaic.plot.plume`."""
        from . import plot

        return plot.plume(self._obj, truth, variable, **options)

    def spectra(self, truth: Any = None, variable: str | None = None, **options: Any) -> Figure:
        """Power per wavenumber of members, mean and truth; see `xmosaic.plot.spectra`."""
        from . import plot

        return plot.spectra(self._obj, truth, variable, **options)

    def ratio(self, truth: Any, variable: str | None = None, **options: Any) -> Figure:
        """Power of the members over the truth's; see `xmosaic.plot.ratio`."""
        from . import plot

        return plot.ratio(self._obj, truth, variable, **options)

    def rank_histogram(self, truth: Any, variable: str | None = None, **options: Any) -> Figure:
        """Rank of the truth among the members; see `xmosaic.plot.rank_histogram`."""
        from . import plot

        return plot.rank_histogram(self._obj, truth, variable, **options)

    def reliability(self, truth: Any, threshold: Any, variable: str | None = None, **options: Any) -> Figure:
        """Reliability diagram of an event; see `xmosaic.plot.reliability`."""
        from . import plot

        return plot.reliability(self._obj, truth, threshold, variable, **options)

    def skill(self, truth: Any, variable: str | None = None, **options: Any) -> Figure:
        """A score against lead; see `xmosaic.plot.skill`."""
        from . import plot

        return plot.skill(self._obj, truth, variable, **options)

    def tracks(self, best_track: Any = None, **options: Any) -> Figure:
        """Cyclone tracks of the members; see `xmosaic.plot.tracks`."""
        from . import plot

        return plot.tracks(self._obj, best_track, **options)

    def mass(self, start: Any = None, **options: Any) -> Figure:
        """Drift of area-mean pressure; see `xmosaic.plot.mass`."""
        from . import plot

        return plot.mass(self._obj, start, **options)


class _Regridding:
    """What Dataset and DataArray share."""

    _obj: Any

    def to_healpix(
        self, nside: int, method: Method = "conservative", *, max_missing: float = 0.5, missing_fraction: bool = False
    ) -> Any:
        """Regrid to the HEALPix mesh; see `xmosaic.to_healpix`."""
        from .healpix import to_healpix

        return to_healpix(self._obj, nside, method, max_missing=max_missing, missing_fraction=missing_fraction)

    def to_latlon(self, grid: Any, method: Method = "conservative", **options: Any) -> Any:
        """Regrid to a latitude/longitude grid; see `xmosaic.to_latlon`."""
        from .healpix import to_latlon

        return to_latlon(self._obj, grid, method, **options)

    def to_dialect(self, dialect: str) -> Any:
        """Rename a forecast to what another tool expects; see `xmosaic.to_dialect`."""
        from .dialects import to_dialect

        return to_dialect(self._obj, dialect)


class _Pages:
    """The interactive page, which Dataset and DataArray share."""

    _obj: Any

    def explore(self, truth: Any = None, **options: Any) -> Explorer:
        """One HTML page with a globe to turn, members, leads, spectra and scores; see `xmosaic.explore.explore`."""
        from .explore import explore

        return explore(self._obj, truth, **options)


class _Diagnostics:
    """Scores, spectra and pictures, which Dataset and DataArray share."""

    _obj: Any

    @property
    def plot(self) -> _Plots:
        """Pictures of a forecast."""
        return _Plots(self._obj)

    def rmse(self, truth: Any, dim: Any = None, **options: Any) -> Any:
        """Root mean square error; see `xmosaic.diagnostics.rmse`."""
        from . import diagnostics

        return diagnostics.rmse(self._obj, truth, dim, **options)

    def bias(self, truth: Any, dim: Any = None, **options: Any) -> Any:
        """Mean error; see `xmosaic.diagnostics.bias`."""
        from . import diagnostics

        return diagnostics.bias(self._obj, truth, dim, **options)

    def mae(self, truth: Any, dim: Any = None, **options: Any) -> Any:
        """Mean absolute error; see `xmosaic.diagnostics.mae`."""
        from . import diagnostics

        return diagnostics.mae(self._obj, truth, dim, **options)

    def crps(self, truth: Any, dim: Any = None, **options: Any) -> Any:
        """Continuous ranked probability score, fair by default; see `xmosaic.diagnostics.crps`."""
        from . import diagnostics

        return diagnostics.crps(self._obj, truth, dim, **options)

    def spread(self, truth: Any, dim: Any = None, **options: Any) -> Any:
        """Ensemble spread; see `xmosaic.diagnostics.spread`."""
        from . import diagnostics

        return diagnostics.spread(self._obj, truth, dim, **options)

    def spread_skill(self, truth: Any, dim: Any = None, **options: Any) -> Any:
        """Spread/skill ratio with the (M + 1)/M factor; see `xmosaic.diagnostics.spread_skill`."""
        from . import diagnostics

        return diagnostics.spread_skill(self._obj, truth, dim, **options)

    def rank_histogram(self, truth: Any, dim: Any = None, **options: Any) -> Any:
        """Rank of the truth among the members; see `xmosaic.diagnostics.rank_histogram`."""
        from . import diagnostics

        return diagnostics.rank_histogram(self._obj, truth, dim, **options)

    def energy_score(self, truth: Any, dim: Any = None, **options: Any) -> Any:
        """Energy score of whole fields; see `xmosaic.diagnostics.energy_score`."""
        from . import diagnostics

        return diagnostics.energy_score(self._obj, truth, dim, **options)

    def acc(self, truth: Any, climatology: Any, dim: Any = None, **options: Any) -> Any:
        """Anomaly correlation; see `xmosaic.diagnostics.acc`."""
        from . import diagnostics

        return diagnostics.acc(self._obj, truth, climatology, dim, **options)

    def crps_skill(self, truth: Any, baseline: Any, dim: Any = None, **options: Any) -> Any:
        """CRPS skill against a baseline; see `xmosaic.diagnostics.crps_skill`."""
        from . import diagnostics

        return diagnostics.crps_skill(self._obj, truth, baseline, dim, **options)

    def threshold_weighted_crps(self, truth: Any, threshold: Any, dim: Any = None, **options: Any) -> Any:
        """CRPS beyond a threshold; see `xmosaic.diagnostics.threshold_weighted_crps`."""
        from . import diagnostics

        return diagnostics.threshold_weighted_crps(self._obj, truth, threshold, dim, **options)

    def brier(self, truth: Any, threshold: Any, dim: Any = None, **options: Any) -> Any:
        """Brier score of an event; see `xmosaic.diagnostics.brier`."""
        from . import diagnostics

        return diagnostics.brier(self._obj, truth, threshold, dim, **options)

    def reliability(self, truth: Any, threshold: Any, dim: Any = None, **options: Any) -> Any:
        """Reliability diagram of an event; see `xmosaic.diagnostics.reliability`."""
        from . import diagnostics

        return diagnostics.reliability(self._obj, truth, threshold, dim, **options)

    def spectra(self, **options: Any) -> Any:
        """Power per total or zonal wavenumber; see `xmosaic.diagnostics.spectra`."""
        from . import diagnostics

        return diagnostics.spectra(self._obj, **options)

    def spectral_ratio(self, truth: Any, **options: Any) -> Any:
        """Power over the truth's, per wavenumber; see `xmosaic.diagnostics.spectral_ratio`."""
        from . import diagnostics

        return diagnostics.spectral_ratio(self._obj, truth, **options)

    def spectral_error(self, truth: Any, **options: Any) -> Any:
        """Log power error, RMSE by band, effective resolution, coherence; see `xmosaic.diagnostics.spectral_error`."""
        from . import diagnostics

        return diagnostics.spectral_error(self._obj, truth, **options)

    def spectral_log_error(self, truth: Any, **options: Any) -> Any:
        """Integrated log power error; see `xmosaic.diagnostics.spectral_log_error`."""
        from . import diagnostics

        return diagnostics.spectral_log_error(self._obj, truth, **options)

    def band_rmse(self, truth: Any, **options: Any) -> Any:
        """Root mean square error by band of wavenumbers; see `xmosaic.diagnostics.band_rmse`."""
        from . import diagnostics

        return diagnostics.band_rmse(self._obj, truth, **options)

    def effective_resolution(self, truth: Any, **options: Any) -> Any:
        """Wavelength from which on the power is off; see `xmosaic.diagnostics.effective_resolution`."""
        from . import diagnostics

        return diagnostics.effective_resolution(self._obj, truth, **options)

    def coherence(self, truth: Any, **options: Any) -> Any:
        """Squared coherence with the truth, per wavenumber; see `xmosaic.diagnostics.coherence`."""
        from . import diagnostics

        return diagnostics.coherence(self._obj, truth, **options)


@xr.register_dataset_accessor("mosaic")
class DatasetAccessor(_Regridding, _Pages, _Diagnostics):
    """Forecasts of a Dataset, and diagnostics of a forecast."""

    def __init__(self, obj: xr.Dataset) -> None:
        self._obj = obj

    def forecast(
        self,
        lead: Any,
        members: int,
        *,
        model: str | Model | None = None,
        time: Any = None,
        seed: int = 0,
        variables: str | Iterable[str] | None = None,
        levels: Any = None,
        every: Any = None,
        leads: Any = None,
        batch_size: int | None = None,
        device: Any = None,
        dtype: str | None = None,
        store: Store | None = None,
        keep_bits: int | None = None,
        chunks: Mapping[str, int] | None = None,
        progress: bool | None = None,
        grid: Literal["model", "input"] = "model",
    ) -> xr.Dataset:
        """Ensemble forecast from this Dataset; see `xmosaic.forecast`."""
        from .forecast import forecast

        return forecast(
            self._obj,
            lead,
            members,
            model=model,
            time=time,
            seed=seed,
            variables=variables,
            levels=levels,
            every=every,
            leads=leads,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            store=store,
            keep_bits=keep_bits,
            chunks=chunks,
            progress=progress,
            grid=grid,
        )

    def check(self, model: str | Model | None = None, time: Any = None) -> Report:
        """List what a forecast would use and every problem with its fix; see `xmosaic.check`."""
        from .forecast import check

        return check(self._obj, model, time)

    def to_zarr(self, store: Store, **options: Any) -> Any:
        """Write this forecast, lazy or not, in the layout of ``store=``; see `xmosaic.lazy.to_zarr`."""
        from .lazy import to_zarr

        return to_zarr(self._obj, store, **options)

    def mass_drift(self, start: Any = None, **options: Any) -> xr.Dataset:
        """Change of area-mean pressure since the start; see `xmosaic.diagnostics.mass_drift`."""
        from . import diagnostics

        return diagnostics.mass_drift(self._obj, start, **options)

    def conservation(self, start: Any = None) -> xr.Dataset:
        """Mass, water and energy with their drift; see `xmosaic.diagnostics.conservation`."""
        from . import diagnostics

        return diagnostics.conservation(self._obj, start)

    def geostrophic_balance(self, **options: Any) -> xr.Dataset:
        """Share of the wind that isn't geostrophic; see `xmosaic.diagnostics.geostrophic_balance`."""
        from . import diagnostics

        return diagnostics.geostrophic_balance(self._obj, **options)

    def hydrostatic_residual(self) -> xr.Dataset:
        """Thickness of layers against their temperature; see `xmosaic.diagnostics.hydrostatic_residual`."""
        from . import diagnostics

        return diagnostics.hydrostatic_residual(self._obj)

    def tracks(self, **options: Any) -> xr.Dataset:
        """Cyclone tracks of every member; see `xmosaic.tracks.tracks`."""
        from .tracks import tracks

        return tracks(self._obj, **options)

    def track_error(self, best_track: xr.Dataset) -> xr.Dataset:
        """Errors of these tracks against a best track; see `xmosaic.tracks.track_error`."""
        from .tracks import track_error

        return track_error(self._obj, best_track)

    def __repr__(self) -> str:
        from .forecast import Overview

        return repr(Overview(self._obj))

    def _repr_html_(self) -> str:
        from .forecast import Overview

        return Overview(self._obj)._repr_html_()


@xr.register_dataarray_accessor("mosaic")
class DataArrayAccessor(_Regridding, _Pages, _Diagnostics):
    """Regridding and diagnostics of a DataArray."""

    def __init__(self, obj: xr.DataArray) -> None:
        self._obj = obj

    def __repr__(self) -> str:
        name = self._obj.name or "unnamed"
        return (
            f"<xmosaic: DataArray {name!r}, dims {tuple(self._obj.dims)}; scores, spectra, plot, to_healpix, to_latlon>"
        )
