"""A thread that writes while the caller goes on, never more than one piece behind, and threads that pack for it."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_TICK = 0.2  # seconds between two looks at whether something has gone wrong
# A packer fills a core; most cores are left to those who compute. A host of four or eight GPUs has 32 and more of them.
CORES_EACH, FEWEST, MOST = 4, 2, 16


class Writer:
    """Runs what it is given in a thread of its own, in order.

    Parameters
    ----------
    translate : callable, optional
        Makes the exception that the caller sees of the one that the thread met; by default it is that one.

    Notes
    -----
    One piece is written, one waits, and the caller fills a third: memory is three times a piece, however slow the
    store. What goes wrong in the thread is raised in the caller at its next `put`, `check` or `drain`. Several threads
    may hand things over.
    """

    def __init__(self, translate: Callable[[BaseException], BaseException] = lambda error: error) -> None:
        self._translate = translate
        self._pieces: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="xmosaic writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            if self._error is not None:
                continue  # after an error nothing more is written: what comes next could claim what isn't there
            try:
                piece()
            except BaseException as error:  # the caller is told, whatever it was
                self._error = error

    def check(self) -> None:
        """Raise what went wrong, if something has."""
        if self._error is not None:
            translated = self._translate(self._error)
            if translated is self._error:
                raise translated
            raise translated from self._error

    def put(self, piece: Callable[[], None] | None) -> None:
        """Hand over something to do; waits while one waits already."""
        while True:
            self.check()
            try:
                return self._pieces.put(piece, timeout=_TICK)
            except queue.Full:
                continue

    def drain(self) -> None:
        """Wait for everything that was handed over."""
        done = threading.Event()
        self.put(done.set)
        while not done.wait(_TICK):
            self.check()
        self.check()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, *_: Any) -> None:
        """End the thread, once what was handed over is written."""
        while self._thread.is_alive():
            try:
                self._pieces.put(None, timeout=_TICK)
                break
            except queue.Full:
                continue
        self._thread.join()


def packers() -> int:
    """How many threads pack at the same time: a quarter of the cores that this process may use, 2 to 16."""
    # not on every system
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(FEWEST, min(MOST, cores // CORES_EACH))


class Packers:
    """Threads that pack and write pieces of an array, each on one core, with an event loop of its own.

    zarr has one loop for all, in one thread: copies, checksums and the joining of chunks take one core to its limit
    there. It runs on any other as well, where the store has no connections that belong to one.

    Parameters
    ----------
    count : int, optional
        How many; by default `packers`.
    """

    def __init__(self, count: int | None = None) -> None:
        self._own, self._loops = threading.local(), list[asyncio.AbstractEventLoop]()
        self._pool = ThreadPoolExecutor(count or packers(), "xmosaic packer", self._begin)

    def _begin(self) -> None:
        loop = self._own.loop = asyncio.new_event_loop()
        loop.set_default_executor(_Here())
        self._loops.append(loop)

    def submit(self, function: Callable[..., None], *args: Any) -> Future[None]:
        """Call a function in one of the threads, those first that came first."""
        return self._pool.submit(function, *args)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the thread of the caller, who is one of ours."""
        self._own.loop.run_until_complete(work)

    def close(self) -> None:
        """Wait for what has begun, and begin nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for loop in self._loops:
            loop.close()


class _Here(ThreadPoolExecutor):
    """Calls at once, in the thread that asks: what a loop gives to threads of its own would crowd the other cores."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **options))
        except BaseException as error:  # whoever asked is told
            future.set_exception(error)
        return future
