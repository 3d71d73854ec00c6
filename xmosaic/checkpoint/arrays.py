"""What a model's arrays must be, and digests of them and of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError, explain


def require(condition: bool, what: str, got: str, expected: str) -> None:
    """Raise in this package's words unless `condition` holds."""
    if not condition:
        raise CheckpointError(explain(what, got=got, expected=expected))


def plain(tensor: torch.Tensor, name: str, path: Path) -> np.ndarray:
    """A file's tensor as an array, if it holds plain numbers."""
    known = (torch.float32, torch.float64, torch.int32, torch.int64)
    require(
        tensor.dtype in known and is_plain(tensor),
        f"{name} of {path} has another type",
        f"{tensor.dtype} {tensor.layout} on {tensor.device}",
        "plain numbers of 32 or 64 bits",
    )
    return np.asarray(tensor.detach().numpy())


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is what memory holds: neither sparse nor elsewhere."""
    return tensor.layout is torch.strided and tensor.device.type == "cpu"


def check_statistics(mean: np.ndarray, std: np.ndarray, channels: tuple[Any, ...]) -> None:
    """A mean of every channel, and a standard deviation above 0."""
    for name, values in (("mean", mean), ("std", std)):
        good = values.shape == (len(channels),)
        require(good, f"The statistics' {name} is misshapen", str(values.shape), f"({len(channels)},)")
        require(values.dtype.kind == "f", f"The statistics' {name} is of another type", str(values.dtype), "float64")
        bad = [
            c.name for c, v in zip(channels, values, strict=True) if not np.isfinite(v) or (name == "std" and v <= 0)
        ]
        require(not bad, f"The {name} of {', '.join(bad)} can't be used", "", "a number, and above 0 for std")


def digest_of(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> str:
    """Digest of all contents, independent of how a file orders them."""
    total = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
