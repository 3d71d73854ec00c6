"""Mean and standard deviation of every channel in one pass over a period, remembered on disk."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..errors import DatasetError, StoreError, explain
from ..options import get_option
from ..variables import Channel
from .config import Period
from .reading import Piece
from .samples import TrainingData

# Values of one block in float64; each thread holds about three such.
_BLOCK_BYTES = 32 * 2**20
_THREADS = 8


@dataclass(frozen=True, eq=False)
class Moments:
    """Additive statistics of some channels, which combine exactly.

    Attributes
    ----------
    weight, mean, square : float64 array, (channel,)
        Sum of the weights, mean, and sum of weight · (value − mean)².
    low, high : float64 array, (channel,)
        Extremes: equal ones tell a constant without rounding.

    References
    ----------
    Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115
    """

    weight: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray) -> Moments:
        """Moments of an array, (time, channel, latitude, longitude), with weights, (latitude, longitude)."""
        times, channels = values.shape[:2]
        low, high = (f(values, axis=(0, 2, 3)).astype(np.float64) for f in (np.min, np.max))
        deviation = np.array(values, np.float64, order="C").reshape(times, channels, -1)
        weight = times * weights.sum()
        mean = (deviation @ weights.ravel()).sum(axis=0) / weight
        deviation -= mean[:, None]
        np.square(deviation, out=deviation)
        return cls(np.full(channels, weight), mean, (deviation @ weights.ravel()).sum(axis=0), low, high)

    def part(self, i: int) -> Moments:
        """Those of one channel."""
        return Moments(*(values[i : i + 1] for values in astuple(self)))

    def __add__(self, other: Moments) -> Moments:
        weight = self.weight + other.weight
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.weight / weight)
        square = self.square + other.square + apart**2 * (self.weight * other.weight / weight)
        return Moments(weight, mean, square, np.minimum(self.low, other.low), np.maximum(self.high, other.high))


def statistics(
    data: TrainingData,
    period: Period,
    area: bool = False,
    cache: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every channel over all times of a period, in one pass.

    Each time is read once, in blocks of a few fields; memory doesn't grow with the period. The blocks are combined in
    the order of time, so the result doesn't depend on which thread was faster.

    Parameters
    ----------
    data : TrainingData
    period : (str, str)
        First and last time, both within.
    area : bool
        Weigh grid points with their exact cell areas; the published statistics are without.
    cache : path, optional
        Folder in which the result is kept. Its file's name is a digest of channels, grid, `area`, the period's times
        and the values of all channels at the first, middle and last of them: data that change between these three
        times alone are taken for the same.
    progress : bool, optional
        Show a bar; by default the option `progress`.

    Returns
    -------
    mean, std : float64 array, (channel,)
        State, then forcing channels, in their units. The standard deviation divides by the number of values.

    Raises
    ------
    DatasetError
        For a channel that is constant, NaN or infinite values, and a period without data; names channel and time.
    StoreError
        If the folder can't be made.
    """
    times = data.times_in(period)
    if not len(times):
        span = f"times from {data.times[0]} to {data.times[-1]}"
        raise DatasetError(explain("The period has no data", got=span, expected=f"some in {' … '.join(period)}"))
    path = None if cache is None else _file(Path(cache), data, times, area)
    kept = None if path is None else _read(path, len(data.channels))
    if kept is not None:
        return kept
    total = _stream(data, times, area, get_option("progress") if progress is None else progress)
    if (constant := np.flatnonzero(total.low == total.high)).size:
        names = ", ".join(data.channels[i].name for i in constant[:5]) + (" …" if constant.size > 5 else "")
        what = f"{names} has the same value everywhere and always, so it can't be normalised"
        do = "Leave it out of variables and forcing"
        raise DatasetError(explain(what, got=f"{total.low[constant[0]]:g}", expected="values that differ", do=do))
    mean, std = total.mean, np.sqrt(total.square / total.weight)
    if path is not None:
        _write(path, mean, std)
    return mean, std


