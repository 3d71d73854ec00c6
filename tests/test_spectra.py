"""Is the power at the right wavenumber, is none lost, and what do spectra say of a forecast's errors?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import sph_harm_y

from xmosaic.diagnostics.layout import weights_for
from xmosaic.diagnostics.spectra import (
    band_rmse,
    coherence,
    effective_resolution,
    spectra,
    spectral_error,
    spectral_log_error,
    spectral_ratio,
    spectral_slope,
)
from xmosaic.errors import AlignmentWarning, ArgumentError, DatasetError
from xmosaic.grid import LatLonGrid
from xmosaic.healpix import cell_centres, mesh_coordinates

SHARED = Path(__file__).parents[2] / "shared" / "data"
RADIUS = 6371.229


def fixture(name: str) -> xr.Dataset:
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is not here: fixtures that are not committed")
    return xr.open_dataset(SHARED / name)


def gaussian(nlon, nlat):
    return LatLonGrid(np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(nlat)[0])), np.arange(nlon) * 360 / nlon)


GRIDS = {
    "poles": LatLonGrid.equiangular(24, 13),
    "no poles": LatLonGrid.equiangular(24, 12, poles=False),
    "gaussian": gaussian(24, 12),
    "few columns": LatLonGrid.equiangular(15, 13),
    "few rows": LatLonGrid.equiangular(40, 9),
}
LARGEST = {"poles": 11, "no poles": 11, "gaussian": 11, "few columns": 7, "few rows": 7}
GRID = LatLonGrid.equiangular(24, 13)


def angles(grid):
    """Colatitude and longitude of every point [radian]."""
    return np.meshgrid(np.pi / 2 - np.deg2rad(grid.latitude), np.deg2rad(grid.longitude), indexing="ij")


def real_harmonic(degree, order, theta, phi):
    """Orthonormal and real: cosines for orders from 0 up, sines below."""
    complex_one = sph_harm_y(degree, abs(order), theta, phi)
    scale = 1.0 if order == 0 else np.sqrt(2)
    return scale * (complex_one.real if order >= 0 else complex_one.imag)


def random_field(grid, largest, seed=0):
    """A field of harmonics to `largest`, summed one by one, and its power per degree."""
    rng = np.random.default_rng(seed)
    values, power = np.zeros(grid.shape), np.zeros(largest + 1)
    for degree in range(largest + 1):
        for order in range(-degree, degree + 1):
            amplitude = rng.normal()
            values += amplitude * real_harmonic(degree, order, *angles(grid))
            power[degree] += amplitude**2 / (4 * np.pi)
    return on(grid, values), power


def on(grid, values, name="temperature", units="K"):
    extra = ("time", "number", "prediction_timedelta")[: np.ndim(values) - 2]
    return xr.DataArray(
        values, dims=(*extra, "latitude", "longitude"), coords=grid.coordinates(), name=name, attrs={"units": units}
    )


def winds(grid, u, v):
    return xr.Dataset(
        {
            "u_component_of_wind": on(grid, u, "u", "m s-1"),
            "v_component_of_wind": on(grid, v, "v", "m s-1"),
        }
    )


def from_unit_vectors(grid, function):
    """A function of the point in three dimensions on a grid."""
    theta, phi = angles(grid)
    return function(np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1))


def in_local_axes(grid, vectors):
    """Eastward and northward components of vectors in three dimensions."""
    theta, phi = angles(grid)
    east = np.stack([-np.sin(phi), np.cos(phi), 0 * phi], axis=-1)
    north = np.stack([-np.cos(theta) * np.cos(phi), -np.cos(theta) * np.sin(phi), np.sin(theta)], axis=-1)
    return (vectors * east).sum(-1), (vectors * north).sum(-1)


def rotation(seed=3):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def forecast_and_truth(members=3, starts=2, seed=0, noise=0.5):
    """A forecast of (time, number, lead) and analyses at all its valid times, on a small grid."""
    rng = np.random.default_rng(seed)
    leads = np.array([6, 12], "timedelta64[h]").astype("timedelta64[ns]")
    times = (np.datetime64("2020-01-01") + np.arange(starts) * np.timedelta64(6, "h")).astype("datetime64[ns]")
    analyses = (np.datetime64("2020-01-01") + np.arange(starts + 3) * np.timedelta64(6, "h")).astype("datetime64[ns]")
    dims = ("latitude", "longitude")
    truth, forecast = xr.Dataset(), xr.Dataset()
    for name, units in (("u_component_of_wind", "m s-1"), ("v_component_of_wind", "m s-1"), ("temperature", "K")):
        values = rng.normal(size=(len(analyses), *GRID.shape))
        truth[name] = xr.DataArray(values, {"time": analyses, **GRID.coordinates()}, ("time", *dims))
        truth[name].attrs["units"] = units
        at = np.arange(starts)[:, None] + np.array([1, 2])
        shape = (starts, members, 2, *GRID.shape)
        values = values[at][:, None] + noise * rng.normal(size=shape)
        coords = {"time": times, "number": np.arange(members) + 1, "prediction_timedelta": leads}
        forecast[name] = xr.DataArray(
            values, coords | GRID.coordinates(), ("time", "number", "prediction_timedelta", *dims)
        )
        forecast[name].attrs["units"] = units
    return forecast, truth


# ------------------------------------------------------------------------------------ is the power where it belongs?


@pytest.mark.parametrize(
    ("degree", "order"), [(0, 0), (1, 0), (1, -1), (7, 3), (60, 60), (118, -1), (119, 0), (119, 119)]
)
def test_single_harmonic_lands_in_its_own_bin(degree, order):
    grid = LatLonGrid.equiangular(240, 121)
    power = spectra(on(grid, real_harmonic(degree, order, *angles(grid))))
    assert power.sizes == {"total_wavenumber": 120}
    rest = power.values.copy()
    rest[degree] = 0
    np.testing.assert_allclose(power[degree], 1 / (4 * np.pi), rtol=1e-10)
    assert rest.max() < 1e-20 * float(power[degree])


@pytest.mark.parametrize("name", GRIDS)
def test_power_of_a_sum_of_harmonics_is_exact_to_the_last_degree(name):
    field, power = random_field(GRIDS[name], LARGEST[name])
    found = spectra(field)
    assert found.sizes == {"total_wavenumber": LARGEST[name] + 1}
    np.testing.assert_allclose(found, power, rtol=1e-10)


def test_analytic_field_on_121_by_240_is_exact_to_degree_119():
    """A plane wave: its coefficients are spherical Bessel functions."""
    from scipy.special import spherical_jn

    grid = LatLonGrid.equiangular(240, 121)
    direction = rotation()[0]
    power = spectra(on(grid, from_unit_vectors(grid, lambda x: np.cos(60 * x @ direction))))
    degree = np.arange(120)
    exact = np.where(degree % 2 == 0, (2 * degree + 1) * spherical_jn(degree, 60.0) ** 2, 0)
    np.testing.assert_allclose(power, exact, atol=1e-15)
    # the sum of squares over the sphere of cos(k·x) is (1 + sin(2k) / 2k) / 2
    np.testing.assert_allclose(power.sum(), (1 + np.sin(120) / 120) / 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("nlon", "nlat", "poles", "largest"), [(240, 121, True, 119), (240, 120, False, 119), (360, 181, True, 179)]
)
def test_highest_degree(nlon, nlat, poles, largest):
    grid = LatLonGrid.equiangular(nlon, nlat, poles)
    assert spectra(on(grid, np.zeros(grid.shape))).total_wavenumber[-1] == largest


def test_121_rows_cannot_hold_degree_120():
    """At odd orders the values of degree 120 are, on these rows, those of lower degrees; at even ones they vanish."""
    import ducc0

    theta, phi = np.meshgrid(np.linspace(0, np.pi, 121), np.arange(240) * np.pi / 120, indexing="ij")
    shape = {"spin": 0, "lmax": 119, "geometry": "CC"}
    for order, difference in ((1, 0), (2, 1)):
        values = real_harmonic(120, order, theta, phi)
        lower = ducc0.sht.analysis_2d(map=values[None], **shape)
        again = ducc0.sht.synthesis_2d(alm=lower, ntheta=121, nphi=240, **shape)[0]
        assert abs(abs(again - values).max() / abs(values).max() - difference) < 1e-10
    with pytest.raises(RuntimeError):
        ducc0.sht.analysis_2d(map=np.zeros((1, 121, 240)), spin=0, lmax=120, geometry="CC")


def test_zonal_wave_lands_in_its_own_bin():
    _, phi = angles(GRID)
    for wavenumber in range(13):
        power = spectra(on(GRID, np.cos(wavenumber * phi)), kind="zonal")
        mean_square = 1.0 if wavenumber in (0, 12) else 0.5
        expected = np.where(np.arange(13) == wavenumber, mean_square, 0)
        np.testing.assert_allclose(power, expected, atol=1e-15)


def test_last_bin_of_an_even_circle_counts_once():
    """(−1)^j has mean square 1; WeatherBench2's factor 2 for every wavenumber but 0 would make 2 of it."""
    values = np.broadcast_to((-1.0) ** np.arange(24), (13, 24))
    assert float(spectra(on(GRID, values), kind="zonal")[-1]) == pytest.approx(1.0, rel=1e-14)


