"""Recipes: functions that return a `TrainConfig`. Change fields of one with `dataclasses.replace`."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from ..checkpoint import Model, load_model
from ..errors import ArgumentError, explain
from ..model import PUBLISHED, MosaicConfig, StageConfig
from ..variables import published_schema
from .config import Period, Stage, TrainConfig

# The paper's base rate and warm-up, arXiv 2604.16429
_RATE = 0.02
_WARMUP = 500
# Network and AdamW's rate of `small` are the published ones at this size.
_FULL = 64
_FULL_ADAM_RATE = 0.03


def paper_era5(
    train: Period = ("1979", "2017"), validation: Period = ("2018", "2018"), test: Period | None = ("2020", "2020")
) -> TrainConfig:
    """The published `era5` variant, trained here: 214 184 448 parameters, steps of 24 h, ERA5 on 1.5°.

    From the paper (arXiv 2604.16429): network, channels and static fields; statistics without area weights; fair CRPS
    with area weights; base rate 0.02; pretraining without warm-up, with a cosine; then stages of longer rollouts, each
    with 500 updates of linear warm-up from 1e-6 of the rate, then a cosine; early stopping on the validation loss; ERA5
    of 2020 for the test. Unlike that of the published weights, the network groups heads consistently and has the
    calendar's clock.

    Chosen here, since it isn't public or not known to us: the years for training and validation; 100 000 updates of 16
    samples, then rollouts of 2, 4 and 8 steps with 5000 updates each, at the base rate and down to 0; 2 members; α by
    level; AdamW's rate (0.03 of Muon's) and betas, momentum 0.95, weight decay 0.01; gradients clipped at norm 1; a
    running mean of the weights over about 1000 updates; bfloat16, activations computed again; one validation each 1000
    updates on 64 samples of 8 members, and 10 of them of patience.

    Parameters
    ----------
    train, validation, test : (str, str)
        First and last time.

    Returns
    -------
    TrainConfig

    References
    ----------
    arXiv:2604.16429

    Examples
    --------
    >>> config = paper_era5()
    >>> config.train, [stage.updates for stage in config.stages]
    (('1979', '2017'), [100000, 5000, 5000, 5000])
    """
    return _paper("era5", _stages(100_000, (2, 4, 8)), train, validation, test)


def paper_hres(
    init: str | os.PathLike[str] | Model | None = None,
    train: Period | None = None,
    validation: Period | None = None,
    test: Period | None = ("2022", "2022"),
) -> TrainConfig:
    """The published `hres` variant, trained here: 214 310 400 parameters, steps of 6 h, first ERA5, then HRES-fc0.

    It takes two runs: ``first = train(era5, paper_hres())``, then ``train(hres, paper_hres(init=first), init=first)``.

    From the paper (arXiv 2604.16429): as in `paper_era5`, four times of history, training on ERA5 first and then on the
    analyses of HRES in 2016–2021, HRES of 2022 for the test.

    Chosen here: as in `paper_era5`, and: ERA5 of 1979–2017 and 2018; of 2016–2021 the last year is for validation; the
    rollouts of 2, 4 and 8 steps on ERA5, and on HRES stages of 10 000 updates of single steps and 5000 each of 4 and 8
    steps, all with warm-up since the weights are trained.

    Parameters
    ----------
    init : str, path or Model, optional
        Weights that the training on HRES begins with, whose network it takes over; pass them to `train` too. None: the
        training on ERA5 that comes before.
    train, validation, test : (str, str), optional
        First and last time; by default 1979–2017 and 2018 on ERA5, 2016–2020 and 2021 on HRES.

    Returns
    -------
    TrainConfig

    Raises
    ------
    ArgumentError
        For periods that don't go with the rest.

    References
    ----------
    arXiv:2604.16429

    Examples
    --------
    >>> [stage.rollout for stage in paper_hres().stages]
    [1, 2, 4, 8]
    """
    if init is None:
        stages = _stages(100_000, (2, 4, 8))
        return _paper("hres", stages, train or ("1979", "2017"), validation or ("2018", "2018"), test)
    network = load_model(init).config
    if network.step_hours != 6:
        got = f"steps of {network.step_hours} h"
        what = "The weights to begin with are of another variant"
        raise ArgumentError(explain(what, got=got, expected="steps of 6 h"))
    stages = (_longer(1, 10_000), _longer(4), _longer(8))
    config = _paper("hres", stages, train or ("2016", "2020"), validation or ("2021", "2021"), test)
    return dataclasses.replace(config, network=network)


def small(
    size: float = 1.0,
    *,
    train: Period,
    validation: Period,
    test: Period | None = None,
    nside: int = 16,
    step_hours: int = 24,
    history: int = 2,
    members: int = 2,
    updates: int = 300,
    rollout: int = 1,
    neighbors: int = 16,
    residual: bool = False,
    **changes: Any,
) -> TrainConfig:
    """A model of any size, with one dial; the default is for two cores: minutes on a 6° grid, nearly an hour on 1°.

    With r = size / 64, so that size 64 has the published widths and depths:

    - widths 768, 1024, 1280 · r^½, rounded to heads · a multiple of 8; one key/value head per 256 and four heads each;
    - size^⅓ blocks per encoder stage, size^⅙ per decoder stage and in the bottleneck, rounded;
    - 16 · r^⅓ samples per update, rounded;
    - AdamW's rate ∝ 1 / width; Muon's is 0.02 at all widths, which its own factor allows (see `Optimiser`).

    So parameters grow a little faster than `size`, and cost like parameters times points, 12 · nside². With 4
    channels and one static field:

    =====  ================  ======  ===========  =====  ============
    size   widths            blocks  parameters   batch  AdamW's rate
    =====  ================  ======  ===========  =====  ============
    0.25   64, 64, 64        5       450 432      3      0.0072
    1      96, 128, 160      5       1 552 320    4      0.0048
    4      192, 256, 320     7       7 550 080    6      0.0024
    16     384, 512, 640     12      47 891 712   10     0.0012
    64     768, 1024, 1280   14      214 003 200  16     0.0006
    =====  ================  ======  ===========  =====  ============

    Blocks of the attention cover what the published ones do, so have fewer points on coarser meshes: local ones
    `nside`²/4 within 64 … 1024, selected ones `nside`²/32 within 16 … 128, of which as many are picked as there. At
    size 64 and `nside` 64 the network is the published one.

    Parameters
    ----------
    size : float
        Above 0; there are 1.5 to 3.5 million parameters for each 1 of it.
    train, validation, test : (str, str)
        First and last time.
    nside : int
        Of the finest mesh, 4 or more, a power of two; 16 has 3072 points, 3.7° apart.
    step_hours, history, members : int
        Hours per step; times that the network sees; members in the loss.
    updates : int
        Steps of the optimiser on single steps.
    rollout : int
        More than 1: a fifth of `updates` more, with rollouts of so many steps and a tenth of warm-up.
    neighbors : int
        Source points of the interpolations between grid and mesh.
    residual : bool
        Predict the difference from the newest state instead of the next one.
    **changes
        Other fields of `TrainConfig`, such as ``variables`` or ``seed``.

    Returns
    -------
    TrainConfig

    Raises
    ------
    ArgumentError
        For a size, mesh or change that can't be used.

    Examples
    --------
    >>> config = small(0.5, train=("2000", "2015"), validation=("2016", "2016"), updates=1000, seed=1)
    >>> config.updates
    1000
    """
    if isinstance(size, bool) or not (isinstance(size, int | float) and 0 < size < math.inf):
        raise ArgumentError(explain("size can't be used", got=repr(size), expected="a number above 0"))
    if rollout < 1:
        raise ArgumentError(explain("rollout can't be used", got=str(rollout), expected="1 or more"))
    network = dataclasses.replace(small_network(size, nside, step_hours, history, neighbors), residual=residual)
    batch = max(1, round(16 * (size / _FULL) ** (1 / 3)))
    stages = [Stage(updates, 1, batch, _RATE)]
    if rollout > 1:
        more = max(1, updates // 5)
        stages.append(Stage(more, rollout, batch, _RATE, warmup=more // 10))
    every = max(1, updates // 5)
    settings: dict[str, Any] = {
        "adam_rate": _FULL_ADAM_RATE * PUBLISHED["era5"].stages[0].dim / network.stages[0].dim,
        "members": members,
        "validate_every": every,
        "save_every": every,
        "validation_samples": 16,
    }
    return TrainConfig(
        network=network,
        stages=tuple(stages),
        train=train,
        validation=validation,
        test=test,
        **(settings | changes),
    )


def small_network(size: float, nside: int, step_hours: int, history: int, neighbors: int) -> MosaicConfig:
    """Network of `small`: two stages and a bottleneck; numbers of channels are set when training starts.

    Parameters
    ----------
    size, nside, step_hours, history, neighbors
        See `small`.

    Returns
    -------
    MosaicConfig
    """
    if nside < 4:
        what = "nside can't be used: the network halves it twice"
        raise ArgumentError(explain(what, got=str(nside), expected="4 or more, a power of two"))
    full = (*PUBLISHED["era5"].stages, PUBLISHED["era5"].bottleneck)
    encoder, decoder = (max(1, round(size**power)) for power in (1 / 3, 1 / 6))
    depths = ((encoder, decoder), (encoder, decoder), (decoder, 0))
    fine, middle, coarse = (
        _small_stage(nside, nside // 2**i, stage.dim * math.sqrt(size / _FULL), *depth)
        for i, (stage, depth) in enumerate(zip(full, depths, strict=True))
    )
    return MosaicConfig(
        stages=(fine, middle),
        bottleneck=coarse,
        num_variables=1,
        num_history=history,
        step_hours=step_hours,
        num_neighbors=neighbors,
    )


def _small_stage(finest: int, nside: int, width: float, encoder: int, decoder: int) -> StageConfig:
    kv_heads = max(1, round(width / 256))
    heads = 4 * kv_heads
    dim = heads * 8 * max(1, round(width / heads / 8))
    points = 12 * nside**2
    local = min(points // 3, max(64, finest**2 // 4), 1024)
    # a kernel's matrix products want 16 rows and more
    block = min(points // 12, max(16, finest**2 // 32), 128)
    blocks = points // block
    # 24 of 384, 12 of 96 and 4 of 24, as published
    picked = min(round(math.sqrt(1.5 * blocks)), blocks // 6)
    return StageConfig(nside, dim, heads, kv_heads, local, block, picked, encoder, decoder)


def _paper(
    variant: str, stages: tuple[Stage, ...], train: Period, validation: Period, test: Period | None
) -> TrainConfig:
    schema = published_schema()
    levels = {v: [c.level for c in schema.channels_of(v) if c.level is not None] for v in schema.variables["state"]}
    return TrainConfig(
        network=dataclasses.replace(PUBLISHED[variant], grouping="group", clock="calendar"),
        stages=stages,
        train=train,
        validation=validation,
        test=test,
        variables={name: some or None for name, some in levels.items()},
        static=schema.variables["static"],
        precision="bfloat16",
        checkpoint_activations=True,
        validate_every=1000,
        validation_samples=64,
        save_every=1000,
        patience=10,
    )


def _stages(updates: int, rollouts: tuple[int, ...]) -> tuple[Stage, ...]:
    return (Stage(updates, learning_rate=_RATE), *(_longer(rollout) for rollout in rollouts))


def _longer(rollout: int, updates: int = 5000) -> Stage:
    return Stage(updates, rollout, learning_rate=_RATE, warmup=_WARMUP)
