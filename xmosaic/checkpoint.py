"""Models as files: one self-describing format of our own, the published files, and the hub they come from.

Nothing that a file contains is ever executed: our own format is safetensors, the published ``.pt`` files are read with
torch's restricted unpickler, and every name, shape, number and digest is checked before a network is built from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .cards import html_card, text_card
from .errors import CheckpointError, MosaicError, explain
from .grid import LatLonGrid
from .model import PUBLISHED, Mosaic, MosaicConfig
from .variables import Schema, published_schema

FORMAT_VERSION = 1
REPOSITORY = "AMLab-UvA/mosaic"
PAPER = "https://doi.org/10.48550/arXiv.2604.16429"
PUBLISHED_LICENSE = "CC-BY-NC-4.0"
PUBLISHED_GRID = (240, 121)
# bytes of all arrays of a published .npz; the static fields are 350 kB
_LARGEST_ARRAYS = 100_000_000
_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# parts of a published file that follow from the configuration
_DERIVED = (".neighbors", ".rel_pos", "_freqs", "static_vars")
_PUBLISHED_FILES = {
    variant: {
        "weights": f"checkpoints/{variant}_best.pt",
        "statistics": f"data/norm_stats_{variant}.npz",
        "static": "data/static_vars.npz",
    }
    for variant in PUBLISHED
}


class LicenseNotice(UserWarning):
    """Weights come under a licence that is not this package's own."""


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
        _require(
            counts == (c.num_variables, c.num_forcings, c.num_static),
            "Schema and network don't fit",
            f"{counts} state, forcing and static channels in the schema",
            f"{(c.num_variables, c.num_forcings, c.num_static)} as in the network",
        )
        _require(
            self.grid.shape[::-1] == self.network.grid_shape,
            "Grid and network don't fit",
            f"{self.grid.shape[::-1]} longitudes and latitudes",
            f"{self.network.grid_shape}",
        )
        _require(
            all(np.all(np.diff(axis) > 0) for axis in (self.grid.latitude, self.grid.longitude)),
            "The model's grid is not in order",
            str(self.grid),
            "latitudes and longitudes ascending",
        )
        _check_statistics(self.mean, self.std, (*s.state, *s.forcing))
        shape = (*self.network.grid_shape, c.num_static)
        found = (*self.network.grid_shape, 0) if self.static is None else np.shape(self.static)
        _require(found == shape, "Static fields misshapen", str(found), f"(longitude, latitude, static) = {shape}")
        if not self.sha256:
            object.__setattr__(self, "sha256", _digest(self._tensors(), self._description()))

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
        header = {"format_version": FORMAT_VERSION, "model": description, "digest": _digest(tensors, description)}
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


