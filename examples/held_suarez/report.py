"""Tables and pictures of docs/benchmark.md from stored scores: ``python report.py [FOLDER] [--package]``.

FOLDER holds scores.nc, spectra.nc and long.nc of `evaluate.py`, and those of other models in the folders ablation,
experiments and evidence, as far as they are there; by default the kept ones, examples/held_suarez/results.
What stands between the two marks in docs/benchmark.md is replaced; pictures go to docs/_static/benchmark.
``--package`` first puts FOLDER's model, with scores and limits on its card, and FOLDER's sample into xmosaic/data, and
FOLDER's scores to the kept ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import others
import xarray as xr
from matplotlib.figure import Figure
from tables import (
    LEAD,
    LEADS,
    ROWS,
    at,
    drift_table,
    every,
    gain_table,
    goal_table,
    label,
    shares,
    span,
    table,
    title,
    variants_in,
    worst_share,
)

import xmosaic

ROOT = Path(__file__).parents[2]
KEPT, DATA = Path(__file__).parent / "results", ROOT / "xmosaic" / "data"
PAGE, PICTURES = ROOT / "docs" / "benchmark.md", ROOT / "docs" / "_static" / "benchmark"
BEGIN, END = "<!-- made by examples/held_suarez/report.py -->", "<!-- end of what is made -->"
# what the plans of train.py are, for the card
TRAINED = {
    "direct": "fair CRPS of two members, one step, then three",
    "warm": "squared error without noise, then fair CRPS: two members, four at a low rate, four on rollouts of three",
    "careful": "fair CRPS of two members, then of four at a low rate, then rollouts of three with four; finer bands",
    "further": "a trained model, then fair CRPS: two members, four at a low rate, four on rollouts of three",
    "even": "a trained model, then the same with errors over the change of a step",
    "fine": "fair CRPS of two members, one step, then three; finer bands",
    "heavy": "fair CRPS of two members, one step, then three; finer bands of weight 1",
    "low": "fair CRPS of two members, then of four at a low rate, then rollouts of three; finer bands",
    "exact": "fair CRPS of two members, then at a low rate in 32 bits, then rollouts of three; finer bands",
}


def variant_table(scores: xr.Dataset, spectra: xr.Dataset) -> str:
    """What each change makes of the scores: CRPS over the bundled model's, spread/skill, power at small scales."""
    header = [
        "variant",
        *(f"CRPS, {d.days} d" for d in (LEADS[0], LEADS[2], LEADS[4])),
        "spread/skill",
        "power, m ≥ 20",
    ]
    rows = []
    for name in variants_in(scores):
        row = [title(name)]
        for lead in (LEADS[0], LEADS[2], LEADS[4]):
            share = shares(scores.sel({LEAD: [lead]}), "bundled", name)
            row.append(f"{share.mean():.2f} ({share.min():.2f} … {share.max():.2f})")
        ratio = every(scores, "spread_skill", name)
        row.append("" if np.isnan(ratio).all() else f"{ratio.min():.2f} … {ratio.max():.2f}")
        row.append(span(small_scales(spectra, name)) if name in spectra["forecast"].values else "not kept")
        rows.append(row)
    return table(header, rows)


def small_scales(spectra: xr.Dataset, name: str, first: int = 20) -> np.ndarray:
    """Power over the truth's from a zonal wavenumber on, of every variable, level and lead."""
    ratios = [spectra[n] for n in spectra.data_vars if n.endswith("_zonal_ratio")]
    return np.concatenate([r.sel(forecast=name, zonal_wavenumber=slice(first, None)).values.ravel() for r in ratios])


def score_tables(scores: xr.Dataset) -> str:
    """RMSE, CRPS, spread/skill and mass drift, as `xmosaic.to_markdown` writes them, without its title."""
    fields = scores[[n for n in scores.data_vars if "score" in scores[n].dims]]
    kept = scores[[n for n in scores.data_vars if "forecast" in scores[n].dims]]
    ensembles = kept.sel(forecast=scores["members"] > 0)
    ours = xmosaic.to_markdown(fields, scores=["rmse", "crps"], rows=ROWS, leads=LEADS).splitlines()[1:]
    rest = xmosaic.to_markdown(ensembles, scores=["spread_skill"], rows=ROWS, leads=LEADS)
    return "\n".join(ours).strip() + "\n\n" + rest[rest.index("**") :].strip()


