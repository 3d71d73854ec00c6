"""A model by its name or path."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from ..errors import CheckpointError, explain
from ..model import PUBLISHED
from .format import read_model
from .hub import PUBLISHED_FILES, fetch, find, find_files
from .model import Model
from .variants import load_published


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
            return load_published(name, *fetch(name, revision))
        if revision is not None:
            raise CheckpointError(
                explain("revision= is for files that are fetched", got="folder= as well", do="Leave one of them out")
            )
        return load_published(name, *find_files(name, Path(folder).expanduser()))
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


def _load_folder(folder: Path) -> Model:
    held = [v for v, files in PUBLISHED_FILES.items() if find(folder, files["weights"])]
    if len(held) != 1:
        found = " and ".join(held) or ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            explain(
                f"The folder {folder} does not say which model is meant",
                got=found,
                expected="the weights of one published variant, "
                + " or ".join(f["weights"] for f in PUBLISHED_FILES.values()),
                do=f"Write load_model('era5', folder={str(folder)!r}) if it holds several",
            )
        )
    return load_published(held[0], *find_files(held[0], folder))
