"""One file of our own made of the authors'."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError, explain
from ..model import PUBLISHED
from .hub import PUBLISHED_FILES
from .loading import load_model


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
        named = {Path(files["weights"]).name: v for v, files in PUBLISHED_FILES.items()}
        if path.name not in named or variant not in (None, named[path.name]):
            expected = f"{' or '.join(named)}, as published, and the variant of that name"
            raise CheckpointError(explain(f"{path} can't be converted", got=f"variant {variant!r}", expected=expected))
        variant = named[path.name]
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    model = load_model(variant, folder=path) if variant else load_model(path)
    return model.save(target)
