"""What the scores need of an ensemble at one point, in one pass over blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

# Points at once: members × points × 8 bytes then stay in a core's own cache up to about 100 members.
_BLOCK = 4096

STATISTICS = (
    "error",
    "squared_error",
    "absolute_error",
    "median_absolute_error",
    "variance",
    "crps_error",
    "crps_spread",
)


def statistics_of(members: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Statistics of each point.

    Parameters
    ----------
    members : ndarray, (…, member)
    truth : ndarray, (…)
    names : sequence of str
        Of `STATISTICS`: error of the mean, its square and magnitude, error of the median, unbiased variance,
        mean magnitude of the members' errors, half the mean distance of two different members.

    Returns
    -------
    ndarray of float64, (…, name)
        NaN where the truth or any member is. Of one member alone the variance is NaN and the distance 0.
    """
    out = np.empty((*truth.shape, len(names)))
    with np.errstate(invalid="ignore", over="ignore"):  # infinite input gives NaN, which tells enough
        for x, y, result in _blocks(np.moveaxis(members, -1, 0), truth, out):
            _statistics(np.subtract(x, y, dtype=np.float64), names, result)
    return out


def _statistics(errors: np.ndarray, names: Sequence[str], out: np.ndarray) -> None:
    """Of the members' errors (member, point) into `out` (point, name)."""
    members = len(errors)
    mean = errors.mean(axis=0)
    needs_order = {"crps_spread", "median_absolute_error"} & set(names)
    ordered = np.sort(np.ascontiguousarray(errors.T), axis=-1) if needs_order else np.empty(0)
    for place, name in enumerate(names):
        if name == "error":
            out[:, place] = mean
        elif name == "squared_error":
            out[:, place] = mean**2
        elif name == "absolute_error":
            out[:, place] = np.abs(mean)
        elif name == "median_absolute_error":
            middle = (ordered[:, (members - 1) // 2] + ordered[:, members // 2]) / 2
            # order puts NaN last, out of the median's sight
            out[:, place] = np.where(np.isnan(mean), np.nan, np.abs(middle))
        elif name == "variance":
            out[:, place] = ((errors - mean) ** 2).sum(axis=0) / (members - 1) if members > 1 else np.nan
        elif name == "crps_error":
            out[:, place] = np.abs(errors).mean(axis=0)
        else:
            # Σᵢ<ⱼ |xᵢ − xⱼ| = Σᵢ (2i − M − 1) x₍ᵢ₎, in order M log M instead of M²
            share = (2 * np.arange(1, members + 1) - members - 1.0) / max(members * (members - 1), 1)
            out[:, place] = ordered @ share


def ranks_of(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many members lie below the truth, and how many on it.

    Parameters
    ----------
    members : ndarray, (…, member)
    truth : ndarray, (…)

    Returns
    -------
    ndarray of int32, (…, 2)
        −1 where the truth or a member is NaN.
    """
    out = np.empty((*truth.shape, 2), dtype=np.int32)
    for x, y, result in _blocks(np.moveaxis(members, -1, 0), truth, out):
        result[:, 0] = (x < y).sum(axis=0)
        result[:, 1] = (x == y).sum(axis=0)
        result[np.isnan(y) | np.isnan(x).any(axis=0)] = -1
    return out


def share_beyond(members: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Share of the members above a threshold: (…, member), (…) → (…); NaN where a member or the threshold is."""
    out = np.empty((*threshold.shape, 1))
    for x, t, result in _blocks(np.moveaxis(members, -1, 0), threshold, out):
        result[:, 0] = np.where(np.isnan(x).any(axis=0) | np.isnan(t), np.nan, (x > t).mean(axis=0))
    return out[..., 0]


def _blocks(
    members: np.ndarray, truth: np.ndarray, out: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(member, point), (point) and (point, …) of at most `_BLOCK` points, without a copy of the whole."""
    if truth.ndim == 0:
        yield members[:, None], truth[None], out[None]
    elif truth.ndim == 1 or (truth.size <= _BLOCK and out.flags.c_contiguous):
        x, y, result = members.reshape(len(members), -1), truth.reshape(-1), out.reshape(truth.size, -1)
        for first in range(0, y.size, _BLOCK):
            part = slice(first, first + _BLOCK)
            yield x[:, part], y[part], result[part]
    elif members[0].flags.c_contiguous:
        yield from _blocks(members.reshape(len(members), -1), truth.reshape(-1), out.reshape(truth.size, -1))
    else:
        for place in range(truth.shape[0]):
            yield from _blocks(members[:, place], truth[place], out[place])
