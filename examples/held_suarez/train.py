"""Train the bundled network, or one of its twins: ``python train.py STORE OUT --minutes 4 [--variant twin]``.

``--plan warm`` begins without noise on squared error and ends with rollouts of four members; ``--size evidence`` takes
the larger network, whose data have 128 × 65 points.

Measures the time of an update first, then fits the number of updates to the minutes. The data stay on the device, and
each sample is turned by a random longitude and mirrored at the equator with probability ½: the set-up of Held and
Suarez knows neither longitudes nor hemispheres, so these are samples as good as the simulated ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import simulate
import torch
import xarray as xr
from variants import BAND_WEIGHT, MSE, SIZES, VARIANTS, network

import xmosaic
from xmosaic import Model, Stage, TrainConfig
from xmosaic.checkpoint import read_model
from xmosaic.training.loader import Batch
from xmosaic.training.samples import TrainingData, Windows

LEVELS = (250, 500, 700, 850)
VARIABLES = {name: None for name in simulate.SURFACE} | {name: LEVELS for name in simulate.UPPER}
# these change their sign in the mirror
ODD = ("v_component_of_wind", "10m_v_component_of_wind")
RATE = 0.02
BATCH, ROLLOUT = 16, 3  # samples per update, fewer in rollouts; steps of these
WARM_UP = 20  # updates that are timed, of which the first half does not count


@dataclass(frozen=True)
class Part:
    """One run of a plan; its best weights begin the next.

    Parameters
    ----------
    name : str
        Of its folder.
    share : float
        Of the time.
    rollout : int
        Steps of a sample.
    members : int, optional
        Of an ensemble; by default what the variant has.
    rate : float
        Learning rate over `RATE`.
    fewer : int
        How many times fewer samples per update than `--batch`.
    still : bool
        Without noise, on squared error.
    """

    name: str
    share: float
    rollout: int = 1
    members: int | None = None
    rate: float = 1.0
    fewer: int = 1
    still: bool = False

    def stage(self, batch: int, updates: int) -> Stage:
        """Of so many updates."""
        warmup = min(50, updates // 10) if self.rollout == 1 else updates // 10
        return Stage(updates, self.rollout, self.samples(batch), RATE * self.rate, warmup=warmup)

    def samples(self, batch: int) -> int:
        """Of an update."""
        return max(1, batch // self.fewer)


PLANS = {
    "direct": (Part("1", 0.75), Part("3", 0.25, ROLLOUT, rate=0.25, fewer=2)),
    # how the time is shared, and the second rate, are guesses until a run has been made
    "warm": (
        Part("still", 0.3, still=True),
        Part("1", 0.45, rate=0.5),
        Part("3", 0.25, ROLLOUT, members=4, rate=0.25, fewer=4),
    ),
}


def settings(
    periods: dict[str, Any],
    part: Part,
    stage: Stage,
    variant: str = "bundled",
    size: str = "bundled",
    precision: str = "float32",
    seed: int = 0,
) -> TrainConfig:
    """Fair CRPS of two members, of the fields and of their scales; each part is a run with a best of its own."""
    chosen = VARIANTS[variant]
    config = chosen.network(network(size))
    usual = {"members": 2, "loss": "crps", "bands": SIZES[size].bands, "band_weight": BAND_WEIGHT, **chosen.training}
    if part.still:
        config, usual = dataclasses.replace(config, noise_dim=0), usual | MSE
    elif part.members and config.noise_dim:
        usual |= {"members": part.members}
    return TrainConfig(
        network=config,
        stages=(stage,),
        **periods,
        variables=VARIABLES,
        **usual,
        channel_weights="uniform",
        adam_rate=0.2,
        ema=0.998,
        precision=precision,
        seed=seed if part.still else seed + stage.rollout,
        validate_every=max(1, stage.updates // (4 if stage.rollout == 1 else 2)),
        validation_samples=24,
        save_every=10**9,
    )


# ------------------------------------------------------------------------------------------------- data on the device


class Resident:
    """What `xmosaic.training.loader.Loader` is to a training run, with all data on the device, turned and mirrored.

    Parameters
    ----------
    device : str
        Where the data are; the others as the loader has them.
    """

    waited = 0.0
    # of the latest data and statistics: one training run follows another
    _kept: tuple[Any, torch.Tensor] | None = None

    def __init__(
        self,
        data: TrainingData,
        windows: Windows,
        rollout: int,
        batch_size: int,
        seed: int,
        mean: np.ndarray,
        std: np.ndarray,
        device: str = "cpu",
        **_: Any,
    ) -> None:
        self.device = device
        self.data, self.windows, self.rollout, self.batch_size, self.seed = data, windows, rollout, batch_size, seed
        self.steps = np.arange(1 - data.history, rollout + 1)
        self.states = self._resident(mean, std)
        odd = np.array([c.variable in ODD for c in data.schema.state])
        self.sign = self._tensor(np.where(odd, -1.0, 1.0))
        # x → −x in physical units is n → −n − 2 mean/std in normalised ones
        self.offset = self._tensor(np.where(odd, -2 * np.asarray(mean) / np.asarray(std), 0.0))
        self._orders: dict[int, np.ndarray] = {}

    def __enter__(self) -> Resident:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def load(self, starts: pd.DatetimeIndex) -> Batch:
        """Samples as they are."""
        each = [starts + k * self.data.step for k in range(self.rollout)]
        clock = torch.tensor(np.array([clock_of(t) for t in each], np.float32))
        return self._batch(self._windows(starts), starts, np.arange(len(starts)), clock)

    def batches(self, first_update: int = 0) -> Iterator[Batch]:
        """Samples in an endless order, each turned, mirrored or not, and on a random date: dates mean nothing here."""
        for update in itertools.count(first_update):
            positions = update * self.batch_size + np.arange(self.batch_size)
            starts = self.windows.starts[[self.place(p) for p in positions.tolist()]]
            draw = np.random.default_rng([self.seed, 1, update])
            turn = torch.from_numpy(draw.integers(self.data.grid.shape[1], size=len(starts)))
            mirror = torch.from_numpy(draw.random(len(starts)) < 0.5)
            clock = torch.from_numpy(draw.random((1, len(starts), 2), dtype=np.float32))
            states = self.turned(self._windows(starts), turn.to(self.device), mirror.to(self.device))
            yield self._batch(states, starts, positions, clock.expand(self.rollout, -1, -1))

    def place(self, position: int) -> int:
        """Which start stands at a position of the endless order: one permutation per epoch."""
        epoch, place = divmod(position, len(self.windows))
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.windows))
        return int(self._orders[epoch][place])

    def turned(self, states: torch.Tensor, turn: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
        """States (sample, time, longitude, latitude, channel), each turned and, where `mirror` says so, mirrored."""
        sample = torch.arange(len(states), device=states.device)[:, None, None]
        columns = (torch.arange(states.shape[2], device=states.device) + turn[:, None]) % states.shape[2]
        rows = torch.arange(states.shape[3], device=states.device).expand(len(states), -1)
        rows = torch.where(mirror[:, None], rows.flip(1), rows)
        states = states[sample, :, columns[:, :, None], rows[:, None, :]].movedim(3, 1)
        return torch.where(mirror[:, None, None, None, None], states * self.sign + self.offset, states)

    def _windows(self, starts: pd.DatetimeIndex) -> torch.Tensor:
        times = pd.DatetimeIndex([t + k * self.data.step for t in starts for k in self.steps.tolist()])
        places = torch.from_numpy(self.data.times.get_indexer(times)).to(self.device)
        return self.states[places].unflatten(0, (len(starts), len(self.steps)))

    def _batch(
        self, states: torch.Tensor, starts: pd.DatetimeIndex, positions: np.ndarray, clock: torch.Tensor
    ) -> Batch:
        history = self.data.history
        return Batch(states[:, :history], states[:, history:], None, clock, starts, positions.astype(np.int64))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.device)

    def _resident(self, mean: np.ndarray, std: np.ndarray) -> torch.Tensor:
        """Normalised states of all times, (time, longitude, latitude, channel)."""
        key = (self.data.parts[0].ds, self.device, np.asarray(mean).tobytes(), np.asarray(std).tobytes())
        kept = type(self)._kept
        if kept is not None and kept[0][0] is key[0] and kept[0][1:] == key[1:]:
            return kept[1]
        data, centre, scale = self.data, self._tensor(mean), self._tensor(std)
        states = torch.empty(len(data.times), *data.grid.shape[::-1], len(data.channels), device=self.device)
        for first in range(0, len(data.times), 256):
            fields = torch.from_numpy(data.fields(data.times[first : first + 256])).to(self.device)
            states[first : first + 256] = (fields.permute(0, 3, 2, 1) - centre) / scale
        if not bool(torch.isfinite(states).all()):
            raise SystemExit("The data hold NaN or infinite values")
        type(self)._kept = (key, states)
        return states


def clock_of(times: pd.DatetimeIndex) -> np.ndarray:
    """Fractions of day and year, (time, 2)."""
    day = (times - times.normalize()) / pd.Timedelta("1D")
    return np.stack([day, (times.day_of_year - 1) / (365 + times.is_leap_year)], axis=-1)


def validations(history: xr.Dataset) -> Iterator[str]:
    """A line for each validation: CRPS, spread/skill as a mean over channels, power from the lowest to the highest."""
    for i, update in enumerate(history["validation_update"].values):
        one = history.isel(validation_update=i)
        yield (
            f"update {update}: CRPS {float(one['validation_crps']):.4f}, spread/skill "
            f"{float(one['spread_skill'].mean()):.3f}, power at small scales {float(one['power_ratio'].min()):.3f} … "
            f"{float(one['power_ratio'].max()):.3f} of the truth's"
        )


# --------------------------------------------------------------------------------------------------------------- run


def open_data(store: Path) -> xr.Dataset:
    """All that the model sees, in memory."""
    return xr.open_zarr(store, chunks=None, consolidated=False)[list(VARIABLES)].sel(level=list(LEVELS)).load()


def periods_of(ds: xr.Dataset) -> dict[str, tuple[str, str]]:
    """Those of `simulate.periods`, from the years that are there."""
    return simulate.periods(len(np.unique(ds["time"].dt.year)))


def on(device: str) -> Callable[..., Resident]:
    """A loader with its data on a device: at 16 small samples per update, threads would not keep up."""
    return functools.partial(Resident, device=device)


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


def fit_updates(minutes: float, parts: Sequence[Part], seconds: Sequence[float]) -> list[int]:
    """Updates of each part that fill the minutes; a twentieth is left for validation.

    >>> fit_updates(4.0, PLANS["direct"], [0.05, 0.1])
    [3420, 570]
    """
    whole = 60 * minutes * 0.95
    return [max(20, int(whole * part.share / each)) for part, each in zip(parts, seconds, strict=True)]


def train(
    store: Path,
    out: Path,
    minutes: float,
    name: str = "bundled",
    device: str | None = None,
    batch: int = BATCH,
    seed: int = 0,
    plan: str = "direct",
    size: str = "bundled",
) -> Path:
    """Train a variant for so many minutes; the file of the model, weights in 16 bits."""
    began, parts = time.perf_counter(), PLANS[plan]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    ds = fitting(open_data(store), size)
    precision = "bfloat16" if device.startswith("cuda") else "float32"
    torch.set_float32_matmul_precision("high")
    make = functools.partial(settings, periods_of(ds), variant=name, size=size, precision=precision, seed=seed)
    speed = measure(ds, make, parts, batch, device)
    counts = fit_updates(minutes, parts, speed)
    each = ", ".join(f"{s * 1e3:.1f}" for s in speed)
    print(f"{name}, {plan} plan: {each} ms per update, {counts} updates", flush=True)
    print(f"{time.perf_counter() - began:.0f} s until training begins", flush=True)
    began, model = time.perf_counter(), None
    for part, count, folder in zip(parts, counts, folders(out, name, plan), strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        config, loader = make(part, part.stage(batch, count)), on(device)
        model = xmosaic.train(ds, config, out=folder, init=model, device=device, loader=loader, progress=True)
        print(*validations(model.history), sep="\n", flush=True)
    facts = {"minutes": (time.perf_counter() - began) / 60, "milliseconds_per_update": [1e3 * s for s in speed]}
    facts |= {"updates": counts, "samples_per_update": [part.samples(batch) for part in parts]}
    facts |= {} if plan == "direct" else {"plan": plan}
    facts["device"] = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    return export(out, name, plan, facts)


def fitting(ds: xr.Dataset, size: str) -> xr.Dataset:
    """The data, if they have the grid of a size."""
    wanted, found = (SIZES[size].longitudes, SIZES[size].latitudes), (ds.sizes["longitude"], ds.sizes["latitude"])
    if found != wanted:
        raise SystemExit(
            f"The data have {found[0]} × {found[1]} points, the {size} size takes {wanted[0]} × {wanted[1]}"
        )
    return ds


def folders(out: Path, name: str, plan: str) -> list[Path]:
    """Of the parts of a plan."""
    return [out / f"run_{name}_{part.name}" for part in PLANS[plan]]


def latest(out: Path, name: str, plan: str) -> Path:
    """The best model of the last part that has one; what an earlier run left of later parts is older."""
    made = [path for folder in folders(out, name, plan) if (path := folder / "model.safetensors").exists()]
    if not made:
        raise SystemExit(f"No part of the {plan} plan for {name} has left a model in {out}")
    return max(made, key=lambda path: path.stat().st_mtime)


def export(out: Path, name: str, plan: str = "direct", facts: dict[str, Any] | None = None) -> Path:
    """The best model of the last part that has one, as a small file: weights in 16 bits, with its card."""
    model = read_model(latest(out, name, plan))
    about = {
        **model.provenance,
        "name": name,
        "title": f"{VARIANTS[name].title}: Held–Suarez benchmark atmosphere, steps of 24 h",
        "license": "BSD-3-Clause",
        "data": "simulated: Held and Suarez (1994) with dinosaur, examples/held_suarez; not the Earth's weather",
        "symmetries": "trained on samples turned by random longitudes, mirrored at the equator, and on random dates",
        "run": facts or {"stopped": "before its last update; the best until then"},
    }
    half = model.network.half()
    made = Model(half, model.schema, model.grid, model.mean, model.std, model.static, about)
    target = out / f"{name}.safetensors"
    print(made.save(target), f"{target.stat().st_size / 1e6:.1f} MB", json.dumps(about["run"]), flush=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--variant", choices=VARIANTS, default="bundled", help="what variants.py says of it")
    parser.add_argument("--plan", choices=PLANS, default="direct", help="warm: squared error first, then members")
    parser.add_argument("--size", choices=SIZES, default="bundled", help="of the network and of the data's grid")
    parser.add_argument("--export", action="store_true", help="only write the best weights of a run that was stopped")
    parser.add_argument("--device")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples per update")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    if o.export:
        export(o.out, o.variant, o.plan)
    else:
        train(o.store, o.out, o.minutes, o.variant, o.device, o.batch, o.seed, o.plan, o.size)


if __name__ == "__main__":
    main()
