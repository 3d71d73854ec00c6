"""What the benchmark's tables are made of, and those that every trained model has: goals, gains, long rollouts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from variants import VARIANTS

ROWS = [("geopotential", 500), ("temperature", 850), ("u_component_of_wind", 250), ("vertical_velocity", 500)]
ROWS += [("2m_temperature", None), ("mean_sea_level_pressure", None)]
LEADS = pd.to_timedelta([1, 3, 5, 7, 10], unit="D")
LEAD = "prediction_timedelta"
BASELINES = ("persistence", "climatology", "climatology_ensemble")


def at(ds: xr.Dataset, name: str, level: int | None, **labels: object) -> xr.DataArray:
    """One field of a result."""
    field = ds[name] if level is None else ds[name].sel(level=level)
    return field.sel(labels)


def label(name: str, level: int | None) -> str:
    return name.replace("_", " ") + (f", {level} hPa" if level else "")


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def every(scores: xr.Dataset, score: str, forecast: str, bound: str = "estimate") -> np.ndarray:
    """One score of every variable, level and lead in a row."""
    names = [n for n in scores.data_vars if "score" in scores[n].dims]
    return np.concatenate(
        [at(scores, n, None, score=score, forecast=forecast, bound=bound).values.ravel() for n in names]
    )


def shares(scores: xr.Dataset, other: str, ours: str = "bundled") -> np.ndarray:
    """CRPS over another forecast's, of every variable, level and lead."""
    return every(scores, "crps", ours) / every(scores, "crps", other)


def variants_in(ds: xr.Dataset) -> list[str]:
    """Trained models among the forecasts: those that `variants` knows, the bundled one first, then the others."""
    there = [str(name) for name in ds["forecast"].values if name not in BASELINES]
    return [v for v in VARIANTS if v in there] + [name for name in there if name not in VARIANTS]


def title(name: str) -> str:
    return VARIANTS[name].title if name in VARIANTS else name


def span(values: np.ndarray) -> str:
    return f"{values.min():.2f} … {values.max():.2f}"


def held(*values: float, low: float = -np.inf, high: float = np.inf) -> str:
    return "reached" if all(low <= v <= high for v in values) else "**not reached**"


def worst_share(scores: xr.Dataset, other: str, ours: str = "bundled") -> float:
    return float(shares(scores, other, ours).max())


def resolved(spectra: xr.Dataset, ours: str, end: str = "") -> np.ndarray:
    """Power over the truth's of all fields, levels and leads, from wavenumber 1 to the last whose phase is known.

    At half the number of longitudes one phase of a wave is seen, and the other not at all.
    """
    last = int(spectra["zonal_wavenumber"][-1]) - 1
    names = [n for n in spectra.data_vars if n.endswith("_zonal_ratio")]
    return np.concatenate(
        [spectra[n + end].sel(forecast=ours, zonal_wavenumber=slice(1, last)).values.ravel() for n in names]
    )


