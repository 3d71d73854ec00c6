"""The revision and the digests of published files, remembered from their first use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, explain
from .arrays import sha256_of


def cache_folder() -> Path:
    """Where this package remembers revisions and digests of published files."""
    if chosen := os.environ.get("XMOSAIC_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "xmosaic"


def check_record(source: str, names: Mapping[str, str], files: Mapping[str, Path]) -> dict[str, str]:
    """Digest of each file by kind, compared with that of its first use or written down under its name."""
    record = read_record()
    known: dict[str, str] = record.setdefault("sha256", {}).setdefault(source, {})
    digests = {kind: sha256_of(path) for kind, path in files.items()}
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
        write_record(record)
    return digests


def read_record() -> dict[str, Any]:
    """What is remembered; nothing before the first use."""
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


def write_record(record: dict[str, Any]) -> None:
    """Write it down, whole or not at all."""
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


def _record_path() -> Path:
    return cache_folder() / "published.json"
