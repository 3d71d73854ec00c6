"""The folder of a training run: whole files or none, the last good state always readable, a history that can be cut."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError, StoreError, explain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from ..checkpoint import Model

_KEPT = 2
# What a state in shards has besides them, in its folder.
_PLAIN = "plain.json"


class RunFolder:
    """States, history and the best model of one run.

    Parameters
    ----------
    path : path
        ``config.json``; the last two states, ``state-….pt`` or in shards a folder ``state-…`` of
        `torch.distributed.checkpoint`, listed with their digests in ``states.json``; ``history.jsonl``;
        ``model.safetensors``; ``lock``, held while a process trains here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self._held: int | None = None

    def hold(self) -> None:
        """Let no other process write here until `release`, or until this one ends in whatever way."""
        if fcntl is None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            do = "Wait for it, or end it, then go on with resume=True"
            what = f"Another process is training in {self.path}"
            raise StoreError(explain(what, got=holder, expected="one at a time", do=do)) from None
        except OSError:  # a file system without locks
            os.close(handle)
            return
        self._held = handle
        with contextlib.suppress(OSError):  # on a full disk others hear less
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)

    def release(self) -> None:
        """Let others write."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @property
    def model(self) -> Path:
        """Where the best model is."""
        return self.path / "model.safetensors"

    def begin(self, config: dict[str, Any]) -> None:
        """Start a run in a folder that holds none, or one that ended before its first update, with nothing to lose.

        Parameters
        ----------
        config : dict
        """
        begun = (self.path / "config.json").exists()
        if begun and (self.has_state() or any(line["kind"] == "update" for line in self.lines())):
            raise StoreError(
                explain(
                    f"{self.path} already holds a training run",
                    do="Pass resume=True (--resume) to go on with it, or another folder",
                )
            )
        if begun:
            (self.path / "history.jsonl").unlink(missing_ok=True)
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
        self._record({"file": name, "update": state["update"], "sha256": _digest(self.path / name)})

    def save_shards(self, plain: dict[str, Any], tensors: Mapping[str, torch.Tensor], ranks: Any) -> None:
        """Write a state of which each rank has a part; the one before stays. Every rank takes part.

        Parameters
        ----------
        plain : dict
            Numbers and lists, ready for JSON; ``update`` is the state's number.
        tensors : mapping of str to Tensor
            Cut or whole.
        ranks : Ranks
        """
        import torch.distributed.checkpoint as dcp

        name = f"state-{plain['update']:08d}"
        scratch = self.path / f".{name}.part"
        ranks.once(lambda: self._clear(scratch))
        try:
            dcp.save(dict(tensors), checkpoint_id=scratch, process_group=ranks.control)
        except dcp.api.CheckpointException as error:  # on every rank, whichever it was
            raise _unwritable(scratch, next(iter(error.failures.values()))[0]) from error
        ranks.once(lambda: self._write(scratch / _PLAIN, lambda file: file.write(json.dumps(plain).encode())))
        files = sorted(path.name for path in scratch.iterdir())
        # a digest reads all that was written: each rank a share
        digests = ranks.each(lambda: {f: _digest(scratch / f) for f in files[ranks.rank :: ranks.world]})
        found = {file: digest for some in ranks.gather(digests) for file, digest in some.items()}

        def finish() -> None:
            try:
                if (self.path / name).exists():  # written once before, but never recorded
                    shutil.rmtree(self.path / name)
                os.replace(scratch, self.path / name)
            except OSError as error:
                raise _unwritable(self.path / name, error) from error
            self._record({"file": name, "update": plain["update"], "sha256": found})

        ranks.once(finish)

    def _clear(self, scratch: Path) -> None:
        """Room for a state; what a kill has left of earlier ones goes."""
        try:
            for left in self.path.glob(".state-*.part"):
                shutil.rmtree(left)
            scratch.mkdir(parents=True)
        except OSError as error:
            raise _unwritable(scratch, error) from error

    def _record(self, entry: dict[str, Any]) -> None:
        """List a state that is whole, and let go of those that aren't listed any more."""
        kept = [other for other in self._states() if other["file"] != entry["file"]]
        states = [*kept, entry][-_KEPT:]
        self._write(self.path / "states.json", lambda file: file.write(json.dumps(states).encode()))
        names = {s["file"] for s in states}
        for old in self.path.glob("state-*"):
            if old.name not in names:
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)

    def last(self) -> Path:
        """The last state that is whole: a file, or a folder of shards.

        Returns
        -------
        Path

        Warns
        -----
        UserWarning
            Where a later one is damaged.
        """
        for entry in reversed(self._states()):
            path = self.path / entry["file"]
            try:
                digests = entry["sha256"] if isinstance(entry["sha256"], dict) else {"": entry["sha256"]}
                for file, digest in digests.items():
                    if _digest(path / file) != digest:
                        raise ValueError(f"the digest{f' of {file}' * bool(file)} is another than when it was written")
                return path
            except (OSError, ValueError) as error:
                warnings.warn(f"{path} can't be used: {error}. The one before it is taken.", UserWarning, stacklevel=3)
        raise CheckpointError(
            explain(f"{self.path} holds no state to resume from", do="Train from the start, in another folder")
        )

    def load(self, path: Path | None = None) -> dict[str, Any]:
        """A state that was saved whole, by default the last one.

        Parameters
        ----------
        path : Path, optional

        Returns
        -------
        dict
        """
        path = self.last() if path is None else path
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))

    def load_plain(self, path: Path) -> dict[str, Any]:
        """What a state in shards has besides its tensors."""
        return dict(json.loads((path / _PLAIN).read_text()))

    def load_shards(self, path: Path, tensors: dict[str, torch.Tensor], ranks: Any) -> None:
        """Fill tensors, cut or whole, from a state in shards, however many ranks wrote it. Every rank takes part.

        Parameters
        ----------
        path : Path
        tensors : dict of str to Tensor
            Changed in place.
        ranks : Ranks
        """
        import torch.distributed.checkpoint as dcp

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process, on purpose
                dcp.load(tensors, checkpoint_id=path, process_group=ranks.control, no_dist=ranks.world == 1)
        except (Exception, dcp.api.CheckpointException) as error:  # unknown names and other shapes come as many kinds
            failures = getattr(error, "failures", {0: (error, None)})
            got = (str(next(iter(failures.values()))[0]).splitlines() or [""])[0]
            what = f"The state {path} doesn't fit this run"
            raise CheckpointError(
                explain(what, got=got, do="Resume with the configuration it was begun with")
            ) from error

    def save_model(self, model: Model) -> None:
        """Write the best model, whole or not at all; the one before stays."""
        try:
            model.save(self.model)
        except CheckpointError as error:
            raise _unwritable(self.model, error.__cause__ or error) from error

    def tidy(self) -> None:
        """Remove what kills in the middle of writing have left: it may be as large as a state, each time."""
        for name in ("state-*.pt", "states.json", "history.jsonl", "config.json", self.model.name):
            for left in self.path.glob(f".{name}.*"):
                left.unlink(missing_ok=True)

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
        except (FileNotFoundError, NotADirectoryError):
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


def _unwritable(path: Path, error: BaseException) -> StoreError:
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # which torch hides behind positions in its file
    do = "Make room, then go on with resume=True: the last state is still there"
    # no folder, not ours, or not to be changed
    if isinstance(error, OSError) and error.errno in (
        errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS,
    ):  # fmt: skip
        do = "Take a folder that can be written to; what was written before is still there"
    got = str(error).splitlines()[0] if str(error) else type(error).__name__
    return StoreError(explain(f"The training run can't be written to {path}", got=got, do=do))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
