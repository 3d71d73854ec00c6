"""From centres at single times to tracks of one member, and from tracks of members to storms of the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .detect import Centres
from .sphere import EARTH_RADIUS, angle, between, exp_map, log_map

Find = Callable[[np.ndarray | None, float], Centres]
FOUND, GAP, MISSING = 1, 2, 3


def seconds(start: np.datetime64, end: np.datetime64) -> float:
    """Time between two times [s]."""
    return float((end - start) / np.timedelta64(1, "s"))


@dataclass(frozen=True)
class Motion:
    """How far a centre can get; speeds in m s-1, angles in radian."""

    max_speed: float
    slack: float
    near_radius: float
    max_gap: int

    def reach(self, elapsed: float) -> float:
        """Angle from the last position that can't be exceeded."""
        return min(self.max_speed * elapsed / EARTH_RADIUS + self.slack, np.pi)

    def search(self, elapsed: float, guided: bool) -> float:
        """Angle around the predicted position to search; half the reach where a motion is known."""
        return self.reach(elapsed / 2 if guided else elapsed)


@dataclass
class Track:
    """Centres of one storm in one member: index of the time → (unit vector, values)."""

    points: dict[int, np.ndarray] = field(default_factory=dict)
    values: dict[int, dict[str, float]] = field(default_factory=dict)
    gaps: dict[int, int] = field(default_factory=dict)
    last: np.datetime64 | None = None
    velocity: np.ndarray | None = None  # tangent at the last point [m s-1]
    steering: np.ndarray | None = None
    missed: int = 0

    @property
    def point(self) -> np.ndarray:
        """The last position."""
        return next(reversed(self.points.values()))

    def add(self, index: int, time: np.datetime64, centres: Centres, which: int) -> None:
        """Continue with one of the centres."""
        point = centres.points[which]
        if self.last is not None:
            # the great circle arrives from behind: away from where it came
            self.velocity = -log_map(point, self.point) * EARTH_RADIUS / seconds(self.last, time)
        steering = None if centres.steering is None else centres.steering[which]
        self.steering = steering if steering is not None and np.isfinite(steering).all() else None
        self.points[index], self.last, self.missed = point, time, 0
        self.values[index] = {name: float(v[which]) for name, v in centres.values.items()}

    def miss(self, index: int, flag: int) -> None:
        """Note a time without a centre."""
        self.missed += 1
        self.gaps[index] = flag

    def expected(self, time: np.datetime64, motion: Motion) -> tuple[np.ndarray, float]:
        """Predicted position, and the angle around it to search."""
        assert self.last is not None
        elapsed = seconds(self.last, time)
        known = [v for v in (self.velocity, self.steering) if v is not None]
        ahead = sum(known, start=np.zeros(3)) * (elapsed / EARTH_RADIUS / max(len(known), 1))
        length = float(np.linalg.norm(ahead))
        ahead = ahead * min(1.0, motion.reach(elapsed) / max(length, 1e-300))
        return exp_map(self.point, ahead), motion.search(elapsed, bool(known))

    def closed(self) -> Track:
        """Without the gaps behind the last centre."""
        end = max(self.points, default=-1)
        self.gaps = {index: flag for index, flag in self.gaps.items() if index < end}
        return self


