"""A process that makes a small forecast and is killed in the middle of it: for tests/test_resume.py and a benchmark."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from processes import serve_without_gpus

if TYPE_CHECKING:
    from xmosaic.store.synced import SyncedStore

# What is counted, and may be the last thing that a process does.
POINTS = ("step", "before a write", "half a write", "after a write", "sync")
SHARD = 2  # leads to a shard
OPTIONS = {
    "lead": "3D",
    "members": 3,
    "time": ["2020-02-28", "2020-03-01"],
    "batch_size": 2,
    "device": "cpu",
    "progress": False,
}


def start(store: Path, point: str, count: int) -> Any:
    """Begin or go on with a forecast in another process, which dies at the count-th such point."""
    process = context().Process(target=forecast_and_die, args=(str(store), point, count))
    process.start()
    return process


def context() -> Any:
    """Processes that are forked from one that has everything imported, and has made a forecast."""
    # a server of forks doesn't learn of this folder otherwise
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(["faults_warm"])
    serve_without_gpus()
    return chosen


def forecast_and_die(store: str, point: str, count: int) -> None:
    """What runs in that process."""
    import torch

    from xmosaic.store import encoding

    torch.set_num_threads(1)
    encoding.SHARD_LEADS = SHARD
    arm(point, count)
    forecast(store)


def forecast(store: Any, **options: Any) -> Any:
    """The forecast that is killed: two starts, three members in two blocks, three leads in two shards."""
    from models import make_dataset, make_model

    import xmosaic

    return xmosaic.forecast(make_dataset(), model=make_model(), store=store, **(OPTIONS | options))


def arm(point: str, count: int) -> None:
    """Let the count-th such point from now be the last."""
    import zarr.storage._local as local

    from xmosaic.model import Mosaic
    from xmosaic.store.synced import SyncedStore

    left = [count]

    def tick() -> bool:
        left[0] -= 1
        return left[0] < 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    put, fill, forward, fsync = local._put, SyncedStore.fill, Mosaic.forward, os.fsync

    def deadly_put(path: Path, value: Any, exclusive: bool = False) -> int:
        last = point.endswith("write") and tick()
        if last and point == "before a write":
            die()
        if last and point == "half a write":
            view = memoryview(value.as_buffer_like()).cast("B")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".half.partial").write_bytes(view[: len(view) // 2])
            die()
        result = put(path, value, exclusive)
        if last:
            die()
        return result

    @contextmanager
    def deadly_fill(store: SyncedStore, key: str) -> Iterator[Any]:
        """The same for the files of fields, which are written chunk by chunk."""
        last = point.endswith("write") and tick()
        if last and point == "before a write":
            die()

        def half(data: bytes) -> None:
            file.write(data[: len(data) // 2])
            file.flush()
            die()

        with fill(store, key) as file:
            yield SimpleNamespace(write=half) if last and point == "half a write" else file
        if last:
            die()

    def deadly_forward(*args: Any) -> Any:
        if point == "step" and tick():
            die()
        return forward(*args)

    def deadly_fsync(handle: int) -> None:
        if point == "sync" and tick():
            die()
        fsync(handle)

    local._put, Mosaic.forward, os.fsync = deadly_put, deadly_forward, deadly_fsync
    SyncedStore.fill = deadly_fill  # type: ignore[method-assign]
