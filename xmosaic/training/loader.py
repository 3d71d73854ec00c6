"""Batches in an order that depends on the seed alone, read ahead of the consumer by threads."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..errors import ArgumentError, explain
from ..forecast import clock_fractions
from .reading import Piece, Places, compact
from .samples import TrainingData, Windows

_LONGEST_GOODBYE = 30.0


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one update, normalised.

    Attributes
    ----------
    history : float32 Tensor, (sample, history, longitude, latitude, channel)
        State and forcing channels, oldest first.
    targets : float32 Tensor, (sample, rollout, longitude, latitude, state)
    forcing : float32 Tensor, (sample, rollout, longitude, latitude, forcing), or None
        At the times of the targets.
    clock : float32 Tensor, (rollout, sample, 2)
        Fractions of day and year of the newest time before each step.
    starts : DatetimeIndex
        Newest time of each history.
    positions : int64 array, (sample,)
        Place of each sample in the endless order: a number that no other sample of the stage has.

    Notes
    -----
    In memory the channels come before latitude and longitude, as in the store: the axes are only named in another
    order. A copy to a GPU keeps that, and turning the axes is quicker there.
    """

    history: torch.Tensor
    targets: torch.Tensor
    forcing: torch.Tensor | None
    clock: torch.Tensor
    starts: pd.DatetimeIndex
    positions: np.ndarray


