"""The ``.mosaic`` accessor: delegates, nothing else. It keeps no state; xarray makes it anew as it likes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .checkpoint import Model
    from .healpix import Method
    from .state import Report
    from .store import Store


class _Plots:
    """Pictures of a forecast: ``fc.mosaic.plot.stamps()``."""

    def __init__(self, obj: xr.Dataset) -> None:
        self._obj = obj

    def stamps(self, variable: str | None = None, **options: Any) -> Figure:
        """Stamp map of all members, ensemble mean and spread; see `xmosaic.plot.stamps`."""
        from . import plot

        return plot.stamps(self._obj, variable, **options)


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


@xr.register_dataset_accessor("mosaic")
class DatasetAccessor(_Regridding):
    """Forecasts, checks and regridding of a Dataset."""

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
        every: Any = None,
        batch_size: int | None = None,
        device: Any = None,
        dtype: str | None = None,
        store: Store | None = None,
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
            every=every,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            store=store,
            progress=progress,
            grid=grid,
        )

    def check(self, model: str | Model | None = None, time: Any = None) -> Report:
        """List what a forecast would use and every problem with its fix; see `xmosaic.check`."""
        from .forecast import check

        return check(self._obj, model, time)

    @property
    def plot(self) -> _Plots:
        """Pictures of a forecast."""
        return _Plots(self._obj)

    def __repr__(self) -> str:
        from .forecast import Overview

        return repr(Overview(self._obj))

    def _repr_html_(self) -> str:
        from .forecast import Overview

        return Overview(self._obj)._repr_html_()


@xr.register_dataarray_accessor("mosaic")
class DataArrayAccessor(_Regridding):
    """Regridding of a DataArray."""

    def __init__(self, obj: xr.DataArray) -> None:
        self._obj = obj

    def __repr__(self) -> str:
        name = self._obj.name or "unnamed"
        return f"<xmosaic: DataArray {name!r}, dims {tuple(self._obj.dims)}; to_healpix, to_latlon, to_dialect>"