@dataclass(frozen=True)
class Place:
    """Where the storm to follow is: a point, or a track in time.

    Parameters
    ----------
    points : ndarray, dims (time, 3)
    times : ndarray of datetime64[ns], dims (time), or None
        None: one point, at no particular time.
    """

    points: np.ndarray
    times: np.ndarray | None

    def at(self, time: np.datetime64) -> np.ndarray | None:
        """Position by great circles between the times; None outside their span."""
        if self.times is None or not self.times[0] <= time <= self.times[-1]:
            return self.points[0] if self.times is None else None
        k = int(np.clip(np.searchsorted(self.times, time), 1, max(len(self.times) - 1, 1)))
        if len(self.times) == 1:
            return self.points[0]
        part = seconds(self.times[k - 1], time) / seconds(self.times[k - 1], self.times[k])
        return between(self.points[k - 1], self.points[k], part)

    def velocity(self, time: np.datetime64) -> np.ndarray | None:
        """Motion [m s-1] at a time, of the last two positions after the end."""
        if self.times is None or len(self.times) < 2:
            return None
        k = int(np.clip(np.searchsorted(self.times, time), 1, len(self.times) - 1))
        here, start, end = self.at(time), self.points[k - 1], self.points[k]
        here = end if here is None else here
        # what lies behind and what lies ahead on the great circle add up to all of it
        return (log_map(here, end) - log_map(here, start)) * EARTH_RADIUS / seconds(self.times[k - 1], self.times[k])

    def expected(self, time: np.datetime64, first: np.datetime64, motion: Motion) -> tuple[np.ndarray, float, bool]:
        """Where to look at a time, how far around, and whether the place itself covers that time."""
        here = self.at(time)
        if here is not None and self.times is not None:
            return here, motion.near_radius, True
        if here is not None:
            return here, motion.near_radius + motion.search(seconds(first, time), False) - motion.slack, False
        assert self.times is not None
        elapsed, velocity = seconds(self.times[-1], time), self.velocity(self.times[-1])
        ahead = np.zeros(3) if velocity is None else velocity * (elapsed / EARTH_RADIUS)
        radius = motion.near_radius + motion.search(elapsed, velocity is not None) - motion.slack
        return exp_map(self.points[-1], ahead), radius, False


class Follower:
    """Follows one storm through one member."""

    def __init__(self, place: Place, motion: Motion, first: np.datetime64) -> None:
        self.place, self.motion, self.first = place, motion, first
        self.track, self.waited, self.done = Track(), 0, False

    def step(self, index: int, time: np.datetime64, find: Find | None) -> None:
        """Look for the storm at the next time; `find` is None where the forecast has no field."""
        if self.done or time < self.first:
            return
        if not self.track.points:
            self._begin(index, time, find)
            return
        guess, radius = self.track.expected(time, self.motion)
        centres = find(guess, radius) if find else Centres(np.empty((0, 3)))
        elapsed = seconds(self.track.last, time)  # type: ignore[arg-type]
        centres = centres.take(angle(centres.points, self.track.point) <= self.motion.reach(elapsed))
        if len(centres):
            self.track.add(index, time, centres, int(np.argmin(angle(centres.points, guess))))
        else:
            self.track.miss(index, GAP if find else MISSING)
            self.done = self.track.missed > self.motion.max_gap

    def _begin(self, index: int, time: np.datetime64, find: Find | None) -> None:
        guess, radius, covered = self.place.expected(time, self.first, self.motion)
        centres = find(guess, radius) if find else Centres(np.empty((0, 3)))
        if len(centres):
            self.track.add(index, time, centres, int(np.argmin(angle(centres.points, guess))))
            self.track.velocity = self.place.velocity(time)
        else:
            self.waited += 1
            self.done = not covered and self.waited > self.motion.max_gap

    def tracks(self) -> list[Track]:
        """The one track, or none."""
        return [self.track.closed()] if self.track.points else []


