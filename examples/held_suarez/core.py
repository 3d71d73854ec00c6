"""The spectral core of the benchmark atmosphere: equations, forcing, damping and one time step of dinosaur's."""

from __future__ import annotations

from typing import Any, NamedTuple

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

LAYERS = 24
# of the paper: the shortest wave is damped by e in 0.1 day, by the Laplacian to the power 4
DAMPING_DAYS, DAMPING_ORDER = 0.1, 4
REFERENCE, START = 288.0, 250.0  # temperatures [K]: of the semi-implicit scheme, and at the beginning
SURFACE_PRESSURE, BUMP = 1e5, 1e3  # mean, and height of the perturbation that each seed puts elsewhere [Pa]


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


def gas_constant(core: Core) -> float:
    """Of dry air [J kg-1 K-1]."""
    u = units_of(core.specs)
    return float(core.specs.R * u.speed**2 / u.temperature)


def one_day(core: Core, state: Any) -> tuple[Any, jax.Array]:
    """A day's steps, then the mean surface pressure set back to where it was; what it had drifted [Pa]."""
    state = time_integration.repeated(core.step, core.steps_per_day)(state)
    horizontal, u = core.coords.horizontal, units_of(core.specs)
    pressure = jnp.exp(horizontal.to_nodal(state.log_surface_pressure))
    quadrature = jnp.asarray(horizontal.quadrature_weights)
    mean = (pressure * quadrature).sum() / quadrature.sum() * u.pressure
    back = spherical_harmonic.add_constant(state.log_surface_pressure, jnp.log(SURFACE_PRESSURE / mean))
    return state.replace(log_surface_pressure=back), mean - SURFACE_PRESSURE
