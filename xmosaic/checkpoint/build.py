"""A network of a file's weights; every check comes before memory of a size that the file merely claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from ..errors import CheckpointError, MosaicError, explain
from ..grid import LatLonGrid
from ..model import Mosaic, MosaicConfig
from .arrays import is_plain, require

_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def build_network(
    config: MosaicConfig,
    grid: LatLonGrid,
    static: np.ndarray | None,
    neighbors: tuple[np.ndarray, np.ndarray] | None,
    weights: dict[str, torch.Tensor],
    path: Path,
) -> Mosaic:
    """Network with these weights; every check comes before memory of a size that the file merely claims."""
    _check_size(config, weights, path)
    if neighbors is not None:
        _check_neighbors(config, grid, neighbors, path)
    if static is not None:
        wanted = (*grid.shape[::-1], config.num_static)
        require(static.shape == wanted, f"Static fields of {path} misshapen", str(static.shape), str(wanted))
        require(static.dtype.kind in "fiu", f"Static fields of {path} hold no numbers", str(static.dtype), "float32")
        require(bool(np.isfinite(static).all()), f"Static fields of {path} hold NaN or infinite values", "", "numbers")
    try:
        with torch.device("meta"):
            network = Mosaic(config, np.array(grid.longitude), np.array(grid.latitude), static, neighbors)
    except MosaicError as error:
        raise CheckpointError(f"{path}: {error}") from error
    expected = {name: tuple(p.shape) for name, p in network.named_parameters()}
    check_names(weights, expected, path)
    for name, shape in expected.items():
        found = weights[name]
        require(tuple(found.shape) == shape, f"{name} of {path} is misshapen", str(tuple(found.shape)), str(shape))
        real = found.dtype in _WEIGHT_TYPES and is_plain(found)
        require(real, f"{name} of {path} holds no plain real numbers", f"{found.dtype} {found.layout}", "float32")
        require(bool(torch.isfinite(found).all()), f"{name} of {path} holds NaN or infinite values", "", "numbers")
    network.load_state_dict({k: v.detach().float() for k, v in weights.items()}, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def check_names(found: Iterable[str], expected: Iterable[str], path: Path) -> None:
    """Exactly these tensors, none missing and none more."""
    found, expected = set(found), set(expected)
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind} ({', '.join(n[:80] for n in names[:4])}{', …' if len(names) > 4 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise CheckpointError(
            explain(
                f"The tensors of {path} are not those of its network",
                got=" and ".join(parts),
                expected=f"exactly the {len(expected)} of the configuration",
            )
        )


def _check_size(config: MosaicConfig, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """What the configuration claims must be no more than what the file holds, before anything is built of it."""
    stages = (*config.stages, config.bottleneck)
    depth = sum(s.encoder_depth + s.decoder_depth for s in stages)
    require(
        depth + len(config.stages) < max(2, len(weights)),
        f"The tensors of {path} are not those of its network",
        f"{len(weights)} tensors",
        f"those of {depth} blocks",
    )
    widths = [s.hidden for s in stages if s.encoder_depth + s.decoder_depth]
    widths += [*(s.dim for s in stages), config.input_width, config.num_variables, config.noise_dim]
    found = max((max(w.shape, default=0) for w in weights.values()), default=0)
    require(
        max(widths) <= found,
        f"The tensors of {path} are not those of its network",
        f"{found} at the widest",
        f"{max(widths)} as in its configuration",
    )


def _check_neighbors(
    config: MosaicConfig, grid: LatLonGrid, neighbors: tuple[np.ndarray, np.ndarray], path: Path
) -> None:
    points, cells = grid.shape[0] * grid.shape[1], config.stages[0].points
    for table, targets, sources in ((neighbors[0], cells, points), (neighbors[1], points, cells)):
        shape = (targets, config.num_neighbors)
        require(table.shape == shape, f"A table of neighbours of {path} is misshapen", str(table.shape), str(shape))
        require(
            table.dtype.kind == "i" and table.min() >= 0 and table.max() < sources,
            f"A table of neighbours of {path} points outside the grid",
            f"{table.dtype}, {table.min()} to {table.max()}",
            f"integers from 0 to {sources - 1}",
        )
