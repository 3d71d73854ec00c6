"""What goes along with a run of updates: the learning rate, the running mean of the weights, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..errors import ArgumentError, CheckpointError, explain
from ..variables import listed
from .config import Stage
from .shards import assign, local

_WARMUP_START = 1e-6


# -------- the course of the rate --------


def learning_rate(stage: Stage, place: int) -> float:
    """Muon's learning rate of an update.

    Linear from 1e-6 η at the first update to η at update `stage.warmup`, then a cosine to `stage.final_rate` · η at the
    last one. A last update that follows the warm-up at once has η.

    Parameters
    ----------
    stage : Stage
        η is its `learning_rate`.
    place : int
        Of the update in the stage, from 0.

    Returns
    -------
    float

    Examples
    --------
    >>> stage = Stage(updates=7, warmup=2, learning_rate=0.02, final_rate=0.5)
    >>> [round(learning_rate(stage, place), 6) for place in range(7)]
    [0.0, 0.01, 0.02, 0.018536, 0.015, 0.011464, 0.01]
    """
    if not 0 <= place < stage.updates:
        expected = f"0 to {stage.updates - 1}"
        raise ArgumentError(explain("place is beyond the stage", got=str(place), expected=expected))
    if place < stage.warmup:
        return stage.learning_rate * (_WARMUP_START + (1 - _WARMUP_START) * place / stage.warmup)
    length = stage.updates - 1 - stage.warmup
    part = (place - stage.warmup) / length if length else 0.0
    # cos² of half the angle; at the end 0 itself, where a rounding would be left
    left = math.cos(math.pi * part / 2) ** 2 if part < 1 else 0.0
    return stage.learning_rate * (stage.final_rate + (1 - stage.final_rate) * left)


# -------- the running mean --------


class Ema:
    """Running mean of the weights, in float32 or the weights' wider type.

    At update t = 0, 1, …: mean ← d_t · mean + (1 − d_t) · weights, d_t = min(decay, (1 + t) / (10 + t)). With the early
    updates' smaller d the random weights of the beginning are soon forgotten: as d_t ≈ 1 − 9/t, the mean reaches back
    over about a ninth of the updates, until `decay` takes over at t ≈ 9 / (1 − decay).

    Parameters
    ----------
    network : Module
        Where the mean begins.
    decay : float
        Between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ArgumentError(explain("decay can't be used", got=repr(decay), expected="between 0 and 1"))
        self.decay, self.updates, self._in_use = decay, 0, False
        self._mean = {name: _wide(weight).clone() for name, weight in network.named_parameters()}

    def update(self, network: nn.Module) -> None:
        """Add the weights as they are now.

        Parameters
        ----------
        network : Module
        """
        self._check_free()
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = dict(network.named_parameters())
        means = [local(mean) for mean in self._mean.values()]
        get_ema_multi_avg_fn(decay)(means, [local(_wide(weights[name])) for name in self._mean], None)
        self.updates += 1

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Within, the network's weights are the mean; afterwards what they were, whatever happens.

        Parameters
        ----------
        network : Module
            Its tensors stay the same objects, so that optimisers and wrappers notice nothing.
        """
        self._check_free()
        weights = {name: weight.detach() for name, weight in network.named_parameters()}
        before = {name: weight.clone() for name, weight in weights.items()}
        self._in_use = True
        try:
            for name, mean in self._mean.items():
                assign(weights[name], mean)
            yield
        finally:
            for name, weight in weights.items():
                assign(weight, before[name])
            self._in_use = False

    def _check_free(self) -> None:
        if self._in_use:
            what = "The network's weights are the running mean at the moment"
            raise ArgumentError(explain(what, do="Leave `with ema.applied(network)` first"))

    def state_dict(self) -> dict[str, Any]:
        """``updates`` and ``mean``, by the parameters' names; the tensors themselves, not copies."""
        return {"updates": self.updates, "mean": dict(self._mean)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take over a mean.

        Parameters
        ----------
        state : mapping
            Of `state_dict`.
        strict : bool
            False: parameters that are unknown there or have another shape keep the mean they have.

        Raises
        ------
        CheckpointError
            If names or shapes differ, unless `strict` is False.
        """
        given = state["mean"]
        if strict:
            check_names("running mean", given, self._mean)
        for name, mean in self._mean.items():
            fits = name in given and given[name].shape == mean.shape
            if strict and not fits:
                got, expected = str(tuple(given[name].shape)), str(tuple(mean.shape))
                raise CheckpointError(explain(f"The running mean of {name!r} misfits", got=got, expected=expected))
            if fits:
                assign(mean, given[name])
        self.updates = int(state["updates"])


def _wide(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


# -------- when to stop --------


class EarlyStopping:
    """Says when a score has not improved for a while.

    Parameters
    ----------
    patience : int, optional
        Stop at the so manieth value in a row that is not below the best; None: never.

    Attributes
    ----------
    best : float
        Lowest value so far, infinite before the first.
    waited : int
        Values since then; 0 right after an improvement.

    Examples
    --------
    >>> stopper = EarlyStopping(2)
    >>> [stopper.update(value) for value in (3.0, 2.0, 2.0, float("nan"))]
    [False, False, False, True]
    """

    def __init__(self, patience: int | None) -> None:
        if patience is not None and patience < 1:
            raise ArgumentError(explain("patience can't be used", got=str(patience), expected="1 or more, or None"))
        self.patience, self.best, self.waited = patience, math.inf, 0

    def update(self, value: float) -> bool:
        """Add a value, of which less is better; NaN is no improvement.

        Parameters
        ----------
        value : float

        Returns
        -------
        bool
            Whether to stop.
        """
        better = value < self.best
        self.best, self.waited = (float(value), 0) if better else (self.best, self.waited + 1)
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, float | int]:
        """``best`` and ``waited``."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.best, self.waited = float(state["best"]), int(state["waited"])


def check_names(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raise CheckpointError where names of parameters differ from those expected."""
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        parts = [f"{word} {listed(names, 3)}" for word, names in (("without", missing), ("with", unknown)) if names]
        do = "Pass strict=False to begin afresh where they differ"
        raise CheckpointError(explain(f"The {what} is of another network", got=" and ".join(parts), do=do))