class _Order:
    """The endless order of samples: one permutation per epoch, each from the seed and the epoch alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._kept: dict[int, np.ndarray] = {}

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of the samples at places in the order."""
        epochs = np.unique(positions // self.count).tolist()
        self._kept = {e: self._kept[e] if e in self._kept else self.permutation(e) for e in epochs}
        return np.array([self._kept[p // self.count][p % self.count] for p in positions.tolist()])

    def permutation(self, epoch: int) -> np.ndarray:
        # sorted raw output, which is the same in every version of NumPy; `Generator.permutation` may change
        return np.argsort(np.random.Philox(np.random.SeedSequence([self.seed, epoch])).random_raw(self.count))


class _Filling:
    """A batch whose memory the workers fill, piece by piece."""

    def __init__(self, loader: Loader, starts: pd.DatetimeIndex, positions: np.ndarray) -> None:
        data, rollout = loader.data, loader.rollout
        self.steps, self.scaling = data.history, loader.scaling
        self.starts, self.positions, self.clock = starts, positions, _clock(starts, data.step, rollout)
        states, forcings = len(data.schema.state), len(data.schema.forcing)
        memory = [(data.history, states + forcings), (rollout, states), (rollout, forcings)]
        self.tensors = [
            torch.empty(len(starts), n, c, *data.grid.shape, pin_memory=loader.pin and n * c > 0) for n, c in memory
        ]
        self.arrays = [t.numpy() for t in self.tensors]
        self.pieces = [(i, p) for i, t in enumerate(starts) for p in data.pieces(data.window(t, rollout))]
        self._left, self._lock = len(self.pieces), threading.Lock()
        self.done = threading.Event()
        self.error: BaseException | None = None

    def fill(self, row: int, piece: Piece) -> None:
        """Read one piece into its place; an error is kept for the consumer, and ends the work on this batch."""
        if self.error is not None:
            return
        try:
            places, forced = piece.field.places, piece.field.channels[0].role == "forcing"
            scaling = [v[places, None, None] for v in self.scaling]
            for slot, values in zip(piece.slots.tolist(), piece.read(), strict=True):
                _normalise(values, scaling, *self._target(row, slot, places, forced))
        except BaseException as error:  # a thread must not die with it: the consumer waits
            self.fail(error)
        with self._lock:
            self._left -= 1
            if not self._left:
                self.done.set()

    def fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.done.set()

    def _target(self, row: int, slot: int, places: Places, forced: bool) -> tuple[np.ndarray, Places]:
        """Array and places in it for one time of a window."""
        history, targets, forcing = self.arrays
        if slot < self.steps:
            return history[row, slot], places
        if not forced:
            return targets[row, slot - self.steps], places
        return forcing[row, slot - self.steps], compact(np.arange(history.shape[2])[places] - targets.shape[2])

    def batch(self) -> Batch:
        history, targets, forcing = (t.permute(0, 1, 4, 3, 2) for t in self.tensors)
        given = forcing if forcing.shape[-1] else None
        return Batch(history, targets, given, self.clock, self.starts, self.positions)


def _normalise(values: np.ndarray, scaling: list[np.ndarray], into: np.ndarray, places: Places) -> None:
    """(values − mean) / std in float32, to its last digits."""
    mean, factor, rest = scaling
    out = np.subtract(values, mean, out=into[places] if isinstance(places, slice) else None)
    out *= factor
    out += rest
    if not isinstance(places, slice):
        into[places] = out


def _scaling(mean: Any, std: Any, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, 1 / std, and what rounding the mean to float32 has left out; all float32 (channel,)."""
    mean, std = (np.asarray(v, np.float64) for v in (mean, std))
    good = mean.shape == std.shape == (channels,) and np.isfinite(mean).all() and np.isfinite(std).all()
    if not (good and (std > 0).all()):
        got = f"mean {mean.shape}, std {std.shape}" + (", with values that can't be" if mean.shape == std.shape else "")
        expected = f"a finite mean and a std above 0 for each of {channels} state and forcing channels"
        do = "Compute them: mean, std = statistics(data, period)"
        raise ArgumentError(explain("The statistics can't be used", got=got, expected=expected, do=do))
    near = mean.astype(np.float32)
    return near, (1 / std).astype(np.float32), ((near - mean) / std).astype(np.float32)


def _clock(starts: pd.DatetimeIndex, step: pd.Timedelta, rollout: int) -> torch.Tensor:
    fractions = [[clock_fractions(start + k * step) for start in starts] for k in range(rollout)]
    return torch.tensor(fractions, dtype=torch.float32)


def _work(tasks: SimpleQueue[Any]) -> None:
    """What a thread does until it is told to stop; it knows the queue alone, so a forgotten loader can go."""
    while (task := tasks.get()) is not None:
        filling, row, piece = task
        filling.fill(row, piece)
        del filling, piece, task


def _dismiss(tasks: SimpleQueue[Any], threads: list[threading.Thread]) -> None:
    for _ in threads:
        tasks.put(None)


class Loader:
    """Batches of a stage, in the same order whatever the number of workers and wherever it is resumed.

    The samples stand in an endless order, a permutation per epoch; update u takes those from u · `batch_size` on, and
    rank r its share of them. Threads read and normalise ahead: at most `ahead` batches wait, besides the one that the
    consumer has. Threads and not processes, since a fork breaks Zarr's event loop and decoding releases the
    interpreter's lock.

    Parameters
    ----------
    data : TrainingData
    windows : Windows
        Of this data, with `rollout` targets or more.
    rollout : int
        Targets per sample.
    batch_size : int
        Samples per update of all ranks together; must divide by `world`.
    seed : int
        Of the order, from 0.
    mean, std : float64 array, (channel,)
        Of state and forcing channels.
    rank, world : int
        Which of how many processes this is.
    workers : int
        Threads.
    ahead : int
        Batches that are read ahead.
    pin : bool
        Page-locked memory, from which copies to a GPU run beside its work.

    Attributes
    ----------
    waited : float
        Seconds that the consumer has waited for data since `reset_clock`.

    Raises
    ------
    ArgumentError
        For a batch size that doesn't divide, or statistics that don't fit.

    Examples
    --------
    ::

        with Loader(data, windows, rollout=1, batch_size=16, seed=0, mean=mean, std=std) as loader:
            for batch in loader.batches(first_update):
                ...
    """

    def __init__(
        self,
        data: TrainingData,
        windows: Windows,
        rollout: int,
        batch_size: int,
        seed: int,
        mean: np.ndarray,
        std: np.ndarray,
        rank: int = 0,
        world: int = 1,
        workers: int = 4,
        ahead: int = 2,
        pin: bool = False,
    ) -> None:
        numbers = {"batch_size": batch_size, "world": world, "workers": workers, "ahead": ahead}
        for name, value in numbers.items():
            _check(name, value, 1)
        _check("rollout", rollout, 1, windows.rollout)
        _check("rank", rank, 0, world - 1)
        _check("seed", seed, 0)
        if batch_size % world:
            do = f"Take {batch_size // world * world or world} or {(batch_size // world + 1) * world}"
            expected = f"a multiple of world = {world}, so that all ranks have the same share"
            raise ArgumentError(explain("batch_size can't be shared", got=str(batch_size), expected=expected, do=do))
        self.data, self.windows, self.rollout, self.pin = data, windows, rollout, pin
        self.batch_size, self.rank, self.world, self.ahead = batch_size, rank, world, ahead
        self.scaling = _scaling(mean, std, len(data.channels))
        self.waited = 0.0
        self._order = _Order(len(windows), seed)
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(self._tasks,), name=f"xmosaic-loader-{i}", daemon=True)
            for i in range(workers)
        ]
        self._dismiss = weakref.finalize(self, _dismiss, self._tasks, self._threads)
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------------------------------------------------ order

    def places(self, update: int) -> np.ndarray:
        """Places in the endless order of this rank's samples of an update, int64 (sample,)."""
        share = self.batch_size // self.world
        first = update * self.batch_size + self.rank * share
        return np.arange(first, first + share, dtype=np.int64)

    def starts(self, update: int) -> pd.DatetimeIndex:
        """Starts of this rank's samples of an update."""
        return self.windows.starts[self._order(self.places(update))]

    @property
    def updates_per_epoch(self) -> float:
        """Updates in which every sample is seen once."""
        return len(self.windows) / self.batch_size

    # ------------------------------------------------------------------------------------------------------ batches

    def batches(self, first_update: int = 0) -> Iterator[Batch]:
        """Batches without end, from an update on.

        Parameters
        ----------
        first_update : int
            Of the stage, from 0.

        Yields
        ------
        Batch
            This rank's share.

        Raises
        ------
        DatasetError
            At the batch whose data can't be read or hold NaN; variable and time are named.
        """
        _check("first_update", first_update, 0)
        waiting: deque[_Filling] = deque()
        updates = itertools.count(first_update)

        def refill(count: int) -> None:
            for update in itertools.islice(updates, count - len(waiting)):
                waiting.append(self._begin(self.starts(update), self.places(update)))

        try:
            while True:
                refill(self.ahead)
                self._wait(waiting[0])
                refill(self.ahead + 1)  # read while the consumer works on the first
                yield waiting.popleft().batch()
        finally:
            for filling in waiting:
                filling.fail(_closed())

    def load(self, starts: pd.DatetimeIndex) -> Batch:
        """One batch of given samples, in their order; positions count from 0.

        Parameters
        ----------
        starts : DatetimeIndex
            Among those of the windows, as for a validation.

        Returns
        -------
        Batch
        """
        filling = self._begin(pd.DatetimeIndex(starts), np.arange(len(starts), dtype=np.int64))
        self._wait(filling)
        return filling.batch()

    def _begin(self, starts: pd.DatetimeIndex, positions: np.ndarray) -> _Filling:
        if not self._dismiss.alive:
            raise _closed()
        filling = _Filling(self, starts, positions)
        for row, piece in filling.pieces:
            self._tasks.put((filling, row, piece))
        return filling

    def _wait(self, filling: _Filling) -> None:
        began = time.perf_counter()
        filling.done.wait()
        self.waited += time.perf_counter() - began
        if filling.error is not None:
            raise filling.error

    def reset_clock(self) -> None:
        """Count `waited` from 0 again."""
        self.waited = 0.0

    # -------------------------------------------------------------------------------------------------------- end

    def close(self) -> None:
        """End the threads; what they are reading is finished first."""
        try:
            while True:
                if (task := self._tasks.get_nowait()) is not None:
                    task[0].fail(_closed())
        except Empty:
            pass
        self._dismiss()
        limit = time.monotonic() + _LONGEST_GOODBYE  # a store that hangs must not hold the program; they are daemons
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _closed() -> ArgumentError:
    return ArgumentError(explain("The loader is closed", do="Make a new one"))


def _check(name: str, value: Any, least: int, most: int | None = None) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        expected = f"a whole number from {least} up" if most is None else f"a whole number, {least} to {most}"
        raise ArgumentError(explain(f"{name} can't be used for a loader", got=repr(value), expected=expected))
