"""Train the bundled network and its twins: ``python train.py STORE OUT --minutes 4 [--variants bundled twin]``.

Several variants follow one another in one process, with the data read once and kept on the device; each is exported as
soon as it is done, and one that fails doesn't keep the others from being trained. With ``--minutes`` the time of an
update is measured first, and the updates fitted to the minutes; with ``--updates 3000 400`` each variant has so many in
each part of the plan, which is the same budget for all. ``--plan`` says how (`plans.py`), ``--size evidence`` takes the
larger network, whose data have 96 × 49 points.

Each sample is turned by a random longitude and mirrored at the equator with probability ½: the set-up of Held and
Suarez knows neither longitudes nor hemispheres, so these are samples as good as the simulated ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simulate
import torch
import xarray as xr
from plans import BATCH, LEVELS, PLANS, VARIABLES, Part, fit_updates, settings
from resident import Resident
from variants import SIZES, VARIANTS

import xmosaic
from xmosaic import Model, Stage, TrainConfig
from xmosaic.checkpoint import read_model

BEGAN = time.perf_counter()
WARM_UP = 20  # updates that are timed, of which the first half does not count


def validations(history: xr.Dataset) -> Iterator[str]:
    """A line for each validation: CRPS, spread/skill as a mean over channels, power from the lowest to the highest."""
    for i, update in enumerate(history["validation_update"].values):
        one = history.isel(validation_update=i)
        yield (
            f"update {update}: CRPS {float(one['validation_crps']):.4f}, spread/skill "
            f"{float(one['spread_skill'].mean()):.3f}, power at small scales {float(one['power_ratio'].min()):.3f} … "
            f"{float(one['power_ratio'].max()):.3f} of the truth's"
        )


# -------------------------------------------------------------------------------------------------------------- data


def open_data(store: Path) -> xr.Dataset:
    """All that the model sees, in memory."""
    return xr.open_zarr(store, chunks=None, consolidated=False)[list(VARIABLES)].sel(level=list(LEVELS)).load()


def periods_of(ds: xr.Dataset) -> dict[str, tuple[str, str]]:
    """Those of `simulate.periods`, from the years that are there."""
    return simulate.periods(len(np.unique(ds["time"].dt.year)))


def fitting(ds: xr.Dataset, size: str) -> xr.Dataset:
    """The data, if they have the grid of a size."""
    wanted, found = (SIZES[size].longitudes, SIZES[size].latitudes), (ds.sizes["longitude"], ds.sizes["latitude"])
    if found != wanted:
        raise SystemExit(
            f"The data have {found[0]} × {found[1]} points, the {size} size takes {wanted[0]} × {wanted[1]}"
        )
    return ds


def on(device: str) -> Callable[..., Resident]:
    """A loader with its data on a device: at 16 small samples per update, threads would not keep up."""
    return functools.partial(Resident, device=device)


# --------------------------------------------------------------------------------------------------------------- runs


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long each variant is trained: for so many minutes, or so many updates in each part of the plan."""

    minutes: float | None = None
    updates: tuple[int, ...] = ()
    batch: int = BATCH

    def check(self, plan: str) -> None:
        """Say what doesn't fit before anything is read."""
        if self.updates and len(self.updates) != len(PLANS[plan]):
            names = ", ".join(part.name for part in PLANS[plan])
            raise SystemExit(
                f"--updates has {len(self.updates)} numbers; the {plan} plan has {len(PLANS[plan])} parts ({names})"
            )


