"""A thread that writes while the caller goes on, never more than one piece behind, and threads that pack for it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def pool() -> ThreadPoolExecutor:
    """Threads that pack, each on one core; those wait first that came first."""
    return ThreadPoolExecutor(packers(), "xmosaic packer")