def test_zonal_brute_force():
    """Sums written out, odd and even circles."""
    for nlon in (8, 9):
        grid = LatLonGrid.equiangular(nlon, 5)
        values = np.random.default_rng(1).normal(size=grid.shape)
        area = weights_for(on(grid, values)).sum("longitude").values
        expected = []
        for m in range(nlon // 2 + 1):
            power = 0.0
            for row, weight in zip(values, area, strict=True):
                for sign in {m, (nlon - m) % nlon}:
                    wave = np.exp(-2j * np.pi * sign * np.arange(nlon) / nlon)
                    power += weight * abs((row * wave).sum() / nlon) ** 2
            expected.append(power)
        np.testing.assert_allclose(spectra(on(grid, values), kind="zonal"), expected, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ is any power lost?


@pytest.mark.parametrize("name", ["poles", "no poles", "gaussian"])
def test_parseval_total(name):
    """The sum is the mean square over the sphere, here from Gaussian quadrature on 40 rows."""
    field, _ = random_field(GRIDS[name], LARGEST[name], seed=5)
    fine, _ = random_field(gaussian(80, 40), LARGEST[name], seed=5)
    weights = np.polynomial.legendre.leggauss(40)[1] / 2
    mean_square = (weights @ (fine.values**2)).mean()
    np.testing.assert_allclose(spectra(field).sum(), mean_square, rtol=1e-10)


global_grids = st.builds(
    lambda nlon, nlat, poles, offset, flip, centred: (nlon, nlat, poles, offset, flip, centred),
    st.integers(3, 26),
    st.integers(3, 14),
    st.booleans(),
    st.floats(-180, 180),
    st.booleans(),
    st.booleans(),
)


@given(global_grids)
@settings(max_examples=25, deadline=None)
def test_any_even_grid_keeps_all_power(case):
    nlon, nlat, poles, offset, flip, centred = case
    plain = LatLonGrid.equiangular(nlon, nlat, poles)
    longitude = np.asarray(plain.longitude) + offset
    longitude = (longitude + 180) % 360 - 180 if centred else longitude
    grid = LatLonGrid(plain.latitude[:: -1 if flip else 1], tuple(longitude))
    largest = min(nlat - (2 if poles else 1), (nlon - 1) // 2)
    field, power = random_field(grid, largest)
    np.testing.assert_allclose(spectra(field), power, rtol=1e-8, atol=1e-12)
    zonal = spectra(field, kind="zonal")
    assert zonal.sizes == {"zonal_wavenumber": nlon // 2 + 1}
    np.testing.assert_allclose(zonal.sum(), (field**2 * weights_for(field)).sum(), rtol=1e-12)


def test_uneven_rows_have_a_zonal_spectrum():
    grid = LatLonGrid((-80.0, -45.0, -10.0, 20.0, 50.0, 85.0), tuple(np.arange(10) * 36.0))
    field = on(grid, np.random.default_rng(0).normal(size=grid.shape))
    np.testing.assert_allclose(spectra(field, kind="zonal").sum(), (field**2 * weights_for(field)).sum(), rtol=1e-13)


def test_white_noise_is_flat_to_the_last_total_wavenumber():
    """Coefficients of modulus 1 at every degree and order: (2l + 1) / 4π, last degree included."""
    import ducc0

    degrees = np.concatenate([np.arange(m, 120) for m in range(120)])
    rng = np.random.default_rng(0)
    alm = np.exp(2j * np.pi * rng.uniform(size=len(degrees)))
    alm[:120] = np.sign(alm[:120].real)
    values = ducc0.sht.synthesis_2d(alm=alm[None], spin=0, lmax=119, geometry="CC", ntheta=121, nphi=240)[0]
    power = spectra(on(LatLonGrid((np.linspace(90, -90, 121)), np.arange(240) * 1.5), values))
    np.testing.assert_allclose(power / (2 * np.arange(120) + 1) * 4 * np.pi, 1, rtol=1e-10)


def test_white_noise_is_flat_to_the_last_zonal_wavenumber():
    """Each of n waves has σ²/n: bins of two waves twice that, wavenumber 0 and the last bin once."""
    values = np.random.default_rng(0).normal(size=(400, *GRID.shape))
    power = spectra(on(GRID, values), kind="zonal").mean("time") * 24
    expected = np.array([1] + [2] * 11 + [1])
    # relative deviation of the mean of 400 fields of about 9 independent rows of 1 or 2 degrees of freedom
    np.testing.assert_allclose(power / expected, 1, atol=5 * np.sqrt(2 / (400 * 9)))


# --------------------------------------------------------------------------------- does the frame of reference matter?


def test_rotation_leaves_the_total_spectrum_unchanged():
    grid, turn = LatLonGrid.equiangular(72, 37), rotation()

    def bumps(x):
        return np.exp(4 * x[..., 0]) - 2 * np.exp(3 * x[..., 2] * x[..., 1]) + x[..., 2]

    straight = spectra(on(grid, from_unit_vectors(grid, bumps)))
    turned = spectra(on(grid, from_unit_vectors(grid, lambda x: bumps(x @ turn.T))))
    np.testing.assert_allclose(turned, straight, rtol=1e-9, atol=1e-13)
    zonal = [spectra(on(grid, from_unit_vectors(grid, f)), kind="zonal") for f in (bumps, lambda x: bumps(x @ turn.T))]
    assert abs(zonal[1] - zonal[0]).max() > 0.1


def test_rotation_leaves_the_parts_of_kinetic_energy_unchanged():
    grid, turn = LatLonGrid.equiangular(72, 37), rotation()

    def flow(x):
        swirl = np.cross(x, np.stack([x[..., 1] ** 2, np.sin(2 * x[..., 2]), x[..., 0]], axis=-1))
        spread = np.stack([np.cos(3 * x[..., 1]), x[..., 2], x[..., 0] * x[..., 1]], axis=-1)
        return swirl + spread - (spread * x).sum(-1, keepdims=True) * x

    straight = spectra(winds(grid, *in_local_axes(grid, from_unit_vectors(grid, flow))))
    turned_flow = in_local_axes(grid, from_unit_vectors(grid, lambda x: flow(x @ turn.T) @ turn))
    turned = spectra(winds(grid, *turned_flow))
    for part in ("kinetic_energy", "kinetic_energy_rotational", "kinetic_energy_divergent"):
        assert float(straight[part].sum()) > 0.01
        np.testing.assert_allclose(turned[part], straight[part], rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("kind", ["total", "zonal"])
def test_order_of_rows_start_of_columns_and_names_dont_matter(kind):
    field, _ = random_field(GRID, 11)
    ds = xr.Dataset({"temperature": field, "u": 2 * field, "v": 3 * field + 1})
    expected = spectra(ds, kind=kind)
    others = [
        ds.isel(latitude=slice(None, None, -1)),
        ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180).sortby("longitude"),
        ds.roll(longitude=7, roll_coords=True),
        ds.isel(longitude=slice(None, None, -1)),
        ds.transpose("longitude", "latitude").rename(latitude="lat", longitude="lon"),
        ds.pad(longitude=(0, 1), mode="wrap").assign_coords(longitude=np.arange(25) * 15.0),
        ds.assign_coords(latitude=ds.latitude.astype(np.float32), longitude=ds.longitude.astype(np.float32)),
    ]
    for other in others:
        xr.testing.assert_allclose(spectra(other, kind=kind), expected, rtol=1e-11)


# ------------------------------------------------------------------------------------------------- kinetic energy


def test_solid_body_rotation():
    """u = U cos φ: U² / 3, all of it rotational and at l = 1."""
    found = spectra(winds(GRID, 10 * np.sin(angles(GRID)[0]), np.zeros(GRID.shape)))
    expected = np.zeros(12)
    expected[1] = 100 / 3
    np.testing.assert_allclose(found["kinetic_energy"], expected, atol=1e-12)
    np.testing.assert_allclose(found["kinetic_energy_rotational"], expected, atol=1e-12)
    np.testing.assert_allclose(found["kinetic_energy_divergent"], 0, atol=1e-25)


def gradient_of_y32(grid):
    """Eastward and northward derivative of cos²φ sin φ cos 2λ, a harmonic of degree 3 on the unit sphere."""
    theta, phi = angles(grid)
    sine, cosine = np.cos(theta), np.sin(theta)
    return -2 * cosine * sine * np.sin(2 * phi), (cosine**3 - 2 * cosine * sine**2) * np.cos(2 * phi)


@pytest.mark.parametrize(("part", "other"), [("rotational", "divergent"), ("divergent", "rotational")])
@pytest.mark.parametrize("name", ["poles", "no poles", "gaussian"])
def test_flow_of_a_potential_has_one_part_alone(part, other, name):
    grid = GRIDS[name]
    east, north = gradient_of_y32(grid)
    u, v = (-north, east) if part == "rotational" else (east, north)
    theta, phi = angles(grid)
    potential = spectra(on(grid, np.sin(theta) ** 2 * np.cos(theta) * np.cos(2 * phi)))
    found = spectra(winds(grid, u, v))
    expected = potential * 3 * 4 / 2  # l (l + 1) / 2
    np.testing.assert_allclose(found[f"kinetic_energy_{part}"], expected, atol=1e-15)
    np.testing.assert_allclose(found["kinetic_energy"], expected, atol=1e-15)
    assert found[f"kinetic_energy_{other}"].max() < 1e-20


@pytest.mark.parametrize("kind", ["total", "zonal"])
def test_kinetic_energy_adds_up(kind):
    rng = np.random.default_rng(2)
    import ducc0

    alm = rng.normal(size=(2, 91)) + 1j * rng.normal(size=(2, 91))
    alm[:, :13] = alm[:, :13].real
    alm[:, 0] = 0
    found = []
    for geometry, grid in (("CC", LatLonGrid.equiangular(30, 15)), ("GL", gaussian(60, 30))):
        theta, phi = ducc0.sht.synthesis_2d(
            alm=alm, spin=1, lmax=12, geometry=geometry, ntheta=grid.shape[0], nphi=grid.shape[1]
        )
        grid = LatLonGrid(np.sort(grid.latitude)[::-1], grid.longitude)
        found.append(winds(grid, phi, -theta))
    coarse, fine = found
    if kind == "total":
        weights = np.polynomial.legendre.leggauss(30)[1] / 2
        squares = fine["u_component_of_wind"] ** 2 + fine["v_component_of_wind"] ** 2
        mean = (weights @ squares.values).mean() / 2
    else:
        squares = coarse["u_component_of_wind"] ** 2 + coarse["v_component_of_wind"] ** 2
        mean = (squares * weights_for(squares)).sum() / 2
    power = spectra(coarse, kind=kind)
    np.testing.assert_allclose(power["kinetic_energy"].sum(), mean, rtol=1e-10)
    assert power["kinetic_energy"].attrs["units"] == "m2 s-2"
    assert ("kinetic_energy_divergent" in power) == (kind == "total")


@pytest.mark.parametrize(
    ("names", "energy"),
    [
        (("u", "v"), "kinetic_energy"),
        (("u10", "v10"), "10m_kinetic_energy"),
        (("10m_u_component_of_wind", "10m_v_component_of_wind"), "10m_kinetic_energy"),
        (("u_component_of_wind_850", "v_component_of_wind_850"), "kinetic_energy_850"),
    ],
)
def test_winds_are_found_in_any_dialect(names, energy):
    ds = winds(GRID, *gradient_of_y32(GRID)).rename(u_component_of_wind=names[0], v_component_of_wind=names[1])
    rotational = energy.replace("energy", "energy_rotational")
    assert {*names, energy, rotational} < set(spectra(ds).data_vars)
    assert set(spectra(ds, kinetic_energy=False).data_vars) == set(names)
    assert energy not in spectra(ds.drop_vars(names[1]))
    alone = spectra(ds, variables=energy)
    assert set(alone.data_vars) == set(spectra(ds).data_vars) - set(names)
    # the wind at 10 m doesn't pair with another
    assert "kinetic_energy" not in spectra(ds.rename({names[0]: "u100"}))


def test_units_are_squared():
    ds = xr.Dataset(
        {
            name: on(GRID, np.ones(GRID.shape), name, units)
            for name, units in (("geopotential", "m**2 s**-2"), ("temperature", "K"), ("specific_humidity", "kg/kg"))
        }
    )
    ds["odd"] = on(GRID, np.ones(GRID.shape), "odd", "kn/odd.")
    found = {name: field.attrs["units"] for name, field in spectra(ds).items()}
    assert found == {
        "geopotential": "m4 s-4",
        "temperature": "K2",
        "specific_humidity": "kg2 kg-2",
        "odd": "(kn/odd.)2",
    }
    ds["u"], ds["v"] = on(GRID, np.ones(GRID.shape), units="m s-1"), on(GRID, np.ones(GRID.shape), units="kn")
    with pytest.raises(DatasetError, match="components of the wind have different units"):
        spectra(ds)


# --------------------------------------------------------------------------------------------------- on the mesh


def on_mesh(values, nside, name="temperature"):
    coords = mesh_coordinates(nside)
    field = xr.DataArray(values, dims="cell", coords=coords, name=name, attrs={"grid_mapping": "crs", "units": "K"})
    return field


@pytest.mark.parametrize("order", ["nested", "ring", "shuffled"])
def test_mesh_equals_anafast(order):
    import healpy

    values = np.random.default_rng(0).normal(size=12 * 8**2)  # in rings
    field = on_mesh(healpy.reorder(values, r2n=True), 8)
    if order == "ring":
        field = on_mesh(values, 8)
        field["crs"].attrs["indexing_scheme"] = "ring"
    if order == "shuffled":
        field = field.isel(cell=np.random.default_rng(1).permutation(768))
    power = spectra(field)
    degree = np.arange(24)
    np.testing.assert_allclose(power, healpy.anafast(values, iter=3) * (2 * degree + 1) / (4 * np.pi), rtol=1e-10)
    assert "crs" not in power.coords


@pytest.mark.parametrize(("degree", "order", "accuracy"), [(0, 0, 2e-4), (1, 0, 2e-4), (12, 7, 1e-6), (32, 5, 5e-3)])
def test_parseval_on_the_mesh_to_its_accuracy(degree, order, accuracy):
    """A harmonic of degree up to 2 nside keeps its power, but for what the mesh's quadrature loses."""
    longitude, latitude = np.deg2rad(cell_centres(16))
    power = spectra(on_mesh(real_harmonic(degree, order, np.pi / 2 - latitude, longitude), 16))
    np.testing.assert_allclose([power[degree] * 4 * np.pi, power.sum() * 4 * np.pi], 1, rtol=accuracy)


def test_kinetic_energy_on_the_mesh():
    longitude, latitude = np.deg2rad(cell_centres(16))
    sine, cosine = np.sin(latitude), np.cos(latitude)
    east, north = (
        -2 * cosine * sine * np.sin(2 * longitude),
        (cosine**3 - 2 * cosine * sine**2) * np.cos(2 * longitude),
    )
    rotational = spectra(xr.Dataset({"u": on_mesh(-north, 16), "v": on_mesh(east, 16)}))
    divergent = spectra(xr.Dataset({"u": on_mesh(east, 16), "v": on_mesh(north, 16)}))
    exact = np.zeros(48)
    exact[3] = 6 * (1 / 3 - 2 / 5 + 1 / 7) / 2  # l (l + 1) / 2 times the mean of cos⁴φ sin²φ cos²2λ
    np.testing.assert_allclose(rotational["kinetic_energy_rotational"], exact, atol=1e-5 * exact[3])
    np.testing.assert_allclose(divergent["kinetic_energy_divergent"], exact, atol=1e-5 * exact[3])
    assert rotational["kinetic_energy_divergent"].sum() < 1e-6 * exact[3]
    assert divergent["kinetic_energy_rotational"].sum() < 1e-6 * exact[3]


# ------------------------------------------------------------------------------------- members, mean and spread


def test_mean_and_spread_are_those_of_the_fields():
    forecast, _ = forecast_and_truth()
    members, mean, spread = (spectra(forecast, of=of) for of in ("members", "mean", "spread"))
    assert members["temperature"].dims == ("time", "number", "prediction_timedelta", "total_wavenumber")
    assert (
        mean["temperature"].dims == spread["temperature"].dims == ("time", "prediction_timedelta", "total_wavenumber")
    )
    xr.testing.assert_allclose(mean, spectra(forecast.mean("number", keep_attrs=True)))
    deviations = spectra(forecast - forecast.mean("number")).sum("number") / 2
    xr.testing.assert_allclose(spread.drop_attrs(), deviations.drop_attrs())
    # the sum over wavenumbers is the area mean of the variance with M − 1
    variance = forecast["temperature"].var("number", ddof=1)
    zonal = spectra(forecast["temperature"], of="spread", kind="zonal").sum("zonal_wavenumber")
    np.testing.assert_allclose(zonal, (variance * weights_for(variance)).sum(["latitude", "longitude"]), rtol=1e-12)


def test_spread_doesnt_depend_on_the_number_of_members():
    """Expectation σ² for 2 and for 8 members; 300 cases, 5 standard deviations."""
    values = np.random.default_rng(0).normal(size=(300, 8, *GRID.shape))
    field = on(GRID, values).rename("temperature")
    for members in (2, 8):
        some = spectra(field.isel(number=slice(members)), of="spread", kind="zonal").sum("zonal_wavenumber")
        assert abs(float(some.mean()) - 1) < 5 * float(some.std()) / np.sqrt(300)


def test_spread_needs_members_and_leaves_out_what_has_none():
    forecast, _ = forecast_and_truth()
    forecast["land_sea_mask"] = forecast["temperature"].isel(time=0, number=0, prediction_timedelta=0, drop=True)
    assert "land_sea_mask" in spectra(forecast)
    assert "land_sea_mask" not in spectra(forecast, of="spread")
    with pytest.raises(DatasetError, match="The spread needs dimension 'number'"):
        spectra(forecast.isel(number=0), of="spread")
    with pytest.raises(DatasetError, match="two members or more"):
        spectra(forecast.isel(number=[0]), of="spread")


# -------------------------------------------------------------------------------------------- labels, laziness, NaN


def test_labels_of_the_result():
    forecast, _ = forecast_and_truth()
    forecast.attrs["source"] = "here"
    forecast = forecast.assign_coords(valid_time=forecast.time + forecast.prediction_timedelta)
    found = spectra(forecast.rename(time="init_time", number="member", prediction_timedelta="lead_time"))
    assert found["temperature"].dims == ("init_time", "member", "lead_time", "total_wavenumber")
    assert "valid_time" in found.coords
    assert found.attrs == {"source": "here"}
    wavelength = found["wavelength"]
    np.testing.assert_allclose(wavelength[1:], 2 * np.pi * RADIUS / np.sqrt(np.arange(1, 12) * np.arange(2, 13)))
    assert np.isinf(wavelength[0]) and wavelength.attrs["units"] == "km"
    assert found["temperature"].attrs["long_name"] == "power of temperature per total wavenumber"
    assert "geometry CC" in found["temperature"].attrs["method"]
    zonal = spectra(forecast["temperature"], kind="zonal")
    assert isinstance(zonal, xr.DataArray) and zonal.name == "temperature"
    np.testing.assert_allclose(zonal["wavelength"][12], 2 * np.pi * RADIUS / 12)
    assert spectra(forecast["temperature"].rename(None)).name is None


def test_variables_are_chosen_in_any_dialect():
    forecast, _ = forecast_and_truth()
    assert set(spectra(forecast, variables="t").data_vars) == {"temperature"}
    assert set(spectra(forecast, variables=["t", "u"]).data_vars) == {"temperature", "u_component_of_wind"}
    assert "kinetic_energy" in spectra(forecast, variables=["u", "v"])
    with pytest.raises(ArgumentError, match="'q' is not a variable with a spectrum. Found"):
        spectra(forecast, variables="q")
    with pytest.raises(DatasetError, match="No variable has a spectrum"):
        spectra(forecast.mean("latitude"))
    soil = forecast.assign(soil_type=forecast["temperature"].astype(int), scalar=3)
    assert {"soil_type", "scalar"}.isdisjoint(spectra(soil))


COMPARISONS = {
    "spectra": lambda f, t: spectra(f),
    "zonal": lambda f, t: spectra(f, kind="zonal"),
    "mean": lambda f, t: spectra(f, of="mean"),
    "spread": lambda f, t: spectra(f, of="spread"),
    "ratio": spectral_ratio,
    "log error": spectral_log_error,
    "bands": lambda f, t: band_rmse(f, t, bands=((0, 3), (4, None))),
    "resolution": lambda f, t: effective_resolution(f, t, band=(0.9, 1.1)),
    "coherence": coherence,
    "error": spectral_error,
    "error of the mean": lambda f, t: spectral_error(f, t, of="mean", dim="time"),
    "slope": lambda f, t: spectral_slope(spectra(f), between=(2, 9)),
}


def no_compute(dsk, keys, **kwargs):
    raise AssertionError("computed")


@pytest.mark.parametrize(("what", "lazy_truth"), [*((what, True) for what in COMPARISONS), ("error", False)])
def test_lazy_equals_eager(what, lazy_truth):
    import dask

    function = COMPARISONS[what]
    forecast, truth = forecast_and_truth()
    chunks = {"time": 1, "number": 2, "longitude": 12}
    with dask.config.set(scheduler=no_compute):
        lazy = function(forecast.chunk(chunks), truth.chunk({"time": 2}) if lazy_truth else truth)
    assert all(field.chunks is not None for field in lazy.data_vars.values())
    eager = function(forecast, truth)
    computed = lazy.compute(scheduler="synchronous")
    xr.testing.assert_allclose(computed, eager, rtol=1e-10)
    assert {n: f.dims for n, f in computed.items()} == {n: f.dims for n, f in eager.items()}
    assert {n: f.attrs["units"] for n, f in computed.items()} == {n: f.attrs["units"] for n, f in eager.items()}


def test_each_field_is_transformed_once(monkeypatch):
    """12 of the forecast, 4 of the truth, 12 differences, whether lazy or not."""
    from xmosaic.diagnostics.transforms import LatLonHarmonics

    calls, scalar = [], LatLonHarmonics.scalar
    monkeypatch.setattr(LatLonHarmonics, "scalar", lambda self, field: (calls.append(1), scalar(self, field))[1])
    forecast, truth = forecast_and_truth()
    chunks = {"time": 1, "number": 1, "prediction_timedelta": 1}
    for some in (forecast, forecast.chunk(chunks)):
        calls.clear()
        spectral_error(some, truth, variables="temperature").compute(scheduler="synchronous")
        assert len(calls) == 12 + 4 + 12


def test_what_runs_on_workers_can_be_sent_there():
    import pickle

    from xmosaic.diagnostics.transforms import Power, find_transform

    field, _ = random_field(GRID, 11)
    for kind in ("total", "zonal"):
        work = Power(find_transform(field, kind))
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(work))(field.values), work(field.values))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["total", "zonal"])
def test_a_field_with_nan_has_no_spectrum_and_spoils_no_other(bad, kind):
    forecast, _ = forecast_and_truth()
    expected = spectra(forecast, kind=kind)
    forecast["u_component_of_wind"][1, 0, 1, 3, 4] = bad
    found = spectra(forecast, kind=kind)
    touched = [name for name in found if name not in ("temperature", "v_component_of_wind")]
    assert found[touched].isel(time=1, number=0, prediction_timedelta=1).isnull().all().to_array().all()
    assert int(found["u_component_of_wind"].isnull().sum()) == found.sizes[f"{kind}_wavenumber"]
    xr.testing.assert_equal(found.fillna(expected), expected)
    spread = spectra(forecast, kind=kind, of="spread")["u_component_of_wind"]
    assert int(spread.isnull().sum()) == found.sizes[f"{kind}_wavenumber"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: f.isel(latitude=slice(1, None)), "no spherical harmonic transform.*to_latlon"),
        (lambda f: f.assign_coords(latitude=f.latitude + np.sin(np.deg2rad(2 * f.latitude))), "no spherical harmonic"),
        (lambda f: f.isel(longitude=slice(0, 12)), "Longitudes don't go around"),
        (lambda f: f.assign_coords(longitude=f.longitude + 2 * np.sin(f.longitude)), "not evenly spaced.*to_latlon"),
        (lambda f: f.isel(longitude=0), "No variable has a spectrum"),
        (lambda f: f.stack(cell=["latitude", "longitude"]).reset_index("cell", drop=True), "cells have no description"),
    ],
)
def test_what_has_no_spectrum_is_refused_by_name(change, text):
    field, _ = random_field(GRID, 3)
    with pytest.raises(DatasetError, match=text):
        spectra(change(field))


