"""Is the mesh what healpy says, and is regridding exact, labelled and lazy in both directions?"""

from __future__ import annotations

from pathlib import Path

import dask
import healpy
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from xmosaic.errors import ArgumentError, DatasetError
from xmosaic.grid import LatLonGrid
from xmosaic.healpix import (
    HealpixMesh,
    cell_centres,
    cell_vectors,
    cells_at,
    children,
    find_mesh,
    mesh_coordinates,
    parents,
    regrid_weights,
    to_healpix,
    to_latlon,
)
from xmosaic.overlap import grid_overlaps, mesh_overlaps

METHODS = ("conservative", "bilinear", "nearest")
ERA5 = Path(__file__).parents[2] / "shared" / "data" / "era5_tl31_19590102T00.nc"
NSIDES = st.sampled_from([1, 2, 4, 8, 16])


def _grid(nlon, nlat, poles, offset, descending):
    plain = LatLonGrid.equiangular(nlon, nlat, poles)
    longitude = np.asarray(plain.longitude) + offset
    return LatLonGrid(plain.latitude[:: -1 if descending else 1], tuple(longitude))


grids = st.builds(_grid, st.integers(2, 40), st.integers(2, 30), st.booleans(), st.floats(-180, 180), st.booleans())


def on_grid(grid, values=None, name="t", **dims):
    """A field on a grid: white noise around 1, with leading dimensions."""
    shape = (*dims.values(), *grid.shape)
    values = np.random.default_rng(0).normal(1.0, 0.3, shape) if values is None else values
    return xr.DataArray(values, dims=(*dims, "latitude", "longitude"), coords=grid.coordinates(), name=name)


def on_mesh(nside, values=None, name="t", **dims):
    values = np.random.default_rng(1).normal(1.0, 0.3, (*dims.values(), 12 * nside**2)) if values is None else values
    coords = mesh_coordinates(nside)
    return xr.DataArray(values, dims=(*dims, "cell"), coords=coords, name=name, attrs={"grid_mapping": "crs"})


def smooth(longitude, latitude):
    """A smooth field of total wavenumber up to three."""
    x, y = np.deg2rad(longitude), np.deg2rad(latitude)
    return 2 + np.sin(y) + np.cos(y) * np.cos(x) + 0.5 * np.cos(y) ** 2 * np.sin(2 * x) + np.sin(y) ** 3


@pytest.fixture
def no_compute():
    def fail(*args, **kwargs):
        raise RuntimeError("something was computed")

    with dask.config.set(scheduler=fail):
        yield


# Is the mesh healpy's?


@given(NSIDES, st.floats(-180, 540), st.floats(-90, 90))
def test_a_point_lies_in_its_cell(nside, longitude, latitude):
    cell = cells_at(nside, longitude, latitude)
    assert cell == healpy.ang2pix(nside, longitude, latitude, nest=True, lonlat=True)
    angle = np.arccos(np.clip(cell_vectors(nside)[cell] @ healpy.ang2vec(longitude, latitude, lonlat=True), -1, 1))
    assert angle <= healpy.max_pixrad(nside) + 1e-7


@given(NSIDES)
def test_centres_and_cells_are_a_round_trip(nside):
    longitude, latitude = cell_centres(nside)
    np.testing.assert_array_equal(cells_at(nside, longitude, latitude), np.arange(12 * nside**2))
    np.testing.assert_allclose(np.linalg.norm(cell_vectors(nside), axis=-1), 1, rtol=1e-14)


@given(NSIDES, st.integers(0, 3))
def test_children_lie_in_their_parent(nside, levels):
    cells = np.arange(12 * nside**2)
    young = children(cells, levels)
    assert young.shape == (cells.size, 4**levels)
    np.testing.assert_array_equal(parents(young, levels), np.repeat(cells[:, None], 4**levels, axis=1))
    longitude, latitude = cell_centres(nside * 2**levels)
    np.testing.assert_array_equal(cells_at(nside, longitude, latitude), parents(np.arange(longitude.size), levels))


# Are the overlap areas exact?


@given(grids, NSIDES)
@settings(max_examples=60, deadline=None)
def test_overlaps_cover_each_cell_and_each_grid_cell_once(grid, nside):
    areas = mesh_overlaps.__wrapped__(grid, nside)
    assert areas.data.min() > 0
    np.testing.assert_allclose(areas.sum(axis=1), np.pi / (3 * nside**2), rtol=1e-13)
    np.testing.assert_allclose(areas.sum(axis=0), grid.cell_area().values.ravel(), rtol=2e-13)


