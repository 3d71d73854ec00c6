"""One writer at a time: a lock in the store, with its owner and a beat, and none left behind by a killed process.

On a local disk the system's own lock (`flock`), which ends with the process, decides. Elsewhere the lock is a small
object: stores that can't make one only if there is none leave a moment in which two processes may both take it; each
looks again before it writes. Nothing is lost then, since both write the same bits, but work is done twice.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import StoreError, explain
from .owner import HELD, Owner
from .place import Place

# Beside the record's array, where no listing of groups looks.
_KEY = "xmosaic_record/written/lock"
BEAT = 10.0  # seconds between two signs of life
PATIENCE = 25.0  # seconds to wait for one from a holder that can't be asked otherwise
_SETTLE = 0.5  # seconds after which another's write is seen, where making and looking are two things


class Lock:
    """A store's lock, held from `acquire` to `release`.

    Parameters
    ----------
    place : Place
    """

    def __init__(self, place: Place) -> None:
        self._label, self._owner = place.label, Owner.me()
        self._keep: _File | _Object | None = None
        if not place.shares_commits:
            self._keep = _File(place.folder / _KEY) if place.folder is not None else _Object(place.store)
        self._lost: Owner | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, or raise `StoreError` with who holds it."""
        if self._keep is None:
            return
        holder = self._keep.take(self._owner, self._stale)
        if holder is not None:
            raise StoreError(
                explain(
                    f"The store {self._label} is being written by another process",
                    got=str(holder),
                    expected="one at a time",
                    do="Wait for it, or end it; what it has completed is kept",
                )
            )
        HELD.add(self._owner.token)
        self._thread = threading.Thread(target=self._beat, name="xmosaic lock", daemon=True)
        self._thread.start()

    def _stale(self, holder: Owner | None) -> bool:
        """Whether a holder is gone; one on another machine is watched for a sign of life."""
        gone = None if holder is None else holder.gone()
        if gone is not None or self._keep is None:
            return bool(gone)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(min(1.0, PATIENCE / 10))
            seen = self._keep.read()
            if seen is not None and seen != holder:
                return False
        return True

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(Exception):  # a full disk or a lost connection: the writer will say so
                if not self._still_mine():
                    return
                assert self._keep is not None
                self._keep.write(self._owner.beating())

    def _still_mine(self) -> bool:
        seen = self._keep.read() if self._keep is not None else None
        if seen is not None and seen.token != self._owner.token:
            self._lost = seen
        return self._lost is None

    def check(self) -> None:
        """Raise `StoreError` if another has taken the lock, as may happen to a process that was stopped for long."""
        if self._keep is not None and not self._still_mine():
            raise StoreError(
                explain(
                    f"Another process has gone on with the store {self._label}",
                    got=str(self._lost),
                    expected=f"the lock of process {os.getpid()}",
                    do="Let that one finish; the same call then returns at once",
                )
            )

    def release(self) -> None:
        """Give the lock back."""
        self._over.set()
        if self._thread is None or self._keep is None:
            return
        self._thread.join()
        HELD.discard(self._owner.token)
        with contextlib.suppress(Exception):  # one that is left is recognised
            if self._still_mine():
                self._keep.remove()
        self._keep.close()


class _File:
    """A lock file under the system's own lock."""

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path, -1

    def take(self, owner: Owner, stale: Any) -> Owner | None:
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            holder = self.read()
            if not _flock(self._handle):
                self.close()
                return holder or replace(owner, host="")
            # the holder may have removed the file between our opening and our locking it
            if not self._there():
                self.close()
                continue
            if holder is not None and not stale(holder):
                self.close()
                return holder
            self.write(owner)
            return None

    def _there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def read(self) -> Owner | None:
        return Owner.read(os.pread(self._handle, 4096, 0))

    def write(self, owner: Owner) -> None:
        # in place: a file moved here would be another one, without our lock; spaces cover what was longer
        os.pwrite(self._handle, owner.text().ljust(1024), 0)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def _flock(handle: int) -> bool:
    """Whether nobody else on this system holds the file; True too where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without: the owner in the file decides alone
    return True


class _Object:
    """A lock as an object of any zarr store."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def take(self, owner: Owner, stale: Any) -> Owner | None:
        from zarr.core.sync import sync

        sync(self._store.set_if_not_exists(_KEY, self._buffer(owner)))
        holder = self.read()
        if holder is None or holder.token != owner.token:
            if not stale(holder):
                return holder or replace(owner, host="")
            self.write(owner)
        time.sleep(_SETTLE if self._may_race() else 0)
        holder = self.read()
        return None if holder is None or holder.token == owner.token else holder

    def _may_race(self) -> bool:
        from zarr.storage import MemoryStore

        return not isinstance(self._store, MemoryStore)

    def _buffer(self, owner: Owner) -> Any:
        from zarr.core.buffer import default_buffer_prototype

        return default_buffer_prototype().buffer.from_bytes(owner.text())

    def read(self) -> Owner | None:
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        found = sync(self._store.get(_KEY, default_buffer_prototype()))
        return None if found is None else Owner.read(found.to_bytes())

    def write(self, owner: Owner) -> None:
        from zarr.core.sync import sync

        sync(self._store.set(_KEY, self._buffer(owner)))

    def remove(self) -> None:
        from zarr.core.sync import sync

        sync(self._store.delete(_KEY))

    def close(self) -> None:
        pass
