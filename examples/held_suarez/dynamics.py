"""The atmosphere of Held and Suarez (1994), run by dinosaur: ``python dynamics.py PLAN.json FOLDER``.

A process of its own that knows JAX and neither torch nor xmosaic: both bring CUDA libraries. `simulate.py` writes the
plan, starts it and makes a Zarr store of what it leaves in FOLDER.

doi:10.1175/1520-0477(1994)075<1825:APFTIO>2.0.CO;2
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dinosaur
import jax
import jax.numpy as jnp
import numpy as np
from dinosaur import (
    coordinate_systems,
    held_suarez,
    primitive_equations,
    primitive_equations_states,
    scales,
    sigma_coordinates,
    spherical_harmonic,
    time_integration,
    units,
)
from tqdm import tqdm

LAYERS = 24
# of the paper: the shortest wave is damped by e in 0.1 day, by the Laplacian to the power 4
DAMPING_DAYS, DAMPING_ORDER = 0.1, 4
REFERENCE, START = 288.0, 250.0  # temperatures [K]: of the semi-implicit scheme, and at the beginning
SURFACE_PRESSURE, BUMP = 1e5, 1e3  # mean, and height of the perturbation that each seed puts elsewhere [Pa]
DAY = 86400.0


class Core(NamedTuple):
    """One truncation: grid, equations and one step."""

    coords: Any
    specs: Any
    step: Any
    steps_per_day: int


class Units(NamedTuple):
    """What 1 of the core's units is in SI."""

    length: float
    time: float
    temperature: float
    pressure: float

    @property
    def speed(self) -> float:
        return self.length / self.time


def make_grid(truncation: int, nodes: int, transform: str) -> Any:
    """Gaussian grid with so many rows in each hemisphere."""
    kind = (
        spherical_harmonic.FastSphericalHarmonics if transform == "fast" else spherical_harmonic.RealSphericalHarmonics
    )
    return spherical_harmonic.Grid.construct(truncation, nodes, spherical_harmonics_impl=kind)


def make_core(truncation: int, nodes: int, minutes: float, transform: str) -> Core:
    """Equations, forcing, damping and time step of a truncation."""
    specs = units.SimUnits.from_si()
    vertical = sigma_coordinates.SigmaCoordinates.equidistant(LAYERS)
    coords = coordinate_systems.CoordinateSystem(make_grid(truncation, nodes, transform), vertical)
    reference = specs.nondimensionalize(REFERENCE * scales.units.degK) * np.ones(LAYERS)
    flat = np.zeros(coords.horizontal.modal_shape)
    primitive = primitive_equations.PrimitiveEquationsSigma(reference, flat, coords, specs)
    forcing = held_suarez.HeldSuarezForcingSigma(coords, specs, reference)
    equations = time_integration.compose_equations([primitive, forcing])
    dt = specs.nondimensionalize(minutes * scales.units.minute)
    tau = specs.nondimensionalize(DAMPING_DAYS * scales.units.day)
    damping = time_integration.horizontal_diffusion_step_filter(coords.horizontal, dt, tau, DAMPING_ORDER)
    step = time_integration.step_with_filters(time_integration.imex_rk_sil3(equations, dt), [damping])
    steps = round(24 * 60 / minutes)
    if steps * minutes != 24 * 60:
        raise SystemExit(f"A day has no whole number of steps of {minutes} minutes")
    return Core(coords, specs, step, steps)


def units_of(specs: Any) -> Units:
    u = scales.units
    wanted = (u.meter, u.second, u.degK, u.pascal)
    return Units(*(float(specs.dimensionalize(1.0, unit).m) for unit in wanted))


def initial_state(core: Core, seed: int) -> Any:
    """Rest at 250 K, with a bump of surface pressure whose place is the seed's."""
    pascal = scales.units.pascal
    make, _ = primitive_equations_states.isothermal_rest_atmosphere(
        core.coords,
        core.specs,
        tref=REFERENCE * scales.units.degK,
        p0=SURFACE_PRESSURE * pascal,
        p1=BUMP * pascal,
    )
    state = make(jax.random.PRNGKey(seed))
    cooler = core.specs.nondimensionalize((START - REFERENCE) * scales.units.delta_degC)
    warmth = spherical_harmonic.add_constant(state.temperature_variation, cooler)
    return state.replace(temperature_variation=warmth)


# ---------------------------------------------------------------------------------------------------- one time's fields


def interpolate(log_level: jax.Array, log_pressure: jax.Array, fields: jax.Array) -> jax.Array:
    """Fields on one pressure surface, linear in log-pressure, constant beyond the outermost layers.

    log_pressure (layer, …) ascending, fields (field, layer, …) → (field, …).
    """
    below, part = _between(log_level, log_pressure)
    upper, lower = _take(fields, below - 1), _take(fields, below)
    return upper + part * (lower - upper)