def power_table(spectra: xr.Dataset) -> str:
    """Lowest and highest power over the truth's, over all wavenumbers from 1 and the leads 1 to 10 days."""
    rows = []
    for name, level in ROWS:
        row = [label(name, level)]
        for forecast in variants_in(spectra)[:2]:
            total = at(spectra, f"{name}_spectral_ratio", level, forecast=forecast, bound="estimate")
            zonal = at(spectra, f"{name}_zonal_ratio", level, forecast=forecast)
            for field, dim in ((total, "total_wavenumber"), (zonal, "zonal_wavenumber")):
                values = field.sel({dim: slice(1, None)})
                row.append(f"{float(values.min()):.2f} … {float(values.max()):.2f}")
        rows.append(row)
    found = variants_in(spectra)[:2]
    return table(["power over truth's", *(f"{f}, {k}" for f in found for k in ("total", "zonal"))], rows)


def draw_scores(scores: xr.Dataset, path: Path) -> None:
    """RMSE and CRPS over lead for every headline field, with intervals."""
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for ax, (name, level) in zip(axes, ROWS, strict=True):
        crps = at(scores, name, level, score="crps")
        days = crps[LEAD].values / np.timedelta64(1, "D")
        for forecast in crps["forecast"].values:
            one = crps.sel(forecast=forecast)
            (line,) = ax.plot(days, one.sel(bound="estimate"), label=str(forecast).replace("_", " "))
            ax.fill_between(days, one.sel(bound="lower"), one.sel(bound="upper"), alpha=0.2, color=line.get_color())
        ax.set(
            title=label(name, level),
            xlabel="days",
            ylabel=f"CRPS [{scores[name].attrs.get('units', '')}]",
            ylim=(0, None),
        )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=9)
    figure.savefig(path, dpi=90)


