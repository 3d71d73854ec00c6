"""The folder of a training run: whole files or none, the last good state always readable, a history that can be cut."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, StoreError, explain

_KEPT = 2


class RunFolder:
    """States, history and the best model of one run.

    Parameters
    ----------
    path : path
        ``config.json``; ``state-….pt``, the last two, listed with their digests in ``states.json``; ``history.jsonl``;
        ``model.safetensors``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()

    @property
    def model(self) -> Path:
        """Where the best model is."""
        return self.path / "model.safetensors"

    def begin(self, config: dict[str, Any]) -> None:
        """Start a run in a folder that holds none.

        Parameters
        ----------
        config : dict
        """
        if (self.path / "config.json").exists():
            raise StoreError(
                explain(
                    f"{self.path} already holds a training run",
                    do="Pass resume=True (--resume) to go on with it, or another folder",
                )
            )
        self._write(self.path / "config.json", lambda file: file.write(json.dumps(config, indent=1).encode()))

    def config(self) -> dict[str, Any]:
        """Configuration that the run was begun with."""
        try:
            return dict(json.loads((self.path / "config.json").read_text()))
        except FileNotFoundError:
            raise CheckpointError(explain(f"{self.path} holds no training run", do="Leave out resume=True")) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(explain(f"{self.path / 'config.json'} can't be read", got=str(error))) from error

    def save(self, state: dict[str, Any]) -> None:
        """Write a state, whole or not at all; the one before stays.

        Parameters
        ----------
        state : dict
            Tensors and plain values; ``update`` is its number.
        """
        name = f"state-{state['update']:08d}.pt"
        self._write(self.path / name, lambda file: torch.save(state, file))
        kept = [entry for entry in self._states() if entry["file"] != name]
        entry = {"file": name, "update": state["update"], "sha256": _digest(self.path / name)}
        states = [*kept, entry][-_KEPT:]
        self._write(self.path / "states.json", lambda file: file.write(json.dumps(states).encode()))
        names = {s["file"] for s in states}
        for old in self.path.glob("state-*.pt"):
            if old.name not in names:
                old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any]:
        """The last state that is whole.

        Returns
        -------
        dict

        Warns
        -----
        UserWarning
            Where a later one is damaged.
        """
        for entry in reversed(self._states()):
            path = self.path / entry["file"]
            try:
                if _digest(path) != entry["sha256"]:
                    raise ValueError("its digest is another than when it was written")
                return dict(torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:
                warnings.warn(f"{path} can't be used: {error}. The one before it is taken.", UserWarning, stacklevel=3)
        raise CheckpointError(
            explain(f"{self.path} holds no state to resume from", do="Train from the start, in another folder")
        )

    def has_state(self) -> bool:
        """Whether there is anything to resume from."""
        return bool(self._states())

    def _states(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads((self.path / "states.json").read_text()))
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise CheckpointError(explain(f"{self.path / 'states.json'} can't be read", got=str(error))) from error

    # ------------------------------------------------------------------------------------------------------ history

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to the history."""
        try:
            with (self.path / "history.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def lines(self) -> list[dict[str, Any]]:
        """The history; a last line that a kill cut short is left out."""
        try:
            rows = (self.path / "history.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for row in rows:
            try:
                found.append(json.loads(row))
            except ValueError:
                break
        return found

    def cut(self, update: int) -> None:
        """Leave out what the history says of updates after `update`: they are made again."""
        kept = [line for line in self.lines() if line["update"] <= update]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        self._write(self.path / "history.jsonl", lambda file: file.write(text.encode()))

    def _write(self, path: Path, write: Callable[[Any], Any]) -> None:
        """A file in its place at once, on disk before the name is."""
        scratch = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            raise _unwritable(path, error) from error
        finally:
            if scratch is not None:
                Path(scratch).unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> StoreError:
    return StoreError(
        explain(
            f"The training run can't be written to {path}",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do="Make room, then go on with resume=True: the last state is still there",
        )
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
