"""Fields as few bytes: counted in steps that no colour shows, each predicted from its neighbours, deflated.

Of every lead the ensemble mean is kept, the truth, and each member's deviation from the mean as kept. Members are
counted in steps of one byte; mean and truth in steps four times as fine, of two bytes.
"""

from __future__ import annotations

import base64
import zlib
from typing import NamedTuple

import numpy as np

# Missing values, of one byte and of two.
MISSING, MISSING_FINE = -128, -32768
_FINER = 4
# A step is a hundredth of the range that is coloured, or a sixth of the members' deviation where that is less.
_COLOURS, _DEVIATIONS = 100, 6
# b85encode's alphabet less what HTML gives a meaning, quotes included.
_PLAIN = bytes.maketrans(b"&<>`", b",./:")
_UNPLAIN = bytes.maketrans(b",./:", b"&<>`")


class Counted(NamedTuple):
    """Fields of one lead in steps.

    Parameters
    ----------
    members : ndarray of int8, dims (number, row, column)
        Deviations from the mean as kept; −128 where there is no value.
    mean, truth : ndarray of int16, dims (row, column)
        In fine steps from the offset; −32768 where there is no value. The truth may be None.
    step, fine, offset : float
        In the field's units.
    """

    members: np.ndarray
    mean: np.ndarray
    truth: np.ndarray | None
    step: float
    fine: float
    offset: float


def count(members: np.ndarray, truth: np.ndarray | None = None) -> Counted:
    """Count the fields of one lead in steps.

    Parameters
    ----------
    members : ndarray, dims (number, row, column)
    truth : ndarray, dims (row, column), optional

    Returns
    -------
    Counted
        A member is off by half a step at most, mean and truth by half a fine step.

    Notes
    -----
    The step is σ/6 or a hundredth of the range from the 0.5th to the 99.5th percentile, whichever is less, σ the root
    mean square deviation from the mean; but never so small that the largest deviation wouldn't fit into one byte.

    Examples
    --------
    >>> fields = count(np.array([[[280.0, 281.0]], [[282.0, np.nan]]]))
    >>> back = values(fields)
    >>> bool(np.nanmax(abs(back - [[[280.0, 281.0]], [[282.0, np.nan]]])) <= fields.step / 2)
    True
    """
    members = np.where(np.isfinite(members), members, np.nan).astype(np.float64)
    there = np.isfinite(members)
    number = there.sum(0)
    mean = np.where(number > 0, np.where(there, members, 0.0).sum(0) / np.maximum(number, 1), np.nan)
    truth = None if truth is None else np.where(np.isfinite(truth), truth, np.nan).astype(np.float64)
    deviation = (members - mean)[there]
    step = _step(members[there], deviation)
    fields = mean if truth is None else np.stack([mean, truth])
    finite = fields[np.isfinite(fields)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    fine, offset = max(step / _FINER, (high - low) / 65500), (low + high) / 2
    counted = _counted((mean - offset) / fine, MISSING_FINE, np.int16)
    kept = np.where(counted == MISSING_FINE, np.nan, counted * fine + offset)
    # the mean as kept may be half a fine step nearer or further
    step = max(step, _largest(members - kept) / 127)
    return Counted(
        _counted((members - kept) / step, MISSING, np.int8),
        counted,
        None if truth is None else _counted((truth - offset) / fine, MISSING_FINE, np.int16),
        float(step),
        float(fine),
        float(offset),
    )


def _step(members: np.ndarray, deviation: np.ndarray) -> float:
    low, high = np.quantile(members, [0.005, 0.995]) if members.size else (0.0, 0.0)
    coloured = (high - low) / _COLOURS
    sigma = float(np.sqrt(np.mean(deviation**2))) if deviation.size else 0.0
    wanted = min(coloured, sigma / _DEVIATIONS) if coloured > 0 and sigma > 0 else max(coloured, sigma / _DEVIATIONS)
    scale = float(np.abs(members).max()) if members.size else 0.0
    # a constant field needs some step; none may be finer than float64 can tell apart
    return float(max(wanted, _largest(deviation) / 127, scale * 1e-12)) or 1.0


def _largest(values: np.ndarray) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0


def _counted(steps: np.ndarray, missing: int, dtype: type) -> np.ndarray:
    info = np.iinfo(dtype)
    whole = np.clip(np.rint(np.nan_to_num(steps)), info.min + 1, info.max)
    return np.where(np.isnan(steps), missing, whole).astype(dtype)


def values(fields: Counted) -> np.ndarray:
    """The members again, in the field's units; what `count` counted, to half a step.

    Parameters
    ----------
    fields : Counted

    Returns
    -------
    ndarray, dims (number, row, column)
    """
    mean = uncounted(fields.mean, fields.fine, fields.offset, MISSING_FINE)
    return mean + uncounted(fields.members, fields.step, 0.0, MISSING)


def uncounted(counted: np.ndarray, step: float, offset: float, missing: int) -> np.ndarray:
    """Counted steps in the field's units, NaN where there is no value."""
    return np.where(counted == missing, np.nan, counted * step + offset)


# ----------------------------------------------------------------------------------------------------- to bytes


def _guess(counted: np.ndarray) -> np.ndarray:
    """What west, north and north-west say: the median of west, north, and west + north − north-west.

    That is LOCO-I's (Weinberger, Seroussi and Sapiro 2000, doi:10.1109/83.855427): it follows slopes and edges.
    """
    west, north, corner = (np.zeros(counted.shape, np.int32) for _ in range(3))
    west[..., 1:], north[..., 1:, :] = counted[..., :-1], counted[..., :-1, :]
    corner[..., 1:, 1:] = counted[..., :-1, :-1]
    return np.clip(west + north - corner, np.minimum(west, north), np.maximum(west, north))


def plane_bytes(counted: np.ndarray) -> bytes:
    """Planes, dims (…, row, column), as differences from the guess; of two bytes first all high ones, then all low."""
    off = (counted.astype(np.int32) - _guess(counted)).astype(counted.dtype)  # whole turns don't matter
    if counted.dtype.itemsize == 1:
        return off.tobytes()
    pairs = off.astype(">i2").view(np.uint8).reshape(-1, 2)
    return bytes(pairs[:, 0].tobytes() + pairs[:, 1].tobytes())


def planes_of(data: bytes, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """The inverse of `plane_bytes`."""
    raw = np.frombuffer(data, np.uint8)
    if np.dtype(dtype).itemsize == 2:
        raw = np.stack(np.split(raw, 2), -1).reshape(-1).view(">i2")
    off = raw.astype(dtype).reshape(-1, *shape[-2:]).astype(np.int32)
    out = np.zeros((len(off), shape[-2] + 1, shape[-1] + 1), np.int32)  # a row and a column of zeros before the first
    for i in range(1, shape[-2] + 1):
        for j in range(1, shape[-1] + 1):
            west, north, corner = out[:, i, j - 1], out[:, i - 1, j], out[:, i - 1, j - 1]
            guess = np.clip(west + north - corner, np.minimum(west, north), np.maximum(west, north))
            out[:, i, j] = (guess + off[:, i - 1, j - 1]).astype(dtype)
    return out[:, 1:, 1:].reshape(shape).astype(dtype)


def to_text(data: bytes) -> str:
    """Deflated, in letters that stand in HTML as they are: five for four bytes, where base64 takes five and a third."""
    return base64.b85encode(zlib.compress(data, 9)).translate(_PLAIN).decode("ascii")


def from_text(text: str) -> bytes:
    """The inverse of `to_text`."""
    return zlib.decompress(base64.b85decode(text.encode("ascii").translate(_UNPLAIN)))