def load_model(
    name_or_path: str | os.PathLike[str] | Model,
    *,
    folder: str | os.PathLike[str] | None = None,
    revision: str | None = None,
) -> Model:
    """Open a model.

    Parameters
    ----------
    name_or_path : str or path
        ``"bundled"``: the model in this package. ``"era5"``, ``"hres"``: the authors' published weights, fetched
        with huggingface_hub and cached, or read from `folder`. A path: a file in this package's format, or a
        folder that holds the published files. A `Model` is returned as it is.
    folder : path, optional
        Where the published files were downloaded to, laid out as in their repository or all in one place.
    revision : str, optional
        Branch, tag or commit of the published repository. By default the commit of the first use, ever after.

    Returns
    -------
    Model

    Raises
    ------
    CheckpointError
        If the name is unknown, nothing can be fetched, or a file is damaged, unsafe, of another digest than at its
        first use, or doesn't fit its description.

    Notes
    -----
    Nobody publishes digests of the authors' files. The revision and the sha256 of each file are written down on first
    use (``published.json`` in ``$XMOSAIC_CACHE``, by default ``~/.cache/xmosaic``) and checked at every later one.
    With ``XMOSAIC_OFFLINE=1`` or ``HF_HUB_OFFLINE=1`` the network is not used.

    Examples
    --------
    >>> import xmosaic
    >>> model = xmosaic.load_model("bundled")
    >>> model.name, model.license, model.step
    ('bundled', 'BSD-3-Clause', Timedelta('1 days 00:00:00'))
    >>> len(model.schema.state), model.grid.shape
    (24, (33, 64))
    """
    if isinstance(name_or_path, Model):
        return name_or_path
    name = os.fspath(name_or_path)
    if name in PUBLISHED:
        if folder is None:
            return _load_published(name, *_fetch(name, revision))
        if revision is not None:
            raise CheckpointError(
                explain("revision= is for files that are fetched", got="folder= as well", do="Leave one of them out")
            )
        return _load_published(name, *_find_files(name, Path(folder).expanduser()))
    for option, value in (("folder", folder), ("revision", revision)):
        if value is not None:
            raise CheckpointError(explain(f"{option}= is for the published models", got=repr(name), expected=_names()))
    if name == "bundled":
        with resources.as_file(resources.files("xmosaic") / "data" / "bundled.safetensors") as path:
            return read_model(path)
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if path.suffix == ".pt" and path.exists():
        raise CheckpointError(
            explain(
                f"{path} holds weights alone, without statistics and static fields",
                do="Pass the folder that holds all the published files, or make one file of them with "
                "`xmosaic convert`",
            )
        )
    if not path.exists():
        raise CheckpointError(explain(f"There is no model {name!r}", expected=f"{_names()}, or the path of a file"))
    return read_model(path)


def _names() -> str:
    return ", ".join(repr(n) for n in ("bundled", *PUBLISHED))


# ---------------------------------------------------------------------------------------------- our own format


def read_model(path: str | os.PathLike[str]) -> Model:
    """Read a file in this package's format.

    Parameters
    ----------
    path : path

    Returns
    -------
    Model

    Raises
    ------
    CheckpointError
        If the file is damaged, of another format, or doesn't fit its own description.
    """
    path = Path(path)
    metadata, tensors = _read_safetensors(path)
    _require(
        "xmosaic" in metadata,
        f"{path} is not a model of this package",
        f"safetensors with the metadata {', '.join(map(repr, metadata)) or 'none'}",
        "the metadata 'xmosaic', as Model.save and `xmosaic convert` write it",
    )
    try:
        header = json.loads(metadata["xmosaic"])
        version, digest = header.get("format_version"), header.get("digest")
        if version != FORMAT_VERSION or isinstance(version, bool):
            what = f"{path} has another version of the format"
            raise CheckpointError(explain(what, got=repr(version), expected=repr(FORMAT_VERSION)))
        description = header["model"]
        config = MosaicConfig.from_dict(description["config"])
        schema = Schema.from_dict(description["schema"])
        provenance = dict(description["provenance"])
    except CheckpointError:
        raise
    except MosaicError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        what = f"The description in {path} can't be read"
        raise CheckpointError(explain(what, got=f"{type(error).__name__}: {error}")) from error
    found = _digest(tensors, description)
    _require(found == digest, f"{path} is damaged", f"digest {found}", str(digest))
    weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    tables = {k: _plain(v, k, path) for k, v in tensors.items() if not k.startswith("network.")}
    _check_names(
        tables,
        {
            "grid.longitude",
            "grid.latitude",
            "statistics.mean",
            "statistics.std",
            "neighbors.to_mesh",
            "neighbors.to_grid",
        }
        | ({"static"} if config.num_static else set()),
        path,
    )
    try:
        grid = LatLonGrid(tuple(tables["grid.latitude"].tolist()), tuple(tables["grid.longitude"].tolist()))
    except MosaicError as error:
        raise CheckpointError(f"{path}: {error}") from error
    neighbors = (tables["neighbors.to_mesh"], tables["neighbors.to_grid"])
    network = _build(config, grid, tables.get("static"), neighbors, weights, path)
    statistics = tables["statistics.mean"], tables["statistics.std"]
    provenance.setdefault("name", path.stem)
    return Model(network, schema, grid, *statistics, tables.get("static"), provenance, _sha256(path))


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():  # to open a pipe waits for ever, and a device may have no end
        what, got = f"{path} is no readable safetensors file", "a folder, a pipe or a device"
        raise CheckpointError(explain(what, got=got, expected="a file"))
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(explain(f"There is no file {path}")) from None
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(
            explain(
                f"{path} is no readable safetensors file",
                got=str(error),
                do="It may be truncated: fetch or make it again",
            )
        ) from error


