"""Ensemble weather forecasts from an xarray Dataset, around Mosaic (arXiv 2604.16429).

>>> import xmosaic
>>> ds = xmosaic.open_sample()
>>> fc = ds.mosaic.forecast(lead="2D", members=2, progress=False)
>>> dict(fc["geopotential"].sizes)
{'number': 2, 'prediction_timedelta': 2, 'level': 4, 'latitude': 33, 'longitude': 64}
"""

from typing import TYPE_CHECKING, Any

from . import accessor as accessor  # registers .mosaic
from .errors import AlignmentWarning as AlignmentWarning
from .errors import ArgumentError as ArgumentError
from .errors import CheckpointError as CheckpointError
from .errors import DatasetError as DatasetError
from .errors import MosaicError as MosaicError
from .errors import StoreError as StoreError
from .options import set_options as set_options

if TYPE_CHECKING:
    from . import diagnostics as diagnostics
    from . import explore as explore
    from . import plot as plot
    from . import tracks as tracks
    from .checkpoint import LicenseNotice as LicenseNotice
    from .checkpoint import Model as Model
    from .checkpoint import convert_published as convert_published
    from .checkpoint import load_model as load_model
    from .data import open_sample as open_sample
    from .dialects import to_dialect as to_dialect
    from .evaluation import benchmark as benchmark
    from .forecast import check as check
    from .forecast import forecast as forecast
    from .forecast import rollout as rollout
    from .grid import LatLonGrid as LatLonGrid
    from .healpix import to_healpix as to_healpix
    from .healpix import to_latlon as to_latlon
    from .model import Mosaic as Mosaic
    from .model import MosaicConfig as MosaicConfig
    from .model import StageConfig as StageConfig
    from .report import to_markdown as to_markdown
    from .report import write_report as write_report
    from .store import IncompleteForecast as IncompleteForecast
    from .store import open_forecast as open_forecast
    from .store import written as written
    from .training import Stage as Stage
    from .training import TrainConfig as TrainConfig
    from .training import plot_history as plot_history
    from .training import read_history as read_history
    from .training import recipes as recipes
    from .training import train as train
    from .variables import Channel as Channel
    from .variables import Schema as Schema
    from .variables import published_schema as published_schema

__version__ = "0.1.0"

# Found on first use: torch alone takes longer to import than looking at a Dataset should.
_HOMES = {
    "checkpoint": ("LicenseNotice", "Model", "convert_published", "load_model"),
    "data": ("open_sample",),
    "evaluation": ("benchmark",),
    "forecast": ("check", "forecast", "rollout"),
    "grid": ("LatLonGrid",),
    "healpix": ("to_healpix", "to_latlon"),
    "model": ("Mosaic", "MosaicConfig", "StageConfig"),
    "report": ("to_markdown", "write_report"),
    "store": ("IncompleteForecast", "open_forecast", "written"),
    "training": ("Stage", "TrainConfig", "plot_history", "read_history", "train"),
    "dialects": ("to_dialect",),
    "variables": ("Channel", "Schema", "published_schema"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
# Public modules, and where they are.
_ROOMS = {
    "diagnostics": "diagnostics",
    "explore": "explore",
    "plot": "plot",
    "tracks": "tracks",
    "recipes": "training.recipes",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _ROOMS:
        return import_module(f".{_ROOMS[name]}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module 'xmosaic' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_ROOMS})