class Linker:
    """Links all centres of one member, those of neighbouring times with the least total distance."""

    def __init__(self, motion: Motion, first: np.datetime64, min_points: int) -> None:
        self.motion, self.first, self.min_points = motion, first, min_points
        self.active: list[Track] = []
        self.ended: list[Track] = []

    def step(self, index: int, time: np.datetime64, find: Find | None) -> None:
        """Continue the tracks with the centres of the next time, and begin new ones."""
        if time < self.first:
            return
        centres = find(None, 0.0) if find else Centres(np.empty((0, 3)))
        pairs = self._assign(time, centres)
        for row, track in enumerate(self.active):
            if row in pairs:
                track.add(index, time, centres, pairs[row])
            else:
                track.miss(index, GAP if find else MISSING)
        self.ended += [t for t in self.active if t.missed > self.motion.max_gap]
        self.active = [t for t in self.active if t.missed <= self.motion.max_gap]
        for which in sorted(set(range(len(centres))) - set(pairs.values())):
            self.active.append(Track())
            self.active[-1].add(index, time, centres, which)

    def _assign(self, time: np.datetime64, centres: Centres) -> dict[int, int]:
        from scipy.optimize import linear_sum_assignment

        if not self.active or not len(centres):
            return {}
        expected = [track.expected(time, self.motion) for track in self.active]
        cost = angle(np.array([point for point, _ in expected])[:, None], centres.points[None])
        last = np.array([track.point for track in self.active])
        reach = np.array([self.motion.reach(seconds(t.last, time)) for t in self.active])  # type: ignore[arg-type]
        allowed = cost <= np.array([radius for _, radius in expected])[:, None]
        allowed &= angle(last[:, None], centres.points[None]) <= reach[:, None]
        # one forbidden pair costs more than all allowed ones together: as many as can be are linked
        rows, columns = linear_sum_assignment(np.where(allowed, cost, np.pi * (1 + min(cost.shape))))
        return {int(r): int(c) for r, c in zip(rows, columns, strict=True) if allowed[r, c]}

    def tracks(self) -> list[Track]:
        """All tracks that are long enough."""
        return [t.closed() for t in self.ended + self.active if len(t.points) >= self.min_points]


def match_members(tracks: Sequence[Sequence[Track]], leads: int, radius: float) -> list[dict[int, Track]]:
    """Tracks of the members → storms of the ensemble: {member: track} of each.

    Two tracks can be one storm if they are within the radius when both first exist. Pairs are joined from
    the closest on, unless a member would be in a storm twice; the order of the members doesn't matter.

    Parameters
    ----------
    tracks : sequence over members of sequences of Track
    leads : int
        Number of times.
    radius : float [radian]

    Returns
    -------
    list of dict
        Those with the most members first, then the earliest, then the deepest.
    """
    members = [m for m, own in enumerate(tracks) for _ in own]
    flat = [track for own in tracks for track in own]
    groups = {i: [i] for i in range(len(flat))}
    home = list(range(len(flat)))
    for _, i, j in sorted(_close_pairs(flat, members, leads, radius)):
        a, b = home[i], home[j]
        if a == b or {members[k] for k in groups[a]} & {members[k] for k in groups[b]}:
            continue
        for k in groups[b]:
            home[k] = a
        groups[a] += groups.pop(b)
    storms = [{members[k]: flat[k] for k in sorted(group)} for group in groups.values()]
    return sorted(storms, key=_rank)


def _rank(storm: dict[int, Track]) -> tuple[int, int, float]:
    first = min(min(track.points) for track in storm.values())
    lowest = min(v["mean_sea_level_pressure"] for track in storm.values() for v in track.values.values())
    return -len(storm), first, lowest


def _close_pairs(flat: list[Track], members: list[int], leads: int, radius: float) -> list[tuple[float, int, int]]:
    from scipy.spatial import cKDTree

    exists = np.zeros((len(flat), leads), bool)
    for i, track in enumerate(flat):
        exists[i, list(track.points)] = True
    member, pairs = np.array(members, int), []
    for lead in range(leads):
        alive = np.flatnonzero(exists[:, lead])
        if len(alive) < 2:
            continue
        points = np.array([flat[i].points[lead] for i in alive])
        found = cKDTree(points).query_pairs(2 * np.sin(min(radius, np.pi) / 2), output_type="ndarray")
        i, j = alive[found[:, 0]], alive[found[:, 1]]
        new = (member[i] != member[j]) & ~(exists[i, :lead] & exists[j, :lead]).any(axis=1)
        apart = angle(points[found[:, 0]], points[found[:, 1]])
        pairs += [(float(d), int(a), int(b)) for d, a, b in zip(apart[new], i[new], j[new], strict=True)]
    return pairs


def flags(track: Track, leads: int) -> np.ndarray:
    """0 no track, 1 centre, 2 no centre found, 3 no field; dims (lead)."""
    out = np.zeros(leads, np.int8)
    for index, flag in track.gaps.items():
        out[index] = flag
    out[list(track.points)] = FOUND
    return out