def test_wrong_arguments_are_refused():
    forecast, truth = forecast_and_truth()
    mesh = on_mesh(np.zeros(48), 2)
    for wrong, text in (
        (lambda: spectra(forecast, kind="global"), "kind='global' is not known"),
        (lambda: spectra(forecast, of="median"), "of='median' is not known"),
        (lambda: spectral_ratio(forecast, truth, dim="level"), "no dimension 'level'"),
        (lambda: spectral_error(forecast, truth, of="spread"), "of='spread' is not known"),
        (lambda: band_rmse(forecast, truth, bands=((5, 3),)), r"\(5, 3\) is not a band"),
        (lambda: band_rmse(forecast, truth, bands=((1.5, 3),)), "is not a band"),
        (lambda: band_rmse(forecast, truth, bands=()), "bands is empty"),
        (lambda: effective_resolution(forecast, truth, band=(2, 0.5)), "band=.* can't be used"),
        (lambda: effective_resolution(forecast, truth, consecutive=0), "consecutive=0"),
        (lambda: spectral_log_error(forecast, truth, between=(0, 5)), "wavenumbers from 1 to 11"),
        (lambda: spectral_slope(spectra(forecast), between=(1, 99)), "from 1 to 11"),
    ):
        with pytest.raises(ArgumentError, match=text):
            wrong()
    with pytest.raises(DatasetError, match="HEALPix mesh has no zonal spectrum"):
        spectra(mesh, kind="zonal")
    with pytest.raises(DatasetError, match="This is no spectrum"):
        spectral_slope(forecast, between=(1, 3))