def draw_spread(scores: xr.Dataset, path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    for name, level in ROWS:
        one = at(scores, name, level, score="spread_skill", forecast="bundled", bound="estimate")
        ax.plot(one[LEAD].values / np.timedelta64(1, "D"), one, label=label(name, level))
    ax.axhspan(0.95, 1.05, color="0.9")
    ax.set(xlabel="days", ylabel="spread/skill")
    ax.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def draw_long(long: xr.Dataset, path: Path) -> None:
    """Mass and size of anomalies over sixty days."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    mass, size = figure.subplots(1, 2)
    days = long[LEAD].values / np.timedelta64(1, "D")
    mass.plot(days, long["mass_drift_percent_mean"], label="mean")
    low, high = long["mass_drift_percent_min"], long["mass_drift_percent_max"]
    mass.fill_between(days, low, high, alpha=0.2, label="lowest to highest")
    mass.axhline(0, color="0.6", linewidth=0.8)
    mass.set(xlabel="days", ylabel="mass drift [%]")
    for name, level in ROWS:
        size.plot(days, at(long, f"{name}_variability_ratio", level), label=label(name, level))
    size.axhline(1, color="0.6", linewidth=0.8)
    size.set(xlabel="days", ylabel="size of anomalies over the truth's")
    size.set_ylim(0.84, None)
    mass.legend(fontsize=8)
    size.legend(fontsize=8, ncols=2, loc="lower left")
    figure.savefig(path, dpi=90)


def draw_power(spectra: xr.Dataset, path: Path) -> None:
    """Power of members over the truth's by zonal wavenumber at 1, 5 and 10 days."""
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for ax, (name, level) in zip(axes, ROWS, strict=True):
        for forecast, style in zip(variants_in(spectra), ("-", ":", "--", "-."), strict=False):
            ratio = at(spectra, f"{name}_zonal_ratio", level, forecast=forecast)
            for colour, lead in enumerate((LEADS[0], LEADS[2], LEADS[4])):
                one = ratio.sel({LEAD: lead}).sel(zonal_wavenumber=slice(1, None))
                ax.semilogy(one["zonal_wavenumber"], one, style, color=f"C{colour}", label=f"{forecast}, {lead.days} d")
        others.plain_ticks(ax)
        ax.axhspan(0.96, 1.04, color="0.9")
        ax.set(title=label(name, level), xlabel="zonal wavenumber", ylabel="power over the truth's")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
    figure.savefig(path, dpi=90)


# ---------------------------------------------------------------------------------------------------- page and package


def text(folder: Path) -> str:
    """The part of the page that is made, without pictures drawn."""
    scores, spectra, long = (_load(folder, n) for n in ("scores", "spectra", "long"))
    crps, spread, power, rollout = (f"![{n}](_static/benchmark/{n}.png)" for n in ("crps", "spread", "power", "long"))
    parts = ["### Goals", goal_table(scores, spectra, long), "### Against the baselines", gain_table(scores), crps]
    if len(variants_in(scores)) > 1:
        parts += ["### Variants", variant_table(scores, spectra)]
    parts += ["### Spread", spread, "### Power", power_table(spectra), power]
    parts += ["### Mass and long rollouts", drift_table(scores, long), rollout]
    parts += others.text(folder)
    return "\n\n".join([*parts, "### Scores", score_tables(scores)])


def write(folder: Path, page: Path = PAGE, pictures: Path = PICTURES) -> None:
    """Pictures and the page."""
    pictures.mkdir(parents=True, exist_ok=True)
    scores, spectra, long = (_load(folder, n) for n in ("scores", "spectra", "long"))
    draw_scores(scores, pictures / "crps.png")
    draw_spread(scores, pictures / "spread.png")
    draw_power(spectra, pictures / "power.png")
    draw_long(long, pictures / "long.png")
    others.draw(folder, pictures)
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{text(folder)}\n\n{END}{after}")


def _load(folder: Path, name: str) -> xr.Dataset:
    return xr.load_dataset(folder / f"{name}.nc", decode_timedelta=True)


def card(folder: Path, run: dict) -> dict[str, str]:
    """Training, scores and limits in words, from what is stored."""
    scores, spectra = _load(folder, "scores"), _load(folder, "spectra")
    z500 = at(scores, "geopotential", 500, forecast="bundled", bound="estimate")

    def line(score: str, number: str) -> str:
        return ", ".join(f"{float(z500.sel({'score': score, LEAD: lead})):{number}}" for lead in LEADS)

    ratio = every(scores, "spread_skill", "bundled")
    zonal = [spectra[n].sel(forecast="bundled") for n in spectra.data_vars if n.endswith("_zonal_ratio")]
    large, small = (
        np.concatenate([z.sel(zonal_wavenumber=s).values.ravel() for z in zonal])
        for s in (slice(1, 10), slice(20, None))
    )
    return {
        "Training": training(run),
        "Scores": f"{int(z500['samples'].max())} starts of the test year × "
        f"{int(z500['members'])} members; 500 hPa geopotential [m2 s-2] at "
        f"{', '.join(str(d.days) for d in LEADS)} days: "
        f"RMSE {line('rmse', '.0f')}; fair CRPS {line('crps', '.0f')}; "
        f"at most {worst_share(scores, 'climatology_ensemble'):.2f} of a climatological "
        "ensemble's CRPS in every field to 10 days; "
        f"spread/skill {ratio.min():.2f} … {ratio.max():.2f} over all fields and leads",
        "Limits": "a flat, dry planet without seasons: says nothing about the Earth's weather or the paper's scores. "
        f"Members' power over the truth's: {large.min():.2f} … {large.max():.2f} at zonal wavenumbers 1–10, "
        f"{small.min():.2f} … {small.max():.1f} from 20 on",
    }


def training(run: Mapping[str, Any]) -> str:
    """What `train.export` noted of a run, after that of the run that it went on from."""
    updates = " + ".join(str(n) for n in run.get("updates", ()))
    told = (
        f"{TRAINED[run.get('plan', 'direct')]}; {updates} updates in "
        f"{run.get('minutes', float('nan')):.1f} minutes on {run.get('device', 'an unnamed device')}"
    )
    return f"{training(run['before'])}. Then: {told}" if run.get("before") else told


def package(folder: Path, data: Path = DATA, kept: Path = KEPT) -> None:
    """Model with its card, and sample, into the package; scores to the kept ones."""
    model = xmosaic.load_model(folder / "bundled.safetensors")
    # whatever the run was called that made it
    about = {**model.provenance, "name": "bundled", "card": card(folder, model.provenance.get("run", {}))}
    # sixteen bits, as `train.export` wrote them: nothing is lost
    dataclasses.replace(model, network=model.network.half(), provenance=about, sha256="").save(
        data / "bundled.safetensors"
    )
    shutil.copyfile(folder / "sample.nc", data / "sample.nc")
    kept.mkdir(exist_ok=True)
    for name in ("scores.nc", "spectra.nc", "long.nc"):
        shutil.copyfile(folder / name, kept / name)
    others.keep(folder, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=KEPT)
    parser.add_argument(
        "--package", action="store_true", help="put model, sample and scores where the package has them"
    )
    options = parser.parse_args()
    if options.package:
        package(options.folder)
    write(options.folder)


if __name__ == "__main__":
    main()