@given(st.integers(0, 1000), NSIDES)
@settings(max_examples=20, deadline=None)
def test_uneven_grids_are_covered_as_well(seed, nside):
    rng = np.random.default_rng(seed)
    latitude = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(18)[0])) + rng.uniform(-1, 1, 18)
    longitude = np.arange(17) * 360 / 17 + rng.uniform(-2, 2, 17)
    grid = LatLonGrid(tuple(rng.permutation(latitude)), tuple(rng.permutation(longitude) - 180))
    areas = mesh_overlaps.__wrapped__(grid, nside)
    np.testing.assert_allclose(areas.sum(axis=1), np.pi / (3 * nside**2), rtol=1e-13)
    np.testing.assert_allclose(areas.sum(axis=0), grid.cell_area().values.ravel(), rtol=2e-13)


@pytest.mark.parametrize(("nlon", "nlat", "poles", "nside"), [(16, 9, True, 2), (7, 5, False, 4), (5, 3, True, 1)])
def test_overlaps_equal_a_count_of_fine_pixels(nlon, nlat, poles, nside):
    grid = _grid(nlon, nlat, poles, 3.3, True)
    fine = 1024
    longitude, latitude = healpy.pix2ang(fine, np.arange(12 * fine**2), nest=True, lonlat=True)
    rows = nlat - 1 - np.clip(np.searchsorted(grid.latitude_edges(), latitude, side="right") - 1, 0, nlat - 1)
    west = grid.longitude_bounds()[0, 0]
    point = rows * nlon + ((longitude - west) % 360 // (360 / nlon)).astype(int)
    cell = np.arange(longitude.size) // (fine // nside) ** 2
    counted = np.bincount(cell * nlon * nlat + point, minlength=12 * nside**2 * nlon * nlat)
    exact = regrid_weights(grid, HealpixMesh(nside)).matrix.toarray()
    # the error of counting: an edge along a ring of pixels is off by up to half a row of them, 0.5 / side
    side = fine // nside
    error = np.abs(counted.reshape(exact.shape) / side**2 - exact)
    assert error.max() < 1 / side
    assert error.mean() < 0.1 / side


# Does regridding keep what it must keep?


@given(grids, NSIDES, st.sampled_from(METHODS), st.sampled_from(["float32", "float64"]))
@settings(max_examples=60, deadline=None)
def test_a_constant_stays_constant_both_ways(grid, nside, method, dtype):
    constant = on_grid(grid, np.full(grid.shape, 273.15, dtype))
    tolerance = {"rtol": 0 if dtype == "float32" else 2e-15 * 30}
    mesh = to_healpix(constant, nside, method)
    np.testing.assert_allclose(mesh, constant.values[0, 0], **tolerance)
    np.testing.assert_allclose(to_latlon(mesh, grid, method), constant.values[0, 0], **tolerance)
    assert mesh.dtype == dtype


@given(grids, NSIDES, st.sampled_from([("float32", 1e-6), ("float64", 1e-12)]))
@settings(max_examples=80, deadline=None)
def test_the_area_integral_is_kept_both_ways(grid, nside, accuracy):
    dtype, tolerance = accuracy
    area, cell_area = grid.cell_area(), np.pi / (3 * nside**2)
    noise = on_grid(grid).astype(dtype)
    for given_field in (noise, noise - 1, np.abs(noise)):
        scale = float((np.abs(given_field).astype("float64") * area).sum())
        mesh = to_healpix(given_field, nside)
        integral = float((given_field.astype("float64") * area).sum())
        assert abs(float(mesh.astype("float64").sum()) * cell_area - integral) <= tolerance * scale
        back = to_latlon(mesh, grid).astype("float64")
        scale = float(np.abs(mesh).astype("float64").sum()) * cell_area
        assert abs(float((back * area).sum()) - float(mesh.astype("float64").sum()) * cell_area) <= tolerance * scale


@pytest.mark.parametrize("method", ["conservative", "bilinear"])
def test_regridding_is_linear(method):
    grid = LatLonGrid.equiangular(24, 13)
    a, b = on_grid(grid), on_grid(grid, np.random.default_rng(5).normal(size=grid.shape))
    for regrid in (lambda f: to_healpix(f, 4, method), lambda f: to_latlon(to_healpix(f, 4), (16, 9), method)):
        np.testing.assert_allclose(regrid(2 * a - 3 * b), 2 * regrid(a) - 3 * regrid(b), rtol=0, atol=1e-13)


@given(grids, NSIDES)
@settings(max_examples=40, deadline=None)
def test_conservative_means_lie_within_the_field(grid, nside):
    f = on_grid(grid)
    mesh = to_healpix(f, nside)
    assert f.min() - 1e-12 <= mesh.min() <= mesh.max() <= f.max() + 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_grid_changes_nothing(method):
    plain = on_grid(LatLonGrid.equiangular(24, 13))
    mesh = to_healpix(plain, 4, method)
    centred = plain.assign_coords(longitude=(plain.longitude + 180) % 360 - 180).sortby("longitude")
    for other in (plain[::-1], centred, plain.transpose(), plain.rename(latitude="lat", longitude="lon")):
        np.testing.assert_allclose(to_healpix(other, 4, method), mesh, rtol=1e-13)
    back = to_latlon(mesh, centred[::-1], method)
    np.testing.assert_array_equal(back.latitude, plain.latitude[::-1])
    np.testing.assert_array_equal(back.longitude, centred.longitude)
    # an exact tie between two cells may fall either way when 360 is added
    np.testing.assert_allclose(
        back[::-1].assign_coords(longitude=back.longitude % 360).sortby("longitude"),
        to_latlon(mesh, plain, method),
        rtol=1e-12,
    )


@pytest.mark.parametrize("start", [0.0, -180.0])
def test_a_repeated_meridian_is_left_out(start):
    grid = _grid(24, 13, True, start, False)
    f = on_grid(grid)
    closed = xr.concat([f, f.isel(longitude=[0]).assign_coords(longitude=[start + 360])], "longitude")
    xr.testing.assert_identical(to_healpix(closed, 4), to_healpix(f, 4))


def test_coordinates_may_stand_on_other_dimensions():
    f = on_grid(LatLonGrid.equiangular(24, 13), time=2)
    swapped = f.rename(latitude="lat", longitude="lon").swap_dims(lat="y", lon="x").transpose("x", "time", "y")
    mesh = to_healpix(swapped, 4)
    assert mesh.dims == ("cell", "time")
    np.testing.assert_array_equal(mesh.transpose(), to_healpix(f, 4))


@pytest.mark.parametrize("method", METHODS)
def test_no_times_give_no_times(method):
    f = on_grid(LatLonGrid.equiangular(24, 13), time=2)[:0]
    assert to_healpix(f, 4, method, missing_fraction=True).shape == (0, 192)


# Do independent tools say the same?


def test_bilinear_to_latlon_is_healpys_interpolation():
    mesh, grid = on_mesh(8), _grid(17, 12, True, 5.5, True)
    longitude, latitude = np.meshgrid(grid.longitude, grid.latitude)
    expected = healpy.get_interp_val(mesh.values, longitude, latitude, nest=True, lonlat=True)
    np.testing.assert_allclose(to_latlon(mesh, grid, "bilinear"), expected, rtol=1e-12)


def test_nearest_to_latlon_is_the_cell_of_the_point():
    mesh, grid = on_mesh(8), _grid(17, 12, True, 5.5, True)
    longitude, latitude = np.meshgrid(grid.longitude, grid.latitude)
    expected = mesh.values[healpy.ang2pix(8, longitude, latitude, nest=True, lonlat=True)]
    np.testing.assert_array_equal(to_latlon(mesh, grid, "nearest"), expected)


@given(grids, st.sampled_from([1, 2, 8]))
@settings(max_examples=30, deadline=None)
def test_nearest_to_mesh_is_the_nearest_point_on_the_sphere(grid, nside):
    longitude, latitude = (np.ravel(a) for a in np.meshgrid(grid.longitude, grid.latitude))
    points = healpy.ang2vec(longitude, latitude, lonlat=True)
    cosines = cell_vectors(nside) @ points.T
    taken = regrid_weights(grid, HealpixMesh(nside), "nearest").matrix.indices
    np.testing.assert_allclose(cosines[np.arange(len(cosines)), taken], cosines.max(axis=1), atol=1e-14)


def test_bilinear_to_mesh_is_scipys_interpolation():
    from scipy.interpolate import RegularGridInterpolator

    grid = LatLonGrid.equiangular(24, 13)
    f = on_grid(grid)
    around = np.concatenate([f, f[:, :1]], axis=1)
    oracle = RegularGridInterpolator((grid.latitude, (*grid.longitude, 360.0)), around)
    longitude, latitude = cell_centres(8)
    np.testing.assert_allclose(to_healpix(f, 8, "bilinear"), oracle((latitude, longitude)), rtol=1e-13)


def test_bilinear_beyond_the_last_row_goes_to_its_mean():
    grid = LatLonGrid.equiangular(8, 4, poles=False)
    f = on_grid(grid)
    ends = xr.concat(
        [f.mean("longitude").expand_dims(longitude=f.longitude).transpose()[[0]], f, f[[-1]] * 0], "latitude"
    )
    ends[-1] = float(f[-1].mean())
    ends[0] = float(f[0].mean())
    ends = ends.assign_coords(latitude=[-90, *grid.latitude, 90])
    np.testing.assert_allclose(to_healpix(f, 8, "bilinear"), to_healpix(ends, 8, "bilinear"), rtol=1e-13)


def test_conservative_to_mesh_is_the_mean_of_fine_sampling():
    grid, nside = _grid(36, 19, True, 2.0, True), 8
    f = on_grid(grid)
    fine = to_healpix(f, nside * 32, "nearest")
    # the nearest point is the cell's own but for the small part between midpoints in degrees and on the sphere
    sampled = healpy.ud_grade(fine.values, nside, order_in="NEST", order_out="NEST")
    error = np.abs(to_healpix(f, nside) - sampled)
    assert error.mean() < 3e-3
    assert error.max() < 3e-2


def test_by_way_of_the_mesh_is_as_direct_and_as_xarray_regrid():
    import xarray_regrid  # noqa: F401

    # grid cells of 20° are blocks of 8 × 8 cells of 2.5°
    fine, coarse = _grid(144, 72, False, 1.25, False), _grid(18, 9, False, 10.0, False)
    f = on_grid(fine, smooth(*np.meshgrid(fine.longitude, fine.latitude)))
    weighted = (f * fine.cell_area()).coarsen(latitude=8, longitude=8).sum()
    direct = weighted.values / coarse.cell_area().values
    theirs = f.regrid.conservative(xr.Dataset(coords=coarse.coordinates()), latitude_coord="latitude")
    # cells of 0.46° on an edge spread over both sides: 0.46 / 20 of the area, by half of what the field changes in 2.5°
    ours = to_latlon(to_healpix(f, 128), coarse)
    np.testing.assert_allclose(ours, direct, atol=1e-3)
    # xarray-regrid weighs the two outermost rows otherwise (1e-3 from the direct mean)
    np.testing.assert_allclose(ours[1:-1], theirs[1:-1], atol=1e-3)


def test_gaussian_grid_of_era5_keeps_its_integral():
    if not ERA5.exists():
        pytest.skip(f"{ERA5} is absent")
    with xr.open_dataset(ERA5) as ds:
        ds = ds[["temperature"]].isel(level=slice(0, None, 12)).load()
    grid, mesh = LatLonGrid.from_dataset(ds), to_healpix(ds, 16)
    assert mesh.temperature.dims == ("level", "cell")
    area = grid.cell_area()
    before = (ds.temperature.astype("float64") * area).sum(["latitude", "longitude"]) / (4 * np.pi)
    np.testing.assert_allclose(mesh.temperature.astype("float64").mean("cell"), before, rtol=1e-7)
    back = to_latlon(mesh, ds)
    after = (back.temperature.astype("float64") * area).sum(["latitude", "longitude"]) / (4 * np.pi)
    np.testing.assert_allclose(after, before, rtol=1e-7)
    xr.testing.assert_identical(back.latitude.variable, ds.latitude.variable)


# Is another HEALPix resolution exact?


def test_coarser_and_finer_meshes_are_exact():
    mesh = on_mesh(8)
    coarse = to_healpix(mesh, 2)
    np.testing.assert_allclose(coarse, mesh.values.reshape(48, 16).mean(axis=1), rtol=1e-14)
    np.testing.assert_array_equal(to_healpix(coarse, 8), np.repeat(coarse.values, 16))
    assert coarse.crs.attrs["refinement_level"] == 1
    np.testing.assert_array_equal(to_healpix(mesh, 8), mesh)


# Is lazy the same as eager?


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_computed_when_building(method, no_compute):
    ds = on_grid(LatLonGrid.equiangular(24, 13), time=4).to_dataset().chunk(time=1, latitude=5)
    mesh = to_healpix(ds, 4, method, missing_fraction=True)
    assert mesh.t.chunks == ((1, 1, 1, 1), (192,))
    back = to_latlon(mesh, 30.0, method)
    assert back.t.chunks == ((1, 1, 1, 1), (7,), (12,))
    ring = on_mesh(4, time=2).chunk(time=1)
    ring.crs.attrs["indexing_scheme"] = "ring"
    assert to_latlon(ring, 30.0, method).chunks is not None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lazy_is_eager_bit_by_bit(method, dtype):
    f = on_grid(LatLonGrid.equiangular(24, 13), time=5, level=9).astype(dtype)
    f = f.where((f > 0.5) | (f.time != 2))
    lazy = f.chunk(time=1, level=2, latitude=5)
    eager = to_healpix(f, 4, method, missing_fraction=True)
    xr.testing.assert_identical(to_healpix(lazy, 4, method, missing_fraction=True).compute(), eager)
    eager = eager.drop_vars("t_missing_fraction")
    xr.testing.assert_identical(
        to_latlon(eager.chunk(time=2, cell=50), 30.0, method).compute(), to_latlon(eager, 30.0, method)
    )


def test_a_chunk_travels_without_its_operator():
    import pickle

    from xmosaic.healpix.variable import _Kernel

    kernel = _Kernel(LatLonGrid.equiangular(240, 121), HealpixMesh(64), "conservative", 0.5, "'t'")
    assert len(pickle.dumps(kernel)) < 10_000


# Is missing data left out, and only it?


@pytest.mark.parametrize("max_missing", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("method", ["conservative", "bilinear"])
def test_missing_points_are_left_out_as_in_a_loop(method, max_missing):
    grid = LatLonGrid.equiangular(20, 11)
    f = on_grid(grid).where(np.random.default_rng(3).random(grid.shape) > 0.4)
    weights = regrid_weights(grid, HealpixMesh(4), method).matrix.toarray()
    expected, fractions = np.full(192, np.nan), np.zeros(192)
    values = f.values.ravel()
    for cell, row in enumerate(weights):
        valid = (row > 0) & np.isfinite(values)
        fractions[cell] = row[~np.isfinite(values)].sum()
        if valid.any() and fractions[cell] <= max_missing + 1e-12:
            expected[cell] = (row[valid] * values[valid]).sum() / row[valid].sum()
    mesh = to_healpix(f, 4, method, max_missing=max_missing, missing_fraction=True)
    np.testing.assert_allclose(mesh, expected, rtol=1e-12)
    np.testing.assert_allclose(mesh.t_missing_fraction, fractions, atol=1e-14)
    assert 0 < np.isnan(expected).sum() < 192 or max_missing == 1.0


def test_missing_points_elsewhere_change_no_bit():
    f = on_grid(LatLonGrid.equiangular(20, 11), time=2)
    holed = f.where((f.latitude < 50) | (f.time == 1))
    full, part = to_healpix(f, 4), to_healpix(holed, 4)
    np.testing.assert_array_equal(part.isel(time=1), full.isel(time=1))
    south = cell_centres(4)[1] < 20
    np.testing.assert_array_equal(part[0, south], full[0, south])


def test_missing_fraction_is_a_variable_of_a_dataset_and_a_coordinate_of_an_array():
    f = on_grid(LatLonGrid.equiangular(20, 11)).where(lambda x: x.latitude < 40)
    ds = to_healpix(f.to_dataset(), 4, missing_fraction=True)
    assert ds.t.attrs["ancillary_variables"] == "t_missing_fraction"
    attributes = {"long_name": "missing fraction of t", "units": "1", "grid_mapping": "crs"}
    assert ds.t_missing_fraction.attrs == attributes
    assert "t_missing_fraction" in ds.data_vars
    assert 0 < float(ds.t_missing_fraction.mean()) < 1
    da = to_healpix(f, 4, missing_fraction=True)
    xr.testing.assert_equal(da.t_missing_fraction.drop_vars("t_missing_fraction"), ds.t_missing_fraction)
    assert da.coords["t_missing_fraction"].attrs == attributes
    assert to_healpix(f.rename(None), 4, missing_fraction=True).field_missing_fraction.size == 192


@pytest.mark.parametrize("method", ["conservative", "bilinear"])
def test_infinite_values_are_an_error_and_pass_on_nearest(method):
    f = on_grid(LatLonGrid.equiangular(20, 11))
    f[3, 4] = np.inf
    with pytest.raises(DatasetError, match=r"Can't regrid 't': A field has infinite values.*Found 1 of them"):
        to_healpix(f.to_dataset(), 4, method)
    with pytest.raises(DatasetError, match="Can't regrid the DataArray: A field has infinite values"):
        to_healpix(f.chunk(), 4, method).compute()
    assert np.isinf(to_healpix(f, 4, "nearest")).any()


# Are labels and metadata right?


def _rich():
    grid = LatLonGrid.equiangular(20, 11)
    ds = (
        on_grid(grid, time=2, level=3)
        .astype("float32")
        .transpose("time", "latitude", "level", "longitude")
        .to_dataset()
    )
    ds["t"].attrs = {
        "units": "K",
        "standard_name": "air_temperature",
        "actual_range": [0, 1],
        "cell_methods": "time: mean",
    }
    ds["t"].encoding = {"zlib": True, "chunksizes": (1, 11, 3, 20), "_FillValue": -1.0}
    ds["count"] = (("longitude", "latitude"), np.ones((20, 11), int))
    ds["scale"] = ("level", [1.0, 2.0, 3.0], {"units": "1"})
    ds = ds.assign_coords(
        level=("level", [500, 850, 1000], {"units": "hPa"}),
        number=7,
        area=(("latitude", "longitude"), grid.cell_area().values),
    )
    ds["latitude"].attrs["bounds"] = "latitude_bnds"
    ds["latitude_bnds"] = (("latitude", "nv"), grid.latitude_bounds())
    ds["sphere"] = ((), 0, {"grid_mapping_name": "latitude_longitude"})
    ds["t"].attrs["grid_mapping"] = "sphere"
    return ds.assign_attrs(title="rich")


def test_labels_are_kept_and_replaced():
    ds = _rich()
    copy = ds.copy(deep=True)
    mesh = to_healpix(ds, 4)
    xr.testing.assert_identical(ds, copy)
    assert list(mesh.data_vars) == ["t", "count", "scale"]
    assert set(mesh.coords) == {"cell", "crs", "level", "number"}
    assert mesh.t.dims == ("time", "cell", "level")
    assert mesh.t.dtype == "float32"
    assert mesh["count"].dtype == "float64"
    assert mesh.t.attrs == {
        "units": "K",
        "standard_name": "air_temperature",
        "cell_methods": "time: mean area: mean",
        "grid_mapping": "crs",
    }
    assert mesh.t.encoding == {"zlib": True, "_FillValue": -1.0}
    assert mesh.attrs == {"title": "rich"}
    xr.testing.assert_identical(mesh.scale.variable, ds.scale.variable)
    xr.testing.assert_identical(mesh.level.variable, ds.level.variable)
    back = to_latlon(mesh, ds)
    assert back.t.dims == ("time", "latitude", "longitude", "level")
    assert back.t.attrs == {
        "units": "K",
        "standard_name": "air_temperature",
        "cell_methods": "time: mean area: mean",
    }
    assert "crs" not in back.variables
    assert to_healpix(ds, 4, "nearest")["count"].dtype == int


def test_mesh_metadata_is_cf_to_the_letter():
    mesh = to_healpix(_rich(), 4)
    assert mesh.cell.attrs == {"standard_name": "healpix_index", "units": "1"}
    assert mesh.crs.attrs == {"grid_mapping_name": "healpix", "refinement_level": 2, "indexing_scheme": "nested"}
    assert mesh.crs.ndim == 0
    np.testing.assert_array_equal(mesh.cell, np.arange(192))
    assert find_mesh(mesh) == HealpixMesh(4)
    assert find_mesh(_rich()) is None


def test_means_over_named_axes_become_means_over_area():
    f = on_grid(LatLonGrid.equiangular(20, 11)).assign_attrs(cell_methods="time: max latitude: longitude: mean")
    assert to_healpix(f, 4).attrs["cell_methods"] == "time: max area: mean"
    assert "cell_methods" not in to_healpix(f.assign_attrs(cell_methods=""), 4, "bilinear").attrs


def test_packed_integers_are_not_written_as_integers_again():
    f = on_grid(LatLonGrid.equiangular(20, 11)).round().astype(int)
    f.encoding = {"dtype": "int16", "_FillValue": -1, "zlib": True}
    assert to_healpix(f, 4).encoding == {"zlib": True}
    assert to_healpix(f, 4, "nearest").encoding == f.encoding


def test_files_keep_the_mesh(tmp_path):
    mesh = to_healpix(_rich(), 4)
    mesh.to_netcdf(tmp_path / "mesh.nc")
    with xr.open_dataset(tmp_path / "mesh.nc", decode_coords="all") as again:
        xr.testing.assert_allclose(to_latlon(again, 18.0).t, to_latlon(mesh, 18.0).t)
        assert "grid_mapping" not in to_latlon(again, 18.0).t.encoding


@pytest.mark.parametrize("as_array", [False, True])
def test_xdggs_opens_ours_and_we_open_theirs(as_array):
    xdggs = pytest.importorskip("xdggs")
    mesh = to_healpix(_rich(), 4)
    given_mesh = mesh.t.to_dataset() if as_array else mesh
    decoded = xdggs.decode(given_mesh, convention="cf")
    assert (decoded.dggs.grid_info.level, decoded.dggs.grid_info.indexing_scheme) == (2, "nested")
    encoded = xdggs.conventions.encode(decoded, "cf")
    assert encoded.t.attrs["grid_mapping"] == "healpix"
    expected = to_latlon(mesh, 18.0).t
    for theirs in (decoded, encoded):
        xr.testing.assert_identical(to_latlon(theirs, 18.0).t, expected)
        xr.testing.assert_identical(to_latlon(theirs.t, 18.0), expected)


@pytest.mark.parametrize("scheme", ["nested", "ring"])
@pytest.mark.parametrize("level", ["level", "refinement_level"])
def test_xdggs_attributes_in_either_order_of_cells(scheme, level):
    mesh = on_mesh(4)
    ids = np.arange(192)
    values = mesh.values[healpy.ring2nest(4, ids)] if scheme == "ring" else mesh.values
    attributes = {"grid_name": "healpix", level: 2, "indexing_scheme": scheme}
    theirs = xr.Dataset({"t": ("cells", values)}, {"cell_ids": ("cells", ids, attributes)})
    expected = to_latlon(mesh, 18.0)
    np.testing.assert_array_equal(to_latlon(theirs, 18.0).t, expected)
    shuffled = theirs.isel(cells=np.random.default_rng(0).permutation(192))
    np.testing.assert_array_equal(to_latlon(shuffled, 18.0).t, expected)
    bare = theirs.drop_vars("cell_ids")
    np.testing.assert_array_equal(to_latlon(bare, 18.0, nside=4, indexing_scheme=scheme).t, expected)


def test_a_mesh_may_also_carry_its_centres():
    longitude, latitude = cell_centres(4)
    mesh = on_mesh(4).assign_coords(lat=("cell", latitude), lon=("cell", longitude))
    assert set(to_latlon(mesh, 18.0).coords) == {"latitude", "longitude"}


def test_names_of_the_grid_are_the_callers():
    like = on_grid(LatLonGrid.equiangular(20, 11)).rename(latitude="lat", longitude="lon").astype("float32")
    like = like.assign_coords(lat=like.lat.astype("float32"))
    back = to_latlon(on_mesh(4), like)
    assert back.dims == ("lat", "lon")
    xr.testing.assert_identical(back.lat.variable, like.lat.variable)


# Is what can't be done refused with a reason?


@pytest.mark.parametrize("nside", [0, 3, -4, 6.0, True, "4"])
def test_nside_must_be_a_power_of_two(nside):
    with pytest.raises(ArgumentError, match=r"is not the resolution of a nested mesh\. Expected a power of two"):
        to_healpix(on_grid(LatLonGrid.equiangular(20, 11)), nside)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f, m: to_healpix(f, 4, "cubic"),
            r"method='cubic' is not known\. Expected 'conservative' or 'bilinear'",
        ),
        (lambda f, m: to_latlon(m, 18.0, "cubic"), "method='cubic' is not known"),
        (lambda f, m: to_healpix(f, 4, max_missing=2), r"max_missing=2 can't be used\. Expected a fraction"),
        (lambda f, m: to_healpix(f.values, 4), r"Only xarray objects are regridded\. Found ndarray"),
        (lambda f, m: to_latlon(m, "1.5"), "doesn't name a latitude/longitude grid"),
        (lambda f, m: children(3, -1), "levels=-1 can't be used"),
        (lambda f, m: to_latlon(f, 18.0, "nearest"), "does not go between two latitude/longitude grids"),
        (lambda f, m: to_latlon(m, 18.0, nside=8), r"own description says otherwise\. Found nside=8"),
        (
            lambda f, m: regrid_weights(HealpixMesh(2), HealpixMesh(1)).apply(np.ones(7)),
            r"Found shape \(7,\); expected",
        ),
        (lambda f, m: to_latlon(m.drop_vars(["cell", "crs"]), 18.0, nside=4), "needs both nside and indexing_scheme"),
    ],
)
def test_unusable_arguments_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(on_grid(LatLonGrid.equiangular(20, 11)), on_mesh(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, m: to_healpix(f.isel(latitude=0, drop=True), 4), "No latitude is on this Dataset"),
        (lambda f, m: to_latlon(f.isel(latitude=0, drop=True), 18.0), "No HEALPix mesh is on this object"),
        (
            lambda f, m: to_latlon(m.drop_vars(["cell", "crs"]), 18.0),
            r"The cells have no description\. Found dimension",
        ),
        (lambda f, m: to_latlon(m[:100], 18.0), r"doesn't hold the whole mesh\. Found 100 cells; expected 192"),
        (lambda f, m: to_latlon(m.assign_coords(cell=m.cell // 2), 18.0), "doesn't number the whole mesh"),
        (
            lambda f, m: to_latlon(xr.merge([f.rename("u"), m]), 18.0),
            "both a HEALPix mesh and a latitude/longitude grid",
        ),
        (lambda f, m: to_healpix(xr.merge([f.rename("u"), m]), 8), "both a HEALPix mesh and a latitude/longitude grid"),
        (lambda f, m: to_healpix(f > 1, 4), r"the DataArray has no values that can be averaged\. Found dtype bool"),
        (
            lambda f, m: to_healpix(f.astype(str).to_dataset(name="s"), 4),
            "'s' has no values that can be averaged.*nearest",
        ),
        (
            lambda f, m: to_healpix(f.assign_attrs(flag_values=[0, 1]), 4),
            "with flag attributes; .*Use method='nearest'",
        ),
        (
            lambda f, m: to_healpix(f.assign_attrs(standard_name="soil_type"), 4, "bilinear"),
            "no values that can be averaged",
        ),
        (
            lambda f, m: to_healpix(xr.Dataset({"t": f, "z": f.mean("longitude")}), 4),
            "'z' has only one of the horizontal",
        ),
        (lambda f, m: to_healpix(f.expand_dims(cell=3), 4), "The name 'cell' is needed for the result"),
        (
            lambda f, m: to_healpix(xr.Dataset({"t": f, "t_missing_fraction": f}), 4, missing_fraction=True),
            "The name 't_missing_fraction' is needed for the result",
        ),
    ],
)
def test_unusable_datasets_are_refused(call, message):
    with pytest.raises(DatasetError, match=message):
        call(on_grid(LatLonGrid.equiangular(20, 11)), on_mesh(4))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"grid_mapping_name": "healpix", "indexing_scheme": "nested"}, "no usable resolution"),
        ({"grid_mapping_name": "healpix", "refinement_level": 2}, r"order of the cells can't be used.*'missing'"),
        ({"grid_mapping_name": "healpix", "refinement_level": 2, "indexing_scheme": "zuniq"}, "'zuniq'"),
    ],
)
def test_incomplete_descriptions_are_refused(attributes, message):
    mesh = on_mesh(4)
    mesh.crs.attrs = attributes
    with pytest.raises(DatasetError, match=message):
        to_latlon(mesh, 18.0)