# ------------------------------------------------------------------------------------------------ against the truth


def damped(field, factor):
    """A field of harmonics whose every degree is multiplied, by transform and back."""
    import ducc0

    degrees = np.concatenate([np.arange(m, 12) for m in range(12)])
    alm = ducc0.sht.analysis_2d(map=field[None], spin=0, lmax=11, geometry="CC") * factor[degrees]
    return ducc0.sht.synthesis_2d(alm=alm, spin=0, lmax=11, geometry="CC", ntheta=13, nphi=24)[0]


def smooth_and_truth(factor):
    forecast, truth = forecast_and_truth(noise=0.0)
    names = ["temperature"]
    flat = forecast["temperature"].values.reshape(-1, 13, 24)
    forecast["temperature"].values[:] = np.stack([damped(one, factor) for one in flat]).reshape(
        forecast["temperature"].shape
    )
    return forecast[names], truth[names]


def test_perfect_forecast():
    forecast, truth = forecast_and_truth(noise=0.0)
    result = spectral_error(forecast, truth)
    np.testing.assert_allclose(spectral_ratio(forecast, truth)["kinetic_energy_divergent"][:, 1:], 1, rtol=1e-12)
    assert abs(result["temperature_log_error"]).max() < 1e-9
    assert result["temperature_band_rmse"].sel(band=["0-0", "1-4", "5-20"]).max() == 0
    assert result["temperature_effective_resolution"].isnull().all()
    np.testing.assert_allclose(result["temperature_coherence"], 1, rtol=1e-12)


