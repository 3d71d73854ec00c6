"""The authors' models, made of their files; and whose they are."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from ..grid import LatLonGrid
from ..model import PUBLISHED
from ..variables import published_schema
from .build import build_network
from .hub import REPOSITORY, commit_of
from .model import Model
from .published import load_published_weights, read_static, read_statistics

PAPER = "https://doi.org/10.48550/arXiv.2604.16429"
PUBLISHED_LICENSE = "CC-BY-NC-4.0"
PUBLISHED_GRID = (240, 121)


class LicenseNotice(UserWarning):
    """Weights come under a licence that is not this package's own."""


def load_published(variant: str, files: dict[str, Path], digests: dict[str, str]) -> Model:
    """Model of a variant's files, by kind."""
    config, schema = PUBLISHED[variant], published_schema()
    mean, std = read_statistics(files["statistics"], config.num_variables)
    grid = LatLonGrid.equiangular(*PUBLISHED_GRID)
    static = read_static(files["static"], grid)
    weights, neighbors = load_published_weights(files["weights"])
    network = build_network(config, grid, static, neighbors, weights, files["weights"])
    provenance: dict[str, Any] = {
        "name": variant,
        "title": f"Mosaic, the authors' published weights '{variant}' (arXiv 2604.16429)",
        "license": PUBLISHED_LICENSE,
        "data": "ERA5" if variant == "era5" else "ERA5, then HRES-fc0 2016–2021",
        "references": PAPER,
        "repository": REPOSITORY,
        "files": {path.name: digests[kind] for kind, path in files.items()},
    }
    if commit := commit_of(files["weights"]):
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
