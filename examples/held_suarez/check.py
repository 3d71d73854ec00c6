"""Compare a simulation with the 1994 paper, and draw it: ``python check.py STORE [OUT]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from xmosaic import diagnostics

# earlier times must not count as a trend of what is still settling
YEAR = 360.0


class Check(NamedTuple):
    """A number, and the range in which it is no surprise."""

    name: str
    value: float
    low: float
    high: float

    @property
    def good(self) -> bool:
        return bool(self.low <= self.value <= self.high)

    def __str__(self) -> str:
        return f"{'ok  ' if self.good else 'FAR '}{self.name:<58}{self.value:>10.4g}   {self.low:g} … {self.high:g}"


def jets(u: np.ndarray, sigma: np.ndarray, latitude: np.ndarray) -> list[Check]:
    """The paper's figure 2: one westerly jet per hemisphere, near 45° and 250 hPa, of about 30 m/s."""
    checks = []
    for side, rows in (("southern", latitude < 0), ("northern", latitude > 0)):
        layer, row = np.unravel_index(u[:, rows].argmax(), u[:, rows].shape)
        checks += [
            Check(f"{side} jet [m/s]; paper about 30", u[layer, np.flatnonzero(rows)[row]], 24, 38),
            Check(f"{side} jet, latitude; paper about 45", abs(latitude[rows][row]), 36, 52),
            Check(f"{side} jet, sigma; paper about 0.25", sigma[layer], 0.15, 0.35),
        ]
    lowest = u[-1]
    checks.append(
        Check("trade winds at the lowest layer [m/s]; paper about −8", lowest[abs(latitude) < 30].min(), -13, -4)
    )
    return checks


def temperatures(t: np.ndarray, sigma: np.ndarray, latitude: np.ndarray) -> list[Check]:
    """The paper's figure 1: 300 K and more at the equator's surface, about 260 K at the poles, 190–210 K aloft."""
    tropics, poles = abs(latitude) < 5, abs(latitude) > 80
    aloft = abs(sigma - 0.1).argmin()
    return [
        Check("temperature of the lowest layer at the equator [K]", t[-1, tropics].mean(), 296, 310),
        Check("temperature of the lowest layer at the poles [K]", t[-1, poles].mean(), 250, 275),
        Check("temperature at sigma 0.1 over the equator [K]", t[aloft, tropics].mean(), 185, 212),
    ]


def budgets(means: np.ndarray) -> list[Check]:
    """Energy and mass: (trajectory, time, 4) mean pressure, energy, kinetic energy, drift of pressure within a day."""
    time = np.linspace(0.0, means.shape[1] / YEAR, means.shape[1])
    energy = means[..., 1].mean(axis=0)
    trend = np.polyfit(time, energy / energy.mean(), 1)[0] if means.shape[1] > 2 else 0.0
    return [
        Check("mass: mean pressure's drift per day [Pa], before it is undone", means[..., 3].mean(), -1.0, 1.0),
        Check("mass: largest drift of a day [Pa]", abs(means[..., 3]).max(), 0.0, 20.0),
        Check("energy: trend per year, of all trajectories together", trend, -0.01, 0.01),
        Check("kinetic energy [MJ m-2]", means[..., 2].mean() / 1e6, 0.8, 2.5),
    ]


def spectra(ds: xr.Dataset, spectrum: np.ndarray, layer: int) -> tuple[list[Check], dict[str, np.ndarray]]:
    """Slope of the kinetic energy, and what coarse-graining has left at the grid's limit."""
    k = np.arange(10, min(26, spectrum.shape[1] - 2))
    slope = np.polyfit(np.log(k), np.log(spectrum[layer, k]), 1)[0]
    some = ds[["geopotential", "vertical_velocity"]].sel(level=500).isel(time=slice(None, None, 20)).load()
    zonal = diagnostics.spectra(some, kind="zonal", kinetic_energy=False).mean("time")
    z, limit = zonal["geopotential"].values, ds.sizes["longitude"] // 2
    step = z[limit - 3 : limit - 1].mean() / z[limit - 8 : limit - 6].mean()
    label = f"500 hPa geopotential: power at m = {limit - 3}–{limit - 2} over {limit - 8}–{limit - 7}"
    checks = [
        Check("kinetic energy at 250 hPa, slope of wavenumbers 10 to 25; about -3", slope, -4.0, -2.2),
        # a slope of -5 gives 0.4; a filter inside the grid's range would leave a hundredth
        Check(label, step, 0.1, 1.0),
    ]
    return checks, {name: zonal[name].values for name in zonal}


def check(store: Path) -> tuple[list[Check], dict[str, np.ndarray]]:
    """All checks, and what the picture needs."""
    ds = xr.open_zarr(store, chunks=None, consolidated=False)
    found = dict(np.load(store.parent / "diagnostics.npz"))
    u, t = found["zonal"]
    sigma, latitude = found["sigma"], found["latitude"]
    more, zonal = spectra(ds, found["spectrum"], int(abs(sigma - 0.25).argmin()))
    checks = [*jets(u, sigma, latitude), *temperatures(t, sigma, latitude), *budgets(found["means"]), *more]
    finite = all(bool(np.isfinite(ds[name].isel(time=slice(None, None, 10)).values).all()) for name in ds.data_vars)
    checks.append(Check("share of fields without NaN", float(finite), 1, 1))
    return checks, {**found, **{f"zonal {name}": power for name, power in zonal.items()}}


def draw(found: dict[str, np.ndarray], path: Path) -> Path:
    """Zonal means, spectra and energy as one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    panels = (("zonal-mean u [m/s]", np.arange(-40, 41, 4)), ("zonal-mean temperature [K]", np.arange(190, 311, 10)))
    for ax, field, (title, levels) in zip(axes[0], found["zonal"], panels, strict=True):
        lines = ax.contour(found["latitude"], found["sigma"], field, levels=levels, cmap="viridis")
        ax.clabel(lines, fontsize=7)
        ax.set(title=title, xlabel="latitude", ylabel="sigma", ylim=(1, 0))
    layer = int(abs(found["sigma"] - 0.25).argmin())
    power = found["spectrum"][layer, 1:-1]
    axes[1, 0].loglog(np.arange(1, power.size + 1), power, label="kinetic energy, 250 hPa, native grid, total")
    for name in ("geopotential", "vertical_velocity"):
        zonal = found[f"zonal {name}"][1:]
        axes[1, 0].loglog(np.arange(1, zonal.size + 1), zonal / zonal[0], "--", label=f"{name}, 500 hPa, zonal, scaled")
    axes[1, 0].set(title="spectra", xlabel="wavenumber")
    axes[1, 0].legend(fontsize=7)
    energy = found["means"][..., 1]
    axes[1, 1].plot(np.arange(energy.shape[1]), (energy / energy.mean() - 1).T * 100, lw=0.7)
    axes[1, 1].set(title="total energy of each trajectory [% of the mean]", xlabel="output")
    figure.savefig(path, dpi=90)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    options = parser.parse_args()
    checks, found = check(options.store)
    print(*checks, sep="\n", flush=True)
    if options.out is not None:
        print(draw(found, options.out / "checks.png"), flush=True)
    if bad := [c.name for c in checks if not c.good]:
        sys.exit(f"{len(bad)} of {len(checks)} numbers are far off: {'; '.join(bad)}")


if __name__ == "__main__":
    main()