def measure(
    ds: xr.Dataset, make: Callable[[Part, Stage], TrainConfig], parts: Sequence[Part], batch: int, device: str
) -> list[float]:
    """Seconds per update of each part: the median of the second half of a few."""
    found = []
    for part in parts:
        config = dataclasses.replace(make(part, part.stage(batch, WARM_UP)), validate_every=10**6, validation_samples=1)
        model = xmosaic.train(ds, config, device=device, loader=on(device), progress=False)
        found.append(float(model.history["seconds"][WARM_UP // 2 :].median()))
    return found


def train(
    ds: xr.Dataset,
    out: Path,
    budget: Budget,
    variant: str = "bundled",
    *,
    name: str | None = None,
    plan: str = "direct",
    size: str = "bundled",
    device: str = "cpu",
    seed: int = 0,
    begin: Path | None = None,
) -> Path:
    """Train a variant, or go on from a model; the file of the model, OUT/NAME.safetensors, weights in 16 bits."""
    began, name, parts = time.perf_counter(), name or variant, PLANS[plan]
    precision = "bfloat16" if device.startswith("cuda") else "float32"
    make = functools.partial(settings, periods_of(ds), variant=variant, size=size, precision=precision, seed=seed)
    counts = list(budget.updates)
    if not counts:
        assert budget.minutes is not None
        speed = measure(ds, make, parts, budget.batch, device)
        counts = fit_updates(budget.minutes, parts, speed)
    print(f"{name}: {VARIANTS[variant].title}, {plan} plan, {counts} updates", flush=True)
    print(f"{name}: training begins after {time.perf_counter() - began:.0f} s", flush=True)
    for folder in folders(out, name, plan):
        shutil.rmtree(folder, ignore_errors=True)
    began, speed = time.perf_counter(), []
    before = model = xmosaic.load_model(begin) if begin else None
    for part, count, folder in zip(parts, counts, folders(out, name, plan), strict=True):
        config, loader = make(part, part.stage(budget.batch, count)), on(device)
        model = xmosaic.train(ds, config, out=folder, init=model, device=device, loader=loader, progress=True)
        speed.append(float(model.history["seconds"].median()))
        print(*(f"{name}, {line}" for line in validations(model.history)), sep="\n", flush=True)
    facts = {"minutes": (time.perf_counter() - began) / 60, "milliseconds_per_update": [1e3 * s for s in speed]}
    facts |= {"updates": counts, "samples_per_update": [part.samples(budget.batch) for part in parts], "plan": plan}
    if before is not None:
        facts["before"] = before.provenance.get("run")
    facts["device"] = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    return export(out, name, plan, variant, facts)


def train_all(ds: xr.Dataset, out: Path, budget: Budget, variants: Sequence[str], **options: Any) -> list[str]:
    """Train variants one after another; the names of those that failed."""
    failed = []
    for variant in variants:
        began = time.perf_counter()
        try:
            train(ds, out, budget, variant, **options)
        except Exception:  # the others are worth their time whatever went wrong here
            traceback.print_exc()
            failed.append(variant)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        state = "FAILED" if variant in failed else "done"
        print(f"=== {variant}: {state}, {time.perf_counter() - began:.0f} s", flush=True)
    return failed


def folders(out: Path, name: str, plan: str) -> list[Path]:
    """Of the parts of a plan."""
    return [out / f"run_{name}_{part.name}" for part in PLANS[plan]]


def latest(out: Path, name: str, plan: str) -> Path:
    """The best model of the last part that has one; what an earlier run left of later parts is older."""
    made = [path for folder in folders(out, name, plan) if (path := folder / "model.safetensors").exists()]
    if not made:
        raise SystemExit(f"No part of the {plan} plan for {name} has left a model in {out}")
    return max(made, key=lambda path: path.stat().st_mtime)


def export(
    out: Path, name: str, plan: str = "direct", variant: str | None = None, facts: dict[str, Any] | None = None
) -> Path:
    """The best model of the last part that has one, as a small file: weights in 16 bits, with its card."""
    model = read_model(latest(out, name, plan))
    about = {
        **model.provenance,
        "name": name,
        "title": f"{VARIANTS[variant or name].title}: Held–Suarez benchmark atmosphere, steps of 24 h",
        "license": "BSD-3-Clause",
        "data": "simulated: Held and Suarez (1994) with dinosaur, examples/held_suarez; not the Earth's weather",
        "symmetries": "trained on samples turned by random longitudes, mirrored at the equator, and on random dates",
        "run": facts or {"stopped": "before its last update; the best until then", "plan": plan},
    }
    half = model.network.half()
    made = Model(half, model.schema, model.grid, model.mean, model.std, model.static, about)
    target = out / f"{name}.safetensors"
    print(made.save(target), f"{target.stat().st_size / 1e6:.1f} MB", json.dumps(about["run"]), flush=True)
    return target


def export_stopped(out: Path, plan: str, variants: Sequence[str], name: str | None) -> list[str]:
    """Best weights of runs that were stopped before they were exported; the names of those that left none."""
    without = []
    for variant in variants:
        label = name or variant
        try:
            made, target = latest(out, label, plan), out / f"{label}.safetensors"
        except SystemExit as nothing:
            print(nothing, flush=True)
            without.append(label)
            continue
        if not target.exists() or target.stat().st_mtime < made.stat().st_mtime:
            export(out, label, plan, variant)
    return without


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["bundled"], help="variants.py says what")
    parser.add_argument("--name", help="of the file, for a single variant; by default the variant's")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=4.0, help="of each variant")
    length.add_argument("--updates", type=int, nargs="+", default=(), help="of each part of the plan, of each variant")
    parser.add_argument("--plan", choices=PLANS, default="direct", help="plans.py says what")
    parser.add_argument("--size", choices=SIZES, default="bundled", help="of the network and of the data's grid")
    parser.add_argument("--export", action="store_true", help="only write the best weights of runs that were stopped")
    parser.add_argument("--device")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples per update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", type=Path, metavar="MODEL", help="to go on from, for a single variant")
    found = parser.parse_args(words)
    if (found.name or found.begin) and len(found.variants) > 1:
        parser.error("--name and --begin are for a single variant")
    return found


def main() -> None:
    o = arguments()
    budget = Budget(o.minutes, tuple(o.updates), o.batch)
    budget.check(o.plan)
    o.out.mkdir(parents=True, exist_ok=True)
    if o.export:
        bad = export_stopped(o.out, o.plan, o.variants, o.name)
    else:
        device = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_float32_matmul_precision("high")
        ds = fitting(open_data(o.store), o.size)
        print(f"data of {ds.sizes['time']} times after {time.perf_counter() - BEGAN:.0f} s", flush=True)
        given = {"name": o.name, "plan": o.plan, "size": o.size, "device": device, "seed": o.seed, "begin": o.begin}
        bad = train_all(ds, o.out, budget, o.variants, **given)
    if bad:
        sys.exit(f"without a model: {', '.join(bad)}")


if __name__ == "__main__":
    main()