def geopotential_at(
    log_level: jax.Array, log_pressure: jax.Array, temperature: jax.Array, geopotential: jax.Array, gas: float
) -> jax.Array:
    """Geopotential on a pressure surface: hydrostatic from the layer below, temperature as `interpolate` has it."""
    below, _ = _between(log_level, log_pressure)
    here = interpolate(log_level, log_pressure, temperature[None])[0]
    bottom = jnp.take_along_axis(log_pressure, below[None], axis=0)[0]
    inside = jnp.clip(log_level, log_pressure[0], log_pressure[-1])
    base_temperature, base = _take(temperature[None], below)[0], _take(geopotential[None], below)[0]
    return base + gas * ((base_temperature + here) / 2 * (bottom - inside) + here * (inside - log_level))


def _between(log_level: jax.Array, log_pressure: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Number of the layer just below a pressure, and how far down from the one above it is."""
    below = jnp.clip((log_pressure < log_level).sum(axis=0), 1, log_pressure.shape[0] - 1)
    top = jnp.take_along_axis(log_pressure, below[None] - 1, axis=0)[0]
    bottom = jnp.take_along_axis(log_pressure, below[None], axis=0)[0]
    return below, jnp.clip((log_level - top) / (bottom - top), 0.0, 1.0)


def _take(fields: jax.Array, layer: jax.Array) -> jax.Array:
    return jnp.take_along_axis(fields, layer[None, None], axis=1)[:, 0]


def vertical_velocity(
    divergence: jax.Array, advection: jax.Array, surface_pressure: jax.Array, sigma: np.ndarray, thickness: np.ndarray
) -> jax.Array:
    """ω = dp/dt at the layers' centres from continuity: p v·∇ln pₛ − pₛ ∫₀^σ (D + v·∇ln pₛ) dσ; upward is negative.

    divergence, advection (layer, …): D and v·∇ln pₛ; the result has pₛ's unit over theirs.
    """
    shape = (-1,) + (1,) * (divergence.ndim - 1)
    outflow = (divergence + advection) * thickness.reshape(shape)
    above = jnp.cumsum(outflow, axis=0) - outflow / 2  # down to the middle of the layer
    return surface_pressure * (sigma.reshape(shape) * advection - above)


def native_fields(core: Core, state: Any) -> dict[str, jax.Array]:
    """Physical fields on the core's own grid and layers, SI, (layer, longitude, latitude)."""
    horizontal, u = core.coords.horizontal, units_of(core.specs)
    diagnosed = primitive_equations.compute_diagnostic_state_sigma(state, core.coords)
    pressure = jnp.exp(horizontal.to_nodal(state.log_surface_pressure)) * u.pressure  # (1, longitude, latitude)
    temperature = (diagnosed.temperature_variation * u.temperature) + REFERENCE
    weights = primitive_equations.get_geopotential_weights_sigma(core.coords.vertical, gas_constant(core))
    vertical = core.coords.vertical
    omega = vertical_velocity(
        diagnosed.divergence / u.time,
        diagnosed.u_dot_grad_log_sp / u.time,
        pressure,
        np.asarray(vertical.centers),
        np.asarray(vertical.layer_thickness),
    )
    east, north = (c * u.speed / horizontal.cos_lat for c in diagnosed.cos_lat_u)
    return {
        "surface_pressure": pressure[0],
        "temperature": temperature,
        "u": east,
        "v": north,
        "omega": omega,
        "geopotential": jnp.einsum("kl,l...->k...", weights, temperature, precision="highest"),
    }


def gas_constant(core: Core) -> float:
    """Of dry air [J kg-1 K-1]."""
    u = units_of(core.specs)
    return float(core.specs.R * u.speed**2 / u.temperature)


def pressure_fields(core: Core, native: dict[str, jax.Array], levels: tuple[float, ...]) -> jax.Array:
    """All channels on the core's grid, (channel, longitude, latitude): surface fields, then level by level.

    Surface: lowest layer's temperature, u and v, surface pressure. Level: geopotential, temperature, u, v, ω.
    """
    sigma = jnp.asarray(core.coords.vertical.centers)
    log_pressure = jnp.log(sigma)[:, None, None] + jnp.log(native["surface_pressure"])
    stacked = jnp.stack([native[name] for name in ("temperature", "u", "v", "omega")])
    rows = [native[name][-1][None] for name in ("temperature", "u", "v")] + [native["surface_pressure"][None]]
    for level in levels:
        log_level = jnp.log(level * 100.0)
        height = geopotential_at(
            log_level, log_pressure, native["temperature"], native["geopotential"], gas_constant(core)
        )
        rows += [height[None], interpolate(log_level, log_pressure, stacked)]
    return jnp.concatenate(rows)


def coarse_grain(fields: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Area means over the cells of another grid: (…, longitude, latitude) → (…, latitude', longitude')."""
    return jnp.einsum("ry,cx,...xy->...rc", rows, columns, fields, precision="highest")


def global_means(core: Core, native: dict[str, jax.Array]) -> jax.Array:
    """Mean surface pressure [Pa], total energy [J m-2] and kinetic energy [J m-2]."""
    quadrature = jnp.asarray(core.coords.horizontal.quadrature_weights)
    thickness = jnp.asarray(core.coords.vertical.layer_thickness)[:, None, None]
    gravity = float(core.specs.g * units_of(core.specs).length / units_of(core.specs).time ** 2)
    heat = gas_constant(core) / core.specs.kappa * native["temperature"]
    kinetic = (native["u"] ** 2 + native["v"] ** 2) / 2
    mass = native["surface_pressure"] / gravity
    columns = jnp.stack([native["surface_pressure"], mass * (thickness * (heat + kinetic)).sum(0)])
    columns = jnp.concatenate([columns, (mass * (thickness * kinetic).sum(0))[None]])
    return (columns * quadrature).sum((1, 2)) / quadrature.sum()


def kinetic_spectrum(core: Core, state: Any) -> jax.Array:
    """Kinetic energy by total wavenumber [m2 s-2], (layer, wavenumber)."""
    horizontal, u = core.coords.horizontal, units_of(core.specs)
    eigenvalues = np.asarray(horizontal.laplacian_eigenvalues)
    factor = np.divide(-1.0, eigenvalues, out=np.zeros_like(eigenvalues), where=eigenvalues != 0)
    power = (state.vorticity**2 + state.divergence**2).sum(axis=1)
    return power * factor / 2 * u.speed**2 / (4 * np.pi)


# ------------------------------------------------------------------------------------------------------------- the run


def one_day(core: Core, state: Any) -> tuple[Any, jax.Array]:
    """A day's steps, then the mean surface pressure set back to where it was; what it had drifted [Pa]."""
    state = time_integration.repeated(core.step, core.steps_per_day)(state)
    horizontal, u = core.coords.horizontal, units_of(core.specs)
    pressure = jnp.exp(horizontal.to_nodal(state.log_surface_pressure))
    quadrature = jnp.asarray(horizontal.quadrature_weights)
    mean = (pressure * quadrature).sum() / quadrature.sum() * u.pressure
    back = spherical_harmonic.add_constant(state.log_surface_pressure, jnp.log(SURFACE_PRESSURE / mean))
    return state.replace(log_surface_pressure=back), mean - SURFACE_PRESSURE


def spin_chunk(core: Core, days: int, state: Any) -> Any:
    """Days without output."""
    return jax.lax.scan(lambda s, _: (one_day(core, s)[0], None), state, None, length=days)[0]


def output_chunk(core: Core, days: int, plan: Any, state: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Days with output once each, or several times: plan is (levels, rows, columns, outputs per day)."""
    levels, rows, columns, each = plan
    part = core._replace(steps_per_day=core.steps_per_day // each)

    def advance(state: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
        state, drift = one_day(part, state)
        native = native_fields(core, state)
        out = {
            "fields": coarse_grain(pressure_fields(core, native, levels), rows, columns),
            "means": jnp.append(global_means(core, native), drift),
            "spectrum": kinetic_spectrum(core, state),
            "zonal": jnp.stack([native[name].mean(1) for name in ("u", "temperature")]),
        }
        return state, out

    state, out = jax.lax.scan(advance, state, None, length=days * each)
    # of these the mean over the days is enough
    return state, {**out, "spectrum": out["spectrum"].mean(0), "zonal": out["zonal"].mean(0)}


def to_truncation(state: Any, old: Core, new: Core) -> Any:
    """The same fields at another truncation."""
    change = coordinate_systems.get_spectral_interpolate_fn(old.coords, new.coords)
    state = jax.vmap(change)(state)
    return jax.vmap(partial(jax.tree.map, new.coords.horizontal.clip_wavenumbers))(state)


def spin_up(settings: dict[str, Any], core: Core) -> Any:
    """From rest at a low truncation, then on to the one that counts: states of all seeds."""
    low = make_core(
        settings["spin_truncation"], settings["spin_nodes"], settings["spin_minutes"], settings["transform"]
    )
    state = spread(jax.vmap(partial(initial_state, low))(jnp.asarray(settings["seeds"])))
    state = _spin(low, state, settings["spin_days"], f"spin-up T{settings['spin_truncation']}")
    state = to_truncation(state, low, core)
    return _spin(core, state, settings["settle_days"], f"settling T{settings['truncation']}")


def spread(state: Any) -> Any:
    """Trajectories over all devices, as many of them as have equal shares: they don't know each other."""
    count = jax.tree.leaves(state)[0].shape[0]
    devices = jax.devices()[: max(n for n in range(1, len(jax.devices()) + 1) if count % n == 0)]
    mesh = jax.sharding.Mesh(np.array(devices), ("trajectory",))
    share = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("trajectory"))
    print(f"{count} trajectories on {len(devices)} device{'s' * (len(devices) > 1)}", flush=True)
    return jax.tree.map(lambda x: jax.device_put(x, share), state)


def _spin(core: Core, state: Any, days: int, label: str) -> Any:
    if not days:
        return state
    chunk = max(d for d in range(1, min(days, 20) + 1) if days % d == 0)
    run = jax.jit(jax.vmap(partial(spin_chunk, core, chunk)))
    with tqdm(total=days, desc=label, unit="day", mininterval=5) as bar:
        for _ in range(days // chunk):
            state = run(state)
            _check(state, label)
            bar.update(chunk)
    return state


def _check(state: Any, label: str) -> None:
    bad = [i for i, ok in enumerate(np.isfinite(np.asarray(state.log_surface_pressure)).all((1, 2, 3))) if not ok]
    if bad:
        raise SystemExit(f"{label}: trajectories {bad} have blown up; take a shorter time step")


def run(settings: dict[str, Any], folder: Path) -> None:
    """Write ``fields.npy`` (trajectory, time, channel, latitude, longitude) and ``diagnostics.npz``."""
    began = time.perf_counter()
    print(f"dinosaur {dinosaur.__version__}, jax {jax.__version__}, {jax.devices()[0]}", flush=True)
    core = make_core(settings["truncation"], settings["nodes"], settings["minutes"], settings["transform"])
    state = spin_up(settings, core)
    spun = time.perf_counter()
    rows, columns = (jnp.asarray(np.load(folder / f"{name}.npy"), jnp.float32) for name in ("rows", "columns"))
    plan = (tuple(settings["levels"]), rows, columns, settings["outputs_per_day"])
    days, chunk, each = settings["days"], settings["chunk_days"], settings["outputs_per_day"]
    channels = 4 + 5 * len(settings["levels"])
    shape = (len(settings["seeds"]), days * each, channels, rows.shape[0], columns.shape[0])
    fields = np.lib.format.open_memmap(folder / "fields.npy", mode="w+", dtype=np.float32, shape=shape)
    advance = jax.jit(jax.vmap(partial(output_chunk, core, chunk, plan)))
    found: dict[str, list[np.ndarray]] = {"means": [], "spectrum": [], "zonal": []}
    with tqdm(total=days, desc=f"T{settings['truncation']}, {shape[0]} trajectories", unit="day", mininterval=5) as bar:
        for first in range(0, days, chunk):
            state, out = advance(state)
            fields[:, first * each : (first + chunk) * each] = np.asarray(out["fields"])
            for name, parts in found.items():
                parts.append(np.asarray(out[name]))
            _check(state, f"day {first + chunk}")
            bar.update(chunk)
            done = first + chunk
            if time.perf_counter() - began > settings["limit_seconds"] and done < days:
                print(f"The time is over: {done} of {days} days of each trajectory", flush=True)
                break
    fields.flush()
    seconds = {"spin_up": spun - began, "output": time.perf_counter() - spun}
    _write_diagnostics(folder, core, found, {"days": done, "seconds": seconds})


def _write_diagnostics(folder: Path, core: Core, found: dict[str, list[np.ndarray]], facts: dict[str, Any]) -> None:
    np.savez(
        folder / "diagnostics.npz",
        means=np.concatenate(found["means"], axis=1),  # (trajectory, time, 4): pₛ, energy, kinetic energy, drift
        spectrum=np.mean(found["spectrum"], axis=(0, 1)),  # (layer, wavenumber)
        zonal=np.mean(found["zonal"], axis=(0, 1)),  # (u and T, layer, latitude)
        sigma=np.asarray(core.coords.vertical.centers),
        latitude=np.rad2deg(np.asarray(core.coords.horizontal.latitudes)),
    )
    versions = {"dinosaur": dinosaur.__version__, "jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}
    (folder / "dynamics.json").write_text(json.dumps({**versions, **facts}))


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