def _stream(data: TrainingData, times: pd.DatetimeIndex, area: bool, show: bool) -> Moments:
    weights = data.grid.cell_area().values if area else np.ones(data.grid.shape)
    pieces = list(_blocks(data, times))
    total = sum(len(p.times) * len(p.field.channels) for p in pieces)
    sums: dict[tuple[Channel, ...], Moments] = {}
    bar = tqdm(total=total, desc="statistics", unit="field", disable=not show, delay=1.0, dynamic_ncols=True)
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="xmosaic-statistics")
    try:
        for piece, part in zip(pieces, pool.map(lambda p: Moments.of(p.read(), weights), pieces), strict=True):
            group = piece.field.channels
            sums[group] = sums[group] + part if group in sums else part
            bar.update(len(piece.times) * len(group))
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    return _in_order(sums, data.channels)


def _in_order(sums: dict[tuple[Channel, ...], Moments], channels: tuple[Channel, ...]) -> Moments:
    """Channel by channel; Datasets that hold them in different groups are added up."""
    single: dict[Channel, Moments] = {}
    for group, moments in sums.items():
        for i, channel in enumerate(group):
            one = moments.part(i)
            single[channel] = single[channel] + one if channel in single else one
    columns = zip(*(astuple(single[c]) for c in channels), strict=True)
    return Moments(*(np.concatenate(column) for column in columns))


def _blocks(data: TrainingData, times: pd.DatetimeIndex) -> Iterator[Piece]:
    """Pieces of a few times, cut where the store's chunks end, in the order of time."""
    size = data.grid.shape[0] * data.grid.shape[1] * 8
    for piece in data.pieces(times):
        chunk = piece.field.times_per_chunk
        length = chunk * max(1, _BLOCK_BYTES // (chunk * size * len(piece.field.channels)))
        # by position, which is the order in the store; ties of order with time don't matter to a sum
        order = np.argsort(piece.positions, kind="stable")
        positions = np.array(piece.positions)[order]
        for places in np.split(order, np.flatnonzero(np.diff(positions // length)) + 1):
            here = tuple(piece.positions[i] for i in places)
            yield Piece(piece.field, here, piece.slots[places], piece.times[places], piece.grid)


# ---------------------------------------------------------------------------------------------------------- cache


def _file(folder: Path, data: TrainingData, times: pd.DatetimeIndex, area: bool) -> Path:
    """Where the result is kept; the folder is made now, not after an hour of reading."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"The folder {folder} for statistics can't be made"
        raise StoreError(explain(what, got=str(error), do="Choose another cache, or None")) from error
    plain = {
        "format": 1,
        "channels": [[c.variable, c.level, c.units, c.role] for c in data.channels],
        "grid": [data.grid.latitude, data.grid.longitude],
        "area": bool(area),
    }
    digest = hashlib.sha256(json.dumps(plain).encode())
    digest.update(times.as_unit("ns").asi8.tobytes())
    for place in sorted({0, len(times) // 2, len(times) - 1}):
        digest.update(data.fields(times[place : place + 1]).tobytes())
    return folder / f"statistics-{digest.hexdigest()[:32]}.json"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and std as written; None, with a warning, for a file that isn't what was written."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if content.pop("sha256") != _digest(content):
            raise ValueError("its digest doesn't fit")
        mean, std = (np.array(content[name], np.float64) for name in ("mean", "std"))
        if mean.shape != (channels,) or std.shape != (channels,):
            raise ValueError(f"it has {mean.size} channels")
        return mean, std
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is damaged ({error}): the statistics are computed again", UserWarning, stacklevel=3)
        return None


def _write(path: Path, mean: np.ndarray, std: np.ndarray) -> None:
    content: dict[str, Any] = {"mean": mean.tolist(), "std": std.tolist()}
    scratch = path.with_suffix(f".{os.getpid()}")
    try:
        scratch.write_text(json.dumps({**content, "sha256": _digest(content)}, indent=1))
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        warnings.warn(f"The statistics couldn't be kept in {path} ({error})", UserWarning, stacklevel=3)
