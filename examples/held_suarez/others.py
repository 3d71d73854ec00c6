"""Tables and pictures of the models beside the bundled one: ablations of one budget, experiments, the larger network.

What isn't there isn't printed. Differences are counted by intervals that don't overlap, which is stricter than a test
of the difference would be: the forecasts have the same starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tables
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

FOLDERS = ("ablation", "ablation_before", "experiments", "evidence")
FILES = ("scores.nc", "spectra.nc", "long.nc")
SMALL = 0.6  # of the zonal wavenumbers, those above this share of the grid's are small scales
LEADS = (1, 5, 10)


def there(folder: Path) -> bool:
    return all((folder / name).exists() for name in FILES[:2])


def load(folder: Path, name: str) -> xr.Dataset:
    return xr.load_dataset(folder / name, decode_timedelta=True)


def keep(folder: Path, kept: Path) -> None:
    """Scores of all that there is, to the kept ones."""
    for name in FOLDERS:
        if there(folder / name):
            (kept / name).mkdir(parents=True, exist_ok=True)
            for file in FILES:
                if (folder / name / file).exists():
                    shutil.copyfile(folder / name / file, kept / name / file)


# ------------------------------------------------------------------------------------------------------- who is worse


def bounds(scores: xr.Dataset, score: str, forecast: str) -> np.ndarray:
    """Estimate, lower and upper bound of every variable, level and lead, (3, case)."""
    return np.stack([tables.every(scores, score, forecast, b) for b in ("estimate", "lower", "upper")])


def small_power(spectra: xr.Dataset, forecast: str, lead: int | None = None) -> np.ndarray:
    """Power over the truth's at small scales, of every variable, level, wavenumber (and lead), (3, case)."""
    chosen = spectra.sel(forecast=forecast)
    if lead is not None:
        chosen = chosen.sel({tables.LEAD: np.timedelta64(lead, "D")})
    first = int(SMALL * int(spectra["zonal_wavenumber"][-1]))
    names = [str(n) for n in spectra.data_vars if str(n).endswith("_zonal_ratio")]
    parts = []
    for kind in ("", "_lower", "_upper"):
        fields = [chosen[n + kind].sel(zonal_wavenumber=slice(first, None)) for n in names]
        parts.append(np.concatenate([f.values.ravel() for f in fields]))
    return np.stack(parts)


def worse_and_better(ours: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Shares of cases in which another's interval is wholly above, and wholly below ours; each (3, case)."""
    return float(np.mean(other[1] > ours[2])), float(np.mean(other[2] < ours[1]))


def off(power: np.ndarray) -> np.ndarray:
    """How far power is from the truth's, |ln ratio|, with the interval that its own implies, (3, case)."""
    estimate, low, high = np.log(np.maximum(power, 1e-12))
    nearest = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(abs(low), abs(high)))
    return np.stack([abs(estimate), nearest, np.maximum(abs(low), abs(high))])


def factor(power: np.ndarray) -> float:
    """Geometric mean of how many times power is too large or too small."""
    return float(np.exp(abs(np.log(np.maximum(power[0], 1e-12))).mean()))


def share(value: float) -> str:
    return f"{value:.0%}"


# -------------------------------------------------------------------------------------------------------------- tables


def ablation_table(scores: xr.Dataset, spectra: xr.Dataset, reference: str = "bundled") -> str:
    """Each variant beside the reference of the same budget."""
    header = ["variant", *(f"CRPS, {d} d" for d in LEADS), "CRPS worse / better", "power at small scales off by"]
    header += ["further off / nearer"]
    rows, known = [], reference in scores["forecast"].values
    for name in tables.variants_in(scores):
        row = [tables.title(name)]
        for day in LEADS:
            at = scores.sel({tables.LEAD: [np.timedelta64(day, "D")]})
            ratio = tables.shares(at, reference, name) if known else np.array([np.nan])
            row.append(f"{ratio.mean():.3f} ({ratio.min():.2f} … {ratio.max():.2f})" if known else "")
        power = small_power(spectra, name)
        if known and name != reference:
            pairs = [(bounds(scores, "crps", n)) for n in (reference, name)]
            verdict = " / ".join(map(share, worse_and_better(*pairs)))
            scales = " / ".join(
                map(share, worse_and_better(*(off(small_power(spectra, n)) for n in (reference, name))))
            )
        else:
            verdict = scales = ""
        rows.append([*row, verdict, f"{factor(power):.2f}", scales])
    return tables.table(header, rows)


def repeat_table(runs: Sequence[tuple[xr.Dataset, xr.Dataset]], reference: str = "bundled") -> str:
    """Variants that were trained twice with the same words, earlier and later: what of the differences comes back."""
    header = ["variant", *(f"CRPS, {d} d" for d in LEADS), "power at small scales off by"]
    header += [f"later over earlier, {d} d" for d in LEADS]
    rows = []
    for name in tables.variants_in(runs[0][0]):
        beside, again = [], []
        for day in LEADS:
            before, now = (scores.sel({tables.LEAD: [np.timedelta64(day, "D")]}) for scores, _ in runs)
            beside.append(", ".join(f"{tables.shares(s, reference, name).mean():.2f}" for s in (before, now)))
            crps = [tables.every(s, "crps", name) for s in (before, now)]
            again.append(f"{np.exp(np.log(crps[1] / crps[0]).mean()):.2f}")
        power = ", ".join(f"{factor(small_power(spectra, name)):.2f}" for _, spectra in runs)
        rows.append([tables.title(name), *beside, power, *again])
    return tables.table(header, rows)


