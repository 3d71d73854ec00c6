"""Weights to begin with: the same network, or one whose channels were added, left out or put in another order."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..checkpoint import Model, load_model
from ..errors import ArgumentError, CheckpointError, explain
from ..model import Mosaic
from ..variables import Schema, listed

# How the noise comes in. A network that is to have some may begin with one that has none, and the other way round.
_NOISE = ("noise_generator.to_noise.weight", ".noise_bias.weight")
# The two weights whose shapes depend on what the channels are.
_INPUT, _OUTPUT = "preprocess.0.weight", "postprocess.3.weight"


def init_model(init: str | os.PathLike[str] | Model) -> Model:
    """The model that weights are taken from.

    Parameters
    ----------
    init : str, path or Model

    Returns
    -------
    Model
    """
    if not isinstance(init, str | os.PathLike | Model):
        raise ArgumentError(explain("init can't be used", got=repr(init), expected="a model, its name or its path"))
    return load_model(init)


@torch.no_grad()
def adapt_weights(start: Model, network: Mosaic, schema: Schema) -> list[str]:
    """Copy weights by name; channels by theirs.

    An input channel that is new begins with weights 0, so that what was learnt isn't disturbed; an output channel
    keeps the weights it was just given, and so do those of the noise if there was none: members begin nearly alike.

    Parameters
    ----------
    start : Model
    network : Mosaic
        Initialised; changed in place.
    schema : Schema
        Of the network.

    Returns
    -------
    list of str
        Channels that are new.

    Raises
    ------
    CheckpointError
        Where another weight doesn't fit.
    """
    source = dict(start.network.named_parameters())
    target = dict(network.named_parameters())
    noise = {name for name in source.keys() ^ target.keys() if name.endswith(_NOISE)}
    if names := sorted((source.keys() ^ target.keys()) - noise):
        raise CheckpointError(
            explain(
                "The network to train has other weights than those to begin with",
                got=listed(names),
                do="Take the network of the model: dataclasses.replace(config, network=model.config)",
            )
        )
    for name, weight in target.items():
        if name in (_INPUT, _OUTPUT) or name in noise:
            continue
        if weight.shape != source[name].shape:
            got, expected = str(tuple(source[name].shape)), str(tuple(weight.shape))
            raise CheckpointError(explain(f"Weight {name!r} has another shape", got=got, expected=expected))
        weight.copy_(source[name])
    _copy_input(source[_INPUT], target[_INPUT], start.schema, schema, network.config.num_history)
    known = {c.name: i for i, c in enumerate(start.schema.state)}
    for row, channel in enumerate(schema.state):
        if channel.name in known:
            target[_OUTPUT][row] = source[_OUTPUT][known[channel.name]]
    every = [c.name for c in (*schema.state, *schema.forcing, *schema.static)]
    before = {c.name for c in (*start.schema.state, *start.schema.forcing, *start.schema.static)}
    return [name for name in every if name not in before]


def _copy_input(old: Any, new: Any, before: Schema, after: Schema, history: int) -> None:
    """Columns are the history's channels, time by time, then static fields, unit vector and clock."""

    def columns(schema: Schema) -> dict[Any, int]:
        channels = [c.name for c in (*schema.state, *schema.forcing)]
        names: list[Any] = [(time, name) for time in range(history) for name in channels]
        names += [c.name for c in schema.static] + list(range(3 + 4))
        return {name: place for place, name in enumerate(names)}

    ours, theirs = columns(after), columns(before)
    if len(theirs) != old.shape[1] or len(ours) != new.shape[1]:
        raise CheckpointError(explain("The first layer doesn't fit its channels", got=str(tuple(old.shape))))
    new.zero_()
    for name, place in ours.items():
        if name in theirs:
            new[:, place] = old[:, theirs[name]]
