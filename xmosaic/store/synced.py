"""A folder whose writes last: what was written since the last sync is on the disk after the next."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from zarr.storage import LocalStore

from .record import RECORD

# The root, whose attributes say that a forecast is whole, and the record.
_LASTING = re.compile(rf"zarr\.json$|{RECORD}/")


class SyncedStore(LocalStore):
    """zarr's store in a folder, with `sync`.

    A killed process loses nothing that it wrote, but a machine that loses power does: files in the system's cache,
    and names of files in folders. What a forecast's record says, and what it speaks of, is on the disk before it has
    its name.

    Parameters
    ----------
    root : path
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._written: set[Path] = set()
        self._unnamed: dict[Path, Path] = {}
        self._named: set[Path] = set()  # in folders that aren't on the disk yet
        self._guard = threading.Lock()

    async def set(self, key: str, value: Any) -> None:
        """Write a value, and remember that it isn't on the disk yet."""
        if _LASTING.match(key):
            await asyncio.to_thread(self._set_lasting, key, value)
            return
        await super().set(key, value)
        self._remember(key)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Write a value unless there is one."""
        await super().set_if_not_exists(key, value)
        self._remember(key)

    def set_sync(self, key: str, value: Any) -> None:
        """Write a value, and remember that it isn't on the disk yet."""
        if _LASTING.match(key):
            self._set_lasting(key, value)
            return
        super().set_sync(key, value)
        self._remember(key)

    def _set_lasting(self, key: str, value: Any) -> None:
        with self.fill(key) as file:
            file.write(value.as_buffer_like())
        self._name(self.root / key)

    @contextmanager
    def fill(self, key: str) -> Iterator[BinaryIO]:
        """Give a file to write to; it is the key's value after the next `sync`, and not before."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                _begin_writing(file.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        with self._guard:
            before, self._unnamed[path] = self._unnamed.get(path), part
        if before is not None:
            before.unlink(missing_ok=True)

    def _name(self, path: Path) -> None:
        """Give a file that was filled its name, once it is on the disk."""
        part = self._unnamed[path]
        with part.open("r+b") as file:
            _fsync(file.fileno())
        with self._guard:
            part.replace(path)
            del self._unnamed[path]
            self._named.add(path)

    def _remember(self, key: str) -> None:
        with self._guard:
            self._written.add(self.root / key)

    def sync(self) -> None:
        """Wait until everything written so far is on the disk, with the folders that name it."""
        with self._guard:
            filled = list(self._unnamed)
        for path in filled:
            self._name(path)
        with self._guard:
            files, self._written = self._written, set()
            named, self._named = self._named, set()
        folders = {folder for file in files | named for folder in file.parents if folder.is_relative_to(self.root)}
        if folders:
            folders.add(self.root.parent)
        for path in (*files, *sorted(folders, reverse=True)):
            _flush(path)

    def discard(self) -> None:
        """Remove what was filled since the last `sync`."""
        with self._guard:
            while self._unnamed:
                self._unnamed.popitem()[1].unlink(missing_ok=True)


def _begin_writing(handle: int) -> None:
    """Let the disk begin: who waits for it later, waits less. (That is what this advice does to pages not written.)"""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # a file system that takes no advice; what is wrong with a disk, waiting for it tells
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


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
