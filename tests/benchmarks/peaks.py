"""How often attention begins anew because weights passed what their type holds: ``python tests/benchmarks/peaks.py``.

The kernel makes weights relative to each row's greatest logit among a few keys. Random weights hardly tell how far the
others pass it, so the bundled model's own queries and keys are taken, every layer of a forecast of a day: what share of
programs has a row that passes, by keys from the beginning of the list and by as many from all over it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch

import xmosaic
from xmosaic import model as network

ROWS = 32  # of a program
# by how much, in powers of two: the kernel allows sums of 1e30, and in float16 of 6e4, where it begins 6 lower
ROOM = {"bfloat16": math.log2(1e30), "float16": math.log2(6e4) + 6}
COUNTS = (16, 32, 64, 128)


def passed(logits: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Share of programs with a row whose sum of weights has no room, for each type; logits (block, row, key)."""
    sums = torch.logsumexp(logits * math.log(2), -1) / math.log(2)
    over = (sums - logits[..., at].amax(-1)).flatten().unflatten(0, (-1, ROWS)).amax(-1)
    return torch.stack([(over > room).double().mean() for room in ROOM.values()])


def main() -> None:
    shares: dict[tuple[str, int, str], list[torch.Tensor]] = defaultdict(list)
    combined = network.combine_selected

    def watched(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, picked: torch.Tensor, size: int, *rest: Any, **o: Any
    ):
        near, group = rest[1], q.shape[1] // k.shape[1]
        unit = q.shape[-1] ** -0.5 / math.log(2)
        for sample in range(len(q)):
            for head in range(q.shape[1]):
                keys, ours = k[sample, head // group], q[sample, head]
                chosen = keys.unflatten(0, (-1, size))[picked[sample, head // group]].flatten(1, 2)
                lists = {"picked": (ours.unflatten(0, (-1, size)), chosen)}
                lists["local"] = ours.unflatten(0, (-1, near)), keys.unflatten(0, (-1, near))
                for name, (queries, among) in lists.items():
                    logits, total = queries @ among.transpose(1, 2) * unit, among.shape[1]
                    for count in (n for n in COUNTS if n <= total):
                        spread = torch.arange(count) * total // count + total // count // 2
                        shares[name, count, "first"].append(passed(logits, torch.arange(count)))
                        shares[name, count, "spread"].append(passed(logits, spread))
        return combined(q, k, v, picked, size, *rest, **o)

    network.combine_selected = watched
    try:
        xmosaic.forecast(xmosaic.open_sample().isel(time=slice(0, 2)), "1D", 2, progress=False)
    finally:
        network.combine_selected = combined
    print(f"branch, keys: share of programs that begin anew, {' and '.join(ROOM)}")
    for (name, count, way), found in sorted(shares.items()):
        print(f"{name}, {way} {count}: {', '.join(f'{x:.2%}' for x in torch.stack(found).mean(0).tolist())}")


if __name__ == "__main__":
    main()
