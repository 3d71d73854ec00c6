"""The bundled network and its twins: what each changes, everything else being equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xmosaic import MosaicConfig, StageConfig

# of a field's variance the smallest scales have less than a thousandth: scored at points alone, they come out wrong
BAND_WEIGHT = 0.3


def small() -> MosaicConfig:
    """5 million parameters, most of them at the coarse stages; the mesh is finer than the grid of 64 × 33."""
    return MosaicConfig(
        stages=(
            StageConfig(16, 96, 3, 1, local_size=128, block_size=32, block_count=8, encoder_depth=2, decoder_depth=2),
            StageConfig(8, 192, 6, 2, local_size=128, block_size=16, block_count=6, encoder_depth=2, decoder_depth=1),
        ),
        bottleneck=StageConfig(4, 256, 8, 2, 192, 16, 4, encoder_depth=2, decoder_depth=0),
        num_variables=1,  # set when training starts
        num_neighbors=12,
        noise_dim=32,
    )


def large() -> MosaicConfig:
    """10 million parameters; 12 288 cells for the 4704 points of 96 × 49, so an update takes several times as long.

    Most of that time is spent on the finest mesh, whose features are as wide as the bundled network's.
    """
    return MosaicConfig(
        stages=(
            StageConfig(32, 96, 3, 1, local_size=128, block_size=32, block_count=12, encoder_depth=2, decoder_depth=2),
            StageConfig(16, 192, 6, 2, local_size=128, block_size=32, block_count=8, encoder_depth=2, decoder_depth=2),
        ),
        bottleneck=StageConfig(8, 384, 12, 3, 192, 16, 6, encoder_depth=3, decoder_depth=0),
        num_variables=1,
        num_neighbors=12,
        noise_dim=32,
    )


@dataclass(frozen=True)
class Size:
    """A network for a grid.

    Parameters
    ----------
    network : callable
        Its configuration.
    longitudes, latitudes : int
        Points of the grid, poles among them.
    bands : tuple of int
        Degrees up to which scales are scored apart.
    fine : tuple of int
        The same for the plans that cut further: the small scales, up to the last degree that the rows resolve, and the
        largest, whose band holds the mean, and so the drift of mass.
    """

    network: Callable[[], MosaicConfig]
    longitudes: int
    latitudes: int
    bands: tuple[int, ...]
    fine: tuple[int, ...]

    @property
    def grid(self) -> str:
        """As `simulate.py` names it."""
        return f"{self.longitudes}x{self.latitudes}"


SIZES = {
    "bundled": Size(small, 64, 33, (8, 16, 24), (1, 8, 16, 24, 28, 31)),
    "evidence": Size(large, 96, 49, (12, 24, 36), (1, 12, 24, 36, 42, 47)),
}


def network(size: str = "bundled") -> MosaicConfig:
    """The configuration of a size."""
    return SIZES[size].network()


def same(config: MosaicConfig) -> MosaicConfig:
    return config


def changed(**fields: Any) -> Callable[[MosaicConfig], MosaicConfig]:
    """A network with some fields replaced."""
    return lambda config: dataclasses.replace(config, **fields)


def dense(config: MosaicConfig) -> MosaicConfig:
    """Every point attends to every other: all blocks are picked, and there is no other branch."""

    def every(stage: StageConfig) -> StageConfig:
        return dataclasses.replace(stage, block_count=stage.points // stage.block_size)

    stages = tuple(every(s) for s in config.stages)
    return dataclasses.replace(config, stages=stages, bottleneck=every(config.bottleneck), branches=("selected",))


def coarse_entry(config: MosaicConfig) -> MosaicConfig:
    """Grid points go to the coarser mesh at once; more blocks there make up for those that are gone."""
    fine, coarse = config.stages
    more = dataclasses.replace(
        coarse,
        encoder_depth=coarse.encoder_depth + fine.encoder_depth,
        decoder_depth=coarse.decoder_depth + fine.decoder_depth,
    )
    return dataclasses.replace(config, stages=(more,))


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Parameters
    ----------
    title : str
    network : callable
        Of the bundled network's configuration.
    training : mapping
        Fields of the `TrainConfig`.
    """

    title: str
    network: Callable[[MosaicConfig], MosaicConfig] = same
    training: Mapping[str, Any] = field(default_factory=dict)


MSE = {"loss": "mse", "members": 1, "bands": ()}
VARIANTS = {
    "bundled": Variant("bundled model"),
    "twin": Variant("deterministic twin: squared error, no noise", changed(noise_dim=0), MSE),
    "points": Variant("without scores of single scales", training={"bands": ()}),
    "change": Variant("errors over the change of a step", training={"error_scale": "change"}),
    "biased": Variant("biased CRPS", training={"loss": "biased_crps"}),
    "residual": Variant("residual output: the change of the state", changed(residual=True)),
    "coarse_entry": Variant("compress first: enter at the coarser mesh", coarse_entry),
    "without_compressed": Variant("without the compressed branch", changed(branches=("local", "selected"))),
    "without_selected": Variant("without the selected branch", changed(branches=("local", "compressed"))),
    "dense": Variant("dense attention", dense),
    "rows": Variant("blocks of latitude rows instead of the mesh's", changed(block_order="rows")),
    "shuffled": Variant("blocks of points from anywhere", changed(block_order="shuffled")),
}