def test_damping_is_told_exactly():
    degree = np.arange(12)
    factor = np.where(degree >= 7, 0.6, 1.0)
    forecast, truth = smooth_and_truth(factor)
    # the noise of the truth is wider than the transform: compare with what the transform holds of it
    ratio = spectral_ratio(forecast, truth)["temperature"]
    np.testing.assert_allclose(ratio, np.broadcast_to(factor**2, ratio.shape), rtol=1e-9)
    decibel = np.sqrt(5 * (10 * np.log10(0.36)) ** 2 / 11)
    np.testing.assert_allclose(spectral_log_error(forecast, truth)["temperature"], decibel, rtol=1e-9)
    resolved = effective_resolution(forecast, truth)["temperature"]
    np.testing.assert_allclose(resolved, 2 * np.pi * RADIUS / np.sqrt(7 * 8), rtol=1e-12)
    np.testing.assert_allclose(coherence(forecast, truth)["temperature"], 1, rtol=1e-9)
    loose = effective_resolution(forecast, truth, band=(0.3, 2.0))
    assert loose["temperature"].isnull().all()


def test_one_bin_that_sticks_out_is_noise():
    degree = np.arange(12)
    forecast, truth = smooth_and_truth(np.where((degree == 3) | (degree >= 8), 0.5, 1.0))
    wavelength = 2 * np.pi * RADIUS / np.sqrt(degree * (degree + 1.0) + (degree == 0))
    for consecutive, first in ((1, 3), (2, 8), (4, 8)):
        found = effective_resolution(forecast, truth, consecutive=consecutive)["temperature"]
        np.testing.assert_allclose(found, wavelength[first], rtol=1e-12)
    assert effective_resolution(forecast, truth, consecutive=5)["temperature"].isnull().all()
    found = effective_resolution(forecast, truth, consecutive=1, between=(4, None))["temperature"]
    np.testing.assert_allclose(found, wavelength[8], rtol=1e-12)


