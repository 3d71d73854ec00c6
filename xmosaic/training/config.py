"""`TrainConfig`: everything that fixes a training run but for the data and the place it is written to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..errors import ArgumentError, explain
from ..model import MosaicConfig, Recompute, check_fields

Period = tuple[str, str]
Loss = Literal["crps", "biased_crps", "mse"]


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one length of rollout and one course of the learning rate.

    Parameters
    ----------
    updates : int
        Steps of the optimiser.
    rollout : int
        Forecast steps per sample; the loss is the mean over them.
    batch_size : int
        Samples per update, over all ranks together.
    learning_rate : float
        Muon's, at its highest; AdamW's follows by `TrainConfig.adam_rate`.
    warmup : int
        Updates of linear rise from 1e-6 times the rate. The cosine to `final_rate` times the rate comes after.
    final_rate : float
        Part of the rate that is left at the end; 1 keeps it constant.
    backprop : int, optional
        Gradients flow through the last so many steps of the rollout; by default through all.

    Examples
    --------
    >>> Stage(updates=1000, rollout=2, batch_size=8, learning_rate=0.01)
    Stage(updates=1000, rollout=2, batch_size=8, learning_rate=0.01, warmup=0, final_rate=0.0, backprop=None)
    """

    updates: int
    rollout: int = 1
    batch_size: int = 16
    learning_rate: float = 0.02
    warmup: int = 0
    final_rate: float = 0.0
    backprop: int | None = None

    def __post_init__(self) -> None:
        for name in ("updates", "rollout", "batch_size"):
            _check_count(name, getattr(self, name))
        good = _is_number(self.learning_rate) and self.learning_rate > 0
        _check(good, "learning_rate", self.learning_rate, "a finite number above 0")
        good = _is_int(self.warmup) and 0 <= self.warmup < self.updates
        _check(good, "warmup", self.warmup, f"0 to {self.updates - 1} (less than updates)")
        _check(_is_number(self.final_rate) and 0 <= self.final_rate <= 1, "final_rate", self.final_rate, "0 to 1")
        good = self.backprop is None or (_is_int(self.backprop) and 1 <= self.backprop <= self.rollout)
        _check(good, "backprop", self.backprop, f"1 to {self.rollout} (rollout), or None")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Parameters
    ----------
    network : MosaicConfig
        Size and arithmetic. Its numbers of variables, forcings and static fields are set from `variables`, `forcing`
        and `static` when training starts.
    stages : tuple of Stage
        One after another; each begins with the weights and the optimiser's memory of the one before.
    train, validation : (str, str)
        First and last time, both within, such as ``("1979", "2017-12-31")``. A sample lies in one of them with all of
        its times.
    test : (str, str), optional
        Never read; must not overlap the others.
    variables : mapping of str to list of int or None, optional
        State variables with their levels [hPa], None for those without; by default all known ones of the Dataset.
    forcing, static : str or tuple of str
        Variables that are given and never predicted.
    members : int
        Members per sample in the loss; 1 only for loss "mse".
    loss : {"crps", "biased_crps", "mse"}
        Fair CRPS; CRPS of the empirical distribution; squared error, mean over members.
    channel_weights : {"level", "uniform"} or mapping of str to float
        α: proportional to pressure on levels, 1 for 2 m temperature, 0.1 for other surface fields; all alike; or by
        channel or variable, missing ones 1. Scaled to mean 1.
    bands : tuple of int
        Degrees of spherical harmonics that cut the fields into bands, each of which gets a loss of its own besides the
        field's, over its own size; see `xmosaic.training.bands.Bands`. None by default, as in the paper.
    band_weight : float
        Weight of the bands' mean loss; the field's own has 1.
    error_scale : {"state", "change"}
        What errors are measured in: the standard deviation of each channel (and size of each band), or how much it
        changes in a step. By the first, fields that hardly change, such as geopotential, count little beside those that
        can't be forecast as well, such as vertical velocity.
    area_statistics : bool
        Mean and standard deviation with cell areas; the published ones are without.
    adam_rate : float
        AdamW's learning rate over Muon's.
    weight_decay : float
        Of AdamW and Muon, on matrices.
    momentum : float
        Muon's.
    betas : (float, float)
        AdamW's.
    clip : float, optional
        Largest norm of the gradient.
    ema : float, optional
        Decay per update of the running mean of the weights, which is what is validated and kept; None: the weights
        themselves.
    precision : {"float32", "bfloat16"}
        Arithmetic of the matrix products; weights, sums and optimiser are float32.
    checkpoint_activations : bool or "feed_forward"
        Compute activations again on the way back instead of keeping them: all that blocks have, or only those of their
        feed-forward layers, which are half of them and cheap.
    seed : int
        Of weights, order of samples and noise.
    validate_every, validation_samples, validation_members : int
        Updates between validations; how many samples, evenly spread over the period; members of each, 2 or more except
        for loss "mse".
    patience : int, optional
        Stop a stage after so many validations without a better CRPS.
    save_every : int
        Updates between checkpoints.
    frozen : str or tuple of str
        Patterns (fnmatch) of parameter names that aren't trained.

    Examples
    --------
    >>> import xmosaic
    >>> config = xmosaic.recipes.small(train=("2000", "2015"), validation=("2016", "2016"), updates=500)
    >>> config.updates
    500
    >>> type(config).from_dict(config.to_dict()) == config
    True
    """

    network: MosaicConfig
    stages: tuple[Stage, ...]
    train: Period
    validation: Period
    test: Period | None = None
    variables: Mapping[str, Any] | None = None
    forcing: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    members: int = 2
    loss: Loss = "crps"
    channel_weights: Any = "level"
    bands: tuple[int, ...] = ()
    band_weight: float = 0.3
    error_scale: Literal["state", "change"] = "state"
    area_statistics: bool = False
    adam_rate: float = 0.03
    weight_decay: float = 0.01
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    ema: float | None = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_activations: Recompute = False
    seed: int = 0
    validate_every: int = 500
    validation_samples: int = 32
    validation_members: int = 8
    patience: int | None = None
    save_every: int = 500
    frozen: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("forcing", "static", "frozen"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        for name in ("stages", "betas", "bands"):
            _check(isinstance(getattr(self, name), tuple | list), name, getattr(self, name), "a tuple or list")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "variables", _levels(self.variables))
        for name in ("train", "validation", "test"):
            object.__setattr__(self, name, _dates(getattr(self, name)))
        _check(isinstance(self.network, MosaicConfig), "network", type(self.network).__name__, "a MosaicConfig")
        good = len(self.stages) >= 1 and all(isinstance(s, Stage) for s in self.stages)
        _check(good, "stages", self.stages, "at least one Stage")
        _check(self.loss in ("crps", "biased_crps", "mse"), "loss", self.loss, "'crps', 'biased_crps' or 'mse'")
        least = 1 if self.loss == "mse" else 2
        _check_count("members", self.members, least)
        if least == 2:
            _check(self.network.noise_dim > 0, "noise_dim", 0, "above 0: members of an ensemble need noise")
        for name in ("validate_every", "validation_samples", "save_every"):
            _check_count(name, getattr(self, name))
        _check_count("validation_members", self.validation_members, least)  # fair CRPS needs two
        _check(self.error_scale in ("state", "change"), "error_scale", self.error_scale, "'state' or 'change'")
        _check(isinstance(self.area_statistics, bool), "area_statistics", self.area_statistics, "True or False")
        again = self.checkpoint_activations
        good = isinstance(again, bool) or again == "feed_forward"
        _check(good, "checkpoint_activations", again, "True, False or 'feed_forward'")
        good = all(_is_int(n) and n >= 1 for n in self.bands) and list(self.bands) == sorted(set(self.bands))
        _check(good, "bands", self.bands, "ascending degrees from 1 up")
        above_zero = ("adam_rate", "weight_decay", "band_weight")
        for name, low, high in (("momentum", 0, 1), *((name, 0, math.inf) for name in above_zero)):
            value = getattr(self, name)
            _check(_is_number(value) and low <= value < high, name, value, f"{low} up to below {high}")
        good = len(self.betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in self.betas)
        _check(good, "betas", self.betas, "two numbers from 0 to below 1")
        _check(self.clip is None or (_is_number(self.clip) and self.clip > 0), "clip", self.clip, "above 0, or None")
        _check(
            self.ema is None or (_is_number(self.ema) and 0 < self.ema < 1), "ema", self.ema, "between 0 and 1, or None"
        )
        _check(self.precision in ("float32", "bfloat16"), "precision", self.precision, "'float32' or 'bfloat16'")
        _check(_is_int(self.seed) and 0 <= self.seed < 2**63, "seed", self.seed, "0 to 2⁶³ − 1")
        good = self.patience is None or (_is_int(self.patience) and self.patience >= 1)
        _check(good, "patience", self.patience, "1 or more, or None")
        _check_weights(self.channel_weights)
        _check_periods({"train": self.train, "validation": self.validation, "test": self.test})

    @property
    def updates(self) -> int:
        """Updates of all stages together."""
        return sum(stage.updates for stage in self.stages)

    def stage_at(self, update: int) -> tuple[int, Stage, int]:
        """Number of the stage that an update (from 0) belongs to, the stage, and the update's place in it.

        Parameters
        ----------
        update : int

        Returns
        -------
        (int, Stage, int)
        """
        first = 0
        for number, stage in enumerate(self.stages):
            if update < first + stage.updates:
                return number, stage, update - first
            first += stage.updates
        raise ArgumentError(explain(f"Update {update} is beyond the last stage", expected=f"0 to {self.updates - 1}"))

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of numbers, strings and lists, ready for JSON."""
        plain = dataclasses.asdict(self)
        plain["network"] = self.network.to_dict()
        plain["stages"] = [dataclasses.asdict(s) for s in self.stages]
        plain["variables"] = None if self.variables is None else dict(self.variables)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Inverse of `to_dict`; unknown or missing fields raise `ArgumentError`."""
        _check(isinstance(values, Mapping), "The dict", values, "that of to_dict")
        given = dict(values)
        check_fields(cls, given)
        _check(isinstance(given["network"], Mapping), "network", given["network"], "a dict")
        given["network"] = MosaicConfig.from_dict(given["network"])
        stages = given["stages"]
        good = isinstance(stages, tuple | list) and all(isinstance(s, Mapping) for s in stages)
        _check(good, "stages", stages, "a list of dicts")
        for stage in stages:
            check_fields(Stage, stage)
        given["stages"] = tuple(Stage(**s) for s in stages)
        return cls(**given)


def bounds(period: Period) -> tuple[pd.Timestamp, pd.Timestamp]:
    """First and last moment of a period; a last day, month or year counts to its end.

    Examples
    --------
    >>> [str(t)[:19] for t in bounds(("1979", "2017"))]
    ['1979-01-01 00:00:00', '2017-12-31 23:59:59']
    """
    first, last = (pd.Period(text) for text in period)
    return first.start_time, last.end_time


def _names(name: str, given: Any) -> tuple[str, ...]:
    """Several names, or one; a string is not taken for its letters."""
    several = (given,) if isinstance(given, str) else given
    good = isinstance(several, tuple | list) and all(isinstance(one, str) for one in several)
    _check(good, name, given, "names, such as a tuple of str")
    return tuple(several)


def _levels(variables: Any) -> dict[str, list[int] | None] | None:
    """Levels by variable as plain lists, which survive JSON."""
    if variables is None:
        return None
    good = isinstance(variables, Mapping) and all(isinstance(name, str) for name in variables)
    _check(good, "variables", variables, "levels by name, such as {'2m_temperature': None, 'geopotential': [500]}")
    found: dict[str, list[int] | None] = {}
    for name, levels in variables.items():
        several = None if levels is None else np.atleast_1d(levels)
        good = several is None or (several.dtype.kind in "iuf" and bool((several == np.round(several)).all()))
        _check(good, f"variables[{name!r}]", levels, "whole levels [hPa], or None")
        found[name] = None if several is None else [int(level) for level in several]
    return found


def _dates(period: Any) -> Any:
    """Dates of any kind as text; what is no pair is left to be complained of."""
    return tuple(str(date) for date in period) if isinstance(period, tuple | list) else period


def _check_periods(periods: dict[str, Period | None]) -> None:
    found: dict[str, tuple[pd.Timestamp, pd.Timestamp]] = {}
    for name, period in periods.items():
        if period is None:
            continue
        good = isinstance(period, tuple) and len(period) == 2
        _check(good, name, period, "two dates, the first and the last")
        try:
            first, last = bounds(period)
        except (ValueError, TypeError):
            raise ArgumentError(
                explain(f"{name} has no two dates", got=str(period), expected="such as '2018'")
            ) from None
        _check(first < last, name, period, "the earlier date first")
        for other, (begin, end) in found.items():
            if first <= end and begin <= last:
                raise ArgumentError(
                    explain(
                        f"The periods {other} and {name} overlap",
                        got=f"{periods[other]} and {period}",
                        expected="periods apart",
                        do="Shorten one: scores on times that were trained on mean nothing",
                    )
                )
        found[name] = (first, last)


def _check_weights(weights: Any) -> None:
    if isinstance(weights, Mapping):
        good = all(_is_number(w) and w >= 0 for w in weights.values()) and any(w > 0 for w in weights.values())
        _check(good, "channel_weights", dict(weights), "numbers from 0 up, one above 0")
    else:
        _check(weights in ("level", "uniform"), "channel_weights", weights, "'level', 'uniform' or a mapping")


def _check(condition: bool, name: str, got: Any, expected: str) -> None:
    if not condition:
        raise ArgumentError(explain(f"{name} can't be used in training", got=repr(got), expected=expected))


def _check_count(name: str, value: Any, least: int = 1) -> None:
    _check(_is_int(value) and value >= least, name, value, f"a whole number, {least} or more")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
