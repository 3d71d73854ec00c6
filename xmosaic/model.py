"""The network: `MosaicConfig` and `Mosaic`. Tensors in, tensors out, everything normalised; no xarray here.

Parameter names are those of the published checkpoints, so a file maps one to one (arXiv 2604.16429).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import healpix
from .errors import ArgumentError, explain
from .kernels import (
    GateBound,
    Rows,
    Shared,
    add_norm,
    add_norm_rows,
    block_means,
    combine,
    combine_selected,
    gate_bound,
    gated_product,
    gated_rows,
    local_attention,
    multiply_rows,
    neighbor_attention,
    norm_rows,
    quantise_rows,
    rotate,
    select_blocks,
    selected_attention,
    sum_norm,
    swiglu,
)
from .kernels.reference import gated_sum, grouped_attention

BRANCHES = ("local", "compressed", "selected")
BLOCK_ORDERS = ("nested", "rows", "shuffled")
Recompute = bool | Literal["feed_forward"]
Picked = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
# Of the shuffled order alone; changing it changes what every network with that order was trained with.
_SHUFFLE_SEED = 20260416

# Chord (in radii) below which two points are one; the finest mesh in use, nside 4096, has its centres 2e-4 apart.
_COINCIDENT = 1e-6


@dataclass(frozen=True)
class StageConfig:
    """One resolution of the network; sizes are in points of its mesh.

    Parameters
    ----------
    nside : int
        HEALPix resolution: 12·nside² points.
    dim : int
        Width of the features.
    num_heads, num_kv_heads : int
        Query heads and key/value heads of the attention.
    local_size : int
        Points of a block of the local branch.
    block_size, block_count : int
        Points of a block of the compressed and selected branches, and how many are picked.
    encoder_depth, decoder_depth : int
        Blocks on the way down and up; the bottleneck has only the first.
    mlp_ratio : float
        Hidden width of the feed-forward layers over `dim`.

    Examples
    --------
    >>> stage = StageConfig(64, 768, 12, 3, 1024, 128, 24, encoder_depth=4, decoder_depth=2)
    >>> stage.points, stage.head_dim, stage.hidden
    (49152, 64, 3072)
    """

    nside: int
    dim: int
    num_heads: int
    num_kv_heads: int
    local_size: int
    block_size: int
    block_count: int
    encoder_depth: int = 1
    decoder_depth: int = 1
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        _check_types(self)
        _check(self.nside >= 1 and self.nside & (self.nside - 1) == 0, "nside", self.nside, "a power of two")
        _check(self.num_heads >= 1, "num_heads", self.num_heads, "1 or more")
        _check(
            self.num_kv_heads >= 1 and self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"a divisor of num_heads={self.num_heads}",
        )
        _check(
            self.dim >= 1 and self.dim % self.num_heads == 0 and self.head_dim % 4 == 0,
            "dim",
            self.dim,
            f"num_heads={self.num_heads} times a multiple of 4",
        )
        for name in ("local_size", "block_size"):
            size = getattr(self, name)
            _check(
                size >= 1 and self.points % size == 0,
                name,
                size,
                f"a divisor of the {self.points} points of nside {self.nside}",
            )
        _check(
            1 <= self.block_count <= self.points // self.block_size,
            "block_count",
            self.block_count,
            f"1 to {self.points // self.block_size} (the number of blocks)",
        )
        _check(
            self.encoder_depth >= 0 and self.decoder_depth >= 0,
            "depth",
            (self.encoder_depth, self.decoder_depth),
            "0 or more",
        )
        _check(
            1 <= self.mlp_ratio * self.dim < math.inf,
            "mlp_ratio",
            self.mlp_ratio,
            f"a number of at least 1 / dim={self.dim}",
        )

    @property
    def points(self) -> int:
        return 12 * self.nside**2

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def hidden(self) -> int:
        return int(self.mlp_ratio * self.dim)


@dataclass(frozen=True)
class MosaicConfig:
    """Everything that fixes the network's shape and arithmetic, but for the grid and the static fields.

    Parameters
    ----------
    stages : tuple of StageConfig
        From fine to coarse; each nside is half the one before.
    bottleneck : StageConfig
        The coarsest stage.
    num_variables : int
        State channels, predicted.
    num_forcings : int
        Channels that are given at every time and never predicted.
    num_static : int
        Static fields.
    num_history : int
        Times the network sees, the newest last.
    step_hours : int
        Hours from one step to the next, and between the times of the history.
    num_neighbors : int
        Source points that each target of the two interpolations attends to.
    noise_dim : int
        Length of the noise vector; 0 makes the network deterministic.
    residual : bool
        False: the output is the next normalised state. True: its difference from the newest one.
    branches : tuple of str
        The branches of attention that exist, of "local", "compressed", "selected".
    grouping : {"group", "strided"}
        Which query heads choose the blocks of a key/value head; "strided" is what the published weights need.
    clock : {"calendar", "release"}
        "calendar": the clock features are those of the valid time. "release": the clock of the first step is
        advanced by fixed increments, its yearly part four times too fast, as the published variants' own rollout does.
    rope_theta : float
        Base of the rotary position frequencies.
    block_order : {"nested", "rows", "shuffled"}
        Which points share a block of attention. "nested": neighbours on the sphere, contiguous in the nested mesh, as
        the paper and the published weights have it. "rows": neighbours along the mesh's latitude rows. "shuffled": any,
        in one fixed pseudo-random order. The last two are there to see what alignment is worth; all else stays nested.

    Examples
    --------
    >>> config = PUBLISHED["era5"]
    >>> config.num_variables, config.num_history, config.input_width
    (82, 2, 174)
    >>> MosaicConfig.from_dict(config.to_dict()) == config
    True
    """

    stages: tuple[StageConfig, ...]
    bottleneck: StageConfig
    num_variables: int
    num_forcings: int = 0
    num_static: int = 0
    num_history: int = 2
    step_hours: int = 24
    num_neighbors: int = 24
    noise_dim: int = 32
    residual: bool = False
    branches: tuple[str, ...] = BRANCHES
    grouping: Literal["group", "strided"] = "group"
    clock: Literal["calendar", "release"] = "calendar"
    rope_theta: float = 10000.0
    block_order: Literal["nested", "rows", "shuffled"] = "nested"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        _check_types(self)
        unknown = [b for b in self.branches if b not in BRANCHES]
        _check(not unknown and len(self.branches) >= 1, "branches", self.branches, f"some of {', '.join(BRANCHES)}")
        object.__setattr__(self, "branches", tuple(b for b in BRANCHES if b in self.branches))
        _check(
            all(isinstance(s, StageConfig) for s in (*self.stages, self.bottleneck)),
            "stages and bottleneck",
            [type(s).__name__ for s in (*self.stages, self.bottleneck)],
            "StageConfig",
        )
        nsides = [s.nside for s in (*self.stages, self.bottleneck)]
        _check(len(self.stages) >= 1, "stages", 0, "at least one stage above the bottleneck")
        _check(
            all(a == 2 * b for a, b in itertools.pairwise(nsides)),
            "nside of the stages",
            nsides,
            "each half the one before",
        )
        _check(
            self.bottleneck.decoder_depth == 0,
            "bottleneck.decoder_depth",
            self.bottleneck.decoder_depth,
            "0: the bottleneck has encoder blocks only",
        )
        for name, least in (
            ("num_variables", 1),
            ("num_forcings", 0),
            ("num_static", 0),
            ("num_history", 1),
            ("step_hours", 1),
            ("num_neighbors", 1),
            ("noise_dim", 0),
        ):
            _check(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
        _check(self.grouping in ("group", "strided"), "grouping", self.grouping, "'group' or 'strided'")
        _check(self.clock in ("calendar", "release"), "clock", self.clock, "'calendar' or 'release'")
        good = math.isfinite(self.rope_theta) and self.rope_theta > 0
        _check(good, "rope_theta", self.rope_theta, "a positive number")
        known = self.block_order in BLOCK_ORDERS
        _check(known, "block_order", repr(self.block_order), "'nested', 'rows' or 'shuffled'")

    @property
    def num_channels(self) -> int:
        """Channels of each time of the history: state, then forcing."""
        return self.num_variables + self.num_forcings

    @property
    def input_width(self) -> int:
        """Features per grid point: history, static fields, unit vector (3) and clock (4)."""
        return self.num_history * self.num_channels + self.num_static + 3 + 4

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of numbers, strings and lists, ready for JSON."""
        return dataclasses.asdict(self) | {
            "stages": [dataclasses.asdict(s) for s in self.stages],
            "branches": list(self.branches),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MosaicConfig:
        """Inverse of `to_dict`; unknown or missing fields raise `ArgumentError`."""
        values = dict(values)
        check_fields(cls, values)
        for stage in (*values["stages"], values["bottleneck"]):
            check_fields(StageConfig, stage)
        values["stages"] = tuple(StageConfig(**s) for s in values["stages"])
        values["bottleneck"] = StageConfig(**values["bottleneck"])
        return cls(**values)


def _check(condition: bool, name: str, got: Any, expected: str) -> None:
    if not condition:
        raise ArgumentError(explain(f"{name} can't be used in this network", got=str(got), expected=expected))


_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


def _check_types(config: Any) -> None:
    """Numbers of a file may be of any type; those that only look right fail much later."""
    for field in dataclasses.fields(config):
        value, kinds = getattr(config, field.name), _KINDS.get(str(field.type), ())
        good = not kinds or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)))
        _check(good, field.name, repr(value), f"of type {field.type}")