def test_averages_are_of_powers_over_pairs_that_have_truth():
    forecast, truth = forecast_and_truth(starts=3)
    short = truth.isel(time=slice(0, 4))  # valid at 0, 6, 12, 18 h: not the last lead of the last start
    with pytest.warns(AlignmentWarning, match="Valid times that the truth hasn't, in 1 of 6"):
        ratio = spectral_ratio(forecast, short)["temperature"]
    ours, theirs = spectra(forecast)["temperature"].values, spectra(truth)["temperature"].values
    for lead, starts in ((0, (0, 1, 2)), (1, (0, 1))):
        over = np.mean([ours[s, :, lead].mean(axis=0) for s in starts], axis=0)
        under = np.mean([theirs[s + 1 + lead] for s in starts], axis=0)
        np.testing.assert_allclose(ratio[lead], over / under, rtol=1e-12)
    with pytest.warns(AlignmentWarning):
        each = spectral_ratio(forecast, short, dim="number")["temperature"]
    assert each.dims == ("time", "prediction_timedelta", "total_wavenumber")
    np.testing.assert_allclose(each[1, 0], ours[1, :, 0].mean(axis=0) / theirs[2], rtol=1e-12)
    assert each[2, 1].isnull().all() and not each[2, 0].isnull().any()
    with pytest.warns(AlignmentWarning):
        members = spectral_ratio(forecast, short, dim="time")["temperature"]
    assert members.dims == ("number", "prediction_timedelta", "total_wavenumber")


