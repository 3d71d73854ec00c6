"""Where the authors' files are: fetched from the hub, or found in a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError, explain
from ..model import PUBLISHED
from .record import check_record, read_record, write_record

REPOSITORY = "AMLab-UvA/mosaic"
PUBLISHED_FILES = {
    variant: {
        "weights": f"checkpoints/{variant}_best.pt",
        "statistics": f"data/norm_stats_{variant}.npz",
        "static": "data/static_vars.npz",
    }
    for variant in PUBLISHED
}


def offline() -> bool:
    """Whether the network must not be used."""
    return os.environ.get("XMOSAIC_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def fetch(variant: str, revision: str | None) -> tuple[dict[str, Path], dict[str, str]]:
    """Published files and their digests, all of one commit; later calls stay on the first one's."""
    record = read_record()
    wanted = revision or record.get("revision")
    files: dict[str, Path] = {}
    for kind, name in PUBLISHED_FILES[variant].items():
        files[kind] = _download(name, wanted)
        wanted = commit_of(files[kind]) or wanted
    digests = check_record(f"revision {wanted}", PUBLISHED_FILES[variant], files)
    if revision is None and wanted and record.get("revision") is None:
        write_record(read_record() | {"revision": wanted})
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


def commit_of(path: Path) -> str | None:
    """Commit that a file in the hub's cache is of."""
    pairs = zip(path.parts, path.parts[1:], strict=False)
    return next((b for a, b in pairs if a == "snapshots" and re.fullmatch("[0-9a-f]{40}", b)), None)


def find_files(variant: str, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Published files in a folder and their digests, by kind."""
    files = {kind: find(folder, name) for kind, name in PUBLISHED_FILES[variant].items()}
    if missing := [PUBLISHED_FILES[variant][kind] for kind, path in files.items() if path is None]:
        raise CheckpointError(
            explain(
                f"The folder {folder} lacks {', '.join(missing)}",
                expected=f"the files of huggingface.co/{REPOSITORY}, in its layout or all in one place",
            )
        )
    found = {kind: path for kind, path in files.items() if path is not None}
    names = {kind: str(path.relative_to(folder)) for kind, path in found.items()}
    return found, check_record(f"folder {folder.resolve()}", names, found)


def find(folder: Path, name: str) -> Path | None:
    """A published file in a folder, in its layout or all in one place."""
    return next((p for p in (folder / name, folder / Path(name).name) if p.is_file()), None)
