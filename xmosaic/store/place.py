"""Where a store is: a folder, a URL, a zarr Store or an icechunk repository, each opened and committed its own way."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import offline
from ..errors import ArgumentError, StoreError, explain

if TYPE_CHECKING:
    import zarr

Store = Any  # path, URL, zarr.abc.store.Store or icechunk.Repository

_BRANCH = "main"
PARTIAL = re.compile(r"zarr\.\w+\.partial")  # a group's or array's metadata, before they have their name


class Place:
    """A store that a forecast is written to.

    Parameters
    ----------
    given : path, URL, zarr Store or icechunk Repository

    Attributes
    ----------
    label : str
        For messages; without what a URL says of users and keys.
    folder : Path or None
        Where it is on a local disk.
    store : zarr Store
        What is written to now.
    """

    def __init__(self, given: Store) -> None:
        self.label, self.folder = label(given), _folder(given)
        self._repository = given if hasattr(given, "writable_session") else None
        self._session: Any = None
        self._given = given
        self.store = self._open()

    def _open(self) -> Any:
        from zarr.abc.store import Store as ZarrStore

        given = self._given
        if self._repository is not None:
            self._session = self._repository.writable_session(_BRANCH)
            return self._session.store
        if self.folder is not None:
            from .synced import SyncedStore

            return SyncedStore(self.folder)
        if isinstance(given, str | os.PathLike):
            from zarr.storage import FsspecStore

            _check_online(os.fspath(given))
            return FsspecStore.from_url(os.fspath(given))
        if type(given).__module__.startswith("icechunk"):
            raise StoreError(
                explain(
                    "An icechunk session ends with its first commit",
                    got=type(given).__name__,
                    expected="store=repository, of which a session is opened for every commit",
                )
            )
        if not isinstance(given, ZarrStore):
            raise ArgumentError(
                explain(
                    f"store={type(given).__name__!r} can't be used",
                    expected="a path, a URL, a zarr Store or an icechunk Repository",
                )
            )
        if given.read_only:
            raise unwritable(self.label, PermissionError("it was opened read-only"))
        return given

    @property
    def shares_commits(self) -> bool:
        """Whether nothing is seen before a commit, and another's commit in between is noticed by the store itself."""
        return self._repository is not None

    def group(self) -> zarr.Group:
        """The root, for writing; made if need be."""
        import zarr

        return zarr.open_group(self.store, mode="a", use_consolidated=False)

    def sync(self) -> None:
        """Return once everything written lasts, where that is up to this process."""
        if hasattr(self.store, "sync"):
            self.store.sync()

    def discard(self) -> None:
        """Remove what is written half, or whole but not on the disk yet, of a forecast that ends in an error."""
        if hasattr(self.store, "discard"):
            self.store.discard()

    def sweep(self) -> None:
        """Remove what a killed process had written half: zarr gives a file its name when it is whole."""
        for file in self.folder.rglob("*.partial") if self.folder is not None else ():
            file.unlink(missing_ok=True)

    def commit(self, message: str) -> None:
        """Make what was written visible, for stores that know commits."""
        if self._repository is None or not self._session.has_uncommitted_changes:
            return
        self._session.commit(message)
        self.store = self._open()

    def readable(self) -> Store:
        """What `xarray.open_zarr` takes."""
        return readable(self._given)


def readable(given: Store) -> Store:
    """What `xarray.open_zarr` takes of a path, URL, zarr Store or icechunk Repository."""
    if hasattr(given, "readonly_session"):
        return given.readonly_session(_BRANCH).store
    if isinstance(given, str):
        _check_online(given)
    return _folder(given) or given


def _check_online(url: str) -> None:
    """Refuse what lies behind the network where that is forbidden."""
    remote = {*re.findall(r"(\w+)://", url)} - {"file", "local", "memory"}
    if remote and offline():
        what = f"{label(url)} lies behind the network, which XMOSAIC_OFFLINE=1 forbids"
        raise StoreError(explain(what, got=", ".join(sorted(remote)), expected="a path", do="Unset XMOSAIC_OFFLINE"))


def label(given: Store) -> str:
    """Name of a store for messages, without secrets."""
    if hasattr(given, "writable_session"):
        return "(an icechunk repository)"
    return re.sub(r"(?<=//)[^/@]*@|\?.*$", "", str(given))


def _folder(given: Store) -> Path | None:
    from zarr.storage import LocalStore

    if type(given) is LocalStore and not given.read_only:
        return Path(given.root)
    if not isinstance(given, str | os.PathLike):
        return None
    path = os.fspath(given)
    if path.startswith("file://"):
        return Path(path.removeprefix("file://"))
    return None if "://" in path else Path(path).expanduser()


class Piecewise:
    """An array of a store, for dask to read chunk by chunk; what goes wrong is said with the store's and its name.

    Parameters
    ----------
    array : zarr.Array
    place : str
        The store, for messages.
    """

    def __init__(self, array: Any, place: str) -> None:
        self._array, self._place = array, place
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, array.dtype

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._array[key]
        except MemoryError:
            raise
        except Exception as error:  # every kind of store and of damage has its own
            reason = (str(error).splitlines() or [""])[0]
            raise StoreError(
                explain(
                    f"A piece of {self._array.basename} in the store {self._place} can't be read",
                    got=f"{type(error).__name__}: {reason}" + (f" (at {_places(key)})" if _places(key) else ""),
                    expected="what was written there",
                    do="Bring the file back from a copy, or delete the store and make the forecast again",
                )
            ) from error


def _places(key: Any) -> str:
    """The first index along each dimension of what was asked for."""
    return ", ".join(str(k.start or 0) if isinstance(k, slice) else str(k) for k in key) if type(key) is tuple else ""


def unwritable(place: str, error: BaseException, kept: str = "") -> StoreError:
    """The error for what went wrong while writing."""
    reason = (str(error).splitlines() or [""])[0]
    return StoreError(
        explain(
            f"The store {place} can't be written",
            got=reason or type(error).__name__,
            expected="a place that is writable and has room",
            do=f"{kept}; make room or connect again, and repeat the call" if kept else "Choose another path",
        )
    )