def experiment_table(scores: xr.Dataset, spectra: xr.Dataset) -> str:
    """What each way of training makes of the two findings: spread in the first days, power at small scales."""
    header = ["run", "CRPS of 500 hPa geopotential, 1 and 5 d", "spread/skill, 1 d", "spread/skill, all leads"]
    header += ["power at small scales, 1 d", "off by"]
    rows = []
    for name in tables.variants_in(scores):
        crps = tables.at(scores, "geopotential", 500, score="crps", forecast=name, bound="estimate")
        values = [f"{float(crps.sel({tables.LEAD: np.timedelta64(d, 'D')})):.1f}" for d in (1, 5)]
        first = tables.every(scores.sel({tables.LEAD: [np.timedelta64(1, "D")]}), "spread_skill", name)
        whole = tables.every(scores, "spread_skill", name)
        spread = ["" if np.isnan(s).all() else tables.span(s) for s in (first, whole)]
        power = small_power(spectra, name, 1)
        rows.append([tables.title(name), ", ".join(values), *spread, tables.span(power[0]), f"{factor(power):.2f}"])
    return tables.table(header, rows)


def text(folder: Path) -> list[str]:
    """Sections of the page; those whose scores are there."""
    parts = []
    if there(folder / "ablation"):
        scores, spectra = (load(folder / "ablation", n) for n in FILES[:2])
        parts += ["### Ablations, the same number of updates each", ablation_table(scores, spectra), LEGEND]
        parts += ["![power of the variants](_static/benchmark/ablation.png)"]
        if there(folder / "ablation_before"):
            runs = [[load(folder / n, f) for f in FILES[:2]] for n in ("ablation_before", "ablation")]
            parts += ["**Run twice**", repeat_table([(s, p) for s, p in runs]), TWICE]
    if there(folder / "experiments"):
        scores, spectra = (load(folder / "experiments", n) for n in FILES[:2])
        parts += ["### Ways to train", experiment_table(scores, spectra)]
    if there(folder / "evidence"):
        scores, spectra = (load(folder / "evidence", n) for n in FILES[:2])
        parts += ["### The larger network", *evidence(scores, spectra, folder / "evidence")]
    return parts


def evidence(scores: xr.Dataset, spectra: xr.Dataset, folder: Path) -> list[str]:
    """The goals and the gains of the larger network."""
    parts = []
    if (folder / "long.nc").exists():
        long = load(folder, "long.nc")
        parts += [tables.goal_table(scores, spectra, long, "evidence"), tables.drift_table(scores, long, "evidence")]
    parts.append(tables.gain_table(scores, "evidence"))
    return [*parts, "![power of the larger network](_static/benchmark/evidence.png)"]


LEGEND = (
    "CRPS: over the bundled variant's of the same budget, mean over fields and levels, lowest and highest in brackets. "
    "Worse and better: shares of fields, levels and leads in which the 95 % intervals don't overlap. Power at small "
    "scales: of members over the truth's, over the upper 40 % of zonal wavenumbers; off by: how many times too large "
    "or too small in the geometric mean over fields, leads and wavenumbers; further off and nearer: shares in which "
    "the interval of |ln ratio| is wholly beyond the bundled variant's, or wholly within."
)

TWICE = (
    "The earlier run and the later one, with the same seed and the same commands: simulated and trained anew on other "
    "machines, whose rounding differs, and the test year with them. CRPS over the bundled variant's of the same run, "
    "mean over fields and levels; the last columns have a variant's own CRPS of the later run over the earlier."
)

# ------------------------------------------------------------------------------------------------------------ pictures


def draw(folder: Path, pictures: Path) -> None:
    """Pictures of what is there."""
    for name in ("ablation", "evidence"):
        if there(folder / name):
            spectra = load(folder / name, "spectra.nc")
            draw_power(spectra, tables.variants_in(spectra), pictures / f"{name}.png")


def plain_ticks(ax: Axes) -> None:
    """Numbers like 0.7 and 1.5 on a logarithmic axis, for less than a decade as for several."""
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else (1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw_power(spectra: xr.Dataset, names: Sequence[str], path: Path, day: int = 5) -> None:
    """Power over the truth's by zonal wavenumber with intervals, one line for each model."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    colours = [f"C{i}" for i in range(10)] + ["black", "gold", "navy", "lime"]
    for ax, (name, level) in zip(axes, tables.ROWS, strict=True):
        for i, forecast in enumerate(names):
            lines = [
                tables.at(spectra, f"{name}_zonal_ratio{kind}", level, forecast=forecast)
                .sel({tables.LEAD: np.timedelta64(day, "D")})
                .sel(zonal_wavenumber=slice(1, None))
                for kind in ("", "_lower", "_upper")
            ]
            m, colour = lines[0]["zonal_wavenumber"].values, colours[i % len(colours)]
            ax.semilogy(m, lines[0], color=colour, linewidth=2 if not i else 1, label=tables.title(forecast))
            ax.fill_between(m, lines[1], lines[2], color=colour, alpha=0.12, linewidth=0)
        plain_ticks(ax)
        ax.axhspan(0.96, 1.04, color="0.85")
        ax.set(title=tables.label(name, level), xlabel="zonal wavenumber", ylabel=f"power over the truth's, {day} days")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=90)