def test_the_dimension_of_the_cells_must_be_clear():
    mesh = on_mesh(4).drop_vars("cell").rename(cell="points")
    with pytest.raises(DatasetError, match="The dimension of the HEALPix cells can't be told"):
        to_latlon(mesh, 18.0)


@pytest.mark.parametrize("method", ["conservative", "bilinear"])
def test_categories_pass_on_nearest(method):
    f = on_grid(LatLonGrid.equiangular(20, 11)).round().astype(str)
    assert set(np.unique(to_healpix(f, 4, "nearest"))) <= set(np.unique(f))
    assert to_healpix(f, 4, "nearest").dtype == f.dtype


# Between two latitude/longitude grids


@given(grids, grids)
@settings(max_examples=60, deadline=None)
def test_grid_overlaps_cover_both_grids_once(source, target):
    areas = grid_overlaps(source, target)
    np.testing.assert_allclose(areas.sum(axis=1), target.cell_area().values.ravel(), rtol=1e-12)
    np.testing.assert_allclose(areas.sum(axis=0), source.cell_area().values.ravel(), rtol=1e-12)


@given(grids, grids, st.sampled_from(["float32", "float64"]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_grid_to_grid_keeps_the_integral(source, target, dtype, seed):
    values = np.random.default_rng(seed).uniform(1, 2, source.shape).astype(dtype)
    field = xr.DataArray(values, dims=(source.latitude_name, source.longitude_name), coords=source.coordinates())
    result = to_latlon(field, target)
    assert result.dtype == dtype
    before = float((field.astype("float64") * source.cell_area()).sum())
    after = float((result.astype("float64") * target.cell_area()).sum())
    assert after == pytest.approx(before, rel=1e-6 if dtype == "float32" else 1e-12)


def test_grid_to_grid_is_the_mean_of_the_cells_it_covers():
    fine = LatLonGrid.equiangular(24, 12, poles=False)
    field = xr.DataArray(
        np.random.default_rng(1).normal(size=fine.shape), dims=("latitude", "longitude"), coords=fine.coordinates()
    )
    # a coarse cell of 60° × 60° whose edges are edges of the fine grid: the weighted mean of 4 × 4 cells
    lon = tuple(15.0 * k + 22.5 for k in range(0, 24, 4))
    coarse = LatLonGrid((-60.0, 0.0, 60.0), lon)
    weighted = (field * fine.cell_area()).coarsen(latitude=4, longitude=4).sum()
    expected = weighted / fine.cell_area().coarsen(latitude=4, longitude=4).sum()
    np.testing.assert_allclose(to_latlon(field, coarse), expected, rtol=1e-12)


def test_grid_to_grid_agrees_with_xarray_regrid_away_from_the_poles():
    # whole fine cells in a coarse cell: there xarray-regrid's cosine weights differ from exact ones by order Δφ²
    xarray_regrid = pytest.importorskip("xarray_regrid")
    assert xarray_regrid
    fine, coarse = LatLonGrid.equiangular(360, 180, poles=False), LatLonGrid.equiangular(60, 30, poles=False)
    lon, lat = np.meshgrid(np.deg2rad(fine.longitude), np.deg2rad(fine.latitude))
    field = xr.DataArray(
        2 + np.cos(lat) ** 2 * np.sin(2 * lon), dims=("latitude", "longitude"), coords=fine.coordinates()
    )
    theirs = field.regrid.conservative(xr.Dataset(coords=coarse.coordinates()), latitude_coord="latitude")
    difference = (to_latlon(field, coarse) - theirs.transpose("latitude", "longitude"))[3:-3]
    np.testing.assert_allclose(difference, 0, atol=2e-4)