def test_callers_names_for_dim_and_result():
    forecast, truth = forecast_and_truth()
    renamed = forecast.rename(time="init_time", number="member", prediction_timedelta="lead_time")
    ratio = spectral_ratio(renamed, truth, dim=["init_time"])
    assert ratio["temperature"].dims == ("member", "lead_time", "total_wavenumber")
    expected = spectral_ratio(forecast, truth, dim="time")["temperature"]
    np.testing.assert_array_equal(ratio["temperature"], expected)
    alone = spectral_ratio(renamed["temperature"], truth["temperature"], dim="init_time")
    assert alone.name == "temperature" and alone.dims == ("member", "lead_time", "total_wavenumber")
    np.testing.assert_array_equal(alone, expected)


def test_no_power_in_the_truth_is_no_ratio_and_is_counted():
    forecast, truth = forecast_and_truth()
    truth["temperature"].values[:] = real_harmonic(3, 1, *angles(GRID))
    ratio = spectral_ratio(forecast, truth)["temperature"]
    known = np.flatnonzero(ratio.notnull().all("prediction_timedelta"))
    np.testing.assert_array_equal(known, [3])
    assert ratio.attrs["without_power"] == 2 * 11
    assert not np.isinf(ratio).any()
    alone = spectral_log_error(forecast, truth)["temperature"]
    np.testing.assert_allclose(alone, abs(10 * np.log10(ratio.sel(total_wavenumber=3))), rtol=1e-12)


def test_bands_add_up_to_the_error():
    """Of a difference that the transform holds exactly, squares over bands add up to the mean square error."""
    forecast, truth = forecast_and_truth(starts=2)
    field, _ = random_field(GRID, 5, seed=1)  # its square is of degree 10, which 13 rows integrate
    forecast["temperature"] = (forecast["temperature"] * 0 + field).assign_attrs(units="K")
    truth["temperature"] = truth["temperature"] * 0
    import ducc0

    weights = ducc0.sht.get_gridweights("CC", 13) / (4 * np.pi)
    mean_square = (weights @ (field.values**2)).mean()
    found = band_rmse(forecast, truth)["temperature"]
    assert found.dims == ("prediction_timedelta", "band") and found.attrs["units"] == "K"
    assert list(found.band.values) == ["0-0", "1-4", "5-20", "21-60", "61-"]
    assert list(found.wavenumber_to.values) == [0, 4, 20, 60, 61]
    assert found.isel(band=[3, 4]).isnull().all()
    np.testing.assert_allclose((found.isel(band=slice(3)) ** 2).sum("band"), mean_square, rtol=1e-12)


def test_bands_of_members_and_of_the_mean():
    forecast, truth = forecast_and_truth()
    bands = ((0, 2), (3, None))
    at_truth = truth["temperature"].values[np.array([[1, 2], [2, 3]])]
    values = forecast["temperature"].values
    errors = on(GRID, (values - at_truth[:, None]).reshape(-1, 13, 24))
    power = spectra(errors).values.reshape(2, 3, 2, 12).mean(axis=(0, 1))
    found = band_rmse(forecast, truth, bands=bands)["temperature"]
    np.testing.assert_allclose(found[:, 0], np.sqrt(power[:, :3].sum(-1)), rtol=1e-12)
    np.testing.assert_allclose(found[:, 1], np.sqrt(power[:, 3:].sum(-1)), rtol=1e-12)
    mean = on(GRID, (values.mean(axis=1) - at_truth).reshape(-1, 13, 24))
    power = spectra(mean).values.reshape(2, 2, 12).mean(axis=0)
    found = band_rmse(forecast, truth, bands=bands, of="mean")["temperature"]
    np.testing.assert_allclose(found[:, 1], np.sqrt(power[:, 3:].sum(-1)), rtol=1e-12)
    zonal = band_rmse(forecast, truth, kind="zonal", bands=((0, None),))["temperature"]
    weights = weights_for(errors).values
    squares = ((values - at_truth[:, None]) ** 2 * weights).sum(axis=(-2, -1)).mean(axis=(0, 1))
    np.testing.assert_allclose(zonal[:, 0] ** 2, squares, rtol=1e-12)


