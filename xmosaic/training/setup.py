"""What is trained: the channels and the network that a configuration, the data and the weights to begin with make."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import xarray as xr

from ..checkpoint import Model
from ..dialects import known_variables, standardise
from ..errors import ArgumentError, CheckpointError, explain
from ..model import MosaicConfig
from ..variables import Schema, listed
from .config import TrainConfig


def datasets_of(ds: Any) -> list[xr.Dataset]:
    """One or several Datasets as a list, or `ArgumentError`."""
    several = [ds] if isinstance(ds, xr.Dataset) else list(ds) if isinstance(ds, list | tuple) else []
    if not several or not all(isinstance(one, xr.Dataset) for one in several):
        got = f"{type(ds).__name__}" + (f" of {listed({type(one).__name__ for one in several})}" if several else "")
        raise ArgumentError(
            explain("There is no Dataset to train on", got=got, expected="a Dataset, or a list of them")
        )
    return several


def channels_of(ds: xr.Dataset, config: TrainConfig, start: Model | None) -> Schema:
    """Channels to train: those of the configuration, else those of the model to begin with, else all that are known.

    Parameters
    ----------
    ds : Dataset
    config : TrainConfig
    start : Model, optional

    Returns
    -------
    Schema
    """
    if config.variables is not None:
        return Schema.from_variables(dict(config.variables), forcing=config.forcing, static=config.static)
    return _known_channels(ds, config) if start is None else start.schema


def _known_channels(ds: xr.Dataset, config: TrainConfig) -> Schema:
    """All state variables of a Dataset that are known, with the levels on which they have values."""
    variables = {n: v for n, v in known_variables(ds).items() if n not in (*config.forcing, *config.static)}
    if not variables:
        raise ArgumentError(explain("No variable of the Dataset is known", do="Pass variables= in the configuration"))
    # in our own layout a variable is NaN on levels that only others have
    first = standardise(ds, Schema.from_variables(variables)).isel(time=0)
    for name, levels in variables.items():
        if levels is not None:
            empty = first[name].isnull().all([d for d in first[name].dims if d != "level"])
            variables[name] = [level for level in levels if not bool(empty.sel(level=level))]
    return Schema.from_variables(variables, forcing=config.forcing, static=config.static)


def network_of(config: TrainConfig, schema: Schema, start: Model | None) -> MosaicConfig:
    """The configuration's network with the schema's numbers of channels.

    Parameters
    ----------
    config : TrainConfig
    schema : Schema
    start : Model, optional

    Returns
    -------
    MosaicConfig

    Raises
    ------
    CheckpointError
        Where the weights to begin with are for other steps or histories, or predict differences and these don't.
    """
    counts: Any = {
        "num_variables": len(schema.state),
        "num_forcings": len(schema.forcing),
        "num_static": len(schema.static),
    }
    network = dataclasses.replace(config.network, **counts)
    for name in ("num_history", "step_hours", "residual") if start is not None else ():
        before, now = getattr(start.config, name), getattr(network, name)  # type: ignore[union-attr]
        if before != now:
            what, do = f"The weights to begin with have another {name}", "Set it in the configuration's network"
            raise CheckpointError(explain(what, got=str(before), expected=str(now), do=do))
    return network


def same_config(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ArgumentError where a run is to go on with another configuration, as `TrainConfig.to_dict` gives them."""
    now = json.loads(json.dumps(now))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        name = changed[0]
        raise ArgumentError(
            explain(
                f"The run was begun with another {name}",
                got=str(now[name])[:200],
                expected=str(before.get(name))[:200],
                do="Resume with the configuration it was begun with, or train in another folder, "
                "with init= if its weights are to begin with",
            )
        )
