"""How the networks are trained: parts of a run, plans made of them, and the configuration of each part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import simulate
from variants import BAND_WEIGHT, MSE, SIZES, VARIANTS, network

from xmosaic import Stage, TrainConfig

LEVELS = (250, 500, 700, 850)
VARIABLES = {name: None for name in simulate.SURFACE} | {name: LEVELS for name in simulate.UPPER}
RATE = 0.02
BATCH, ROLLOUT = 16, 3  # samples per update, fewer in rollouts; steps of these
NAMES = ("still", "1", "low", "3")  # of parts; each has an order of samples of its own


@dataclass(frozen=True)
class Part:
    """One run of a plan; its best weights begin the next.

    Parameters
    ----------
    name : {"still", "1", "low", "3"}
        Of its folder.
    share : float
        Of the time.
    rollout : int
        Steps of a sample.
    members : int, optional
        Of an ensemble; by default what the variant has.
    rate : float
        Learning rate over `RATE`.
    fewer : int
        How many times fewer samples per update than `--batch`.
    still : bool
        Without noise, on squared error.
    fine : bool
        Scores of scales with the size's finer bands.
    training : mapping
        Further fields of the `TrainConfig`; the variant's own come after them.
    """

    name: str
    share: float
    rollout: int = 1
    members: int | None = None
    rate: float = 1.0
    fewer: int = 1
    still: bool = False
    fine: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)

    def stage(self, batch: int, updates: int) -> Stage:
        """Of so many updates."""
        warmup = min(50, updates // 10) if self.rollout == 1 else updates // 10
        return Stage(updates, self.rollout, self.samples(batch), RATE * self.rate, warmup=warmup)

    def samples(self, batch: int) -> int:
        """Of an update."""
        return max(1, batch // self.fewer)


# Of the power that the first bundled model had too much of at zonal wavenumbers from 24 on, 97 % and more were beyond
# the last degree that the grid's rows resolve, where one band held degrees 25 and up: see docs/benchmark.md.
FINE: dict[str, Any] = {"fine": True}
# of the noise that bfloat16 adds to an output, that part of the spectrum has a tenth of the truth's power
EXACT = {"precision": "float32"}
HEAVY = {"band_weight": 1.0}
# by states, geopotential counts a sixteenth of what vertical velocity does, and its members are too far apart
EVEN = {"error_scale": "change"}

# for a model that has been trained before: --begin
FURTHER = (
    Part("1", 0.5, rate=0.4, **FINE),
    Part("low", 0.3, members=4, rate=0.1, fewer=2, fine=True, training=HEAVY | {"ema": 0.999}),
    Part("3", 0.2, ROLLOUT, members=4, rate=0.05, fewer=4, fine=True, training=HEAVY),
)

PLANS = {
    "direct": (Part("1", 0.75), Part("3", 0.25, ROLLOUT, rate=0.25, fewer=2)),
    # a network without noise learns more per second: one member, and an error that no draw of noise blurs
    "warm": (
        Part("still", 0.3, still=True),
        Part("1", 0.35, rate=0.5, **FINE),
        Part("low", 0.2, members=4, rate=0.2, fewer=2, fine=True, training=HEAVY | {"ema": 0.999}),
        Part("3", 0.15, ROLLOUT, members=4, rate=0.05, fewer=4, fine=True, training=HEAVY),
    ),
    # against too much power at the smallest scales, and too much spread in the first days
    "careful": (
        Part("1", 0.55, **FINE),
        Part("low", 0.25, members=4, rate=0.2, fewer=2, fine=True, training=HEAVY | {"ema": 0.999}),
        Part("3", 0.2, ROLLOUT, members=4, rate=0.05, fewer=4, fine=True, training=HEAVY),
    ),
    "further": FURTHER,
    "even": tuple(dataclasses.replace(part, training={**part.training, **EVEN}) for part in FURTHER),
    # single changes of "direct", to tell which of them helps
    "fine": (Part("1", 0.75, **FINE), Part("3", 0.25, ROLLOUT, rate=0.25, fewer=2, **FINE)),
    "heavy": (
        Part("1", 0.75, fine=True, training=HEAVY),
        Part("3", 0.25, ROLLOUT, rate=0.25, fewer=2, fine=True, training=HEAVY),
    ),
    "low": (
        Part("1", 0.5, **FINE),
        Part("low", 0.25, members=4, rate=0.2, fewer=2, **FINE),
        Part("3", 0.25, ROLLOUT, rate=0.05, fewer=2, **FINE),
    ),
    "exact": (
        Part("1", 0.5, **FINE),
        Part("low", 0.25, rate=0.2, fine=True, training=EXACT),
        Part("3", 0.25, ROLLOUT, rate=0.05, fewer=2, fine=True, training=EXACT),
    ),
}


def settings(
    periods: dict[str, Any],
    part: Part,
    stage: Stage,
    variant: str = "bundled",
    size: str = "bundled",
    precision: str = "float32",
    seed: int = 0,
) -> TrainConfig:
    """Fair CRPS of two members, of the fields and of their scales; each part is a run with a best of its own."""
    chosen, bands = VARIANTS[variant], SIZES[size].fine if part.fine else SIZES[size].bands
    config = chosen.network(network(size))
    usual = {"members": 2, "loss": "crps", "bands": bands, "band_weight": BAND_WEIGHT, "ema": 0.998}
    usual |= {"precision": precision, **part.training, **chosen.training}
    if part.still:
        config, usual = dataclasses.replace(config, noise_dim=0), usual | MSE
    elif part.members and config.noise_dim:
        usual |= {"members": part.members}
    return TrainConfig(
        network=config,
        stages=(stage,),
        **periods,
        variables=VARIABLES,
        **usual,
        channel_weights="uniform",
        adam_rate=0.2,
        seed=seed + NAMES.index(part.name),
        validate_every=max(1, stage.updates // (4 if stage.rollout == 1 else 2)),
        validation_samples=24,
        save_every=10**9,
    )


def fit_updates(minutes: float, parts: Sequence[Part], seconds: Sequence[float]) -> list[int]:
    """Updates of each part that fill the minutes; a twentieth is left for validation.

    >>> fit_updates(4.0, PLANS["direct"], [0.05, 0.1])
    [3420, 570]
    """
    whole = 60 * minutes * 0.95
    return [max(20, int(whole * part.share / each)) for part, each in zip(parts, seconds, strict=True)]