def test_coherence_brute_force():
    """From coefficients, sums over all orders, starts and members written out."""
    import ducc0

    forecast, truth = forecast_and_truth()

    def coefficients(values):
        return ducc0.sht.analysis_2d(map=np.ascontiguousarray(values[::-1])[None], spin=0, lmax=11, geometry="CC")[0]

    found = coherence(forecast, truth)["temperature"]
    ours, theirs = forecast["temperature"].values, truth["temperature"].values
    start = np.cumsum([0] + [12 - m for m in range(12)])
    for lead in (0, 1):
        cross, first, second = np.zeros(12, complex), np.zeros(12), np.zeros(12)
        for time in (0, 1):
            t = coefficients(theirs[time + 1 + lead])
            for member in range(3):
                f = coefficients(ours[time, member, lead])
                for m in range(12):
                    for degree in range(m, 12):
                        a, b = f[start[m] + degree - m], t[start[m] + degree - m]
                        both = a * b.conj() if m == 0 else a * b.conj() + (a * b.conj()).conj()
                        cross[degree] += both
                        first[degree] += abs(a) ** 2 * (1 if m == 0 else 2)
                        second[degree] += abs(b) ** 2 * (1 if m == 0 else 2)
        np.testing.assert_allclose(found[lead], abs(cross) ** 2 / (first * second), rtol=1e-10)
    assert ((found >= 0) & (found <= 1)).all()


def test_error_of_a_dataset_is_that_of_its_parts():
    forecast, truth = forecast_and_truth()
    found = spectral_error(forecast, truth, band=(0.8, 1.2), consecutive=1)
    parts = {
        "log_error": spectral_log_error(forecast, truth),
        "effective_resolution": effective_resolution(forecast, truth, band=(0.8, 1.2), consecutive=1),
        "band_rmse": band_rmse(forecast, truth),
        "coherence": coherence(forecast, truth),
    }
    assert set(found.data_vars) == {f"{name}_{what}" for what, ds in parts.items() for name in ds.data_vars}
    for what, ds in parts.items():
        for name, field in ds.items():
            xr.testing.assert_identical(found[f"{name}_{what}"].rename(name), field)
    units = {what: found[f"temperature_{what}"].attrs["units"] for what in parts}
    assert units == {"log_error": "dB", "effective_resolution": "km", "band_rmse": "K", "coherence": "1"}
    zonal = spectral_error(forecast, truth, kind="zonal")
    assert "temperature_coherence" not in zonal and "kinetic_energy_log_error" in zonal
    alone = spectral_error(forecast["temperature"].rename(None), truth["temperature"])
    assert set(alone.data_vars) == {"log_error", "effective_resolution", "band_rmse", "coherence"}


def test_deterministic_forecast_of_one_time():
    forecast, truth = forecast_and_truth()
    one = forecast.isel(time=0, number=0, prediction_timedelta=1, drop=False).drop_vars("number")
    ratio = spectral_ratio(one, truth)
    assert ratio["temperature"].dims == ("total_wavenumber",)
    expected = spectra(one["temperature"]) / spectra(truth["temperature"].isel(time=2))
    np.testing.assert_allclose(ratio["temperature"], expected, rtol=1e-12)


# ----------------------------------------------------------------------------------------------- slope, real data


def test_slope_of_a_power_law_is_its_exponent():
    k = np.arange(30.0)
    power = xr.Dataset({"a": ("total_wavenumber", np.r_[5.0, k[1:] ** -3.0]), "b": ("total_wavenumber", k**2)})
    power = power.assign_coords(total_wavenumber=k.astype(int))
    found = spectral_slope(power, between=(4, 29))
    np.testing.assert_allclose([found["a"], found["b"]], [-3, 2], rtol=1e-12)
    x, y = np.log(k[3:12]), np.log(np.random.default_rng(0).uniform(1, 2, 30))
    noisy = xr.DataArray(np.exp(y), {"zonal_wavenumber": k}, name="a")
    np.testing.assert_allclose(
        spectral_slope(noisy, between=(3, 11)), np.polynomial.polynomial.polyfit(x, y[3:12], 1)[1], rtol=1e-10
    )
    assert np.isnan(spectral_slope(xr.DataArray(np.zeros(30), {"total_wavenumber": k}), between=(3, 11)))


def test_slope_of_an_analysis_is_near_minus_three():
    ds = fixture("eraint_tuv_20050123T00_1p5deg.nc").sel(level=[250, 300])
    power = spectra(ds)
    slope = spectral_slope(power, between=(10, 60))["kinetic_energy"]
    assert ((slope > -3.4) & (slope < -2.6)).all(), slope.values
    # the sum misses only what lies above degree 119 and differs in how the mean over the sphere is taken
    squares = (ds["u_component_of_wind"] ** 2 + ds["v_component_of_wind"] ** 2) / 2
    mean = (squares * weights_for(squares)).sum(["latitude", "longitude"])
    np.testing.assert_allclose(power["kinetic_energy"].sum("total_wavenumber"), mean, rtol=1e-3)
    largest_scales = power["kinetic_energy_rotational"].sel(total_wavenumber=slice(1, 20)).sum("total_wavenumber")
    assert (largest_scales > 10 * power["kinetic_energy_divergent"].sum("total_wavenumber")).all()


def test_gaussian_analysis_is_read_on_its_own_grid():
    ds = fixture("era5_tl31_19590102T00.nc")[["temperature"]].sel(level=[500])
    power = spectra(ds)["temperature"]
    assert power.dims == ("level", "total_wavenumber") and power.sizes["total_wavenumber"] == 32
    assert "geometry GL" in power.attrs["method"]
    squares = ds["temperature"].astype(float) ** 2
    np.testing.assert_allclose(power.sum(), (squares * weights_for(squares)).sum(), rtol=1e-3)
