"""What a hindcast costs: time and storage on 1, 8 and 64 GPUs, computed from measured rates, not measured.

``python tests/benchmarks/hindcast_cost.py [--starts 700] [--members 48] [--leads 40] [--ms 24.9] …``

Prints the table of docs/large.md. Rates by default: a member and step of the full network in bfloat16 on an H200
(docs/performance.md), and the size of stored fields over float32 (docs/large.md, field "GFS").
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

CHANNELS, POINTS = 82, 240 * 121
MEMBERS_AT_ONCE = 6


@dataclass(frozen=True)
class Hindcast:
    """Sizes of a hindcast.

    Attributes
    ----------
    starts, members, leads : int
    channels : int
        That are kept.
    points : int
        Of the grid.
    """

    starts: int
    members: int
    leads: int
    channels: int = CHANNELS
    points: int = POINTS

    @property
    def member_steps(self) -> int:
        """Steps of the network, each of one member."""
        return self.starts * self.members * self.leads

    @property
    def bytes(self) -> int:
        """Of the result, float32, uncompressed."""
        return 4 * self.member_steps * self.channels * self.points


def hours(hindcast: Hindcast, gpus: int, milliseconds: float, overhead: float = 0.0, at_once: int = 1) -> float:
    """Time of a hindcast.

    Parameters
    ----------
    hindcast : Hindcast
    gpus : int
        Each with the same rate.
    milliseconds : float
        Of one member and step [ms].
    overhead : float, optional
        What writing and all else adds to the network's time, as a part of it.
    at_once : int, optional
        Members that run together; a GPU makes whole blocks of them.

    Returns
    -------
    float
        [h]

    Examples
    --------
    >>> one = Hindcast(starts=10, members=8, leads=40)
    >>> round(hours(one, gpus=1, milliseconds=36.0), 3), round(hours(one, gpus=4, milliseconds=36.0, at_once=4), 3)
    (0.032, 0.008)
    """
    blocks = hindcast.starts * math.ceil(hindcast.members / at_once)
    members = hindcast.starts * hindcast.members
    # the GPU that has most to do: blocks are equal, and given to whichever is free
    most = math.ceil(blocks / gpus) / blocks * members * hindcast.leads
    return most * milliseconds * (1 + overhead) / 3.6e6


def span(value: float) -> str:
    """Hours, or minutes or days where that is shorter to say.

    Examples
    --------
    >>> span(0.5), span(1.3), span(290.0)
    ('30 min', '1.3 h', '12.1 days')
    """
    if value < 1:
        return f"{60 * value:.0f} min"
    return f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} days"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=700)
    parser.add_argument("--members", type=int, default=48)
    parser.add_argument("--leads", type=int, default=40)
    parser.add_argument("--channels", type=int, default=CHANNELS, help="that are kept")
    parser.add_argument("--ms", type=float, default=24.9, help="of one member and step [ms]")
    parser.add_argument("--overhead", type=float, default=0.1, help="of writing and all else, part of that")
    parser.add_argument("--packed", type=float, default=0.70, help="stored bytes over float32's, all bits")
    parser.add_argument("--packed-12", type=float, default=0.38, help="the same with keep_bits=12")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    o = parser.parse_args()
    hindcast = Hindcast(o.starts, o.members, o.leads, o.channels)
    print(
        f"Computed, not measured: {o.starts} starts × {o.members} members × {o.leads} leads × {o.channels} channels: "
        f"{hindcast.member_steps:,} member-steps, {hindcast.bytes / 1e12:.1f} TB as float32. "
        f"{o.ms} ms per member-step; the longer time is {o.overhead:.0%} more, allowed for writing."
    )
    print("\n| GPUs | time | GPU hours | stored, all bits | stored, 12 bits | written while it runs |")
    print("|---|---|---|---|---|---|")
    for gpus in o.gpus:
        print(row(hindcast, gpus, o))


def row(hindcast: Hindcast, gpus: int, o: argparse.Namespace) -> str:
    """A line of the table."""
    least, most = (hours(hindcast, gpus, o.ms, extra, MEMBERS_AT_ONCE) for extra in (0, o.overhead))
    stored = [hindcast.bytes * part / 1e12 for part in (o.packed, o.packed_12)]
    return (
        f"| {gpus} | {span(least)} … {span(most)} | {least * gpus:.1f} … {most * gpus:.1f} "
        f"| {stored[0]:.1f} TB | {stored[1]:.1f} TB | {1e3 * stored[0] / least / 3600:.2f} GB/s |"
    )


if __name__ == "__main__":
    main()
