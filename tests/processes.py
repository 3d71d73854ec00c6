"""Processes of a test's own: forks of a server that has imported everything once, before any thread is there."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

_HERE = str(Path(__file__).parent)
# What is imported late, where it is needed, would take each process seconds.
_LATE = ("healpy", "matplotlib.pyplot", "sklearn.neighbors", "torch._dynamo", "torch.distributed.checkpoint")


def said_by_triton(script: str, cache: Path) -> str:
    """What a script prints that compiles kernels for a GPU: where they are interpreted, nothing can be compiled."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def process_of(work: Any, *arguments: Any, **named: Any) -> Any:
    """A process that calls a function of a test's module; not started yet. The server starts with the first."""
    context = multiprocessing.get_context("forkserver")
    os.environ["OMP_NUM_THREADS"] = "1"
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if _HERE not in before:  # the server looks for tests too
        os.environ["PYTHONPATH"] = os.pathsep.join([_HERE, *filter(None, before)])
    context.set_forkserver_preload(["models", "xmosaic.training.loop", "processes", *_LATE])
    serve_without_gpus()
    return context.Process(target=_call, args=(work.__module__, work.__name__, arguments, named))


def serve_without_gpus() -> None:
    """Start the server of forks, if there is none yet, without GPUs: a driver that was started can't be forked."""
    with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""}):
        forkserver.ensure_running()


def _call(module: str, name: str, arguments: tuple, named: dict) -> Any:
    torch.set_num_threads(1)
    return getattr(importlib.import_module(module), name)(*arguments, **named)


def _rank(module: str, name: str, rank: int, world: int, path: str, port: int | None, arguments: tuple) -> None:
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if port is None:
        dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=world)
    try:
        result = _call(module, name, arguments, {})
    except Exception as error:
        result = error
        traceback.print_exc()
    Path(path, f"result-{rank}").write_bytes(pickle.dumps(result))


def launch(path: Path, world: int, work: Any, *arguments: Any, port: int | None = None, limit: float = 90) -> list[Any]:
    """Work on several ranks: what each returns, or the exception it ends with; None for one that is killed.

    With a port the work itself begins the process group there.
    """
    path.mkdir(parents=True)
    where = work.__module__, work.__name__
    processes = [process_of(_rank, *where, rank, world, str(path), port, arguments) for rank in range(world)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + limit
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    still = [process.is_alive() for process in processes]
    for process in processes:
        process.kill()
    assert not any(still), f"ranks that hang: {still}"
    files = [path / f"result-{r}" for r in range(world)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
