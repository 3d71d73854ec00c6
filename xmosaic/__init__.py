"""Ensemble weather forecasts from an xarray Dataset."""

__version__ = "0.1.0"
