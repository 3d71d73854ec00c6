"""A process that makes a small forecast and is killed in the middle of it: for tests/test_resume.py and a benchmark."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

# What is counted, and may be the last thing that a process does.
POINTS = ("step", "before a write", "half a write", "after a write", "sync")
SHARD = 2  # leads to a shard
OPTIONS = {"lead": "3D", "members": 3, "time": ["2020-02-28", "2020-03-01"], "batch_size": 2, "progress": False}


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

    left = [count]

    def tick() -> bool:
        left[0] -= 1
        return left[0] < 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    put, forward, fsync = local._put, Mosaic.forward, os.fsync

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

    def deadly_forward(*args: Any) -> Any:
        if point == "step" and tick():
            die()
        return forward(*args)

    def deadly_fsync(handle: int) -> None:
        if point == "sync" and tick():
            die()
        fsync(handle)

    local._put, Mosaic.forward, os.fsync = deadly_put, deadly_forward, deadly_fsync
