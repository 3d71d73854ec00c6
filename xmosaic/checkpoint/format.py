"""Our own format read: a safetensors file that describes itself, everything in it checked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from ..errors import CheckpointError, MosaicError, explain
from ..grid import LatLonGrid
from ..model import MosaicConfig
from ..variables import Schema
from .arrays import digest_of, plain, require, sha256_of
from .build import build_network, check_names
from .model import FORMAT_VERSION, Model


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
    require(
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
    found = digest_of(tensors, description)
    require(found == digest, f"{path} is damaged", f"digest {found}", str(digest))
    weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    tables = {k: plain(v, k, path) for k, v in tensors.items() if not k.startswith("network.")}
    check_names(
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
    network = build_network(config, grid, tables.get("static"), neighbors, weights, path)
    statistics = tables["statistics.mean"], tables["statistics.std"]
    provenance.setdefault("name", path.stem)
    return Model(network, schema, grid, *statistics, tables.get("static"), provenance, sha256_of(path))


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
