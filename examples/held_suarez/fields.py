"""Fields of one time as weather data have them: on pressure levels, as area means of a coarser grid, and budgets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from core import REFERENCE, Core, gas_constant, units_of
from dinosaur import primitive_equations


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