def goal_table(scores: xr.Dataset, spectra: xr.Dataset, long: xr.Dataset, ours: str = "bundled") -> str:
    """What was wanted, what was found, and whether that is it."""
    ratio, low, high = (every(scores, "spread_skill", ours, b) for b in ("estimate", "lower", "upper"))
    inside, touching = np.mean((ratio >= 0.95) & (ratio <= 1.05)), np.mean((high >= 0.95) & (low <= 1.05))
    rows = [
        [
            "spread/skill 0.95–1.05, every field, level and lead",
            f"{ratio.min():.2f} … {ratio.max():.2f}; inside for {inside:.0%}, intervals reach it for {touching:.0%}",
            held(ratio.min(), ratio.max(), low=0.95, high=1.05),
        ]
    ]
    power, low, high = (resolved(spectra, ours, end) for end in ("", "_lower", "_upper"))
    near, touching = np.mean((power >= 0.96) & (power <= 1.04)), np.mean((high >= 0.96) & (low <= 1.04))
    rows.append(
        [
            "member power 0.96–1.04 of the truth's, every zonal wavenumber that the grid resolves, and lead",
            f"{power.min():.2f} … {power.max():.1f}; inside for {near:.0%}, intervals reach it for {touching:.0%}",
            held(power.min(), power.max(), low=0.96, high=1.04),
        ]
    )
    worse = (worst_share(scores, b, ours) for b in ("climatology", "climatology_ensemble"))
    for other, value in zip(("the climatological mean's", "the climatological ensemble's"), worse, strict=True):
        rows.append(
            [
                f"CRPS below {other} to 10 days, every field and level",
                f"at most {value:.2f} of it",
                held(value, high=0.9999),
            ]
        )
    drift = scores["mass_drift_percent"].sel({"forecast": ours, LEAD: LEADS[4]})
    mean, lower, upper = (float(drift.sel(bound=b)) for b in ("estimate", "lower", "upper"))
    single = [float(scores[f"mass_drift_percent_{e}"].sel({"forecast": ours, LEAD: LEADS[4]})) for e in ("min", "max")]
    verdict = held(abs(mean), high=0.009)
    if verdict == "reached" and max(-lower, upper) > 0.009:
        verdict += ", but not its interval"
    rows.append(
        [
            "mean mass drift at most 0.009 % after 10 days",
            f"{mean:.4f} % ({lower:.4f} … {upper:.4f}); single members {single[0]:.2f} … {single[1]:.2f} %",
            verdict,
        ]
    )
    last = long.isel({LEAD: -1})
    sizes = [float(v) for n in last.data_vars if n.endswith("variability_ratio") for v in np.ravel(last[n])]
    rows.append(
        [
            "60 days without falling apart",
            f"all {'finite' if long.attrs['finite'] else 'NOT finite'}; anomalies "
            f"{min(sizes):.2f} … {max(sizes):.2f} of the truth's",
            held(float(long.attrs["finite"]), low=1),
        ]
    )
    wanted = "CRPS 20 % below the deterministic twin's error at 5 days"
    if "twin" in scores["forecast"].values:
        share = shares(scores.sel({LEAD: [LEADS[2]]}), "twin", ours)
        found = f"{100 * (1 - share.max()):.0f} … {100 * (1 - share.min()):.0f} % over fields and levels"
        rows.append([wanted, found, held(float(share.max()), high=0.8)])
    else:
        rows.append([wanted, "no twin", "not tried"])
    return table(["goal", "found", ""], rows)


def gain_table(scores: xr.Dataset, forecast: str = "bundled") -> str:
    """CRPS against the twin's mean absolute error and the climatological ensemble's CRPS."""
    rows = []
    for name, level in ROWS:
        crps = at(scores, name, level, score="crps", bound="estimate")
        ours = crps.sel(forecast=forecast)
        row = [label(name, level)]
        for other in ("twin", "climatology_ensemble", "persistence"):
            if other in crps["forecast"].values:
                gain = 100 * (1 - ours / crps.sel(forecast=other))
                row += [f"{float(gain.sel({LEAD: lead})):.0f} %" for lead in (LEADS[2], LEADS[4])]
        rows.append(row)
    others = [o for o in ("twin", "climatology_ensemble", "persistence") if o in scores["forecast"].values]
    return table(["CRPS below that of", *(f"{o}, {d} d" for o in others for d in (5, 10))], rows)


def drift_table(scores: xr.Dataset, long: xr.Dataset, ours: str = "bundled") -> str:
    """Mass after 10 and 60 days; how much a long rollout varies."""
    ten = scores["mass_drift_percent"].sel({"forecast": ours, LEAD: LEADS[4], "bound": "estimate"})
    last = long.isel({LEAD: -1})
    days = int(pd.Timedelta(last[LEAD].values).days)
    rows = [["mean mass drift, 10 days", f"{float(ten):.4f} %"]]
    rows.append([f"mean mass drift, {days} days", f"{float(last['mass_drift_percent_mean']):.4f} %"])
    for name, level in ROWS:
        ratio = float(at(last, f"{name}_variability_ratio", level))
        rows.append([f"anomalies of {label(name, level)} after {days} days, over the truth's", f"{ratio:.3f}"])
    return table(["", ""], rows)