def check_fields(cls: type, values: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` where a mapping has other fields than a dataclass, or lacks one without default."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    required = {
        n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if unknown := sorted(set(values) - set(fields)):
        raise ArgumentError(explain(f"{cls.__name__} has no field {unknown[0]!r}", expected=", ".join(fields)))
    if missing := sorted(required - set(values)):
        raise ArgumentError(
            explain(
                f"{cls.__name__} lacks {', '.join(missing)}",
                got=", ".join(values),
                expected=", ".join(fields),
            )
        )


def _published(num_history: int, step_hours: int, num_neighbors: int) -> MosaicConfig:
    return MosaicConfig(
        stages=(
            StageConfig(64, 768, 12, 3, 1024, 128, 24, encoder_depth=4, decoder_depth=2),
            StageConfig(32, 1024, 16, 4, 1024, 128, 12, encoder_depth=4, decoder_depth=2),
        ),
        bottleneck=StageConfig(16, 1280, 20, 5, 1024, 128, 4, encoder_depth=2, decoder_depth=0),
        num_variables=82,
        num_static=3,
        num_history=num_history,
        step_hours=step_hours,
        num_neighbors=num_neighbors,
        grouping="strided",
        clock="release",
    )


PUBLISHED = {"era5": _published(2, 24, 24), "hres": _published(4, 6, 20)}
"""Configurations of the two published variants (arXiv 2604.16429)."""


class Mosaic(nn.Module):
    """The Mosaic network on one grid.

    Parameters
    ----------
    config : MosaicConfig
    longitude, latitude : array, (longitude,) and (latitude,) [degrees]
        The grid, both ascending.
    static : array, (longitude, latitude, static), optional
        Static fields in physical units; needed if `config.num_static` is not 0.
    neighbors : (array, array), optional
        Source points of the interpolation to the mesh, (cell, k), and from it, (longitude · latitude, k). Weights that
        were trained with certain tables need these; by default they are searched for.

    Attributes
    ----------
    impl : str, optional
        Implementation of the attention operations; None chooses.
    recompute : bool or "feed_forward"
        Whether the blocks' activations, or those of their feed-forward layers alone, are computed again on the way back
        instead of being kept.

    Examples
    --------
    >>> heads = dict(num_heads=2, num_kv_heads=1, local_size=4, block_size=4, block_count=2)
    >>> config = MosaicConfig(
    ...     stages=(StageConfig(nside=2, dim=16, **heads),),
    ...     bottleneck=StageConfig(nside=1, dim=16, decoder_depth=0, **heads),
    ...     num_variables=3,
    ...     num_neighbors=4,
    ... )
    >>> network = Mosaic(config, longitude=np.arange(0, 360, 60.0), latitude=np.linspace(-90, 90, 4))
    >>> history = torch.randn(1, 5, 2, 6, 4, 3)  # batch, member, history, longitude, latitude, channel
    >>> network(history, torch.rand(1, 2), torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 6, 4, 3])
    """

    def __init__(
        self,
        config: MosaicConfig,
        longitude: np.ndarray,
        latitude: np.ndarray,
        static: np.ndarray | None = None,
        neighbors: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.grid_shape = (len(longitude), len(latitude))
        self.impl: str | None = None
        self.recompute: Recompute = False
        first, last = config.stages[0], config.bottleneck
        grid, mesh = _grid_lonlat(longitude, latitude), _mesh_lonlat(first.nside)
        to_mesh, to_grid = neighbors if neighbors is not None else find_neighbors(config, longitude, latitude)
        for table, targets in ((to_mesh, mesh), (to_grid, grid)):
            shape = (len(targets), config.num_neighbors)
            _check(np.shape(table) == shape, "neighbors", f"shape {np.shape(table)}", f"shape {shape}")
        self.static_features: torch.Tensor
        self.register_buffer(
            "static_features", _static_features(config, grid, self.grid_shape, static), persistent=False
        )
        if config.noise_dim:
            self.noise_generator = nn.ModuleDict({"to_noise": _linear(config.noise_dim, config.noise_dim)})
        self.preprocess = _Layers(
            _linear(config.input_width, first.dim),
            RMSNorm(),
            nn.SiLU(),
            _linear(first.dim, first.dim),
            RMSNorm(times=2),  # its own, and the one before the interpolation
        )
        self.interp_to_hp = NeighborAttention(first, grid, mesh, to_mesh)
        self.interp_to_ll = NeighborAttention(first, mesh, grid, to_grid)
        self.encoder_stages = nn.ModuleList(Stage(config, s, s.encoder_depth) for s in config.stages)
        self.bottleneck = Stage(config, last, last.encoder_depth)
        self.decoder_stages = nn.ModuleList(Stage(config, s, s.decoder_depth) for s in reversed(config.stages))
        pairs = list(zip(config.stages, (*config.stages[1:], last), strict=True))
        self.downsample_layers = nn.ModuleList(Downsample(fine, coarse) for fine, coarse in pairs)
        self.upsample_layers = nn.ModuleList(Upsample(coarse, fine) for fine, coarse in reversed(pairs))
        self.postprocess = _Layers(
            RMSNorm(), _linear(first.dim, first.dim), nn.SiLU(), _linear(first.dim, config.num_variables)
        )
        self.init_weights()

    def forward(self, history: torch.Tensor, clock: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """One step.

        Parameters
        ----------
        history : Tensor, (batch, member, history, longitude, latitude, channel)
            Normalised, oldest first; channels are the state, then the forcings.
        clock : Tensor, (batch, 2)
            Fraction of the day and of the year of the newest time.
        noise : Tensor, (batch, member, noise_dim), optional
            Standard normal draws; needed unless `noise_dim` is 0.

        Returns
        -------
        Tensor, (batch, member, longitude, latitude, channel)
            The next normalised state, float32 or the history's wider dtype.
        """
        self._check_inputs(history, clock, noise)
        batch, member = history.shape[:2]
        z = self._project_noise(noise)
        x = self.preprocess(self._features(history, clock), self.impl)
        x = self.interp_to_hp(x, self.impl)
        skips = []
        for stage, down in zip(self.encoder_stages, self.downsample_layers, strict=True):
            x = _sum(*stage(x, z, self.impl, self.recompute))
            skips.append(x)
            x = down(x, self.impl)
        x, update = self.bottleneck(x, z, self.impl, self.recompute)
        for stage, up in zip(self.decoder_stages, self.upsample_layers, strict=True):
            x = up(_sum(x, update), skips.pop(), self.impl)
            x, update = stage(x, z, self.impl, self.recompute)
        # its own norm, and the one before the interpolation
        x = self.interp_to_ll(sum_norm(x, update, times=2, impl=self.impl), self.impl)
        x = self.postprocess(x, self.impl)
        x = x.to(history.dtype).view(batch, member, *self.grid_shape, self.config.num_variables)
        return x + history[:, :, -1, ..., : self.config.num_variables] if self.config.residual else x

    def _features(self, history: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
        batch, member = history.shape[:2]
        rows, points = batch * member, math.prod(self.grid_shape)
        # in the arithmetic of the first layer from the beginning: that is half of the memory to go through
        kind = history.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else history.dtype
        # a day of the year in half precision would be off by days
        angle = clock.to(torch.promote_types(history.dtype, torch.float32)) * (2 * math.pi)
        day, year = angle.unbind(-1)
        cycle = torch.stack([day.sin(), day.cos(), year.sin(), year.cos()], dim=-1).to(dtype)
        cycle = cycle.view(batch, 1, 1, 4).expand(batch, member, points, 4).reshape(rows, points, 4)
        times = history.to(dtype).flatten(3, 4).flatten(0, 1).unbind(1)
        static = self.static_features.to(dtype).expand(rows, -1, -1)
        spare = static.new_zeros(rows, points, _spare(self.config.input_width, history.device))
        return torch.cat([*times, static, cycle, spare], dim=-1)

    def _project_noise(self, noise: torch.Tensor | None) -> torch.Tensor | None:
        return (
            self.noise_generator["to_noise"](noise.flatten(0, 1))
            if noise is not None and self.config.noise_dim
            else None
        )

    def _check_inputs(self, history: torch.Tensor, clock: torch.Tensor, noise: torch.Tensor | None) -> None:
        c = self.config
        expected = (c.num_history, *self.grid_shape, c.num_channels)
        if history.ndim != 6 or tuple(history.shape[2:]) != expected:
            raise ArgumentError(
                explain(
                    "history has another shape",
                    got=str(tuple(history.shape)),
                    expected=f"(batch, member, {', '.join(map(str, expected))})",
                )
            )
        batch, member = history.shape[:2]
        if tuple(clock.shape) != (batch, 2):
            raise ArgumentError(
                explain("clock has another shape", got=str(tuple(clock.shape)), expected=f"({batch}, 2)")
            )
        if c.noise_dim and (noise is None or tuple(noise.shape) != (batch, member, c.noise_dim)):
            got = "none" if noise is None else str(tuple(noise.shape))
            raise ArgumentError(
                explain("noise has another shape", got=got, expected=f"({batch}, {member}, {c.noise_dim})")
            )

    def use_float8(self, on: bool = True) -> Mosaic:
        """Take the matrix products of the feed-forward layers in 8 bits (e4m3), or no longer.

        They are 77 % of those of the published networks. Each point's activations and each output's weights have a
        scale of their own; sums, and everything else, stay as wide as before. For forecasts, best under autocast to
        bfloat16: there is no gradient. Needs a GPU of compute capability 8.9, or ``impl = "reference"``, which emulates
        it.

        Parameters
        ----------
        on : bool

        Returns
        -------
        Mosaic
            Itself.

        Raises
        ------
        ArgumentError
            If a width of the feed-forward layers is no multiple of 16.
        """
        for layer in self._feed_forward_layers():
            widths = [layer.w2.out_features, layer.w2.in_features]
            _check(not on or not any(w % 16 for w in widths), "float8", widths, "widths that are multiples of 16")
            layer.float8 = on
            layer.forget_rounded()
        return self

    @torch.no_grad()
    def keep_float8(self, source: Mosaic) -> None:
        """Round the weights of the feed-forward layers to 8 bits now instead of at each step, if `use_float8` is on.

        Parameters
        ----------
        source : Mosaic
            A network of the same configuration whose weights are taken, wider than this one's perhaps.
        """
        for own, given in zip(self._feed_forward_layers(), source._feed_forward_layers(), strict=True):
            if own.float8:
                own.keep_rounded(given, self.impl)

    def _feed_forward_layers(self) -> list[FeedForward]:
        return [m for m in self.modules() if isinstance(m, FeedForward)]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> Mosaic:
        """Draw all weights afresh.

        =============================================  ==========================================================
        weights                                        distribution
        =============================================  ==========================================================
        every Linear but the following                 N(0, s²), s = fan_in^−½ · min(1, (fan_out / fan_in)^½)
        attention ``to_o``, feed-forward ``w2``        N(0, 0.01²)
        noise: ``noise_bias``, ``to_noise``            N(0, 0.01²)
        upsampling ``proj_x``, ``proj_pos``            N(0, 0.01²)
        =============================================  ==========================================================
        """
        for name, weight in self.named_parameters():
            if weight.is_meta:
                continue  # no values to draw: a file's are about to take this place
            fan_out, fan_in = weight.shape
            std = fan_in**-0.5 * min(1.0, math.sqrt(fan_out / fan_in))
            if name.endswith(
                ("attention.to_o.weight", "w2.weight", "noise_bias.weight", "to_noise.weight")
            ) or name.startswith("upsample_layers"):
                std = 0.01
            weight.normal_(0.0, std, generator=generator)
        return self


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, once or twice, without weights, with torch's default epsilon."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: torch.Tensor, impl: str | None = None) -> torch.Tensor:
        return sum_norm(x, times=self.times, impl=impl)


class _Layers(nn.Sequential):
    """One after the other; norms are told how, and the input may have more columns than are read."""

    def forward(self, x: torch.Tensor, impl: str | None = None) -> torch.Tensor:
        for layer in self:
            if isinstance(layer, RMSNorm):
                x = layer(x, impl)
            else:
                x = _joined(x, layer.weight)[0] if isinstance(layer, nn.Linear) else layer(x)
        return x


def _sum(x: torch.Tensor, update: torch.Tensor | None) -> torch.Tensor:
    return x if update is None else x + update


def _linear(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=False)


class NeighborAttention(nn.Module):
    """Cross-attention from each target point to its nearest source points, of normalised features: the way between grid
    and mesh.
    """

    def __init__(self, stage: StageConfig, source: np.ndarray, target: np.ndarray, neighbors: np.ndarray) -> None:
        super().__init__()
        self.num_heads, self.head_dim = stage.num_heads, stage.head_dim
        self.to_q = _linear(3, stage.dim)
        self.to_kv = _linear(stage.dim, 2 * stage.dim)
        self.to_o = _linear(stage.dim, stage.dim)
        self.neighbors: torch.Tensor
        self.direction: torch.Tensor
        self.register_buffer("neighbors", torch.from_numpy(np.asarray(neighbors, dtype=np.int64)), persistent=False)
        self.register_buffer("direction", _directions(source, target, neighbors), persistent=False)
        self.shared = Shared()

    def forward(self, x: torch.Tensor, impl: str | None = None) -> torch.Tensor:
        to_key, to_value = self.to_kv.weight.chunk(2)
        heads, d, width = self.num_heads, self.head_dim, x.shape[-1]
        # Three numbers per head instead of a key: (W_q r)·(W_k x) = r·(W_qᵀ W_k x); the weights stay as published.
        folded = torch.einsum("hdc,hdw->hcw", self.to_q.weight.view(heads, d, 3), to_key.view(heads, d, width))
        value, projection = _joined(x, to_value, folded.flatten(0, 1).to(to_value.dtype))
        value, projection = value.unflatten(-1, (heads, d)), projection.unflatten(-1, (heads, 3))
        # in 16 bits targets can share what they read, where there is no way back
        share = not torch.is_grad_enabled() and value.element_size() == 2 and (value.is_cuda or impl == "triton")
        patches = self.shared.of(self.direction, self.neighbors) if share and impl != "reference" else None
        tables = (self.direction, projection, value, self.neighbors)
        return self.to_o(neighbor_attention(*tables, scale=d**-0.5, patches=patches, impl=impl).flatten(2))


class Stage(nn.Module):
    """Blocks at one resolution: features, and what the last block adds to them."""

    def __init__(self, config: MosaicConfig, stage: StageConfig, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, stage) for _ in range(depth))

    def forward(
        self, x: torch.Tensor, z: torch.Tensor | None, impl: str | None = None, recompute: Recompute = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        update: torch.Tensor | None = None
        for block in self.blocks:
            if recompute is True and torch.is_grad_enabled():
                x, update = _again(block, x, update, z, impl)
            else:
                x, update = block(x, update, z, impl, recompute == "feed_forward")
        return x, update


class Block(nn.Module):
    """x ← x + Attention(norm x); x ← x + FeedForward(norm x, z).

    What a block adds last is handed on, to be added in one pass with the next norm. Without gradients the products add
    what they make to x where it lies, which rounds it once instead of twice, and nothing is handed on; those in 8 bits
    can't.
    """

    def __init__(self, config: MosaicConfig, stage: StageConfig) -> None:
        super().__init__()
        self.attention = BlockSparseAttention(config, stage)
        self.ffn = FeedForward(stage, config.noise_dim)

    def forward(
        self,
        x: torch.Tensor,
        update: torch.Tensor | None,
        z: torch.Tensor | None,
        impl: str | None,
        recompute: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, normed = (x, sum_norm(x, impl=impl)) if update is None else add_norm(x, update, impl=impl)
        # what comes into a stage was made for it alone
        alone = not torch.is_grad_enabled() and x.dtype == _dtype(self.ffn.w2.weight) and x.is_contiguous()
        if alone:
            self.attention.add_to(x, normed, impl)
            if self.ffn.float8:
                return x, self.ffn.from_rows(norm_rows(x, impl=impl), z, impl)
            self.ffn.add_to(x, z, impl)
            return x, None
        update = self.attention(normed, impl)
        if self.ffn.float8:
            x, rows = add_norm_rows(x, update, impl=impl)
            return x, self.ffn.from_rows(rows, z, impl)
        x, normed = add_norm(x, update, impl=impl)
        again = recompute and torch.is_grad_enabled()
        return x, _again(self.ffn, normed, z, impl) if again else self.ffn(normed, z, impl)


def _add_product(total: torch.Tensor, x: torch.Tensor, layer: nn.Linear) -> None:
    """Add a linear map of x to `total` where it lies."""
    rows, weight = (t.to(total.dtype) for t in (x.flatten(0, -2), layer.weight))
    total.view(-1, total.shape[-1]).addmm_(rows, weight.t())


def _again(module: nn.Module, *args: Any) -> Any:
    """What a module gives, computed again on the way back."""
    # nothing is drawn in it; asking for the generator's state would break the capture of a CUDA graph
    return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=False)


class _Rounded(NamedTuple):
    """Weights of a feed-forward layer in 8 bits, the second's in units of the bound of what they multiply."""

    first: Rows
    second: Rows
    bound: GateBound


class FeedForward(nn.Module):
    """SwiGLU whose gate is shifted by the member's noise: the learned functional perturbation."""

    def __init__(self, stage: StageConfig, noise_dim: int) -> None:
        super().__init__()
        self.w13 = _linear(stage.dim, 2 * stage.hidden)
        self.w2 = _linear(stage.hidden, stage.dim)
        self.noise_bias = _linear(noise_dim, stage.hidden) if noise_dim else None
        self.float8 = False
        self._kept: _Rounded | None = None

    def forward(self, x: torch.Tensor, z: torch.Tensor | None, impl: str | None = None) -> torch.Tensor:
        if torch.is_grad_enabled():
            return self.w2(swiglu(self.w13(x), self._shift(z), impl=impl))
        return self.w2(gated_product(x, self.w13.weight, self._shift(z), impl=impl))

    def add_to(self, x: torch.Tensor, z: torch.Tensor | None, impl: str | None = None) -> None:
        """Add that of the norm of x to x; without gradients."""
        _add_product(x, gated_product(x, self.w13.weight, self._shift(z), normed=True, impl=impl), self.w2)

    def from_rows(self, x: Rows, z: torch.Tensor | None, impl: str | None = None) -> torch.Tensor:
        """The same with products in 8 bits. Weights are rounded at each call, which is never out of date, if no rounded
        ones are kept.
        """
        shift, weights = self._shift(z), self._kept or self._rounded(self, impl)
        growth = weights.bound.growth(shift)
        gated = gated_rows(x, weights.first, weights.bound.whole, growth, shift, impl=impl)
        return multiply_rows(gated, weights.second, _dtype(self.w2.weight), impl=impl)

    def keep_rounded(self, source: FeedForward, impl: str | None = None) -> None:
        """Take the weights of a layer in 8 bits, as they are now, from now on. They stay where the first ones were."""
        rounded = self._rounded(source, impl)
        if self._kept is None:
            self._kept = rounded
            return
        for own, new in zip(itertools.chain(*self._kept), itertools.chain(*rounded), strict=True):
            own.copy_(new)

    def forget_rounded(self) -> None:
        """Round the layer's own weights at each call again."""
        self._kept = None

    def _rounded(self, source: FeedForward, impl: str | None) -> _Rounded:
        first, second = (layer.weight.to(self.w13.weight.device) for layer in (source.w13, source.w2))
        bound = gate_bound(first, self.noise_bias is not None)
        return _Rounded(quantise_rows(first, impl=impl), quantise_rows(second * bound.whole, impl=impl), bound)

    def _shift(self, z: torch.Tensor | None) -> torch.Tensor | None:
        return None if self.noise_bias is None else self.noise_bias(z)


def _dtype(weight: torch.Tensor) -> torch.dtype:
    """Of what a linear map with such weights makes."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class BlockSparseAttention(nn.Module):
    """Gated sum of local, compressed and selected attention over blocks: contiguous in the nested mesh, or as
    `MosaicConfig.block_order` has it.
    """

    def __init__(self, config: MosaicConfig, stage: StageConfig) -> None:
        super().__init__()
        self.stage, self.branches, self.grouping = stage, config.branches, config.grouping
        self.whole = len(config.branches) == len(BRANCHES)
        kv_dim = stage.num_kv_heads * stage.head_dim
        self.to_q = _linear(stage.dim, stage.dim)
        self.to_k = _linear(stage.dim, kv_dim)
        self.to_v = _linear(stage.dim, kv_dim)
        self.to_o = _linear(stage.dim, stage.dim)
        self.to_strategy_combine_mlp = _linear(stage.dim, len(self.branches) * stage.num_heads)
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        cos, sin = _rotary(stage, config.rope_theta)
        self.aligned = config.block_order == "nested"
        self.order: torch.Tensor
        self.back: torch.Tensor
        if not self.aligned:
            order = torch.from_numpy(_block_order(config.block_order, stage.nside))
            cos, sin = cos[order], sin[order]
            self.register_buffer("order", order, persistent=False)
            self.register_buffer("back", order.argsort(), persistent=False)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: torch.Tensor, impl: str | None = None) -> torch.Tensor:
        out = self.to_o(self._branches(x, impl))
        return out if self.aligned else out.index_select(1, self.back)

    def add_to(self, total: torch.Tensor, x: torch.Tensor, impl: str | None = None) -> None:
        """Add that of x to a total; without gradients."""
        out = self._branches(x, impl)
        _add_product(total, out if self.aligned else out.index_select(1, self.back), self.to_o)

    def _branches(self, x: torch.Tensor, impl: str | None) -> torch.Tensor:
        """Their gated sum, (batch, point, dim), points in the order of the blocks."""
        if not self.whole:
            return self._gated(*self._apart(x, impl), impl).flatten(2)
        gate, (compressed,), picked = self._attend(x, impl, True)
        assert picked is not None
        near = self.stage.local_size
        return combine_selected(*picked, self.stage.block_size, gate, near, compressed, impl=impl).flatten(2)

    def parts(self, x: torch.Tensor) -> torch.Tensor:
        """What each branch adds to the output of `forward`, by the reference: they sum to it.

        Parameters
        ----------
        x : Tensor, (batch, point, dim)

        Returns
        -------
        Tensor, (branch, batch, point, dim)
        """
        gate, outputs = self._apart(x, "reference")
        zeros = [torch.zeros_like(o) for o in outputs]
        alone = [[*zeros[:i], output, *zeros[i + 1 :]] for i, output in enumerate(outputs)]
        out = torch.stack([self.to_o(self._gated(gate, one, "reference").flatten(2)) for one in alone])
        return out if self.aligned else out.index_select(2, self.back)

    def _apart(self, x: torch.Tensor, impl: str | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The gate's logits, and each branch's (batch, point or block, head, d), points in the order of the blocks."""
        gate, outputs, picked = self._attend(x, impl)
        if picked is not None:
            outputs.append(selected_attention(*picked, self.stage.block_size, impl=impl).transpose(1, 2))
        return gate, outputs

    def _attend(
        self, x: torch.Tensor, impl: str | None, late: bool = False
    ) -> tuple[torch.Tensor, list[torch.Tensor], Picked | None]:
        """As `_apart`, with queries, keys, values and picked blocks instead of the selected branch, and with `late`
        instead of the local one too.
        """
        s = self.stage
        x = x if self.aligned else x.index_select(1, self.order)
        weights = (m.weight for m in (self.to_q, self.to_k, self.to_v, self.to_strategy_combine_mlp))
        q, k, v, gate = _joined(x, *weights)
        q, k, v = (t.unflatten(-1, (-1, s.head_dim)) for t in (q, k, v))  # (batch, point, head, d)
        gate = gate.unflatten(-1, (s.num_heads, -1))  # (batch, point, head, branch)
        (q, q_mean), (k, k_mean) = (rotate(t, self.cos, self.sin, s.block_size, impl=impl) for t in (q, k))
        # attention wants (batch, head, point, d)
        q, k, q_mean, k_mean = (t.transpose(1, 2) for t in (q, k, q_mean, k_mean))
        values, v = v, v.transpose(1, 2)
        outputs: list[torch.Tensor] = []
        picked: Picked | None = None
        if "local" in self.branches and not late:
            outputs.append(local_attention(q, k, v, s.local_size, impl=impl))
        if "compressed" in self.branches:
            v_mean = block_means(values, s.block_size, impl=impl).transpose(1, 2)
            grouped = q_mean.unflatten(1, (s.num_kv_heads, -1))
            outputs.append(grouped_attention(grouped, k_mean, v_mean, s.head_dim**-0.5).flatten(1, 2))
        if "selected" in self.branches:
            indices = select_blocks(q_mean, k_mean, s.block_count, grouping=self.grouping, impl=impl)
            picked = (q, k, v, indices)
        return gate, [x.transpose(1, 2) for x in outputs], picked

    def _gated(self, gate: torch.Tensor, outputs: list[torch.Tensor], impl: str | None) -> torch.Tensor:
        if len(outputs) == 3:
            return combine(gate, *outputs, impl=impl)
        size = self.stage.block_size
        blocks = self.stage.points // size
        return gated_sum(gate, [x.repeat_interleave(size, 1) if x.shape[1] == blocks else x for x in outputs])


def _spare(width: int, device: torch.device) -> int:
    """Columns to add: on a GPU rows begin at whole cache lines, or what reads them crawls."""
    return -width % 64 if device.type == "cuda" else 0


def _joined(x: torch.Tensor, *weights: torch.Tensor) -> list[torch.Tensor]:
    """Several linear maps as one product; x may have more columns than they read, of zeros."""
    rows = [len(w) for w in weights]
    spare = _spare(sum(rows), x.device)
    pad = [weights[0].new_zeros(spare, weights[0].shape[1])] if spare else []
    joined = torch.cat([*weights, *pad]) if len(rows) + spare > 1 else weights[0]
    joined = F.pad(joined, (0, x.shape[-1] - joined.shape[1])) if x.shape[-1] > joined.shape[1] else joined
    return list(F.linear(x, joined).split([*rows, spare], -1))[: len(rows)]


class Downsample(nn.Module):
    """Four children to their parent."""

    def __init__(self, fine: StageConfig, coarse: StageConfig) -> None:
        super().__init__()
        self.proj_x = _linear(4 * fine.dim, coarse.dim)
        self.proj_pos = _linear(12, coarse.dim)
        self.register_buffer("position", _child_positions(coarse.nside), persistent=False)

    def forward(self, x: torch.Tensor, impl: str | None = None) -> torch.Tensor:
        children = x.unflatten(1, (-1, 4)).flatten(2)  # nested order: the four children are contiguous
        return sum_norm(self.proj_x(children), position=self.proj_pos(self.position.to(x.dtype)), impl=impl)


class Upsample(nn.Module):
    """A parent to its four children, joined with the encoder's skip."""

    def __init__(self, coarse: StageConfig, fine: StageConfig) -> None:
        super().__init__()
        self.proj_x = _linear(coarse.dim, 4 * fine.dim)
        self.proj_pos = _linear(12, 4 * fine.dim)
        self.register_buffer("position", _child_positions(coarse.nside), persistent=False)

    def forward(self, x: torch.Tensor, skip: torch.Tensor, impl: str | None = None) -> torch.Tensor:
        parents = (self.proj_x(x), self.proj_pos(self.position.to(x.dtype)))
        children, position = (t.unflatten(-1, (4, -1)).flatten(-3, -2) for t in parents)
        return sum_norm(children, skip, position, impl=impl)


def find_neighbors(config: MosaicConfig, longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest source points of the two interpolations.

    Equidistant sources are common (pole rows, symmetric pairs). Which of them is taken is what a set of weights was
    trained with, so the search is the release's: scikit-learn's haversine ball tree on float32 radians.

    Parameters
    ----------
    config : MosaicConfig
    longitude, latitude : array [degrees]

    Returns
    -------
    to_mesh, to_grid : int32 array, (cell, k) and (longitude · latitude, k)
    """
    grid, mesh = _grid_lonlat(longitude, latitude), _mesh_lonlat(config.stages[0].nside)
    k = config.num_neighbors
    _check(
        k <= min(len(grid), len(mesh)),
        "num_neighbors",
        k,
        f"at most {min(len(grid), len(mesh))}, the points there are",
    )
    return _nearest(grid, mesh, k), _nearest(mesh, grid, k)


def _nearest(source: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import BallTree

    source, target = (np.deg2rad(p[:, ::-1].astype(np.float32)) for p in (source, target))
    return BallTree(source, metric="haversine").query(target, k=k, return_distance=False).astype(np.int32)


def _grid_lonlat(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    lon, lat = np.meshgrid(np.asarray(longitude, float), np.asarray(latitude, float), indexing="ij")
    return np.stack([lon.ravel(), lat.ravel()], axis=-1)  # longitude-major


def _mesh_lonlat(nside: int) -> np.ndarray:
    return np.stack(healpix.cell_centres(nside), axis=-1)


def _unit_vectors(lonlat: np.ndarray) -> np.ndarray:
    lon, lat = np.deg2rad(lonlat).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _directions(source: np.ndarray, target: np.ndarray, neighbors: np.ndarray) -> torch.Tensor:
    difference = _unit_vectors(target)[:, None] - _unit_vectors(source)[neighbors]
    length = np.linalg.norm(difference, axis=-1, keepdims=True)
    # A source at the target itself has no direction; rounding must not make one up.
    return torch.from_numpy(
        np.where(length > _COINCIDENT, difference / np.maximum(length, _COINCIDENT), 0).astype(np.float32)
    )


def _standardise(columns: np.ndarray) -> torch.Tensor:
    scaled = (columns - columns.mean(0)) / (columns.std(0, ddof=1) + 1e-6)
    return torch.from_numpy(scaled.astype(np.float32))


def _static_features(
    config: MosaicConfig, grid: np.ndarray, grid_shape: tuple[int, int], static: np.ndarray | None
) -> torch.Tensor:
    fields = np.zeros((*grid_shape, 0)) if static is None else np.asarray(static, float)
    shape = (*grid_shape, config.num_static)
    _check(fields.shape == shape, "static", f"shape {fields.shape}", f"(longitude, latitude, static) = {shape}")
    return _standardise(np.concatenate([fields.reshape(len(grid), -1), _unit_vectors(grid)], axis=-1))


def _child_positions(nside: int) -> torch.Tensor:
    children = _unit_vectors(_mesh_lonlat(2 * nside)).reshape(-1, 4, 3)
    parents = _unit_vectors(_mesh_lonlat(nside))[:, None]
    return _standardise((children - parents).reshape(-1, 12))


def _block_order(name: str, nside: int) -> np.ndarray:
    """Cells of the nested mesh in the order in which blocks take them."""
    if name == "rows":
        lon, lat = healpix.cell_centres(nside)
        # cells of one row differ in latitude by rounding alone
        return np.lexsort([lon, -lat.round(9)])
    key = np.array([_SHUFFLE_SEED, nside], np.uint64)
    # raw numbers are the same in every version of numpy and on every machine, permutation() need not be
    return np.argsort(np.random.Philox(key=key).random_raw(12 * nside**2), kind="stable")


def _rotary(stage: StageConfig, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    half = stage.head_dim // 2
    frequency = theta ** (-2 * np.arange(half // 2) / half)
    lonlat = np.deg2rad(_mesh_lonlat(stage.nside))
    angle = torch.from_numpy((lonlat[:, :, None] * frequency).reshape(stage.points, half).astype(np.float32))
    return angle.cos(), angle.sin()
