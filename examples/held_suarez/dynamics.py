"""The atmosphere of Held and Suarez (1994), run by dinosaur: ``python dynamics.py PLAN.json FOLDER``.

A process of its own that knows JAX and neither torch nor xmosaic: both bring CUDA libraries. `simulate.py` writes the
plan, starts one of these on each GPU, and makes Zarr stores of what they leave in FOLDER.

doi:10.1175/1520-0477(1994)075<1825:APFTIO>2.0.CO;2
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import dinosaur
import jax
import jax.numpy as jnp
import numpy as np
from core import Core, initial_state, make_core, one_day
from dinosaur import coordinate_systems
from fields import coarse_grain, global_means, kinetic_spectrum, native_fields, pressure_fields
from tqdm import tqdm

Grids = dict[str, tuple[jax.Array, jax.Array]]  # area fractions of rows and columns by the grid's name


def spin_chunk(core: Core, days: int, state: Any) -> Any:
    """Days without output."""
    return jax.lax.scan(lambda s, _: (one_day(core, s)[0], None), state, None, length=days)[0]


def output_chunk(core: Core, days: int, plan: tuple[Any, Grids, int], state: Any) -> tuple[Any, dict[str, Any]]:
    """Days with output once each, or several times: plan is (levels, grids, outputs per day)."""
    levels, grids, each = plan
    part = core._replace(steps_per_day=core.steps_per_day // each)

    def advance(state: Any, _: None) -> tuple[Any, dict[str, Any]]:
        state, drift = one_day(part, state)
        native = native_fields(core, state)
        fine = pressure_fields(core, native, levels)
        out = {
            "fields": {name: coarse_grain(fine, *areas) for name, areas in grids.items()},
            "means": jnp.append(global_means(core, native), drift),
            "spectrum": kinetic_spectrum(core, state),
            "zonal": jnp.stack([native[name].mean(1) for name in ("u", "temperature")]),
        }
        return state, out

    state, out = jax.lax.scan(advance, state, None, length=days * each)
    # of these the mean over the days is enough
    return state, {**out, "spectrum": out["spectrum"].mean(0), "zonal": out["zonal"].mean(0)}


def to_truncation(old: Core, new: Core, state: Any) -> Any:
    """The same fields at another truncation."""
    change = coordinate_systems.get_spectral_interpolate_fn(old.coords, new.coords)
    return jax.tree.map(new.coords.horizontal.clip_wavenumbers, change(state))


def spin_up(settings: dict[str, Any], core: Core, seeds: list[int]) -> Any:
    """From rest at a low truncation, then at the one that counts: states of some seeds."""
    low = make_core(
        settings["spin_truncation"], settings["spin_nodes"], settings["spin_minutes"], settings["transform"]
    )
    # operations that aren't compiled together would be compiled one by one
    state = jax.jit(jax.vmap(partial(initial_state, low)))(jnp.asarray(seeds))
    days = settings["spin_days"]
    chunk = whole_share(days, 20)
    run = jax.jit(jax.vmap(partial(spin_chunk, low, chunk)))
    with tqdm(total=days, desc=f"spin-up T{settings['spin_truncation']}", unit="day", mininterval=5) as bar:
        for _ in range(0, days, chunk):
            state = run(state)
            check_finite(state, "spin-up")
            bar.update(chunk)
    return jax.jit(jax.vmap(partial(to_truncation, low, core)))(state)


def whole_share(total: int, most: int) -> int:
    """Largest divisor of a number up to another.

    >>> whole_share(360, 20), whole_share(14, 20), whole_share(0, 20)
    (20, 14, 1)
    """
    return max(d for d in range(1, max(1, min(total, most)) + 1) if total % d == 0)


def check_finite(state: Any, label: str) -> None:
    bad = [i for i, ok in enumerate(np.isfinite(np.asarray(state.log_surface_pressure)).all((1, 2, 3))) if not ok]
    if bad:
        raise SystemExit(f"{label}: trajectories {bad} of this process have blown up; take a shorter time step")


def read_grids(settings: dict[str, Any], folder: Path) -> Grids:
    """Area fractions, which `simulate` has left."""
    return {
        name: tuple(jnp.asarray(np.load(folder / f"{kind}_{name}.npy"), jnp.float32) for kind in ("rows", "columns"))
        for name in settings["grids"]
    }


def run(settings: dict[str, Any], folder: Path) -> None:
    """Fill this process's trajectories of FOLDER/fields_GRID.npy; write ``diagnostics_PART.npz``, ``part_PART.json``.

    The files have dims (trajectory, time, channel, latitude, longitude); a part's trajectories stand one after another.
    """
    began = time.perf_counter()
    print(f"dinosaur {dinosaur.__version__}, jax {jax.__version__}, {jax.devices()[0]}", flush=True)
    core = make_core(settings["truncation"], settings["nodes"], settings["minutes"], settings["transform"])
    state = spin_up(settings, core, settings["seeds"])
    grids, each, chunk = read_grids(settings, folder), settings["outputs_per_day"], settings["chunk_days"]
    files = {name: np.load(folder / f"fields_{name}.npy", mmap_mode="r+") for name in grids}
    mine = slice(settings["first"], settings["first"] + len(settings["seeds"]))
    advance = jax.jit(jax.vmap(partial(output_chunk, core, chunk, (tuple(settings["levels"]), grids, each))))
    # days at the truncation that counts, whose output is thrown away: one program to compile instead of two
    for _ in range(0, settings["settle_days"], chunk):
        state, _ = advance(state)
        check_finite(state, "settling")
    spun, done = time.perf_counter(), 0
    found: dict[str, list[np.ndarray]] = {"means": [], "spectrum": [], "zonal": []}
    with tqdm(total=settings["days"], desc=f"T{settings['truncation']}", unit="day", mininterval=5) as bar:
        while done < settings["days"]:
            state, out = advance(state)
            for name, file in files.items():
                file[mine, done * each : (done + chunk) * each] = np.asarray(out["fields"][name])
            for name, parts in found.items():
                parts.append(np.asarray(out[name]))
            done += chunk
            check_finite(state, f"day {done}")
            bar.update(chunk)
            if time.perf_counter() - began > settings["limit_seconds"] and done < settings["days"]:
                print(f"The time is over: {done} of {settings['days']} days of each trajectory", flush=True)
                break
    for file in files.values():
        file.flush()
    seconds = {"spin_up": round(spun - began, 1), "output": round(time.perf_counter() - spun, 1)}
    write_diagnostics(folder, settings["part"], core, found, {"days": done, "seconds": seconds})


def write_diagnostics(
    folder: Path, part: int, core: Core, found: dict[str, list[np.ndarray]], facts: dict[str, Any]
) -> None:
    np.savez(
        folder / f"diagnostics_{part}.npz",
        means=np.concatenate(found["means"], axis=1),  # (trajectory, time, 4): pₛ, energy, kinetic energy, drift
        spectrum=np.mean(found["spectrum"], axis=0),  # (trajectory, layer, wavenumber)
        zonal=np.mean(found["zonal"], axis=0),  # (trajectory, u and T, layer, latitude)
        sigma=np.asarray(core.coords.vertical.centers),
        latitude=np.rad2deg(np.asarray(core.coords.horizontal.latitudes)),
    )
    versions = {"dinosaur": dinosaur.__version__, "jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}
    (folder / f"part_{part}.json").write_text(json.dumps({**versions, **facts}))


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
