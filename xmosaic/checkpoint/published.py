"""The authors' files, read without executing anything in them."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError, explain
from ..grid import LatLonGrid
from .arrays import plain, require

# bytes of all arrays of a published .npz; the static fields are 350 kB
_LARGEST_ARRAYS = 100_000_000
# parts of a published file that follow from the configuration
_DERIVED = (".neighbors", ".rel_pos", "_freqs", "static_vars")


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
    neighbors = tuple(plain(t, "a table of neighbours", path) for t in tables if t is not None)
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


def read_statistics(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the state, (channel,), of a published ``.npz``."""
    arrays = _read_npz(path, ("state_mean", "state_std"))
    for name, values in arrays.items():
        require(values.shape == (channels,), f"{name} of {path} is misshapen", str(values.shape), f"({channels},)")
        require(values.dtype.kind == "f", f"{name} of {path} holds no real numbers", str(values.dtype), "float64")
    return arrays["state_mean"].astype(np.float64), arrays["state_std"].astype(np.float64)


def read_static(path: Path, grid: LatLonGrid) -> np.ndarray:
    """Static fields of a published ``.npz``, (longitude, latitude, static), if they are on this grid."""
    arrays = _read_npz(path, ("data", "longitude", "latitude"))
    for name, axis in (("longitude", grid.longitude), ("latitude", grid.latitude)):
        found = arrays[name]
        same = found.shape == (len(axis),) and found.dtype.kind in "fiu" and np.allclose(found, axis, atol=1e-4)
        require(same, f"The static fields of {path} are on another grid", f"another {name}", str(grid))
    return arrays["data"]


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
