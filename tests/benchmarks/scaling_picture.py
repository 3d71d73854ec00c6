"""Time of attention against points, drawn from what ``kernels.py scaling:scaling.csv`` wrote.

``python tests/benchmarks/scaling_picture.py scaling.csv docs/_static/scaling.png``
"""

from __future__ import annotations

import sys

import matplotlib as mpl
import pandas as pd

LABELS = {
    "ours": "picked blocks, xmosaic",
    "flex_attention": "picked blocks, flex_attention",
    "dense": "all points, PyTorch's dense attention",
}
STYLES = {"ours": ("C0", "o"), "flex_attention": ("C1", "s"), "dense": ("0.35", "^")}


def main(source: str, target: str) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, rows in pd.read_csv(source).groupby("kind", sort=False):
        color, marker = STYLES[str(kind)]
        axes.loglog(rows["points"], rows["milliseconds"], marker=marker, color=color, label=LABELS[str(kind)])
        last = rows.iloc[-1]
        note = f"{last['milliseconds']:,.0f} ms" if last["milliseconds"] >= 100 else f"{last['milliseconds']:.1f} ms"
        below = kind == "ours"
        offset = (0, -14) if below else (0, 7)
        axes.annotate(note, (last["points"], last["milliseconds"]), offset, textcoords="offset points", ha="center")
    for nside in (64, 128, 256):
        axes.axvline(12 * nside**2, color="0.85", zorder=0)
        axes.annotate(f"nside {nside}", (12 * nside**2, 1), (3, -11), xycoords=("data", "axes fraction"),
                      textcoords="offset points", color="0.45", fontsize=8)  # fmt: skip
    axes.set(xlabel="points of the mesh", ylabel="time of one forward [ms]")
    axes.margins(x=0.08, y=0.12)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title("Attention, 12 heads of 64, blocks of 128, 24 of them picked, bfloat16", fontsize=10)
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:3])
