"""A network with all it needs to make a forecast: one object, one file, one card."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..cards import html_card, text_card
from ..errors import CheckpointError, explain
from ..grid import LatLonGrid
from ..model import Mosaic, MosaicConfig
from ..variables import Schema
from .arrays import check_statistics, digest_of, require

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A network with all it needs to make a forecast: schema, grid, statistics, static fields, provenance.

    Parameters
    ----------
    network : Mosaic
    schema : Schema
        What the channels are; `network` sees only their order.
    grid : LatLonGrid
        Latitude and longitude, both ascending.
    mean, std : array, (channel,)
        Statistics of the state, then of the forcing channels, in the schema's units.
    static : array, (longitude, latitude, static), optional
        Static fields in the schema's units.
    provenance : dict of str
        ``name``, ``title``, ``license``, ``data``, ``training``, ``untrained``, ``versions``, ``files`` …; ``card``
        holds further lines of the card by heading, such as scores and limits.
    sha256 : str
        Digest of the file the model was read from; of the contents for a model that has no file yet.
    history : Dataset, optional
        Of its training, for a model that `xmosaic.train` has just returned. Not saved.

    Examples
    --------
    >>> import tempfile
    >>> import xmosaic
    >>> model = xmosaic.load_model("bundled")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.save(folder + "/mine.safetensors")
    ...     again = xmosaic.load_model(folder + "/mine.safetensors")
    >>> again.schema == model.schema, again.grid == model.grid
    (True, True)
    """

    network: Mosaic
    schema: Schema
    grid: LatLonGrid
    mean: np.ndarray
    std: np.ndarray
    static: np.ndarray | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    history: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        # dimensions are named by the caller's Dataset, never by the model
        object.__setattr__(self, "grid", LatLonGrid(self.grid.latitude, self.grid.longitude))
        c, s = self.config, self.schema
        counts = (len(s.state), len(s.forcing), len(s.static))
        require(
            counts == (c.num_variables, c.num_forcings, c.num_static),
            "Schema and network don't fit",
            f"{counts} state, forcing and static channels in the schema",
            f"{(c.num_variables, c.num_forcings, c.num_static)} as in the network",
        )
        require(
            self.grid.shape[::-1] == self.network.grid_shape,
            "Grid and network don't fit",
            f"{self.grid.shape[::-1]} longitudes and latitudes",
            f"{self.network.grid_shape}",
        )
        require(
            all(np.all(np.diff(axis) > 0) for axis in (self.grid.latitude, self.grid.longitude)),
            "The model's grid is not in order",
            str(self.grid),
            "latitudes and longitudes ascending",
        )
        check_statistics(self.mean, self.std, (*s.state, *s.forcing))
        shape = (*self.network.grid_shape, c.num_static)
        found = (*self.network.grid_shape, 0) if self.static is None else np.shape(self.static)
        require(found == shape, "Static fields misshapen", str(found), f"(longitude, latitude, static) = {shape}")
        if not self.sha256:
            object.__setattr__(self, "sha256", digest_of(self._tensors(), self._description()))

    @property
    def config(self) -> MosaicConfig:
        """Configuration of the network."""
        return self.network.config

    @property
    def name(self) -> str:
        """Short name: "bundled", "era5", "hres", or the name of the file."""
        return str(self.provenance.get("name", "unnamed"))

    @property
    def step(self) -> pd.Timedelta:
        """Time from one step to the next."""
        return pd.Timedelta(hours=self.config.step_hours)

    @property
    def untrained(self) -> bool:
        """Whether the weights are random: its forecasts mean nothing."""
        return bool(self.provenance.get("untrained", False))

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def license(self) -> str:
        """Licence of the weights."""
        return str(self.provenance.get("license", "unknown"))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model to one safetensors file, whole or not at all.

        Parameters
        ----------
        path : path
            Usually ends in ``.safetensors``; an existing file is replaced.

        Returns
        -------
        Path
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors, description = self._tensors(), self._description()
        header = {"format_version": FORMAT_VERSION, "model": description, "digest": digest_of(tensors, description)}
        # one key: safetensors writes several in random order, and equal models shall make equal files
        metadata = {"xmosaic": json.dumps(header, sort_keys=True)}
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(handle)
            try:
                save_file(tensors, scratch, metadata=metadata)
                os.chmod(scratch, 0o644)
                os.replace(scratch, path)
            finally:
                Path(scratch).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(explain(f"The model can't be written to {path}", got=str(error))) from error
        return path

    def _description(self) -> dict[str, Any]:
        description = {
            "config": self.config.to_dict(),
            "schema": self.schema.to_dict(),
            "provenance": self.provenance,
        }
        # as it will be read: a digest must not depend on what JSON turns keys and tuples into
        return dict(json.loads(json.dumps(description)))

    def _tensors(self) -> dict[str, torch.Tensor]:
        network = {f"network.{k}": v.detach().cpu().contiguous() for k, v in self.network.named_parameters()}
        tables = {
            "neighbors.to_mesh": self.network.interp_to_hp.neighbors.cpu().to(torch.int32),
            "neighbors.to_grid": self.network.interp_to_ll.neighbors.cpu().to(torch.int32),
            "grid.longitude": torch.tensor(self.grid.longitude, dtype=torch.float64),
            "grid.latitude": torch.tensor(self.grid.latitude, dtype=torch.float64),
            # copies: safetensors takes neither views nor one array twice
            "statistics.mean": torch.from_numpy(np.array(self.mean, np.float64, order="C")),
            "statistics.std": torch.from_numpy(np.array(self.std, np.float64, order="C")),
        }
        if self.config.num_static:
            tables["static"] = torch.from_numpy(np.array(self.static, np.float32, order="C"))
        return network | tables

    def __repr__(self) -> str:
        return text_card(self.card().items())

    def _repr_html_(self) -> str:
        return html_card(self.card().items())

    def card(self) -> dict[str, str]:
        """What the model is, by heading.

        Returns
        -------
        dict of str
        """
        c, p = self.config, self.provenance
        nsides = " → ".join(str(s.nside) for s in (*c.stages, c.bottleneck))
        kind = "next state's difference" if c.residual else "next state"
        switches = (
            "" if (c.grouping, c.clock) == ("group", "calendar") else f"; {c.grouping} selection, {c.clock} clock"
        )
        entries = {
            "Model": self.name + (" (UNTRAINED: random weights, no skill)" if self.untrained else ""),
            "About": str(p.get("title", "")),
            "Parameters": f"{self.num_parameters:,}",
            "Step": f"{c.step_hours} h, from {c.num_history} times as far apart; predicts the {kind}{switches}",
            "Grid": f"{self.grid.shape[1]} longitudes × {self.grid.shape[0]} latitudes; HEALPix nside {nsides}",
            "Channels": "\n".join(repr(self.schema).splitlines()[1:]),
            "Noise": f"{c.noise_dim} numbers per member and step" if c.noise_dim else "none: deterministic",
            "Memory": (
                f"about {_size(4 * self.num_parameters)} for the weights, {_size(self.member_bytes())} per member "
                f"in a batch, {_size(self.state_bytes())} per member and lead of the forecast (float32)"
            ),
            "Data": str(p.get("data", "")),
            **{str(k): str(v) for k, v in p.get("card", {}).items()},
            "License": self.license,
            "Files": ", ".join(f"{k} {str(v)[:12]}…" for k, v in p.get("files", {}).items()),
            "sha256": self.sha256,
        }
        return {k: v for k, v in entries.items() if v}

    def state_bytes(self) -> int:
        """Bytes of one state, float32."""
        return 4 * self.config.num_variables * self.grid.shape[0] * self.grid.shape[1]

    def member_bytes(self) -> int:
        """Estimate of the working memory of one member in a step, in bytes, float32, without gradients."""
        c = self.config
        points = max(self.grid.shape[0] * self.grid.shape[1], c.stages[0].points)
        # the widest moment is the feed-forward layer of the first stage: both halves, their product and the residual
        widest = points * max(5 * c.stages[0].hidden + 4 * c.stages[0].dim, c.input_width + 2 * c.stages[0].dim)
        skips = sum(s.points * s.dim for s in c.stages)
        return 4 * (widest + skips) + (c.num_history + 2) * self.state_bytes()


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