def _digest(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> str:
    """Digest of all contents, independent of how a file orders them."""
    total = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()


def _plain(tensor: torch.Tensor, name: str, path: Path) -> np.ndarray:
    known = (torch.float32, torch.float64, torch.int32, torch.int64)
    _require(
        tensor.dtype in known and _is_plain(tensor),
        f"{name} of {path} has another type",
        f"{tensor.dtype} {tensor.layout} on {tensor.device}",
        "plain numbers of 32 or 64 bits",
    )
    return np.asarray(tensor.detach().numpy())


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type == "cpu"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(
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
        _require(static.shape == wanted, f"Static fields of {path} misshapen", str(static.shape), str(wanted))
        _require(static.dtype.kind in "fiu", f"Static fields of {path} hold no numbers", str(static.dtype), "float32")
        _require(bool(np.isfinite(static).all()), f"Static fields of {path} hold NaN or infinite values", "", "numbers")
    try:
        with torch.device("meta"):
            network = Mosaic(config, np.array(grid.longitude), np.array(grid.latitude), static, neighbors)
    except MosaicError as error:
        raise CheckpointError(f"{path}: {error}") from error
    expected = {name: tuple(p.shape) for name, p in network.named_parameters()}
    _check_names(weights, expected, path)
    for name, shape in expected.items():
        found = weights[name]
        _require(tuple(found.shape) == shape, f"{name} of {path} is misshapen", str(tuple(found.shape)), str(shape))
        real = found.dtype in _WEIGHT_TYPES and _is_plain(found)
        _require(real, f"{name} of {path} holds no plain real numbers", f"{found.dtype} {found.layout}", "float32")
        _require(bool(torch.isfinite(found).all()), f"{name} of {path} holds NaN or infinite values", "", "numbers")
    network.load_state_dict({k: v.detach().float() for k, v in weights.items()}, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def _check_names(found: Iterable[str], expected: Iterable[str], path: Path) -> None:
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
    _require(
        depth + len(config.stages) < max(2, len(weights)),
        f"The tensors of {path} are not those of its network",
        f"{len(weights)} tensors",
        f"those of {depth} blocks",
    )
    widths = [s.hidden for s in stages if s.encoder_depth + s.decoder_depth]
    widths += [*(s.dim for s in stages), config.input_width, config.num_variables, config.noise_dim]
    found = max((max(w.shape, default=0) for w in weights.values()), default=0)
    _require(
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
        _require(table.shape == shape, f"A table of neighbours of {path} is misshapen", str(table.shape), str(shape))
        _require(
            table.dtype.kind == "i" and table.min() >= 0 and table.max() < sources,
            f"A table of neighbours of {path} points outside the grid",
            f"{table.dtype}, {table.min()} to {table.max()}",
            f"integers from 0 to {sources - 1}",
        )


def _check_statistics(mean: np.ndarray, std: np.ndarray, channels: tuple[Any, ...]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        good = values.shape == (len(channels),)
        _require(good, f"The statistics' {name} is misshapen", str(values.shape), f"({len(channels)},)")
        _require(values.dtype.kind == "f", f"The statistics' {name} is of another type", str(values.dtype), "float64")
        bad = [
            c.name for c, v in zip(channels, values, strict=True) if not np.isfinite(v) or (name == "std" and v <= 0)
        ]
        _require(not bad, f"The {name} of {', '.join(bad)} can't be used", "", "a number, and above 0 for std")


def _require(condition: bool, what: str, got: str, expected: str) -> None:
    if not condition:
        raise CheckpointError(explain(what, got=got, expected=expected))


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


# ------------------------------------------------------------------------------------------ the published files


def load_published_weights(
    path: str | os.PathLike[str],
) -> tuple[dict[str, torch.Tensor], tuple[np.ndarray, np.ndarray] | None]:
    """Weights of a published ``.pt`` file, read without executing anything in it.

    Parameters
    ----------
    path : path

    Returns
    -------
    weights : dict of Tensor
        By parameter name of `Mosaic`.
    neighbors : (array, array) or None
        The interpolations' tables, if the file holds them.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, holds code, or is laid out otherwise.
    """
    path = Path(path)
    contents = _unpickle(path)
    state = contents.get("model_state_dict") if isinstance(contents, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        got = (
            f"the keys {', '.join(map(repr, [*contents][:8])) or 'none'}"
            if isinstance(contents, dict)
            else type(contents).__name__
        )
        expected = "a dict with 'model_state_dict', a dict of tensors"
        raise CheckpointError(
            explain(f"{path} is laid out otherwise than the published files", got=got, expected=expected)
        )
    named = {str(k).removeprefix("model."): v for k, v in state.items()}
    tables = [named.get(f"interp_to_{mesh}.neighbors") for mesh in ("hp", "ll")]
    neighbors = tuple(_plain(t, "a table of neighbours", path) for t in tables if t is not None)
    weights = {k: v for k, v in named.items() if not k.endswith(_DERIVED)}
    return weights, neighbors if len(neighbors) == 2 else None


def _unpickle(path: Path) -> Any:
    try:
        # torch stores tensors uncompressed
        _check_archive(path, path.stat().st_size)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise CheckpointError(explain(f"There is no file {path}")) from None
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            explain(
                f"{path} is not plain tensors: reading it could run code, or it is damaged. Nothing in it was run",
                got=reason,
                do="Use a file from a source you trust, holding tensors only",
            )
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make the readers fail in any way at all
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            explain(f"{path} can't be read as a PyTorch file", got=reason, do="It may be truncated: fetch it again")
        ) from None


def _check_archive(path: Path, limit: int) -> None:
    """An archive that unpacks to far more than such files hold is a trap."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > limit:
        got = f"{total} bytes packed into {path.stat().st_size}"
        raise CheckpointError(explain(f"{path} unpacks to too much", got=got, expected=f"at most {limit}"))


def convert_published(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    variant: str | None = None,
) -> Path:
    """Make one file in this package's format of the published files.

    Parameters
    ----------
    source : path or {"era5", "hres"}
        Folder with the published files, or the name of a variant, which is fetched.
    target : path
        File to write, usually ending in ``.safetensors``.
    variant : {"era5", "hres"}, optional
        Which one, if the folder holds both.

    Returns
    -------
    Path

    Raises
    ------
    CheckpointError
        If the files are missing or damaged, or `target` can't be written.

    Examples
    --------
    Fetches 1.7 GB, so it isn't run here::

        xmosaic.convert_published("era5", "era5.safetensors")
        xmosaic.load_model("era5.safetensors")

    What can't be such a source is named:

    >>> import xmosaic
    >>> try:
    ...     xmosaic.convert_published("nowhere", "era5.safetensors")
    ... except xmosaic.MosaicError as error:
    ...     print(type(error).__name__)
    CheckpointError
    """
    name = os.fspath(source)
    if name in PUBLISHED:
        return load_model(name).save(target)
    path = Path(name)
    if path.suffix == ".pt":
        named = {Path(files["weights"]).name: v for v, files in _PUBLISHED_FILES.items()}
        if path.name not in named or variant not in (None, named[path.name]):
            expected = f"{' or '.join(named)}, as published, and the variant of that name"
            raise CheckpointError(explain(f"{path} can't be converted", got=f"variant {variant!r}", expected=expected))
        variant = named[path.name]
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    model = load_model(variant, folder=path) if variant else load_model(path)
    return model.save(target)


def _load_folder(folder: Path) -> Model:
    held = [v for v, files in _PUBLISHED_FILES.items() if _find(folder, files["weights"])]
    if len(held) != 1:
        found = " and ".join(held) or ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            explain(
                f"The folder {folder} does not say which model is meant",
                got=found,
                expected="the weights of one published variant, "
                + " or ".join(f["weights"] for f in _PUBLISHED_FILES.values()),
                do=f"Write load_model('era5', folder={str(folder)!r}) if it holds several",
            )
        )
    return _load_published(held[0], *_find_files(held[0], folder))


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / Path(name).name) if p.is_file()), None)


def _find_files(variant: str, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Published files in a folder and their digests, by kind."""
    files = {kind: _find(folder, name) for kind, name in _PUBLISHED_FILES[variant].items()}
    if missing := [_PUBLISHED_FILES[variant][kind] for kind, path in files.items() if path is None]:
        raise CheckpointError(
            explain(
                f"The folder {folder} lacks {', '.join(missing)}",
                expected=f"the files of huggingface.co/{REPOSITORY}, in its layout or all in one place",
            )
        )
    found = {kind: path for kind, path in files.items() if path is not None}
    names = {kind: str(path.relative_to(folder)) for kind, path in found.items()}
    return found, _check_record(f"folder {folder.resolve()}", names, found)


def _load_published(variant: str, files: dict[str, Path], digests: dict[str, str]) -> Model:
    config, schema = PUBLISHED[variant], published_schema()
    mean, std = _read_statistics(files["statistics"], config.num_variables)
    grid = LatLonGrid.equiangular(*PUBLISHED_GRID)
    static = _read_static(files["static"], grid)
    weights, neighbors = load_published_weights(files["weights"])
    network = _build(config, grid, static, neighbors, weights, files["weights"])
    provenance: dict[str, Any] = {
        "name": variant,
        "title": f"Mosaic, the authors' published weights '{variant}' (arXiv 2604.16429)",
        "license": PUBLISHED_LICENSE,
        "data": "ERA5" if variant == "era5" else "ERA5, then HRES-fc0 2016–2021",
        "references": PAPER,
        "repository": REPOSITORY,
        "files": {path.name: digests[kind] for kind, path in files.items()},
    }
    if commit := _commit(files["weights"]):
        provenance["revision"] = commit
    _show_license(variant)
    return Model(network, schema, grid, mean, std, static, provenance, digests["weights"])


_license_shown: set[str] = set()


def _show_license(variant: str) -> None:
    """Once in a process."""
    if variant in _license_shown:
        return
    _license_shown.add(variant)
    warnings.warn(
        f"The weights '{variant}' are the authors' and come under {PUBLISHED_LICENSE}: not for commercial use, and "
        "credit is due (arXiv 2604.16429). Every forecast made with them carries that licence.",
        LicenseNotice,
        stacklevel=_outside(),
    )


def _outside() -> int:
    """Level of the first caller outside this package, who is to see a warning; as `warnings.warn` counts it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] == "xmosaic":
        level, frame = level + 1, frame.f_back
    return level


def _read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        _check_archive(path, _LARGEST_ARRAYS)
        with np.load(path, allow_pickle=False) as file:
            if missing := [n for n in names if n not in file]:
                raise CheckpointError(
                    explain(f"{path} lacks {', '.join(missing)}", got=", ".join(file.files), expected=", ".join(names))
                )
            return {n: file[n] for n in names}
    except CheckpointError:
        raise
    except Exception as error:  # as above
        raise CheckpointError(explain(f"{path} can't be read as plain arrays", got=str(error))) from error


def _read_statistics(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
    arrays = _read_npz(path, ("state_mean", "state_std"))
    for name, values in arrays.items():
        _require(values.shape == (channels,), f"{name} of {path} is misshapen", str(values.shape), f"({channels},)")
        _require(values.dtype.kind == "f", f"{name} of {path} holds no real numbers", str(values.dtype), "float64")
    return arrays["state_mean"].astype(np.float64), arrays["state_std"].astype(np.float64)


def _read_static(path: Path, grid: LatLonGrid) -> np.ndarray:
    arrays = _read_npz(path, ("data", "longitude", "latitude"))
    for name, axis in (("longitude", grid.longitude), ("latitude", grid.latitude)):
        found = arrays[name]
        same = found.shape == (len(axis),) and found.dtype.kind in "fiu" and np.allclose(found, axis, atol=1e-4)
        _require(same, f"The static fields of {path} are on another grid", f"another {name}", str(grid))
    return arrays["data"]


# ------------------------------------------------------------------------------------------- the hub, remembered


def offline() -> bool:
    """Whether the network must not be used."""
    return os.environ.get("XMOSAIC_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def cache_folder() -> Path:
    """Where this package remembers revisions and digests of published files."""
    if chosen := os.environ.get("XMOSAIC_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "xmosaic"


def _fetch(variant: str, revision: str | None) -> tuple[dict[str, Path], dict[str, str]]:
    """Published files and their digests, all of one commit; later calls stay on the first one's."""
    record = _read_record()
    wanted = revision or record.get("revision")
    files: dict[str, Path] = {}
    for kind, name in _PUBLISHED_FILES[variant].items():
        files[kind] = _download(name, wanted)
        wanted = _commit(files[kind]) or wanted
    digests = _check_record(f"revision {wanted}", _PUBLISHED_FILES[variant], files)
    if revision is None and wanted and record.get("revision") is None:
        _write_record(_read_record() | {"revision": wanted})
    return files, digests


def _download(name: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        if offline():  # the client's own download asks the network who is calling, whatever it is told
            held = huggingface_hub.try_to_load_from_cache(REPOSITORY, name, revision=revision)
            if not isinstance(held, str):
                raise FileNotFoundError("XMOSAIC_OFFLINE=1 forbids the network")
            return Path(held)
        return Path(huggingface_hub.hf_hub_download(REPOSITORY, name, revision=revision))
    except Exception as error:  # the client's transport changes between its versions, and so do its exceptions
        raise CheckpointError(
            explain(
                f"{name} of {REPOSITORY} (revision {revision or 'main'}) can't be fetched and is not in the cache",
                got=(str(error).splitlines() or [type(error).__name__])[0],
                do="Connect once, or download the repository elsewhere and pass folder=…; "
                "load_model('bundled') needs no network",
            )
        ) from error


def _commit(path: Path) -> str | None:
    pairs = zip(path.parts, path.parts[1:], strict=False)
    return next((b for a, b in pairs if a == "snapshots" and re.fullmatch("[0-9a-f]{40}", b)), None)


def _record_path() -> Path:
    return cache_folder() / "published.json"


def _read_record() -> dict[str, Any]:
    path = _record_path()
    if not path.exists():
        return {}
    try:
        record = dict(json.loads(path.read_text()))
        if not all(isinstance(known, dict) for known in dict(record.get("sha256", {})).values()):
            raise ValueError("its 'sha256' are no names and digests")
        return record
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            explain(
                f"The record of digests {path} can't be read",
                got=str(error),
                do="Repair it, or delete it to start anew",
            )
        ) from error


def _write_record(record: dict[str, Any]) -> None:
    path = _record_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(record, indent=1, sort_keys=True))
        os.replace(scratch, path)
    except OSError as error:
        do = "Point the environment variable XMOSAIC_CACHE at a folder that can be written"
        raise CheckpointError(
            explain(f"The record of digests {path} can't be written", got=str(error), do=do)
        ) from error


def _check_record(source: str, names: Mapping[str, str], files: Mapping[str, Path]) -> dict[str, str]:
    """Digest of each file by kind, compared with that of its first use or written down under its name."""
    record = _read_record()
    known: dict[str, str] = record.setdefault("sha256", {}).setdefault(source, {})
    digests = {kind: _sha256(path) for kind, path in files.items()}
    first = any(names[kind] not in known for kind in files)
    for kind, digest in digests.items():
        if known.setdefault(names[kind], digest) != digest:
            raise CheckpointError(
                explain(
                    f"{files[kind]} is not the file it was at its first use",
                    got=f"sha256 {digest}",
                    expected=known[names[kind]],
                    do=f"Fetch it again; if the change is meant, delete the entry of {source!r} in {_record_path()}",
                )
            )
    if first:
        _write_record(record)
    return digests
