"""A folder whose writes last: what was written since the last sync is on the disk after the next."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from zarr.storage import LocalStore


class SyncedStore(LocalStore):
    """zarr's store in a folder, with `sync`.

    A killed process loses nothing that it wrote, but a machine that loses power does: files in the system's cache,
    and names of files in folders.

    Parameters
    ----------
    root : path
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._written: set[Path] = set()
        self._guard = threading.Lock()

    async def set(self, key: str, value: Any) -> None:
        """Write a value, and remember that it isn't on the disk yet."""
        await super().set(key, value)
        self._remember(key)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Write a value unless there is one."""
        await super().set_if_not_exists(key, value)
        self._remember(key)

    def set_sync(self, key: str, value: Any) -> None:
        """Write a value, and remember that it isn't on the disk yet."""
        super().set_sync(key, value)
        self._remember(key)

    @contextmanager
    def fill(self, key: str) -> Iterator[BinaryIO]:
        """Give a file to write to; it is the key's value once it is whole, and not before."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                # here, where several threads wait for the disk at the same time, and not in the one that records
                _fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._remember(key)

    def _remember(self, key: str) -> None:
        with self._guard:
            self._written.add(self.root / key)

    def sync(self) -> None:
        """Wait until everything written so far is on the disk, with the folders that name it."""
        with self._guard:
            files, self._written = self._written, set()
        folders = {folder for file in files for folder in file.parents if folder.is_relative_to(self.root)}
        if files:
            folders.add(self.root.parent)
        for path in (*files, *sorted(folders, reverse=True)):
            _flush(path)


def _flush(path: Path) -> None:
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDONLY
    try:
        handle = os.open(path, flags)
    except (FileNotFoundError, PermissionError):
        return  # deleted since, or a system whose folders can't be opened (Windows)
    try:
        _fsync(handle)
    finally:
        os.close(handle)


def _fsync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no such thing
            raise
