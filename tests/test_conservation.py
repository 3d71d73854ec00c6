"""Mass, water, energy and balance: closed forms, plain twins, labels, laziness, refusals."""

import importlib

import healpy
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic.errors import AlignmentWarning, ArgumentError, DatasetError
from xmosaic.grid import LatLonGrid
from xmosaic.healpix import mesh_coordinates

# xmosaic.diagnostics.conservation is the function; its module has the same name
c = importlib.import_module("xmosaic.diagnostics.conservation")

STARTS = pd.to_datetime(["2001-01-01", "2001-01-02", "2001-01-05"])
LEADS = pd.to_timedelta([6, 12, 24], unit="h")
LEVELS = np.array([250.0, 500.0, 850.0, 1000.0])
GRID = LatLonGrid.equiangular(12, 7)
SPACE = {"latitude": np.array(GRID.latitude), "longitude": np.array(GRID.longitude)}


def values(shape, low, high, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def forecast(members=3, starts=STARTS, leads=LEADS, seed=0, **extra):
    """Every variable of the diagnostics, random, in the layout of our forecasts."""
    lead = (len(starts), members, len(leads))
    coords = {"time": starts, "number": np.arange(1, members + 1), "prediction_timedelta": leads, **SPACE}
    flat, space = ["time", "number", "prediction_timedelta"], ["latitude", "longitude"]
    deep = [*flat, "level", *space]
    ds = xr.Dataset(coords={**coords, "level": ("level", LEVELS, {"units": "hPa"})})
    for k, (name, low, high) in enumerate(
        [("mean_sea_level_pressure", 98000, 104000), ("surface_pressure", 60000, 104000)]
    ):
        ds[name] = (flat + space, values((*lead, 7, 12), low, high, seed + k), {"units": "Pa"})
    for k, (name, low, high) in enumerate(
        [
            ("specific_humidity", 0, 0.02),
            ("temperature", 220, 300),
            ("u_component_of_wind", -30, 60),
            ("v_component_of_wind", -30, 30),
            ("geopotential", 0, 1e5),
        ]
    ):
        ds[name] = (deep, values((*lead, 4, 7, 12), low, high, seed + 10 + k))
    ds["geopotential_at_surface"] = (space, values((7, 12), 0, 30000, 50))
    return ds.assign(extra)


def analyses(seed=100):
    """States of the same variables along time."""
    ds = forecast(members=1, starts=pd.date_range("2001-01-01", periods=6, freq="D"), leads=LEADS[:1], seed=seed)
    return ds.isel(number=0, prediction_timedelta=0, drop=True)


def on_mesh(nside=4):
    """The same at single points of a mesh: the nearest value."""
    longitude, latitude = healpy.pix2ang(nside, np.arange(12 * nside**2), nest=True, lonlat=True)
    at = {"latitude": xr.DataArray(latitude, dims="cell"), "longitude": xr.DataArray(longitude, dims="cell")}
    cells = forecast().sel(at, method="nearest").drop_vars(["latitude", "longitude"])
    return cells.assign_coords(mesh_coordinates(nside))


def plain_mean(field):
    """Mean by exact cell area, written out for 30 degree rows with poles."""
    edges = np.deg2rad([-90, -75, -45, -15, 15, 45, 75, 90])
    area = np.diff(np.sin(edges)) / 2 / 12
    return sum(area[i] * np.asarray(field, np.float64)[..., i, j] for i in range(7) for j in range(12))


class ComputedError(Exception):
    """A dask graph was run."""


def refuse(*args, **kwargs):
    raise ComputedError


# ------------------------------------------------------------------------------------------------------- drift of mass


def test_drift_is_that_of_the_area_mean_against_the_analysis_of_the_same_start():
    fc, an = forecast(), analyses()
    drift = c.mass_drift(fc, start=an)
    expected = plain_mean(fc.surface_pressure) / 100
    first = plain_mean(an.surface_pressure.sel(time=STARTS)) / 100
    np.testing.assert_allclose(drift.mass_drift, expected - first[:, None, None], atol=1e-9)
    np.testing.assert_allclose(
        drift.mass_drift_percent, 100 * (expected / first[:, None, None] - 1), atol=1e-9, rtol=1e-9
    )
    assert drift.mass_drift.dims == ("time", "number", "prediction_timedelta")
    assert drift.mass_drift.attrs["reference"] == "analysis at the start"


def test_members_are_summed_up():
    drift = c.mass_drift(forecast(), start=analyses())
    for name in ("mass_drift", "mass_drift_percent"):
        for how in ("mean", "min", "max"):
            summed = drift[f"{name}_{how}"]
            np.testing.assert_allclose(summed, getattr(drift[name].values, how)(axis=1), rtol=1e-12)
            assert summed.dims == ("time", "prediction_timedelta")
            assert summed.attrs["members"] == 3
    assert drift.mass_drift_min.attrs["cell_methods"] == "area: mean number: minimum"
    assert {drift[n].attrs["units"] for n in drift if "percent" in n} == {"%"}


def test_without_analyses_the_first_lead_or_lead_0_is_the_reference():
    fc = forecast()
    own = c.mass_drift(fc.isel(prediction_timedelta=[2, 0, 1]))
    assert (own.mass_drift.sel(prediction_timedelta="6h") == 0).all()
    assert own.mass_drift.attrs["reference"] == "first lead of the forecast, 6 h; it has no lead 0"
    shifted = fc.assign_coords(prediction_timedelta=pd.to_timedelta([-6, 0, 6], unit="h"))
    zero = c.mass_drift(shifted)
    assert zero.mass_drift.attrs["reference"] == "lead 0 of the forecast"
    assert (zero.mass_drift.sel(prediction_timedelta="0h") == 0).all()


def test_surface_pressure_is_preferred_and_the_other_can_be_asked_for():
    fc = forecast()
    one, other = c.mass_drift(fc), c.mass_drift(fc, variable="msl")
    np.testing.assert_allclose(other.mass_drift, c.mass_drift(fc.mean_sea_level_pressure).mass_drift)
    assert abs(one.mass_drift - other.mass_drift).max() > 1
    assert "it is not mass" in other.attrs["comment"]
    assert "surface pressure" in one.mass_drift.attrs["long_name"]
    assert "sea-level pressure" in other.mass_drift.attrs["long_name"]


def test_without_member_start_or_lead():
    single = forecast().isel(number=0, time=0, drop=True)
    drift = c.mass_drift(single)
    assert drift.mass_drift_mean.dims == drift.mass_drift.dims == ("prediction_timedelta",)
    last = forecast().isel(number=0, time=1, prediction_timedelta=2)
    at_once = c.mass_drift(last, start=analyses())
    np.testing.assert_allclose(
        at_once.mass_drift,
        c.mass_drift(forecast(), start=analyses()).mass_drift.isel(number=0, time=1, prediction_timedelta=2),
    )
    with pytest.raises(DatasetError, match="needs dimension 'prediction_timedelta'"):
        c.mass_drift(last)


def test_a_start_without_an_analysis_is_named_and_nan():
    with pytest.warns(AlignmentWarning, match="2001-01-05"):
        drift = c.mass_drift(forecast(), start=analyses().isel(time=slice(0, 3)))
    assert drift.mass_drift.isel(time=2).isnull().all()
    assert drift.mass_drift.isel(time=[0, 1]).notnull().all()


def test_nan_is_not_averaged_away():
    fc = forecast()
    fc.surface_pressure[0, 1, 2, 3, 3] = np.nan
    drift = c.mass_drift(fc)
    assert np.isnan(drift.mass_drift[0, 1, 2])
    assert int(drift.mass_drift.isnull().sum()) == 1
    assert np.isnan(drift.mass_drift_max[0, 2])


def test_units_dialects_orders_and_names_of_the_caller():
    fc, an = forecast(), analyses()
    expected = c.mass_drift(fc, start=an)
    other = (fc[["surface_pressure"]] / 100).rename(
        surface_pressure="sp", time="init_time", number="member", prediction_timedelta="step", latitude="lat"
    )
    other.sp.attrs["units"] = "hPa"
    other = other.isel(lat=slice(None, None, -1)).transpose("longitude", "member", "lat", "step", "init_time")
    found = c.mass_drift(other, start=an.isel(latitude=[3, 2, 1, 0, 6, 5, 4]))
    assert found.mass_drift.dims == ("member", "step", "init_time")
    np.testing.assert_allclose(
        found.mass_drift.transpose("init_time", "member", "step"), expected.mass_drift, atol=1e-3
    )


def test_cells_of_a_mesh_count_the_same():
    mesh = on_mesh()
    drift = c.mass_drift(mesh)
    mean = mesh.surface_pressure.astype(float).mean("cell") / 100
    np.testing.assert_allclose(drift.mass_drift, mean - mean.isel(prediction_timedelta=0), atol=1e-9)
    assert "crs" not in drift.coords


def test_what_has_no_pressure_or_no_points_is_refused():
    with pytest.raises(DatasetError, match=r"The drift of mass needs pressure\. Found 'temperature'"):
        c.mass_drift(forecast()[["temperature"]])
    with pytest.raises(DatasetError, match="mean over the sphere has no points"):
        c.mass_drift(forecast()[["surface_pressure"]].mean(["latitude", "longitude"]))
    with pytest.raises(ArgumentError, match="variable='temperature' doesn't stand for mass"):
        c.mass_drift(forecast(), variable="temperature")
    with pytest.raises(DatasetError, match="needs mean_sea_level_pressure"):
        c.mass_drift(forecast()[["surface_pressure"]], variable="msl")
    wrong = forecast()[["surface_pressure"]]
    wrong.surface_pressure.attrs["units"] = "m"
    with pytest.raises(DatasetError, match="'surface_pressure' has other units"):
        c.mass_drift(wrong)
    with pytest.raises(ArgumentError, match="no xarray object"):
        c.mass_drift(np.ones(3))


# -------------------------------------------------------------------------------------------------------------- columns


def plain_integral(profile, pressure, surface):
    """Very fine midpoint sum of the profile, constant below the lowest level, from the top down to the surface."""
    edges = np.linspace(pressure[0], max(surface, pressure[0]), 20001)
    middle = (edges[1:] + edges[:-1]) / 2
    return (np.interp(middle, pressure, profile) * np.diff(edges)).sum() / c.GRAVITY


@given(st.lists(st.floats(0, 0.03), min_size=4, max_size=4), st.floats(15000, 108000))
@settings(max_examples=40, deadline=None)
def test_column_ends_at_the_surface(profile, surface):
    found = c._integral(np.array(profile), np.array(surface), LEVELS * 100)
    np.testing.assert_allclose(found, plain_integral(profile, LEVELS * 100, surface), rtol=1e-6, atol=1e-7)


@given(st.permutations(range(4)))
@settings(max_examples=10, deadline=None)
def test_order_of_levels_does_not_matter(order):
    fc = forecast(members=1)
    xr.testing.assert_allclose(c.total_column_water(fc.isel(level=list(order))), c.total_column_water(fc), rtol=1e-12)


def test_column_without_surface_pressure_is_numpys_trapezoid_and_says_so():
    fc = forecast().drop_vars("surface_pressure")
    found = c.total_column_water(fc)
    column = np.trapezoid(fc.specific_humidity.values.astype(float), LEVELS * 100, axis=3) / c.GRAVITY
    np.testing.assert_allclose(found, plain_mean(column), rtol=1e-12)
    assert found.dims == ("time", "number", "prediction_timedelta")
    assert "levels below ground count" in found.attrs["comment"]
    assert found.attrs["units"] == "kg m-2"
    fields = c.total_column_water(fc, area_mean=False)
    np.testing.assert_allclose(fields, column, rtol=1e-12)
    assert "cell_methods" not in fields.attrs


def test_levels_in_pascal_are_the_same():
    fc = forecast(members=1)
    pascal = fc.assign_coords(level=("level", LEVELS * 100, {"units": "Pa"})).rename(level="plev")
    xr.testing.assert_allclose(c.total_column_water(pascal), c.total_column_water(fc))


def test_dry_mass_and_water_together_weigh_what_the_surface_bears():
    fc = forecast()
    together = c.dry_mass(fc) + c.total_column_water(fc)
    np.testing.assert_allclose(together, plain_mean(fc.surface_pressure) / c.GRAVITY, rtol=1e-12)


def test_dry_mass_takes_sea_level_pressure_only_when_asked():
    fc = forecast().drop_vars("surface_pressure")
    with pytest.raises(DatasetError, match=r"Dry mass needs surface_pressure\. .*proxy=True"):
        c.dry_mass(fc)
    found = c.dry_mass(fc, proxy=True)
    np.testing.assert_allclose(
        found, plain_mean(fc.mean_sea_level_pressure) / c.GRAVITY - c.total_column_water(fc), rtol=1e-12
    )
    assert "it is not mass" in found.attrs["comment"]


def test_energy_by_parts_is_internal_and_potential_energy():
    """c_v T and Φ summed over a fine isothermal column, against what the function makes of c_p T and Φ_s."""
    warm, ground, surface = 270.0, 5000.0, 95000.0
    edges = np.geomspace(1e-3, surface, 200001)
    middle = np.sqrt(edges[1:] * edges[:-1])
    phi = ground + c.DRY_GAS_CONSTANT * warm * np.log(surface / middle)
    inner = (c.HEAT_CAPACITY - c.DRY_GAS_CONSTANT) * warm
    expected = ((inner + phi) * np.diff(edges)).sum() / c.GRAVITY
    cells = np.ones((12, 2))
    ds = xr.Dataset(
        {
            "temperature": (("cell", "level"), warm * cells),
            "surface_pressure": ("cell", surface * cells[:, 0]),
            "geopotential_at_surface": ("cell", ground * cells[:, 0]),
        },
        {"level": [1e-5, 1000.0]},
    )
    np.testing.assert_allclose(c.total_energy(ds).total_energy.item(), expected, rtol=1e-6)


def test_terms_of_energy_are_plain_sums():
    fc = forecast(members=1, starts=STARTS[:1], leads=LEADS[:1])
    energy = c.total_energy(fc, area_mean=False).isel(time=0, number=0, prediction_timedelta=0)
    i, j = 2, 5
    point = fc.isel(time=0, number=0, prediction_timedelta=0, latitude=i, longitude=j).astype(float)

    def column(profile):
        return plain_integral(profile.values, LEVELS * 100, point.surface_pressure.item())

    at = energy.isel(latitude=i, longitude=j)
    wind = (point.u_component_of_wind**2 + point.v_component_of_wind**2) / 2
    np.testing.assert_allclose(at.enthalpy, column(c.HEAT_CAPACITY * point.temperature), rtol=1e-6)
    np.testing.assert_allclose(at.kinetic_energy, column(wind), rtol=1e-5)
    np.testing.assert_allclose(at.latent_energy, column(c.LATENT_HEAT * point.specific_humidity), rtol=1e-5)
    ground = (point.geopotential_at_surface * point.surface_pressure).item() / c.GRAVITY
    np.testing.assert_allclose(at.surface_potential_energy, ground, rtol=1e-12)
    terms = at.enthalpy + at.kinetic_energy + at.latent_energy + at.surface_potential_energy
    np.testing.assert_allclose(at.total_energy, terms, rtol=1e-12)


def test_energy_names_its_terms_and_what_is_left_out():
    energy = c.total_energy(forecast()[["temperature", "u_component_of_wind"]])
    assert set(energy) == {"enthalpy", "total_energy"}
    assert energy.total_energy.attrs["terms"] == "enthalpy"
    assert energy.attrs["left_out"] == (
        "kinetic_energy: no v_component_of_wind; latent_energy: no specific_humidity; "
        "surface_potential_energy: no surface_pressure, geopotential_at_surface"
    )
    assert "left_out" not in c.total_energy(forecast()).attrs
    with pytest.raises(DatasetError, match="Total energy needs temperature"):
        c.total_energy(forecast()[["specific_humidity"]])


def test_columns_need_levels():
    with pytest.raises(DatasetError, match="One level has no column"):
        c.total_column_water(forecast().isel(level=[0]))
    with pytest.raises(DatasetError, match="needs dimension 'level'"):
        c.total_column_water(forecast().isel(level=0))
    with pytest.raises(DatasetError, match="'level' has no coordinate"):
        c.total_column_water(forecast().drop_vars("level"))


def test_two_variables_called_z_are_told_apart():
    fc = forecast().rename(geopotential="z", geopotential_at_surface="z_surface")
    fc["z_surface"].attrs["standard_name"] = "surface_geopotential"
    xr.testing.assert_allclose(c.total_energy(fc), c.total_energy(forecast()))
    static = forecast().drop_vars("geopotential").rename(geopotential_at_surface="z")
    xr.testing.assert_allclose(c.total_energy(static), c.total_energy(forecast()))


# -------------------------------------------------------------------------------------------------- drift, all together


def test_drift_of_any_area_mean():
    fc, an = forecast(), analyses()
    water = c.total_column_water(fc)
    own = c.drift(water)
    xr.testing.assert_allclose(own, (water - water.isel(prediction_timedelta=0, drop=True)).rename(own.name))
    assert own.name == "total_column_water_drift"
    assert own.attrs["units"] == "kg m-2"
    energy = c.drift(c.total_energy(fc), c.total_energy(an))
    expected = c.total_energy(fc).total_energy - c.total_energy(an).total_energy.sel(time=STARTS)
    np.testing.assert_allclose(energy.total_energy_drift, expected.transpose(*energy.total_energy_drift.dims))
    assert energy.total_energy_drift.attrs["reference"] == "analysis at the start"


@pytest.mark.parametrize("with_start", [True, False])
def test_conservation_gathers_what_there_is(with_start):
    fc, an = forecast(), analyses() if with_start else None
    found = c.conservation(fc, start=an)
    assert "left_out" not in found.attrs
    xr.testing.assert_allclose(found.mass_drift, c.mass_drift(fc, start=an).mass_drift)
    for name, make in (("total_column_water", c.total_column_water), ("dry_mass", c.dry_mass)):
        xr.testing.assert_allclose(found[name], make(fc))
        change = c.drift(make(fc), None if an is None else make(an))
        xr.testing.assert_allclose(found[f"{name}_drift"], change, atol=1e-6)
    energy = c.drift(c.total_energy(fc), None if an is None else c.total_energy(an))
    xr.testing.assert_allclose(found.total_energy_drift, energy.total_energy_drift, atol=1e-2)
    assert set(found.mass_drift.dims) == {"time", "number", "prediction_timedelta"}


def test_conservation_says_what_is_left_out():
    found = c.conservation(forecast()[["mean_sea_level_pressure", "specific_humidity"]])
    assert {"mass_drift", "total_column_water", "total_column_water_drift"} <= set(found)
    assert found.attrs["left_out"] == "dry_mass: no surface_pressure; total_energy: no temperature"
    with pytest.raises(DatasetError, match="Nothing of this can be summed up"):
        c.conservation(forecast()[["geopotential"]])


def test_conservation_compares_the_same_levels_and_variables():
    fc = forecast()[["specific_humidity", "temperature"]]
    an = analyses()[["specific_humidity"]].sel(level=[500, 1000])
    with pytest.warns(AlignmentWarning, match="temperature"):
        found = c.conservation(fc, start=an)
    xr.testing.assert_allclose(
        found.total_column_water_drift,
        c.drift(c.total_column_water(fc.sel(level=[500, 1000])), c.total_column_water(an)),
    )
    assert "total_energy: no temperature" in found.attrs["left_out"]


# -------------------------------------------------------------------------------------------------- geostrophic balance

WIDE = LatLonGrid.equiangular(48, 25)


def wave(grid=WIDE, factor=1.0, number=2, power=4):
    """Φ = A sin²φ cosᵖφ cos mλ and `factor` times its geostrophic wind; p − m is even, so that poles are smooth."""
    phi, lam = np.meshgrid(np.deg2rad(grid.latitude), np.deg2rad(grid.longitude), indexing="ij")
    s, k, amplitude = np.sin(phi), np.cos(phi), 3000.0
    scale = 2 * c.ROTATION_RATE * c.EARTH_RADIUS
    # f has one factor s, which every term of the gradient holds
    u = -amplitude * (2 * k ** (power + 1) - power * s**2 * k ** (power - 1)) * np.cos(number * lam) / scale
    v = -number * amplitude * s * k ** (power - 1) * np.sin(number * lam) / scale
    fields = {"z": 5e4 + amplitude * s**2 * k**power * np.cos(number * lam), "u": factor * u, "v": factor * v}
    dims = ("level", "latitude", "longitude")
    coords = {"level": [500], "latitude": list(grid.latitude), "longitude": list(grid.longitude)}
    return xr.Dataset({name: (dims, field[None]) for name, field in fields.items()}, coords)


@pytest.mark.parametrize(("number", "power"), [(1, 3), (2, 4), (3, 5), (6, 6)])
@pytest.mark.parametrize(
    "grid",
    [WIDE, LatLonGrid.equiangular(48, 24, poles=False), LatLonGrid.equiangular(45, 25)],
    ids=["poles", "no poles", "odd number of longitudes"],
)
def test_geostrophic_wave_is_in_balance_to_rounding(grid, number, power):
    found = c.geostrophic_balance(wave(grid, number=number, power=power))
    assert found.ageostrophic_ratio.item() < 1e-11
    assert "Fourier series along meridian circles" in found.ageostrophic_ratio.attrs["method"]


@given(st.floats(-2, 3).filter(lambda x: abs(x) > 0.05))
@settings(max_examples=15, deadline=None)
def test_a_wind_that_is_too_strong_by_a_factor_has_a_known_ratio(factor):
    ratio = c.geostrophic_balance(wave(factor=factor)).ageostrophic_ratio.item()
    np.testing.assert_allclose(ratio, abs(factor - 1) / abs(factor), rtol=1e-9, atol=1e-10)


def test_solid_body_rotation_is_in_balance_but_for_its_curvature():
    """Φ of gradient balance: the ageostrophic part of u cos φ is u² tan φ / a against f u, u / 2Ωa everywhere."""
    phi = np.deg2rad(WIDE.latitude)
    speed, a, omega = 20.0, c.EARTH_RADIUS, c.ROTATION_RATE
    shape = (1, 25, 48)
    u = np.broadcast_to((speed * np.cos(phi))[:, None], shape)
    z = np.broadcast_to((-(a * omega * speed + speed**2 / 2) * np.sin(phi) ** 2)[:, None], shape)
    dims = ("level", "latitude", "longitude")
    coords = {"level": [500], "latitude": list(WIDE.latitude), "longitude": list(WIDE.longitude)}
    ds = xr.Dataset({"z": (dims, z), "u": (dims, u), "v": (dims, 0 * u)}, coords)
    rossby = speed / (2 * omega * a)
    np.testing.assert_allclose(c.geostrophic_balance(ds).ageostrophic_ratio.item(), rossby, rtol=1e-9)
    edges = np.deg2rad(np.clip(np.arange(-93.75, 94, 7.5), -90, 90))
    area = np.where((abs(np.rad2deg(phi)) >= 20) & (abs(np.rad2deg(phi)) < 89), np.diff(np.sin(edges)), 0)
    rms = speed * np.sqrt((area * np.cos(phi) ** 2).sum() / area.sum())
    np.testing.assert_allclose(c.geostrophic_balance(ds).wind.item(), rms, rtol=1e-12)


def test_uneven_rows_take_differences_of_second_order():
    """The error falls by four when the spacing is halved."""
    errors = []
    for rows in (64, 128):
        nodes = np.polynomial.legendre.leggauss(rows)[0]
        grid = LatLonGrid(tuple(np.rad2deg(np.arcsin(nodes))), tuple(np.arange(64) * 360 / 64))
        found = c.geostrophic_balance(wave(grid))
        errors.append(found.ageostrophic_ratio.item())
    assert "differences of second order" in found.ageostrophic_ratio.attrs["method"]
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert errors[1] < 0.01


def test_balance_on_a_mesh_in_nested_and_ring_order():
    nside = 16
    longitude, latitude = healpy.pix2ang(nside, np.arange(12 * nside**2), nest=True, lonlat=True)
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    s, k, scale = np.sin(phi), np.cos(phi), 2 * c.ROTATION_RATE * c.EARTH_RADIUS
    fields = {
        "z": 5e4 + 3000 * s**2 * k**4 * np.cos(3 * lam),
        "u": -3000 * (2 * k**5 - 4 * s**2 * k**3) * np.cos(3 * lam) / scale,
        "v": -9000 * s * k**3 * np.sin(3 * lam) / scale,
    }
    ds = xr.Dataset({n: (("level", "cell"), f[None]) for n, f in fields.items()}, {"level": [500.0]})
    ds = ds.assign_coords(mesh_coordinates(nside))
    nested = c.geostrophic_balance(ds).ageostrophic_ratio.item()
    assert nested < 1e-3
    doubled = c.geostrophic_balance(ds.assign(u=2 * ds.u, v=2 * ds.v)).ageostrophic_ratio.item()
    np.testing.assert_allclose(doubled, 0.5, rtol=1e-3)
    shuffled = ds.isel(cell=np.random.default_rng(0).permutation(ds.sizes["cell"]))
    np.testing.assert_allclose(c.geostrophic_balance(shuffled).ageostrophic_ratio.item(), nested, rtol=1e-9)
    with pytest.raises(DatasetError, match="cells have no description"):
        c.geostrophic_balance(ds.drop_vars("crs"))


@given(st.integers(0, 47), st.booleans(), st.booleans())
@settings(max_examples=10, deadline=None)
def test_turning_the_sphere_or_the_rows_changes_nothing(shift, down, centred):
    ds = wave(factor=0.7)
    noise = np.random.default_rng(1).normal(0, 100, ds.z.shape)
    ds = ds.assign(z=ds.z + noise)
    other = ds.roll(longitude=shift, roll_coords=True)
    other = other.isel(latitude=slice(None, None, -1)) if down else other
    if centred:
        other = other.assign_coords(longitude=(other.longitude + 180) % 360 - 180)
    xr.testing.assert_allclose(c.geostrophic_balance(other), c.geostrophic_balance(ds), rtol=1e-9)


def test_levels_are_selected_by_label():
    fc = forecast()
    every = c.geostrophic_balance(fc)
    assert every.wind.dims == ("time", "number", "prediction_timedelta", "level")
    xr.testing.assert_allclose(c.geostrophic_balance(fc, level=[850, 250]), every.sel(level=[850, 250]))
    xr.testing.assert_allclose(c.geostrophic_balance(fc, level=500), every.sel(level=500))
    xr.testing.assert_allclose(c.geostrophic_balance(fc.sel(level=500)), every.sel(level=500))
    with pytest.raises(DatasetError, match=r"Level 700 isn't there\. Found 250, 500, 850, 1000 hPa"):
        c.geostrophic_balance(fc, level=700)


def test_balance_refuses_what_it_cannot_do():
    fc = forecast()
    with pytest.raises(DatasetError, match="Geostrophic balance needs v_component_of_wind"):
        c.geostrophic_balance(fc.drop_vars("v_component_of_wind"))
    with pytest.raises(ArgumentError, match="latitude_limit=0 can't be used"):
        c.geostrophic_balance(fc, latitude_limit=0)
    with pytest.raises(DatasetError, match="No row is poleward of 80"):
        c.geostrophic_balance(fc, latitude_limit=80)
    uneven = fc.assign_coords(longitude=fc.longitude + np.where(fc.longitude == 60, 5, 0))
    with pytest.raises(DatasetError, match="Longitudes are unevenly spaced"):
        c.geostrophic_balance(uneven)


# ------------------------------------------------------------------------------------------------- hydrostatic residual


def column(warm, geopotential, levels, **extra):
    """Profiles that are the same at all points."""
    shape = (len(levels), 7, 12)
    dims = ("level", "latitude", "longitude")
    fields = {"temperature": warm, "geopotential": geopotential, **extra}
    data = {n: (dims, np.broadcast_to(np.asarray(f, float)[:, None, None], shape)) for n, f in fields.items()}
    return xr.Dataset(data, {"level": levels, **SPACE})


@given(st.floats(200, 310), st.floats(-40, 60), st.floats(0, 0.02), st.permutations([100.0, 300.0, 700.0, 925.0]))
@settings(max_examples=30, deadline=None)
def test_no_residual_where_virtual_temperature_is_linear_in_log_p(warm, slope, humid, levels):
    logs = np.log(np.array(levels) / 1000)
    virtual = warm + slope * logs
    z = -c.DRY_GAS_CONSTANT * (warm * logs + slope * logs**2 / 2)
    moist = 1 + (c.VAPOUR_GAS_CONSTANT / c.DRY_GAS_CONSTANT - 1) * humid
    ds = column(virtual / moist, z, levels, specific_humidity=np.full(4, humid))
    found = c.hydrostatic_residual(ds)
    assert found.hydrostatic_residual.max() < 1e-7
    np.testing.assert_array_equal(found.level_from, [100, 300, 700])
    np.testing.assert_array_equal(found.level_to, [300, 700, 925])


@given(st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_a_layer_that_is_too_warm_by_a_known_amount(extra):
    levels = [500.0, 1000.0]
    z = -c.DRY_GAS_CONSTANT * 260 * np.log(np.array(levels) / 1000)
    found = c.hydrostatic_residual(column([260 + extra] * 2, z, levels))
    np.testing.assert_allclose(found.hydrostatic_residual_temperature.item(), abs(extra), atol=1e-9)
    expected = c.DRY_GAS_CONSTANT * abs(extra) * np.log(2)
    np.testing.assert_allclose(found.hydrostatic_residual.item(), expected, atol=1e-6)


def test_residual_is_the_plain_root_mean_square():
    fc = forecast()
    found = c.hydrostatic_residual(fc.drop_vars("surface_pressure"))
    z, t, q = (fc[n].values.astype(float) for n in ("geopotential", "temperature", "specific_humidity"))
    t = t * (1 + (461.5250 / 287.0597 - 1) * q)
    for k in range(3):
        thick = 287.0597 * (t[:, :, :, k] + t[:, :, :, k + 1]) / 2 * np.log(LEVELS[k + 1] / LEVELS[k])
        rest = z[:, :, :, k] - z[:, :, :, k + 1] - thick
        np.testing.assert_allclose(found.hydrostatic_residual[..., k], np.sqrt(plain_mean(rest**2)), rtol=1e-10)
    assert found.hydrostatic_residual.dims == ("time", "number", "prediction_timedelta", "layer")
    assert "virtual temperature" in found.hydrostatic_residual.attrs["method"]
    dry = c.hydrostatic_residual(fc.drop_vars("specific_humidity"))
    assert "no specific humidity" in dry.hydrostatic_residual.attrs["method"]


def test_layers_below_ground_are_left_out():
    levels = [500.0, 850.0, 1000.0]
    z = -c.DRY_GAS_CONSTANT * 260 * np.log(np.array(levels) / 1000)
    ds = column([260.0] * 3, z, levels)
    high = xr.DataArray(np.full((7, 12), 1e5), dims=("latitude", "longitude")).assign_coords(SPACE)
    high[3:5, 2:7] = 70000.0
    wrong = ds.geopotential.where((high >= 1e5) | (ds.level < 900), np.nan)
    assert c.hydrostatic_residual(ds.assign(geopotential=wrong)).hydrostatic_residual.isnull().any()
    found = c.hydrostatic_residual(ds.assign(geopotential=wrong, surface_pressure=high))
    assert (found.hydrostatic_residual < 1e-7).all()
    assert "left out" in found.hydrostatic_residual.attrs["comment"]
    gap = c.hydrostatic_residual(ds.assign(surface_pressure=high.where(high < 1e5)))
    assert gap.hydrostatic_residual.isnull().all()


def test_residual_needs_layers():
    with pytest.raises(DatasetError, match="The hydrostatic residual needs temperature"):
        c.hydrostatic_residual(forecast()[["geopotential"]])
    with pytest.raises(DatasetError, match="One level has no layer"):
        c.hydrostatic_residual(forecast().isel(level=[1]))


# ------------------------------------------------------------------------------------------------------ lazy, on a mesh

EVERYTHING = {
    "mass_drift": c.mass_drift,
    "mass_drift with start": lambda ds: c.mass_drift(ds, start=analyses()),
    "total_column_water": c.total_column_water,
    "water fields": lambda ds: c.total_column_water(ds, area_mean=False),
    "dry_mass": c.dry_mass,
    "total_energy": c.total_energy,
    "conservation": c.conservation,
    "geostrophic_balance": c.geostrophic_balance,
    "hydrostatic_residual": c.hydrostatic_residual,
}


@pytest.mark.parametrize("chunks", [{"time": 1, "number": 1, "prediction_timedelta": 1}, {"level": 1, "latitude": 3}])
@pytest.mark.parametrize("name", EVERYTHING)
def test_lazy_is_eager(name, chunks):
    import dask

    fc, make = forecast(), EVERYTHING[name]
    with dask.config.set(scheduler=refuse):
        lazy = make(fc.chunk(chunks))
        with pytest.raises(ComputedError):
            lazy.compute()
    parts = [lazy] if isinstance(lazy, xr.DataArray) else list(lazy.values())
    assert all(part.chunks for part in parts)
    xr.testing.assert_allclose(lazy.compute(scheduler="synchronous"), make(fc), rtol=1e-9, atol=1e-6)
    for one in parts:
        assert one.attrs["units"] and one.attrs["long_name"], one.name
        assert one.dtype == np.float64


@pytest.mark.parametrize("name", [n for n in EVERYTHING if "start" not in n])
def test_cells_work_too(name):
    made = EVERYTHING[name](on_mesh())
    made = made.to_dataset() if isinstance(made, xr.DataArray) else made
    assert all(np.isfinite(field).all() for field in made.values())
    if "fields" not in name:
        assert "cell" not in made.dims


def test_real_state_is_near_balance(shared):
    gfs = xr.open_dataset(shared / "data" / "gfs_82channels_20111008T00_f072_1p5deg.nc")
    ratio = c.geostrophic_balance(gfs, level=500).ageostrophic_ratio.item()
    assert 0.1 < ratio < 0.35
    assert 20 < c.total_column_water(gfs).item() < 30  # 24 to 25 kg m-2 in the annual mean
    layers = c.hydrostatic_residual(gfs).swap_dims(layer="level_from").hydrostatic_residual_temperature
    assert layers.sel(level_from=slice(200, 600)).max() < 1
